"""A door to a tree without a server: paths read and written through chans."""

from __future__ import annotations

from skep.fs.chan import EVERYTHING, Chan
from skep.fs.errors import E, FsError
from skep.fs.node import Attr, Caller, How, Node

READ = How(read=True)
WRITE = How(write=True)
BOTH = How(read=True, write=True)
PIECE = 8192


class Door:
    """One caller's way into a tree."""

    def __init__(self, root: Node, caller: Caller) -> None:
        self.root = Chan(root, caller, EVERYTHING)

    async def walk(self, path: str) -> Chan:
        names = tuple(path.strip("/").split("/")) if path.strip("/") else ()
        _, chan = await self.root.walk(names)
        if chan is None:
            raise FsError(E.MISSING, path)
        return chan

    async def open(self, path: str, how: How = READ) -> Chan:
        chan = await self.walk(path)
        await chan.open(how)
        return chan

    async def create(self, directory: str, name: str, how: How = BOTH) -> Chan:
        return (await (await self.walk(directory)).create(name, 0o644, how, 0))[0]

    async def read(self, path: str) -> str:
        """All of a file, as cat has it."""
        chan = await self.open(path)
        try:
            return (await rest(chan)).decode()
        finally:
            await chan.clunk()

    async def write(self, path: str, text: str, how: How = WRITE) -> None:
        """One write, as echo does it."""
        chan = await self.open(path, how)
        try:
            await say(chan, text)
        finally:
            await chan.clunk()

    async def names(self, path: str) -> list[str]:
        chan = await self.open(path)
        names = [entry.name for entry in await chan.entries()]
        await chan.clunk()
        return names

    async def attr(self, path: str) -> Attr:
        return await (await self.walk(path)).attr()

    async def exists(self, path: str) -> bool:
        try:
            await self.walk(path)
        except FsError as error:
            if error.kind is E.MISSING:
                return False
            raise
        return True


async def rest(chan: Chan) -> bytes:
    data = b""
    while piece := await chan.read(len(data), PIECE):
        data += piece
    return data


async def say(chan: Chan, text: str, offset: int = 0) -> None:
    data = text.encode()
    assert await chan.write(offset, memoryview(data)) == len(data)
