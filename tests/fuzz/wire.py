"""Bytes of a client, into a server's conversation with a tree of every shape.

The first byte of an input says how the rest is sent: which dialect was agreed before, with the loop in C or
without, in what pieces, and whether the rest are frames already or messages to be put into frames.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from skep.fs import messages as m
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Peer
from skep.fs.ctl import Arg, Command, Verb, verbs
from skep.fs.errors import E, FsError
from skep.fs.messages import NOFID, NONUNAME, NOTAG, Dialect
from skep.fs.node import Caller
from skep.fs.session import FIDS_MAX
from skep.fs.shapes import Append, Blob, Ctl, Memory, Stream, Text, Transaction
from skep.fs.transcript import parse
from skep.fs.tree import Clone, Dir, Exclusive, Listing
from skep.fs.wire import HEADER, pack
from tests.fs import grounds
from tests.fs.grounds import Raw, calm

LENGTH_MAX = 1024
MSIZE = 4096
DIALECTS = (None, Dialect.PLAIN, Dialect.U, Dialect.L)
CUTS = (1 << 20, 1, 7, 64)  # bytes of a piece
TRANSCRIPTS = Path(grounds.__file__).parent / "transcripts"
CALLER = Caller("local:fuzz", "operator")


class Silent:
    """A stream on which nothing comes."""

    async def next(self) -> bytes | None:
        await asyncio.get_running_loop().create_future()
        return None

    def close(self, undelivered: bytes | None) -> None:
        assert undelivered is None


class Site:
    """The tree and its gate. Nothing in it grows without end."""

    def __init__(self) -> None:
        self.journal = bytearray()
        self.names = {"one": "1\n", "two": "2\n"}
        self.root = Dir(
            {
                "hello": Text("hello, world\n"),
                "motto": Text("ad astra\n", write=lambda caller, data: None),
                "memory": Memory(b"0123456789", size_max=1 << 16),
                "zeros": Blob(lambda offset, count: bytes(count), lambda: 1 << 40),
                "log": Append(self._append, lambda at, n: bytes(self.journal[at : at + n])),
                "lock": Exclusive(Memory(b"", size_max=1 << 12)),
                "ctl": Ctl(verbs(Verb("say", (Arg("what", required=True),))), self._said),
                "ask": Transaction(self._answer),
                "events": Stream(lambda caller: Silent()),
                "clone": Clone(lambda caller: Text("own\n")),
                "names": Listing(lambda caller: list(self.names), lambda name, caller: self.names.get(name)),
                "dir": {"a": "A\n", "sub": {"c": "C\n"}},
            }
        )

    def _append(self, caller: Caller, data: bytes) -> None:
        if len(self.journal) + len(data) > 1 << 16:
            raise FsError(E.TOOBIG)
        self.journal += data

    async def _said(self, caller: Caller, commands: list[Command]) -> list[str]:
        await asyncio.sleep(0)
        return [command.args["what"] for command in commands]

    async def _answer(self, caller: Caller, question: bytes) -> bytes:
        await asyncio.sleep(0)
        return question[::-1]

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        if aname:
            raise FsError(E.MISSING, aname)
        return Chan(self.root, CALLER, EVERYTHING)

    async def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        await asyncio.sleep(0)
        raise FsError(E.NOTSUP)


class Mistakes(logging.Handler):
    """A node that raised what it should not is answered with an I/O error, and logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


MISTAKES = Mistakes()
_log = logging.getLogger("skep.fs")
_log.addHandler(MISTAKES)
_log.propagate = False
_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    if data:
        _loop.run_until_complete(play(data[0], data[1:]))


