"""A queen as a process of its own, to be killed, stopped and started again; and the ledger it leaves.

Needs no more of the hive than its command line, its sockets and its ledger's file.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from skep.fs.dial import Client
from skep.fs.messages import Dialect
from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.trace.entry import Entry, entry_decoder
from skep.trace.fold import apply_entry, tail_entries
from skep.trace.ledger import open_ledger
from tests.decided import check_directory

ROOT = Path(__file__).parents[2]
LEASES = ("create pool=brief lease=2s", "map topic=sum pool=brief")
"""Lines for /pools/ctl: jobs of topic sum wait in a pool whose leases are short."""


class Queen:
    """The queen of ``directory``: ``begin`` and ``kill`` as often as wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = f"unix:{directory}/hive.sock"
        self.worker_socket = f"unix:{directory}/worker.sock"
        self.log = directory.with_name(f"{directory.name}.log")
        self.ready = asyncio.Event()  # it serves, as far as anybody has seen
        self.process: asyncio.subprocess.Process | None = None  # None: it was never begun

    async def spawn(self) -> None:
        """Start the process; it is not ready yet."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "skep", "serve", "--dir", str(self.directory)),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def wait_ready(self) -> None:
        """Return when it serves. Raises AssertionError with what it said when it ends instead."""
        assert self.process is not None
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line == b"ready\n":
                self.ready.set()
                return
        raise AssertionError(f"the queen ended: {self.said()}")

    async def begin(self) -> float:
        """Start it and wait until it serves; how long that took, in seconds."""
        began = time.monotonic()
        await self.spawn()
        await self.wait_ready()
        return time.monotonic() - began

    async def end(self, number: signal.Signals) -> int:
        """Send it a signal; its exit status."""
        assert self.process is not None
        self.ready.clear()
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    async def kill(self) -> None:
        """The end without a word."""
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL, self.said()

    def said(self) -> str:
        """What it has written to stderr."""
        return self.log.read_text()

    def memory(self) -> int:
        """Bytes of resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    async def operator(self) -> Client:
        return await Client.connect(self.socket)

    async def worker(self, node: str, dialect: Dialect = Dialect.L) -> Client:
        return await Client.connect(self.worker_socket, uname=node, dialect=dialect)


@asynccontextmanager
async def reigning(directory: Path, *lines: str) -> AsyncIterator[Queen]:
    """A queen that serves, ``lines`` written to its /pools/ctl; dead afterwards, and what it wrote down is
    decided again."""
    queen = Queen(directory)
    try:
        await queen.begin()
        async with await queen.operator() as client:
            for line in lines:
                await say(client, "/pools/ctl", line)
        yield queen
    finally:
        await queen.end(signal.SIGKILL)
    check_directory(directory)


async def say(client: Client, path: str, *lines: str) -> list[str]:
    """Write the lines in one write, as one transaction; the first word of each reply."""
    data = "".join(f"{line}\n" for line in lines).encode()
    async with await client.open(path, "rw") as fid:
        assert len(data) == await fid.write(0, data)
        return [line.split()[0] for line in (await fid.read(0, fid.unit)).decode().splitlines()]


async def read(client: Client, path: str) -> str:
    """A file that holds one value."""
    return (await client.read_file(path)).decode().strip()


def history(path: Path) -> tuple[HiveState, list[Entry[Any]]]:
    """The ledger at ``path``, read afresh: verified, folded, and as it is written. Raises LedgerTampered."""
    rules = HiveRules()
    state = rules.fresh()
    with closing(open_ledger(str(path))) as ledger:
        entries = list(tail_entries(ledger, entry_decoder(Event)))
    for entry in entries:
        apply_entry(rules, state, entry)
    return state, entries


def events_of(entries: list[Entry[Any]], kind: type) -> Iterator[Any]:
    """The events of a kind, in their order."""
    return (event for entry in entries for event in entry.events if isinstance(event, kind))
