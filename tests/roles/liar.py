"""A hive as a witness sees it, that shows whatever view of its log it likes."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.fs.address import Address
from skep.fs.ctl import parse_line
from skep.fs.errors import E, FsError
from skep.fs.server import listen
from skep.fs.shapes import Stream, Text, Transaction
from skep.namespaces.rows import Followed
from skep.namespaces.seen import Witness
from skep.roles.uplink import Uplink
from skep.roles.witness import tree
from skep.roles.witnessing import Follower, Peer, exchange
from skep.trace.checkpoint import Checkpoint
from skep.trace.clock import Clock, SystemClock
from skep.trace.entry import leaf_hash
from skep.trace.note import Note, Signing, Vkey, parse_note, sign_note
from tests.trace import tlog

ORIGIN = "h1/log/trace"
KEYS = [Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(3)]
VKEYS = [Vkey(ORIGIN, key.public) for key in KEYS]


def leaves(size: int, fork: int = 1 << 30) -> list[bytes]:
    """Of a log of so many entries, which are others from ``fork`` on."""
    return [leaf_hash(f"{n} {n >= fork}".encode()) for n in range(size)]


class Liar:
    """``view``: what it shows now. ``told``: what was written to its ctl; ``taken``: the notes handed in."""

    def __init__(self, view: list[bytes], key: Signing = KEYS[0]) -> None:
        self.view = view
        self.key = key
        self.shown = Vkey(ORIGIN, key.public)  # the key that it says is its own
        self.handovers = b""
        self.proves = True  # whether it proves what it shows
        self.told: list[str] = []
        self.taken: list[Note] = []
        self.moved = asyncio.Event()

    def show(self, view: list[bytes], key: Signing | None = None) -> None:
        self.view, self.key = view, key or self.key
        self.moved.set()
        self.moved = asyncio.Event()

    def note(self, size: int) -> bytes:
        return sign_note(Checkpoint(ORIGIN, size, tlog.mth(self.view[:size])).text(), ORIGIN, [self.key])

    def body(self, old: int, size: int) -> bytes:
        """An add-checkpoint."""
        proof = tlog.proof(old, self.view[:size]) if old and self.proves else []
        return "\n".join([f"old {old}", *(b64encode(each).decode() for each in proof), "", ""]).encode() + (
            self.note(size)
        )

    def root(self) -> dict[str, object]:
        served = {"add-cosignature": Transaction(self.take), "ctl": Text("", 0o666, self.tell)}
        trace = {
            "keys": Text(lambda: f"{self.shown} active\n"),
            "handovers": Text(lambda: self.handovers),
            "proof": {"consistency": Transaction(self.prove)},
            "witness": Followed(served, {"offered": lambda old: Stream(lambda caller: Offered(self, old))}),
        }
        return {"log": {"trace": trace}}

    def take(self, caller: object, said: bytes) -> str:
        self.taken.append(parse_note(said))
        return ""

    def tell(self, caller: object, said: bytes) -> None:
        self.told.append(said.decode())

    def prove(self, caller: object, said: bytes) -> bytes:
        args = parse_line(f"consistency {said.decode().strip()}").args
        old, size = int(args["old"]), int(args["size"])
        if not old <= size <= len(self.view) or not self.proves:
            raise FsError(E.USAGE, f"old={old} size={size}: the checkpoint has {len(self.view)}")
        return self.body(old, size)


class Offered:
    """What is beyond ``old``, waited for."""

    def __init__(self, liar: Liar, old: int) -> None:
        self.liar = liar
        self.old = old
        if old > len(liar.view):
            raise FsError(E.CONFLICT, f"rewound: here are {len(liar.view)} entries, not {old}")

    async def next(self) -> bytes:
        while len(self.liar.view) <= self.old:
            await self.liar.moved.wait()
        return self.liar.body(self.old, len(self.liar.view))

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


class Following:
    """Witnesses in this process, each with a directory, a hive of its own to follow and a socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.witnesses: list[Witness] = []
        self.tasks: list[asyncio.Task[None]] = []

    def address(self, name: str) -> Address:
        return Address("unix", path=str(self.directory / f"{name}.sock"))

    async def wait(self, *tasks: asyncio.Task[None]) -> None:
        done, _ = await asyncio.wait(tasks or self.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


@contextlib.asynccontextmanager
async def following(
    directory: Path, *liars: Liar, peers: bool = False, keys: Sequence[Vkey] = VKEYS[:1],
    first: bool = False, clock: Clock | None = None,
) -> AsyncIterator[Following]:  # fmt: skip
    """A witness for each of the hives, within the ``with``; with ``peers`` they know each other."""
    found = Following(directory)
    async with contextlib.AsyncExitStack() as stack:
        for n, liar in enumerate(liars):
            await stack.enter_async_context(listen(liar.root(), found.address(f"h{n}")))
            witness = Witness(directory / f"w{n}", f"w{n}.example", clock or SystemClock())
            if keys:
                witness.trust(ORIGIN, keys)
            found.witnesses.append(witness)
            await stack.enter_async_context(listen(tree(witness), found.address(f"w{n}")))
        for n, witness in enumerate(found.witnesses):
            uplink = Uplink(found.address(f"h{n}"), "")
            follower = Follower(witness, uplink, 0.01, first)
            found.tasks += [asyncio.create_task(uplink.keep()), asyncio.create_task(follower.follow())]
            others = [Peer(found.address(f"w{m}")) for m in range(len(liars)) if m != n]
            if peers:
                found.tasks.append(asyncio.create_task(exchange(others, [follower], 0.01)))
        try:
            yield found
        finally:
            for task in found.tasks:
                task.cancel()
            await asyncio.wait(found.tasks)


async def until(condition: object) -> None:
    """Return when ``condition()`` holds."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
