"""The trees, the gate and the raw connections that the protocol's tests are played on.

Two trees: ``aname`` "" is a synthetic one with a file of each shape, "host" an exported temporary directory.
Anybody may attach but carol, who must prove who she is; bob sees less and writes nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from skep.fs import ctl
from skep.fs.chan import EVERYTHING, Chan, Right, View
from skep.fs.conversation import Conversation, Gate, Peer
from skep.fs.errors import E, FsError
from skep.fs.export import Export
from skep.fs.messages import NONUNAME, QT, Dialect, Message, Rversion, Tversion
from skep.fs.node import Caller, Handle, How, Node
from skep.fs.shapes import Append, Blob, Ctl, File, Memory, Stream, Text, Transaction
from skep.fs.tree import Clone, Dir, Exclusive, Listing
from skep.fs.wire import HEADER, WireError, negotiate, pack, unpack

USERS = {500: "alice", 501: "bob", 502: "carol"}
WAIT_S = 10.0


class Feed:
    """A source of lines for each open of a stream."""

    def __init__(self) -> None:
        self.sources: list[Pieces] = []
        self.undelivered: list[bytes] = []

    def open(self, caller: Caller) -> Pieces:
        self.sources.append(Pieces(self))
        return self.sources[-1]

    def feed(self, piece: bytes) -> None:
        for source in self.sources:
            source.queue.put_nowait(piece)

    @property
    def waiting(self) -> int:
        return len(self.sources)


class Pieces:
    def __init__(self, feed: Feed) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.feed = feed

    async def next(self) -> bytes | None:
        return await self.queue.get()

    def close(self, undelivered: bytes | None) -> None:
        self.feed.sources.remove(self)
        if undelivered is not None:
            self.feed.undelivered.append(undelivered)


class Slow(File):
    """A directory in which each walk, and a file of which each read, waits until it is let."""

    def __init__(self, let: asyncio.Event, directory: bool) -> None:
        super().__init__(0o555 if directory else 0o444)
        self.kind = Dir.kind if directory else File.kind
        self.let = let
        self.content = b"at last\n"

    async def walk(self, name: str, caller: Caller) -> Node:
        await self.let.wait()
        return SLOW_CHILD

    def opened(self, how: How, caller: Caller) -> Handle:
        return _SlowHandle(self)


SLOW_CHILD = Text("at last\n")


class _SlowHandle(Handle):
    def __init__(self, file: Slow) -> None:
        self.file = file

    async def read(self, offset: int, count: int) -> bytes:
        await self.file.let.wait()
        return self.file.content[offset : offset + count]


class Journal(File):
    """A file whose writes are stored at once and answered when they are durable: there is no way back."""

    def __init__(self, durable: asyncio.Event) -> None:
        super().__init__(0o222)
        self.durable = durable
        self.data = b""

    def opened(self, how: How, caller: Caller) -> Handle:
        return _JournalHandle(self)


class _JournalHandle(Handle):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    async def write(self, offset: int, data: memoryview) -> int:
        self.journal.data += data
        storing = asyncio.ensure_future(self.journal.durable.wait())
        while not storing.done():
            try:
                await asyncio.shield(storing)
            except asyncio.CancelledError:
                continue
        return len(data)


class AuthFile(Transaction):
    """The file of an authentication: the password is written, "welcome" or nothing read."""

    qtype = QT.AUTH

    def __init__(self, uname: str, aname: str) -> None:
        super().__init__(self.check)
        self.uname = uname
        self.aname = aname
        self.proved = False

    async def check(self, caller: Caller, data: bytes) -> bytes:
        await asyncio.sleep(0)  # as one that asks elsewhere
        self.proved = data == b"swordfish"
        return b"welcome" if self.proved else b""


class Shown:
    """bob's view: no /secret, and nothing may be written."""

    rights = Right.READ

    def child(self, name: str) -> View | None:
        return None if name == "secret" else self


class Closing(File):
    """A file whose closing fails."""

    def __init__(self) -> None:
        super().__init__(0o444)

    def opened(self, how: How, caller: Caller) -> Handle:
        return _ClosingHandle()


