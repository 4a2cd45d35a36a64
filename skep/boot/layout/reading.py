"""An ELF file, read within bounds: nothing is believed before it is checked, what cannot be read is told.

Sizes are bytes, offsets are from the beginning of the file. Pyelftools believes what a file says of itself;
here it has the names of numbers alone, and is the peer in the tests. Source: System V gABI, chapters 4, 5."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from construct import (  # type: ignore[import-untyped]
    Bytes,
    Construct,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
)
from elftools.elf.enums import ENUM_E_MACHINE, ENUM_P_TYPE_BASE

SEGMENTS_MAX: Final = 64  # an image has ten at most
SECTIONS_MAX: Final = 4096  # some dozens; built with a section a function, and not linked well, some hundreds
SYMBOLS_MAX: Final = (
    1 << 17
)  # of one table; a kernel has some thousands, a root task in Rust some ten thousands
NAME_MAX: Final = 256  # bytes; what is longer is cut: names of one table may overlap

MAGIC: Final = b"\x7fELF"
ET_EXEC: Final = 2
EM_386: Final = 3
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_INTERP: Final = 3
PT_TLS: Final = 7
PT_GNU_STACK: Final = 0x6474E551
PF_X: Final = 1
PF_W: Final = 2
SHT_NULL: Final = 0
SHT_SYMTAB: Final = 2
SHT_RELA: Final = 4
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHT_REL: Final = 9
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
SHF_TLS: Final = 0x400
STB_WEAK: Final = 2
STT_SECTION: Final = 3
STT_FILE: Final = 4
UNDEFINED: Final = 0

MACHINES: Final[dict[int, str]] = {n: name for name, n in ENUM_E_MACHINE.items() if isinstance(n, int)}
SEGMENT_TYPES: Final[dict[int, str]] = {n: name for name, n in ENUM_P_TYPE_BASE.items() if isinstance(n, int)}


class Layout(NamedTuple):
    """The structures of one class. ``symbol``: unpacked by struct, for there are many; the order of its
    fields is ``order``: name, info, section, value, size."""

    header: Construct
    segment: Construct
    section: Construct
    symbol: struct.Struct
    order: tuple[int, int, int, int, int]


def _header(word: Construct) -> Construct:
    halves = ("ehsize", "phentsize", "phnum", "shentsize", "shnum", "shstrndx")
    return Struct(
        "ident" / Bytes(16),
        "type" / Int16ul,
        "machine" / Int16ul,
        "version" / Int32ul,
        "entry" / word,
        "phoff" / word,
        "shoff" / word,
        "flags" / Int32ul,
        *(name / Int16ul for name in halves),
    )


def _section(word: Construct) -> Construct:
    return Struct(
        "name" / Int32ul,
        "type" / Int32ul,
        *(name / word for name in ("flags", "addr", "offset", "size")),
        "link" / Int32ul,
        "info" / Int32ul,
        "addralign" / word,
        "entsize" / word,
    )


_PLACES: Final = ("offset", "vaddr", "paddr", "filesz", "memsz")
LAYOUTS: Final = {
    32: Layout(
        _header(Int32ul),
        Struct("type" / Int32ul, *(n / Int32ul for n in _PLACES), "flags" / Int32ul, "align" / Int32ul),
        _section(Int32ul),
        struct.Struct("<IIIBBH"),
        (0, 3, 5, 1, 2),
    ),
    64: Layout(
        _header(Int64ul),
        Struct("type" / Int32ul, "flags" / Int32ul, *(n / Int64ul for n in _PLACES), "align" / Int64ul),
        _section(Int64ul),
        struct.Struct("<IBBHQQ"),
        (0, 1, 3, 4, 5),
    ),
}


class Problem(NamedTuple):
    """What breaks the rule with this id: where, what is there, and what was expected."""

    rule: str
    place: str
    said: str
    expected: str


class NotElf(Exception):
    """The header tells nothing that could be followed. ``problem``: why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.said)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header, and which it is."""

    index: int
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def end(self) -> int:
        return self.vaddr + self.memsz

    @property
    def name(self) -> str:
        kind = SEGMENT_TYPES.get(self.type, f"{self.type:#x}").removeprefix("PT_")
        return f"segment {self.index} ({kind})"


@dataclass(frozen=True, slots=True)
class Section:
    index: int
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    entsize: int

    @property
    def takes_addresses(self) -> bool:
        """Whether it stands in memory: .tbss only says how much each thread gets."""
        return bool(self.flags & SHF_ALLOC) and not (self.flags & SHF_TLS and self.type == SHT_NOBITS)


class Symbol(NamedTuple):
    """``section``: its index, UNDEFINED when another file has it."""

    name: str
    kind: int
    bind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Elf:
    """A file whose header can be followed. ``symbols``: None when there is no table, or none that can be
    read; ``problems``: what was found in reading, in the order of the file."""

    data: bytes
    bits: int
    type: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...] | None
    problems: tuple[Problem, ...]

    @cached_property
    def loads(self) -> tuple[Segment, ...]:
        """The PT_LOAD segments that have something."""
        return tuple(each for each in self.segments if each.type == PT_LOAD and each.memsz | each.filesz)

    @cached_property
    def _by_name(self) -> dict[str, Symbol]:
        return {each.name: each for each in self.symbols or () if each.section != UNDEFINED}

    def symbol(self, name: str) -> Symbol | None:
        return self._by_name.get(name)

    def section(self, name: str) -> Section | None:
        return next((each for each in self.sections if each.name == name), None)

    def content(self, segment: Segment) -> bytes:
        """Its bytes, as many as the file has."""
        return self.data[segment.offset : segment.offset + segment.filesz]


def read(data: bytes, named: bool = True) -> Elf:
    """Raises NotElf. ``named``: with sections and symbols.

    Whatever the bytes, it takes a time that their number bounds, and memory likewise."""
    bits = _bits(data)
    layout, problems = LAYOUTS[bits], list[Problem]()
    header = layout.header.parse(data)
    if header.version != 1 or data[6] != 1:
        problems.append(Problem("E1", "header", f"version {data[6]} and {header.version}", "1 and 1"))
    found = _table(data, "E2", "program header", layout.segment, header.phoff, header.phentsize, header.phnum,
                   SEGMENTS_MAX, problems)  # fmt: skip
    segments = tuple(
        Segment(n, each.type, each.flags, *_places(each), each.align) for n, each in enumerate(found)
    )
    sections = _sections(data, header, layout.section, problems) if named else ()
    symbols = _symbols(data, sections, layout, problems)
    return Elf(
        data, bits, header.type, header.machine, header.entry, segments, sections, symbols, tuple(problems)
    )


def _places(row: Any) -> tuple[int, int, int, int, int]:
    return row.offset, row.vaddr, row.paddr, row.filesz, row.memsz


def _bits(data: bytes) -> int:
    bits = {1: 32, 2: 64}.get(data[4] if len(data) > 4 else 0, 0)
    wrong = next(
        (
            Problem("E1", "header", said, expected)
            for holds, said, expected in (
                (data[:4] == MAGIC, f"begins with {data[:4].hex() or 'nothing'}", MAGIC.hex()),
                (bits, f"class {data[4:5].hex()}", "01 (32 bits) or 02 (64 bits)"),
                (data[5:6] == b"\x01", f"byte order {data[5:6].hex()}", "01 (little endian)"),
                (
                    bits and len(data) >= LAYOUTS[bits].header.sizeof(),
                    f"{len(data)} bytes",
                    "the whole header",
                ),
            )
            if not holds
        ),
        None,
    )
    if wrong is not None:
        raise NotElf(wrong)
    return bits


def _table(
    data: bytes, rule: str, noun: str, layout: Construct, offset: int, size: int, count: int,
    count_max: int, problems: list[Problem],
) -> list[Any]:  # fmt: skip
    """The table's rows; none, and a problem, when it is not whole or not to be believed."""
    if not count:
        return []
    expected = layout.sizeof()
    end = offset + count * expected
    for wrong, said, wanted in (
        (size != expected, f"{size} bytes each", f"{expected}"),
        (count > count_max, f"{count} of them", f"at most {count_max}"),
        (end > len(data), f"ends at {end:#x}", f"at most {len(data):#x}, the size of the file"),
    ):
        if wrong:
            problems.append(Problem(rule, f"{noun} table", said, wanted))
            return []
    return [layout.parse(data[at : at + expected]) for at in range(offset, end, expected)]


