"""Jobs as a fold: what may be asked of a job in which state, and what follows. No clock, no I/O.

A job is queued, leased to a node, running once that node says so, and ends exactly once. A lease has a
fence; every end of a lease that its holder did not bring about raises the fence, so that a late holder's
words are refused. Attempts are kept for ever and never start again from one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.jobs.verbs import PRIORITY, PRIORITY_MAX
from skep.namespaces.order import HIVE, HIVE_TENANT, Order, covers, node_of, refusal
from skep.trace.clock import duration, parse_duration
from skep.trace.rules import Decision, Meta

INPUT_MAX: Final = 16 * 1024  # bytes: it stands twice in an entry of 64 KiB. Longer inputs are artifacts.
RESULT_MAX: Final = 16 * 1024  # bytes, for the same reason.
ERROR_MAX: Final = 4 * 1024  # bytes of what went wrong: the rest is in the job's log.

MOVES: Final[Mapping[str, frozenset[str]]] = {
    "queued": frozenset({"leased", "cancelled"}),
    "leased": frozenset({"running", "failed", "cancelled", "queued"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "queued"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
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


class Ended(msgspec.Struct, frozen=True, tag_field="type", tag="job.ended", omit_defaults=True):
    """``state`` is one of TERMINAL; ``text`` the result, the error or the reason."""

    job: str
    state: str
    fence: int
    text: str = ""


Event = Submitted | Leased | Started | Renewed | Returned | Ended


class Attempt(msgspec.Struct, frozen=True):
    """One lease of a job. ``end``: acked, nacked, cancelled, expired, released; "" while it is held."""

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
    until_ns: int = 0  # the lease's end, while it is held
    attempts: tuple[Attempt, ...] = ()
    text: str = ""  # the result, the error or the reason, once it has ended

    @property
    def id(self) -> str:
        return self.request.job

    @property
    def held(self) -> bool:
        return self.state in HELD

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
    held: dict[str, None] = field(default_factory=dict)  # leased and running, oldest lease first
    # pool, tenant ("": every), priority -> waiting jobs, first to go first. An OrderedDict: a dict's first
    # key is found by passing all that were deleted before it.
    queues: dict[tuple[str, str, int], OrderedDict[str, None]] = field(default_factory=dict)

    def copy(self) -> Jobs:
        return Jobs(
            self.by_id.copy(),
            {tenant: keys.copy() for tenant, keys in self.by_key.items()},
            {tenant: jobs.copy() for tenant, jobs in self.by_tenant.items()},
            self.held.copy(),
            {place: queue.copy() for place, queue in self.queues.items()},
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


class World(Protocol):
    """What the other nouns know of a job's surroundings."""

    def pool_of(self, topic: str) -> str | None:
        """The pool mapped to the topic; None: none is."""

    def lease_ns(self, pool: str) -> int:
        """How long the pool's leases last."""

    def artifact_named(self, tenant: str, name: str) -> str | None:
        """The hash that the tenant sealed last under the name."""

    def has_artifact(self, tenant: str, sha256: str) -> bool:
        """Whether the tenant sealed these bytes."""

    def why_no_lease(self, pool: str, node: str) -> str:
        """Why the pool gives the node no lease now; "": it does."""


Decided = Decision[Event, str]


def decide(jobs: Jobs, order: Order, world: World) -> Decided:
    """What follows from an order to /jobs; raises Refusal."""
    return _DECIDE[order.place, order.verb](jobs, order, world)


