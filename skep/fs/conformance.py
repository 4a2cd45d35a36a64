"""Whether a tree keeps what clients rely on: for its author's own tests.

    assert [] == await conformance(tree)

Every name is walked to, told of, opened for reading where its mode allows that, and read, in each dialect.
Nothing is written, but opening and reading have their effects, if the tree gives them any.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from skep.fs import messages as m
from skep.fs.connection import Connection
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.fid import Fid
from skep.fs.local import local
from skep.fs.messages import QT, Dialect, Message, Qid
from skep.fs.node import Attr, Entry, How, Node, qid_type

PATIENCE_S: Final = 0.2  # how long a read may take before it counts as one that waits for an event
FILES_MAX: Final = 2000  # looked at in one tree: directories may be endless
READ_MAX: Final = 1 << 20  # bytes read of one file
PIECE: Final = 7  # bytes of the small reads that must agree with the large ones
ABSENT: Final = "no file has this name"


async def conformance(tree: Node | Mapping[str, Any] | Any) -> list[str]:
    """What is wrong with ``tree`` (what as_node takes, or a Gate): a line each, none if nothing is.

    A line has the dialect, the path, and what was expected."""
    findings: list[str] = []
    for dialect in Dialect:
        client = await local(tree, dialect=dialect)
        try:
            await _Inspection(client, findings).all()
        finally:
            await client.close()
    return findings


class _Inspection:
    """One walk through the tree in one dialect."""

    def __init__(self, client: Client, findings: list[str]) -> None:
        self.client = client
        self.connection: Connection = client.connection
        self.dialect = client.connection.dialect
        self.findings = findings
        self.path = "/"
        self.seen: dict[int, tuple[str, Attr]] = {}  # qid path -> where it was, and what it was

    def finding(self, text: str) -> None:
        self.findings.append(f"{self.dialect.value} {self.path}: {text}")

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.finding(text)

    async def all(self) -> None:
        """Breadth first, so that an endless branch leaves the others their turn."""
        queue: list[tuple[tuple[str, ...], Qid | None]] = [((), None)]
        for count, (names, above) in enumerate(queue):
            if count == FILES_MAX:
                break
            self.path = "/" + "/".join(names)
            async for entry in self.inspect(names, above):
                queue.append(((*names, entry.name), entry.qid))

    async def inspect(self, names: tuple[str, ...], listed: Qid | None) -> AsyncIterator[Entry]:
        """Look at one file; the entries of a directory."""
        try:
            fid = await self.client.root.walk(*names)
        except FsError as error:
            # What comes and goes may have gone since it was listed.
            self.expect(error.kind is E.MISSING, f"it is listed, and walking to it fails: {error}")
            return
        try:
            attr = await fid.attr()
            self.check_attr(fid.qid, listed, attr)
            if stat.S_ISDIR(attr.mode):
                for entry in await self.directory(fid, names):
                    yield entry
            elif stat.S_ISREG(attr.mode):
                await self.file(fid, attr)
        except FsError as error:
            self.finding(f"it fails: {error}")
        finally:
            await self.clunk(fid)

    def check_attr(self, walked: Qid, listed: Qid | None, attr: Attr) -> None:
        told = attr.qid
        self.expect(_same(walked, told), f"walked to {walked}, stat tells {told}")
        if listed is not None:
            self.expect(_same(listed, told), f"listed as {listed}, stat tells {told}")
        kind = qid_type(attr.mode) & (QT.DIR | QT.SYMLINK)
        self.expect(
            kind & QT.DIR == told.type & QT.DIR, f"mode {attr.mode:#o} and qid type {told.type:#x} differ"
        )
        path, before = self.seen.setdefault(told.path, (self.path, attr))
        if attr.nlink == 1 and (before.mode, before.size) != (attr.mode, attr.size):
            self.finding(f"it has the qid path {told.path} of {path}, which is another file")

    # Directories

    async def directory(self, fid: Fid, names: tuple[str, ...]) -> list[Entry]:
        """Its entries, when it may be listed."""
        await self.absent(fid)
        async with await fid.walk("..") as above:
            expected = await self.client.root.walk(*names[:-1])
            self.expect(_same(above.qid, expected.qid), '".." does not lead to the directory above')
            await self.clunk(expected)
        async with await fid.walk() as opened:
            try:
                await opened.open(How(read=True))
            except FsError as error:
                self.expect(error.kind is E.DENIED, f"it cannot be listed: {error}")
                return []
            entries = await opened.entries()
        self.expect(len({entry.name for entry in entries}) == len(entries), "a name is listed twice")
        for entry in entries:
            legal = entry.name not in ("", ".", "..") and "/" not in entry.name and "\0" not in entry.name
            self.expect(legal, f"{entry.name!r} is no file's name")
        await self.in_pieces(fid, {entry.name for entry in entries})
        return entries

    async def absent(self, fid: Fid) -> None:
        try:
            async with await fid.walk(ABSENT):
                self.finding("every name can be walked to")
        except FsError as error:
            self.expect(error.kind is E.MISSING, f"a name that is not there is refused by: {error}")

    async def in_pieces(self, fid: Fid, expected: set[str]) -> None:
        """A listing read in the smallest pieces has the same names (of those that were there both times)."""
        longest = max((len(name.encode("utf-8", "surrogateescape")) for name in expected), default=0)
        async with await fid.walk() as opened:
            await opened.open(How(read=True))
            opened.unit = 512 + longest
            found = [entry.name for entry in await opened.entries()]
        self.expect(len(found) == len(set(found)), "in small pieces a name is listed twice")
        self.expect(expected == set(found), "in small pieces the listing is another")

    # Files

    async def file(self, fid: Fid, attr: Attr) -> None:
        await self.refused(m.Tread(fid.fid, 0, 1), "it is read without having been opened")
        async with await fid.walk() as opened:
            try:
                await opened.open(How(read=True))
            except FsError as error:
                busy = error.kind in (E.BUSY, E.DENIED)
                self.expect(busy or not attr.mode & 0o444, f"its mode lets it be read, opening says: {error}")
                return
            self.expect(
                bool(attr.mode & 0o444), "its mode says it cannot be read, and it was opened for that"
            )
            self.expect(_same(opened.qid, attr.qid), f"open tells {opened.qid}, stat {attr.qid}")
            await self.refused(m.Twrite(opened.fid, 0, b"x"), "it is written though opened for reading")
            await self.content(opened)
        if not attr.mode & 0o222:
            async with await fid.walk() as again:
                await self.rejected(lambda: again.open(How(write=True)), "its mode says it cannot be written")

    async def content(self, fid: Fid) -> None:
        """Reads of one open tell one moment, and no more than they are asked for."""
        whole = await self.read(fid, 0, min(fid.unit, READ_MAX))
        if whole is None:  # it waits for an event: offsets mean nothing
            return
        again = await self.read(fid, 0, min(fid.unit, READ_MAX))
        self.expect(again == whole, "a second read of the same open gives something else")
        piece = await self.read(fid, 0, PIECE)
        self.expect(piece == whole[:PIECE], f"{PIECE} bytes are not the beginning of the whole")
        later = await self.read(fid, PIECE, PIECE)
        self.expect(later == whole[PIECE : 2 * PIECE], f"a read at {PIECE} does not go on there")
        if len(whole) < min(fid.unit, READ_MAX):
            self.expect(await self.read(fid, len(whole), PIECE) == b"", "it does not end where it ended")
            self.expect(await self.read(fid, 1 << 62, PIECE) == b"", "it has something at 2^62")

    async def read(self, fid: Fid, offset: int, count: int) -> bytes | None:
        """The data; None: it was waited for in vain, and the read was flushed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                data = await fid.read(offset, count)
        except TimeoutError:
            return None
        self.expect(len(data) <= count, f"{len(data)} bytes were read where {count} were asked for")
        return data

    # Both

    async def refused(self, request: Message, text: str) -> None:
        await self.rejected(lambda: self.connection.rpc(request, Message), text)

    async def rejected(self, call: Callable[[], Any], text: str) -> None:
        """The finding ``text``, unless ``call`` fails."""
        try:
            await call()
        except FsError:
            return
        self.finding(text)

    async def clunk(self, fid: Fid) -> None:
        try:
            await fid.close()
        except FsError as error:
            self.finding(f"closing it fails: {error}")


def _same(a: Qid, b: Qid) -> bool:
    """Whether they name the same file; its version may have moved."""
    return (a.type, a.path) == (b.type, b.path)
