"""A drone-worker: takes leases of its pools and does the jobs, one at a time in each slot.

One job's life is leased.py's; the session that may be lost meanwhile is uplink.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from skep.fs.address import Address
from skep.fs.ctl import line
from skep.fs.errors import FsError
from skep.fs.link import Standing
from skep.roles.alone import Held, alone
from skep.roles.leased import Lease, Leased, Perform
from skep.roles.signals import told_signals
from skep.roles.uplink import Uplink

log = logging.getLogger("skep.worker")
HEARTBEAT_S: Final = 5.0  # three missed ones make a node suspect
RETRY_S: Final = 2.0  # after a pool refused: it may be made, opened or resumed any time
FAREWELL_S: Final = 1.0  # for saying that we go
PARTING_S: Final = 5.0  # for giving back what still runs when its grace is over
LOCK: Final = "worker.lock"


def host_node() -> str:
    """What a node is called that has no name: as its host."""
    return re.sub("[^a-z0-9-]", "-", socket.gethostname().lower()).strip("-")


class WorkerError(Exception):
    """The worker cannot begin; the text says why."""


class Plan(msgspec.Struct, frozen=True):
    """What a worker is told. ``slots``: jobs at a time, of each pool. ``standing``: what each of its sessions
    is opened with, for TLS and for nothing else. ``capacity``: what it says that it can do at a time."""

    hive: Address
    node: str
    directory: Path
    perform: Perform
    pools: tuple[str, ...] = ("default",)
    slots: int = 1
    standing: Callable[[], Standing] | None = None
    grace_s: float | None = None  # for what runs when told to stop; None: as long as it takes
    labels: dict[str, str] = {}
    capacity: int = 0  # 0: all its slots
    quiet_s: float = 0.0  # how long a job runs before the hive is told that it does; 0: that is said first
    begins: bool = False  # what does a job says itself that it runs, and on what
    slots_of: Mapping[str, int] = {}  # of single pools, in place of ``slots``
    beat: Callable[[], Mapping[str, object]] = dict  # what its heartbeats say besides
    wait_beat: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(HEARTBEAT_S)

    @property
    def slots_all(self) -> int:
        return sum(self.slots_of.get(pool, self.slots) for pool in self.pools)


def held_by(jobs: Path) -> list[tuple[str, str]]:
    """Job and fence of the leases that a worker had there which was killed: their directories are left."""
    if not jobs.is_dir():
        return []
    parts = (path.name.rpartition(".") for path in jobs.iterdir())
    return [(job, fence) for job, _, fence in parts if job and fence.isdecimal()]


async def work(plan: Plan, say: Callable[[str], None]) -> None:
    """Work until told to stop; then finish what runs, taking nothing new. ``say`` gets ``ready`` when the
    hive has taken us in. Raises WorkerError, FsError when the hive refuses the node."""
    with told_signals() as told:
        await drive(plan, told, say)


async def drive(plan: Plan, told: asyncio.Event, say: Callable[[str], None]) -> None:
    """As ``work``, until ``told``, which is no signal's."""
    plan.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with alone(plan.directory / LOCK):
            await Loops(plan).run(told, say)
    except Held as error:
        raise WorkerError(f"{plan.directory}: another worker (pid {error}) uses it") from None


