"""The processes that kernels run in, each beside this one, on threads that wait for them.

One runs for one lease at a time. Afterwards it is kept warm for the next run of the same tenant on the same
device: never for another's, never after a run that did not end well, never after source that was brought. One
more is started ahead, for the next who has none: it has touched no device yet.

A process that has run on a GPU holds a context there, of which no lease knows once its run is over. Such ones
wait only while their contexts are in nobody's way: who begins a run says what of the device is left."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from skep.native.kernels.arguments import CONTEXT
from skep.native.kernels.process import Process
from skep.native.kernels.request import Done, Request, RunError

IDLE_S: Final = 60.0  # a process that nobody has needed for so long keeps memory from others
HARMLESS: Final = ("argument", "unsigned")  # what was refused before anything ran


@dataclass
class Kept:
    """A process that waits for a run of its tenant."""

    process: Process
    tenant: str
    expiry: asyncio.TimerHandle | None = None  # None: not set yet


@dataclass
class Place:
    """Of one device: those that wait, the one that waits longest first, and how many run."""

    idle: list[Kept] = field(default_factory=list)
    running: int = 0


class Processes:
    """``slots``: how many there may be of each device, as Request.device calls it."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        self._slots = slots
        self._places = {device: Place() for device in slots}
        self._killed: set[Process] = set()  # of those that run
        self._threads = ThreadPoolExecutor(sum(slots.values()), "kernel")
        self._ahead = ThreadPoolExecutor(1, "spare")  # starts one, which takes longer than most runs
        self._spare: Process | None = None  # it is started; None: not yet
        self._starting: Process | None = None

    def prepare(self) -> None:
        """Have one that is started, for the next who has none."""
        if self._spare is None and self._starting is None:
            process = self._starting = Process(warm=True)
            starting = asyncio.get_running_loop().run_in_executor(self._ahead, process.start)
            starting.add_done_callback(functools.partial(self._prepared, process))

    def _prepared(self, process: Process, starting: asyncio.Future[None]) -> None:
        self._starting = None
        # Where it cannot be, who needs one is told so.
        if starting.exception() is None:
            self._spare = process

    async def run(
        self, tenant: str, request: Request, at: Callable[[Process], None], left: int | None = None
    ) -> Done:
        """Run it in a process, which ``at`` is told. ``left``: bytes of its device that no run has, this one
        neither; None: it is no GPU. Cancelled, the process is killed. Raises RunError."""
        place = self._places[request.device]
        process = self._taken(place, tenant, self._slots[request.device])
        if left is not None:
            self._make_room(place, left)
        at(process)
        place.running += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, process.run, request)
        running.add_done_callback(functools.partial(self._over, place, tenant, process, request))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # Given up in the moment in which it ended, its process may be another's already.
            if not running.done():
                self._killed.add(process)
                process.kill()
                await asyncio.wait((running,))
            raise

    def _over(
        self, place: Place, tenant: str, process: Process, request: Request, ran: asyncio.Future[Done]
    ) -> None:
        """Whoever waited for the run or no more: its process is kept, or ends."""
        place.running -= 1
        error = ran.exception()
        well = error is None or (isinstance(error, RunError) and error.why in HARMLESS)
        if well and request.source is None and process not in self._killed:
            self._keep(place, tenant, process)
        else:
            self._killed.discard(process)
            process.end()

    def _taken(self, place: Place, tenant: str, slots: int) -> Process:
        """One that waits for this tenant, the one that ran last; else a new one, maybe in another's place."""
        for kept in [each for each in place.idle if each.process.died]:
            self._expire(place, kept)
        for kept in reversed(place.idle):
            if kept.tenant == tenant:
                self._drop(place, kept)
                return kept.process
        while place.idle and place.running + len(place.idle) >= slots:
            self._expire(place, place.idle[0])
        spare, self._spare = self._spare, None
        if spare is not None and spare.died:
            spare.end()
            spare = None
        self.prepare()
        return spare or Process(warm=True)

    def _make_room(self, place: Place, left: int) -> None:
        """End those that wait whose contexts take what somebody else has."""
        while len(place.idle) * CONTEXT > left and place.idle:
            self._expire(place, place.idle[0])

    def _keep(self, place: Place, tenant: str, process: Process) -> None:
        kept = Kept(process, tenant)
        kept.expiry = asyncio.get_running_loop().call_later(IDLE_S, self._expire, place, kept)
        place.idle.append(kept)

    def _expire(self, place: Place, kept: Kept) -> None:
        self._drop(place, kept)
        kept.process.end()

    def _drop(self, place: Place, kept: Kept) -> None:
        assert kept.expiry is not None
        kept.expiry.cancel()
        place.idle.remove(kept)

    def close(self) -> None:
        """End those that wait; whoever runs one has been cancelled."""
        if self._starting is not None:
            self._starting.kill()
        if self._spare is not None:
            self._spare.end()
        for place in self._places.values():
            for kept in list(place.idle):
                self._expire(place, kept)
        self._threads.shutdown(wait=False)
        self._ahead.shutdown(wait=False)
