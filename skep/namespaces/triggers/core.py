"""Triggers as a fold: what submits a job at which times or after which events, and what became of each.

A trigger fires once for each tick and each event: the entry that says so has the job it submitted, or why it
was refused. Which tick is due and which event matches, the hive itself finds out (watch.py) and writes down;
what is decided here is that it comes after the last. No clock, no I/O, no zones.

The job is its creator's: submitted in the name, role and tenant of whoever created the trigger, asked of the
policies anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.clock import MS, SECOND, parse_rfc3339, rfc3339
from skep.trace.rules import Decision, Meta, Refusal

TRIGGERS_MAX: Final = 1024  # of one tenant: each is looked at twice a second.
ON_MAX: Final = 64  # of these such as wait for events: each event is held against each.
# Fires of a tenant for events of jobs that triggers made: with ON_MAX triggers on every event, chains die out
# all the same. So many come at once, and then as many in each second as are paid for.
CHAINED_MAX: Final = 1024
CHAINED_NS: Final = SECOND // 64
RECENT: Final = 32  # fires that a trigger remembers; older ones are in the ledger.
DEPTH_MAX: Final = 8  # jobs in a chain of triggers: what fires itself comes to an end.
ALL: Final = 1 << 20  # more than any entry has events: a cursor behind them all.
EVENT: Final = "event"  # the input that stands for what the trigger was fired by.
EVENTS: Final = (
    "job.submitted", "job.leased", "job.started", "job.delayed", "job.fellback", "job.ended", "alert.raised",
    "artifact.sealed", "config.published", "node.joined", "node.heard",
)  # fmt: skip
HEARD: Final = ("node.heard", {"on", "on-state"})  # the one event without a job that has a state
MISSED: Final = "once|skip|all"
FILES: Final = frozenset({"ctl"})  # files of /triggers: no trigger is called so.
# Arguments of submit that a trigger has not: with a key, every fire would be the same job.
NOT_SUBMIT: Final = frozenset({"key"})
CHECKED: Final = "checked"  # what the door says of an artifact that is the input; nobody else can

NAME: Final = Arg("trigger", required=True, kind="name")
CRON: Final = (
    Arg("cron", help="minute hour day-of-month month day-of-week, as Debian's cron has them"),
    Arg("zone", help="the time zone that cron= is meant in, like Europe/Berlin; else UTC"),
    Arg("missed", kind=MISSED, help="ticks that passed while the hive was down: the last one, none, each"),
)
ON: Final = (
    Arg("on", kind="|".join(EVENTS), help="the event that fires it"),
    Arg("on-state", kind="name", help="only when the job is in this state after it; of node.heard, the link"),
    Arg("on-topic", kind="name", help="only of jobs of this topic"),
    Arg("on-pool", kind="name", help="only of jobs of this pool"),
    Arg("on-labels", kind="labels", help="only of jobs that have these labels"),
)


def tables(submit: tuple[Arg, ...]) -> Mapping[str, ctl.Verbs]:
    """What can be written about triggers; ``submit`` are the arguments of a job's submission. The door says
    ``checked`` of its input, or why it is ``unfit``."""
    jobs = tuple(arg for arg in submit if arg.name not in NOT_SUBMIT)
    return {
        "ctl": ctl.verbs(
            Verb(
                "create",
                (NAME, *CRON, *ON, *jobs),
                "create trigger=nightly cron='30 2 * * *' zone=Europe/Berlin topic=report",
                "submit such a job at these times or after these events; input=event: what fired it, as JSON",
            ),
            Verb("pause", (NAME,), "pause trigger=nightly", "it does not fire"),
            Verb("resume", (NAME,), "resume trigger=nightly", "it fires again, from now on"),
            Verb("run", (NAME, Arg(CHECKED)), "run trigger=nightly", "fire it now; the reply is the job"),
            Verb("remove", (NAME,), "remove trigger=nightly"),
            Verb("seen", (Arg("seq", required=True, kind="number"),)),  # the hive's own
        ),
        # The hive's own, written to no file.
        "*": ctl.verbs(
            Verb(
                "fire",
                (
                    Arg("at"), Arg("seq", kind="number"), Arg("k", kind="number"),
                    Arg("depth", kind="number"), Arg("event"), Arg(CHECKED), Arg("unfit"),
                ),
            )
        ),
    }  # fmt: skip


OWN: Final = frozenset({"seen"})  # verbs of /triggers/ctl that the hive alone writes, and no usage names.


class Created(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.created", omit_defaults=True):
    """``submit``: the arguments as they were written. Either ``cron`` or ``on`` is there."""

    tenant: str
    trigger: str
    actor: str
    role: str
    submit: dict[str, str]
    cron: str = ""
    zone: str = "UTC"
    missed: str = "once"
    on: str = ""
    where: dict[str, str] = {}  # state, topic, pool that the job must have
    labels: dict[str, str] = {}  # and labels


class Fired(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.fired", omit_defaults=True):
    """It fired for the tick ``at_ns``, for the event ``k`` (from 0) of entry ``seq``, or (``why``: run) as
    somebody said so. ``job`` was submitted, or what was refused with ``code``."""

    tenant: str
    trigger: str
    why: str  # cron, event, run
    at_ns: int = 0
    seq: int = 0
    k: int = 0
    job: str = ""
    code: str = ""
    text: str = ""
    cost_ns: int = 0  # how long it takes to be paid for; 0: nobody had fired for what it fired for


class Paused(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.paused"):
    tenant: str
    trigger: str


class Resumed(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.resumed"):
    tenant: str
    trigger: str


class Removed(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.removed"):
    tenant: str
    trigger: str


class Seen(msgspec.Struct, frozen=True, tag_field="type", tag="trigger.seen"):
    """Every trigger has fired for what there was to fire for up to entry ``seq``."""

    seq: int


Event = Created | Fired | Paused | Resumed | Removed | Seen


class Fire(msgspec.Struct, frozen=True):
    fired: Fired
    time_ns: int


class Trigger(msgspec.Struct, frozen=True):
    """``after_ns``: its last tick, or when it was created or resumed. ``cursor``: seq and k of its last
    event, or where it was created or resumed."""

    made: Created
    created_ns: int
    rev: int
    after_ns: int
    cursor: tuple[int, int]
    active: bool = True
    fired: int = 0  # how often
    recent: tuple[Fire, ...] = ()  # the last of these, oldest first

    @property
    def key(self) -> tuple[str, str]:
        return self.made.tenant, self.made.trigger


@dataclass
class Triggers:
    """The triggers by tenant and name. ``seen``: the entry up to which no event is to be looked for."""

    by_tenant: dict[str, dict[str, Trigger]] = field(default_factory=dict)
    cron: dict[tuple[str, str], None] = field(default_factory=dict)  # tenant, name of those active
    on: dict[str, dict[tuple[str, str], None]] = field(default_factory=dict)  # event -> those active
    seen: int = 0
    paid_ns: dict[str, int] = field(default_factory=dict)  # tenant -> when its chained fires are paid for

    def copy(self) -> Triggers:
        return Triggers(
            {tenant: names.copy() for tenant, names in self.by_tenant.items()},
            self.cron.copy(),
            {event: keys.copy() for event, keys in self.on.items()},
            self.seen,
            self.paid_ns.copy(),
        )

    def find(self, tenant: str, name: str) -> Trigger | None:
        return self.by_tenant.get(tenant, {}).get(name)

    def owed_ns(self, tenant: str, now_ns: int) -> int:
        """How long the tenant's chained fires are still being paid for."""
        owed_ns = self.paid_ns.get(tenant, 0) - now_ns
        # More is not lent: the clock was put back.
        return owed_ns if 0 < owed_ns <= CHAINED_MAX * CHAINED_NS else 0

    def artifacts(self, tenant: str) -> list[str]:
        """The inputs, by hash, that the tenant's triggers will submit."""
        found = []
        for submit in (each.made.submit for each in self.by_tenant.get(tenant, {}).values()):
            if "artifact" in submit:
                found.append(submit["artifact"].removeprefix("sha256:"))
            if "inputs" in submit:
                found += filter(ctl.is_sha256, ctl.artifacts(submit["inputs"]).values())
        return found


