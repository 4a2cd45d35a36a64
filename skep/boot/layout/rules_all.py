"""The rules for every ELF file of a boot, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from skep.boot.layout.reading import (
    ET_EXEC,
    MACHINES,
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    SHF_ALLOC,
    SHT_NOTE,
    SHT_REL,
    SHT_RELA,
    STB_WEAK,
    UNDEFINED,
    Elf,
)
from skep.boot.layout.rule import (
    ELVES,
    STATIC,
    TARGETS,
    Check,
    Found,
    Kind,
    Rule,
    Severity,
    Subject,
    Unknown,
)

BUILD_ID: Final = ".note.gnu.build-id"
INSTRUCTION: Final = 4  # bytes, on aarch64
Said = Iterator[Found | Unknown]


def told(rule: str) -> Callable[[Elf, Subject], Said]:
    """The check of a rule of which reading has found what there is."""

    def check(elf: Elf, subject: Subject) -> Said:
        for problem in elf.problems:
            if problem.rule == rule:
                yield Found(problem.place, problem.said, problem.expected)

    return check


def then(*checks: Check) -> Check:
    def check(elf: Elf, subject: Subject) -> Said:
        for each in checks:
            yield from each(elf, subject)

    return check


def is_for_the_target(elf: Elf, subject: Subject) -> Said:
    machine = f"{MACHINES.get(elf.machine, hex(elf.machine))}, {elf.bits} bits"
    if subject.target is None:
        yield Found("header", machine, f"a machine of {' or '.join(TARGETS)}")
        return
    kernels = TARGETS[subject.target].kernels
    allowed = kernels if subject.kind is Kind.KERNEL else kernels[:1]
    if (elf.machine, elf.bits) not in allowed:
        expected = " or ".join(f"{MACHINES[number]}, {bits} bits" for number, bits in allowed)
        yield Found("header", machine, f"{expected}, for {subject.target}")


def has_segments(elf: Elf, subject: Subject) -> Said:
    if not any(each.type == PT_LOAD for each in elf.segments):
        yield Found("program headers", "no PT_LOAD", "at least one")


def is_within(elf: Elf, subject: Subject) -> Said:
    limit = 1 << elf.bits
    for each in elf.segments:
        # Some notes are for reading alone, and have no size in memory.
        if each.filesz > each.memsz and (each.type == PT_LOAD or each.memsz):
            yield Found(each.name, f"filesz {each.filesz:#x}", f"at most memsz, {each.memsz:#x}")
        if each.offset + each.filesz > len(elf.data):
            said = f"ends at {each.offset + each.filesz:#x} of the file"
            yield Found(each.name, said, f"at most {len(elf.data):#x}, its size")
        for noun, begin in (("vaddr", each.vaddr), ("paddr", each.paddr)):
            if begin + each.memsz > limit:
                said = f"{noun} {begin:#x} and memsz {each.memsz:#x} wrap around"
                yield Found(each.name, said, f"an end of {limit:#x} at most")


def is_congruent(elf: Elf, subject: Subject) -> Said:
    for each in elf.loads:
        align = each.align
        if align & (align - 1):
            yield Found(each.name, f"p_align {align:#x}", "a power of two, or 0")
        elif align > 1 and (each.vaddr - each.offset) % align:
            said = f"vaddr {each.vaddr:#x} at offset {each.offset:#x}"
            yield Found(each.name, said, f"the same modulo p_align, {align:#x}")


def overlaps_not(elf: Elf, subject: Subject) -> Said:
    for noun in ("vaddr", "paddr"):
        places = [
            (getattr(each, noun), getattr(each, noun) + each.memsz, each.name)
            for each in elf.loads
            if each.memsz
        ]
        for name, other, begin, end in overlapping(places):
            yield Found(name, f"{noun} {begin:#x} is in {other}", f"{end:#x} or more")


def overlapping(places: list[tuple[int, int, str]]) -> Iterator[tuple[str, str, int, int]]:
    """Of (begin, end, name): what begins before something earlier has ended; its name, the other's, its
    beginning and the other's end."""
    furthest, by = 0, ""
    for begin, end, name in sorted(places):
        if by and begin < furthest:
            yield name, by, begin, furthest
        if end > furthest:
            furthest, by = end, name


def is_sorted(elf: Elf, subject: Subject) -> Said:
    for before, each in pairwise(elf.loads):
        if each.vaddr < before.vaddr:
            yield Found(each.name, f"vaddr {each.vaddr:#x}", f"more than {before.name}'s, {before.vaddr:#x}")


def enters_the_file(elf: Elf, subject: Subject) -> Said:
    if not any(each.vaddr <= elf.entry < each.vaddr + each.filesz for each in elf.loads):
        yield Found("header", f"entry {elf.entry:#x}", "an address of a PT_LOAD, in what the file has of it")
    if subject.target == "aarch64" and elf.entry % INSTRUCTION:
        yield Found("header", f"entry {elf.entry:#x}", f"a multiple of {INSTRUCTION}")


