"""The FUSE door: the kernel's requests taken on our event loop, performed by a Mirror, answered when done.

Importing this module fails where skep.native._fuse has not been built. libfuse's own loop is not used, so
that nothing blocks and an interrupt (^C on a blocked read) reaches the request it means.

Sources: fuse_lowlevel.h of libfuse 3.14; Linux fs/fuse for what it relies on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from skep.fs import messages as m
from skep.fs.errors import E, FsError
from skep.fs.inodes import Inode
from skep.fs.link import Asked, Link
from skep.fs.messages import SA, LockType
from skep.fs.mirror import Mirror
from skep.fs.wire import Dirent
from skep.native._fuse import ffi, lib

log = logging.getLogger("skep.fs")
PAGE: Final = 4096
UNIT_MAX: Final = 1 << 20  # the kernel's own limit for one request
TURN_MAX: Final = 64  # requests taken before others have a turn on the loop
PATIENCE_S: Final = 2.0  # how long an interrupted request may wait for the server's Rflush
CACHE_S: Final = 1.0  # how long attributes and names are believed with ``cache``
_SETATTR: Final = (
    (1 << 0, SA.MODE), (1 << 1, SA.UID), (1 << 2, SA.GID), (1 << 3, SA.SIZE),
    (1 << 4, SA.ATIME | SA.ATIME_SET), (1 << 5, SA.MTIME | SA.MTIME_SET),
    (1 << 7, SA.ATIME), (1 << 8, SA.MTIME), (1 << 10, SA.CTIME),
)  # fmt: skip
_LOCK_TYPES: Final = (LockType.RDLCK, LockType.WRLCK, LockType.UNLCK)  # by Linux's F_RDLCK, F_WRLCK, F_UNLCK


class Host:
    """One FUSE mount: ``start`` it, wait for ``ended``, ``stop`` it."""

    def __init__(self, link: Link, options: Sequence[str], cache: bool) -> None:
        """``options``: as after mount's -o, one each. ``link`` has been dialled."""
        self.mirror = Mirror(link.live.qid, cache)
        self.cache = cache
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._running: dict[int, tuple[asyncio.Task[Any], Asked]] = {}  # by the request's address
        self._handle = ffi.new_handle(self)
        unit = min(link.live.connection.session.msize - m.IOHDRSZ, UNIT_MAX) // PAGE * PAGE
        if unit < PAGE:
            raise FsError(E.VERSION, f"an msize of {link.live.connection.session.msize} is less than a page")
        self._host = ffi.new("host_t *", {"owner": self._handle, "unit": unit})
        told = ",".join([*options, f"max_read={unit}"])
        argv = [ffi.new("char[]", os.fsencode(text)) for text in ("skep", "-o", told)]
        self._session = lib.fuse_start(len(argv), ffi.new("char *[]", argv), self._host)
        if self._session == ffi.NULL:
            raise FsError(E.USAGE, f"libfuse does not take the options {told}")

    def start(self, directory: str) -> None:
        """Mount at ``directory``. libfuse says on stderr why when that fails. Raises FsError."""
        if lib.fuse_session_mount(self._session, os.fsencode(directory)) != 0:
            lib.fuse_end(self._session, self._host)
            raise FsError(E.IO, f"{directory} cannot be mounted")
        self._fd = lib.fuse_session_fd(self._session)
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    async def stop(self) -> None:
        """Answer what waits with EINTR, unmount (lazily, if somebody is in there), free everything."""
        asyncio.get_running_loop().remove_reader(self._fd)
        tasks = [task for task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        while self._running:
            await asyncio.sleep(0)  # their done-callbacks answer
        lib.fuse_session_unmount(self._session)
        lib.fuse_end(self._session, self._host)

    def _readable(self) -> None:
        for _ in range(TURN_MAX):
            got = lib.fuse_next(self._session, self._host)
            if got in (-errno.EAGAIN, -errno.EINTR):
                return
            if got <= 0:
                asyncio.get_running_loop().remove_reader(self._fd)
                if not self.ended.done():
                    self.ended.set_result(None)
                return

    def asked(self, ask: Any) -> None:
        """One request, whose pointers are good only now. It is answered after this returns."""
        if ask.op == lib.ASK_FORGET:
            self.mirror.inodes.forget(ask.node, ask.size)
            return
        if ask.op in (lib.ASK_RELEASE, lib.ASK_RELEASEDIR):
            self.mirror.release(ask.fh)
            self._soon(ask.req, 0)
        elif ask.op == lib.ASK_FLUSH and not self.mirror.locked_by(ask.fh, ask.owner):
            # Writes have been answered each on its own: nothing is left that could fail at a close.
            self._soon(ask.req, 0)
        else:
            self._start(ROWS[ask.op], ask)

    def _start(self, row: Row, ask: Any) -> None:
        try:
            work = Asked(self._link)
        except FsError as error:
            self._soon(ask.req, error.errno)
            return
        to = To(self, ask.req, ask.size)
        task = asyncio.get_running_loop().create_task(row.method(self.mirror, work, *row.args(ask)))
        self._running[_address(to.req)] = (task, work)
        task.add_done_callback(lambda done: self._finished(to, row, done))

    @staticmethod
    def _soon(req: Any, error: int) -> None:
        asyncio.get_running_loop().call_soon(lib.fuse_reply_err, req, error)

    def interrupted(self, req: Any) -> None:
        """The process that waits for ``req`` has been sent a signal."""
        task, work = self._running.get(_address(req), (None, None))
        if task is not None and work is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(work.interrupt)
            loop.call_later(PATIENCE_S, task.cancel)

    def _finished(self, to: To, row: Row, task: asyncio.Task[Any]) -> None:
        """The one boundary: whatever an operation raises becomes an errno here."""
        del self._running[_address(to.req)]
        try:
            result = task.result()
        except asyncio.CancelledError:
            lib.fuse_reply_err(to.req, errno.EINTR)
        except FsError as error:
            lib.fuse_reply_err(to.req, error.errno)
        except Exception:
            log.exception("a file operation failed")
            lib.fuse_reply_err(to.req, errno.EIO)
        else:
            row.tell(to, result)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def fuse_asked(owner: Any, ask: Any) -> None:
    ffi.from_handle(owner).asked(ask)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def fuse_interrupted(owner: Any, req: Any) -> None:
    ffi.from_handle(owner).interrupted(req)


def _address(req: Any) -> int:
    return int(ffi.cast("uintptr_t", req))


# What the arguments of an ask are, taken while its pointers are good.


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode("utf-8", "surrogateescape"))


