"""A server's tree as a kernel sees it: inodes, open files and their operations, each as 9P2000.L requests.

Not how the kernel asks (fuse.py), nor how inodes are found (inodes.py). An open file does not outlive its
connection: it answers ESTALE on the next one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import Final

from skep.fs import idiom
from skep.fs import messages as m
from skep.fs.errors import E, FsError
from skep.fs.inodes import Inode, Inodes, walk, walk_and
from skep.fs.link import Asked, Live
from skep.fs.messages import AT_REMOVEDIR, GETATTR_ALL, IOHDRSZ, LO, READ_OVERHEAD, SA, LockStatus, LockType
from skep.fs.wire import Dirent, unpack_dirents

LOCK_WAIT_S: Final = (0.02, 1.0)  # 9P has no waiting lock: how soon it is tried again, first and at most
STAT_S: Final = 0.001  # a stat asks for the name, then for the attributes, which came with it
XATTR_MAX: Final = 65536  # the kernel's own limit
_OPEN_FLAGS: Final = (
    (os.O_TRUNC, LO.TRUNC), (os.O_APPEND, LO.APPEND), (os.O_NONBLOCK, LO.NONBLOCK), (os.O_DSYNC, LO.DSYNC),
    (os.O_SYNC, LO.SYNC), (os.O_NOATIME, LO.NOATIME), (os.O_EXCL, LO.EXCL), (os.O_DIRECTORY, LO.DIRECTORY),
)  # fmt: skip


class Handle:
    """An open file: a fid of one connection. ``unit``: the most bytes of one read or write."""

    __slots__ = ("fid", "inode", "live", "unit")

    def __init__(self, inode: Inode, live: Live, fid: int, iounit: int) -> None:
        self.inode = inode
        self.live = live
        self.fid = fid
        room = live.connection.session.msize - IOHDRSZ
        self.unit = min(iounit or room, room)


def _flags(flags: int) -> int:
    """Linux's numbers of open flags for this machine's; those the kernel keeps to itself are left out."""
    return (flags & os.O_ACCMODE) | sum(lo for here, lo in _OPEN_FLAGS if flags & here == here)


class Mirror:
    """All the inodes and handles of one mount. Each operation is a coroutine; many run at once.

    They raise FsError, whose errno the caller of the file operation gets as it is."""

    def __init__(self, root: m.Qid, cached: bool) -> None:
        """``cached``: the kernel believes attributes for a while, so that an open must ask for them."""
        self.cached = cached
        self.inodes = Inodes(root)
        self._handles: dict[int, Handle] = {}
        self._last_handle = 0
        self._client_id = f"{os.uname().nodename}:{os.getpid()}"

    # Inodes

    async def lookup(self, asked: Asked, parent: int, name: str) -> Inode:
        """``name`` in the directory ``parent``, with its attributes; the kernel will forget it once more."""
        dfid = await self.inodes.fid(asked, parent)
        fid, reply = await walk_and(
            asked, dfid, (name,), lambda fid: m.Tgetattr(fid, GETATTR_ALL), m.Rgetattr
        )
        inode = self.inodes.adopt(asked.live, self.inodes[parent], name, fid, reply.qid)
        inode.attr = idiom.attr_of(reply)
        inode.told_at = asyncio.get_running_loop().time()
        return inode

    async def getattr(self, asked: Asked, number: int) -> Inode:
        """The inode with fresh attributes."""
        inode = self.inodes[number]
        told_at, inode.told_at = inode.told_at, 0.0
        if asyncio.get_running_loop().time() - told_at < STAT_S:
            return inode
        fid = await self.inodes.fid(asked, number)
        inode.attr = idiom.attr_of(await asked.rpc(m.Tgetattr(fid, GETATTR_ALL), m.Rgetattr))
        return inode

    async def setattr(
        self, asked: Asked, number: int, valid: SA, mode: int, uid: int, gid: int, size: int,
        atime_ns: int, mtime_ns: int,
    ) -> Inode:  # fmt: skip
        """Change what ``valid`` names; the inode with fresh attributes."""
        fid = await self.inodes.fid(asked, number)
        atime, mtime = divmod(atime_ns, idiom.NS), divmod(mtime_ns, idiom.NS)
        request = m.Tsetattr(fid, int(valid), mode & 0o7777, uid, gid, size, *atime, *mtime)
        await asked.rpc(request, m.Rsetattr)
        self.inodes[number].told_at = 0.0
        return await self.getattr(asked, number)

    async def readlink(self, asked: Asked, number: int) -> str:
        fid = await self.inodes.fid(asked, number)
        return (await asked.rpc(m.Treadlink(fid), m.Rreadlink)).target

    async def mknod(self, asked: Asked, parent: int, name: str, mode: int, rdev: int, gid: int) -> Inode:
        """A special file, or an empty regular one."""
        if stat.S_ISREG(mode):
            fid, _ = await self._created(asked, parent, name, LO.EXCL, mode, gid)
            asked.live.connection.clunk(fid)
        else:
            dfid = await self.inodes.fid(asked, parent)
            request = m.Tmknod(dfid, name, mode, os.major(rdev), os.minor(rdev), gid)
            await asked.rpc(request, m.Rmknod)
        return await self.lookup(asked, parent, name)

    async def mkdir(self, asked: Asked, parent: int, name: str, mode: int, gid: int) -> Inode:
        dfid = await self.inodes.fid(asked, parent)
        await asked.rpc(m.Tmkdir(dfid, name, mode & 0o7777, gid), m.Rmkdir)
        return await self.lookup(asked, parent, name)

    async def symlink(self, asked: Asked, parent: int, name: str, target: str, gid: int) -> Inode:
        dfid = await self.inodes.fid(asked, parent)
        await asked.rpc(m.Tsymlink(dfid, name, target, gid), m.Rsymlink)
        return await self.lookup(asked, parent, name)

    async def link_to(self, asked: Asked, number: int, parent: int, name: str) -> Inode:
        dfid = await self.inodes.fid(asked, parent)
        fid = await self.inodes.fid(asked, number)
        await asked.rpc(m.Tlink(dfid, fid, name), m.Rlink)
        return await self.lookup(asked, parent, name)

    async def unlink(self, asked: Asked, parent: int, name: str) -> None:
        await self._remove(asked, parent, name, 0)

    async def rmdir(self, asked: Asked, parent: int, name: str) -> None:
        await self._remove(asked, parent, name, AT_REMOVEDIR)

    async def rename(
        self, asked: Asked, parent: int, name: str, newparent: int, newname: str, flags: int
    ) -> None:
        """Trenameat replaces what is there: NOREPLACE and EXCHANGE cannot be promised."""
        if flags:
            raise FsError(E.INVALID, "rename with flags")
        olddir, newdir = await self.inodes.fid(asked, parent), await self.inodes.fid(asked, newparent)
        try:
            await asked.rpc(m.Trenameat(olddir, name, newdir, newname), m.Rrenameat)
        except FsError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            fid, _ = await walk(asked, olddir, (name,))  # diod, among others, has the older message only
            try:
                await asked.rpc(m.Trename(fid, newdir, newname), m.Rrename)
            finally:
                asked.live.connection.clunk(fid)
        self.inodes.moved(parent, name, self.inodes[newparent], newname)

    async def statfs(self, asked: Asked, number: int) -> m.Rstatfs:
        return await asked.rpc(m.Tstatfs(await self.inodes.fid(asked, number)), m.Rstatfs)

    # Open files

    async def open(self, asked: Asked, number: int, flags: int) -> tuple[Inode, int]:
        """A handle for the inode."""
        inode = await self.getattr(asked, number) if self.cached else self.inodes[number]
        source = await self.inodes.fid(asked, number)
        fid, reply = await walk_and(asked, source, (), lambda fid: m.Tlopen(fid, _flags(flags)), m.Rlopen)
        return inode, self._handle(Handle(inode, asked.live, fid, reply.iounit))

    async def create(
        self, asked: Asked, parent: int, name: str, flags: int, mode: int, gid: int
    ) -> tuple[Inode, int]:
        """A new file and a handle for it, or one for the file that is there already."""
        fid, iounit = await self._created(asked, parent, name, _flags(flags), mode, gid)
        try:
            inode = await self.lookup(asked, parent, name)
        except BaseException:
            asked.live.connection.clunk(fid)
            raise
        return inode, self._handle(Handle(inode, asked.live, fid, iounit))

    async def read(self, asked: Asked, handle: int, offset: int, count: int) -> memoryview:
        opened = self._open_handle(asked, handle)
        reply = await asked.rpc(m.Tread(opened.fid, offset, min(count, opened.unit)), m.Rread)
        return memoryview(reply.data)

    async def write(self, asked: Asked, handle: int, offset: int, data: bytes) -> int:
        opened = self._open_handle(asked, handle)
        return (await asked.rpc(m.Twrite(opened.fid, offset, data[: opened.unit]), m.Rwrite)).count

    async def readdir(self, asked: Asked, handle: int, offset: int, count: int) -> list[Dirent]:
        opened = self._open_handle(asked, handle)
        request = m.Treaddir(opened.fid, offset, min(count, opened.unit))
        return unpack_dirents(memoryview((await asked.rpc(request, m.Rreaddir)).data))

    async def fsync(self, asked: Asked, handle: int, datasync: int) -> None:
        await asked.rpc(m.Tfsync(self._open_handle(asked, handle).fid, datasync), m.Rfsync)

    def locked_by(self, handle: int, owner: int) -> bool:
        """Whether ``owner`` took byte-range locks on the open file, by this connection."""
        opened = self._handles[handle]
        return owner in opened.inode.lock_owners and opened.live.connection.session.error is None

    async def flush(self, asked: Asked, handle: int, owner: int) -> None:
        """A descriptor of ``owner`` was closed: it loses all its locks on the file."""
        opened = self._open_handle(asked, handle)
        opened.inode.lock_owners.discard(owner)
        await asked.rpc(self._lock_request(opened, LockType.UNLCK, 0, 0, owner), m.Rlock)

    def release(self, handle: int) -> None:
        """The last descriptor is closed."""
        opened = self._handles.pop(handle)
        opened.live.connection.clunk(opened.fid)

    async def setlk(
        self, asked: Asked, handle: int, type: LockType, start: int, length: int, owner: int, wait: bool
    ) -> None:
        """Take or release a byte range; length 0 runs to the end."""
        opened = self._open_handle(asked, handle)
        request = self._lock_request(opened, type, start, length, owner)
        opened.inode.lock_owners.add(owner)
        delay_s, delay_max_s = LOCK_WAIT_S
        while (status := (await asked.rpc(request, m.Rlock)).status) != LockStatus.SUCCESS:
            if status == LockStatus.ERROR:
                raise FsError(E.IO, "lock", errno=errno.ENOLCK)
            if not wait:
                raise FsError(E.BUSY, errno=errno.EAGAIN)
            try:
                await asyncio.wait_for(asked.interrupted.wait(), delay_s)
            except TimeoutError:
                delay_s = min(2 * delay_s, delay_max_s)

    async def getlk(
        self, asked: Asked, handle: int, type: LockType, start: int, length: int, owner: int
    ) -> m.Rgetlock:
        """The lock that is in the way, or one of type UNLCK."""
        opened = self._open_handle(asked, handle)
        request = m.Tgetlock(opened.fid, type, start, length, self._proc_id(owner), self._client_id)
        return await asked.rpc(request, m.Rgetlock)

    # Extended attributes

    async def getxattr(self, asked: Asked, number: int, name: str) -> bytes:
        """The value of one, or for name "" all names, each ended by NUL.

        Linux asks for capabilities before each write; a mount is nosuid and has none."""
        if name == "security.capability":
            raise FsError(E.NODATA)
        connection = asked.live.connection
        fid = await self.inodes.fid(asked, number)
        newfid = connection.session.take_fid()
        size = (await asked.rpc(m.Txattrwalk(fid, newfid, name), m.Rxattrwalk)).size
        value = b""
        try:
            while len(value) < min(size, XATTR_MAX):
                count = min(size - len(value), connection.session.msize - READ_OVERHEAD)
                piece = (await asked.rpc(m.Tread(newfid, len(value), count), m.Rread)).data
                if not piece:
                    break
                value += piece
        finally:
            connection.clunk(newfid)
        return value

    async def setxattr(self, asked: Asked, number: int, name: str, value: bytes, flags: int) -> None:
        """Set one; no value and no flags removes it. The server takes it, or not, at the clunk."""
        connection = asked.live.connection
        fid, _ = await walk(asked, await self.inodes.fid(asked, number), ())
        try:
            await asked.rpc(m.Txattrcreate(fid, name, len(value), flags), m.Rxattrcreate)
            offset, room = 0, connection.session.msize - IOHDRSZ
            while offset < len(value):
                piece = value[offset : offset + room]
                offset += (await asked.rpc(m.Twrite(fid, offset, piece), m.Rwrite)).count
        except BaseException:
            connection.clunk(fid)
            raise
        await asked.rpc(m.Tclunk(fid), m.Rclunk)

    # Fids

    async def _remove(self, asked: Asked, parent: int, name: str, flags: int) -> None:
        dfid = await self.inodes.fid(asked, parent)
        try:
            await asked.rpc(m.Tunlinkat(dfid, name, flags), m.Runlinkat)
        except FsError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            fid, _ = await walk(asked, dfid, (name,))
            await asked.rpc(m.Tremove(fid), m.Rremove)

    async def _created(
        self, asked: Asked, parent: int, name: str, flags: int, mode: int, gid: int
    ) -> tuple[int, int]:
        """Tlcreate on a clone of the directory: the new file's open fid, and its iounit."""
        dfid = await self.inodes.fid(asked, parent)
        given = flags | LO.CREAT, mode & 0o7777, gid
        fid, reply = await walk_and(asked, dfid, (), lambda fid: m.Tlcreate(fid, name, *given), m.Rlcreate)
        return fid, reply.iounit

    def _handle(self, handle: Handle) -> int:
        self._last_handle += 1
        self._handles[self._last_handle] = handle
        return self._last_handle

    def _open_handle(self, asked: Asked, number: int) -> Handle:
        handle = self._handles[number]
        if handle.live is not asked.live:
            if handle.live.connection.closed.done():
                raise FsError(E.IO, "opened before the connection was lost", errno=errno.ESTALE)
            asked.live = handle.live  # it was left, and serves what is open there
        return handle

    def _proc_id(self, owner: int) -> int:
        """The 32 bits that Tlock has for the kernel's 64 scrambled ones."""
        return (owner ^ owner >> 32) & 0xFFFFFFFF

    def _lock_request(self, handle: Handle, type: int, start: int, length: int, owner: int) -> m.Tlock:
        return m.Tlock(handle.fid, type, 0, start, length, self._proc_id(owner), self._client_id)
