"""How the devices are, read every second by a thread of its own: a driver that hangs holds up no heartbeat.

The latest records are kept here for the people of this machine; the hive gets one with each heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from skep.namespaces.gpu.beat import TEXT_MAX, Beat
from skep.namespaces.gpu.beat import Device as Told
from skep.roles.annex.devices import Device, Machine, Reading
from skep.trace.clock import SECOND, Clock, duration, rfc3339
from skep.trace.ring import Ring

SAMPLE_S: Final = 1.0
STALE_NS: Final = 10 * SECOND  # a driver that tells nothing for so long does nothing either
RING_MAX: Final = 900  # records: a quarter of an hour
SILENT: Final = "its driver does not answer"


class Telemetry:
    """``queue`` tells how many runs wait here for a device."""

    def __init__(
        self, node: str, machine: Machine, every_ns: int, clock: Clock, queue: Callable[[], int]
    ) -> None:
        self.node = node
        self.machine = machine
        self.every_ns = every_ns
        self.clock = clock
        self.queue = queue
        self.records: Ring[bytes] = Ring(RING_MAX)
        self.readings = self._read()
        self._read_ns = clock.monotonic_ns()
        self._told = self.offered  # with the last heartbeat
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within it the devices are read."""
        # One that hangs in a driver does not keep the process from ending.
        threading.Thread(target=self._sample, name="telemetry", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            readings = self._read()
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._take, readings)

    def _read(self) -> dict[str, Reading]:
        return {device.id: self.machine.read(device) for device in self.machine.devices}

    def _take(self, readings: dict[str, Reading]) -> None:
        self.readings, self._read_ns = readings, self.clock.monotonic_ns()
        self.records.append(msgspec.json.encode(self.record()) + b"\n")
        if self.offered != self._told:
            self._changed.set()

    async def wait_beat(self) -> None:
        """Return when the next heartbeat is due: at once when a device was lost, or is there again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.every_ns / SECOND):
                await self._changed.wait()

    # what is told

    @property
    def offered(self) -> tuple[str, ...]:
        """The devices that are of use now."""
        return tuple(device.id for device in self.machine.devices if not self.lost(device))

    def lost(self, device: Device) -> str:
        """Why the device is of no use now; "": it is."""
        if device.kind == "cuda" and self.clock.monotonic_ns() - self._read_ns > STALE_NS:
            return SILENT
        return self.readings[device.id].lost

    @property
    def disabled(self) -> str:
        """Why none of the devices is to be used; "": one is."""
        if self.machine.disabled or self.offered:
            return self.machine.disabled
        first = self.machine.devices[0]
        return _line(f"{first.id}: {self.lost(first)}")

    @property
    def state(self) -> str:
        """ready, disabled, or degraded: not all of its devices are of use."""
        if self.disabled:
            return "disabled"
        return "ready" if len(self.offered) == len(self.machine.devices) else "degraded"

    def beat(self) -> Beat:
        """What the heartbeat says; what changes from then on is told at once."""
        self._changed.clear()
        self._told = self.offered
        return self.now()

    def now(self) -> Beat:
        """What a heartbeat would say."""
        devices = tuple(self._of(device) for device in self.machine.devices if not self.lost(device))
        every = duration(self.every_ns)
        return Beat(self.state, _line(self.machine.driver), every, self.queue(), devices, self.disabled)

    def _of(self, device: Device) -> Told:
        reading = self.readings[device.id]
        return Told(
            device.id,
            _line(device.name),
            _line(device.uuid),
            device.memory,
            device.slots,
            device.memory_total,
            reading.memory_free or 0,
            reading.utilisation,
            reading.temperature,
        )

    def record(self) -> dict[str, object]:
        """One line of telemetry: of all devices together, and of each."""
        beat = self.now()
        rates = [each.utilisation for each in beat.devices if each.utilisation is not None]
        degrees = [each.temperature for each in beat.devices if each.temperature is not None]
        return {
            "annex": self.node,
            "state": beat.state,
            "driver": beat.driver,
            "memory_total": sum(each.memory_total for each in beat.devices),
            "memory_free": sum(each.memory_free for each in beat.devices),
            "utilisation": round(sum(rates) / len(rates), 3) if rates else None,
            "temperature": max(degrees, default=None),
            "queue": beat.queue,
            "time": rfc3339(self.clock.now_ns()),
            "devices": msgspec.to_builtins(beat.devices),
        }


def _line(text: str) -> str:
    """As much of what a driver says as a heartbeat takes."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:TEXT_MAX]
