"""Deciding about jobs: what may be asked of a job in which state, and what follows. No clock, no I/O.

A job is queued, leased to a node, running once that node says so, and ends exactly once. A lease has a
fence; every end of a lease that its holder did not bring about raises the fence, so that a late holder's
words are refused. Attempts are kept for ever and never start again from one. One that failed is followed by
another, after a delay, while retries are left; one that was lost with its lease is no failure of the job's,
and is followed by another at once, LOSSES_MAX times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final, Protocol

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.alerts import Alerted
from skep.namespaces.jobs import contract, envelope, fallback, inputs, preemption
from skep.namespaces.jobs.due import is_spent, spent_ns, timeout_ns
from skep.namespaces.jobs.envelope import scope_of
from skep.namespaces.jobs.placement import Fit, place, wanted_of
from skep.namespaces.jobs.preemption import PREEMPTED, why_kept
from skep.namespaces.jobs.quotas import admitted
from skep.namespaces.jobs.record import (
    MOVES,
    Delayed,
    Ended,
    Event,
    Job,
    Jobs,
    Leased,
    Renewed,
    Returned,
    Started,
    Submitted,
    Woken,
    visible,
)
from skep.namespaces.jobs.verbs import CHECKED, SUBMIT, VERSION
from skep.namespaces.order import HIVE, HIVE_TENANT, Order, refusal
from skep.trace.clock import duration, parse_duration
from skep.trace.entry import canonical
from skep.trace.rules import Decision, Refusal

INPUT_MAX: Final = 16 * 1024  # bytes: it stands twice in an entry of 64 KiB. Longer inputs are artifacts.
RESULT_MAX: Final = 16 * 1024  # bytes, for the same reason.
ERROR_MAX: Final = 4 * 1024  # bytes of what went wrong: the rest is in the job's log.
LOSSES_MAX: Final = 16  # leases of one job that may end without a word: for what kills its workers.
BACKOFF_DOUBLINGS_MAX: Final = 16  # of jobs/backoff: no number grows without bound.
BUDGET: Final = "budget"  # the code of a job that has used up what it had


class World(preemption.World, contract.World, envelope.World, inputs.World, fallback.World, Protocol):
    """What the other nouns know of a job's surroundings."""

    def defaults_of(self, topic: str, pool: str) -> Mapping[str, str]:
        """What a submit of the topic says where it says nothing: arguments of ``map``, then of ``create``."""

    def lease_ns(self, request: Submitted) -> int:
        """How long leases of the job last."""

    def setting_or_default(self, scope: str, key: str) -> object:
        """The same; the key's default when it cannot be read, for what has begun and goes on."""

    def limit(self, tenant: str, key: str) -> int | None:
        """The limit that /config has for the tenant; None: there is none. Raises Refusal."""

    def count_kinds(self, request: Submitted) -> int:
        """How many kinds of its tenant's jobs wait where the job would be another; 0: it would be none."""

    def output(self, job: str, name: str) -> str:
        """The hash of the job's output of that name; "": it has none."""

    def why_no_lease(self, pool: str, node: str, asking: int = 0, pool_asking: int = 0) -> str:
        """Why the pool gives the node no lease now, were there so many more; "": it does."""


Decided = Decision[Event | Alerted, str]


def decide(jobs: Jobs, order: Order, world: World) -> Decided:
    """What follows from an order to /jobs; raises Refusal."""
    return _kept(jobs, _DECIDE[order.place, order.verb](jobs, order, world), world)


def bereft(jobs: Jobs, order: Order, world: World, id: str, reason: str, annex: str) -> Decided:
    """What follows where an annex has not for a job any more what it runs on, whatever the order is about:
    its attempt is over, and its holder finds its fence too old."""
    job = jobs.by_id[id]
    return _kept(jobs, _fall_back(job, order, world, job.fence + 1, reason, annex), world)


def _kept(jobs: Jobs, decided: Decided, world: World) -> Decided:
    """The same, where ends say how long their records stay."""
    if not any(type(event) is Ended for event in decided.events):
        return decided
    events = (
        kept(event, jobs.by_id[event.job].request, world) if isinstance(event, Ended) else event
        for event in decided.events
    )
    return Decision((*events, *_alerts(jobs, decided.events)), decided.reply)