def _submit(jobs: Jobs, order: Order, world: World) -> Decided:
    args = order.args
    key = args.get("key", "")
    body = _body(args)
    if earlier := jobs.by_key.get(order.tenant, {}).get(key) if key else None:
        if jobs.by_id[earlier].request.body != body:
            raise refusal(E.IDEMPOTENCY, f"key={key}")
        return Decision((), earlier)
    job = order.name or order.id
    if job in jobs.by_id:
        _job(jobs, order, job)
        raise refusal(E.EXISTS, f"job={job} was submitted")
    pool = world.pool_of(args["topic"])
    if pool is None:
        raise refusal(E.NOROUTE, f"topic={args['topic']}")
    text, artifact = _input(args, order.tenant, world)
    event = Submitted(
        job=job,
        tenant=order.tenant,
        actor=order.actor,
        topic=args["topic"],
        pool=pool,
        body=body,
        priority=int(args.get("priority", PRIORITY)),
        key=key,
        labels=ctl.labels(args.get("labels", "")),
        timeout_ns=parse_duration(args["timeout"]) if "timeout" in args else 0,
        input=text,
        artifact=artifact,
    )
    return Decision((event,), job)


def _body(args: Mapping[str, str]) -> str:
    """The hash of a request as it was written: what must be the same under the same key."""
    said = sorted((name, value) for name, value in args.items() if name not in ("key", "if-rev"))
    return sha256(msgspec.json.encode(said)).hexdigest()


def _input(args: Mapping[str, str], tenant: str, world: World) -> tuple[str | None, str]:
    """The input as text (None: there is none) and as an artifact's hash ("": it is none)."""
    text, digest = args.get("input"), args.get("artifact")
    if text is not None and digest is not None:
        raise refusal(E.USAGE, "submit: input= and artifact=: expected one of them")
    if text is not None and text.startswith("artifact:"):
        name = text.removeprefix("artifact:")
        digest = world.artifact_named(tenant, name)
        if digest is None:
            raise refusal(E.USAGE, f"submit: input={text}: no artifact was sealed under that name")
        return None, digest
    if digest is not None:
        digest = digest.removeprefix("sha256:")
        if not world.has_artifact(tenant, digest):
            raise refusal(E.USAGE, f"submit: artifact={digest}: no artifact of that hash was sealed")
        return None, digest
    if text is not None:
        _check_length(text, INPUT_MAX)
    return text, ""


