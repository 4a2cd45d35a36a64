"""host.c without a compiler: the same answers in Python, through the C library's own entry points.

Method for method what host.Compiled is; there each is told. Source: linux/stat.h, bits/fcntl-linux.h.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import islice
from struct import Struct
from typing import Any, Final

import cffi

from skep.native.host import Listed, Stat, failure

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_STAT_FLAGS: Final = 0x100 | 0x800 | _AT_EMPTY_PATH  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT
_STAT_MASK: Final = 0x7FF | 0x800  # STATX_BASIC_STATS, STATX_BTIME
_RENAME_NOREPLACE: Final = 1
_HANDLE_SIZE: Final = 128  # MAX_HANDLE_SZ
_HANDLE: Final = Struct("=Ii")  # handle_bytes[4] handle_type[4], before the handle
# mask blksize, attributes, nlink uid gid mode, ino size blocks, attributes_mask, atime btime ctime mtime
# (each s ns), rdev and dev (each major minor)
_STATX: Final = Struct("=II 8x III H 2x QQQ 8x qI4x qI4x qI4x qI4x IIII")
_LISTING: Final = 512  # names at a time
_S: Final = 1_000_000_000
_U64: Final = (1 << 64) - 1
_DECLARATIONS: Final = """
int statx(int dir, const char *name, int flags, unsigned mask, char *out);
int name_to_handle_at(int dir, const char *name, char *handle, int *mount_id, int flags);
int renameat2(int dir, const char *name, int newdir, const char *newname, unsigned flags);
int utimensat(int dir, const char *name, const int64_t *times, int flags);
"""


def mix(x: int) -> int:
    """host.c's mix: a bijection of 64 bits."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & _U64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & _U64
    return x ^ x >> 31


def _format(entry: os.DirEntry[str]) -> int:
    """The file type a directory tells of an entry; 0: it tells none that is known here."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


class Twin:
    """The calls, by the C library."""

    def __init__(self) -> None:
        self._ffi: Any = cffi.FFI()
        self._ffi.cdef(_DECLARATIONS)
        self._libc = self._ffi.dlopen(None)

    def _failure(self) -> OSError:
        return failure(self._ffi.errno)

    def _identity(self, dir_fd: int, name: bytes, told: Stat) -> int:
        """The qid path; raises FileNotFoundError when the name has gone meanwhile."""
        h = mix((told.dev + 0x9E3779B97F4A7C15) & _U64)
        handle = self._ffi.new("char[]", _HANDLE.size + _HANDLE_SIZE)
        view = self._ffi.buffer(handle)
        _HANDLE.pack_into(view, 0, _HANDLE_SIZE, 0)
        flags = 0 if name else _AT_EMPTY_PATH
        if not self._libc.name_to_handle_at(dir_fd, name, handle, self._ffi.new("int *"), flags):
            length, kind = _HANDLE.unpack_from(view)
            h = mix(h ^ kind & 0xFFFFFFFF)
            for at in range(_HANDLE.size, _HANDLE.size + length, 8):
                word = view[at : min(at + 8, _HANDLE.size + length)]
                h = mix(h ^ int.from_bytes(word, "little"))
            return h
        if self._ffi.errno == errno.ENOENT:
            raise self._failure()
        return mix(mix(h ^ told.ino) ^ told.btime_ns & _U64)

    def _statx(self, dir_fd: int, name: bytes) -> Stat:
        out = self._ffi.new("char[]", 256)
        if self._libc.statx(dir_fd, name, _STAT_FLAGS, _STAT_MASK, out) < 0:
            raise self._failure()
        (_, blksize, nlink, uid, gid, mode, ino, size, blocks, a, an, b, bn, c, cn, m, mn, *devices) = (
            _STATX.unpack_from(self._ffi.buffer(out))
        )  # fmt: skip
        rdev, dev = os.makedev(*devices[:2]), os.makedev(*devices[2:])
        atime, btime, ctime, mtime = a * _S + an, b * _S + bn, c * _S + cn, m * _S + mn
        vers = mix(mix(mix(mtime & _U64) ^ ctime & _U64) ^ size) & 0xFFFFFFFF
        return Stat(
            mode, nlink, uid, gid, rdev, size, blksize, blocks, atime, mtime, ctime, btime, dev, ino, 0, vers
        )

    def stat(self, fd: int, path: int | None = None) -> Stat:
        told = self._statx(fd, b"")
        return told._replace(path=self._identity(fd, b"", told) if path is None else path)

    def open_child(self, dir_fd: int, name: bytes) -> tuple[int, Stat]:
        # One element and O_NOFOLLOW: nothing is left that openat2 would refuse.
        if b"/" in name or name in (b"", b".", b".."):
            raise failure(errno.EXDEV)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            return fd, self.stat(fd)
        except OSError:
            os.close(fd)
            raise

    def _listed(self, dir_fd: int, entry: os.DirEntry[str]) -> Listed | None:
        name = os.fsencode(entry.name)
        try:
            told = self._statx(dir_fd, name)
            return Listed(name, self._identity(dir_fd, name, told), told.vers, told.mode)
        except FileNotFoundError:
            return None
        except OSError:
            return Listed(name, mix(entry.inode()), 0, _format(entry))

    def listing(self, fd: int) -> Iterator[list[Listed]]:
        os.lseek(fd, 0, os.SEEK_SET)
        with os.scandir(fd) as entries:
            while some := list(islice(entries, _LISTING)):
                told = (self._listed(fd, entry) for entry in some)
                yield [one for one in told if one is not None]

    def rename_new(self, dir_fd: int, name: bytes, newdir_fd: int, newname: bytes) -> None:
        if self._libc.renameat2(dir_fd, name, newdir_fd, newname, _RENAME_NOREPLACE) < 0:
            raise self._failure()

    def utime(self, fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        place = f"/proc/self/fd/{fd}".encode()
        if self._libc.utimensat(_AT_FDCWD, place, (*atime, *mtime), 0) < 0:
            raise self._failure()
