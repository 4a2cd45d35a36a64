"""Deciding about annexes: who is given how much of a device, and when that ends. No clock, no I/O.

A device is shared by what fits into its memory and its slots together, or had by one alone. Who waits comes
in the order of priority, then of time, and nobody that wants the same device overtakes, not a job either:
else small ones would keep a large one out for ever. What time has ended comes before what is asked for,
whether or not the timer has said so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.gpu.beat import DEVICE, SLOTS_MAX
from skep.namespaces.gpu.record import (
    GRANTS_MAX,
    WITHIN,
    Allowed,
    Annex,
    Annexes,
    Asked,
    Card,
    Disabled,
    Enabled,
    Ended,
    Event,
    Forbidden,
    Grant,
    Leased,
    OfAnnex,
    Offered,
    Renewed,
    Room,
    Waiter,
    Withdrawn,
    after,
    fits,
    used,
    without_jobs,
)
from skep.namespaces.gpu.verbs import PRIORITY
from skep.namespaces.order import Order, refusal
from skep.trace.clock import HOUR, SECOND, US, duration, parse_duration
from skep.trace.rules import Decision

TTL_MIN_NS: Final = SECOND  # shorter ones would end before a busy hive has heard their renewal.
TTL_MAX_NS: Final = 24 * HOUR  # what is held by nobody any more stands in the way so long, at most.
WAIT_MAX_NS: Final = HOUR  # a client that wants to wait longer asks again.
WAITERS_MAX: Final = 32  # of one annex: each is a call that waits; many may be granted in one entry.
WAITERS_OF_ONE: Final = 16  # of one holder: the others are to find a place in the queue, too.
SOURCES_MAX: Final = 4096  # that are allowed at a time
WAITING: Final = "waiting"  # the reply to a lease that is in the queue.

_cards: Final = msgspec.json.Decoder(tuple[Card, ...])


class World(Protocol):
    """What the other nouns know of annexes."""

    def annex_state(self, annex: str) -> str:
        """The node's: online, suspect, lost, left, cordoned, draining …; "": there is no such annex."""


class Run(NamedTuple):
    """Whose job it is that starts."""

    job: str
    tenant: str
    actor: str
    priority: int


