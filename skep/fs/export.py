"""A directory of the host as a tree, with the rights of the serving user. Locks are in locks.py.

No path is ever kept: a node holds an O_PATH descriptor and finds its children by single names beneath it, so
no symbolic link, rename or mount on the host leads a client elsewhere, and a node stays what it was through
renames and removal. Opens, and calls that take paths only, go through /proc/self/fd (procfs must be mounted).

Decisions:

- Everything is done at once, on the loop, but fsync (in a thread) and long listings (in pieces): what the
  page cache answers takes less than a thread would. A slow network file system stalls the server with it.
- qid.path is made from device and file handle (host.c): the same for every walk, listing and handle without a
  table that grows, another when the inode is used again. qid.vers changes with mtime, ctime or size.
- Pipes, sockets and devices can be made, seen and removed but not opened: 9P clients open their own, and a
  device node made by a client is a way out of the tree (CVE-2023-2861). The answer is ENXIO.
- Permissions asked for at creation are given in full: the client has applied its own umask already.
- A directory that the host moves out of the exported one takes its nodes with it: they go on to be served.

Sources: openat2(2), symlink(7), proc(5), diod's protocol.md.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import stat
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final

from skep.fs.errors import E, FsError
from skep.fs.locks import END, Key, Locks, Owner
from skep.fs.messages import LO, NONUNAME, LockStatus, Qid
from skep.fs.node import Attr, Caller, Change, Entry, Handle, How, Lock, Node, StatFs, qid_type
from skep.fs.owners import gid_of, group_name, user_name
from skep.native.host import UTIME_NOW, UTIME_OMIT, Listed, Stat, calls, failure

CREATE_TRIES: Final = 16  # how often a name may come and go under one create
_KEPT_FLAGS: Final = LO.DSYNC | LO.SYNC  # of Tlopen's: the others are the client's own affair, or unsafe here
_BASE: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a leased file answers EAGAIN, it does not wait
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_S: Final = 1_000_000_000
_OMIT: Final = (0, UTIME_OMIT)


class Export:
    """A served directory; ``root`` is its root node."""

    def __init__(self, root_path: str | os.PathLike[str], read_only: bool = False) -> None:
        self.root = HostNode(_Tree(read_only), os.open(root_path, _PATH | os.O_DIRECTORY))


class _Tree:
    """What the nodes of one export share."""

    def __init__(self, read_only: bool) -> None:
        self.read_only = read_only
        self.locks = Locks()
        # os.umask can only be read by setting it, for a moment and for all threads.
        with open("/proc/self/status") as status:
            self.umask = next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))

    def check_writable(self) -> None:
        if self.read_only:
            raise FsError(E.READONLY, "read-only export", errno=errno.EROFS)


class _Descriptor:
    """Closes ``fd`` with the last reference to its owner."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.fd >= 0:
            close(self.fd)

    @property
    def place(self) -> str:
        """A path that leads to the very file, be it renamed or removed."""
        return f"/proc/self/fd/{self.fd}"


