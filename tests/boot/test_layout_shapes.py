"""The shapes of images that boot, and what textbook rules say of them: why there are rules by kind.

The table is what was measured of real seL4; the rules under it are written with pyelftools."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from skep.boot.layout.checking import check
from skep.boot.layout.reading import SEGMENT_TYPES, read
from skep.boot.layout.rule import Kind, Severity
from tests.boot.elves import SHAPES, build

W, X, ALLOC, THREAD = 2, 1, 2, 0x400
PAGE = 4096
KINDS = {
    "x86 kernel": Kind.KERNEL,
    "arm kernel": Kind.KERNEL,
    "x86 root": Kind.ROOT,
    "arm root": Kind.ROOT,
    "elfloader": Kind.IMAGE,
    "EFI elfloader": Kind.EFI,
    "sel4test root": Kind.ROOT,
}
# Of each rule, the shapes that it would refuse though they boot.
REFUSED = {
    "it is ET_EXEC": {"EFI elfloader"},
    "the entry is in bytes of a PT_LOAD": set(),
    "the entry is in an executable PT_LOAD and section": {"x86 kernel"},
    "no segment is writable and executable": {
        "x86 kernel", "arm kernel", "arm root", "elfloader", "EFI elfloader",
    },
    "no section is writable and executable": {"x86 kernel"},
    "a PT_LOAD is congruent": set(),
    "every segment is congruent": {"x86 root", "arm root", "sel4test root"},
    "every PT_LOAD begins at a page and is aligned to one": {"x86 kernel"},
    "the lowest PT_LOAD begins at a page": set(),
    "PT_LOADs are in order, in the file, apart, and do not wrap": set(),
    "vaddr - paddr is one number": {"x86 kernel"},
    "no interpreter, nothing dynamic, no relocations": {"EFI elfloader"},
    "no symbol is undefined": set(),
    "there is a PT_GNU_STACK": {"x86 kernel"},
    "PT_GNU_STACK is not executable": {"sel4test root"},
    "sections do not overlap": {"x86 root", "arm root", "sel4test root"},
    "sections do not overlap, .tbss aside": set(),
    "nothing is cleared that was loaded": {"x86 root"},
    "there is a build id": {"x86 kernel", "arm kernel", "elfloader", "EFI elfloader"},
}  # fmt: skip
# aarch64's loader looks at p_type: what the rule says of it does no harm there.
HARMLESS = {("nothing is cleared that was loaded", "arm root")}


def loads(elf: Any) -> list[Any]:
    return [each for each in elf.iter_segments() if each["p_type"] == "PT_LOAD"]


def entered(elf: Any) -> list[Any]:
    entry = elf["e_entry"]
    return [s for s in loads(elf) if s["p_vaddr"] <= entry < s["p_vaddr"] + s["p_filesz"]]


def allocated(elf: Any) -> Iterator[Any]:
    return (each for each in elf.iter_sections() if each["sh_flags"] & ALLOC and each["sh_size"])


def entered_code(elf: Any) -> bool:
    code = [
        each
        for each in allocated(elf)
        if each["sh_flags"] & 4 and each["sh_addr"] <= elf["e_entry"] < each["sh_addr"] + each["sh_size"]
    ]
    return bool(code) and all(each["p_flags"] & X for each in entered(elf))


def congruent(segments: list[Any]) -> bool:
    return all((s["p_vaddr"] - s["p_offset"]) % max(s["p_align"], 1) == 0 for s in segments)


def apart(places: list[tuple[int, int]]) -> bool:
    return not any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(places, 2))


def in_order(elf: Any) -> bool:
    found = loads(elf)
    size = len(elf.stream.getvalue())
    return (
        all(a["p_vaddr"] <= b["p_vaddr"] for a, b in pairwise(found))
        and all(s["p_filesz"] <= s["p_memsz"] and s["p_offset"] + s["p_filesz"] <= size for s in found)
        and all(s["p_vaddr"] + s["p_memsz"] <= 1 << elf.elfclass for s in found)
        and apart([(s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]) for s in found])
        and apart([(s["p_paddr"], s["p_paddr"] + s["p_memsz"]) for s in found])
    )


def relocated(elf: Any) -> bool:
    types = {each["p_type"] for each in elf.iter_segments()}
    relocations = (s["sh_type"] in ("SHT_RELA", "SHT_REL") for s in allocated(elf))
    return bool(types & {"PT_INTERP", "PT_DYNAMIC"}) or any(relocations)


def undefined(elf: Any) -> list[str]:
    return [
        symbol.name
        for symbol in elf.get_section_by_name(".symtab").iter_symbols()
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name and symbol["st_info"]["bind"] != "STB_WEAK"
    ]


def stacks(elf: Any) -> list[Any]:
    return [each for each in elf.iter_segments() if each["p_type"] == "PT_GNU_STACK"]


def sections_apart(elf: Any, tbss: bool) -> bool:
    return apart(
        [
            (s["sh_addr"], s["sh_addr"] + s["sh_size"])
            for s in allocated(elf)
            if tbss or not (s["sh_flags"] & THREAD and s["sh_type"] == "SHT_NOBITS")
        ]
    )


def cleared(elf: Any) -> bool:
    for other in elf.iter_segments():
        if other["p_type"] == "PT_LOAD":
            continue
        begin, end = other["p_vaddr"] + other["p_filesz"], other["p_vaddr"] + other["p_memsz"]
        for load in loads(elf):
            at = load["p_vaddr"]
            if any(load.data()[max(begin - at, 0) : max(end - at, 0)]):
                return True
    return False


TEXTBOOK: dict[str, Callable[[Any], bool]] = {
    "it is ET_EXEC": lambda elf: elf["e_type"] == "ET_EXEC",
    "the entry is in bytes of a PT_LOAD": lambda elf: bool(entered(elf)),
    "the entry is in an executable PT_LOAD and section": entered_code,
    "no segment is writable and executable": lambda elf: all(s["p_flags"] & 3 != W | X for s in loads(elf)),
    "no section is writable and executable": lambda elf: all(s["sh_flags"] & 5 != 5 for s in allocated(elf)),
    "a PT_LOAD is congruent": lambda elf: congruent(loads(elf)),
    "every segment is congruent": lambda elf: congruent(list(elf.iter_segments())),
    "every PT_LOAD begins at a page and is aligned to one": lambda elf: all(
        s["p_vaddr"] % PAGE == 0 and s["p_align"] >= PAGE for s in loads(elf)
    ),
    "the lowest PT_LOAD begins at a page": lambda elf: min(s["p_vaddr"] for s in loads(elf)) % PAGE == 0,
    "PT_LOADs are in order, in the file, apart, and do not wrap": in_order,
    "vaddr - paddr is one number": lambda elf: len({s["p_vaddr"] - s["p_paddr"] for s in loads(elf)}) == 1,
    "no interpreter, nothing dynamic, no relocations": lambda elf: not relocated(elf),
    "no symbol is undefined": lambda elf: not undefined(elf),
    "there is a PT_GNU_STACK": lambda elf: bool(stacks(elf)),
    "PT_GNU_STACK is not executable": lambda elf: not any(s["p_flags"] & X for s in stacks(elf)),
    "sections do not overlap": lambda elf: sections_apart(elf, tbss=True),
    "sections do not overlap, .tbss aside": lambda elf: sections_apart(elf, tbss=False),
    "nothing is cleared that was loaded": lambda elf: not cleared(elf),
    "there is a build id": lambda elf: elf.get_section_by_name(".note.gnu.build-id") is not None,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", TEXTBOOK)
def test_a_textbook_rule_says_of_a_shape_what_it_says_of_the_real_one(rule: str, shape: str) -> None:
    if (rule, shape) in HARMLESS:
        return
    elf = ELFFile(io.BytesIO(build(SHAPES[shape]())))
    assert (shape not in REFUSED[rule]) == TEXTBOOK[rule](elf)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_of_its_kind_and_passes_the_rules_of_it(shape: str) -> None:
    report = check(shape, build(SHAPES[shape]())).report
    assert KINDS[shape] == report.kind
    errors = {each.rule for part in report.all() for each in part.findings if each.severity is Severity.E}
    # The one that does damage.
    assert ({"R6"} if shape == "x86 root" else set()) == errors
    assert {} == report.unknown


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read_as_pyelftools_reads_it(shape: str) -> None:
    data = build(SHAPES[shape]())
    mine, its = read(data), ELFFile(io.BytesIO(data))
    assert () == mine.problems
    assert (its.elfclass, its["e_entry"]) == (mine.bits, mine.entry)
    names = ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_flags", "p_align")
    assert [(s["p_type"], *(s[name] for name in names)) for s in its.iter_segments()] == [
        (SEGMENT_TYPES[s.type], s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, s.flags, s.align)
        for s in mine.segments
    ]
    assert [(s.name, s["sh_flags"], s["sh_addr"], s["sh_offset"], s["sh_size"]) for s in its.iter_sections()][
        1:
    ] == [(s.name, s.flags, s.addr, s.offset, s.size) for s in mine.sections][1:]
    assert [
        (s.name, s["st_value"], s["st_size"]) for s in its.get_section_by_name(".symtab").iter_symbols()
    ] == [(s.name, s.value, s.size) for s in mine.symbols or ()]


PROGRAM = """
__thread long counted[8];
static void begin(void) {}
void (*const first)(void) __attribute__((section(".init_array"), used)) = begin;
void _start(void) { counted[1]++; for (;;); }
"""


@pytest.mark.slow
def test_a_linker_puts_a_pointer_where_the_loader_clears(tmp_path: Path) -> None:
    """.tbss takes no addresses, so what is linked behind it begins where it does."""
    flags = ["-static", "-nostdlib", "-fno-pic", "-no-pie", "-O1", "-Wl,--build-id=none"]
    source, made = tmp_path / "root.c", tmp_path / "root"
    source.write_text(PROGRAM)
    subprocess.run(["x86_64-linux-gnu-gcc", *flags, "-o", str(made), str(source)], check=True, timeout=60)
    data = made.read_bytes()
    found = [each.said for each in check("root", data).report.findings if each.rule == "R6"]
    assert cleared(ELFFile(io.BytesIO(data)))
    assert 1 == len(found)
    assert " bytes of segment " in found[0]
