"""Locks as a fold: who holds what until when, and who waits for it in which order. No clock, no I/O.

A lock is free, held by one in mode x, or by several in mode s. Whoever waits stands in its queue, and the
queue is in the ledger: its order is the order of the entries. Nobody overtakes, so that shared ones that
come later do not starve an exclusive one; what may hold together at the queue's head is granted together,
in the entry that made room for it.

Every grant has a fence. A tenant's fences are counted by one counter that only goes on: a lock's fences rise
for ever, also when the lock itself was forgotten in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

import msgspec
from msgspec.structs import replace

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.clock import HOUR, SECOND, duration, parse_duration, rfc3339
from skep.trace.rules import Decision, Meta

LOCKS_MAX: Final = 4096  # names of one tenant that are remembered; the one free for longest is forgotten.
HOLDERS_MAX: Final = 256  # of one lock, in mode s: a lock's record is written anew with each.
WAITERS_MAX: Final = (
    256  # of one lock: each is a call that waits. A grant to them all is one entry of 64 KiB.
)
TTL_MIN_NS: Final = SECOND  # shorter ones would end before a busy hive has heard their renewal.
TTL_MAX_NS: Final = 24 * HOUR  # what is held by nobody any more stands in the way so long, at most.
WAIT_MAX_NS: Final = HOUR  # a client that wants to wait longer asks again.

FILES: Final = frozenset({"ctl", "check"})  # files of /locks: no lock is called so.
WAITING: Final = "waiting"  # the reply to an acquire that is in the queue.

NAME: Final = Arg("name", required=True, kind="name", help="the lock")
MODE: Final = Arg("mode", required=True, kind="x|s", help="x: alone; s: together with others of mode s")
TTL: Final = Arg("ttl", required=True, kind="duration", help="it is held so long unless renewed; 1s to 24h")
WAIT: Final = Arg("wait", kind="duration", help="stand in the queue so long, at most 1h; else be refused")
FENCE: Final = Arg("fence", required=True, kind="number", help="the grant's")

ACQUIRE: Final = Verb(
    "acquire",
    (NAME, MODE, TTL, WAIT, Arg("session", kind="true|false", help="true: released when this session ends")),
    "acquire name=db mode=x ttl=30s wait=5s",
    "the reply is the fence; with wait= it is the only line of its write",
)
RENEW: Final = Verb(
    "renew",
    (NAME, FENCE, TTL._replace(required=False, help="from now on; else as acquired")),
    "renew name=db fence=7",
    "its end moves on",
)
RELEASE: Final = Verb("release", (NAME, FENCE), "release name=db fence=7", "the next in the queue gets it")

# What is written to /locks/ctl.
VERBS: Final[ctl.Verbs] = ctl.verbs(ACQUIRE, RENEW, RELEASE)
# How it is written down: which session it is, the session does not say.
SESSION: Final = Arg("session", kind="name")
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(ACQUIRE._replace(args=(NAME, MODE, TTL, WAIT, SESSION)), RENEW, RELEASE),
    # The hive's own, written to no file.
    "*": ctl.verbs(
        Verb("expire"),  # end what is over
        Verb("withdraw", (Arg("waiter", required=True, kind="name"),)),  # it waits no more
        Verb("end", (SESSION._replace(required=True),)),  # the session is gone
        Verb("restart"),  # every session is gone
    ),
}


class Queued(msgspec.Struct, frozen=True, tag_field="type", tag="lock.queued", omit_defaults=True):
    """Somebody asks; what is granted at once is queued first too. ``waiter``: the id of the line;
    ``until_ns``: when it has waited enough; ``session``: with whose end the grant ends, "": with none's."""

    tenant: str
    lock: str
    waiter: str
    actor: str
    mode: str
    ttl_ns: int
    until_ns: int
    session: str = ""


class Granted(msgspec.Struct, frozen=True, tag_field="type", tag="lock.granted"):
    """The head of the queue holds it from now on, each with its fence."""

    tenant: str
    lock: str
    waiters: tuple[str, ...]
    fences: tuple[int, ...]


class Renewed(msgspec.Struct, frozen=True, tag_field="type", tag="lock.renewed"):
    tenant: str
    lock: str
    fence: int
    ttl_ns: int
    until_ns: int


