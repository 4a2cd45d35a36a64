"""The system calls of an exported directory that Python's os lacks: host.c, else its twin.

A file is told as ``Stat``; how its qid is made is told in host.c. Every call raises OSError. Descriptors may
be O_PATH ones wherever a file is named by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
RECORD: Final = Struct("=QIIH")  # path[8] vers[4] mode[4] length[2], before each name of a listing
FIELDS: Final = 20  # in which host.c tells of a file
LISTING_SIZE: Final = 32768  # bytes asked of one getdents64, as glibc does
_S: Final = 1_000_000_000
_U64: Final = (1 << 64) - 1
_tuple_new: Final = tuple.__new__  # a third of the time of Stat(...)


class Stat(NamedTuple):
    """struct stat, birth time and qid of a file; times are ns since 1970, blocks of 512 bytes."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    dev: int
    ino: int
    path: int
    vers: int


class Listed(NamedTuple):
    """One name in a directory, its qid's path and vers, and its st_mode: only the type, where the name may
    not be looked up."""

    name: bytes
    path: int
    vers: int
    mode: int


def failure(number: int, *names: object) -> OSError:
    """The OSError (of the errno's own class) of a failed call."""
    return OSError(number, os.strerror(number), *names)


class Compiled:
    """The calls, by host.c."""

    def __init__(self) -> None:
        from skep.native._host import ffi, lib

        self._new: Callable[..., Any] = ffi.new
        self._unpack: Callable[..., list[int]] = ffi.unpack
        self._buffer: Callable[..., Any] = ffi.buffer
        self._lib: Any = lib
        self._out = ffi.typeof(f"int64_t[{FIELDS}]")

    def _told(self, out: Any, path: int | None = None) -> Stat:
        (
            mode, nlink, uid, gid, rdev, size, blksize, blocks,
            a, an, m, mn, c, cn, b, bn, dev, ino, made, vers,
        ) = self._unpack(out, FIELDS)  # fmt: skip
        return _tuple_new(Stat, (
            mode, nlink, uid, gid, rdev, size, blksize, blocks, a * _S + an, m * _S + mn, c * _S + cn,
            b * _S + bn, dev, ino, made & _U64 if path is None else path, vers,
        ))  # fmt: skip

    def stat(self, fd: int, path: int | None = None) -> Stat:
        """What the file ``fd`` is. ``path``: its qid's, when known already."""
        out = self._new(self._out)
        error = self._lib.host_stat(fd, path is None, out)
        if error < 0:
            raise failure(-error)
        return self._told(out, path)

    def open_child(self, dir_fd: int, name: bytes) -> tuple[int, Stat]:
        """A new O_PATH descriptor for ``name``, one path element, in ``dir_fd``, and what it is.

        A symbolic link is itself, never followed."""
        out = self._new(self._out)
        fd = self._lib.host_open(dir_fd, name, out)
        if fd < 0:
            raise failure(-fd)
        return fd, self._told(out)

    def listing(self, fd: int) -> Iterator[list[Listed]]:
        """All names in the directory open as ``fd`` (not O_PATH), from its start, without "." and "..".

        They come some hundreds at a time, so that others may have a turn in between."""
        os.lseek(fd, 0, os.SEEK_SET)
        buf = self._new("char[]", LISTING_SIZE)
        more = self._new("int *", 1)
        while True:
            used = self._lib.host_list(fd, buf, LISTING_SIZE, more)
            if used < 0:
                raise failure(-used)
            if not more[0]:
                return
            yield _records(self._buffer(buf, used)[:])

    def rename_new(self, dir_fd: int, name: bytes, newdir_fd: int, newname: bytes) -> None:
        """Rename; FileExistsError when ``newname`` exists, EINVAL where the file system cannot tell."""
        error = self._lib.host_rename(dir_fd, name, newdir_fd, newname)
        if error < 0:
            raise failure(-error)

    def utime(self, fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set both times, each (s, ns); ns may be UTIME_NOW or UTIME_OMIT."""
        error = self._lib.host_utime(fd, *atime, *mtime)
        if error < 0:
            raise failure(-error)


def _records(data: bytes) -> list[Listed]:
    """The records host_list left, in order."""
    names = []
    at, head = 0, RECORD.size
    while at < len(data):
        path, vers, mode, length = RECORD.unpack_from(data, at)
        at += head
        names.append(Listed(data[at : at + length], path, vers, mode))
        at += length
    return names


def _calls() -> Any:
    """The compiled calls where they were built, else the twin's."""
    try:
        return Compiled()
    except ImportError:
        from skep.native.host_twin import Twin

        return Twin()


calls: Final[Compiled] = _calls()
