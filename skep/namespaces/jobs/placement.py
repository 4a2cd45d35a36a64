"""Which pool a job waits in, and which node may have it. Pure.

Submit, lease and the plan ask the same functions here, so that what was planned is what is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.jobs.envelope import scope_of
from skep.namespaces.jobs.fallback import without_devices
from skep.namespaces.jobs.usage import ALL
from skep.namespaces.order import refusal
from skep.trace.rules import Refusal


class World(Protocol):
    """What the other nouns know of pools and nodes. Where a scope is asked for, raises Refusal when it cannot
    be read."""

    def candidates(self, scope: str, topic: str) -> Sequence[str]:
        """The pools in which jobs of the topic may wait, in their order; empty: there is none."""

    def has_pool(self, pool: str) -> bool: ...

    def is_draining(self, pool: str) -> bool: ...

    def refuses(self, pool: str) -> bool:
        """Whether it takes no jobs while there is no node for them."""

    def queue_max(self, pool: str, scope: str) -> int:
        """How many jobs may wait in the pool before it takes no more of the scope's."""

    def count_waiting(self, pool: str) -> int: ...

    def load(self, pool: str) -> float:
        """How many jobs wait in it or are held, for each lease that it gives at a time."""

    def has_node(self, tenant: str, words: frozenset[str]) -> bool:
        """Whether there is a node for the tenant's jobs that offers these, be it away now."""

    def has_open_node(self, tenant: str, words: frozenset[str]) -> bool:
        """Whether one of these takes leases now."""

    def ageing_ns(self, pool: str) -> int:
        """How much waiting outweighs one step of priority in the pool."""

    def needs(self, pool: str, scope: str) -> frozenset[str]:
        """What a node must have for jobs of the scope in the pool. Raises Refusal when that is not known."""

    def fallback_of(self, pool: str) -> tuple[str, int]:
        """Where the pool's jobs fall back to ("": nowhere), and how long they wait before that."""

    def offers(self, node: str) -> frozenset[str]:
        """What the node has: the names of its labels, and ``name:value``."""

    def room(self, tenant: str, actor: str, now_ns: int, bound_ns: int) -> int:
        """How many more of the actor's jobs the tenant's limits let nodes hold, of this time limit."""


class Wanted(NamedTuple):
    """What is asked for by a submit, as far as it says where its job goes."""

    tenant: str
    scope: str
    topic: str
    requires: frozenset[str]


_NOTHING: Final[frozenset[str]] = frozenset()


def wanted_of(tenant: str, args: Mapping[str, str]) -> Wanted:
    """The arguments of a submit; a question to the policies may lack some."""
    scope = scope_of(tenant, args.get("workflow", ""), args.get("step", ""))
    said = args.get("requires")
    return Wanted(tenant, scope, args.get("topic", ""), frozenset(ctl.listed(said)) if said else _NOTHING)


class Verdict(NamedTuple):
    """What a pool is to a job. ``refused``: the kind of refusal, ``why`` its text; None: it could have it.

    ``requires``: what the job is recorded to require there, beside what all of its tenant's do."""

    pool: str
    requires: tuple[str, ...] = ()
    load: float = 0.0
    draining: bool = False
    refused: E | None = None
    why: str = ""


# pools


def place(world: World, wanted: Wanted, only: str = "") -> Verdict:
    """The pool that the job waits in; raises Refusal. ``only``: the pool that is asked about; "": all.

    One that drains is the last resort: what waits there goes on when it is resumed."""
    found = [verdict for verdict in verdicts(world, wanted) if only in ("", verdict.pool)]
    best = chosen(found)
    if best is not None:
        return best
    if not found:
        raise refusal(E.NOROUTE, f"topic={wanted.topic}" + (f" pool={only}" if only else ""))
    worst = next((verdict for verdict in found if verdict.refused is E.OVERLOAD), found[0])
    assert worst.refused is not None
    raise refusal(worst.refused, worst.why)


def verdicts(world: World, wanted: Wanted) -> list[Verdict]:
    """Of each pool that is a candidate, in their order. Raises Refusal when configuration cannot be read."""
    return [_verdict(world, wanted, pool) for pool in world.candidates(wanted.scope, wanted.topic)]


