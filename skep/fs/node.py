"""What a tree is made of: nodes (files and directories), handles (one open of a node), and who asks.

The framework above (chan.py) has checked before any of these methods is called: that names are legal path
elements, that a walked node is a directory, that the caller's namespace shows the path and grants the
operation, that a handle was opened for what is asked of it. Any operation may answer at once or give an
awaitable. It fails with FsError or OSError. The default of each is what a server says that lacks it, so a
node is written by overriding what it can do.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Awaitable, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from skep.fs.errors import E, FsError
from skep.fs.messages import DM, QT, LockStatus, Qid

T = TypeVar("T")
Maybe: TypeAlias = T | Awaitable[T]

_paths = itertools.count(1)


def new_path() -> int:
    """A qid path that no other node of this process has or had."""
    return next(_paths)


class Caller(msgspec.Struct, frozen=True):
    """Who asks: fixed at attach, from the transport and never from the client's word."""

    principal: str  # e.g. "unix:root", "spiffe://…"
    role: str
    tenant: str = "default/default/default"
    uid: int = 0  # the peer's, when the transport tells; else the server's own
    gid: int = 0
    user: str = "none"  # the principal's short name, shown as owner
    session: str = ""  # id of the 9P session; "" in process
    node: str = ""  # the hive's node that speaks, when the role is a node's
    token: str = ""  # the capability token that narrows the session; "" when none does
    certificate: str = ""  # the serial number of the one that was shown, in hex; "" when none was


class Attr(msgspec.Struct, frozen=True):
    """What stat and getattr tell. Times are ns since 1970, sizes bytes."""

    qid: Qid
    mode: int  # st_mode: file type and permissions
    size: int = 0
    uid: int = 0
    gid: int = 0
    user: str = "none"
    group: str = "none"
    muser: str = "none"
    nlink: int = 1
    rdev: int = 0
    blksize: int = 4096
    blocks: int = 0  # of 512 bytes
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    target: str = ""  # of a symbolic link; the device, "b 1 2", of a special file


class How(msgspec.Struct, frozen=True):
    """The mode of an open, the same for all dialects."""

    read: bool = False
    write: bool = False
    trunc: bool = False
    append: bool = False
    execute: bool = False
    flags: int = 0  # 9P2000.L's other flags, messages.LO; 0 from the other dialects


class Change(msgspec.Struct, frozen=True):
    """A setattr or wstat: None means leave it. All or nothing."""

    mode: int | None = None  # permissions, without the file type
    uid: int | None = None
    gid: int | None = None
    group: str | None = None  # by name, from 9P2000
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    ctime_now: bool = False
    rename: str | None = None  # a new name in the same directory (wstat); done by the framework


class Entry(NamedTuple):
    """One name in a directory. mode: the file type bits of st_mode. at: its place in a directory that is
    given in pages, from 1, where the next page goes on; 0 elsewhere."""

    name: str
    qid: Qid
    mode: int
    at: int = 0


class StatFs(NamedTuple):
    """A file system's sizes, in blocks of bsize bytes."""

    type: int = 0x01021997  # V9FS_MAGIC
    bsize: int = 4096
    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    fsid: int = 0
    namelen: int = 255


class Lock(NamedTuple):
    """A byte range and its owner; length 0 runs to the end of the file."""

    type: int  # messages.LockType
    start: int
    length: int
    proc_id: int
    client_id: str


class Handle:
    """One open of a node: the per-open state. Its calls come one at a time, but for a waiting read."""

    waits: bool = False
    """Whether a read may wait for an event: then clunk interrupts it, and all but reads pass it."""

    takes_secrets = False
    """Whether what is written is a secret: it is in no recording of the conversation."""

    tells_secrets = False
    """The same of what is read."""

    def read(self, offset: int, count: int) -> Maybe[bytes]:
        """At most ``count`` bytes at ``offset``; b"" at the end."""
        raise FsError(E.READONLY)

    def write(self, offset: int, data: memoryview) -> Maybe[int]:
        """Take ``data`` at ``offset``; how many bytes were taken."""
        raise FsError(E.READONLY)

    def entries(self) -> Maybe[Sequence[Entry]]:
        """All names of the directory, now, without "." and ".."."""
        raise FsError(E.NOTDIR)

    paged: bool = False
    """Whether a directory's names are asked for by ``page``, because there may be very many."""

    def page(self, after: int, limit: int) -> Maybe[Sequence[Entry]]:
        """Up to ``limit`` names whose places are above ``after``, by rising places; none: there are no more.

        Between two pages names may come and go: what was there all the time is given once."""
        raise FsError(E.NOTDIR)

    def fsync(self, datasync: bool) -> Maybe[None]:
        """Return when what was written is on stable storage."""
        return None

    def lock(self, lock: Lock, wait: bool) -> Maybe[LockStatus]:
        """Take or release a byte range; never waits (``wait`` only tells what the client asked)."""
        raise FsError(E.NOTSUP)

    def getlock(self, lock: Lock) -> Maybe[Lock]:
        """The lock that would be in the way, or ``lock`` with type UNLCK."""
        raise FsError(E.NOTSUP)

    def close(self) -> Maybe[None]:
        """The fid was clunked or its connection ended; called once, and no call comes after."""