def _alerts(jobs: Jobs, events: Sequence[Event | Alerted]) -> list[Alerted]:
    """What is to be looked at besides: jobs that have fallen back, and failed all the same."""
    told = {event.id for event in events if isinstance(event, Alerted)}
    return [
        Alerted("job", event.job, jobs.by_id[event.job].request.tenant, event.code, event.text)
        for event in events
        if isinstance(event, Ended) and event.state == "failed" and event.job not in told
        if jobs.by_id[event.job].fallbacks
    ]


def kept(event: Ended, request: Submitted, world: World) -> Ended:
    """The job's end, which says how long its record stays in memory."""
    try:
        keep_ns = world.setting(scope_of(request.tenant, request.workflow, request.step), "jobs/history")
    except Refusal:
        return event  # no job goes on for want of a number: it stays as long as most do
    assert isinstance(keep_ns, int), keep_ns
    return Ended(event.job, event.state, event.fence, event.text, event.code, event.end, keep_ns)


def _submit(jobs: Jobs, order: Order, world: World) -> Decided:
    args = order.args
    if int(args.get("v", VERSION)) != VERSION:
        raise refusal(E.VERSION, f"/v: {args['v']}, expected {VERSION}")
    key = args.get("key", "")
    if earlier := jobs.keyed(order.tenant, key, order.time_ns):
        if earlier.body != body_of(args):
            raise refusal(E.IDEMPOTENCY, f"key={key}")
        return Decision((), earlier.job)
    job = order.name or order.id
    if job in jobs.by_id:
        _job(jobs, order, job)
        raise refusal(E.EXISTS, f"job={job} was submitted")
    # It could be the id of a job that has left memory.
    if order.name and order.name <= jobs.past.horizon:
        raise refusal(E.GONE, f"job={job}: this draft is older than what is remembered; open clone again")
    event = accepted(order, job, world)
    return Decision((admitted(jobs.usage, event, order.time_ns, world),), job)


def accepted(order: Order, job: str, world: World, pool: str = "") -> Submitted:
    """What a submit comes to, as the hive is now, whatever was submitted before; raises Refusal.

    ``pool``: where it is to wait; "": where it best does."""
    args = order.args
    placed = place(world, wanted_of(order.tenant, args), pool)
    text, artifact = input_of(args, order.tenant, world)
    defaults = world.defaults_of(args["topic"], placed.pool)
    scope = scope_of(order.tenant, args.get("workflow", ""), args.get("step", ""))
    said = envelope.fields(args, defaults, scope, world)
    said |= fallback.terms(args, said["patience_ns"], placed.pool, world)
    agreed = contract.contract(world, scope, args["topic"], text, artifact, args.get(CHECKED.name, ""))
    return Submitted(
        job=job,
        tenant=order.tenant,
        actor=order.actor,
        topic=args["topic"],
        pool=placed.pool,
        body=body_of(args),
        key=args.get("key", ""),
        key_ns=window_ns(world, scope) if args.get("key") else 0,
        input=text,
        artifact=artifact,
        role=order.role,
        checked=agreed.checked,
        result_schema=agreed.result,
        inputs=inputs.resolved(args, order.tenant, world),
        **said | {"requires": placed.requires},
    )


def window_ns(world: World, scope: str) -> int:
    """How long a key is kept in the scope."""
    found = world.setting(scope, "jobs/key-window")
    assert isinstance(found, int), found
    return found


# What a value means, by its kind: the same may be spelled in several ways.
MEANT: Final[Mapping[str, Callable[[str], object]]] = {
    "number": int,
    "duration": parse_duration,
    "labels": ctl.labels,
    "list": lambda value: sorted(ctl.listed(value)),
    "sha256": lambda value: value.removeprefix("sha256:"),
    "artifacts": ctl.artifacts,
}
# By argument; those that say how a request is sent, not what it is, are none.
_MEANT: Final = {
    arg.name: MEANT.get(arg.kind, str) for arg in SUBMIT.args if arg.name not in ("key", "v", CHECKED.name)
}


