"""What the devices of annexes have, who holds how much of it, and whether that is ever too much.

An entry takes effect as a whole: what is given is added up after it, not between its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from skep.validator.gpu.claims import Claims
from skep.validator.gpu.told import (
    Asked,
    Device,
    Disabled,
    Enabled,
    Ended,
    Heard,
    Leased,
    Offered,
    Removed,
    Renewed,
)

EXPIRED: Final = "expired"  # why a lease ended whose time was over

Event = Offered | Disabled | Enabled | Asked | Leased | Renewed | Ended | Heard | Removed


@dataclass
class Annex:
    """What is known of one after the entries so far."""

    devices: dict[str, Device] = field(default_factory=dict)
    there: bool = False  # it has said what it offers
    closed: str = ""  # why it says itself that nothing is to be given; "": it does not
    disabled: bool = False  # by an operator
    fence: int = 0  # the newest
    leases: dict[str, Leased] = field(default_factory=dict)  # held by somebody


@dataclass
class Devices:
    """All annexes. Of each entry the events are taken, and then it is settled."""

    claims: Claims
    by_name: dict[str, Annex] = field(default_factory=dict)
    of_job: dict[str, str] = field(default_factory=dict)  # the annex that gives it something
    # Of the entry that is being looked at:
    given: list[Leased] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)  # leases for which somebody waits
    touched: set[str] = field(default_factory=set)  # annexes
    lost: set[str] = field(default_factory=set)  # annexes
    bereft: set[str] = field(default_factory=set)  # jobs that have nothing any more of what was given to them

    def take(self, event: Event, time_ns: int) -> None:
        name = event.node if isinstance(event, Heard | Removed) else event.annex
        if isinstance(event, Heard | Removed) and name not in self.by_name:
            return  # it is no annex
        annex = self.by_name.setdefault(name, Annex())
        self.touched.add(name)
        match event:
            case Offered():
                annex.devices = {device.id: device for device in event.devices}
                annex.closed, annex.there = event.disabled, True
            case Disabled():
                annex.disabled = True
            case Enabled():
                annex.disabled = False
            case Asked():
                self.asked.add(event.lease)
            case Leased():
                self._lease(annex, event, time_ns)
            case Renewed():
                self._renew(annex, event, time_ns)
            case Ended():
                self._end(annex, event, time_ns)
            case Heard():
                if event.link == "lost" and annex.there:
                    self.lost.add(name)
            case Removed():
                # Its fences go on, should another of its name come.
                self.by_name[name] = Annex(fence=annex.fence)

    def leave(self, job: str) -> None:
        """The job's attempt is over, and with it what it had."""
        name = self.of_job.pop(job, "")
        if name:
            leases = self.by_name[name].leases
            for lease in [lease.lease for lease in leases.values() if lease.job == job]:
                del leases[lease]

    def settle(self, time_ns: int) -> None:
        """The entry is over: what its annexes give now, they must have."""
        for name in sorted(self.touched):
            annex = self.by_name[name]
            shares: dict[str, list[Leased]] = {}  # of a device, or of a lease
            for lease in annex.leases.values():
                if lives(lease, time_ns):
                    shares.setdefault(lease.within or lease.device, []).append(lease)
            for whole, leases in shares.items():
                self._add_up(name, whole, annex.leases.get(whole) or annex.devices.get(whole), leases)
        for each in (self.touched, self.given, self.asked, self.lost, self.bereft):
            each.clear()

    def _lease(self, annex: Annex, event: Leased, time_ns: int) -> None:
        check, about = self.claims.check, (event.job, event.annex)
        wrong = f"lease {event.lease} is given, and somebody has it"
        check("order", wrong if event.lease in annex.leases else "", *about)
        wrong = f"fence {event.fence} of lease {event.lease} after {annex.fence}"
        check("fence", wrong if event.fence <= annex.fence else "", *about)
        wrong = f"lease {event.lease} of {event.annex}, which is disabled"
        check("capacity", wrong if annex.disabled or annex.closed else "", *about)
        if not event.job:
            wrong = f"lease {event.lease} is over when it is given"
            check("time", wrong if event.until_ns <= time_ns else "", *about)
        if event.within:
            check("time", _not_within(annex.leases.get(event.within), event, time_ns), *about)
        annex.fence = max(annex.fence, event.fence)
        annex.leases[event.lease] = event
        if event.job:
            self.of_job[event.job] = event.annex
        self.given.append(event)

    def _renew(self, annex: Annex, event: Renewed, time_ns: int) -> None:
        lease = annex.leases.get(event.lease)
        wrong = f"lease {event.lease} is renewed, and nobody has it"
        self.claims.check("order", wrong if lease is None else "", annex=event.annex)
        if lease is not None:
            wrong = f"lease {event.lease} is renewed after its time"
            self.claims.check("time", "" if lives(lease, time_ns) else wrong, annex=event.annex)
            lease.until_ns = event.until_ns

    def _end(self, annex: Annex, event: Ended, time_ns: int) -> None:
        lease = annex.leases.pop(event.lease, None)
        wrong = f"lease {event.lease} ends, and nobody has it"
        self.claims.check("order", wrong if lease is None else "", annex=event.annex)
        if lease is not None:
            early = event.why == EXPIRED and lives(lease, time_ns)
            wrong = f"lease {event.lease} ends before its time"
            self.claims.check("time", wrong if early else "", lease.job, event.annex)
            if lease.job:
                del self.of_job[lease.job]
                self.bereft.add(lease.job)

    def _add_up(self, annex: str, name: str, whole: Device | Leased | None, shares: list[Leased]) -> None:
        memory, slots = sum(each.memory for each in shares), sum(each.slots for each in shares)
        wrong = ""
        if whole is None:
            wrong = f"{annex} gives of {name}, which is not there"
        elif memory > whole.memory:
            wrong = f"{name} of {annex} gives {memory} bytes of {whole.memory}"
        elif slots > whole.slots:
            wrong = f"{name} of {annex} gives {slots} slots of {whole.slots}"
        self.claims.check("capacity", wrong, annex=annex)
        alone = [each.lease for each in shares if each.exclusive]
        if alone:
            wrong = f"{name} of {annex} is {alone[0]}'s alone, and {len(shares)} have it"
            self.claims.check("exclusive", wrong if len(shares) > 1 else "", annex=annex)


def _not_within(outer: Leased | None, inner: Leased, time_ns: int) -> str:
    """Why a job may not run within the lease; "": it may."""
    name = inner.within
    if outer is None:
        return f"it runs within lease {name}, which nobody has"
    if not lives(outer, time_ns):
        return f"it runs within lease {name} after its time"
    if outer.job or (outer.tenant, outer.holder) != (inner.tenant, inner.holder):
        return f"it runs within lease {name}, which is another's"
    return "" if outer.device == inner.device else f"it runs within lease {name} of {outer.device}"


def lives(lease: Leased, now_ns: int) -> bool:
    """Whether its time goes on. One whose end the hive has not written down yet may be over already."""
    return not lease.until_ns or now_ns < lease.until_ns
