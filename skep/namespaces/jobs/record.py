"""What is recorded of jobs, and the table that follows from it: the fold of the jobs' events.

Which event follows from what is core.py. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import msgspec

from skep.namespaces.jobs.past import ENDED_MAX, HISTORY_NS, KEY_NS, Keyed, Letter, Past
from skep.namespaces.jobs.queues import AGEING_NS, Queues
from skep.namespaces.jobs.usage import Usage
from skep.namespaces.jobs.verbs import PRIORITY
from skep.namespaces.order import HIVE, covers, node_of
from skep.trace.clock import duration
from skep.trace.entry import canonical
from skep.trace.rules import Meta

# Every legal move: from a state to another, and what brings it about.
MOVES: Final[Mapping[str, Mapping[str, str]]] = {
    "queued": {
        "leased": "next",
        "queued": "fallback",
        "failed": "deadline, no fallback",
        "cancelled": "cancel",
    },
    "leased": {
        "running": "start",
        "queued": "lease lost, release, preempted, fallback",
        "delayed": "nack",
        "failed": "nack, lost, deadline, no fallback",
        "cancelled": "cancel",
    },
    "running": {
        "succeeded": "ack",
        "queued": "lease lost, release, preempted, fallback",
        "delayed": "nack, timeout",
        "failed": "nack, timeout, budget, lost, deadline, no fallback",
        "cancelled": "cancel",
    },
    "delayed": {"queued": "its delay is over", "failed": "deadline", "cancelled": "cancel"},
    "succeeded": {},
    "failed": {},
    "cancelled": {},
}
TERMINAL: Final = frozenset(state for state, moves in MOVES.items() if not moves)
HELD: Final = frozenset({"leased", "running"})


class Imported(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a sheet says of a job that was elsewhere before; who imported it vouches for it.

    ``ended``: it had ended there, and nothing was done here."""

    submitter: str = ""
    submitted: str = ""  # RFC 3339
    ended: bool = False


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
    runtime_ns: int = 0  # how long its attempts may run together; 0: for ever
    bytes_max: int | None = None  # of its outputs together; None: as many as its tenant may have
    capability: str = ""  # what it does besides its topic; "": nothing was said, as of all that follows
    risk: tuple[str, ...] = ()  # sorted
    pack: str = ""
    actor_id: str = ""  # whom it is done for; "": its submitter
    actor_type: str = ""  # "": what its submitter's role is
    workflow: str = ""
    run: str = ""
    step: str = ""
    traceparent: str = ""
    tracestate: str = ""
    checked: str = ""  # the version of the topic's schema, thumb@1.2, that its input was good by
    result_schema: str = ""  # which its result must be good by, as /config named it
    retry_of: str = ""  # the dead letter that this job is the retry of; "": it is none
    key_ns: int = 0  # how long its key is kept, from its submission; 0: a ledger that did not say
    trigger: str = ""  # the trigger that submitted it; "": none did
    depth: int = 0  # how many triggers there were on the way to it
    # How long its tenant's, and its actor's, submissions take to be paid for; 0: their rate had no limit.
    cost_ns: int = 0
    actor_cost_ns: int = 0
    fallback: str = ""  # allow, refuse; "": its pool has none, or a ledger that did not say
    patience_ns: int = 0  # how long it waits in its first pool before it falls back; 0: for ever
    imported: Imported | None = None  # None: it was submitted here
    inputs: dict[str, str] = {}  # artifacts besides the input: what each is called here, sha256 in hex

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The hashes of all that goes into it."""
        return (*((self.artifact,) if self.artifact else ()), *self.inputs.values())


class Leased(msgspec.Struct, frozen=True, tag_field="type", tag="job.leased"):
    job: str
    node: str
    fence: int
    until_ns: int


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="job.started", omit_defaults=True):
    """``device``: where it runs, ``cuda:0`` or ``cpu:0`` of its node, or ``cpu``; "": that was not said."""

    job: str
    fence: int
    device: str = ""


class Renewed(msgspec.Struct, frozen=True, tag_field="type", tag="job.renewed"):
    job: str
    fence: int
    until_ns: int


class Returned(msgspec.Struct, frozen=True, tag_field="type", tag="job.returned"):
    """Back in its queue. ``why``: expired, released or preempted; ``fence`` is the new one."""

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


class Fellback(msgspec.Struct, frozen=True, tag_field="type", tag="job.fellback", omit_defaults=True):
    """It goes on in ``pool``, requiring ``requires``, and waits there now; ``reason`` is one of REASONS.

    ``in_place``: it stays where it is, leased to ``annex``, which has no other device than its CPU."""

    job: str
    fence: int
    reason: str
    pool: str
    annex: str = ""  # that it could not run on; "": there is none
    from_pool: str = ""
    requires: tuple[str, ...] = ()
    text: str = ""
    in_place: bool = False


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
    keep_ns: int = 0  # how long its record stays in memory; 0: a ledger that did not say


class Discarded(msgspec.Struct, frozen=True, tag_field="type", tag="job.discarded", omit_defaults=True):
    """A dead letter was thrown away. ``tenant``: its; "" in a ledger that did not say."""

    job: str
    reason: str
    tenant: str = ""


Event = Submitted | Leased | Started | Renewed | Returned | Delayed | Woken | Fellback | Ended | Discarded


class Attempt(msgspec.Struct, frozen=True):
    """One lease of a job. ``end``: acked, nacked, timeout, cancelled, expired, released, deadline, fallback;
    "" while it is held."""

    node: str
    fence: int
    leased_ns: int
    started_ns: int = 0  # 0: the node has not said so
    ended_ns: int = 0
    end: str = ""
    device: str = ""  # as Started has it


class Fallback(msgspec.Struct, frozen=True):
    """One of a job. ``from_pool``, ``requires``: where it waited before and what of its node it required
    there."""

    reason: str
    annex: str
    at_ns: int
    from_pool: str
    text: str
    requires: tuple[str, ...] = ()
    in_place: bool = False


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
    queued_ns: int = 0  # when it came to its queue; a lease that was lost leaves it as it was
    place: int = 0  # its number among all that were ever queued
    number: int = 0  # among all jobs, as they came
    fallbacks: tuple[Fallback, ...] = ()

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

    def ran_ns(self, now_ns: int = 0) -> int:
        """How long its attempts ran together, the running one until ``now_ns`` (0: it is not counted)."""
        return sum(
            max((attempt.ended_ns or now_ns or attempt.started_ns) - attempt.started_ns, 0)
            for attempt in self.attempts
            if attempt.started_ns
        )

    @property
    def moved(self) -> Fallback | None:
        """The fallback that moved it to the pool where it is; None: it is where it was submitted to. A pool
        that is fallen back to has no other."""
        return next((each for each in self.fallbacks if not each.in_place), None)

    @property
    def asked(self) -> Submitted:
        """The request as it was submitted; ``request`` is as it is since its fallback."""
        moved = self.moved
        if moved is None:
            return self.request
        return msgspec.structs.replace(self.request, pool=moved.from_pool, requires=moved.requires)

    @property
    def node(self) -> str:
        """Who holds it; "" when nobody does."""
        return self.attempts[-1].node if self.held else ""

    def was_held_by(self, node: str) -> bool:
        return any(attempt.node == node for attempt in self.attempts)


def shown_input(job: Job) -> dict[str, object]:
    """The job's inputs and time limit as files and leases show them, as far as it has them."""
    request = job.request
    shown: dict[str, object] = {}
    if request.input is not None:
        shown["input"] = request.input
    if request.artifact:
        shown["artifact"] = f"sha256:{request.artifact}"
    if request.inputs:
        shown["inputs"] = {name: f"sha256:{digest}" for name, digest in request.inputs.items()}
    if request.timeout_ns:
        shown["timeout"] = duration(request.timeout_ns)
    return shown


