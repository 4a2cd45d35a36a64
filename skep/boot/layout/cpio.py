"""The archive in an elfloader's image: newc CPIO, read within bounds.

A member is header[110] name[namesize] padding to 4, content[filesize] padding to 4; the last is TRAILER!!!.
Source: cpio(5); Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from construct import Bytes, Const, Struct  # type: ignore[import-untyped]

from skep.boot.layout.reading import printable

MAGIC: Final = b"070701"
MEMBERS_MAX: Final = 64  # an image has five
MEMBER_NAME_MAX: Final = 256  # bytes
TRIES_MAX: Final = 64  # places that look like the beginning of one
TRAILER: Final = "TRAILER!!!"
KERNEL: Final = "kernel.elf"

_FIELDS: Final = (
    "ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "devmajor", "devminor", "rdevmajor",
    "rdevminor", "namesize", "check",
)  # fmt: skip
HEADER: Final = Struct("magic" / Const(MAGIC), *(name / Bytes(8) for name in _FIELDS))


class BadArchive(Exception):
    """``place``, ``said`` and ``expected``, as of a finding."""

    def __init__(self, place: str, said: str, expected: str) -> None:
        super().__init__(f"{place}: {said}, expected {expected}")
        self.place, self.said, self.expected = place, said, expected


class Member(NamedTuple):
    """``begin`` and ``end``: its content, offsets in the file."""

    name: str
    begin: int
    end: int


def members(data: bytes, at: int, end: int) -> Iterator[Member]:
    """The members of the archive between two offsets, up to its trailer. Raises BadArchive."""
    for n in range(MEMBERS_MAX):
        place = f"archive member {n} at {at:#x}"
        name, content, size = _header(data, at, min(end, len(data)), place)
        if name == TRAILER:
            return
        if content + size > min(end, len(data)):
            raise BadArchive(place, f"{name} ends at {content + size:#x}", f"at most {end:#x}")
        yield Member(name, content, content + size)
        at = content + _padded(size)
    raise BadArchive("archive", f"more than {MEMBERS_MAX} members", "fewer")


def _header(data: bytes, at: int, end: int, place: str) -> tuple[str, int, int]:
    """Name, and offset and size of the content."""
    begin = at + HEADER.sizeof()
    if begin > end:
        raise BadArchive(place, "its header is cut off", f"{HEADER.sizeof()} bytes, or {TRAILER} before")
    if data[at : at + len(MAGIC)] != MAGIC:
        shown = printable(data[at : at + len(MAGIC)])
        raise BadArchive(place, f"begins with {shown!r}", f"{MAGIC.decode()!r}")
    header = HEADER.parse(data[at:begin])
    size, named = _number(header.filesize, place), _number(header.namesize, place)
    if not 1 < named <= MEMBER_NAME_MAX or begin + named > end:
        raise BadArchive(place, f"a name of {named} bytes", f"2 to {MEMBER_NAME_MAX}, in the archive")
    name = data[begin : begin + named]
    if name.find(b"\0") != named - 1:
        raise BadArchive(place, "its name does not end where its header says", "one zero byte, at its end")
    # The padding is of the place in the archive; an image aligns that to 4 itself.
    return printable(name[:-1]), at + _padded(HEADER.sizeof() + named), size


def _number(digits: bytes, place: str) -> int:
    if not all(each in b"0123456789abcdefABCDEF" for each in digits):
        raise BadArchive(place, f"a number {printable(digits)!r}", "8 hex digits")
    return int(digits, 16)


def _padded(size: int) -> int:
    return -(-size // 4) * 4


def find(data: bytes) -> int | None:
    """Where the archive begins that has a kernel first; None: nowhere."""
    at = data.find(MAGIC)
    for _ in range(TRIES_MAX):
        if at < 0:
            return None
        try:
            if any(member.name == KERNEL for member in members(data, at, len(data))):
                return at
        except BadArchive:
            pass
        at = data.find(MAGIC, at + 1)
    return None
