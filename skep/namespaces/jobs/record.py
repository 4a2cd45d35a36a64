"""What is recorded of jobs, and the table that follows from it: the fold of the jobs' events.

Which event follows from what is core.py. No clock, no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from skep.namespaces.jobs.usage import Usage
from skep.namespaces.jobs.verbs import PRIORITY, PRIORITY_MAX
from skep.namespaces.order import HIVE, covers, node_of
from skep.trace.clock import duration
from skep.trace.rules import Meta

# Every legal move: from a state to another, and what brings it about.
MOVES: Final[Mapping[str, Mapping[str, str]]] = {
    "queued": {"leased": "next", "failed": "deadline", "cancelled": "cancel"},
    "leased": {
        "running": "start",
        "queued": "lease lost",
        "delayed": "nack",
        "failed": "nack, deadline",
        "cancelled": "cancel",
    },
    "running": {
        "succeeded": "ack",
        "queued": "lease lost",
        "delayed": "nack, timeout",
        "failed": "nack, timeout, deadline",
        "cancelled": "cancel",
    },
    "delayed": {"queued": "its delay is over", "failed": "deadline", "cancelled": "cancel"},
    "succeeded": {},
    "failed": {},
    "cancelled": {},
}
TERMINAL: Final = frozenset(state for state, moves in MOVES.items() if not moves)
HELD: Final = frozenset({"leased", "running"})


class Submitted(msgspec.Struct, frozen=True, tag_field="type", tag="job.submitted", omit_defaults=True):
    job: str
    tenant: str
    actor: str
    topic: str
    pool: str
    body: str  # sha256 of the request as written, without its key
    priority: int = PRIORITY
    key: str = ""
    labels: dict[str, str] = {}
    timeout_ns: int = 0  # 0: none
    input: str | None = None  # None: no text; the artifact is the input, or nothing is
    artifact: str = ""  # sha256 in hex; "": none
    retries: int = 0  # how often it is tried again after it failed
    deadline_ns: int = 0  # how long it may take in all, from its submission; 0: for ever
    role: str = ""  # its submitter's; "": a ledger that did not say
    requires: tuple[str, ...] = ()  # labels that its node must have, sorted: ``k``, or ``k:v``
    retry_of: str = ""  # the dead letter that this job is the retry of; "": it is none
    # How long its tenant's, and its actor's, submissions take to be paid for; 0: their rate had no limit.
    cost_ns: int = 0
    actor_cost_ns: int = 0


class Leased(msgspec.Struct, frozen=True, tag_field="type", tag="job.leased"):
    job: str
    node: str
    fence: int
    until_ns: int


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="job.started"):
    job: str
    fence: int


class Renewed(msgspec.Struct, frozen=True, tag_field="type", tag="job.renewed"):
    job: str
    fence: int
    until_ns: int


class Returned(msgspec.Struct, frozen=True, tag_field="type", tag="job.returned"):
    """Back in its queue. ``why``: expired or released; ``fence`` is the new one."""

    job: str
    fence: int
    why: str


class Delayed(msgspec.Struct, frozen=True, tag_field="type", tag="job.delayed", omit_defaults=True):
    """An attempt failed (``why``: nacked or timeout, ``text`` its error) and the next one waits."""

    job: str
    fence: int
    until_ns: int
    why: str
    text: str = ""


class Woken(msgspec.Struct, frozen=True, tag_field="type", tag="job.woken"):
    """Its delay is over: it is the last of its queue."""

    job: str


class Ended(msgspec.Struct, frozen=True, tag_field="type", tag="job.ended", omit_defaults=True):
    """``state`` is one of TERMINAL; ``text`` the result, the error or the reason, ``code`` the error's kind:
    what its worker called it, else nacked, timeout, deadline, lost. ``end``: its attempt's, "" as the state
    says."""

    job: str
    state: str
    fence: int
    text: str = ""
    code: str = ""
    end: str = ""


class Discarded(msgspec.Struct, frozen=True, tag_field="type", tag="job.discarded"):
    """A dead letter was thrown away."""

    job: str
    reason: str


Event = Submitted | Leased | Started | Renewed | Returned | Delayed | Woken | Ended | Discarded


class Attempt(msgspec.Struct, frozen=True):
    """One lease of a job. ``end``: acked, nacked, timeout, cancelled, expired, released, deadline;
    "" while it is held."""

    node: str
    fence: int
    leased_ns: int
    started_ns: int = 0  # 0: the node has not said so
    ended_ns: int = 0
    end: str = ""


class Job(msgspec.Struct, frozen=True):
    request: Submitted
    submitted_ns: int
    first: int  # the entry that submitted it
    rev: int
    state: str = "queued"
    fence: int = 0
    until_ns: int = 0  # the lease's end, while it is held; the delay's, while it is delayed
    attempts: tuple[Attempt, ...] = ()
    text: str = ""  # the result, the error or the reason, once it has ended; the last error before
    code: str = ""  # of the error, once it has failed
    last_state: str = ""  # the one before its end

    @property
    def id(self) -> str:
        return self.request.job

    @property
    def held(self) -> bool:
        return self.state in HELD

    @property
    def deadline_ns(self) -> int:
        """When it must have ended; 0: there is no such time."""
        return self.submitted_ns + self.request.deadline_ns if self.request.deadline_ns else 0

    def count(self, *ends: str) -> int:
        """How many of its attempts ended so."""
        return sum(attempt.end in ends for attempt in self.attempts)

    @property
    def node(self) -> str:
        """Who holds it; "" when nobody does."""
        return self.attempts[-1].node if self.held else ""

    def was_held_by(self, node: str) -> bool:
        return any(attempt.node == node for attempt in self.attempts)


def shown_input(job: Job) -> dict[str, str]:
    """The job's input and time limit as files and leases show them, as far as it has them."""
    request = job.request
    shown = {}
    if request.input is not None:
        shown["input"] = request.input
    if request.artifact:
        shown["artifact"] = f"sha256:{request.artifact}"
    if request.timeout_ns:
        shown["timeout"] = duration(request.timeout_ns)
    return shown