@dataclass
class Jobs:
    """The table of jobs and what is found by it."""

    by_id: dict[str, Job] = field(default_factory=dict)
    by_key: dict[str, dict[str, Keyed]] = field(default_factory=dict)  # tenant -> key
    by_tenant: dict[str, dict[str, None]] = field(default_factory=dict)  # as they came
    # tenant -> dead letters, oldest first; None: its record is in by_id
    dead: dict[str, dict[str, Letter | None]] = field(default_factory=dict)
    held: dict[str, None] = field(default_factory=dict)  # leased and running, oldest lease first
    queues: Queues = field(default_factory=Queues)
    usage: Usage = field(default_factory=Usage)
    past: Past = field(default_factory=Past)
    number: int = 0  # the last job's

    def copy(self) -> Jobs:
        return Jobs(
            self.by_id.copy(),
            {tenant: keys.copy() for tenant, keys in self.by_key.items()},
            {tenant: jobs.copy() for tenant, jobs in self.by_tenant.items()},
            {tenant: jobs.copy() for tenant, jobs in self.dead.items()},
            self.held.copy(),
            self.queues.copy(),
            self.usage.copy(),
            past=self.past.copy(),
            number=self.number,
        )

    def keyed(self, tenant: str, key: str, now_ns: int) -> Keyed | None:
        """Whose the tenant's key is; None: it is free."""
        found = self.by_key.get(tenant, {}).get(key) if key else None
        return found if found is not None and now_ns < found.until_ns else None

    def waiting(self, pool: str, tenant: str = "", ageing_ns: int = AGEING_NS) -> list[str]:
        """The jobs queued in the pool, every tenant's or one's, in the order of their ranks."""
        return self.queues.waiting(pool, tenant, ageing_ns)

    def count_waiting(self, pool: str, tenant: str = "") -> int:
        return self.queues.count_waiting(pool, tenant)


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