class _Draft:
    """An annex as it will be when the events so far have been applied."""

    def __init__(self, annexes: Annexes, order: Order, annex: Annex) -> None:
        self.order = order
        self.annex = annex
        self.fence = annexes.fences.get(annex.id, 0)
        self.events: list[Event] = []

    def add(self, event: OfAnnex) -> None:
        self.events.append(event)
        self.annex = after(self.annex, event, self.order.time_ns, self.annex.rev)

    def end(self, grant: Grant, why: str) -> None:
        """End a grant, with what is within it."""
        given = grant.given
        self.add(Ended(self.annex.id, given.lease, given.tenant, why, given.job))
        for inner in list(self.annex.within(given.lease)):
            self.end(inner, WITHIN)

    def dismiss(self, over: Callable[[Waiter], bool], why: str) -> None:
        """Take out of the queue who waits no more."""
        for waiter in [each for each in self.annex.waiters.values() if over(each)]:
            self.add(Withdrawn(self.annex.id, waiter.lease, waiter.asked.tenant, why))

    def expire(self) -> None:
        """End what time has ended."""
        now_ns = self.order.time_ns
        for grant in [each for each in self.annex.grants.values() if each.is_over(now_ns)]:
            self.end(grant, "expired")
        self.dismiss(lambda waiter: waiter.asked.until_ns <= now_ns, "waited")

    def next_fence(self) -> int:
        """Microseconds since 1970, or one more than the last: a count of grants would tell tenants of each
        other's."""
        self.fence = max(self.fence + 1, self.order.time_ns // US)
        return self.fence

    def give(self, asked: Asked, device: str) -> None:
        """Grant what is asked for."""
        self.add(
            Leased(
                asked.annex, device, asked.lease, asked.tenant, asked.holder, asked.memory, asked.slots,
                self.next_fence(), asked.priority, asked.exclusive,
                ttl_ns=asked.ttl_ns, until_ns=self.order.time_ns + asked.ttl_ns,
            )
        )  # fmt: skip

    def promote(self) -> None:
        """Give to those who wait what there is room for."""
        closed: set[str] = set()
        for waiter in () if self.annex.why_disabled else self.annex.queue():
            card = self.annex.place(waiter.room, closed)
            if card is None:
                closed.update(each.id for each in self.annex.cards_for(waiter.room))
            else:
                self.give(waiter.asked, card.id)

    def decided(self, reply: str) -> Decided:
        return Decision(tuple(self.events), reply)


Decided = Decision[Event, str]


def decide(annexes: Annexes, order: Order, world: World) -> Decided:
    """What follows from an order to /gpu; raises Refusal."""
    if order.place == "sources/ctl":
        return _SOURCES[order.verb](annexes, order)
    if order.verb == "offer":
        return _offer(_Draft(annexes, order, annexes.by_id.get(order.name) or Annex(order.name)))
    annex = annexes.by_id.get(order.name)
    if annex is None:
        raise refusal(E.MISSING, order.name)
    draft = _Draft(annexes, order, annex)
    order.check_rev(annex.rev)
    draft.expire()
    return _DECIDE[order.verb](draft, world)


# what an annex has


def _offer(draft: _Draft) -> Decided:
    """The annex's devices are others, or it has said for the first time which."""
    args, annex = draft.order.args, draft.annex
    try:
        cards = _cards.decode(args["devices"])
    except msgspec.DecodeError as error:
        raise refusal(E.SCHEMA, f"devices: {error}") from error
    every_ns, disabled = parse_duration(args["every"]), args.get("disabled", "")
    event = Offered(annex.id, cards, args.get("driver", ""), every_ns, disabled)
    known = (annex.cards, annex.driver, annex.every_ns, annex.disabled)
    if known == (event.devices, event.driver, event.every_ns, event.disabled):
        return draft.decided(annex.id)
    draft.expire()
    draft.add(event)
    for device in dict.fromkeys(grant.given.device for grant in annex.grants.values()):
        _shrink(draft, device)
    draft.dismiss(lambda waiter: not draft.annex.cards_for(waiter.room), "gone")
    if disabled:
        draft.dismiss(lambda waiter: True, "disabled")
    draft.promote()
    return draft.decided(annex.id)


def _shrink(draft: _Draft, device: str) -> None:
    """End what the device has not any more, the newest first."""
    card = draft.annex.card(device)
    for grant in reversed(list(draft.annex.on(device))):
        given = used(draft.annex.on(device))
        if card is not None and given.memory <= card.memory and given.slots <= card.slots:
            return
        draft.end(grant, "gone")


def _disable(draft: _Draft, world: World) -> Decided:
    reason = draft.order.args.get("reason", "") or "by an operator"
    if reason != draft.annex.off:
        draft.add(Disabled(draft.annex.id, reason))
    draft.dismiss(lambda waiter: True, "disabled")
    return draft.decided(draft.annex.id)


def _enable(draft: _Draft, world: World) -> Decided:
    if draft.annex.off:
        draft.add(Enabled(draft.annex.id))
    draft.promote()  # what is over is for those who wait, whatever was asked
    why = draft.annex.disabled
    return draft.decided(draft.annex.id + (f" is disabled still, by itself: {why}" if why else ""))


def gone(annexes: Annexes, order: Order) -> tuple[Event, ...]:
    """What of the annex ends when its node is removed by the order."""
    annex = annexes.by_id.get(order.args["node"])
    if annex is None:
        return ()
    draft = _Draft(annexes, order, annex)
    for grant in annex.grants.values():
        if grant.lease in draft.annex.grants:
            draft.end(grant, "gone")
    draft.dismiss(lambda waiter: True, "gone")
    return tuple(draft.events)


# leases


def _lease(draft: _Draft, world: World) -> Decided:
    order, annex = draft.order, draft.annex
    args = order.args
    ttl_ns = _span(order, "ttl", TTL_MIN_NS, TTL_MAX_NS)
    wait_ns = _span(order, "wait", 0, WAIT_MAX_NS) if "wait" in args else 0
    room = room_of(order.verb, order.args)
    _check_open(annex, world.annex_state(annex.id))
    _check_size(annex, room)
    asked = Asked(
        annex.id, order.id, order.tenant, order.actor, room.memory, room.slots, ttl_ns,
        order.time_ns + wait_ns, int(args.get("priority", PRIORITY)), room.exclusive, room.device,
    )  # fmt: skip
    draft.promote()
    card = draft.annex.place(room, draft.annex.closed_to(asked.priority))
    if card is not None:
        draft.give(asked, card.id)
        return draft.decided(told(draft.annex.grants[order.id]))
    if not wait_ns:
        raise refusal(E.QUOTA, have(draft.annex, room))
    if len(draft.annex.waiters) >= WAITERS_MAX:
        raise refusal(E.QUOTA, f"waiters have={WAITERS_MAX} max={WAITERS_MAX}")
    holders = [(each.asked.tenant, each.asked.holder) for each in draft.annex.waiters.values()]
    if holders.count((asked.tenant, asked.holder)) >= WAITERS_OF_ONE:
        raise refusal(E.QUOTA, f"waiters have={WAITERS_OF_ONE} max={WAITERS_OF_ONE} of one holder")
    draft.add(asked)
    return draft.decided(WAITING)


def told(grant: Grant) -> str:
    """The reply to a lease that was granted."""
    given = grant.given
    return f"{given.lease} fence={given.fence} device={given.device}"


def have(annex: Annex, room: Room) -> str:
    """What is given of the device that has least to do with the refusal of so much."""
    cards = annex.cards_for(room)
    if not cards:
        return f"annex={annex.id} has no device that is large enough any more"
    card = min(cards, key=lambda card: used(annex.on(card.id)).memory)
    given = used(annex.on(card.id))
    alone = " exclusive" if given.exclusive else ""
    ahead = f" waiting={len(annex.waiters)}" if annex.waiters else ""
    ahead += f" leases have={GRANTS_MAX} max={GRANTS_MAX}" if annex.is_full else ""
    return (
        f"annex={annex.id} device={card.id} "
        f"memory have={given.memory} max={card.memory} want={room.memory} "
        f"slots have={given.slots} max={card.slots} want={room.slots}{alone}{ahead}"
    )


def room_of(verb: str, args: Mapping[str, str]) -> Room:
    """What ``lease`` or ``start`` wants of a device; raises Refusal."""
    slots, device, memory = int(args.get("slots", 1)), args.get("device", ""), args.get("memory", "0")
    if not 1 <= slots <= SLOTS_MAX:
        raise refusal(E.USAGE, f"{verb}: slots={slots}: expected 1 to {SLOTS_MAX}")
    if device and DEVICE.fullmatch(device) is None:
        raise refusal(E.USAGE, f"{verb}: device={device}: expected cuda:<n> or cpu:<n>")
    if not ctl.is_size(memory):
        raise refusal(E.USAGE, f"{verb}: memory={memory}: expected bytes, like 4GiB or 65536")
    return Room(ctl.size(memory), slots, args.get("exclusive") == "true", device)


def _span(order: Order, arg: str, min_ns: int, max_ns: int) -> int:
    """The duration that ``arg`` says. Refuses what is not between the two, in ns."""
    said = order.args[arg]
    span_ns = parse_duration(said)
    if not min_ns <= span_ns <= max_ns:
        between = f"{duration(min_ns)} to {duration(max_ns)}"
        raise refusal(E.USAGE, f"{order.verb}: {arg}={said}: expected {between}")
    return span_ns


def _check_open(annex: Annex, state: str) -> None:
    """Refuse where nothing is given now."""
    if annex.why_disabled:
        raise refusal(E.CONFLICT, f"annex={annex.id} is disabled: {annex.why_disabled}")
    if state != "online":
        raise refusal(E.CONFLICT, f"annex={annex.id} is {state or 'gone'}")


def _check_size(annex: Annex, room: Room) -> None:
    """Refuse what no device could ever give: waiting would be in vain."""
    if room.device and annex.card(room.device) is None:
        known = " ".join(card.id for card in annex.cards) or "none"
        raise refusal(E.USAGE, f"device={room.device}: expected one of annex={annex.id}: {known}")
    if not annex.cards_for(room):
        cards = [card for card in annex.cards if room.device in ("", card.id)]
        memory = max((card.memory for card in cards), default=0)
        slots = max((card.slots for card in cards), default=0)
        want = f"memory max={memory} want={room.memory} slots max={slots} want={room.slots}"
        raise refusal(E.QUOTA, f"annex={annex.id} has no device so large: {want}")


def _renew(draft: _Draft, world: World) -> Decided:
    order, grant = draft.order, _held(draft)
    ttl_ns = _span(order, "ttl", TTL_MIN_NS, TTL_MAX_NS) if "ttl" in order.args else grant.ttl_ns
    until_ns = order.time_ns + ttl_ns
    draft.add(Renewed(draft.annex.id, grant.lease, grant.given.tenant, ttl_ns, until_ns))
    draft.promote()  # as above
    return draft.decided(told(grant))


def _release(draft: _Draft, world: World) -> Decided:
    grant = _held(draft)
    draft.end(grant, "released")
    draft.promote()
    return draft.decided(grant.lease)


def _held(draft: _Draft) -> Grant:
    """The lease that the order names, when it holds still and is the writer's."""
    order, annex = draft.order, draft.annex
    lease, fence = order.args["lease"], int(order.args["fence"])
    grant = annex.grants.get(lease)
    # Another tenant's lease, and a job's, are not there for who writes.
    if grant is None or grant.job or grant.given.tenant != order.tenant or grant.given.fence != fence:
        raise refusal(E.FENCED, f"lease={lease} token={fence}")
    if grant.given.holder != order.actor:
        raise refusal(E.DENIED, "rule=lease-holder")
    return grant


def _expire(draft: _Draft, world: World) -> Decided:
    draft.promote()
    return draft.decided("ok")


def _withdraw(draft: _Draft, world: World) -> Decided:
    """Who asked is gone: it is out of the queue, or gives back what was granted to it meanwhile."""
    lease = draft.order.args["lease"]
    draft.dismiss(lambda waiter: waiter.lease == lease, "withdrawn")
    if grant := draft.annex.grants.get(lease):
        draft.end(grant, "withdrawn")
    draft.promote()
    return draft.decided("ok")


def _restart(draft: _Draft, world: World) -> Decided:
    draft.dismiss(lambda waiter: True, "restart")
    return draft.decided("ok")


_DECIDE: Final[Mapping[str, Callable[[_Draft, World], Decided]]] = {
    "lease": _lease, "renew": _renew, "release": _release, "disable": _disable, "enable": _enable,
    "expire": _expire, "withdraw": _withdraw, "restart": _restart,
}  # fmt: skip


# jobs


def is_start(order: Order) -> bool:
    """Whether a job starts that takes of a device of an annex: on cuda:0 or cpu:0, not on cpu."""
    return order.verb == "start" and ":" in order.args.get("device", "")


def grant(annexes: Annexes, order: Order, run: Run) -> tuple[Event, ...]:
    """What follows from a job's start on a device of the annex that writes it, in the order's ``device``,
    ``memory``, ``slots``, ``exclusive`` and ``lease``; raises Refusal: E.BUSY when there is no room for it
    now, E.QUOTA when there never is."""
    annex = annexes.by_id.get(order.node)
    if annex is None:
        raise refusal(E.USAGE, f"start: device={order.args['device']}: node={order.node} is no annex")
    draft = _Draft(annexes, order, annex)
    draft.expire()
    room = room_of(order.verb, order.args)
    _check_open(annex, "online")  # it speaks
    _check_size(annex, room)
    draft.promote()
    within = order.args.get("lease", "")
    if within:
        room_left = _check_within(draft.annex, within, room, run)
    else:
        closed = draft.annex.closed_to(run.priority)
        room_left = draft.annex.place(room, closed) is not None
    if not room_left:
        raise refusal(E.BUSY, have(draft.annex, room) + (f" lease={within}" if within else ""))
    draft.add(
        Leased(
            annex.id, room.device, order.id, run.tenant, run.actor, room.memory, room.slots,
            draft.next_fence(), run.priority, room.exclusive, run.job, within=within,
        )
    )  # fmt: skip
    return tuple(draft.events)


def _check_within(annex: Annex, lease: str, room: Room, run: Run) -> bool:
    """Whether there is room in the submitter's lease now. Refuses what can never run inside it."""
    outer = annex.grants.get(lease)
    if outer is None or outer.job or outer.given.tenant != run.tenant:
        raise refusal(E.EXPIRED, f"lease={lease}: it is over, or none of annex={annex.id}")
    if outer.given.holder != run.actor:
        raise refusal(E.DENIED, f"rule=lease-holder lease={lease}")
    given = outer.given
    if room.device != given.device:
        raise refusal(E.USAGE, f"start: device={room.device}: lease={lease} is of {given.device}")
    if room.memory > given.memory or room.slots > given.slots:
        want = f"memory max={given.memory} want={room.memory} slots max={given.slots} want={room.slots}"
        raise refusal(E.QUOTA, f"lease={lease} {want}")
    return not annex.is_full and fits(given.memory, given.slots, used(annex.within(lease)), room)


def freed(annexes: Annexes, order: Order, jobs: Iterable[str]) -> tuple[Event, ...]:
    """What else follows from an order that ends the attempts of these jobs: who waited is given it."""
    over: dict[str, list[str]] = {}
    for job in jobs:
        over.setdefault(annexes.of_job[job], []).append(job)
    events: list[Event] = []
    for id, ended in over.items():
        annex = annexes.by_id[id]
        if annex.waiters:
            draft = _Draft(annexes, order, without_jobs(annex, ended, annex.rev))
            draft.expire()
            draft.promote()
            events += draft.events
    return tuple(events)


# sources


def _allow(annexes: Annexes, order: Order) -> Decided:
    source = order.args["source"].removeprefix("sha256:")
    if source in annexes.sources:
        return Decision((), source)
    if len(annexes.sources) >= SOURCES_MAX:
        raise refusal(E.QUOTA, f"sources have={SOURCES_MAX} max={SOURCES_MAX}")
    return Decision((Allowed(source, order.actor, order.args.get("reason", "")),), source)


def _forbid(annexes: Annexes, order: Order) -> Decided:
    source = order.args["source"].removeprefix("sha256:")
    return Decision((Forbidden(source),) if source in annexes.sources else (), source)


_SOURCES: Final[Mapping[str, Callable[[Annexes, Order], Decided]]] = {"allow": _allow, "forbid": _forbid}