def _sections(data: bytes, header: Any, layout: Construct, problems: list[Problem]) -> tuple[Section, ...]:
    found = _table(data, "E9", "section header", layout, header.shoff, header.shentsize, header.shnum,
                   SECTIONS_MAX, problems)  # fmt: skip
    if not found:
        return ()
    if header.shstrndx >= len(found):
        problems.append(
            Problem("E9", "header", f"names in section {header.shstrndx}", f"less than {len(found)}")
        )
        begin = end = 0
    else:
        names = found[header.shstrndx]
        begin, end = names.offset, min(names.offset + names.size, len(data))
    sections = []
    for n, each in enumerate(found):
        name = _string(data, begin, end, each.name)
        section = Section(
            n, name or f"#{n}", each.type, each.flags, each.addr, each.offset, each.size, each.link,
            each.entsize,
        )  # fmt: skip
        sections.append(section)
        if name is None and begin < end:
            problems.append(
                Problem("E9", f"section {n}", f"name at {each.name:#x}", f"less than {end - begin:#x}")
            )
        last = each.offset + each.size
        if each.type not in (SHT_NULL, SHT_NOBITS) and last > len(data):
            problems.append(
                Problem("E9", f"section {section.name}", f"ends at {last:#x}", f"at most {len(data):#x}")
            )
    return tuple(sections)