class HostNode(_Descriptor, Node):
    """A file of the host. ``fd`` is its O_PATH descriptor, ``path`` its qid's; both last as long as it."""

    def __init__(self, tree: _Tree, fd: int, told: Stat | None = None) -> None:
        _Descriptor.__init__(self, fd)
        self.tree = tree
        told = told or calls.stat(fd)
        self.path = told.path
        self.format = stat.S_IFMT(told.mode)
        self.key: Key = (told.dev, told.ino)
        self._writer: weakref.ref[HostHandle] | None = None

    def attr(self, caller: Caller) -> Attr:
        told = calls.stat(self.fd, self.path)
        return Attr(
            qid=Qid(qid_type(told.mode), told.vers, told.path),
            mode=told.mode,
            size=told.size,
            uid=told.uid,
            gid=told.gid,
            user=user_name(told.uid),
            group=group_name(told.gid),
            nlink=told.nlink,
            rdev=told.rdev,
            blksize=told.blksize,
            blocks=told.blocks,
            atime_ns=max(told.atime_ns, 0),  # 9P has no time before 1970
            mtime_ns=max(told.mtime_ns, 0),
            ctime_ns=max(told.ctime_ns, 0),
            btime_ns=max(told.btime_ns, 0),
            target=self._target(told),
        )

    def _target(self, told: Stat) -> str:
        if self.format == stat.S_IFLNK:
            return _text(os.readlink(b"", dir_fd=self.fd))
        letter = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(self.format)
        return f"{letter} {os.major(told.rdev)} {os.minor(told.rdev)}" if letter else ""

    def walk(self, name: str, caller: Caller) -> HostNode:
        return HostNode(self.tree, *calls.open_child(self.fd, _raw(name)))

    def open(self, how: How, caller: Caller) -> HostHandle:
        if self.format == stat.S_IFLNK:
            raise failure(errno.ELOOP)
        if self.format == stat.S_IFDIR:
            if how.write or how.trunc:
                raise failure(errno.EISDIR)
        elif self.format != stat.S_IFREG:
            raise FsError(E.NOTSUP, "pipes, sockets and devices are not opened", errno=errno.ENXIO)
        elif how.flags & LO.DIRECTORY:
            raise failure(errno.ENOTDIR)
        if how.write or how.trunc:
            self.tree.check_writable()
        if how.execute and not os.access(self.place, os.X_OK, effective_ids=True):
            raise failure(errno.EACCES)
        return self._opened(os.open(self.place, _flags(how)), how, caller)

    def _opened(self, fd: int, how: How, caller: Caller) -> HostHandle:
        handle = HostHandle(self, fd, caller)
        if how.write:
            self._writer = weakref.ref(handle)
        return handle

    def create(self, name: str, mode: int, how: How, gid: int, caller: Caller) -> tuple[HostNode, HostHandle]:
        raw = _raw(name)
        may_exist = bool(how.flags & LO.CREAT) and not how.flags & LO.EXCL
        for _ in range(CREATE_TRIES):
            if may_exist:
                with suppress(FileNotFoundError):
                    node = self.walk(name, caller)
                    if node.format == stat.S_IFDIR:
                        raise failure(errno.EISDIR)
                    return node, node.open(how, caller)
            self.tree.check_writable()
            flags = _flags(how) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            try:
                fd = os.open(raw, flags, mode & 0o7777, dir_fd=self.fd)
            except FileExistsError:
                if may_exist:
                    continue
                raise
            made = _Descriptor(fd)
            node = HostNode(self.tree, os.open(made.place, _PATH))
            made.fd = -1
            handle = node._opened(fd, how, caller)
            node._settle(mode, gid, self)
            return node, handle
        raise failure(errno.EEXIST)

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> HostNode:
        self.tree.check_writable()
        os.mkdir(_raw(name), mode & 0o1777, dir_fd=self.fd)
        return self._made(name, stat.S_IFDIR | mode & 0o1777, gid, caller)

    def symlink(self, name: str, target: str, gid: int, caller: Caller) -> HostNode:
        self.tree.check_writable()
        os.symlink(_raw(target, name=False), _raw(name), dir_fd=self.fd)
        return self._made(name, stat.S_IFLNK, gid, caller)

    def mknod(self, name: str, mode: int, rdev: int, gid: int, caller: Caller) -> HostNode:
        self.tree.check_writable()
        os.mknod(_raw(name), mode & 0o177777, rdev, dir_fd=self.fd)
        return self._made(name, mode if stat.S_IFMT(mode) else mode | stat.S_IFREG, gid, caller)

    def _made(self, name: str, mode: int, gid: int, caller: Caller) -> HostNode:
        """The node just made as ``name``, with the group and all of the permissions asked for."""
        node = self.walk(name, caller)
        told = calls.stat(node.fd, node.path)
        # Another process of the host may have put something of its own there: that is left as it is.
        if node.format == stat.S_IFMT(mode) and told.uid == os.geteuid() and (
            told.nlink == 1 or node.format == stat.S_IFDIR
        ):  # fmt: skip
            node._settle(mode, gid, self)
        return node

    def _settle(self, mode: int, gid: int, parent: HostNode) -> None:
        """Give a new file its group, where permitted, and what the umask or that took from its mode."""
        told = calls.stat(self.fd, self.path)
        if gid not in (NONUNAME, -1, told.gid):
            with suppress(PermissionError):
                os.chown(self.place, -1, gid)
                told = calls.stat(self.fd, self.path)
        if self.format == stat.S_IFLNK:
            return
        missing = mode & (self.tree.umask | stat.S_ISUID | stat.S_ISGID) & ~told.mode
        # A default ACL stands in for the umask, and is the directory's owner's wish.
        if missing and not (missing & 0o777 and parent._has_default_acl()):
            with suppress(PermissionError):
                os.chmod(self.place, stat.S_IMODE(told.mode) | missing)

    def _has_default_acl(self) -> bool:
        try:
            return bool(os.getxattr(self.place, "system.posix_acl_default"))
        except OSError:
            return False

    def link(self, name: str, node: Node, caller: Caller) -> None:
        self.tree.check_writable()
        source = self._ours(node)
        if source.format == stat.S_IFDIR:
            raise failure(errno.EPERM)
        os.link(source.place, _raw(name), dst_dir_fd=self.fd)

    def _ours(self, node: Node) -> HostNode:
        if not isinstance(node, HostNode) or node.tree is not self.tree:
            raise failure(errno.EXDEV)
        return node

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        self.tree.check_writable()
        raw = _raw(name)
        if directory:
            os.rmdir(raw, dir_fd=self.fd)
            return
        try:
            os.unlink(raw, dir_fd=self.fd)
        except IsADirectoryError:
            if directory is False:
                raise
            os.rmdir(raw, dir_fd=self.fd)

    def rename(self, name: str, to: Node, newname: str, replace: bool, caller: Caller) -> None:
        self.tree.check_writable()
        raw, newraw, target = _raw(name), _raw(newname), self._ours(to)
        if not replace:
            try:
                return calls.rename_new(self.fd, raw, target.fd, newraw)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
            # This file system cannot refuse by itself: another process may come between look and leap.
            with suppress(FileNotFoundError):
                os.stat(newraw, dir_fd=target.fd, follow_symlinks=False)
                raise failure(errno.EEXIST)
        os.rename(raw, newraw, src_dir_fd=self.fd, dst_dir_fd=target.fd)
        return None

    def readlink(self, caller: Caller) -> str:
        if self.format != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        return _text(os.readlink(b"", dir_fd=self.fd))

    def setattr(self, change: Change, caller: Caller) -> None:
        """In order: times (a trial), owner, mode, size, times again. When one fails those before are undone;
        the size, which cannot be, is the last that may fail."""
        self.tree.check_writable()
        before = calls.stat(self.fd, self.path)
        with ExitStack() as undo:
            for do, back in self._steps(change, before):
                do()
                undo.callback(_quietly, back)
            undo.pop_all()

    def _steps(
        self, change: Change, before: Stat
    ) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
        """What ``change`` asks for: each deed and its undoing."""
        link = self.format == stat.S_IFLNK
        if change.mode is not None and link:
            raise failure(errno.EOPNOTSUPP)
        uid = _number(change.uid)
        gid = _number(change.gid if change.group is None else gid_of(change.group))
        times = _time(change.atime_now, change.atime_ns), _time(change.mtime_now, change.mtime_ns)
        set_times = functools.partial(calls.utime, self.fd, *times)
        old_times = divmod(before.atime_ns, _S), divmod(before.mtime_ns, _S)
        chmod = functools.partial(os.chmod, self.place)
        old_mode = functools.partial(chmod, stat.S_IMODE(before.mode))
        if times != (_OMIT, _OMIT):
            yield set_times, functools.partial(calls.utime, self.fd, *old_times)
        if (uid, gid) != (-1, -1):
            if not link:
                yield _nothing, old_mode  # a change of owner drops set-user-id
            yield (
                functools.partial(os.chown, self.place, uid, gid),
                functools.partial(os.chown, self.place, before.uid, before.gid),
            )
        if change.mode is not None:
            yield functools.partial(chmod, change.mode & 0o7777), old_mode
        if change.size is not None:
            yield functools.partial(self._truncate, change.size), _nothing
            if times != (_OMIT, _OMIT):
                yield set_times, _nothing
        if change == Change(ctime_now=True) and not link:
            yield old_mode, _nothing

    def _truncate(self, size: int) -> None:
        if size >= END:
            raise failure(errno.EFBIG)
        try:
            os.truncate(self.place, size)
        except PermissionError:
            # Who has it open for writing may, whatever its mode has become.
            writer = self._writer() if self._writer else None
            if writer is None or writer.fd < 0:
                raise
            os.ftruncate(writer.fd, size)

    def statfs(self, caller: Caller) -> StatFs:
        fs = os.fstatvfs(self.fd)
        return StatFs(
            bsize=fs.f_frsize, blocks=fs.f_blocks, bfree=fs.f_bfree, bavail=fs.f_bavail, files=fs.f_files,
            ffree=fs.f_ffree, fsid=fs.f_fsid & (1 << 64) - 1, namelen=fs.f_namemax,
        )  # fmt: skip

    def xattrs(self, caller: Caller) -> Sequence[str]:
        return [_text(os.fsencode(name)) for name in os.listxattr(self.place)]

    def xattr(self, name: str, caller: Caller) -> bytes:
        return os.getxattr(self.place, _raw(name, name=False))

    def set_xattr(self, name: str, value: bytes, flags: int, caller: Caller) -> None:
        self.tree.check_writable()
        if flags not in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
            raise failure(errno.EINVAL)
        if value or flags & os.XATTR_CREATE:
            os.setxattr(self.place, _raw(name, name=False), value, flags)
        else:
            os.removexattr(self.place, _raw(name, name=False))


