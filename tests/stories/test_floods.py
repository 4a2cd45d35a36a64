"""A running hive among peers that send garbage, say nothing, or never read: the others are served as before.

What it costs is bounded: memory by the limits of fs/session and fs/server, for each such peer.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import uvloop
from queens import LEASES, Queen, read, reigning, say

from skep.fs.messages import (
    NOFID,
    NONUNAME,
    NOTAG,
    Dialect,
    Message,
    Rversion,
    Tattach,
    Tlopen,
    Tread,
    Tversion,
    Twalk,
    Twrite,
)
from skep.fs.session import MSIZE_MAX, OUT_MAX
from skep.fs.wire import pack, unpack

SEED: Final = 11
MIB: Final = 1 << 20
HEADER: Final = struct.Struct("<I")
STUCK_S: Final = 0.3  # the queen takes nothing more from a peer when it took nothing for so long
FRAMES_MAX: Final = 6000  # that one peer sends without reading: more than TAGS_MAX
GARBAGE: Final = 200  # peers of each kind
SILENT: Final = 1000
HALF: Final = 32
DEAF: Final = 4
ROOT_FID, FID = 0, 1
LATENCY_MAX_S: Final = 2.0  # of a job's way through the hive meanwhile, on a busy machine
MEMORY_MAX: Final = 64 * MIB + HALF * MSIZE_MAX + 5 * DEAF * (OUT_MAX + 2 * MIB)


class Peer:
    """A peer that does on its socket what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @staticmethod
    async def dial(address: str) -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address.removeprefix("unix:"))
        return Peer(sock)

    @staticmethod
    async def attached(address: str, uname: str) -> Peer:
        """One that has been civil so far."""
        peer = await Peer.dial(address)
        assert isinstance(await peer.ask(Tversion(MSIZE_MAX, Dialect.L.value), NOTAG), Rversion)
        await peer.ask(Tattach(ROOT_FID, NOFID, uname, "", NONUNAME))
        return peer

    async def opened(self, path: str, flags: int) -> Peer:
        await self.ask(Twalk(ROOT_FID, FID, tuple(path.strip("/").split("/"))))
        await self.ask(Tlopen(FID, flags))
        return self

    async def ask(self, message: Message, tag: int = 1) -> Message:
        await self.send(pack(tag, message, Dialect.L))
        head = await self._take(HEADER.size)
        (size,) = HEADER.unpack(head)
        return unpack(memoryview(head + await self._take(size - HEADER.size)), Dialect.L)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
            assert piece
            data += piece
        return data

    async def send_all_it_takes(self, frames: Iterator[bytes]) -> bool:
        """Send without reading; whether the queen took no more before the frames' end."""
        for frame in frames:
            try:
                async with asyncio.timeout(STUCK_S):
                    await self.send(frame)
            except TimeoutError:
                return True
        return False

    async def wait_gone(self) -> None:
        """Return when the queen has ended the connection."""
        with suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(self.sock, MIB):
                pass


# those who are not to blame


class Honest:
    """A person and a worker, who go on through it all."""

    def __init__(self, queen: Queen) -> None:
        self.queen = queen
        self.took_s: list[float] = []  # each job, from its submission to the end of its wait
        self.moved = asyncio.Condition()

    async def submit(self) -> None:
        async with await self.queen.operator() as client:
            while True:
                began = time.monotonic()
                (job,) = await say(client, "/jobs/ctl", "submit topic=sum input=1")
                assert "succeeded" == await read(client, f"/jobs/{job}/wait")
                async with self.moved:
                    self.took_s.append(time.monotonic() - began)
                    self.moved.notify_all()

    async def work(self) -> None:
        async with await self.queen.worker("honest") as client:
            while True:
                await client.write_file("/nodes/honest/heartbeat", b"{}")
                async with await client.open("/pools/brief/next") as fid:
                    lease: dict[str, Any] = msgspec.json.decode(await fid.read(0, fid.unit))
                for verb in ("start", "ack"):
                    await say(client, f"/jobs/{lease['job']}/ctl", f"{verb} fence={lease['fence']}")

    async def wait_jobs(self, more: int) -> None:
        """Return when so many more jobs have been done."""
        goal = len(self.took_s) + more
        async with self.moved:
            await self.moved.wait_for(lambda: len(self.took_s) >= goal)


# those who are