async def play(how: int, body: bytes) -> None:
    dialect, kernel, cut = DIALECTS[how & 3], bool(how & 4), CUTS[how >> 4 & 3]
    if how & 8:
        body = b"".join(framed(body))
    raw = Raw(Site(), msize=MSIZE, kernel=kernel)
    grounds._connected.clear()
    if dialect is not None:
        await raw.version(dialect, MSIZE)
        assert isinstance(await raw.ask(1, m.Tattach(0, NOFID, "fuzz", "", NONUNAME)), m.Rattach)
    raw.answers.clear()
    raw.sizes.clear()
    for at in range(0, len(body), cut):
        if raw.closed:
            break
        raw.send(body[at : at + cut])
        await calm(2)
    await calm(20)
    check(raw, body)
    await again(raw, body)
    conversation = raw.conversation
    raw.leave()
    await calm(20)
    assert not conversation.busy, "a call outlives its connection"
    assert not conversation.session.fids, "a fid outlives its connection"
    assert not MISTAKES.records, MISTAKES.records.pop().getMessage()


def framed(body: bytes) -> Iterator[bytes]:
    """Messages, each behind a byte that is its length, as frames."""
    at = 0
    while at < len(body):
        end = at + 1 + body[at]
        yield (4 + len(body[at + 1 : end])).to_bytes(4, "little") + body[at + 1 : end]
        at = end


def heads(body: bytes) -> Iterator[tuple[int, int]]:
    """Size and tag of every whole frame."""
    at = 0
    while len(body) - at >= HEADER.size:
        size, _, tag = HEADER.unpack_from(body, at)
        if size < HEADER.size or size > len(body) - at:
            return
        yield size, tag
        at += size


def check(raw: Raw, body: bytes) -> None:
    """Each answer is to a request, and as long as was agreed at most."""
    asked = [tag for _, tag in heads(body)]
    for tag, _ in raw.answers:
        assert tag in asked, f"an answer to tag {tag}, which asked nothing or has its answer"
        asked.remove(tag)
    assert all(size <= MSIZE for size in raw.sizes)
    assert len(raw.conversation.session.fids) <= FIDS_MAX


async def again(raw: Raw, body: bytes) -> None:
    """Where frames are still heard, a conversation can begin anew, and what is there is as it was."""
    if raw.closed or sum(size for size, _ in heads(body)) != len(body):
        return
    raw.answers.clear()
    raw.say((NOTAG, m.Tversion(MSIZE, Dialect.L.value)))
    await calm(20)
    assert (NOTAG, m.Rversion(MSIZE, Dialect.L.value)) in raw.answers
    assert isinstance(await raw.ask(1, m.Tattach(0, NOFID, "fuzz", "", NONUNAME)), m.Rattach)
    assert isinstance(await raw.ask(1, m.Twalk(0, 1, ("hello",))), m.Rwalk)
    assert isinstance(await raw.ask(1, m.Tlopen(1, 0)), m.Rlopen)
    assert m.Rread(b"hello, world\n") == await raw.ask(1, m.Tread(1, 0, 100))


def seeds() -> Iterator[bytes]:
    """The stories of the transcripts, as far as they make one input, in each dialect they can be said in."""
    for path in sorted(TRANSCRIPTS.glob("*.txt")):
        for story in path.read_text().split("\n# ")[1:]:
            lines = [line for line in story.split("\n") if line.startswith("T") and "$" not in line]
            for number, dialect in enumerate(DIALECTS):
                if dialect is not None and (frames := list(islice(_packed(lines, dialect), 24))):
                    bodies = [frame[4:] for frame in frames if len(frame) < 256]
                    yield bytes([number | 4]) + b"".join(frames)
                    yield bytes([number | 8]) + b"".join(bytes([len(body)]) + body for body in bodies)


def _packed(lines: list[str], dialect: Dialect) -> Iterator[bytes]:
    for line in lines:
        try:
            tag, message = parse(line, dialect)
            frame = pack(tag, message, dialect)
        except (ValueError, KeyError, FsError):
            continue
        if not isinstance(message, m.Tversion) and len(frame) < LENGTH_MAX // 2:
            yield frame


if __name__ == "__main__":
    one(Path(sys.argv[1]).read_bytes())
