"""Jobs that come from elsewhere, with a sheet: each keeps its id and, when it has ended, its end. Pure.

What is recorded is that somebody imported it and what was said of it then; it had no attempts here. A job
that has not ended is submitted anew under its id, as whoever imports it would submit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.jobs import envelope, inputs
from skep.namespaces.jobs.core import (
    ERROR_MAX,
    MEANT,
    RESULT_MAX,
    Decided,
    World,
    accepted,
    body_of,
    check_length,
    input_of,
    kept,
    window_ns,
)
from skep.namespaces.jobs.quotas import admitted
from skep.namespaces.jobs.record import (
    TERMINAL,
    Discarded,
    Ended,
    Event,
    Imported,
    Job,
    Jobs,
    Submitted,
    visible,
)
from skep.namespaces.jobs.verbs import ABSENT, ADOPT, CHECKED, ID, SUBMIT
from skep.namespaces.order import Order, refusal
from skep.trace.clock import parse_rfc3339, rfc3339, ulid
from skep.trace.entry import canonical
from skep.trace.rules import Decision

_KINDS: Final = {arg.name: arg.kind for arg in ADOPT.args}
_SUBMITTED: Final = frozenset(arg.name for arg in SUBMIT.args) | {CHECKED.name}
_OF_END: Final = frozenset({"end", "result", "error", "code"})
_PASSING: Final = frozenset({"dead", CHECKED.name, ABSENT.name, "if-rev"})  # what is no part of the job
NO_LETTER: Final = "imported: it was no dead letter any more"


class _Unset:
    """Configuration that says nothing: what has ended is not asked how it should be."""

    def of_settings(self, key: tuple[str, ...], found: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        return found()

    def setting(self, scope: str, key: str) -> object:
        return None


def arguments(job: Job, dead: bool) -> dict[str, str]:
    """The job as arguments of adopt. ``dead``: it is a dead letter."""
    request = job.asked
    args = envelope.arguments(request) | {"job": job.id, "pool": request.pool}
    if request.labels:
        args["labels"] = canonical(request.labels).decode()
    if request.key:
        args["body"] = request.body
    args["submitter"], args["submitted"] = request.actor, rfc3339(job.submitted_ns)
    if request.imported is not None:
        args["submitter"], args["submitted"] = request.imported.submitter, request.imported.submitted
    if job.state in TERMINAL:
        args["end"] = job.state
        args["result" if job.state == "succeeded" else "error"] = job.text
        args["code"] = job.code
    if dead:
        args["dead"] = "true"
    return {name: value for name, value in args.items() if value}


def check_same(job: Job, args: Mapping[str, str]) -> None:
    """Raise Refusal when the job is another than the arguments say. What became of it after it was adopted
    makes it no other."""
    known = arguments(job, False)
    skipped = _PASSING if "end" in args else _PASSING | _OF_END
    for name, value in args.items():
        if name not in skipped and _meant(name, value) != _meant(name, known.get(name)):
            raise refusal(E.EXISTS, f"adopt: {name}=: the job that has this id is another")


def _meant(name: str, value: str | None) -> object:
    return None if value is None else MEANT.get(_KINDS[name], str)(value)


def submission(order: Order) -> Order:
    """The submit that adopting a job comes to that has not ended."""
    args = {name: value for name, value in order.args.items() if name in _SUBMITTED}
    return order._replace(verb=SUBMIT.name, args=args)


def decide(jobs: Jobs, order: Order, world: World) -> Decided:
    """What follows from an adopt; raises Refusal. The policies have been asked, for one that has not ended
    about its submission too."""
    args = order.args
    id = args["job"]
    _check(args, order.time_ns)
    if (known := jobs.by_id.get(id)) is not None:
        if not visible(known, order.role, order.tenant, order.node):
            raise refusal(E.MISSING)
        check_same(known, args)
        return Decision((), id)
    # What left memory since the door looked for it, could be this one.
    if id <= jobs.past.horizon and jobs.past.rev > int(args.get(ABSENT.name, 0)):
        raise refusal(E.CONFLICT, f"adopt: job={id}: whether there was such a job is not known")
    held = jobs.keyed(order.tenant, args.get("key", ""), order.time_ns)
    if held is not None and not held.yields:
        raise refusal(E.IDEMPOTENCY, f"key={args['key']}")
    if "end" in args:
        return Decision(_ended(order, world), id)
    event = accepted(submission(order), id, world, args.get("pool", ""))
    event = replace(event, body=_body(args), imported=_origin(args))
    return Decision((admitted(jobs.usage, event, order.time_ns, world),), id)


def _check(args: Mapping[str, str], now_ns: int) -> None:
    if not ID.fullmatch(args["job"]):
        raise refusal(E.USAGE, f"adopt: job={args['job']}: expected the id of a job")
    # An id from the future would make all drafts look old.
    if args["job"][:26] > ulid(now_ns, (1 << 80) - 1):
        raise refusal(E.USAGE, f"adopt: job={args['job']}: its time has not come yet")
    if "submitted" in args:
        try:
            parse_rfc3339(args["submitted"])
        except ValueError as error:
            raise refusal(E.USAGE, f"adopt: submitted=: {error}") from error
    if len(args.get("submitter", "").encode()) > envelope.ACTOR_MAX:
        raise refusal(E.USAGE, f"adopt: submitter=: expected at most {envelope.ACTOR_MAX} bytes")
    if args.get("input", "").startswith("artifact:"):
        raise refusal(E.USAGE, "adopt: input=: an artifact is named by its hash, in artifact=")
    if not all(map(ctl.is_sha256, ctl.artifacts(args["inputs"]).values() if "inputs" in args else ())):
        raise refusal(E.USAGE, "adopt: inputs=: artifacts are named by their hashes")
    end = args.get("end", "")
    for name, ends in _ENDS.items():
        if name in args and end not in ends:
            raise refusal(E.USAGE, f"adopt: {name}=: expected end={' or '.join(ends)} with it")


_ENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "result": ("succeeded",), "error": ("failed", "cancelled"), "code": ("failed",), "dead": ("failed",),
}  # fmt: skip


def _ended(order: Order, world: World) -> tuple[Event, ...]:
    args, said = order.args, submission(order).args
    if "pool" not in args:
        raise refusal(E.USAGE, "adopt: pool= is missing: expected where it was")
    text, artifact = input_of(said, order.tenant, world)
    scope = envelope.scope_of(order.tenant, args.get("workflow", ""), args.get("step", ""))
    request = Submitted(
        job=args["job"],
        tenant=order.tenant,
        actor=order.actor,
        topic=args["topic"],
        pool=args["pool"],
        body=_body(args),
        key=args.get("key", ""),
        key_ns=window_ns(world, scope) if args.get("key") else 0,
        input=text,
        artifact=artifact,
        role=order.role,
        imported=_origin(args),
        inputs=inputs.resolved(said, order.tenant, world),
        **envelope.fields(said, {}, scope, _Unset()),
    )
    check_length(args.get("result", ""), RESULT_MAX)
    check_length(args.get("error", ""), ERROR_MAX)
    end = Ended(args["job"], args["end"], 0, args.get("result", args.get("error", "")), args.get("code", ""))
    events: tuple[Event, ...] = (request, kept(end, request, world))
    if args["end"] == "failed" and args.get("dead") != "true":
        events += (Discarded(args["job"], NO_LETTER, order.tenant),)
    return events


def _body(args: Mapping[str, str]) -> str:
    """The hash of the request as its key is bound to it; where the sheet does not say, of what it says."""
    if "body" in args:
        return args["body"].removeprefix("sha256:")
    return body_of({name: value for name, value in args.items() if name in _SUBMITTED})


def _origin(args: Mapping[str, str]) -> Imported:
    return Imported(args.get("submitter", ""), args.get("submitted", ""), "end" in args)
