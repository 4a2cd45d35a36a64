"""When a job takes the place of one that is held: which one, and why not. Pure.

Only where /config lets its scope's jobs do so (jobs/preempt), only the place of a job of its own tenant, in
its own pool, of a lower priority, and only when it gets that place: it is the next that the node would be
given, before the other one too. No job loses its place so twice, and none has failed by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from skep.namespaces.jobs import placement
from skep.namespaces.jobs.envelope import scope_of
from skep.namespaces.jobs.placement import Fit
from skep.namespaces.jobs.queues import rank_ns
from skep.namespaces.jobs.record import Job, Jobs
from skep.trace.clock import SECOND
from skep.trace.rules import Refusal

PREEMPTED: Final = "preempted"  # the end of such an attempt.
PATIENCE_NS: Final = SECOND  # a job waits before it takes a place: a worker may be about to ask.


class World(placement.World, Protocol):
    def setting(self, scope: str, key: str) -> object:
        """What /config has for the key in the scope. Raises Refusal when it cannot be read."""

    def why_no_lease(self, pool: str, node: str, asking: int, pool_asking: int) -> str:
        """Why the pool gives the node no lease, were there so many more or fewer; "": it does."""

    def serves_all(self, node: str) -> bool:
        """Whether the node gets every tenant's jobs."""


def preemptions(jobs: Jobs, world: World, now_ns: int) -> Iterator[tuple[Job, Job]]:
    """Each job that is to lose its place now, and the one that takes it. A node that holds several of a
    tenant's loses the least urgent, of those the one that was leased last."""
    places: dict[tuple[str, str, str], list[Job]] = {}
    allowed: dict[str, bool] = {}
    for job in map(jobs.by_id.__getitem__, jobs.held):
        of = job.request
        if jobs.count_waiting(of.pool, of.tenant) and _allows(world, allowed, of.tenant):
            places.setdefault((of.pool, of.tenant, job.node), []).append(job)
    placed: set[str] = set()
    for (pool, _, node), held in places.items():
        other = _next(jobs, world, pool, node, held[0].request.tenant, now_ns)
        if other is None or other.id in placed or now_ns - other.queued_ns < PATIENCE_NS:
            continue
        held = [job for job in held if not why_kept(jobs, world, job, other, now_ns)]
        if held:
            placed.add(other.id)
            yield min(held, key=lambda job: (job.request.priority, -job.attempts[-1].leased_ns)), other


def _allows(world: World, allowed: dict[str, bool], tenant: str) -> bool:
    """Whether some of the tenant's jobs may take places: what it has not, none of its workflows has."""
    if tenant not in allowed:
        allowed[tenant] = not _why_forbidden(world, tenant)
    return allowed[tenant]


def _next(jobs: Jobs, world: World, pool: str, node: str, tenant: str, now_ns: int) -> Job | None:
    """The job that the node would be given, had it a place."""
    fit = Fit(world, pool, world.offers(node), now_ns)
    found = jobs.queues.next(pool, "" if world.serves_all(node) else tenant, fit)
    return None if found is None else jobs.by_id[found]


def why_kept(jobs: Jobs, world: World, job: Job, other: Job, now_ns: int) -> str:
    """Why the job, which is held, keeps its place before ``other``; "": it loses it."""
    one, two = job.request, other.request
    if (one.pool, one.tenant) != (two.pool, two.tenant):
        return f"{other.id} is of another pool or tenant"
    if other.state != "queued":
        return f"{other.id} is {other.state}"
    if one.priority >= two.priority:
        return f"its priority is {one.priority}, that of {other.id} {two.priority}"
    if job.count(PREEMPTED):
        return "it has lost its place once"
    ageing_ns = world.ageing_ns(one.pool)
    if _rank(job, ageing_ns) <= _rank(other, ageing_ns):
        return f"it would go before {other.id} again"
    if why := world.why_no_lease(one.pool, job.node, -1, -1):
        return why
    found = _next(jobs, world, one.pool, job.node, one.tenant, now_ns)
    if found is None or found.id != other.id:
        return f"{other.id} is not the next that {job.node} would be given"
    return _why_forbidden(world, scope_of(two.tenant, two.workflow, two.step))


def _why_forbidden(world: World, scope: str) -> str:
    try:
        return "" if world.setting(scope, "jobs/preempt") is True else f"jobs/preempt is not set for {scope}"
    except Refusal as unreadable:
        return unreadable.text


def _rank(job: Job, ageing_ns: int) -> tuple[int, int]:
    return rank_ns(job.queued_ns, job.request.priority, ageing_ns), job.place