def _data(ask: Any) -> bytes:
    return bytes(ffi.buffer(ask.data, ask.size))


def _lock(ask: Any) -> tuple[LockType, int, int]:
    return _LOCK_TYPES[ask.lock_type], ask.start, ask.length


def _setattr(ask: Any) -> tuple[Any, ...]:
    valid = SA(0)
    for bit, told in _SETATTR:
        valid |= told if ask.valid & bit else SA(0)
    return ask.node, valid, ask.mode, ask.uid, ask.gid, ask.size, ask.atime_ns, ask.mtime_ns


# How results are told.


class To(NamedTuple):
    """Who waits for a result, and for how many bytes there is room."""

    host: Host
    req: Any
    room: int


class Row(NamedTuple):
    """One operation: what performs it, its arguments out of the ask, how its result is told."""

    method: Callable[..., Any]
    args: Callable[[Any], tuple[Any, ...]]
    tell: Callable[[To, Any], Any]


def _attr(inode: Inode) -> Any:
    attr = inode.attr
    assert attr is not None
    return ffi.new(
        "attr_t *",
        (
            attr.qid.path or inode.number, attr.size, attr.blocks, attr.nlink, attr.rdev, attr.mode, attr.uid,
            attr.gid, attr.blksize, attr.atime_ns, attr.mtime_ns, attr.ctime_ns,
        ),
    )  # fmt: skip


def _timeout(host: Host) -> float:
    return CACHE_S if host.cache else 0.0


def _direct(host: Host, inode: Inode) -> bool:
    """Files go past the page cache: those that make up what they say have no length the kernel could
    believe, and the others change by other hands. With ``cache``, what has a length is cached."""
    return not (host.cache and inode.attr is not None and inode.attr.size)


def _tell_entry(to: To, inode: Inode) -> None:
    lib.fuse_answer_entry(to.req, inode.number, _attr(inode), _timeout(to.host))


def _tell_attr(to: To, inode: Inode) -> None:
    lib.fuse_answer_attr(to.req, _attr(inode), _timeout(to.host))


def _tell_open(to: To, opened: tuple[Inode, int]) -> None:
    inode, handle = opened
    lib.fuse_answer_open(to.req, handle, _direct(to.host, inode))


def _tell_opendir(to: To, opened: tuple[Inode, int]) -> None:
    lib.fuse_answer_open(to.req, opened[1], False)


def _tell_create(to: To, opened: tuple[Inode, int]) -> None:
    inode, handle = opened
    direct = _direct(to.host, inode)
    lib.fuse_answer_create(to.req, inode.number, _attr(inode), _timeout(to.host), handle, direct)


def _tell_data(to: To, data: memoryview) -> None:
    lib.fuse_reply_buf(to.req, ffi.from_buffer(data), len(data))


def _tell_dirents(to: To, dirents: list[Dirent]) -> None:
    """As many as there is room for; the kernel goes on at the cookie of the last."""
    buffer = ffi.new("char[]", to.room)
    used = 0
    for entry in dirents:
        name = entry.name.encode("utf-8", "surrogateescape")
        ino, kind = entry.qid.path or 1, entry.type << 12
        size = lib.fuse_put_dirent(buffer + used, to.room - used, name, ino, kind, entry.offset)
        if size > to.room - used:
            break
        used += size
    lib.fuse_reply_buf(to.req, buffer, used)


