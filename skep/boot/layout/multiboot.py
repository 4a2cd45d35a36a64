"""The header by which QEMU and GRUB know a kernel of pc99. Source: Multiboot Specification 0.6.96, 3.1."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from construct import Int32ul, Struct  # type: ignore[import-untyped]

from skep.boot.layout.reading import EM_386, Elf
from skep.boot.layout.rule import Found, Kind, Subject, Unknown

SEARCH: Final = 8192  # bytes from the file's beginning, in which it is looked for
ALIGNED: Final = 4
HEADER: Final = Struct("magic" / Int32ul, "flags" / Int32ul, "checksum" / Int32ul)
MAGIC: Final = 0x1BADB002
_MAGIC_BYTES: Final = struct.pack("<I", MAGIC)


def places(data: bytes) -> Iterator[int]:
    """Offsets of the magic number, aligned or not."""
    at = data.find(_MAGIC_BYTES, 0, SEARCH)
    while at >= 0:
        yield at
        at = data.find(_MAGIC_BYTES, at + 1, SEARCH)


def has_magic(data: bytes) -> bool:
    return next(places(data), None) is not None


def bootable(elf: Elf, subject: Subject) -> Iterator[Found | Unknown]:
    """Rule K5: the kernel of pc99 has a good header."""
    if subject.target != "x86_64" or subject.kind is not Kind.KERNEL:
        return
    problems = []
    for at in places(elf.data):
        problem = _wrong(elf.data, at)
        if problem is None:
            return
        problems.append(problem)
    expected = f"the magic number {MAGIC:#x}, {ALIGNED}-aligned, in the first {SEARCH} bytes"
    yield next(iter(problems), Found("file", "there is no multiboot header", expected))


def _wrong(data: bytes, at: int) -> Found | None:
    place = f"multiboot header at {at:#x}"
    if at % ALIGNED:
        return Found(place, f"{at % ALIGNED} bytes behind an aligned place", f"{ALIGNED}-aligned")
    if at + HEADER.sizeof() > min(len(data), SEARCH):
        return Found(place, "it is cut off", f"whole in the first {SEARCH} bytes")
    header = HEADER.parse(data[at : at + HEADER.sizeof()])
    total = (header.magic + header.flags + header.checksum) & 0xFFFFFFFF
    if total:
        return Found(place, f"its sum is {total:#x}", "0")
    return None


def loadable(elf: Elf, subject: Subject) -> Iterator[Found | Unknown]:
    """Rule K9: what QEMU's loader takes."""
    if subject.target == "x86_64" and (elf.machine, elf.bits) != (EM_386, 32):
        yield Found(
            "header", f"ELF{elf.bits}: QEMU's multiboot loader does not take it", "the ELF32 made of it"
        )
