"""What a rule is: an id, whom it is for, why it is, and the check itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from skep.boot.layout.reading import EM_386, EM_AARCH64, EM_X86_64, Elf

PAGE: Final = 4096


class Severity(StrEnum):
    """E: it will not boot, or not as meant. W: look at it. I: good to know."""

    E = "E"
    W = "W"
    I = "I"  # noqa: E741


class Kind(StrEnum):
    """What a file is for."""

    KERNEL = "kernel"
    IMAGE = "image"  # the elfloader, with kernel and root task inside
    ROOT = "root"
    EFI = "efi"  # the elfloader before it is made a PE file
    PE = "pe"


class Range(NamedTuple):
    """Addresses from ``begin`` to before ``end``."""

    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.begin:#x}-{self.end:#x}"

    def overlaps(self, other: Range) -> bool:
        return self.begin < other.end and other.begin < self.end

    def within(self, other: Range) -> bool:
        return other.begin <= self.begin and self.end <= other.end


class Target(NamedTuple):
    """``kernels``: machine and class of a kernel's file; everything else has the first of them. ``ram``: of
    the machines this lab boots; on x86 what is below is the firmware's, on virt there is no memory."""

    kernels: tuple[tuple[int, int], ...]
    ram: Range
    user_top: int
    pe_machine: int


# The last address of user space without a hypervisor; with one it is less on aarch64, by the processor.
TARGETS: Final = {
    "x86_64": Target(((EM_X86_64, 64), (EM_386, 32)), Range(0x100000, 1 << 32), 0x7FFFFFFFFFFF, 0x8664),
    "aarch64": Target(((EM_AARCH64, 64),), Range(0x40000000, 1 << 40), 0x7FFFFFFFFFFF, 0xAA64),
}


class Subject(NamedTuple):
    """What is checked, as far as its bytes alone do not tell. ``members``: of an image, by name."""

    kind: Kind
    target: str | None  # None: none of TARGETS
    ram: Range | None  # None: there is no target
    members: dict[str, bytes]


class Found(NamedTuple):
    """Where, what is there, what was expected ("": the rule expects nothing)."""

    place: str
    said: str
    expected: str = ""


class Unknown(NamedTuple):
    """It cannot be checked; which is not the same as that all is well."""

    why: str


Check = Callable[[Elf, Subject], Iterator[Found | Unknown]]


class Rule(NamedTuple):
    """``says``: what holds of a good file. ``source``: who says so, or where it was seen."""

    id: str
    severity: Severity
    kinds: tuple[Kind, ...]
    says: str
    reason: str
    source: str
    check: Check


ELVES: Final = (Kind.KERNEL, Kind.IMAGE, Kind.ROOT, Kind.EFI)
STATIC: Final = (Kind.KERNEL, Kind.IMAGE, Kind.ROOT)
LOADERS: Final = (Kind.IMAGE, Kind.EFI)


def extent(elf: Elf, physical: bool = False) -> Range:
    """From the first to behind the last address of what is loaded; nothing is loaded: 0 to 0."""
    begins = [each.paddr if physical else each.vaddr for each in elf.loads]
    ends = [begin + each.memsz for begin, each in zip(begins, elf.loads, strict=True)]
    return Range(min(begins, default=0), max(ends, default=0))


def round_up(value: int) -> int:
    return -(-value // PAGE) * PAGE