class Released(msgspec.Struct, frozen=True, tag_field="type", tag="lock.released"):
    """``why``: released, expired, session, withdrawn."""

    tenant: str
    lock: str
    fences: tuple[int, ...]
    why: str


class Withdrawn(msgspec.Struct, frozen=True, tag_field="type", tag="lock.withdrawn"):
    """They wait no more. ``why``: waited, session, withdrawn."""

    tenant: str
    lock: str
    waiters: tuple[str, ...]
    why: str


Event = Queued | Granted | Renewed | Released | Withdrawn


class Waiter(msgspec.Struct, frozen=True):
    asked: Queued
    since_ns: int


class Holder(msgspec.Struct, frozen=True):
    """``ttl_ns`` and ``until_ns`` are as granted or renewed last."""

    asked: Queued
    fence: int
    since_ns: int
    ttl_ns: int
    until_ns: int


class Lock(msgspec.Struct, frozen=True):
    """Holders in the order of their fences, waiters in the queue's. Whoever waits, waits for a holder: a lock
    that nobody holds has no queue."""

    tenant: str
    name: str
    newest: int = 0  # the fence granted last; 0: none
    holders: tuple[Holder, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    rev: int = 0

    @property
    def state(self) -> str:
        if not self.holders:
            return "free"
        return "exclusive" if self.holders[0].asked.mode == "x" else "shared"

    @property
    def due_ns(self) -> int:
        """When the first of its holders and waiters ends; 0: it has none."""
        ends = [each.until_ns for each in self.holders] + [each.asked.until_ns for each in self.waiters]
        return min(ends, default=0)

    def holder(self, fence: int) -> Holder | None:
        return next((each for each in self.holders if each.fence == fence), None)

    def granted_to(self, waiter: str) -> Holder | None:
        """What the line of that id holds; None: nothing, not yet or not any more."""
        return next((each for each in self.holders if each.asked.waiter == waiter), None)

    def is_of(self, session: str) -> bool:
        """Whether anything of it ends with the session."""
        asked = [each.asked for each in self.holders] + [each.asked for each in self.waiters]
        return any(each.session == session for each in asked)

    def waits(self, waiter: str) -> bool:
        return any(each.asked.waiter == waiter for each in self.waiters)

    @property
    def heads(self) -> tuple[Waiter, ...]:
        """Those at the head of the queue for whom there is room now."""
        mode = self.waiters[0].asked.mode if self.waiters else ""
        if mode == "s" and self.state != "exclusive":
            room = islice(self.waiters, HOLDERS_MAX - len(self.holders))
            return tuple(takewhile(lambda each: each.asked.mode == "s", room))
        return () if self.holders else self.waiters[:1]

    def busy(self) -> str:
        """Who is in the way, and until when at most, as the error tells it."""
        if not self.holders:
            return "holder=nobody any more"
        last = max(self.holders, key=lambda each: each.until_ns)
        return f"holder={last.asked.actor} until={rfc3339(last.until_ns)}"


@dataclass
class Locks:
    """The locks by tenant and name, and what is found by it."""

    by_tenant: dict[str, dict[str, Lock]] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)  # tenant -> the fence granted last
    busy: dict[tuple[str, str], int] = field(default_factory=dict)  # tenant, name -> when it is due
    # tenant -> names that nobody holds, the one free for longest first
    idle: dict[str, OrderedDict[str, None]] = field(default_factory=dict)

    def copy(self) -> Locks:
        return Locks(
            {tenant: locks.copy() for tenant, locks in self.by_tenant.items()},
            self.newest.copy(),
            self.busy.copy(),
            {tenant: names.copy() for tenant, names in self.idle.items()},
        )

    def find(self, tenant: str, name: str) -> Lock | None:
        return self.by_tenant.get(tenant, {}).get(name)

    def why_fenced(self, tenant: str, name: str, fence: int, time_ns: int) -> str:
        """Why the grant of that fence does not hold at that time; "": it does."""
        lock = self.find(tenant, name)
        holder = lock.holder(fence) if lock is not None else None
        if holder is not None and time_ns < holder.until_ns:
            return ""
        # Of a lock that was forgotten nothing newer than the tenant's newest was granted.
        newest = lock.newest if lock is not None else self.newest.get(tenant, 0)
        return f"token={fence} newest={newest}"


