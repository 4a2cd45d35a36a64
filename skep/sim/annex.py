"""An annex of a simulated hive: what it offers changes, and it runs jobs on devices under the hive's grants.

A job's input says what it wants of a device, besides how it goes: ``m=<MiB>,s=<slots>,x=1 alone,l=<the lease
that it runs inside>,e=<why the device fails it>``. One annex in two lives by the loops of a worker, the
others by their own, which forget and repeat. No device is there: what is simulated is the hive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from skep.fs.errors import E, FsError
from skep.roles.leased import Fallback, Leased
from skep.roles.worker import Loops, Plan
from skep.sim import drone, hand
from skep.sim.drone import CPU, PASSING, Drone, Held, how_of, on_device
from skep.sim.hand import Remembering, endure
from skep.sim.history import UNSURE, History
from skep.sim.queen import ANNEXES, NEEDS, SPARES
from skep.trace.clock import SECOND, parse_duration

MIB: Final = 1 << 20
EVERY_S: Final = 2.0  # between two heartbeats
LOOK_S: Final = 0.5  # between two askings for room
TRIES: Final = 20  # of what no answer came to
POOLS: Final = (*NEEDS, *NEEDS, *SPARES)  # a slot each


class Card(NamedTuple):
    id: str
    memory: int  # MiB
    slots: int


MACHINES: Final = {
    "a1": (Card("cuda:0", 64, 2), Card("cuda:1", 32, 4)),
    "a2": (Card("cuda:0", 64, 3), Card("cpu:0", 32, 2)),
    "a3": (Card("cpu:0", 96, 2),),
}
# What may become of a machine's devices, by its number in a story.
CHANGES: Final[tuple[Callable[[tuple[Card, ...]], tuple[Card, ...]], ...]] = (
    lambda cards: cards,
    lambda cards: cards[:-1],
    lambda cards: tuple(card._replace(memory=card.memory // 2) for card in cards),
    lambda cards: tuple(card._replace(slots=1) for card in cards),
    lambda cards: (Card("cpu:0", 16, 1),),
    lambda cards: (),
)
OFF: Final = len(CHANGES)  # it says that it is not to be used


class Machine:
    """What an annex is made of now."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.change = 0
        self.changed = asyncio.Event()

    def become(self, change: int) -> None:
        self.change = change
        self.changed.set()

    @property
    def off(self) -> str:
        return "SKEP_NO_CUDA=1" if self.change == OFF else ""

    @property
    def cards(self) -> tuple[Card, ...]:
        return CHANGES[self.change % OFF](MACHINES[self.node])

    def offers(self) -> dict[str, Any]:
        """What its heartbeat says."""
        labels = {"annex": self.node}
        if not self.off and any(card.id.startswith("cuda") for card in self.cards):
            labels["gpu"] = "sim"
        devices = [card._asdict() | {"memory": card.memory * MIB} for card in self.cards]
        beat = {"every": f"{EVERY_S:.0f}s", "devices": devices, "disabled": self.off}
        return {"labels": labels, "annex": beat}

    async def wait_beat(self) -> None:
        """Return when the next heartbeat is due; what has changed is told soon."""
        self.changed.clear()
        try:
            async with asyncio.timeout(EVERY_S):
                await self.changed.wait()
        except TimeoutError:
            pass


def wanted(how: dict[str, str], card: Card) -> dict[str, str]:
    """What ``start`` says of a device."""
    said = {"device": card.id, "memory": str(int(how.get("m", "1")) * MIB), "slots": how.get("s", "1")}
    return said | ({"exclusive": "true"} if "x" in how else {}) | ({"lease": how["l"]} if "l" in how else {})


def reason_of(error: FsError) -> str:
    """Why a job falls back whose start was refused so; "": it may yet be taken."""
    match error.kind:
        case E.QUOTA:
            return "oom"
        case E.EXPIRED:
            return "lease_expired"
        case E.CONFLICT:
            return "disabled" if "is disabled" in error.detail else "no_device"
    return ""


class Annex(Drone):
    """The loops of one life of an annex that misbehaves."""

    def __init__(self, machine: Machine, history: History, past: list[Held]) -> None:
        super().__init__(machine.node, history, past, POOLS, ANNEXES)
        self.machine = machine

    def offers(self) -> dict[str, Any]:
        return self.machine.offers()

    async def wait_beat(self) -> None:
        await self.machine.wait_beat()

    async def work(self, lease: drone.Lease, how: dict[str, str]) -> None:
        device = "cpu"
        if lease.pool in SPARES:
            if not await self.say(lease.job, lease.fence, "start", **CPU):
                return
        else:
            device = await self._begun(lease, how)
            if not device:
                return
        if "e" in how and device != "cpu":
            await self.say(lease.job, lease.fence, "fallback", reason=how["e"], error="it broke")
            return
        await self.end(lease, how, on_device(device, f"{self.node}-{lease.fence}"))

    async def _begun(self, lease: drone.Lease, how: dict[str, str]) -> str:
        """The device on which it runs; "": it does not."""
        reason = "no_device"
        for n in range(TRIES):
            cards = self.machine.cards
            try:
                if cards:
                    card = cards[n % len(cards)]
                    await self.tell(lease.job, lease.fence, "start", **wanted(how, card))
                    return card.id
            except FsError as error:
                if reason := reason_of(error):
                    break
                if error.kind not in (*PASSING, *UNSURE, E.USAGE):
                    return ""
            reason = reason or "full"
            await asyncio.sleep(LOOK_S)
        await self.say(lease.job, lease.fence, "fallback", reason=reason)
        return ""


async def lend(
    machine: Machine, directory: Path, history: History, past: list[Held], told: asyncio.Event
) -> None:
    """One life of an annex, until it is ``told`` to stop."""

    async def perform(leased: Leased) -> str:
        lease, how = leased.lease, how_of(leased.lease.input)
        device = "cpu"
        if lease.pool in SPARES:
            await leased.begin_on(CPU)
        else:
            device = await _begun(machine, leased, how)
        if "e" in how and device != "cpu":
            raise Fallback("it broke", how["e"])
        return on_device(device, f"{machine.node}-{lease.fence}", await endure(leased))

    plan = Plan(
        ANNEXES, machine.node, directory, perform, tuple(dict.fromkeys(POOLS)), grace_s=hand.GRACE_S,
        begins=True, slots_of={pool: POOLS.count(pool) for pool in POOLS}, wait_beat=machine.wait_beat,
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    loops = Loops(plan)
    loops.uplink = Remembering(machine.node, history, past, machine.offers, ANNEXES)
    await loops.run(told, lambda said: None)


async def _begun(machine: Machine, leased: Leased, how: dict[str, str]) -> str:
    """The device on which it runs. Raises Fallback, FsError."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + parse_duration(leased.lease.patience or "5s") / SECOND
    while True:
        if machine.off:
            raise Fallback(machine.off, "disabled")
        for card in machine.cards:
            try:
                await leased.begin_on(wanted(how, card))
                return card.id
            except FsError as error:
                if reason := reason_of(error):
                    raise Fallback(error.detail, reason) from error
                if error.kind not in (E.BUSY, E.USAGE):
                    raise
        if loop.time() >= until_s:
            raise Fallback("no room", "full")
        await asyncio.sleep(LOOK_S)