class World(Protocol):
    """Where a trigger's job goes."""

    def submitted(self, order: Order, trigger: str, depth: int) -> tuple[Any, ...]:
        """What follows from the submission, its policies asked; raises Refusal."""


Decided = Decision[Any, str]


def decide(triggers: Triggers, order: Order, world: World) -> Decided:
    """What follows from an order to /triggers; raises Refusal.

    The hive's line for what was fired for already is refused with NODATA, which is not recorded: several
    processes of one hive may say it."""
    return _DECIDE[order.verb](triggers, order, world)


def _create(triggers: Triggers, order: Order, world: World) -> Decided:
    args = dict(order.args)
    name = args.pop("trigger")
    names = triggers.by_tenant.get(order.tenant, {})
    if order.token:
        raise refusal(E.DENIED, "rule=no-token a trigger would outlive the token that it is created under")
    if name in names or name in FILES:
        raise refusal(E.EXISTS, f"trigger={name}")
    if len(names) >= TRIGGERS_MAX:
        raise refusal(E.QUOTA, f"triggers have={len(names)} max={TRIGGERS_MAX}")
    args.pop("if-rev", None)
    cron = {arg.name: args.pop(arg.name) for arg in CRON if arg.name in args}
    on = {arg.name: args.pop(arg.name) for arg in ON if arg.name in args}
    if ("cron" in cron) == ("on" in on) or (cron and on):
        raise refusal(E.USAGE, "create: expected either cron= with zone= missed=, or on= with on-…=")
    where = {word: on[f"on-{word}"] for word in ("state", "topic", "pool") if f"on-{word}" in on}
    labels = ctl.labels(on.get("on-labels", ""))
    if (where or labels) and not on["on"].startswith("job.") and (on["on"], {*on}) != HEARD:
        raise refusal(E.USAGE, f"create: on={on['on']}: expected an event of jobs with on-…=")
    have = sum(1 for each in names.values() if each.made.on) if on else 0
    if have >= ON_MAX:
        raise refusal(E.QUOTA, f"triggers on events have={have} max={ON_MAX}")
    made = Created(
        order.tenant, name, order.actor, order.role, args,
        cron.get("cron", ""), cron.get("zone", "UTC"), cron.get("missed", "once"),
        on.get("on", ""), where, labels,
    )  # fmt: skip
    return Decision((made,), name)