class _Draft:
    """A lock as it will be when the events so far have been applied."""

    def __init__(self, locks: Locks, order: Order, name: str) -> None:
        self.order = order
        self.fence = locks.newest.get(order.tenant, 0)
        self.lock = locks.find(order.tenant, name) or Lock(order.tenant, name)
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.lock = _after(self.lock, event, self.order.time_ns, self.lock.rev)

    def drop(self, over: Callable[[Holder], bool], why: str) -> None:
        """End the grants that are over."""
        if fences := tuple(each.fence for each in self.lock.holders if over(each)):
            self.add(Released(self.lock.tenant, self.lock.name, fences, why))

    def dismiss(self, over: Callable[[Queued], bool], why: str) -> None:
        """Take out of the queue who waits no more."""
        if waiters := tuple(each.asked.waiter for each in self.lock.waiters if over(each.asked)):
            self.add(Withdrawn(self.lock.tenant, self.lock.name, waiters, why))

    def expire(self) -> None:
        """End what time has ended."""
        self.drop(lambda holder: holder.until_ns <= self.order.time_ns, "expired")
        self.dismiss(lambda asked: asked.until_ns <= self.order.time_ns, "waited")

    def promote(self) -> None:
        """Grant to the head of the queue, if there is room for it."""
        if waiters := tuple(each.asked.waiter for each in self.lock.heads):
            fences = tuple(range(self.fence + 1, self.fence + 1 + len(waiters)))
            self.fence = fences[-1]
            self.add(Granted(self.lock.tenant, self.lock.name, waiters, fences))

    def decided(self, reply: str) -> Decided:
        return Decision(tuple(self.events), reply)


Decided = Decision[Event, str]


def decide(locks: Locks, order: Order) -> Decided:
    """What follows from an order to /locks; raises Refusal.

    What time has ended comes before what is asked for. The reply to acquire is the fence, or WAITING."""
    draft = _Draft(locks, order, order.name or order.args["name"])
    order.check_rev(draft.lock.rev)
    draft.expire()
    return _DECIDE[order.verb](locks, draft)


def _acquire(locks: Locks, draft: _Draft) -> Decided:
    order, name = draft.order, draft.lock.name
    args, id = order.args, order.id
    if name in FILES:
        raise refusal(E.EXISTS, f"name={name}")
    ttl_ns = _span(order, "ttl", TTL_MIN_NS, TTL_MAX_NS)
    wait_ns = _span(order, "wait", 0, WAIT_MAX_NS) if "wait" in args else 0
    _check_room(locks, order.tenant, name)
    draft.promote()
    until_ns, session = order.time_ns + wait_ns, args.get("session", "")
    draft.add(Queued(order.tenant, name, id, order.actor, args["mode"], ttl_ns, until_ns, session))
    draft.promote()
    if holder := draft.lock.granted_to(id):
        return draft.decided(str(holder.fence))
    if not wait_ns:
        raise refusal(E.BUSY, draft.lock.busy())
    if len(draft.lock.waiters) > WAITERS_MAX:
        raise refusal(E.QUOTA, f"waiters have={WAITERS_MAX} max={WAITERS_MAX}")
    return draft.decided(WAITING)


def _span(order: Order, arg: str, min_ns: int, max_ns: int) -> int:
    """The duration that ``arg`` says. Refuses what is not between the two, in ns."""
    said = order.args[arg]
    span_ns = parse_duration(said)
    if not min_ns <= span_ns <= max_ns:
        between = f"{duration(min_ns)} to {duration(max_ns)}"
        raise refusal(E.USAGE, f"{order.verb}: {arg}={said}: expected {between}")
    return span_ns


def _check_room(locks: Locks, tenant: str, name: str) -> None:
    names = locks.by_tenant.get(tenant, {})
    if name not in names and len(names) >= LOCKS_MAX and not locks.idle[tenant]:
        raise refusal(E.QUOTA, f"locks have={len(names)} max={LOCKS_MAX}")


def _renew(locks: Locks, draft: _Draft) -> Decided:
    order, holder = draft.order, _holder(locks, draft)
    ttl_ns = _span(order, "ttl", TTL_MIN_NS, TTL_MAX_NS) if "ttl" in order.args else holder.ttl_ns
    of = holder.asked
    draft.add(Renewed(of.tenant, of.lock, holder.fence, ttl_ns, order.time_ns + ttl_ns))
    draft.promote()
    return draft.decided(str(holder.fence))