@dataclass
class Jobs:
    """The table of jobs and what is found by it."""

    by_id: dict[str, Job] = field(default_factory=dict)
    by_key: dict[str, dict[str, str]] = field(default_factory=dict)  # tenant -> key -> job
    by_tenant: dict[str, dict[str, None]] = field(default_factory=dict)  # as they came
    dead: dict[str, dict[str, None]] = field(default_factory=dict)  # tenant -> dead letters, oldest first
    held: dict[str, None] = field(default_factory=dict)  # leased and running, oldest lease first
    # pool, tenant ("": every), priority -> waiting jobs, first to go first. An OrderedDict: a dict's first
    # key is found by passing all that were deleted before it.
    queues: dict[tuple[str, str, int], OrderedDict[str, None]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def copy(self) -> Jobs:
        return Jobs(
            self.by_id.copy(),
            {tenant: keys.copy() for tenant, keys in self.by_key.items()},
            {tenant: jobs.copy() for tenant, jobs in self.by_tenant.items()},
            {tenant: jobs.copy() for tenant, jobs in self.dead.items()},
            self.held.copy(),
            {place: queue.copy() for place, queue in self.queues.items()},
            self.usage.copy(),
        )

    def head(self, pool: str, tenant: str = "") -> str | None:
        """The job that the pool's next lease gets, a lease of the tenant's jobs; None: none waits."""
        for priority in range(PRIORITY_MAX, -1, -1):
            queue = self.queues.get((pool, tenant, priority))
            if queue:
                return next(iter(queue))
        return None

    def waiting(self, pool: str, tenant: str = "") -> list[str]:
        """The jobs queued in the pool, every tenant's or one's, in the order they go."""
        places = [(pool, tenant, priority) for priority in range(PRIORITY_MAX, -1, -1)]
        return [job for place in places for job in self.queues.get(place, ())]

    def count_waiting(self, pool: str, tenant: str = "") -> int:
        return sum(len(self.queues.get((pool, tenant, priority), ())) for priority in range(PRIORITY_MAX + 1))


def visible(job: Job, role: str, tenant: str, node: str) -> bool:
    """Whether the job exists for who asks: nodes see what they were leased and what they submitted, others
    what is their tenant's.

    A node's name may come to another tenant: what it was leased under the first is not the second's."""
    if role == HIVE:
        return True
    if node and node_of(job.request.actor) != node:
        return job.was_held_by(node) and covers(tenant, job.request.tenant)
    return job.request.tenant == tenant


# applying


def apply(jobs: Jobs, event: Event, meta: Meta) -> None:
    """Change ``jobs`` by ``event``."""
    before = jobs.by_id.get(event.job)
    _apply(jobs, event, meta)
    after = jobs.by_id.get(event.job)
    if after is not None:
        jobs.usage.moved(before, after, meta.time_ns)


def _apply(jobs: Jobs, event: Event, meta: Meta) -> None:
    match event:
        case Submitted():
            jobs.by_id[event.job] = Job(event, meta.time_ns, meta.seq, meta.seq)
            jobs.by_tenant.setdefault(event.tenant, {})[event.job] = None
            if event.retry_of:
                _bury(jobs, event.tenant, event.retry_of)
            if event.key:
                jobs.by_key.setdefault(event.tenant, {})[event.key] = event.job
            _enqueue(jobs, event)
        case Leased():
            attempt = Attempt(event.node, event.fence, meta.time_ns)
            job = jobs.by_id[event.job]
            _put(jobs, job, meta, "leased", event.fence, event.until_ns, attempts=(*job.attempts, attempt))
            _dequeue(jobs, job.request)
            jobs.held[event.job] = None
        case Started():
            job = jobs.by_id[event.job]
            _put(jobs, job, meta, "running", event.fence, job.until_ns, started_ns=meta.time_ns)
        case Renewed():
            job = jobs.by_id[event.job]
            _put(jobs, job, meta, job.state, event.fence, event.until_ns)
        case Returned():
            job = jobs.by_id[event.job]
            _put(jobs, job, meta, "queued", event.fence, 0, ended_ns=meta.time_ns, end=event.why)
            del jobs.held[event.job]
            _enqueue(jobs, job.request, last=False)
        case Delayed():
            job = jobs.by_id[event.job]
            _put(
                jobs, job, meta, "delayed", event.fence, event.until_ns,
                text=event.text, ended_ns=meta.time_ns, end=event.why,
            )  # fmt: skip
            del jobs.held[event.job]
        case Woken():
            job = jobs.by_id[event.job]
            _put(jobs, job, meta, "queued", job.fence, 0)
            _enqueue(jobs, job.request)
        case Discarded():
            _bury(jobs, jobs.by_id[event.job].request.tenant, event.job)
        case Ended():
            _ended(jobs, jobs.by_id[event.job], event, meta)


def _bury(jobs: Jobs, tenant: str, letter: str) -> None:
    """The letter is dead no more: it was retried or thrown away. The job's own record stays."""
    del jobs.dead[tenant][letter]
    if not jobs.dead[tenant]:
        del jobs.dead[tenant]


_END: Final = {"succeeded": "acked", "failed": "nacked", "cancelled": "cancelled"}


def _ended(jobs: Jobs, job: Job, event: Ended, meta: Meta) -> None:
    if job.held:
        changes: dict[str, Any] = {"ended_ns": meta.time_ns, "end": event.end or _END[event.state]}
        del jobs.held[job.id]
    else:
        changes = {}
        if job.state == "queued":
            _dequeue(jobs, job.request)
    if event.state == "failed":
        jobs.dead.setdefault(job.request.tenant, {})[job.id] = None
    _put(jobs, job, meta, event.state, event.fence, 0, text=event.text, code=event.code, **changes)


def _queues(jobs: Jobs, request: Submitted) -> list[OrderedDict[str, None]]:
    """Where the job waits: among all of its pool, and among its tenant's there."""
    places = [(request.pool, tenant, request.priority) for tenant in ("", request.tenant)]
    return [jobs.queues.setdefault(place, OrderedDict()) for place in places]


def _enqueue(jobs: Jobs, request: Submitted, last: bool = True) -> None:
    for queue in _queues(jobs, request):
        queue[request.job] = None
        queue.move_to_end(request.job, last)


def _dequeue(jobs: Jobs, request: Submitted) -> None:
    for queue in _queues(jobs, request):
        del queue[request.job]


def _put(
    jobs: Jobs,
    job: Job,
    meta: Meta,
    state: str,
    fence: int,
    until_ns: int,
    attempts: tuple[Attempt, ...] | None = None,  # None: those it had, the last one changed as follows
    text: str | None = None,  # None: the last error, as it was
    code: str = "",
    **changes: Any,
) -> None:
    """The job's next record."""
    if attempts is None:
        attempts = job.attempts
        if changes:
            attempts = (*attempts[:-1], msgspec.structs.replace(attempts[-1], **changes))
    if text is None:
        text = job.text
    last = job.state if state in TERMINAL else ""
    jobs.by_id[job.id] = Job(
        job.request, job.submitted_ns, job.first, meta.seq, state, fence, until_ns, attempts, text, code, last
    )
