"""What this annex itself uses of its devices for the runs that it does, so that it asks the hive for no more
than there can be. The hive decides: the leases of others take from the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from skep.native.kernels.arguments import PROCESS
from skep.native.kernels.process import Process
from skep.roles.annex.devices import Device

LOOK_S: Final = 1.0  # between two looks whether there is memory again


@dataclass
class Use:
    """What a run has: of a device, or of the CPU beside them (None). ``process``: None until it begins."""

    job: str
    device: Device | None
    memory: int  # bytes
    slots: int
    exclusive: bool
    since_ns: int
    process: Process | None = None

    @property
    def arrays(self) -> int:
        """Bytes of its memory that are not an allowance for its process, on a CPU."""
        return self.memory - PROCESS


class Room:
    def __init__(self) -> None:
        self.uses: dict[str, Use] = {}  # by job
        self.waiting = 0  # runs that there is no room for
        self._freed = asyncio.Event()

    def open_to(
        self, devices: Sequence[Device], memory: Callable[[str], int], slots: int, exclusive: bool
    ) -> list[Device]:
        """The devices with room for a run, the one first that has the least left: so there is room for large
        ones again when small ones have gone. ``memory``: bytes that it takes of a device of a kind."""
        found = []
        for device in devices:
            uses = [use for use in self.uses.values() if use.device is device]
            left = device.memory - sum(use.memory for use in uses)
            alone = any(use.exclusive for use in uses) or (exclusive and uses)
            free = device.slots - sum(use.slots for use in uses)
            if not alone and memory(device.kind) <= left and slots <= free:
                found.append((left, device))
        return [device for _, device in sorted(found, key=lambda each: each[0])]

    def left(self, device: Device) -> int:
        """Bytes of the device that no run has."""
        return device.memory - sum(use.memory for use in self.uses.values() if use.device is device)

    def take(self, use: Use) -> None:
        self.uses[use.job] = use

    def take_back(self, use: Use) -> None:
        """The hive has not granted it: who waits has no more room than before."""
        if self.uses.get(use.job) is use:
            del self.uses[use.job]

    def free(self, use: Use) -> None:
        """The run is over."""
        if self.uses.get(use.job) is use:
            del self.uses[use.job]
            self._freed.set()

    async def wait_beside(self, use: Use, most: int) -> None:
        """Take it when what runs beside the devices comes to no more than so many bytes with it, of arrays: a
        host that has no memory left ends whatever it likes."""
        while sum(each.arrays for each in self.uses.values() if each.device is None) + use.arrays > most:
            await self.wait_freed(LOOK_S)
        self.take(use)

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Within it a run waits."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def wait_freed(self, seconds: float) -> None:
        """Return when a run has ended, or after so many seconds."""
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._freed.wait()