def _release(locks: Locks, draft: _Draft) -> Decided:
    fence = _holder(locks, draft).fence
    draft.drop(lambda holder: holder.fence == fence, "released")
    draft.promote()
    return draft.decided(str(fence))


def _holder(locks: Locks, draft: _Draft) -> Holder:
    """Whose grant the order's fence is of, when it holds still and is the writer's."""
    order, name = draft.order, draft.lock.name
    fence = int(order.args["fence"])
    holder = draft.lock.holder(fence)
    if holder is None:
        raise refusal(E.FENCED, locks.why_fenced(order.tenant, name, fence, order.time_ns))
    if holder.asked.actor != order.actor:
        raise refusal(E.DENIED, "rule=lock-holder")
    return holder


def _expire(locks: Locks, draft: _Draft) -> Decided:
    draft.promote()
    return draft.decided("ok")


def _withdraw(locks: Locks, draft: _Draft) -> Decided:
    """Whoever asked is gone: it is out of the queue, or gives back what was granted to it meanwhile."""
    waiter = draft.order.args["waiter"]
    draft.dismiss(lambda asked: asked.waiter == waiter, "withdrawn")
    draft.drop(lambda holder: holder.asked.waiter == waiter, "withdrawn")
    draft.promote()
    return draft.decided("ok")


def _end(locks: Locks, draft: _Draft) -> Decided:
    session = draft.order.args["session"]
    draft.dismiss(lambda asked: asked.session == session, "session")
    draft.drop(lambda holder: holder.asked.session == session, "session")
    draft.promote()
    return draft.decided("ok")


def _restart(locks: Locks, draft: _Draft) -> Decided:
    draft.dismiss(lambda asked: True, "session")
    draft.drop(lambda holder: holder.asked.session != "", "session")
    return draft.decided("ok")


_DECIDE: Final[Mapping[str, Callable[[Locks, _Draft], Decided]]] = {
    "acquire": _acquire, "renew": _renew, "release": _release,
    "expire": _expire, "withdraw": _withdraw, "end": _end, "restart": _restart,
}  # fmt: skip


# applying


def apply(locks: Locks, event: Event, meta: Meta) -> None:
    """Change ``locks`` by ``event``."""
    tenant, name = event.tenant, event.lock
    names = locks.by_tenant.setdefault(tenant, {})
    idle = locks.idle.setdefault(tenant, OrderedDict())
    if name not in names and len(names) >= LOCKS_MAX:
        del names[idle.popitem(last=False)[0]]
    lock = _after(names.get(name) or Lock(tenant, name), event, meta.time_ns, meta.seq)
    names[name] = lock
    locks.newest[tenant] = max(lock.newest, locks.newest.get(tenant, 0))
    idle.pop(name, None)
    locks.busy.pop((tenant, name), None)
    if lock.due_ns:
        locks.busy[tenant, name] = lock.due_ns
    else:
        idle[name] = None


def _after(lock: Lock, event: Event, time_ns: int, rev: int) -> Lock:
    """The lock's next record."""
    holders, waiters, newest = lock.holders, lock.waiters, lock.newest
    match event:
        case Queued():
            waiters = (*waiters, Waiter(event, time_ns))
        case Granted():
            # They are the head of the queue.
            heads, waiters = waiters[: len(event.waiters)], waiters[len(event.waiters) :]
            holders += tuple(
                Holder(head.asked, fence, time_ns, head.asked.ttl_ns, time_ns + head.asked.ttl_ns)
                for head, fence in zip(heads, event.fences, strict=True)
            )
            newest = event.fences[-1]
        case Renewed():
            holders = tuple(
                replace(each, ttl_ns=event.ttl_ns, until_ns=event.until_ns)
                if each.fence == event.fence
                else each
                for each in holders
            )
        case Released():
            holders = tuple(each for each in holders if each.fence not in event.fences)
        case Withdrawn():
            waiters = tuple(each for each in waiters if each.asked.waiter not in event.waiters)
    return Lock(lock.tenant, lock.name, newest, holders, waiters, rev)
