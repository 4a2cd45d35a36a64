"""EFI programs: PE32+ files, read within bounds, and their rules. Whose signature it is, is not asked here.

Source: Microsoft, PE Format; Windows Authenticode Portable Executable Signature Format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from construct import (  # type: ignore[import-untyped]
    Bytes,
    Int16ul,
    Int32ul,
    Int64ul,
    Padding,
    Struct,
)

from skep.boot.layout.reading import Problem, printable
from skep.boot.layout.rule import TARGETS, Found, Severity, Subject, Unknown
from skep.boot.layout.rules_all import overlapping
from skep.boot.layout.rules_loader import lacking, mismatched, unpacked

SECTIONS_MAX: Final = 96  # Windows' own limit
MAGIC: Final = b"PE\0\0"
PE32_PLUS: Final = 0x20B
SUBSYSTEM: Final = 10  # EFI application
EXECUTABLE: Final = 0x20000000
SECURITY: Final = 4  # which of the directories has the certificates

DOS: Final = Struct("magic" / Bytes(2), Padding(58), "header" / Int32ul)
COFF: Final = Struct(
    "magic" / Bytes(4),
    "machine" / Int16ul,
    "count" / Int16ul,
    Padding(12),
    "optional" / Int16ul,
    "flags" / Int16ul,
)
OPTIONAL: Final = Struct(
    "magic" / Int16ul,
    Padding(14),
    "entry" / Int32ul,
    Padding(4),
    "base" / Int64ul,
    "section_alignment" / Int32ul,
    "file_alignment" / Int32ul,
    Padding(16),
    "size" / Int32ul,
    "headers" / Int32ul,
    "checksum" / Int32ul,
    "subsystem" / Int16ul,
    Padding(38),
    "directories" / Int32ul,
)
CHECKSUM: Final = 64  # offset in OPTIONAL
DIRECTORY: Final = Struct("offset" / Int32ul, "size" / Int32ul)
SECTION: Final = Struct(
    "name" / Bytes(8),
    "size" / Int32ul,
    "address" / Int32ul,
    "raw_size" / Int32ul,
    "offset" / Int32ul,
    Padding(12),
    "flags" / Int32ul,
)


class Pe(NamedTuple):
    """``optional``: fields as in OPTIONAL; ``at``: its offset. ``certificates``: offset and size of their
    table, which no section has; None: it is not signed."""

    data: bytes
    machine: int
    optional: Any
    at: int
    sections: tuple[Any, ...]
    certificates: tuple[int, int] | None


class NotPe(Exception):
    """The headers cannot be followed. ``problem``: why."""

    def __init__(self, said: str, expected: str) -> None:
        super().__init__(said)
        self.problem = Problem("P1", "header", said, expected)


def read(data: bytes) -> Pe:
    """Raises NotPe."""
    if data[:2] != b"MZ" or len(data) < DOS.sizeof():
        raise NotPe(f"begins with {data[:2].hex() or 'nothing'}", "4d5a, and a DOS header")
    at = DOS.parse(data).header
    if data[at : at + 4] != MAGIC or at + COFF.sizeof() + OPTIONAL.sizeof() > len(data):
        raise NotPe(f"no PE header at {at:#x}", "one, in the file")
    coff = COFF.parse(data[at : at + COFF.sizeof()])
    at += COFF.sizeof()
    optional = OPTIONAL.parse(data[at : at + OPTIONAL.sizeof()])
    if optional.magic != PE32_PLUS:
        raise NotPe(f"magic number {optional.magic:#x}", f"{PE32_PLUS:#x} (PE32+)")
    begin = at + coff.optional
    end = begin + coff.count * SECTION.sizeof()
    if coff.count > SECTIONS_MAX or end > len(data):
        raise NotPe(
            f"{coff.count} sections, up to {end:#x}", f"at most {SECTIONS_MAX}, in {len(data):#x} bytes"
        )
    sections = tuple(
        SECTION.parse(data[n : n + SECTION.sizeof()]) for n in range(begin, end, SECTION.sizeof())
    )
    return Pe(data, coff.machine, optional, at, sections, _certificates(data, optional, at, begin))


def _certificates(data: bytes, optional: Any, at: int, end: int) -> tuple[int, int] | None:
    place = at + OPTIONAL.sizeof() + SECURITY * DIRECTORY.sizeof()
    if optional.directories <= SECURITY or place + DIRECTORY.sizeof() > end:
        return None
    found = DIRECTORY.parse(data[place : place + DIRECTORY.sizeof()])
    return (found.offset, found.size) if found.size else None


def digest(pe: Pe) -> str:
    """What Authenticode signs, sha256: the file without its checksum, the place of its certificates and those
    themselves, padded to 8."""
    checksum = pe.at + CHECKSUM
    place = pe.at + OPTIONAL.sizeof() + SECURITY * DIRECTORY.sizeof()
    end = pe.certificates[0] if pe.certificates is not None else len(pe.data)
    made = hashlib.sha256(pe.data[:checksum])
    made.update(pe.data[checksum + 4 : place])
    made.update(pe.data[place + DIRECTORY.sizeof() : end])
    made.update(bytes(-end % 8))
    return made.hexdigest()


Said = Iterator[Found | Unknown]


def is_for_the_target(pe: Pe, subject: Subject) -> Said:
    known = {target.pe_machine: name for name, target in TARGETS.items()}
    expected = [number for number, name in known.items() if subject.target in (None, name)]
    if pe.machine not in expected:
        yield Found("header", f"machine {pe.machine:#x}", " or ".join(f"{number:#x}" for number in expected))


def is_an_application(pe: Pe, subject: Subject) -> Said:
    if pe.optional.subsystem != SUBSYSTEM:
        yield Found("header", f"subsystem {pe.optional.subsystem}", f"{SUBSYSTEM} (EFI application)")


def is_whole(pe: Pe, subject: Subject) -> Said:
    places = []
    for each in pe.sections:
        name = f"section {printable(each.name.rstrip(bytes(1)))}"
        if each.offset + each.raw_size > len(pe.data):
            yield Found(name, f"ends at {each.offset + each.raw_size:#x}", f"at most {len(pe.data):#x}")
        if each.address + each.size > pe.optional.size:
            said = f"address {each.address:#x} and {each.size:#x} bytes"
            yield Found(name, said, f"an end of {pe.optional.size:#x} at most, the size of the image")
        if each.size:
            places.append((each.address, each.address + each.size, name))
    for name, other, begin, end in overlapping(places):
        yield Found(name, f"address {begin:#x} is in {other}", f"{end:#x} or more")


def enters_code(pe: Pe, subject: Subject) -> Said:
    entry = pe.optional.entry
    if not any(
        each.address <= entry < each.address + min(each.size, each.raw_size) and each.flags & EXECUTABLE
        for each in pe.sections
    ):
        yield Found("header", f"entry {entry:#x}", "in bytes of an executable section")


def has_its_own_signature(pe: Pe, subject: Subject) -> Said:
    if pe.certificates is None:
        return
    offset, size = pe.certificates
    if offset % 8 or offset + size > len(pe.data):
        said = f"at {offset:#x}, {size:#x} bytes"
        yield Found("certificates", said, f"8-aligned, within {len(pe.data):#x}")
    # The digest stands in the certificate as it is: what is signed can be compared without reading ASN.1.
    elif bytes.fromhex(expected := digest(pe)) not in pe.data[offset : offset + size]:
        yield Found("certificates", "they are of other bytes", f"a signature of sha256 {expected}")


def is_signed(pe: Pe, subject: Subject) -> Said:
    yield Found("file", "signed" if pe.certificates is not None else "not signed")


def carries_both(pe: Pe, subject: Subject) -> Said:
    members, wrong = unpacked(None, pe.data)
    if wrong is not None and not members:
        yield Unknown("it carries no archive that can be found")
    elif wrong is not None:
        yield wrong
    else:
        yield from lacking(members)


def has_their_hashes(pe: Pe, subject: Subject) -> Said:
    yield from mismatched(subject.members)


class PeRule(NamedTuple):
    """As Rule, for PE files."""

    id: str
    severity: Severity
    says: str
    reason: str
    source: str
    check: Callable[[Pe, Subject], Said]


FORMAT: Final = "PE Format"
RULES: Final = (
    PeRule("P2", Severity.E, "it is for its target's machine", "firmware refuses it as unsupported", FORMAT,
           is_for_the_target),
    PeRule("P3", Severity.E, "it is an EFI application, subsystem 10", "firmware starts nothing else",
           "UEFI Specification, 2.1.1", is_an_application),
    PeRule("P4", Severity.E, "its sections are in the file and in the image, and do not overlap",
           "firmware loads section by section; gaps do no harm", FORMAT, is_whole),
    PeRule("P5", Severity.E, "the entry is in an executable section's bytes", "there it begins", FORMAT,
           enters_code),
    PeRule("P6", Severity.E, "where it is signed, what is signed is this file",
           "with Secure Boot: failed to load, Access Denied", "Authenticode; measured with OVMF",
           has_its_own_signature),
    PeRule("P7", Severity.I, "whether it is signed", "without Secure Boot nobody asks", "", is_signed),
    PeRule("P8", Severity.E, "an elfloader's archive has kernel.elf and a root task", "as L4", "as L4",
           carries_both),
    PeRule("P9", Severity.W, "digests in the archive are those of the files as they are packed", "as L5",
           "as L5", has_their_hashes),
)  # fmt: skip