def has_no_interpreter(elf: Elf, subject: Subject) -> Said:
    for each in elf.segments:
        if each.type == PT_INTERP:
            yield Found(each.name, "it asks for an interpreter", "none: there is nobody to start it")


def is_whole(elf: Elf, subject: Subject) -> Said:
    if elf.symbols is None:
        yield Unknown("there is no symbol table that can be read")
        return
    for number, each in enumerate(elf.symbols):
        if number and each.section == UNDEFINED and each.bind != STB_WEAK and each.name:
            yield Found(f"symbol {each.name}", "undefined", "defined, or weak")


def sections_overlap_not(elf: Elf, subject: Subject) -> Said:
    if not elf.sections:
        yield Unknown("there is no section table that can be read")
        return
    places = [
        (each.addr, each.addr + each.size, f"section {each.name}")
        for each in elf.sections
        if each.takes_addresses and each.size
    ]
    for name, other, begin, end in overlapping(places):
        yield Found(name, f"address {begin:#x} is in {other}", f"{end:#x} or more")


def is_static(elf: Elf, subject: Subject) -> Said:
    if elf.type != ET_EXEC:
        yield Found("header", f"type {elf.type}", f"{ET_EXEC} (ET_EXEC)")
    for each in elf.segments:
        if each.type == PT_DYNAMIC:
            yield Found(each.name, "it is to be linked when it is loaded", "linked already")
    for section in elf.sections:
        if section.type in (SHT_REL, SHT_RELA) and section.flags & SHF_ALLOC and section.size:
            yield Found(f"section {section.name}", "relocations for a loader", "none: no loader applies them")


def has_names(elf: Elf, subject: Subject) -> Said:
    said = ["symbols" if elf.symbols else "no symbols"]
    said.append("debug information" if elf.section(".debug_info") else "no debug information")
    note = elf.section(BUILD_ID)
    if note is not None and note.type == SHT_NOTE:
        # namesz[4] descsz[4] type[4] "GNU\0" id
        said.append(f"build id {elf.data[note.offset + 16 : note.offset + min(note.size, 80)].hex()}")
    else:
        said.append("no build id")
    yield Found("file", ", ".join(said))


GABI: Final = "System V gABI, chapters 4 and 5"
RULES: Final = (
    Rule("E1", Severity.E, ELVES, "it is a little-endian ELF file of its target's machine and class",
         "seL4 looks at neither: with another machine's code it starts, and faults at the first instruction",
         "measured: an aarch64 header on an x86_64 root task boots", then(told("E1"), is_for_the_target)),
    Rule("E2", Severity.E, ELVES, "its program headers are in the file, and at least one is PT_LOAD",
         "there is nothing to load", GABI, then(told("E2"), has_segments)),
    Rule("E3", Severity.E, ELVES, "segments have filesz <= memsz, bytes in the file, ends that do not wrap",
         "loaders subtract the one from the other: seL4 hangs without a word, clearing nearly all of memory",
         "measured: filesz > memsz, and memsz that wraps; a truncated file faults at its entry", is_within),
    Rule("E4", Severity.E, ELVES, "the address of a PT_LOAD and its offset are the same modulo p_align",
         "pages could not be mapped; only PT_LOAD counts, a PT_TLS without bytes may stand anywhere", GABI,
         is_congruent),
    Rule("E5", Severity.E, ELVES, "no two PT_LOAD overlap, neither by virtual nor by physical addresses",
         "what is loaded last wins; it boots, and faults later with no hint why",
         "measured: overlapping segments fault at the entry", overlaps_not),
    Rule("E6", Severity.E, ELVES, "the entry is in a PT_LOAD's bytes of the file; on aarch64 a multiple of 4",
         "what the file does not have is zeros", GABI, enters_the_file),
    Rule("E7", Severity.E, ELVES, "there is no PT_INTERP", "nobody starts an interpreter here", GABI,
         has_no_interpreter),
    Rule("E8", Severity.E, ELVES, "every symbol is defined, but for weak ones",
         "it is linked as address 0: the elfloader made for EFI lacked _end, and aborted over its own size",
         "measured: paddr=[7c3c6000..ffffffffffffffff]; without symbols nothing is known", is_whole),
    Rule("E9", Severity.E, ELVES, "sections, their names and the symbols are in the file",
         "the table stands last in a file: where it is missing, the file was probably cut off", GABI,
         told("E9")),
    Rule("E10", Severity.E, ELVES, "no two allocated sections overlap; .tbss takes no addresses",
         "a linker script that does not add up", GABI, sections_overlap_not),
    Rule("E11", Severity.E, STATIC, "it is ET_EXEC, without PT_DYNAMIC and relocations that are loaded",
         "nobody relocates it: it runs where it was linked, or not at all",
         "seL4 boots ET_DYN as it is; elfloaders made for EFI relocate themselves", is_static),
    Rule("W1", Severity.W, ELVES, "PT_LOAD segments are in the order of their addresses",
         "loaders may take the last one's end for the image's", GABI, is_sorted),
    Rule("I1", Severity.I, ELVES, "what names it has: symbols, debug information, a build id",
         "without symbols a fault has no function", "", has_names),
)  # fmt: skip
