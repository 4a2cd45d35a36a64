"""Conversations as a hive records them: a hive behind its gate, clients on Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from skep.fs import messages as m
from skep.fs.dial import Client, login_name
from skep.fs.errors import FsError
from skep.fs.ninept import Header, Record, read
from skep.fs.server import listen
from skep.namespaces.tree import hive_tree
from skep.roles.again import past_wire
from skep.roles.gate import Doorkeeper
from skep.roles.manifest import load
from skep.trace.sqlite import SqliteLedger
from skep.validator.conversation.talk import talk
from skep.validator.conversation.wire import Played, Player, first_seq
from tests.namespaces.hives import Living, living
from tests.validator.recorded import ledger as write_ledger

ME = f"unix:{login_name()}"


class Served:
    """A hive that listens for operators and for workers, and records everybody."""

    def __init__(self, alive: Living, directory: Path) -> None:
        self.alive = alive
        self.directory = directory

    def operator(self, **how: Any) -> Awaitable[Client]:
        return Client.connect(f"unix:{self.directory}/hive.sock", **how)

    def worker(self, node: str) -> Awaitable[Client]:
        return Client.connect(f"unix:{self.directory}/worker.sock", uname=node)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    async with living(directory, str(directory / "ledger.db")) as alive:
        root = hive_tree(alive.hive)
        keepers = {"hive": "operator", "worker": "drone-worker"}
        await alive.write("/log/trace/ctl", f"record principal={ME} on")
        async with (
            listen(Doorkeeper(alive.hive, root, load(keepers["hive"])), f"unix:{directory}/hive.sock"),
            listen(Doorkeeper(alive.hive, root, load(keepers["worker"])), f"unix:{directory}/worker.sock"),
        ):
            yield Served(alive, directory)


async def session_of(client: Client) -> str:
    text = (await client.read_file("/whoami")).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())["session"]


async def unrecorded(served: Served) -> None:
    """Whoever comes from now on is not recorded."""
    await served.alive.write("/log/trace/ctl", f"record principal={ME} off")


class Recording(NamedTuple):
    """A conversation, and the ledger beside it."""

    data: bytes
    bodies: tuple[bytes, ...]

    @property
    def header(self) -> Header:
        return read(self.data)[0]

    def records(self) -> list[Record]:
        return [record for record in read(self.data)[1] if record.kind != "E"]


Story = Callable[[Served], Awaitable[str]]


def record(story: Story) -> Recording:
    """What is said in the session that the story names."""

    async def run() -> Recording:
        with TemporaryDirectory() as name:
            directory = Path(name)
            async with serving(directory) as served:
                session = await story(served)
                while session in served.alive.hive.sessions.by_id:
                    await asyncio.sleep(0)
                await served.alive.hive.tapes.flush()
                seq = served.alive.hive.turn.seq
                bodies = tuple(body for _, body in served.alive.hive.turn.ledger.read(0, seq))
            data = (directory / "log" / "trace" / "sessions" / f"{session}.9pt").read_bytes()
            return Recording(data, bodies)

    return asyncio.run(asyncio.wait_for(run(), 60))


def play(recording: Recording, to_end: bool = True, change: Any = None) -> Played:
    """Played on a fresh hive; ``change``: of what is said, before."""

    async def run() -> Played:
        with TemporaryDirectory() as name:
            path = write_ledger(Path(name) / "ledger.db", recording.bodies)
            with closing(SqliteLedger(str(path))) as ledger:
                header, records = read(recording.data)
                said = list(talk(header, records))
                if change is not None:
                    said = change(said)
                async with past_wire(header, ledger, first_seq(header, said)) as wire:
                    return await Player(header, said, wire, to_end, wire.tree).play()

    return asyncio.run(asyncio.wait_for(run(), 60))


async def _try(client: Client, path: str, line: str = "") -> bytes:
    """Read a file, or write a line to it; refused or not, it is recorded."""
    with contextlib.suppress(FsError):
        if line:
            await client.write_file(path, line.encode())
        else:
            return await client.read_file(path)
    return b""


class Slowly:
    """A client that says nothing before the last word is answered: what is recorded is always the same."""

    FID = 7

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(self, path: str, *lines: bytes, flags: int = 0) -> bytes:
        """Open a file, write lines, read an answer, clunk; what is refused ends it."""
        rpc, names = self.client.rpc, tuple(filter(None, path.split("/")))
        try:
            await rpc(m.Twalk(self.client.root.fid, self.FID, names))
        except FsError:
            return b""
        reply: m.Message = m.Rread(b"")
        with contextlib.suppress(FsError):
            opened = await rpc(m.Tlopen(self.FID, flags))
            assert isinstance(opened, m.Rlopen)
            if path.endswith("clone"):
                reply = await rpc(m.Tread(self.FID, 0, 100))
            for line in lines:
                await rpc(m.Twrite(self.FID, 0, line))
            if opened.qid.type & m.QT.DIR:
                await rpc(m.Treaddir(self.FID, 0, 8192))
            elif not path.endswith("clone"):
                reply = await rpc(m.Tread(self.FID, 0, 65536))
        await rpc(m.Tclunk(self.FID))
        assert isinstance(reply, m.Rread)
        return bytes(reply.data)


async def _operator(served: Served) -> str:
    """Looks around, submits, is refused, makes a draft, writes several lines."""
    async with await served.operator() as client:
        ann = Slowly(client)
        session = (await ann.ask("/whoami")).decode().partition("session ")[2].split()[0]
        await ann.ask("/jobs")
        job = (await ann.ask("/jobs/ctl", b"submit topic=sum input=a key=k\n", flags=2)).decode().split()[0]
        for path in (
            "state",
            "version",
            f"jobs/{job}/state",
            f"jobs/{job}/request.json",
            "events",
            "nowhere",
        ):
            await ann.ask(path)
        await ann.ask("/jobs/ctl", b"submit topic=nobody\n", flags=2)
        served.alive.clock.advance(1_000_000_000)
        # Somebody else, meanwhile.
        other = await served.alive.submit("input=b")
        await ann.ask(f"/jobs/{other}/state")
        await ann.ask("/jobs")
        draft = (await ann.ask("/jobs/clone", b"submit topic=sum input=c\n", flags=2)).decode().strip()
        await ann.ask(f"/jobs/{draft}/state")
        await ann.ask("/jobs/ctl", f"cancel job={other}\ncancel job={job}\n".encode(), flags=2)
        await ann.ask("/jobs/ctl", f"cancel job={job}\n".encode(), flags=2)
        await ann.ask(f"/jobs/{job}/events.jsonl")
    return session


async def _worker(served: Served) -> str:
    """Waits for a job, runs it, waits for the next."""
    async with await served.worker("w3") as w3:
        session = await session_of(w3)
        waiting = asyncio.ensure_future(w3.read_file("/pools/default/next"))
        await asyncio.sleep(0.05)
        job = await served.alive.submit("input=a")
        lease = (await waiting).decode()
        fence = 1
        assert job in lease
        await w3.write_file(f"/jobs/{job}/ctl", f"start fence={fence}\n".encode())
        await w3.write_file(f"/jobs/{job}/ctl", f"ack fence={fence} result=1\n".encode())
        await _try(w3, "/policy/ctl")
        await _try(w3, f"/jobs/{job}/ctl", "renew fence=7\n")
    return session


OPERATOR = cache(lambda: record(_operator))
WORKER = cache(lambda: record(_worker))
