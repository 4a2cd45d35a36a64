"""A hive's files for asyncio: dial an address, then walk, open, read, write, list, follow.

All three dialects look alike here. What is done with one file is fid.py's. Paths are names with "/"
between, taken from the attached root.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from skep.fs import idiom
from skep.fs.address import Address, parse
from skep.fs.client import MSIZE_DEFAULT
from skep.fs.connection import Connection, Join
from skep.fs.errors import E, FsError
from skep.fs.fid import Fid
from skep.fs.messages import (
    IOHDRSZ,
    NOFID,
    Dialect,
    Message,
    Rattach,
    Rauth,
    Rwrite,
    Tattach,
    Tauth,
    Twrite,
)
from skep.fs.node import Attr, Entry
from skep.fs.owners import user_name

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity
    from skep.fs.pin import Pinned

STATS_AT_ONCE: Final = 64  # entries of a listing asked for together


def login_name() -> str:
    """The user's name; the number where it has none."""
    return user_name(os.getuid())


def names_of(path: str) -> tuple[str, ...]:
    """The path elements of ``path``; "." and doubled slashes are dropped, ".." is the server's to answer."""
    return tuple(name for name in path.split("/") if name not in ("", "."))


class Client:
    """One attached root. Calls may be made from many tasks at once; each raises FsError.

    ``async with await Client.connect(...)`` closes it at the end."""

    def __init__(self, connection: Connection, root: Fid) -> None:
        self.connection = connection
        self.root = root

    @staticmethod
    async def connect(
        address: Address | str,
        *,
        aname: str = "",
        uname: str | None = None,
        dialect: Dialect = Dialect.L,
        msize: int = MSIZE_DEFAULT,
        identity: Identity | None = None,
        pin: str = "",
        token: bytes = b"",
    ) -> Client:
        """Dial and attach. ``uname`` None: the login name, or with TLS the certificate's node. A server may
        answer with a lower dialect. ``identity``: for TLS, and for nothing else; who has none yet and comes
        to enrol gives the ``pin`` of the hive's CA instead (trust.spki), and is nobody. ``token``: shown
        before the attach, which it narrows; b"": none is.

        Raises OSError when nobody listens there or is not to be believed (TlsError), FsError when the
        version, the attach or our certificate is refused."""
        place = parse(address) if isinstance(address, str) else address
        known: Identity | Pinned | None = identity
        if pin:
            if identity is not None:
                raise ValueError("who has an identity has more than a pin to tell its hive by")
            from skep.fs.pin import Pinned

            known = Pinned(pin)
        if known is not None and uname is None:
            uname = identity.name.node if identity is not None else ""
        return await Client.attach(await Connection.open(place, dialect, msize, known), aname, uname, token)

    @staticmethod
    async def over(
        join: Join,
        *,
        aname: str = "",
        uname: str | None = None,
        dialect: Dialect = Dialect.L,
        msize: int = MSIZE_DEFAULT,
    ) -> Client:
        """A client of a server conversation in this process, without sockets; Connection.over tells more."""
        return await Client.attach(await Connection.over(join, dialect, msize), aname, uname)

    @staticmethod
    async def attach(
        connection: Connection, aname: str = "", uname: str | None = None, token: bytes = b""
    ) -> Client:
        """Attach on an agreed connection, which is closed if that is refused."""
        uname = login_name() if uname is None else uname
        try:
            afid = await _shown(connection, uname, aname, token) if token else NOFID
            fid = connection.session.take_fid()
            reply = await connection.rpc(Tattach(fid, afid, uname, aname, os.getuid()), Rattach)
        except BaseException:
            await connection.close()
            raise
        if afid != NOFID:
            connection.clunk(afid)
        return Client(connection, Fid(connection, fid, reply.qid))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; the server forgets every fid."""
        await self.connection.close()

    async def rpc(self, request: Message) -> Message:
        """Any request, and its answer; for what has no method here."""
        return await self.connection.rpc(request, Message)

    async def walk(self, path: str) -> Fid:
        """A new fid for ``path``, not open; to be closed."""
        return await self.root.walk(*names_of(path))

    async def open(self, path: str, mode: str = "r", *, trunc: bool = False) -> Fid:
        """An open fid. ``mode``: r, w, rw, a; the file must be there."""
        fid = await self.walk(path)
        try:
            await fid.open(idiom.how(mode, trunc))
        except BaseException:
            fid.drop()
            raise
        return fid

    async def create(self, path: str, mode: str = "w", *, perm: int = 0o644) -> Fid:
        """A new file, opened. Raises FsError(E.EXISTS) when it is there already."""
        fid, name = await self._parent(path)
        try:
            await fid.create(name, perm, idiom.how(mode))
        except BaseException:
            fid.drop()
            raise
        return fid

    async def mkdir(self, path: str, *, perm: int = 0o755) -> None:
        """A new directory."""
        fid, name = await self._parent(path)
        async with fid:
            await fid.mkdir(name, perm)

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory."""
        await (await self.walk(path)).remove()

    async def stat(self, path: str) -> Attr:
        """What the server tells about ``path``; a symbolic link is not followed."""
        async with await self.walk(path) as fid:
            return await fid.attr()

    async def readlink(self, path: str) -> str:
        """Where a symbolic link points. Raises FsError(E.INVALID) when it is none."""
        async with await self.walk(path) as fid:
            return await fid.readlink()

    async def listdir(self, path: str) -> list[Entry]:
        """The names in a directory, as the server orders them, without "." and ".."."""
        async with await self.open(path) as fid:
            return await fid.entries()

    async def scan(self, path: str) -> list[tuple[str, Attr]]:
        """The names in a directory with their attributes. What vanishes meanwhile is left out."""
        async with await self.open(path) as fid:
            if self.connection.dialect is not Dialect.L:
                return await fid.stats()
            names = [entry.name for entry in await fid.entries()]
        async with await self.walk(path) as fid:
            found: list[tuple[str, Attr]] = []
            for i in range(0, len(names), STATS_AT_ONCE):
                some = names[i : i + STATS_AT_ONCE]
                attrs = await asyncio.gather(*(fid.attr_below(name) for name in some))
                found += [(name, attr) for name, attr in zip(some, attrs, strict=True) if attr is not None]
            return found

    async def read_file(self, path: str, most: int | None = None) -> bytes:
        """All of a file, from one open. ``most``: as ``Fid.whole`` has it."""
        async with await self.open(path) as fid:
            return await fid.whole(most)

    async def write_file(
        self, path: str, data: bytes, *, append: bool = False, create: bool = False, perm: int = 0o644
    ) -> None:
        """Replace what a file holds by ``data``, or add to its end. A missing one is made if ``create``.

        An error of the last byte is raised too: the fid is closed before this returns."""
        try:
            fid = await self.open(path, "a" if append else "w", trunc=not append)
        except FsError as error:
            if not create or error.kind is not E.MISSING:
                raise
            fid = await self.create(path, perm=perm)
        async with fid:
            await fid.write_all(data, (await fid.attr()).size if append else 0)

    async def follow(self, path: str) -> AsyncIterator[bytes]:
        """What a file tells, piece by piece, until its end; a stream has none until it is closed."""
        async with await self.open(path) as fid:
            async for piece in fid.pieces(ahead=1):
                yield piece

    async def _parent(self, path: str) -> tuple[Fid, str]:
        names = names_of(path)
        if not names:
            raise FsError(E.EXISTS, path)
        return await self.root.walk(*names[:-1]), names[-1]


async def _shown(connection: Connection, uname: str, aname: str, token: bytes) -> int:
    """An afid that ``token`` was written to."""
    afid = connection.session.take_fid()
    await connection.rpc(Tauth(afid, uname, aname, os.getuid()), Rauth)
    unit = connection.session.msize - IOHDRSZ
    for at in range(0, len(token), unit):
        piece = token[at : at + unit]
        reply = await connection.rpc(Twrite(afid, at, piece), Rwrite)
        if reply.count != len(piece):
            raise FsError(E.IO, "the token was not taken whole")
    return afid
