"""The rules for root tasks, which the kernel or the elfloader loads and maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from skep.boot.layout.reading import PF_W, PF_X, PT_GNU_STACK, PT_LOAD, PT_TLS, Elf, Segment
from skep.boot.layout.rule import (
    PAGE,
    TARGETS,
    Found,
    Kind,
    Range,
    Rule,
    Severity,
    Subject,
    Unknown,
    extent,
    round_up,
)

Said = Iterator[Found | Unknown]
ROOT: Final = (Kind.ROOT,)
BEHIND: Final = 2  # pages behind the image: IPC buffer, bootinfo. More bootinfo is known when it boots.
EXAMINED_MAX: Final = 4  # times the file's size; segments that lie on each other would have it read for ever
NAMES: Final = ("_sel4_start", "_start", "__executable_start", "_end", "__sel4_ipc_buffer", "bootinfo")


def begins_at_a_page(elf: Elf, subject: Subject) -> Said:
    begin = extent(elf).begin
    if elf.loads and begin % PAGE:
        yield Found("program headers", f"the lowest vaddr is {begin:#x}", f"a multiple of {PAGE:#x}")


def leaves_room(elf: Elf, subject: Subject) -> Said:
    if subject.target is None:
        yield Unknown("the target is not known")
        return
    end, top = round_up(extent(elf).end) + BEHIND * PAGE, TARGETS[subject.target].user_top
    if elf.loads and end > top:
        yield Found(
            "program headers", f"with IPC buffer and bootinfo it ends at {end:#x}", f"{top:#x} at most"
        )


def enters(elf: Elf, subject: Subject) -> Said:
    place = extent(elf)
    if elf.loads and not place.begin <= elf.entry < place.end:
        yield Found("header", f"entry {elf.entry:#x}", f"in {place}")


def has_64_bits(elf: Elf, subject: Subject) -> Said:
    if elf.bits != 64:
        yield Found("header", f"class {elf.bits} bits", "64 bits")


def leaves_null_alone(elf: Elf, subject: Subject) -> Said:
    for each in elf.loads:
        if each.vaddr < PAGE:
            yield Found(each.name, f"vaddr {each.vaddr:#x}", f"{PAGE:#x} or more, that null faults")


def is_not_clobbered(elf: Elf, subject: Subject) -> Said:
    if subject.target != "x86_64":
        return
    left = EXAMINED_MAX * len(elf.data)
    for each in elf.segments:
        if each.type == PT_LOAD:
            continue
        for load, lost in _cleared(elf, each):
            left -= lost.end - lost.begin
            if left < 0:
                yield Unknown(f"program headers clear more than {EXAMINED_MAX} times the file")
                return
            at = load.offset + lost.begin - load.vaddr
            end = min(at + lost.end - lost.begin, len(elf.data))
            if damaged := end - at - elf.data.count(0, at, end):
                said = f"the loader clears {lost} for it, {damaged} bytes of {load.name}"
                yield Found(each.name, said, "zeros there, or filesz = memsz")


def _cleared(elf: Elf, segment: Segment) -> Iterator[tuple[Segment, Range]]:
    """Of what is loaded before it, the addresses that are cleared with it."""
    for load in elf.loads:
        begin, end = (
            max(segment.vaddr + segment.filesz, load.vaddr),
            min(segment.end, load.vaddr + load.filesz),
        )
        # In their order: what is loaded later is whole.
        if load.index < segment.index and begin < end and load.offset + begin - load.vaddr < len(elf.data):
            yield load, Range(begin, end)


def has_one_tls(elf: Elf, subject: Subject) -> Said:
    found = [each for each in elf.segments if each.type == PT_TLS]
    for each in found[1:]:
        yield Found(each.name, "one more PT_TLS", "one at most")
    for each in found[:1]:
        if not any(load.vaddr <= each.vaddr and each.vaddr + each.filesz <= load.end for load in elf.loads):
            yield Found(each.name, f"vaddr {each.vaddr:#x}, filesz {each.filesz:#x}", "inside a PT_LOAD")


def asks_for_protection(elf: Elf, subject: Subject) -> Said:
    for each in elf.segments:
        if each.flags & PF_X and (each.type == PT_GNU_STACK or (each.type == PT_LOAD and each.flags & PF_W)):
            yield Found(each.name, "writable and executable", "one of the two")


def has_names(elf: Elf, subject: Subject) -> Said:
    there = [name for name in NAMES if elf.symbol(name) is not None]
    yield Found("symbols", " ".join(there) or f"none of {' '.join(NAMES)}")


MEASURED: Final = "measured: seL4 16.0.0-dev"
RULES: Final = (
    Rule("R1", Severity.E, ROOT, "its lowest address is at the beginning of a page",
         "the kernel refuses it: must be 4KB-aligned", MEASURED, begins_at_a_page),
    Rule("R2", Severity.E, ROOT, "with the pages of IPC buffer and bootinfo behind it, it ends in user space",
         "the kernel maps them behind the image's last page, and refuses it where they do not fit",
         "seL4's boot code; bootinfo has more pages on some machines, which are not counted", leaves_room),
    Rule("R3", Severity.E, ROOT, "the entry is inside the image", "the kernel refuses it", MEASURED, enters),
    Rule("R4", Severity.E, ROOT, "it is of 64 bits", "the kernel refuses ELFCLASS32", MEASURED, has_64_bits),
    Rule("R5", Severity.W, ROOT, "nothing is loaded at page 0", "null would be an address like any other",
         "not tried", leaves_null_alone),
    Rule("R6", Severity.E, ROOT, "x86_64: what other program headers clear has no bytes of a PT_LOAD",
         "the kernel's loader does not look at p_type: it clears what a PT_TLS has beyond its bytes, and so "
         "what stands in memory behind .tbss", "measured: real damage in a stock root task",
         is_not_clobbered),
    Rule("R7", Severity.E, ROOT, "there is at most one PT_TLS, and its bytes are in a PT_LOAD",
         "each thread gets a copy of them", "ELF Handling For Thread-Local Storage", has_one_tls),
    Rule("R8", Severity.W, ROOT, "no segment and no stack is both writable and executable",
         "a policy, not protection: every page of a root task is mapped writable, and can be run",
         "measured: writing to code and running data succeed", asks_for_protection),
    Rule("R9", Severity.I, ROOT, f"which of {', '.join(NAMES)} it has",
         "__sel4_ipc_buffer is thread-local: its value is an offset", "", has_names),
)  # fmt: skip