class Loops:
    """The loops of one node."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.uplink = Uplink(plan.hive, plan.node, plan.standing)
        self.running: dict[str, Leased] = {}  # by job
        self.stopping = asyncio.Event()
        self.uploading = asyncio.Lock()  # staged names are the node's: one job stages at a time
        self.jobs = plan.directory / "jobs"
        self._heartbeat = f"/nodes/{plan.node}/heartbeat"

    async def run(self, told: asyncio.Event, say: Callable[[str], None]) -> None:
        """Until ``told``, then until what runs has ended, or was given back; told again, that is left
        undone."""
        left = held_by(self.jobs)
        shutil.rmtree(self.jobs, ignore_errors=True)
        self.jobs.mkdir(mode=0o700)  # what jobs compute on is for nobody else of this machine
        keeping = asyncio.create_task(self.uplink.keep())
        returning = asyncio.create_task(self._give_back(left))
        beating = asyncio.create_task(self._beat(say))
        slots = [
            asyncio.create_task(self._slot(pool))
            for pool in self.plan.pools
            for _ in range(self.plan.slots_of.get(pool, self.plan.slots))
        ]
        telling = asyncio.create_task(self._tell(told))
        always = [keeping, beating, telling, returning]
        try:
            waited: set[asyncio.Task[None]] = {*slots, *always}
            while any(not slot.done() for slot in slots):
                done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if telling in done:
                    break
            await self._part()
        finally:
            for task in [*slots, *always]:
                task.cancel()
            await asyncio.wait([*slots, *always])

    async def _tell(self, told: asyncio.Event) -> None:
        """Returns when told to stop for the second time, or when what ran on had its time."""
        await told.wait()
        log.info("stopping: %d jobs are run to their end", len(self.running))
        told.clear()
        self.stopping.set()
        try:
            async with asyncio.timeout(self.plan.grace_s):
                await told.wait()
        except TimeoutError:
            for leased in self.running.values():
                log.info("%s: given back", leased.lease.job)
                leased.leave()
            # A hive that is away hears nothing of it: the leases end by themselves.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PARTING_S):
                    await told.wait()

    async def _give_back(self, leases: list[tuple[str, str]]) -> None:
        """Release these, which nobody works on: until their end they would count as ours."""
        for job, fence in leases:
            # Refused, it has ended meanwhile or is another's.
            with contextlib.suppress(FsError):
                await self.uplink.write(f"/jobs/{job}/ctl", line("release", {"fence": fence}))
                log.info("%s: given back, for the worker that had it was killed", job)

    async def _beat(self, say: Callable[[str], None]) -> None:
        said = False
        while True:
            await self.uplink.write(self._heartbeat, msgspec.json.encode(self._state()).decode())
            if not said:
                said = True
                say(f"ready {self.plan.node}")
            await self.plan.wait_beat()

    async def _part(self) -> None:
        """Tell the hive that we go; one that is away does not hear it."""
        state = {**self._state(), "leaving": True}
        with contextlib.suppress(TimeoutError, FsError):
            async with asyncio.timeout(FAREWELL_S):
                await self.uplink.write(self._heartbeat, msgspec.json.encode(state).decode())

    def _state(self) -> dict[str, object]:
        return (
            {
                "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 3),
                "memory_free": os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
                "capacity": self.plan.capacity or self.plan.slots_all,
                "running": len(self.running),
                "version": metadata.version("skep"),
            }
            | ({"labels": self.plan.labels} if self.plan.labels else {})
            | dict(self.plan.beat())
        )

    async def _slot(self, pool: str) -> None:
        """Take a lease, do its job, and again, until told to stop. How a job ended is told while the next
        lease is asked for, so that both share a commit."""
        async with asyncio.TaskGroup() as group:
            last: asyncio.Task[None] | None = None  # None: nothing was done yet
            while (lease := await self._lease(pool)) is not None:
                place = self.jobs / f"{lease.job}.{lease.fence}"
                leased = Leased(
                    lease, self.uplink, place, self.uploading, self.plan.quiet_s, self.plan.begins
                )
                doing = group.create_task(self._do(leased))
                await leased.ending.wait()
                if last is not None:
                    await last  # of no more than one job the hive is still to be told
                last = doing

    async def _lease(self, pool: str) -> Lease | None:
        """None: told to stop."""
        while not self.stopping.is_set():
            try:
                data = await self.uplink.wait_read(f"/pools/{pool}/next", self.stopping)
            except FsError as error:
                if self.stopping.is_set():
                    return None
                log.warning("pool %s: %s; trying again", pool, error)
                await self._pause(RETRY_S)
                continue
            if data:
                return msgspec.structs.replace(msgspec.json.decode(data, type=Lease), pool=pool)
        return None

    async def _do(self, leased: Leased) -> None:
        job = leased.lease.job
        self.running[job] = leased
        try:
            await leased.run(self.plan.perform)
        finally:
            leased.ending.set()
            # The job may be ours again already, in another slot.
            if self.running.get(job) is leased:
                del self.running[job]

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            pass