def _pause(triggers: Triggers, order: Order, world: World) -> Decided:
    made = _trigger(triggers, order).made
    return Decision((Paused(made.tenant, made.trigger),), made.trigger)


def _resume(triggers: Triggers, order: Order, world: World) -> Decided:
    trigger = _trigger(triggers, order)
    if trigger.active:
        return Decision((), trigger.made.trigger)
    return Decision((Resumed(*trigger.key),), trigger.made.trigger)


def _remove(triggers: Triggers, order: Order, world: World) -> Decided:
    made = _trigger(triggers, order).made
    return Decision((Removed(made.tenant, made.trigger),), made.trigger)


def _run(triggers: Triggers, order: Order, world: World) -> Decided:
    """Fired by hand: who does it is told when the job is refused."""
    made = _trigger(triggers, order).made
    event = tick_json("run", made.trigger, order.time_ns)
    events = world.submitted(_submission(made, order, event), made.trigger, 1)
    fired = Fired(made.tenant, made.trigger, "run", order.time_ns, job=order.id)
    return Decision((fired, *events), order.id)


def _fire(triggers: Triggers, order: Order, world: World) -> Decided:
    """Fired by the hive: the tick or the event is past, with a job or without."""
    args, trigger = order.args, triggers.find(order.tenant, order.name)
    if trigger is None or not trigger.active:
        raise refusal(E.NODATA, f"trigger={order.name} is not active")
    made = trigger.made
    if "at" in args:
        at_ns = parse_rfc3339(args["at"])
        if not trigger.after_ns < at_ns <= order.time_ns:
            raise refusal(E.NODATA, f"at={args['at']}: it is not after {rfc3339(trigger.after_ns)}")
        fired = Fired(made.tenant, made.trigger, "cron", at_ns, job=order.id)
        event, depth = tick_json("tick", made.trigger, at_ns), 0
    else:
        place = int(args["seq"]), int(args["k"])
        if place <= trigger.cursor:
            raise refusal(E.NODATA, f"seq={place[0]} k={place[1]}: it has fired for it")
        fired = Fired(made.tenant, made.trigger, "event", order.time_ns, *place, job=order.id)
        event, depth = args.get("event", ""), int(args["depth"])
    try:
        if depth >= DEPTH_MAX:
            raise refusal(E.QUOTA, f"chain of triggers have={depth} max={DEPTH_MAX}")
        if "unfit" in args:
            raise refusal(E.SCHEMA, args["unfit"])
        if depth:
            _check_chained(triggers.owed_ns(made.tenant, order.time_ns))
            fired = replace(fired, cost_ns=CHAINED_NS)
        events = world.submitted(_submission(made, order, event), made.trigger, depth + 1)
    except Refusal as refused:
        fired = replace(fired, job="", code=refused.code, text=refused.text, cost_ns=0)
        return Decision((fired,), "refused")
    return Decision((fired, *events), order.id)