def apply(jobs: Jobs, event: Event, meta: Meta) -> list[str]:
    """Change ``jobs`` by ``event``; the jobs of which nothing but the ledger's index knows any more."""
    fold(jobs, event, meta)
    gone = [] if type(event) not in _ALONE else [job for job in _buried(event) if job not in jobs.by_id]
    past, now_ns = jobs.past, meta.time_ns
    if past.keys and past.keys[0][0] <= now_ns:
        for _, tenant, key in past.free(now_ns):
            _free(jobs, tenant, key, now_ns)
    if past.ended and (past.ended[0][0] <= now_ns or len(past.ended) > ENDED_MAX):
        gone += [job for job in past.leaving(now_ns) if _leave(jobs, jobs.by_id.pop(job))]
    return gone


def fold(jobs: Jobs, event: Event, meta: Meta) -> None:
    """Change ``jobs`` by ``event``, and let nothing leave."""
    id, kind = event.job, type(event)
    before = jobs.by_id.get(id) if kind in _ALONE else jobs.by_id[id]
    _APPLY[kind](jobs, before, event, meta)
    after = jobs.by_id.get(id)
    if after is not None:
        jobs.usage.moved(before, after, meta.time_ns)
        jobs.queues.moved(before, after)


def _submitted(jobs: Jobs, job: Job | None, event: Submitted, meta: Meta) -> None:
    now_ns = meta.time_ns
    jobs.number = number_after(jobs.number, meta.seq)
    jobs.by_id[event.job] = Job(
        event, now_ns, meta.seq, meta.seq,
        queued_ns=now_ns, place=jobs.queues.number(), number=jobs.number,
    )  # fmt: skip
    jobs.by_tenant.setdefault(event.tenant, {})[event.job] = None
    if event.retry_of:
        _bury(jobs, event.tenant, event.retry_of)
    if event.key:
        until_ns = now_ns + (event.key_ns or KEY_NS)
        yields = event.imported is not None and event.imported.ended
        keyed = Keyed(event.job, event.body, until_ns, yields)
        jobs.by_key.setdefault(event.tenant, {})[event.key] = keyed
        jobs.past.keep(event.tenant, event.key, until_ns)


def _discarded(jobs: Jobs, job: Job | None, event: Discarded, meta: Meta) -> None:
    tenants = (tenant for tenant, letters in jobs.dead.items() if event.job in letters)
    _bury(jobs, event.tenant or next(tenants, ""), event.job)


def _leased(jobs: Jobs, job: Job, event: Leased, meta: Meta) -> None:
    attempt = Attempt(event.node, event.fence, meta.time_ns)
    _put(jobs, job, meta, "leased", event.fence, event.until_ns, attempts=(*job.attempts, attempt))
    jobs.held[event.job] = None


def _started(jobs: Jobs, job: Job, event: Started, meta: Meta) -> None:
    last = job.attempts[-1]
    attempt = Attempt(
        last.node, last.fence, last.leased_ns, meta.time_ns, last.ended_ns, last.end, event.device
    )
    attempts = (*job.attempts[:-1], attempt)
    _put(jobs, job, meta, "running", event.fence, job.until_ns, attempts)


def _renewed(jobs: Jobs, job: Job, event: Renewed, meta: Meta) -> None:
    _put(jobs, job, meta, job.state, event.fence, event.until_ns)


def _returned(jobs: Jobs, job: Job, event: Returned, meta: Meta) -> None:
    _put(jobs, job, meta, "queued", event.fence, 0, _over(job, meta, event.why))
    del jobs.held[event.job]


def _delayed(jobs: Jobs, job: Job, event: Delayed, meta: Meta) -> None:
    attempts = _over(job, meta, event.why)
    _put(jobs, job, meta, "delayed", event.fence, event.until_ns, attempts, text=event.text)
    del jobs.held[event.job]


def _woken(jobs: Jobs, job: Job, event: Woken, meta: Meta) -> None:
    _put(jobs, job, meta, "queued", job.fence, 0, queued_ns=meta.time_ns)


def _fellback(jobs: Jobs, job: Job, event: Fellback, meta: Meta) -> None:
    request = job.request
    fallback = Fallback(
        event.reason, event.annex, meta.time_ns, request.pool, event.text, request.requires, event.in_place
    )
    fallbacks = (*job.fallbacks, fallback)
    if event.in_place:
        _put(jobs, job, meta, job.state, job.fence, job.until_ns, fallbacks=fallbacks)
        return
    attempts = None
    if job.held:
        attempts = _over(job, meta, "fallback")
        del jobs.held[event.job]
    request = msgspec.structs.replace(request, pool=event.pool, requires=event.requires)
    _put(
        jobs, msgspec.structs.replace(job, request=request), meta, "queued", event.fence, 0, attempts,
        event.text, queued_ns=meta.time_ns, fallbacks=fallbacks,
    )  # fmt: skip