async def garbage(address: str, rng: random.Random) -> None:
    """Bytes without meaning, at once or after a civil beginning; the queen hangs up or waits for more."""
    for n in range(GARBAGE):
        peer = await (Peer.dial(address) if n % 2 else Peer.attached(address, f"g{n}"))
        with closing(peer.sock):
            noise = rng.randbytes(rng.randrange(1, 4096))
            # A frame of a plausible length is looked into.
            size = len(noise) if n % 4 < 2 else rng.randrange(7, 64)
            with suppress(ConnectionError):
                await peer.send(HEADER.pack(size + HEADER.size) + noise)
                if n % 8 == 0:
                    # Far beyond any frame: that ends it.
                    await peer.send(b"\xff" * 2 * MSIZE_MAX)
                    await peer.wait_gone()


def reads(length: int) -> Iterator[bytes]:
    """Tread after Tread of FID, each with its own tag as long as there are some."""
    return (pack(n % 0xFFF0, Tread(FID, 0, length), Dialect.L) for n in range(FRAMES_MAX))


def writes(data: bytes) -> Iterator[bytes]:
    return (pack(n % 0xFFF0, Twrite(FID, 0, data), Dialect.L) for n in range(FRAMES_MAX))


async def deaf(queen: Queen, data: str, peers: list[Peer]) -> Counter[str]:
    """Peers that ask much and never read; how many of them the queen stopped listening to, by what they ask
    of. ``data``: a file of a MiB."""
    stories: list[tuple[str, str, int, Callable[[], Iterator[bytes]]]] = [
        (queen.socket, data, 0, lambda: reads(MSIZE_MAX)),
        (queen.socket, "/events", 0, lambda: reads(MSIZE_MAX)),
        (queen.socket, "/events@0", 0, lambda: reads(MSIZE_MAX)),
        (queen.socket, "/jobs/ctl", 1, lambda: writes(b"#" * 8000 + b"\nnonsense\n")),
        (queen.worker_socket, "/state", 0, lambda: reads(MSIZE_MAX)),
    ]
    stuck: Counter[str] = Counter()
    for address, path, flags, frames in stories:
        for n in range(DEAF):
            uname = f"deaf{n}" if address == queen.worker_socket else ""
            peer = await (await Peer.attached(address, uname)).opened(path, flags)
            peers.append(peer)
            stuck[path] += await peer.send_all_it_takes(frames())
    return stuck


@pytest.mark.slow
def test_a_hive_serves_others_among_garbage_silence_and_peers_that_never_read(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    figures: dict[str, str] = {}

    async def run() -> None:
        rng = random.Random(SEED)
        peers: list[Peer] = []
        async with reigning(tmp_path / "hive", *LEASES) as queen:
            honest = Honest(queen)
            tasks = [asyncio.create_task(work) for work in (honest.submit(), honest.work())]
            try:
                async with await queen.operator() as client:
                    await client.write_file("/artifacts/stage/data", bytes(MIB), create=True)
                    (digest,) = await say(client, "/artifacts/ctl", "seal name=data")
                data = f"/artifacts/{digest}/data"
                await honest.wait_jobs(50)
                before = queen.memory()

                def note(what: str) -> None:
                    assert not any(task.done() for task in tasks), tasks
                    figures[what] = f"{(queen.memory() - before) / MIB:.0f} MiB more"

                for address in (queen.socket, queen.worker_socket):
                    await garbage(address, rng)
                note("garbage")
                for address in (queen.socket, queen.worker_socket):
                    peers += [await Peer.dial(address) for _ in range(SILENT // 2)]
                note("silent")
                for _ in range(HALF):
                    peer = await Peer.attached(queen.socket, "")
                    peers.append(peer)
                    await peer.send(HEADER.pack(MSIZE_MAX) + bytes([100, 0, 0]) + bytes(MSIZE_MAX // 2))
                note("half a frame")
                figures["no more taken"] = str(stuck := await deaf(queen, data, peers))
                # Small answers fit the sockets' buffers; large ones are not made before there is room.
                assert DEAF == stuck[data]
                note("deaf")
                await honest.wait_jobs(50)
                assert queen.memory() - before < MEMORY_MAX
                for peer in peers:
                    peer.sock.close()
                await honest.wait_jobs(50)
                note("gone")
            finally:
                for task in tasks:
                    task.cancel()
                for peer in peers:
                    peer.sock.close()
                await asyncio.wait(tasks)
            figures["memory before"] = f"{before / MIB:.0f} MiB"
            figures["jobs"] = str(len(honest.took_s))
            figures["longest s"] = f"{max(honest.took_s):.2f}"
            assert max(honest.took_s) < LATENCY_MAX_S
            assert "Traceback" not in queen.said()

    try:
        uvloop.run(run())
    finally:
        print(figures)
    record_property("figures", str(figures))
