"""A serial log beside the files: what was loaded, by the addresses that loader and kernel print.

x86_64, by the kernel:
    Kernel loaded to: start=0x100000 end=0x81f000 size=0x71f000 entry=0x1002f7
    size=0x3000 v_entry=0x400000 v_start=0x400000 v_end=0x403000 p_start=… p_end=…
aarch64, by the elfloader, in hex without 0x; ends are the last byte, at some of them of the page:
    paddr=[40280000..4028dfff]
    ELF-loading image 'kernel' to 40000000
      paddr=[40000000..40007fff]
      vaddr=[ffffffffc0000000..ffffffffc0007fff]
      virt_entry=ffffffffc0000000"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from skep.boot.grammar import Lines
from skep.boot.layout.checking import Checked, Report, add
from skep.boot.layout.reading import Elf
from skep.boot.layout.rule import Found, Kind, Unknown, extent, round_up

LOG_MAX: Final = (
    16 << 20
)  # bytes from the log's beginning; what is asked for stands in its first hundred lines

_NUMBER: Final = re.compile(r"\b(\w+)=(0x[0-9a-f]{1,16}|0)\b")
_RANGE: Final = re.compile(r"\b(paddr|vaddr)=\[(?:0x)?([0-9a-f]{1,16})\.\.(?:0x)?([0-9a-f]{1,16})\]")
_ENTRY: Final = re.compile(r"\bvirt_entry=(?:0x)?([0-9a-f]{1,16})\b")
_IMAGE: Final = re.compile(r"ELF-loading image '([^']*)'")


class Told(NamedTuple):
    """One number of the log. ``of``: of which kind of file; ``what``: a row of WHAT."""

    of: Kind
    what: str
    value: int
    line: int  # from 1


def told(log: bytes) -> Iterator[Told]:
    """The numbers in order, of the first boot in the log."""
    lines, of, seen = Lines(), Kind.IMAGE, set[tuple[Kind, str]]()
    for number, line in enumerate(lines.feed(log[:LOG_MAX] + b"\n"), 1):
        if image := _IMAGE.search(line):
            of = Kind.KERNEL if image[1] == "kernel" else Kind.ROOT
        for told in _told(line, of, number):
            if (told.of, told.what) not in seen:
                seen.add((told.of, told.what))
                yield told


def _told(line: str, of: Kind, number: int) -> Iterator[Told]:
    if "Kernel loaded to:" in line:
        for name, value in _NUMBER.findall(line):
            yield Told(Kind.KERNEL, name, int(value, 16), number)
    elif "v_entry=" in line:
        for name, value in _NUMBER.findall(line):
            yield Told(Kind.ROOT, name, int(value, 16), number)
    elif found := _RANGE.search(line):
        yield Told(of, f"{found[1]} from", int(found[2], 16), number)
        yield Told(of, f"{found[1]} to", int(found[3], 16), number)
    elif found := _ENTRY.search(line):
        yield Told(of, "virt_entry", int(found[1], 16), number)


def _named(*names: str) -> Callable[[Elf], set[int]]:
    """The value of the first symbol that there is; as a physical address where it is a kernel's."""

    def value(elf: Elf) -> set[int]:
        symbol = next(filter(None, map(elf.symbol, names)), None)
        if symbol is None:
            return set()
        inside = (each for each in elf.loads if each.vaddr <= symbol.value <= each.end)
        return {symbol.value - each.vaddr + each.paddr for each in inside}

    return value


def _last(physical: bool) -> Callable[[Elf], set[int]]:
    """The last byte, or that of the page."""
    return lambda elf: {extent(elf, physical).end - 1, round_up(extent(elf, physical).end) - 1}


# What may stand in the log; nothing: the file does not tell. Of root tasks the elfloader chooses paddr.
WHAT: Final[dict[Kind, dict[str, Callable[[Elf], set[int]]]]] = {
    Kind.KERNEL: {
        "start": lambda elf: {extent(elf, physical=True).begin},
        "end": _named("ki_end"),
        "entry": lambda elf: {elf.entry},
        "paddr from": lambda elf: {extent(elf, physical=True).begin},
        "paddr to": _last(physical=True),
        "vaddr from": lambda elf: {extent(elf).begin},
        "vaddr to": _last(physical=False),
        "virt_entry": lambda elf: {elf.entry},
    },
    Kind.ROOT: {
        "v_entry": lambda elf: {elf.entry},
        "v_start": lambda elf: {extent(elf).begin},
        "v_end": lambda elf: {extent(elf).end, round_up(extent(elf).end)},
        "vaddr from": lambda elf: {extent(elf).begin},
        "vaddr to": _last(physical=False),
        "virt_entry": lambda elf: {elf.entry},
    },
    Kind.IMAGE: {
        "paddr from": _named("_text"),
        "paddr to": lambda elf: {end - 1 for end in _named("_end")(elf)},
    },
}
RULES: Final = {Kind.KERNEL: "X1", Kind.ROOT: "X2", Kind.IMAGE: "X3"}


def crosscheck(log: bytes, files: Sequence[Checked]) -> None:
    """Add to the reports what the log says otherwise."""
    numbers = list(told(log))
    for file in files:
        for report in file.report.all():
            rule = RULES.get(Kind(report.kind)) if report.kind in set(Kind) else None
            elf = file.elves.get(report.name)
            if rule is not None and elf is not None:
                add(report, rule, _compared(report, elf, numbers))


def _compared(report: Report, elf: Elf, numbers: Sequence[Told]) -> Iterator[Found | Unknown]:
    kind, compared = Kind(report.kind), 0
    for each in numbers:
        what = WHAT[kind].get(each.what) if each.of is kind else None
        expected = what(elf) if what is not None else set()
        compared += bool(expected)
        if expected and each.value not in expected:
            yield Found(
                f"log line {each.line}",
                f"{each.what} {each.value:#x}",
                " or ".join(f"{value:#x}" for value in sorted(expected)),
            )
    if not compared:
        yield Unknown("the log has none of its addresses")
