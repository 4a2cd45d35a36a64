"""One thing to say, three dialects: the requests and answers on files in which the dialects differ.

Without I/O; times are ns since 1970, sizes bytes. Sources: open(5), stat(5); the 9P2000.u draft; diod's
protocol.md for 9P2000.L.
"""

from __future__ import annotations

import stat
from typing import Final

from skep.fs.messages import (
    DM,
    GETATTR_ALL,
    LO,
    NONUNAME,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    Dialect,
    Message,
    Rcreate,
    Rgetattr,
    Rlcreate,
    Rlopen,
    Ropen,
    Rstat,
    Stat,
    Tcreate,
    Tgetattr,
    Tlcreate,
    Tlopen,
    Topen,
    Tstat,
)
from skep.fs.node import Attr, Entry, How
from skep.fs.wire import Dirent, unpack_stat

NS: Final = 1_000_000_000
_FORMATS: Final = (
    (DM.DIR, stat.S_IFDIR), (DM.SYMLINK, stat.S_IFLNK), (DM.DEVICE, stat.S_IFCHR),
    (DM.NAMEDPIPE, stat.S_IFIFO), (DM.SOCKET, stat.S_IFSOCK),
)  # fmt: skip
_MODES: Final = {
    "r": How(read=True),
    "w": How(write=True),
    "rw": How(read=True, write=True),
    "a": How(write=True, append=True),
}


def how(mode: str, trunc: bool = False) -> How:
    """The mode of an open by its letters: r, w, rw, a. Raises ValueError on others."""
    if mode not in _MODES:
        raise ValueError(f"open mode {mode!r}: expected one of {', '.join(_MODES)}")
    asked = _MODES[mode]
    return How(read=asked.read, write=asked.write, append=asked.append, trunc=trunc)


def _linux_flags(how: How) -> int:
    access = LO.RDWR if how.read and how.write else LO.WRONLY if how.write else 0
    return access | (LO.TRUNC if how.trunc else 0) | (LO.APPEND if how.append else 0) | how.flags


def _plain_mode(how: How) -> int:
    access = ORDWR if how.read and how.write else OWRITE if how.write else OREAD
    return access | (OTRUNC if how.trunc else 0)


def open_request(dialect: Dialect, fid: int, how: How) -> Message:
    """Open ``fid``. Only 9P2000.L can ask for appending; elsewhere the caller writes at the end."""
    if dialect is Dialect.L:
        return Tlopen(fid, _linux_flags(how))
    return Topen(fid, _plain_mode(how))


def create_request(dialect: Dialect, fid: int, name: str, mode: int, how: How, gid: int) -> Message:
    """Create ``name`` in the directory ``fid``, which becomes the new file, opened; never an existing one.

    ``mode``: permissions and, for a directory of 9P2000, S_IFDIR."""
    if dialect is Dialect.L:
        return Tlcreate(fid, name, _linux_flags(how) | LO.CREAT | LO.EXCL, mode & 0o7777, gid)
    return Tcreate(fid, name, mode & 0o777 | (DM.DIR if stat.S_ISDIR(mode) else 0), _plain_mode(how))


def iounit_of(reply: Message) -> int:
    """The most bytes for one read or write that an open was told; 0: whatever msize allows."""
    assert isinstance(reply, Ropen | Rlopen | Rcreate | Rlcreate)
    return reply.iounit


def stat_request(dialect: Dialect, fid: int) -> Message:
    """Ask for all attributes of ``fid``."""
    return Tgetattr(fid, GETATTR_ALL) if dialect is Dialect.L else Tstat(fid)


def attr_of(reply: Message) -> Attr:
    """The attributes in the answer to ``stat_request``."""
    if isinstance(reply, Rstat):
        return attr_of_stat(reply.stat)
    assert isinstance(reply, Rgetattr)
    return Attr(
        reply.qid, reply.mode, reply.size, reply.uid, reply.gid, str(reply.uid), str(reply.gid),
        nlink=reply.nlink, rdev=reply.rdev, blksize=reply.blksize, blocks=reply.blocks,
        atime_ns=reply.atime_sec * NS + reply.atime_nsec, mtime_ns=reply.mtime_sec * NS + reply.mtime_nsec,
        ctime_ns=reply.ctime_sec * NS + reply.ctime_nsec, btime_ns=reply.btime_sec * NS + reply.btime_nsec,
    )  # fmt: skip


def attr_of_stat(entry: Stat) -> Attr:
    """The attributes in a stat of 9P2000 or 9P2000.u. Owners without a number are uid 0's in number."""
    kind = next((format for bit, format in _FORMATS if entry.mode & bit), stat.S_IFREG)
    if kind == stat.S_IFCHR and entry.extension.startswith("b"):
        kind = stat.S_IFBLK
    special = (stat.S_ISUID if entry.mode & DM.SETUID else 0) | (
        stat.S_ISGID if entry.mode & DM.SETGID else 0
    )
    return Attr(
        entry.qid, kind | special | entry.mode & 0o777, entry.length,
        0 if entry.n_uid == NONUNAME else entry.n_uid, 0 if entry.n_gid == NONUNAME else entry.n_gid,
        entry.uid, entry.gid, entry.muid, blocks=-(-entry.length // 512), atime_ns=entry.atime * NS,
        mtime_ns=entry.mtime * NS, ctime_ns=entry.mtime * NS, target=entry.extension,
    )  # fmt: skip


def stats_of(data: memoryview, dialect: Dialect) -> list[tuple[str, Attr]]:
    """The entries in what a directory of 9P2000 or 9P2000.u reads as. Raises FsError(E.PROTO)."""
    found, at = [], 0
    while at < len(data):
        entry, size = unpack_stat(data[at:], dialect)
        found.append((entry.name, attr_of_stat(entry)))
        at += size
    return found


def entry_of(dirent: Dirent) -> Entry:
    """The entry of a 9P2000.L directory: its DT_* is the file type of st_mode, shifted."""
    return Entry(dirent.name, dirent.qid, dirent.type << 12)
