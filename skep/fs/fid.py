"""A file of a server by its fid, for asyncio: walk, open, create, read, write, list, in any dialect."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final

from skep.fs import idiom
from skep.fs.client import Call
from skep.fs.connection import Connection
from skep.fs.errors import E, FsError
from skep.fs.messages import (
    IOHDRSZ,
    WALK_MAX,
    Dialect,
    Message,
    Qid,
    Rmkdir,
    Rread,
    Rreaddir,
    Rreadlink,
    Rremove,
    Rwalk,
    Rwrite,
    Tmkdir,
    Tread,
    Treaddir,
    Treadlink,
    Tremove,
    Twalk,
    Twrite,
)
from skep.fs.node import Attr, Entry, How
from skep.fs.wire import unpack_dirents

READ_AHEAD: Final = 4  # reads in flight on a file that has a length: enough to hide one round trip


class Fid:
    """A file on the server, by the number it goes by on this connection. ``async with`` closes it."""

    def __init__(self, connection: Connection, fid: int, qid: Qid) -> None:
        self.connection = connection
        self.fid = fid
        self.qid = qid
        self.unit = 0  # the most bytes of one read or write; 0: not open
        self._gone = False

    async def __aenter__(self) -> Fid:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            self.drop()

    async def close(self) -> None:
        """Clunk it. Raises FsError when the server tells then that what was written is not whole."""
        call = self._clunk()
        if call is not None:
            await self.connection.wait(call)

    def drop(self) -> None:
        """Clunk it without waiting for the answer."""
        self._clunk()

    async def walk(self, *names: str) -> Fid:
        """A new fid, not open, for what ``names`` lead to from here. Raises what the server says of the
        first one that is not there."""
        fid = self.connection.session.take_fid()
        source, qid = self.fid, self.qid
        left = names
        whole = True
        try:
            while left or source != fid:
                batch = left[:WALK_MAX] if whole else left[:1]
                reply = await self.connection.rpc(Twalk(source, fid, batch), Rwalk)
                if len(reply.wqid) < len(batch):
                    # Rwalk does not say why it ends early: go that far, then ask for the next name alone.
                    if not reply.wqid:
                        raise FsError(E.PROTO, "a walk without an answer")
                    whole = False
                    fid = fid if source == fid else self.connection.session.take_fid()
                    batch = left[: len(reply.wqid)]
                    reply = await self.connection.rpc(Twalk(source, fid, batch), Rwalk)
                    if len(reply.wqid) < len(batch):
                        raise FsError(E.MISSING)
                source, qid, left = fid, (reply.wqid or (qid,))[-1], left[len(batch) :]
        except BaseException:
            if source == fid:
                self.connection.clunk(fid)
            raise
        return Fid(self.connection, fid, qid)

    async def open(self, how: How) -> None:
        """Open it for what ``how`` says."""
        self._opened(await self._rpc(idiom.open_request(self.connection.dialect, self.fid, how)))

    async def create(self, name: str, perm: int, how: How) -> None:
        """Create ``name`` in this directory; the fid is then the new file, opened."""
        request = idiom.create_request(self.connection.dialect, self.fid, name, perm, how, os.getgid())
        self._opened(await self._rpc(request))

    async def mkdir(self, name: str, perm: int) -> None:
        """Create the directory ``name`` in this one."""
        if self.connection.dialect is Dialect.L:
            await self.connection.rpc(Tmkdir(self.fid, name, perm, os.getgid()), Rmkdir)
            return
        async with await self.walk() as fid:
            await fid.create(name, perm | stat.S_IFDIR, How(read=True))

    async def remove(self) -> None:
        """Remove the file; the fid is closed even if that is refused."""
        self._gone = True
        await self.connection.rpc(Tremove(self.fid), Rremove)

    async def attr(self) -> Attr:
        """What the server tells about it."""
        return idiom.attr_of(await self._rpc(idiom.stat_request(self.connection.dialect, self.fid)))

    async def attr_below(self, name: str) -> Attr | None:
        """The attributes of ``name`` in this directory; None: it is not there (any more)."""
        try:
            async with await self.walk(name) as fid:
                return await fid.attr()
        except FsError as error:
            if error.kind is E.MISSING:
                return None
            raise

    async def readlink(self) -> str:
        """Where this symbolic link points."""
        if self.connection.dialect is Dialect.L:
            return (await self.connection.rpc(Treadlink(self.fid), Rreadlink)).target
        attr = await self.attr()
        if not stat.S_ISLNK(attr.mode):
            raise FsError(E.INVALID, "not a symbolic link")
        return attr.target

    async def read(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes, and at most ``unit``, at ``offset``; b"" at the end."""
        request = Tread(self.fid, offset, min(count, self.unit))
        return bytes((await self.connection.rpc(request, Rread)).data)

    async def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write at most ``unit`` bytes of ``data``; how many were taken."""
        request = Twrite(self.fid, offset, bytes(data[: self.unit]))
        return (await self.connection.rpc(request, Rwrite)).count

    async def write_all(
        self, data: bytes, offset: int = 0, progress: Callable[[int], None] = lambda count: None
    ) -> None:
        """Write all of ``data`` in pieces, in order; ``progress`` is told the bytes of each.

        Data of no bytes is one empty write: a ctl file wants to see it."""
        view = memoryview(data)
        while True:
            count = await self.write(offset, view[: self.unit])
            progress(count)
            view, offset = view[count:], offset + count
            if not view:
                return
            if count == 0:
                raise FsError(E.IO, f"{len(view)} bytes were not taken")

    async def pieces(self, offset: int = 0, ahead: int = READ_AHEAD) -> AsyncIterator[bytes]:
        """The file from ``offset`` on until it reads as empty, at most ``unit`` bytes a piece.

        What has a length is asked for ``ahead`` pieces at once; the rest is asked for as it comes."""
        size = (await self.attr()).size if ahead > 1 else 0
        async for piece in self._ahead(offset, size, ahead):
            offset += len(piece)
            yield piece
        while piece := await self.read(offset, self.unit):
            offset += len(piece)
            yield piece

    async def whole(self, most: int | None = None, ahead: int = READ_AHEAD) -> bytes:
        """All of the file. Raises FsError(E.TOOBIG) when it has more than ``most`` bytes; None: who serves it
        is believed to come to an end."""
        data = bytearray()
        async for piece in self.pieces(ahead=ahead):
            data += piece
            if most is not None and len(data) > most:
                raise FsError(E.TOOBIG, f"max={most}")
        return bytes(data)

    async def _ahead(self, offset: int, size: int, ahead: int) -> AsyncIterator[bytes]:
        """The whole pieces below ``size``, several asked for at once; ends early at a short one."""
        calls: list[Call] = []
        next_offset = offset
        try:
            while True:
                while len(calls) < ahead and next_offset + self.unit <= size:
                    calls.append(self.connection.start(Tread(self.fid, next_offset, self.unit)))
                    next_offset += self.unit
                if not calls:
                    return
                reply = await self.connection.wait(calls.pop(0))
                assert isinstance(reply, Rread)
                yield bytes(reply.data)
                if len(reply.data) < self.unit:
                    return
        finally:
            for call in calls:
                self.connection.flush(call)

    async def entries(self) -> list[Entry]:
        """All names of this directory, which is open and has not been read."""
        return [entry async for page in self.pages() for entry in page]

    async def pages(self) -> AsyncIterator[list[Entry]]:
        """The same as they come, a message's worth at a time; on 9P2000 and 9P2000.u at once."""
        if self.connection.dialect is not Dialect.L:
            yield [Entry(name, attr.qid, stat.S_IFMT(attr.mode)) for name, attr in await self.stats()]
            return
        offset = 0
        while True:
            reply = await self.connection.rpc(Treaddir(self.fid, offset, self.unit), Rreaddir)
            dirents = unpack_dirents(memoryview(reply.data))
            if not dirents:
                return
            yield [idiom.entry_of(dirent) for dirent in dirents if dirent.name not in (".", "..")]
            offset = dirents[-1].offset

    async def stats(self) -> list[tuple[str, Attr]]:
        """All names and attributes of this directory, open on 9P2000 or 9P2000.u."""
        found: list[tuple[str, Attr]] = []
        offset = 0
        while data := await self.read(offset, self.unit):
            found += idiom.stats_of(memoryview(data), self.connection.dialect)
            offset += len(data)
        return found

    def _clunk(self) -> Call | None:
        if self._gone:
            return None
        self._gone = True
        return self.connection.clunk(self.fid)

    def _opened(self, reply: Message) -> None:
        room = self.connection.session.msize - IOHDRSZ
        self.unit = min(idiom.iounit_of(reply) or room, room)

    async def _rpc(self, request: Message) -> Message:
        return await self.connection.rpc(request, Message)