def chosen(found: Sequence[Verdict]) -> Verdict | None:
    """The pool with the least to do, of equal ones the first; None: all refuse."""
    if len(found) == 1:
        return found[0] if found[0].refused is None else None
    return min(
        (verdict for verdict in found if verdict.refused is None),
        key=lambda verdict: (verdict.draining, verdict.load),
        default=None,
    )


def _verdict(world: World, wanted: Wanted, pool: str) -> Verdict:
    if not world.has_pool(pool):
        return Verdict(
            pool, refused=E.NOROUTE, why=f"topic={wanted.topic} pool={pool}: there is no such pool"
        )
    needs, requires = world.needs(pool, wanted.scope), wanted.requires
    if requires:
        needs |= requires
    if wanted.scope != wanted.tenant:
        # What a workflow asks for beyond its tenant is asked for once, here.
        requires |= needs - world.needs(pool, wanted.tenant)
    verdict = Verdict(pool, tuple(sorted(requires)), world.load(pool), world.is_draining(pool))
    if world.fallback_of(pool)[0]:
        needs = frozenset(without_devices(needs))  # a device that is not there is why a job falls back
    if verdict.requires and not world.has_node(wanted.tenant, needs):
        return verdict._replace(refused=E.NOWORKER, why=f"pool={pool} requires={','.join(sorted(needs))}")
    if world.refuses(pool) and not world.has_open_node(wanted.tenant, needs):
        return verdict._replace(refused=E.NOWORKER, why=f"pool={pool}")
    most = world.queue_max(pool, wanted.scope)
    if world.count_waiting(pool) >= most:
        # How many wait in all is no tenant's business.
        return verdict._replace(refused=E.OVERLOAD, why=f"pool={pool} max={most}")
    return verdict


def told(verdict: Verdict, best: Verdict | None) -> str:
    """Why the pool was not chosen, as the tenant may know it; "": it was."""
    if verdict.refused is not None:
        return f"{verdict.refused.value.text}: {verdict.why}"
    if best is None or verdict.pool == best.pool:
        return ""
    if verdict.draining and not best.draining:
        return "it is draining"
    if verdict.load > best.load:
        return f"it has more to do than {best.pool}"
    return f"it has no less to do than {best.pool}, which stands before it"


# nodes


class Fit:
    """The terms by which a node gets jobs of a pool, at a moment: queues.Terms."""

    __slots__ = ("_meets", "_now_ns", "_pool", "_room", "_world", "ageing_ns", "offers")

    def __init__(self, world: World, pool: str, offers: frozenset[str], now_ns: int) -> None:
        self._world = world
        self._pool = pool
        self._now_ns = now_ns
        self.offers = offers
        self.ageing_ns = world.ageing_ns(pool)
        # Asked once of each, though it stands in many places.
        self._meets: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._room: dict[tuple[str, str, int], int] = {}

    def serves(self, tenant: str) -> bool:
        return self.meets(tenant, ()) and self.room(tenant, ALL, 0) > 0

    def meets(self, tenant: str, requires: tuple[str, ...]) -> bool:
        found = self._meets.get((tenant, requires))
        if found is None:
            found = not self.missing(tenant, requires)
            self._meets[tenant, requires] = found
        return found

    def missing(self, tenant: str, requires: tuple[str, ...]) -> str:
        """Why the node is none for such jobs of the tenant; "": it is one."""
        try:
            needs = self._world.needs(self._pool, tenant)
        except Refusal as unreadable:
            return unreadable.text
        if not needs and not requires:
            return ""
        lacks = sorted((needs | frozenset(requires)) - self.offers)
        return f"it has no {','.join(lacks)}" if lacks else ""

    def room(self, tenant: str, actor: str, bound_ns: int) -> int:
        key = (tenant, actor, bound_ns)
        found = self._room.get(key)
        if found is None:
            found = self._room[key] = self._world.room(tenant, actor, self._now_ns, bound_ns)
        return found