class _ClosingHandle(Handle):
    def read(self, offset: int, count: int) -> bytes:
        return b""

    def close(self) -> None:
        raise FsError(E.IO, "the last bytes could not be kept")


class Broken(File):
    """A file of an author who made a mistake."""

    def __init__(self) -> None:
        super().__init__(0o444)

    def opened(self, how: How, caller: Caller) -> Handle:
        raise ZeroDivisionError("a mistake")


class Grounds:
    """Both trees and the gate. Made within a running loop."""

    def __init__(self, host: Path) -> None:
        self.host = host
        self.export = Export(host)
        self.events = Feed()
        self.lets: dict[str, asyncio.Event] = {
            name: asyncio.Event() for name in ("slow", "slowly", "journal")
        }
        self.log = bytearray(b"begin\n")
        self.motto = "per monstra ad astra\n"
        self.said: list[str] = []
        self.names = {"one": "1\n", "two": "2\n", "three": "3\n"}
        self.journal = Journal(self.lets["journal"])
        self.slow = Slow(self.lets["slow"], directory=True)
        self.slowly = Slow(self.lets["slowly"], directory=False)
        self.root = Dir(self._tree())

    def _tree(self) -> dict[str, object]:
        return {
            "hello": Text("hello, world\n"),
            "whoami": Text(lambda caller: f"{caller.user}\n"),
            "motto": Text(lambda: self.motto, write=self._set_motto),
            "tool": Text("#!/bin/rc\n", mode=0o555),
            "memory": Memory(b"0123456789"),
            "zeros": Blob(lambda offset, count: bytes(count), lambda: 1 << 40),
            "log": Append(self._append, self._read_log, lambda: len(self.log)),
            "lock": Exclusive(Memory(b"")),
            "ctl": Ctl(ctl.verbs(ctl.Verb("say", (ctl.Arg("what", required=True),))), self._run),
            "ask": Transaction(lambda caller, question: question[::-1]),
            "events": Stream(self.events.open),
            "clone": Clone(lambda caller: Text(f"{caller.user}'s own\n")),
            "names": Listing(lambda caller: list(self.names), lambda name, caller: self.names.get(name)),
            "slow": self.slow,
            "slowly": self.slowly,
            "journal": self.journal,
            "closing": Closing(),
            "broken": Broken(),
            "secret": Dir({"plan": "later\n"}),
            "dir": {"a": "A\n", "b": "B\n", "sub": {"c": "C\n"}},
            "empty": Dir({}),
        }

    def _set_motto(self, caller: Caller, data: bytes) -> None:
        self.motto = data.decode()

    def _append(self, caller: Caller, data: bytes) -> None:
        self.log += data

    def _read_log(self, offset: int, count: int) -> bytes:
        return bytes(self.log[offset : offset + count])

    def _run(self, caller: Caller, commands: list[ctl.Command]) -> list[str]:
        self.said += [command.args["what"] for command in commands]
        return [f"said {command.args['what']}" for command in commands]

    # The gate

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        user = USERS.get(n_uname, "") if n_uname != NONUNAME else uname
        if peer.kind == "tls":
            if user not in ("", peer.address):
                raise FsError(E.DENIED, f"the certificate is of {peer.address}")
            user = peer.address
        elif user == "carol" and not (afid is not None and self._vouches(afid, user, aname)):
            raise FsError(E.UNAUTHENTICATED, "a proof was expected")
        elif afid is not None and not self._vouches(afid, user, aname):
            raise FsError(E.UNAUTHENTICATED, "that proof is another's")
        roots: dict[str, Node] = {"": self.root, "host": self.export.root}
        if aname not in roots:
            raise FsError(E.MISSING, aname)
        caller = Caller(f"{peer.kind}:{user}", "operator", user=user or "none", session=str(id(peer)))
        view: View = Shown() if user == "bob" else EVERYTHING
        return Chan(roots[aname], caller, view)

    @staticmethod
    def _vouches(afid: Chan, user: str, aname: str) -> bool:
        proof = afid.node
        assert isinstance(proof, AuthFile)
        return proof.proved and (proof.uname, proof.aname) == (user, aname)

    async def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        user = USERS.get(n_uname, "") if n_uname != NONUNAME else uname
        if user != "carol":
            raise FsError(E.NOTSUP, "authentication is not required")
        chan = Chan(AuthFile(user, aname), Caller("none", "none"), EVERYTHING)
        await chan.open(How(read=True, write=True))
        return chan