class HostHandle(_Descriptor, Handle):
    """One open of a host file: ``fd`` is its descriptor, opened as asked, until close."""

    def __init__(self, node: HostNode, fd: int, caller: Caller) -> None:
        _Descriptor.__init__(self, fd)
        self.key = node.key
        self._locks = node.tree.locks
        self._session = caller.session

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset) if offset < END else b""

    def write(self, offset: int, data: memoryview) -> int:
        if offset >= END:
            raise failure(errno.EFBIG)
        # Linux appends here, whatever the offset, when opened with O_APPEND.
        return os.pwrite(self.fd, data, offset)

    def entries(self) -> list[Entry] | Awaitable[list[Entry]]:
        some = calls.listing(self.fd)
        entries = _entries(next(some, []))
        more = next(some, None)
        return entries if more is None else self._all(entries, more, some)

    async def _all(
        self, entries: list[Entry], more: list[Listed], some: Iterator[list[Listed]]
    ) -> list[Entry]:
        """The entries of a directory so large that others get their turn meanwhile."""
        entries += _entries(more)
        for more in some:
            entries += _entries(more)
            await asyncio.sleep(0)
        return entries

    async def fsync(self, datasync: bool) -> None:
        # A flushed fsync leaves its thread behind, which must not meet another file under a closed number.
        await asyncio.to_thread(_sync, _Descriptor(os.dup(self.fd)), datasync)

    def lock(self, lock: Lock, wait: bool) -> LockStatus:
        return self._locks.lock(self.key, self.fd, self._owner(lock), lock)

    def getlock(self, lock: Lock) -> Lock:
        return self._locks.getlock(self.key, self.fd, self._owner(lock), lock)

    def _owner(self, lock: Lock) -> Owner:
        return self._session, lock.client_id, lock.proc_id

    def close(self) -> None:
        self._locks.release(self.key, self.fd)
        fd, self.fd = self.fd, -1
        os.close(fd)