def _cancel(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _job(jobs, order, order.name or order.args["job"])
    _check_move(job, "cancelled")
    # A holder finds its fence too old, and stops.
    fence = job.fence + 1 if job.held else job.fence
    return Decision((Ended(job.id, "cancelled", fence, order.args.get("reason", "")),), job.id)


def _lease(jobs: Jobs, order: Order, world: World) -> Decided:
    """``lease`` in /pools/<p>/next: the first of the queue goes to the node that reads."""
    pool = order.name
    if why := world.why_no_lease(pool, order.node):
        raise refusal(E.NODATA, why)
    head = jobs.head(pool, "" if order.tenant == HIVE_TENANT else order.tenant)
    if head is None:
        raise refusal(E.NODATA, f"pool={pool} has no job waiting")
    job = jobs.by_id[head]
    _check_move(job, "leased")
    event = Leased(head, order.node, job.fence + 1, order.time_ns + world.lease_ns(pool))
    return Decision((event,), head)


def _start(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order, "running")
    return Decision((Started(job.id, job.fence),), job.id)


def _renew(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order)
    return Decision((Renewed(job.id, job.fence, order.time_ns + world.lease_ns(job.request.pool)),), job.id)


def _ack(jobs: Jobs, order: Order, world: World) -> Decided:
    return _end(jobs, order, "succeeded", "result", RESULT_MAX)


def _nack(jobs: Jobs, order: Order, world: World) -> Decided:
    return _end(jobs, order, "failed", "error", ERROR_MAX)


def _end(jobs: Jobs, order: Order, state: str, arg: str, size_max: int) -> Decided:
    text = order.args.get(arg, "")
    _check_length(text, size_max)
    job = _fenced_job(jobs, order)
    # Its answer was lost on the way and the holder says it again.
    if (job.state, job.text) == (state, text):
        return Decision((), job.id)
    _check_move(job, state)
    return Decision((Ended(job.id, state, job.fence, text),), job.id)


def _expire(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order, "queued")
    if order.time_ns < job.until_ns:
        raise refusal(E.CONFLICT, "the lease was renewed")
    return Decision((Returned(job.id, job.fence + 1, "expired"),), job.id)


def _release(jobs: Jobs, order: Order, world: World) -> Decided:
    """The lease never reached its reader."""
    job = _held_job(jobs, order, "queued")
    if job.state != "leased":
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> queued")
    return Decision((Returned(job.id, job.fence + 1, "released"),), job.id)


def _job(jobs: Jobs, order: Order, name: str) -> Job:
    """The job, if it exists for who asks."""
    job = jobs.by_id.get(name)
    if job is None or not visible(job, order.role, order.tenant, order.node):
        raise refusal(E.MISSING)
    order.check_rev(job.rev)
    return job


def _fenced_job(jobs: Jobs, order: Order) -> Job:
    """The job, when the order's fence is the newest and its node the holder, or was at the job's end."""
    job = _job(jobs, order, order.name)
    token = int(order.args["fence"])
    if token != job.fence:
        raise refusal(E.FENCED, f"token={token} newest={job.fence}")
    if order.role != HIVE and (not job.attempts or job.attempts[-1].node != order.node):
        raise refusal(E.DENIED, "rule=lease-holder")
    return job


def _held_job(jobs: Jobs, order: Order, to: str | None = None) -> Job:
    """The job, when the order's lease is held now and, given ``to``, the job may move there."""
    job = _fenced_job(jobs, order)
    if not job.held:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> {to or job.state}")
    if to is not None:
        _check_move(job, to)
    return job


def visible(job: Job, role: str, tenant: str, node: str) -> bool:
    """Whether the job exists for who asks: nodes see what they were leased and what they submitted, others
    what is their tenant's.

    A node's name may come to another tenant: what it was leased under the first is not the second's."""
    if role == HIVE:
        return True
    if node and node_of(job.request.actor) != node:
        return job.was_held_by(node) and covers(tenant, job.request.tenant)
    return job.request.tenant == tenant


def _check_move(job: Job, to: str) -> None:
    if to not in MOVES[job.state]:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> {to}")


def _check_length(text: str, size_max: int) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > size_max:
        raise refusal(E.TOOBIG, f"max={size_max}")


_DECIDE: Final[Mapping[tuple[str, str], Callable[[Jobs, Order, World], Decided]]] = {
    ("ctl", "submit"): _submit,
    ("ctl", "cancel"): _cancel,
    ("*/ctl", "submit"): _submit,
    ("*/ctl", "cancel"): _cancel,
    ("*/ctl", "start"): _start,
    ("*/ctl", "renew"): _renew,
    ("*/ctl", "ack"): _ack,
    ("*/ctl", "nack"): _nack,
    ("*/next", "lease"): _lease,
    ("*", "expire"): _expire,
    ("*", "release"): _release,
}


# applying


def apply(jobs: Jobs, event: Event, meta: Meta) -> None:
    """Change ``jobs`` by ``event``."""
    match event:
        case Submitted():
            jobs.by_id[event.job] = Job(event, meta.time_ns, meta.seq, meta.seq)
            jobs.by_tenant.setdefault(event.tenant, {})[event.job] = None
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
        case Ended():
            _ended(jobs, jobs.by_id[event.job], event, meta)


_END: Final = {"succeeded": "acked", "failed": "nacked", "cancelled": "cancelled"}


def _ended(jobs: Jobs, job: Job, event: Ended, meta: Meta) -> None:
    if job.held:
        changes: dict[str, Any] = {"ended_ns": meta.time_ns, "end": _END[event.state]}
        del jobs.held[job.id]
    else:
        changes = {}
        _dequeue(jobs, job.request)
    _put(jobs, job, meta, event.state, event.fence, 0, text=event.text, **changes)


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
    text: str = "",
    **changes: Any,
) -> None:
    """The job's next record."""
    if attempts is None:
        attempts = job.attempts
        if changes:
            attempts = (*attempts[:-1], msgspec.structs.replace(attempts[-1], **changes))
    jobs.by_id[job.id] = Job(
        job.request, job.submitted_ns, job.first, meta.seq, state, fence, until_ns, attempts, text
    )
