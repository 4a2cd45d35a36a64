"""What is recorded of annexes: their devices, who holds how much of them, who waits for it, and which sources
may run. The fold of their events; which event follows from what is core.py. No clock, no I/O.

A grant is of a job, as long as its attempt lasts, or of whoever asked for a lease, until its time is over. A
job may run within its submitter's lease: then it takes of that, and nothing more of the device.

Every grant has a fence. An annex's fences only go on, also when it was removed in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from skep.namespaces.gpu.beat import kind_of
from skep.trace.rules import Meta

V = TypeVar("V")

WITHIN: Final = "lease"  # why a grant has ended that was within a lease which has
# Of an annex at a time, of all its devices. They may end together: what then becomes of the jobs, and who is
# given it instead, is one entry of the ledger, of 64 KiB; one that is too large would never be written.
GRANTS_MAX: Final = 64
FALLEN_MAX: Final = 1000  # fallbacks that are remembered of each annex


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device as it is recorded: ``memory``, bytes, and ``slots`` are what its leases may have together."""

    id: str
    name: str = ""
    uuid: str = ""
    memory: int = 0
    slots: int = 1

    @property
    def kind(self) -> str:
        """cuda or cpu."""
        return kind_of(self.id)


class Offered(msgspec.Struct, frozen=True, tag_field="type", tag="annex.offered", omit_defaults=True):
    """``disabled``: why nothing is to be given to it, as it says itself; "": something is."""

    annex: str
    devices: tuple[Card, ...] = ()
    driver: str = ""
    every_ns: int = 0
    disabled: str = ""


class Disabled(msgspec.Struct, frozen=True, tag_field="type", tag="annex.disabled"):
    """By an operator."""

    annex: str
    reason: str


class Enabled(msgspec.Struct, frozen=True, tag_field="type", tag="annex.enabled"):
    annex: str