class Node:
    """A file or directory. One object may stand for it in many fids at once."""

    def attr(self, caller: Caller) -> Maybe[Attr]:
        """What ``caller`` sees of it; Attr.qid.path is unique in the tree and never reused."""
        raise FsError(E.NOTSUP)

    def walk(self, name: str, caller: Caller) -> Maybe[Node]:
        """The node called ``name`` in this directory (never "." or ".."). Raises FsError(E.MISSING)."""
        raise FsError(E.NOTDIR)

    def open(self, how: How, caller: Caller) -> Maybe[Handle]:
        """A handle for ``how``."""
        raise FsError(E.READONLY)

    def create(self, name: str, mode: int, how: How, gid: int, caller: Caller) -> Maybe[tuple[Node, Handle]]:
        """A new file here, opened; ``mode`` its permissions. An existing one: EXISTS, unless ``how.flags``
        holds CREAT without EXCL (9P2000.L), which opens it."""
        raise FsError(E.READONLY)

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        """A new directory here."""
        raise FsError(E.READONLY)

    def symlink(self, name: str, target: str, gid: int, caller: Caller) -> Maybe[Node]:
        """A new symbolic link here; ``target`` is kept as it is."""
        raise FsError(E.READONLY)

    def mknod(self, name: str, mode: int, rdev: int, gid: int, caller: Caller) -> Maybe[Node]:
        """A new special file here; ``mode`` with its type, ``rdev`` as os.makedev."""
        raise FsError(E.READONLY)

    def link(self, name: str, node: Node, caller: Caller) -> Maybe[None]:
        """``node`` (of this tree) under one more name here."""
        raise FsError(E.READONLY)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> Maybe[None]:
        """Remove ``name``: a directory (True), anything else (False), or whichever it is (None)."""
        raise FsError(E.READONLY)

    def rename(self, name: str, to: Node, newname: str, replace: bool, caller: Caller) -> Maybe[None]:
        """Move ``name`` to the directory ``to`` (of this tree); over an existing one only if ``replace``."""
        raise FsError(E.READONLY)

    def readlink(self, caller: Caller) -> Maybe[str]:
        """Where a symbolic link points."""
        raise FsError(E.INVALID)

    def setattr(self, change: Change, caller: Caller) -> Maybe[None]:
        """All of ``change`` or nothing. By default only a truncation passes, silently: ``echo x > ctl``
        truncates first (Linux asks for new times with it), and synthetic files have no length to change."""
        others = change.mode, change.uid, change.gid, change.group
        if change.size is None or others != (None, None, None, None):
            raise FsError(E.READONLY)
        return None

    def statfs(self, caller: Caller) -> Maybe[StatFs]:
        """The sizes of the file system it is on."""
        return StatFs()

    def xattrs(self, caller: Caller) -> Maybe[Sequence[str]]:
        """The names of its extended attributes."""
        raise FsError(E.NOTSUP)

    def xattr(self, name: str, caller: Caller) -> Maybe[bytes]:
        """One extended attribute. Raises FsError(E.NODATA) when it is not there."""
        raise FsError(E.NOTSUP)

    def set_xattr(self, name: str, value: bytes, flags: int, caller: Caller) -> Maybe[None]:
        """Set one (flags: 1 XATTR_CREATE, 2 XATTR_REPLACE). An empty ``value`` without CREATE removes it:
        Linux asks for that with REPLACE."""
        raise FsError(E.NOTSUP)


_QT_BY_FORMAT: Final = {stat.S_IFDIR: QT.DIR, stat.S_IFLNK: QT.SYMLINK}


def qid_type(mode: int) -> int:
    """The qid type that goes with the file type bits of st_mode."""
    return int(_QT_BY_FORMAT.get(stat.S_IFMT(mode), QT.FILE))


_DM_BY_FORMAT: Final = {
    stat.S_IFDIR: DM.DIR, stat.S_IFLNK: DM.SYMLINK, stat.S_IFCHR: DM.DEVICE, stat.S_IFBLK: DM.DEVICE,
    stat.S_IFIFO: DM.NAMEDPIPE, stat.S_IFSOCK: DM.SOCKET,
}  # fmt: skip


def dm_mode(attr: Attr, unix: bool) -> int:
    """The mode of 9P2000: permissions, DMDIR, what the qid says and, where ``unix``, 9P2000.u's bits."""
    mode = attr.mode & 0o777 | (attr.qid.type & (QT.APPEND | QT.EXCL | QT.AUTH | QT.TMP)) << 24
    kind = _DM_BY_FORMAT.get(stat.S_IFMT(attr.mode), DM(0))
    if kind is DM.DIR or unix:
        mode |= kind
    if unix:
        mode |= (DM.SETUID if attr.mode & stat.S_ISUID else 0) | (
            DM.SETGID if attr.mode & stat.S_ISGID else 0
        )
    return int(mode)
