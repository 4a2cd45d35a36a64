"""A validator: takes the runs that were asked of /validator, and does them as any outsider could.

    <directory>/checkpoint   the last one that was found to be consistent: the next must continue it
    <directory>/jobs/        as a worker's

It is a worker of the pool validator: leases, renewals, what follows a death are worker.py's and leased.py's.
What it reads, tiles and entries, comes in windows and is believed under the signed checkpoint alone. A run is
done on a thread of its own, which asks the session for what it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.link import Standing
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.validator.runs import DIFF, LINES, POOL, REPLAY, TOPICS, Asked, report_name
from skep.roles.leased import RESULT_MAX, JobFailed, Leased, LeaseLost, cut
from skep.roles.uplink import Uplink
from skep.roles.worker import Plan
from skep.trace.checkpoint import parse_checkpoint
from skep.trace.clock import SECOND, SystemClock
from skep.trace.note import NoteError, Vkey, parse_note
from skep.trace.tiles import BUNDLE_MAX, ENTRIES, WIDTH
from skep.validator.examine import Examined, Impossible, compare, examine

log = logging.getLogger("skep.validator")
TRACE: Final = "/log/trace"
CHECKPOINT: Final = "checkpoint"
TELL_S: Final = 1.0  # between two reports of how far a run is


def plan(
    hive: Address,
    node: str,
    directory: Path,
    keys: Sequence[Vkey] = (),
    standing: Callable[[], Standing] | None = None,
) -> Plan:
    """What a worker is told to be a validator. ``keys``: who is trusted from the first run on."""
    validator = Validator(directory, keys)
    return Plan(hive, node, directory, validator.perform, (POOL,), standing=standing)


class Validator:
    """What is remembered between runs. They come one at a time."""

    def __init__(self, directory: Path, keys: Sequence[Vkey] = ()) -> None:
        self.directory = directory
        self.keys = keys

    async def perform(self, leased: Leased) -> str:
        """Do the run of the lease; the verdict. Raises JobFailed, FsError, LeaseLost."""
        lease = leased.lease
        if lease.topic not in TOPICS or lease.tenant != HIVE_TENANT:
            known = " ".join(TOPICS)
            raise JobFailed(f"{lease.topic} of {lease.tenant}: expected {known} of {HIVE_TENANT}", final=True)
        asked = msgspec.json.decode(lease.input or "{}", type=Asked)
        plain = msgspec.structs.replace(asked, content="")
        examined = Examined(lease.job, lease.topic, plain, metadata.version("skep"), self._kept())
        clock = SystemClock()
        began_ns = clock.monotonic_ns()
        await self._examine(leased, examined, asked.content)
        examined.seconds = round((clock.monotonic_ns() - began_ns) / SECOND, 3)
        await _keep(leased, examined)
        if examined.checkpoint and examined.finding is None:
            self._remember(examined.checkpoint)
        return cut(examined.verdict.encode(), RESULT_MAX)

    async def _examine(self, leased: Leased, examined: Examined, content: str) -> None:
        reading = Reading(leased.uplink, passes=1 + (examined.what == REPLAY))

        if examined.what == DIFF:
            await _fetch_both(leased, examined.asked)

        def work() -> None:
            with contextlib.suppress(Stopped):
                if examined.what == DIFF:
                    compare(examined, leased.directory)
                else:
                    examine(examined, content, reading.read, self.keys)

        # The thread ends when it reads next; until then the slot is its own.
        leased.lingering = asyncio.ensure_future(asyncio.to_thread(work))
        telling = asyncio.create_task(_tell(leased, reading))
        try:
            await asyncio.shield(leased.lingering)
        except (FsError, asyncio.CancelledError):
            raise
        except (Impossible, NoteError) as error:
            raise JobFailed(str(error), final=True) from error
        except Exception as error:
            # What is read may be made to find a mistake of ours: it ends the run, not the validator.
            log.exception("%s", leased.lease.job)
            raise JobFailed(f"{type(error).__name__}: {error}", "mistake", final=True) from error
        finally:
            reading.stop()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    # the checkpoint that is kept

    def _kept(self) -> str:
        """It is "" at the first run."""
        try:
            return (self.directory / CHECKPOINT).read_text("utf-8")
        except FileNotFoundError:
            return ""

    def _remember(self, checkpoint: str) -> None:
        """On disk, before anybody hears the verdict."""
        new = self.directory / f"{CHECKPOINT}.new"
        with new.open("w", encoding="utf-8") as file:
            file.write(checkpoint)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.directory / CHECKPOINT)
        folder = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Stopped(Exception):
    """The run is not ours any more."""


class Reading:
    """What the thread of a run reads, from the loop of the session; how far it has come."""

    def __init__(self, uplink: Uplink, passes: int) -> None:
        """``passes``: how often the log is read in all."""
        self._uplink = uplink
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._passes = passes
        self.entries = 0  # read until now
        self.size = 0  # to be read in all; 0: not known yet

    def read(self, name: str) -> bytes | None:
        """A resource of the log; None: there is none. On the thread. Raises Stopped, FsError."""
        data = asyncio.run_coroutine_threadsafe(self._fetch(name), self._loop).result()
        if data is not None and name.startswith(f"tile/{ENTRIES}/"):
            self.entries += WIDTH
        if data is not None and name == CHECKPOINT:
            self.size = self._passes * _size_of(data)
        return data

    async def _fetch(self, name: str) -> bytes | None:
        if self._over.is_set():
            raise Stopped(name)
        try:
            path = f"{TRACE}/{name}"
            return await self._uplink.do(lambda client: client.read_file(path, BUNDLE_MAX), self._over)
        except FsError as error:
            if error.kind is E.MISSING:
                return None
            if self._over.is_set():
                raise Stopped(name) from error
            raise

    def stop(self) -> None:
        self._over.set()


def _size_of(checkpoint: bytes) -> int:
    """How many entries it says it has; 0: it is none, which verifying tells."""
    try:
        return parse_checkpoint(parse_note(checkpoint).text).size
    except NoteError:
        return 0


async def _tell(leased: Leased, reading: Reading) -> None:
    """Say how far it is, until cancelled; until the lease is lost, which who watches it hears."""
    clock = SystemClock()
    began_ns = clock.monotonic_ns()
    with contextlib.suppress(FsError, LeaseLost):
        while True:
            await asyncio.sleep(TELL_S)
            entries = min(reading.entries, reading.size)
            rate = round(entries * SECOND / (clock.monotonic_ns() - began_ns))
            percent = 100 * entries // reading.size if reading.size else None
            await leased.report(percent, f"{entries} of {reading.size} entries read, {rate}/s")


async def _fetch_both(leased: Leased, asked: Asked) -> None:
    """Have the two files that are to be compared in the job's directory. Raises JobFailed, FsError."""
    for name in (asked.a, asked.b):
        file = leased.made() / name
        file.parent.mkdir(exist_ok=True)
        try:
            await leased.uplink.do(_fetching(name, file))
        except FsError as error:
            if error.kind is not E.MISSING:
                raise
            raise JobFailed(f"{name}: there is no such file in {TRACE}", final=True) from error


def _fetching(name: str, to: Path) -> Callable[[Client], Awaitable[None]]:
    async def fetch(client: Client) -> None:
        with to.open("wb") as file:
            async with await client.open(f"{TRACE}/{name}") as fid:
                async for piece in fid.pieces():
                    file.write(piece)

    return fetch


async def _keep(leased: Leased, examined: Examined) -> None:
    """Make artifacts of the report, and of what was found."""
    report = msgspec.json.encode(examined) + b"\n"
    await leased.keep(report_name(leased.lease.job), io.BytesIO(report), "audit")
    if lines := examined.lines():
        said = "".join(f"{line}\n" for line in lines)
        await leased.keep(LINES, io.BytesIO(said.encode()), "audit")