class Asked(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.asked", omit_defaults=True):
    """Somebody waits for a lease. ``lease``: the id that it will have; ``until_ns``: when it has waited
    enough; ``device`` "": any."""

    annex: str
    lease: str
    tenant: str
    holder: str
    memory: int
    slots: int
    ttl_ns: int
    until_ns: int
    priority: int
    exclusive: bool = False
    device: str = ""


class Leased(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.leased", omit_defaults=True):
    """``job``: whose attempt it lasts as long as; "": it lasts until ``until_ns``. ``within``: the lease of
    which it takes, "": it takes of the device."""

    annex: str
    device: str
    lease: str
    tenant: str
    holder: str
    memory: int
    slots: int
    fence: int
    priority: int
    exclusive: bool = False
    job: str = ""
    ttl_ns: int = 0
    until_ns: int = 0
    within: str = ""


class Renewed(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.renewed"):
    annex: str
    lease: str
    tenant: str
    ttl_ns: int
    until_ns: int


class Withdrawn(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.withdrawn"):
    """It waits no more. ``why``: waited, withdrawn, disabled, gone, restart."""

    annex: str
    lease: str
    tenant: str
    why: str


class Ended(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.ended", omit_defaults=True):
    """``why``: released, expired, gone (the device has not so much any more), withdrawn, or lease, where it
    was within one that ended. That of a job ends with its attempt, and nothing is said of it here."""

    annex: str
    lease: str
    tenant: str
    why: str
    job: str = ""


class Allowed(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.allowed"):
    """``source``: the SHA-256 of CUDA C source that may run, in hex."""

    source: str
    actor: str
    reason: str


class Forbidden(msgspec.Struct, frozen=True, tag_field="type", tag="gpu.forbidden"):
    source: str


OfAnnex = Offered | Disabled | Enabled | Asked | Leased | Renewed | Withdrawn | Ended
OfSource = Allowed | Forbidden
Event = OfAnnex | OfSource


class Room(NamedTuple):
    """How much somebody wants of a device. ``device`` "": any."""

    memory: int
    slots: int
    exclusive: bool = False
    device: str = ""


class Grant(msgspec.Struct, frozen=True):
    """``ttl_ns`` and ``until_ns`` as granted or renewed last; ``until_ns`` 0: it ends with its job's
    attempt."""

    given: Leased
    since_ns: int
    ttl_ns: int
    until_ns: int

    @property
    def lease(self) -> str:
        return self.given.lease

    @property
    def job(self) -> str:
        return self.given.job

    def is_over(self, now_ns: int) -> bool:
        return 0 < self.until_ns <= now_ns


class Waiter(msgspec.Struct, frozen=True):
    asked: Asked
    since_ns: int

    @property
    def lease(self) -> str:
        return self.asked.lease

    @property
    def room(self) -> Room:
        asked = self.asked
        return Room(asked.memory, asked.slots, asked.exclusive, asked.device)


class Used(NamedTuple):
    """What of a device, or of a lease, is given."""

    memory: int
    slots: int
    exclusive: bool  # somebody has it alone
    leases: int


def used(grants: Iterable[Grant]) -> Used:
    given = [grant.given for grant in grants]
    return Used(
        sum(each.memory for each in given),
        sum(each.slots for each in given),
        any(each.exclusive for each in given),
        len(given),
    )


def fits(memory: int, slots: int, given: Used, room: Room) -> bool:
    """Whether there is room beside what is given of so much."""
    if given.exclusive or (room.exclusive and given.leases):
        return False
    return given.memory + room.memory <= memory and given.slots + room.slots <= slots


class Annex(msgspec.Struct, frozen=True):
    """Grants and waiters by their lease, in the order in which they came."""

    id: str
    rev: int = 0
    cards: tuple[Card, ...] = ()
    driver: str = ""
    every_ns: int = 0
    disabled: str = ""  # why, as it says itself; "": it is not
    off: str = ""  # why, as an operator says; "": it is not
    grants: dict[str, Grant] = {}
    waiters: dict[str, Waiter] = {}

    @property
    def why_disabled(self) -> str:
        """ "": it is not."""
        return self.off or self.disabled

    @property
    def is_full(self) -> bool:
        """Whether it gives nothing more, whatever its devices have."""
        return len(self.grants) >= GRANTS_MAX

    @property
    def due_ns(self) -> int:
        """When the first of its grants and waiters ends; 0: none does by itself."""
        ends = [grant.until_ns for grant in self.grants.values() if grant.until_ns]
        return min(ends + [waiter.asked.until_ns for waiter in self.waiters.values()], default=0)

    def card(self, device: str) -> Card | None:
        return next((card for card in self.cards if card.id == device), None)

    def on(self, device: str) -> Iterator[Grant]:
        """What takes of the device itself."""
        return (g for g in self.grants.values() if g.given.device == device and not g.given.within)

    def within(self, lease: str) -> Iterator[Grant]:
        """What takes of the lease."""
        return (grant for grant in self.grants.values() if grant.given.within == lease)

    def cards_for(self, room: Room) -> list[Card]:
        """Those that could be given, now or later: the one that is asked for, else those of the kind that
        this annex is there for, if they are large enough."""
        kind = "cuda" if any(card.kind == "cuda" for card in self.cards) else "cpu"
        asked = (
            each for each in self.cards if (each.id == room.device if room.device else each.kind == kind)
        )
        return [card for card in asked if room.memory <= card.memory and room.slots <= card.slots]

    def queue(self) -> list[Waiter]:
        """Those who wait, the next one first."""
        return sorted(self.waiters.values(), key=lambda waiter: -waiter.asked.priority)

    def closed_to(self, priority: int) -> frozenset[str]:
        """The devices for which somebody waits who comes before a new one of that priority."""
        before = (each for each in self.waiters.values() if each.asked.priority >= priority)
        return frozenset(card.id for each in before for card in self.cards_for(each.room))

    def place(self, room: Room, closed: Iterable[str] = ()) -> Card | None:
        """The device that has room now, of several the one that has the least left; None: none has.

        So large ones and exclusive ones find room again when small ones have gone."""
        if self.is_full:
            return None
        found = []
        for card in self.cards_for(room):
            given = used(self.on(card.id))
            if card.id not in closed and fits(card.memory, card.slots, given, room):
                found.append((card.memory - given.memory, card))
        return min(found, key=lambda each: each[0])[1] if found else None


class Source(msgspec.Struct, frozen=True):
    actor: str
    reason: str
    since_ns: int
    rev: int


@dataclass
class Annexes:
    """The annexes by node, and what is found by it."""

    by_id: dict[str, Annex] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)  # annex -> the one granted last
    due: dict[str, int] = field(default_factory=dict)  # annex -> when the first of it ends
    of_job: dict[str, str] = field(default_factory=dict)  # job that runs on a device -> annex
    sources: dict[str, Source] = field(default_factory=dict)  # SHA-256 in hex -> by whom it is allowed
    # annex -> job and which of its fallbacks, from 0, the oldest first
    fallen: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    @property
    def disabled(self) -> frozenset[str]:
        """Those to which nothing is given."""
        return frozenset(annex.id for annex in self.by_id.values() if annex.why_disabled)

    def is_disabled(self, annex: str) -> bool:
        found = self.by_id.get(annex)
        return found is not None and found.why_disabled != ""

    def copy(self) -> Annexes:
        return Annexes(
            self.by_id.copy(),
            self.fences.copy(),
            self.due.copy(),
            self.of_job.copy(),
            self.sources.copy(),
            {annex: fallen.copy() for annex, fallen in self.fallen.items()},
        )


# applying


def apply(annexes: Annexes, event: Event, meta: Meta) -> None:
    """Change ``annexes`` by ``event``."""
    match event:
        case Allowed():
            source = Source(event.actor, event.reason, meta.time_ns, meta.seq)
            annexes.sources[event.source] = source
        case Forbidden():
            del annexes.sources[event.source]
        case _:
            annex = annexes.by_id.get(event.annex) or Annex(event.annex)
            _put(annexes, annex, after(annex, event, meta.time_ns, meta.seq))
            if isinstance(event, Leased):
                annexes.fences[event.annex] = event.fence


def after(annex: Annex, event: OfAnnex, time_ns: int, rev: int) -> Annex:
    """The annex's next record."""
    match event:
        case Offered():
            return replace(
                annex, cards=event.devices, driver=event.driver, every_ns=event.every_ns,
                disabled=event.disabled, rev=rev,
            )  # fmt: skip
        case Disabled():
            return replace(annex, off=event.reason, rev=rev)
        case Enabled():
            return replace(annex, off="", rev=rev)
        case Asked():
            waiters = {**annex.waiters, event.lease: Waiter(event, time_ns)}
            return replace(annex, waiters=waiters, rev=rev)
        case Leased():
            grant = Grant(event, time_ns, event.ttl_ns, event.until_ns)
            grants = {**annex.grants, event.lease: grant}
            return replace(annex, grants=grants, waiters=_without(annex.waiters, event.lease), rev=rev)
        case Renewed():
            grant = replace(annex.grants[event.lease], ttl_ns=event.ttl_ns, until_ns=event.until_ns)
            return replace(annex, grants={**annex.grants, event.lease: grant}, rev=rev)
        case Withdrawn():
            return replace(annex, waiters=_without(annex.waiters, event.lease), rev=rev)
        case Ended():
            return replace(annex, grants=_without(annex.grants, event.lease), rev=rev)


def _without(of: dict[str, V], lease: str) -> dict[str, V]:
    return {key: value for key, value in of.items() if key != lease}


def _put(annexes: Annexes, before: Annex, annex: Annex) -> None:
    annexes.by_id[annex.id] = annex
    _index(annexes, annex.id, before.grants, annex.grants)
    annexes.due.pop(annex.id, None)
    if annex.due_ns:
        annexes.due[annex.id] = annex.due_ns


def _index(annexes: Annexes, annex: str, before: dict[str, Grant], now: dict[str, Grant]) -> None:
    """What runs where, after the grants of an annex have become others."""
    for lease, grant in before.items():
        if lease not in now:
            annexes.of_job.pop(grant.job, None)
    for lease, grant in now.items():
        if lease not in before and grant.job:
            annexes.of_job[grant.job] = annex


def without_jobs(annex: Annex, jobs: Iterable[str], rev: int) -> Annex:
    """The annex's record when the attempts of these jobs are over."""
    over = frozenset(jobs)
    grants = {lease: grant for lease, grant in annex.grants.items() if grant.job not in over}
    return replace(annex, grants=grants, rev=rev)


def job_over(annexes: Annexes, job: str, meta: Meta) -> None:
    """The job's attempt is over, and with it what it had of a device."""
    annex = annexes.by_id[annexes.of_job[job]]
    _put(annexes, annex, without_jobs(annex, (job,), meta.seq))


def fell_back(annexes: Annexes, annex: str, job: str, number: int) -> None:
    """A job fell back for that annex's sake: its fallback of that number, from 0."""
    fallen = annexes.fallen.setdefault(annex, [])
    fallen.append((job, number))
    if len(fallen) > FALLEN_MAX:
        del fallen[0]


def removed(annexes: Annexes, annex: str) -> None:
    """The node is forgotten; its fences go on, should another of its name come."""
    found = annexes.by_id.pop(annex, None)
    if found is not None:
        _index(annexes, annex, found.grants, {})
    annexes.due.pop(annex, None)
    annexes.fallen.pop(annex, None)
