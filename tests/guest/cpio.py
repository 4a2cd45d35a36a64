"""An initramfs archive: the newc cpio format, written in memory.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from collections.abc import Iterable
from stat import S_IFDIR, S_IFREG


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _member(path: str, mode: int, data: bytes = b"") -> bytes:
    name = path.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(data)


def folder(path: str) -> bytes:
    """A directory anybody may enter."""
    return _member(path, S_IFDIR | 0o755)


def file(path: str, data: bytes, permissions: int = 0o644) -> bytes:
    """A regular file; its folders come before it in the archive."""
    return _member(path, S_IFREG | permissions, data)


def archive(members: Iterable[bytes]) -> bytes:
    """The members, ended; archives may follow each other in one initramfs."""
    return b"".join(members) + _member("TRAILER!!!", 0)