def _tell_xattr(to: To, value: bytes) -> None:
    if to.room == 0:
        lib.fuse_reply_xattr(to.req, len(value))
    elif len(value) > to.room:
        lib.fuse_reply_err(to.req, errno.ERANGE)
    else:
        lib.fuse_reply_buf(to.req, value, len(value))


def _tell_target(to: To, target: str) -> None:
    lib.fuse_reply_readlink(to.req, target.encode("utf-8", "surrogateescape"))


def _tell_written(to: To, count: int) -> None:
    lib.fuse_reply_write(to.req, count)


def _tell_statfs(to: To, s: m.Rstatfs) -> None:
    lib.fuse_answer_statfs(to.req, s.bsize, s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.fsid, s.namelen)


def _tell_lock(to: To, lock: m.Rgetlock) -> None:
    lib.fuse_answer_lock(
        to.req, _LOCK_TYPES.index(LockType(lock.type)), lock.start, lock.length, lock.proc_id
    )


def _tell_done(to: To, result: None) -> None:
    lib.fuse_reply_err(to.req, 0)


ROWS: Final = {
    lib.ASK_LOOKUP: Row(Mirror.lookup, lambda a: (a.node, _text(a.name)), _tell_entry),
    lib.ASK_GETATTR: Row(Mirror.getattr, lambda a: (a.node,), _tell_attr),
    lib.ASK_SETATTR: Row(Mirror.setattr, _setattr, _tell_attr),
    lib.ASK_READLINK: Row(Mirror.readlink, lambda a: (a.node,), _tell_target),
    lib.ASK_MKNOD: Row(Mirror.mknod, lambda a: (a.node, _text(a.name), a.mode, a.rdev, a.gid), _tell_entry),
    lib.ASK_MKDIR: Row(Mirror.mkdir, lambda a: (a.node, _text(a.name), a.mode, a.gid), _tell_entry),
    lib.ASK_UNLINK: Row(Mirror.unlink, lambda a: (a.node, _text(a.name)), _tell_done),
    lib.ASK_RMDIR: Row(Mirror.rmdir, lambda a: (a.node, _text(a.name)), _tell_done),
    lib.ASK_SYMLINK: Row(
        Mirror.symlink, lambda a: (a.node, _text(a.name), _text(a.other_name), a.gid), _tell_entry
    ),
    lib.ASK_RENAME: Row(
        Mirror.rename,
        lambda a: (a.node, _text(a.name), a.other, _text(a.other_name), a.flags),
        _tell_done,
    ),
    lib.ASK_LINK: Row(Mirror.link_to, lambda a: (a.node, a.other, _text(a.name)), _tell_entry),
    lib.ASK_OPEN: Row(Mirror.open, lambda a: (a.node, a.flags), _tell_open),
    lib.ASK_READ: Row(Mirror.read, lambda a: (a.fh, a.offset, a.size), _tell_data),
    lib.ASK_WRITE: Row(Mirror.write, lambda a: (a.fh, a.offset, _data(a)), _tell_written),
    lib.ASK_FLUSH: Row(Mirror.flush, lambda a: (a.fh, a.owner), _tell_done),
    lib.ASK_FSYNC: Row(Mirror.fsync, lambda a: (a.fh, a.flags), _tell_done),
    lib.ASK_OPENDIR: Row(Mirror.open, lambda a: (a.node, a.flags), _tell_opendir),
    lib.ASK_READDIR: Row(Mirror.readdir, lambda a: (a.fh, a.offset, a.size), _tell_dirents),
    lib.ASK_STATFS: Row(Mirror.statfs, lambda a: (a.node,), _tell_statfs),
    lib.ASK_SETXATTR: Row(Mirror.setxattr, lambda a: (a.node, _text(a.name), _data(a), a.flags), _tell_done),
    lib.ASK_GETXATTR: Row(Mirror.getxattr, lambda a: (a.node, _text(a.name)), _tell_xattr),
    lib.ASK_LISTXATTR: Row(Mirror.getxattr, lambda a: (a.node, ""), _tell_xattr),
    lib.ASK_REMOVEXATTR: Row(Mirror.setxattr, lambda a: (a.node, _text(a.name), b"", 0), _tell_done),
    lib.ASK_CREATE: Row(
        Mirror.create, lambda a: (a.node, _text(a.name), a.flags, a.mode, a.gid), _tell_create
    ),
    lib.ASK_GETLK: Row(Mirror.getlk, lambda a: (a.fh, *_lock(a), a.owner), _tell_lock),
    lib.ASK_SETLK: Row(Mirror.setlk, lambda a: (a.fh, *_lock(a), a.owner, bool(a.flags)), _tell_done),
}