def _sync(own: _Descriptor, datasync: bool) -> None:
    (os.fdatasync if datasync else os.fsync)(own.fd)


def _entries(listed: list[Listed]) -> list[Entry]:
    return [
        Entry(_text(name), Qid(qid_type(mode), vers, path), stat.S_IFMT(mode))
        for name, path, vers, mode in listed
    ]


def _raw(text: str, name: bool = True) -> bytes:
    """The bytes of a client's string; of a ``name``, when it is one path element."""
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw or (name and (raw in (b"", b".", b"..") or b"/" in raw)):
        raise FsError(E.INVALID, f"{text!r} is not a file's name")
    return raw


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _flags(how: How) -> int:
    """open(2)'s flags for ``how``."""
    access = os.O_RDWR if how.read and how.write else os.O_WRONLY if how.write else os.O_RDONLY
    append = os.O_APPEND if how.append else 0
    trunc = os.O_TRUNC if how.trunc else 0
    return access | append | trunc | _BASE | int(how.flags & _KEPT_FLAGS)


def _time(now: bool, ns: int | None) -> tuple[int, int]:
    """One of utimensat's times, (s, ns). Raises EINVAL on one no file can have."""
    if now:
        return 0, UTIME_NOW
    if ns is None:
        return _OMIT
    if not -END * _S <= ns < END * _S:
        raise failure(errno.EINVAL)
    return divmod(ns, _S)


def _number(owner: int | None) -> int:
    """chown(2)'s argument. Raises EINVAL on the one number that means none there, and on those beyond."""
    if owner is None:
        return -1
    if not 0 <= owner < NONUNAME:
        raise failure(errno.EINVAL)
    return owner


def _nothing() -> None:
    """The undoing of what cannot be, or need not be, undone."""


def _quietly(undo: Callable[[], object]) -> None:
    with suppress(OSError):
        undo()