NUMBER_BITS: Final = 10  # jobs of one entry: a write has not more lines.


def number_after(number: int, seq: int) -> int:
    """The number of a job that the entry ``seq`` submits; the last one before it has ``number``."""
    return max(number + 1, seq << NUMBER_BITS)


def _bury(jobs: Jobs, tenant: str, letter: str) -> None:
    """The letter is dead no more: it was retried or thrown away. The job's own record stays."""
    letters = jobs.dead.get(tenant, {})
    letters.pop(letter, None)
    if not letters:
        jobs.dead.pop(tenant, None)


def _buried(event: Event) -> tuple[str, ...]:
    """The dead letter that the event buries."""
    match event:
        case Submitted() if event.retry_of:
            return (event.retry_of,)
        case Discarded():
            return (event.job,)
        case _:
            return ()


def _free(jobs: Jobs, tenant: str, key: str, now_ns: int) -> None:
    """The key is free, unless it was given anew meanwhile."""
    keys = jobs.by_key.get(tenant, {})
    if key in keys and keys[key].until_ns <= now_ns:
        del keys[key]
        if not keys:
            del jobs.by_key[tenant]


def _leave(jobs: Jobs, job: Job) -> bool:
    """Forget the job; whether that is all of it: of a dead letter a little stays."""
    tenant, id = job.request.tenant, job.id
    del jobs.by_tenant[tenant][id]
    if not jobs.by_tenant[tenant]:
        del jobs.by_tenant[tenant]
    jobs.past.left(id, job.rev)
    if id not in jobs.dead.get(tenant, {}):
        return True
    request = job.request
    jobs.dead[tenant][id] = Letter(
        job.rev, digest(job.asked), request.artifact, tuple(request.inputs.values())
    )
    return False


def digest(request: Submitted) -> str:
    """The SHA-256 by which a request is known when it comes from the index."""
    return sha256(canonical(request)).hexdigest()


_END: Final = {"succeeded": "acked", "failed": "nacked", "cancelled": "cancelled"}


def _ended(jobs: Jobs, job: Job, event: Ended, meta: Meta) -> None:
    id, attempts = event.job, job.attempts
    if job.state in HELD:
        attempts = _over(job, meta, event.end or _END[event.state])
        del jobs.held[id]
    if event.state == "failed":
        jobs.dead.setdefault(job.request.tenant, {})[id] = None
    jobs.past.end(id, meta.time_ns + (event.keep_ns or HISTORY_NS))
    _put(jobs, job, meta, event.state, event.fence, 0, attempts, event.text, event.code)


def _over(job: Job, meta: Meta, end: str) -> tuple[Attempt, ...]:
    """The job's attempts, the last of which is over."""
    last = job.attempts[-1]
    attempt = Attempt(last.node, last.fence, last.leased_ns, last.started_ns, meta.time_ns, end, last.device)
    return (*job.attempts[:-1], attempt)


def _put(
    jobs: Jobs,
    job: Job,
    meta: Meta,
    state: str,
    fence: int,
    until_ns: int,
    attempts: tuple[Attempt, ...] | None = None,  # None: those it had
    text: str | None = None,  # None: the last error, as it was
    code: str = "",
    queued_ns: int | None = None,  # None: as it was, in its old place; else it is the last that was queued
    fallbacks: tuple[Fallback, ...] | None = None,  # None: those it had
) -> None:
    """The job's next record."""
    place, request = job.place, job.request
    if queued_ns is None:
        queued_ns = job.queued_ns
    else:
        place = jobs.queues.number()
    jobs.by_id[request.job] = Job(
        request,
        job.submitted_ns,
        job.first,
        meta.seq,
        state,
        fence,
        until_ns,
        job.attempts if attempts is None else attempts,
        job.text if text is None else text,
        code,
        job.state if state in TERMINAL else "",
        queued_ns,
        place,
        job.number,
        job.fallbacks if fallbacks is None else fallbacks,
    )


_ALONE: Final = frozenset({Submitted, Discarded})  # what may be said of a job that is not in memory
# What each event does, given the job's record before it.
_APPLY: Final[Mapping[type, Callable[[Jobs, Any, Any, Meta], None]]] = {
    Submitted: _submitted, Leased: _leased, Started: _started, Renewed: _renewed, Returned: _returned,
    Delayed: _delayed, Woken: _woken, Fellback: _fellback, Ended: _ended, Discarded: _discarded,
}  # fmt: skip