def _check_chained(owed_ns: int) -> None:
    wait_ns = owed_ns - (CHAINED_MAX - 1) * CHAINED_NS
    if wait_ns > 0:
        raise refusal(E.THROTTLED, f"chain of triggers retry-ms={-(-wait_ns // MS)}")


def tick_json(why: str, trigger: str, at_ns: int) -> str:
    """The event of a trigger that no event fired."""
    said = {"type": f"trigger.{why}", "trigger": trigger, "at": rfc3339(at_ns)}
    return msgspec.json.encode(said).decode()


def _submission(made: Created, order: Order, event: str) -> Order:
    """The submit that a fire is: its creator's, now."""
    args = dict(made.submit)
    if args.get("input") == EVENT:
        args["input"] = event
    if CHECKED in order.args:
        args[CHECKED] = order.args[CHECKED]
    return Order("submit", args, "ctl", "", made.actor, made.role, made.tenant, order.time_ns, order.id)


def _seen(triggers: Triggers, order: Order, world: World) -> Decided:
    seq = int(order.args["seq"])
    if seq <= triggers.seen:
        raise refusal(E.NODATA, f"seq={seq}: it was seen")
    return Decision((Seen(seq),), "ok")


def _trigger(triggers: Triggers, order: Order) -> Trigger:
    trigger = triggers.find(order.tenant, order.args["trigger"])
    if trigger is None:
        raise refusal(E.MISSING, f"trigger={order.args['trigger']}")
    order.check_rev(trigger.rev)
    return trigger


_DECIDE: Final[Mapping[str, Callable[[Triggers, Order, World], Decided]]] = {
    "create": _create, "pause": _pause, "resume": _resume, "run": _run, "remove": _remove,
    "fire": _fire, "seen": _seen,
}  # fmt: skip


# applying


def apply(triggers: Triggers, event: Event, meta: Meta) -> None:
    """Change ``triggers`` by ``event``."""
    if isinstance(event, Seen):
        triggers.seen = event.seq
        return
    names = triggers.by_tenant.setdefault(event.tenant, {})
    match event:
        case Created():
            cursor = (meta.seq, ALL)
            _put(triggers, Trigger(event, meta.time_ns, meta.seq, meta.time_ns, cursor))
        case Paused():
            _put(triggers, replace(names[event.trigger], active=False, rev=meta.seq))
        case Resumed():
            # What passed while it was paused has passed.
            cursor = (meta.seq, ALL)
            trigger = names[event.trigger]
            _put(triggers, replace(trigger, active=True, rev=meta.seq, after_ns=meta.time_ns, cursor=cursor))
        case Removed():
            _index(triggers, names.pop(event.trigger), False)
            if not names:
                del triggers.by_tenant[event.tenant]
                triggers.paid_ns.pop(event.tenant, None)
        case Fired():
            names[event.trigger] = _after(names[event.trigger], event, meta)
            if event.cost_ns:
                paid_ns = meta.time_ns + triggers.owed_ns(event.tenant, meta.time_ns) + event.cost_ns
                triggers.paid_ns[event.tenant] = paid_ns


def _put(triggers: Triggers, trigger: Trigger) -> None:
    tenant, name = trigger.key
    triggers.by_tenant[tenant][name] = trigger
    _index(triggers, trigger, trigger.active)


def _index(triggers: Triggers, trigger: Trigger, active: bool) -> None:
    index = triggers.on.setdefault(trigger.made.on, {}) if trigger.made.on else triggers.cron
    index.pop(trigger.key, None)
    if active:
        index[trigger.key] = None
    elif trigger.made.on and not index:
        del triggers.on[trigger.made.on]


def _after(trigger: Trigger, event: Fired, meta: Meta) -> Trigger:
    """The trigger's record when it has fired."""
    return replace(
        trigger,
        rev=meta.seq,
        after_ns=event.at_ns if event.why == "cron" else trigger.after_ns,
        cursor=(event.seq, event.k) if event.why == "event" else trigger.cursor,
        fired=trigger.fired + 1,
        recent=(*trigger.recent, Fire(event, meta.time_ns))[-RECENT:],
    )