def _symbols(
    data: bytes, sections: tuple[Section, ...], layout: Layout, problems: list[Problem]
) -> tuple[Symbol, ...] | None:
    table = next((each for each in sections if each.type == SHT_SYMTAB), None)
    if table is None:
        return None
    size = layout.symbol.size
    for wrong, said, expected in (
        (table.offset + table.size > len(data), "", ""),  # has been told of
        (table.entsize != size, f"{table.entsize} bytes a symbol", f"{size}"),
        (table.size % size, f"{table.size} bytes", f"a multiple of {size}"),
        (table.size // size > SYMBOLS_MAX, f"{table.size // size} symbols", f"at most {SYMBOLS_MAX}"),
        (table.link >= len(sections), f"names in section {table.link}", f"less than {len(sections)}"),
    ):
        if wrong:
            if said:
                problems.append(Problem("E9", f"section {table.name}", said, expected))
            return None
    names = sections[table.link]
    begin, end = names.offset, min(names.offset + names.size, len(data))
    name, info, where, value, extent = layout.order
    found, lost = [], 0
    for row in layout.symbol.iter_unpack(data[table.offset : table.offset + table.size]):
        text = _string(data, begin, end, row[name])
        lost += text is None
        found.append(Symbol(text or "", row[info] & 15, row[info] >> 4, row[where], row[value], row[extent]))
    if lost:
        problems.append(
            Problem("E9", f"section {table.name}", f"{lost} names outside {names.name}", "all of them inside")
        )
    return tuple(found)


def _string(data: bytes, begin: int, end: int, offset: int) -> str | None:
    """The name at ``offset`` of a table, such that it can be shown; None: it is not in the table."""
    at = begin + offset
    if at >= end:
        return None
    stop = data.find(b"\0", at, min(at + NAME_MAX, end))
    if stop < 0:
        if at + NAME_MAX < end:
            stop = at + NAME_MAX
        else:
            return None
    return printable(data[at:stop])


def printable(name: bytes) -> str:
    """A name out of a file that is not to be trusted: what a terminal would act on is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)