def body_of(args: Mapping[str, str]) -> str:
    """The hash of what a request says, however it is spelled: what must be the same under the same key."""
    said = [(name, _MEANT[name](value)) for name, value in sorted(args.items()) if name in _MEANT]
    return sha256(canonical(said)).hexdigest()


def input_of(args: Mapping[str, str], tenant: str, world: World) -> tuple[str | None, str]:
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
        check_length(text, INPUT_MAX)
    return text, ""


def _cancel(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _job(jobs, order, order.name or order.args["job"])
    _check_move(job, "cancelled")
    # A holder finds its fence too old, and stops.
    fence = job.fence + 1 if job.held else job.fence
    return Decision((Ended(job.id, "cancelled", fence, order.args.get("reason", "")),), job.id)


def _lease(jobs: Jobs, order: Order, world: World) -> Decided:
    """``lease`` in /pools/<p>/next: the first of the queue that the node can have goes to it."""
    pool = order.name
    if why := world.why_no_lease(pool, order.node):
        raise refusal(E.NODATA, why)
    fit = Fit(world, pool, world.offers(order.node), order.time_ns)
    found = jobs.queues.next(pool, "" if order.tenant == HIVE_TENANT else order.tenant, fit)
    if found is None:
        raise refusal(E.NODATA, f"pool={pool} has no job waiting that node={order.node} can have")
    job = jobs.by_id[found]
    _check_move(job, "leased")
    event = Leased(found, order.node, job.fence + 1, order.time_ns + world.lease_ns(job.request))
    return Decision((event,), found)


def _start(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order, "running")
    device = order.args.get("device", "")
    fallback.check_device(device)
    before = fallback.in_place(job, device, order.node, world)
    return Decision((*before, Started(job.id, job.fence, device)), job.id)


def _renew(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order)
    return Decision((Renewed(job.id, job.fence, order.time_ns + world.lease_ns(job.request)),), job.id)


def _seal(jobs: Jobs, order: Order, world: World) -> Decided:
    """What is sealed, the artifacts say: here, that its holder does, or did before it said how it ended."""
    job = _fenced_job(jobs, order)
    digest = order.args["sha256"].removeprefix("sha256:")
    if not job.held and world.output(job.id, order.args["name"]) != digest:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> {job.state}")
    return Decision((), job.id)


def _ack(jobs: Jobs, order: Order, world: World) -> Decided:
    result = order.args.get("result", "")
    check_length(result, RESULT_MAX)
    job = _fenced_job(jobs, order)
    # Its answer was lost on the way and the holder says it again.
    if (job.state, job.text) == ("succeeded", result):
        return Decision((), job.id)
    _check_move(job, "succeeded")
    if fallback.is_unsaid(job, world):
        raise refusal(E.CONFLICT, "ack: on which device it ran was not said: expected start device=")
    if job.request.result_schema:
        world.checked_by(job.request.result_schema, result, "/result")
    return Decision((Ended(job.id, "succeeded", job.fence, result),), job.id)


def _nack(jobs: Jobs, order: Order, world: World) -> Decided:
    args = order.args
    error = args["error"]
    check_length(error, ERROR_MAX)
    job = _fenced_job(jobs, order)
    # Said again, as above. The fence of a delayed job is that of the attempt that failed.
    if job.state in ("failed", "delayed") and job.text == error:
        return Decision((), job.id)
    _check_move(job, "failed")
    if not job.held:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> failed")
    if args.get("final") == "true":
        return _fail(job, job.fence, args.get("code", "final"), error)
    delay_ns = parse_duration(args["delay"]) if "delay" in args else None
    return _again(job, order, world, job.fence, "nacked", error, args.get("code", "nacked"), delay_ns)


def _again(
    job: Job,
    order: Order,
    world: World,
    fence: int,
    why: str,
    error: str,
    code: str,
    delay_ns: int | None = None,
) -> Decided:
    """An attempt failed: the next one after a delay (None: what the attempts so far ask for), or the end."""
    if is_spent(job, order.time_ns):
        return _fail(job, fence, BUDGET, _spent_text(job, error), why)
    failures = job.count("nacked", "timeout") + 1
    if failures > job.request.retries:
        return _fail(job, fence, code, error, why)
    if delay_ns is None:
        delay_ns = _backoff_ns(job, failures, order.id, world)
    until_ns = order.time_ns + delay_ns
    if job.deadline_ns and until_ns >= job.deadline_ns:
        return _fail(job, fence, code, error, why)
    return Decision((Delayed(job.id, fence, until_ns, why, error),), job.id)


def _fail(job: Job, fence: int, code: str, error: str, end: str = "") -> Decided:
    """``end``: the attempt's, "": nacked."""
    return Decision((Ended(job.id, "failed", fence, error, code, end),), job.id)


def _backoff_ns(job: Job, failures: int, id: str, world: World) -> int:
    request = job.request
    scope = scope_of(request.tenant, request.workflow, request.step)
    first, most = (world.setting_or_default(scope, f"jobs/{key}") for key in ("backoff", "backoff-max"))
    assert isinstance(first, int), first
    assert isinstance(most, int), most
    return backoff_ns(failures, id, first, most)


def backoff_ns(failures: int, id: str, first_ns: int, most_ns: int) -> int:
    """How long a job waits after its ``failures``-th failure: it doubles, to a limit, and half of it is
    chance, so that jobs that failed together do not come back together. The chance is the line's id, written
    down with it: deciding again gives the same."""
    half = min(first_ns << min(failures - 1, BACKOFF_DOUBLINGS_MAX), most_ns) // 2
    chance = int.from_bytes(sha256(id.encode()).digest()[:8], "big")
    return half + chance % half if half else 0


def _expire(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _held_job(jobs, order, "queued")
    if order.time_ns < job.until_ns:
        raise refusal(E.CONFLICT, "the lease was renewed")
    if is_spent(job, order.time_ns):
        return _fail(job, job.fence + 1, BUDGET, _spent_text(job, ""), "expired")
    # What the job did to its worker, it would do to the next: also that must end.
    if job.count("expired") + 1 > LOSSES_MAX:
        return _fail(
            job, job.fence + 1, "lost", f"its lease ended {LOSSES_MAX + 1} times without a word", "expired"
        )
    return Decision((Returned(job.id, job.fence + 1, "expired"),), job.id)


def _timeout(jobs: Jobs, order: Order, world: World) -> Decided:
    """The attempt has run longer than it may, and its worker has not ended it."""
    job = _held_job(jobs, order, "failed")
    if not timeout_ns(job) or order.time_ns < timeout_ns(job):
        raise refusal(E.CONFLICT, "its time is not over")
    error = f"timeout: it ran longer than {duration(job.request.timeout_ns)}"
    return _again(job, order, world, job.fence + 1, "timeout", error, "timeout")


def _spent(jobs: Jobs, order: Order, world: World) -> Decided:
    """Its attempts have run as long as they may together."""
    job = _held_job(jobs, order, "failed")
    if not spent_ns(job) or order.time_ns < spent_ns(job):
        raise refusal(E.CONFLICT, "its budget is not used up")
    return _fail(job, job.fence + 1, BUDGET, _spent_text(job, ""), BUDGET)


def _spent_text(job: Job, error: str) -> str:
    last = f", the last error: {error or job.text}" if error or job.text else ""
    return f"budget: its attempts ran {duration(job.request.runtime_ns)} together{last}"[:ERROR_MAX]


def _overdue(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _job(jobs, order, order.name)
    _check_move(job, "failed")
    if not job.deadline_ns or order.time_ns < job.deadline_ns:
        raise refusal(E.CONFLICT, "its deadline has not come")
    last = f", the last error: {job.text}" if job.text else ""
    error = f"deadline: it has not ended within {duration(job.request.deadline_ns)}{last}"
    return _fail(job, job.fence + 1 if job.held else job.fence, "deadline", error[:ERROR_MAX], "deadline")


def _wake(jobs: Jobs, order: Order, world: World) -> Decided:
    job = _job(jobs, order, order.name)
    if job.state != "delayed":
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> queued")
    if order.time_ns < job.until_ns:
        raise refusal(E.CONFLICT, "its delay is not over")
    return Decision((Woken(job.id),), job.id)


def _give_back(jobs: Jobs, order: Order, world: World) -> Decided:
    """Its holder stops, and the job is not to blame: no failure of it, though not without end either."""
    job = _held_job(jobs, order, "queued")
    if job.count("released") + 1 > LOSSES_MAX:
        error = f"its workers gave it back {LOSSES_MAX + 1} times"
        return _fail(job, job.fence + 1, "lost", error, "released")
    return Decision((Returned(job.id, job.fence + 1, "released"),), job.id)


def _preempt(jobs: Jobs, order: Order, world: World) -> Decided:
    """A more urgent job takes its place, and it waits where it waited before."""
    job, other = _job(jobs, order, order.name), _job(jobs, order, order.args["for"])
    if not job.held:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> queued")
    _check_move(job, "queued")
    if why := why_kept(jobs, world, job, other, order.time_ns):
        raise refusal(E.CONFLICT, why)
    return Decision((Returned(job.id, job.fence + 1, PREEMPTED),), job.id)


def _release(jobs: Jobs, order: Order, world: World) -> Decided:
    """The lease never reached its reader."""
    job = _held_job(jobs, order, "queued")
    if job.state != "leased":
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> queued")
    return Decision((Returned(job.id, job.fence + 1, "released"),), job.id)


def _cannot(jobs: Jobs, order: Order, world: World) -> Decided:
    """``fallback`` of its holder: it goes on in another pool, or has failed."""
    args = order.args
    error = args.get("error", "")
    check_length(error, ERROR_MAX)
    job = _fenced_job(jobs, order)
    # Said again, as above.
    if job.state == "failed" and job.code == args["reason"]:
        return Decision((), job.id)
    if job.state == "queued" and job.moved and job.attempts[-1].end == "fallback":
        return Decision((), job.id)
    if not job.held:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> queued")
    return _fall_back(job, order, world, job.fence, args["reason"], order.node, error)


def _fallback(jobs: Jobs, order: Order, world: World) -> Decided:
    """``fallback`` of the hive: of a lease that is held, or of a job that waits for what is not there.

    What is not so any more is refused with NODATA: several processes of one hive may say the same."""
    args = order.args
    if "fence" in args:
        job = _held_job(jobs, order, "queued")
        return _fall_back(job, order, world, job.fence + 1, args["reason"], args.get("annex", ""))
    job = _job(jobs, order, order.name)
    if why := fallback.why_waits(job, args["reason"], order.time_ns, world):
        raise refusal(E.NODATA, why)
    return _fall_back(job, order, world, job.fence, args["reason"], args.get("annex", ""))


def _fall_back(
    job: Job, order: Order, world: World, fence: int, reason: str, annex: str, error: str = ""
) -> Decided:
    text = fallback.told(job, reason, annex, error)[:ERROR_MAX]
    if job.held and is_spent(job, order.time_ns):
        return _fail(job, fence, BUDGET, _spent_text(job, text), "fallback")
    return Decision(fallback.fallen(job, fence, reason, annex, text, world), job.id)


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


def _check_move(job: Job, to: str) -> None:
    if to not in MOVES[job.state]:
        raise refusal(E.ILLEGAL_MOVE, f"{job.state} -> {to}")


def check_length(text: str, size_max: int) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > size_max:
        raise refusal(E.TOOBIG, f"max={size_max}")


_DECIDE: Final[Mapping[tuple[str, str], Callable[[Jobs, Order, World], Decided]]] = {
    ("ctl", "submit"): _submit,
    ("ctl", "cancel"): _cancel,
    ("*/ctl", "submit"): _submit,
    ("*/ctl", "cancel"): _cancel,
    ("*/ctl", "start"): _start,
    ("*/ctl", "renew"): _renew,
    ("*/ctl", "seal"): _seal,
    ("*/ctl", "ack"): _ack,
    ("*/ctl", "nack"): _nack,
    ("*/ctl", "release"): _give_back,
    ("*/ctl", "fallback"): _cannot,
    ("*/next", "lease"): _lease,
    ("*", "expire"): _expire,
    ("*", "timeout"): _timeout,
    ("*", "spent"): _spent,
    ("*", "overdue"): _overdue,
    ("*", "wake"): _wake,
    ("*", "preempt"): _preempt,
    ("*", "release"): _release,
    ("*", "fallback"): _fallback,
}