class Raw:
    """A connection in this process that says what a test says, and keeps the frames that come back."""

    def __init__(
        self, gate: Gate, peer: Peer | None = None, msize: int = 1 << 20, kernel: bool = True
    ) -> None:
        self.conversation = Conversation(gate, peer or Peer("local"), self._hear, msize, kernel)
        self.conversation.hang_up = self._closed
        self.saying = Dialect.PLAIN  # what was asked for last
        self.hearing = Dialect.PLAIN  # what was agreed
        self.answers: list[tuple[int, Message]] = []
        self.sizes: list[int] = []
        self.closed = False
        _connected.append(self)

    def _hear(self, frames: Sequence[bytes | memoryview]) -> None:
        data = b"".join(frames)
        at = 0
        while at < len(data):
            size = HEADER.unpack_from(data, at)[0]
            self.sizes.append(size)
            frame = memoryview(data)[at : at + size]
            assert size == len(frame), "a frame is not whole"
            if frame[4] == 101:
                self.hearing = negotiate(version_of(frame)) or Dialect.PLAIN
            self.answers.append((HEADER.unpack_from(frame)[2], unpack(frame, self.hearing)))
            at += size

    def frame(self, tag: int, message: Message) -> bytes:
        """The bytes of a message in the dialect last asked for."""
        raw = pack(tag, message, self.saying)
        if isinstance(message, Tversion):
            self.saying = negotiate(message.version) or Dialect.PLAIN
        return raw

    def _closed(self) -> None:
        self.closed = True

    def send(self, data: bytes) -> None:
        """Send bytes in one piece. ``closed`` tells afterwards whether the server closes for it."""
        try:
            self.conversation.receive(data)
        except WireError:
            self.closed = True
            self.conversation.lost()

    def say(self, *messages: tuple[int, Message]) -> None:
        """Send messages, each with its tag, in one segment."""
        self.send(b"".join(self.frame(tag, message) for tag, message in messages))

    async def ask(self, tag: int, message: Message) -> Message:
        """The one answer to a message, when nothing else is outstanding."""
        before = len(self.answers)
        self.say((tag, message))
        await self.heard(before + 1)
        assert (before + 1, tag) == (len(self.answers), self.answers[-1][0])
        return self.answers[-1][1]

    async def heard(self, count: int) -> None:
        """Wait until that many answers have come."""
        await wait_until(lambda: len(self.answers) >= count)

    async def version(self, dialect: Dialect = Dialect.L, msize: int = 8192) -> None:
        assert Rversion(msize, dialect.value) == await self.ask(0xFFFF, Tversion(msize, dialect.value))

    def leave(self) -> None:
        """Disconnect."""
        self.conversation.lost()


def version_of(frame: memoryview) -> str:
    message = unpack(frame, Dialect.PLAIN)
    assert isinstance(message, Rversion)
    return message.version


async def calm(turns: int = 30) -> None:
    """Let everything happen that needs no more input."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads and tasks bring about. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


def played(play: Callable[[Grounds], Awaitable[None]]) -> None:
    """Run a test on fresh grounds. At its end every client leaves, and nothing may be left of any."""

    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="skep-grounds-") as folder:
            grounds = Grounds(Path(folder))
            try:
                await play(grounds)
                for let in grounds.lets.values():
                    let.set()
            finally:
                for raw in _connected:
                    raw.leave()
                conversations = [raw.conversation for raw in _connected]
                _connected.clear()
            await wait_until(lambda: not any(conversation.busy for conversation in conversations))
            await calm()
            assert not any(conversation.session.fids for conversation in conversations)
            assert [] == grounds.events.sources

    asyncio.run(run())


_connected: list[Raw] = []
