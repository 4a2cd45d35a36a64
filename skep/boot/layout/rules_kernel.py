"""The rules for kernels. pc99's starts without paging, in a segment of its own at its physical address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from skep.boot.layout import multiboot
from skep.boot.layout.reading import PF_W, PF_X, PT_GNU_STACK, Elf, Segment
from skep.boot.layout.rule import PAGE, Found, Kind, Range, Rule, Severity, Subject, Unknown

Said = Iterator[Found | Unknown]
KERNEL: Final = (Kind.KERNEL,)
ENDS: Final = ("ki_boot_end", "ki_end")


def _identical(elf: Elf, subject: Subject) -> list[Segment]:
    """The segments that are where they are in memory: pc99's first."""
    return [each for each in elf.loads if each.vaddr == each.paddr] if subject.target == "x86_64" else []


def enters(elf: Elf, subject: Subject) -> Said:
    if subject.target == "x86_64":
        allowed, expected = _identical(elf, subject), "an address of the segment whose vaddr is its paddr"
    else:
        allowed, expected = [each for each in elf.loads if each.flags & PF_X], "in an executable segment"
    if not any(each.vaddr <= elf.entry < each.end for each in allowed):
        yield Found("header", f"entry {elf.entry:#x}", expected)


def has_one_offset(elf: Elf, subject: Subject) -> Said:
    apart = {each.index for each in _identical(elf, subject)}
    high = [each for each in elf.loads if each.index not in apart]
    for each in high[1:]:
        # As ELF32 the addresses of a 64-bit kernel are cut off.
        offset, first = ((s.vaddr - s.paddr) % (1 << elf.bits) for s in (each, high[0]))
        if offset != first:
            yield Found(each.name, f"vaddr - paddr is {offset:#x}", f"{first:#x}, as in {high[0].name}")


def is_in_ram(elf: Elf, subject: Subject) -> Said:
    if subject.ram is None:
        yield Unknown("the target is not known")
        return
    for each in elf.loads:
        place = Range(each.paddr, each.paddr + each.memsz)
        if not place.within(subject.ram):
            yield Found(each.name, f"paddr {place}", f"in RAM, {subject.ram}")


def has_boot_part(elf: Elf, subject: Subject) -> Said:
    if not elf.sections:
        yield Unknown("there is no section table that can be read")
    elif elf.section(".boot") is None:
        yield Found("sections", "no .boot", "one: its memory is given away once the kernel has booted")
    for name in ENDS:
        symbol = elf.symbol(name)
        if symbol is not None and symbol.value % PAGE:
            yield Found(f"symbol {name}", f"{symbol.value:#x}", f"a multiple of {PAGE:#x}")


def may_write_code(elf: Elf, subject: Subject) -> Said:
    for each in elf.loads:
        if each.flags & PF_W and each.flags & PF_X:
            yield Found(each.name, "writable and executable, as is usual here")


def has_no_stack_note(elf: Elf, subject: Subject) -> Said:
    if not any(each.type == PT_GNU_STACK for each in elf.segments):
        yield Found("program headers", "no PT_GNU_STACK, which nobody misses")


def pair(small: Elf, big: Elf) -> Iterator[Found]:
    """Rule K6, of two files: the ELF32 against the ELF64 that it was made from."""
    if small.entry != big.entry & 0xFFFFFFFF:
        yield Found("header", f"entry {small.entry:#x}", f"{big.entry:#x}")
    if len(small.loads) != len(big.loads):
        yield Found("program headers", f"{len(small.loads)} PT_LOAD", f"{len(big.loads)}")
        return
    for mine, its in zip(small.loads, big.loads, strict=True):
        for noun in ("paddr", "filesz", "memsz"):
            said, expected = getattr(mine, noun), getattr(its, noun)
            if said != expected:
                yield Found(mine.name, f"{noun} {said:#x}", f"{expected:#x}")
        if small.content(mine) != big.content(its):
            yield Found(mine.name, "other bytes", f"those of {its.name} of the ELF64")


LDS: Final = "seL4's linker scripts; measured: kernels of 16.0.0-dev"
RULES: Final = (
    Rule("K1", Severity.E, KERNEL, "the entry is in an executable segment; pc99's in that of vaddr = paddr",
         "pc99 is entered before there is paging, and nobody looks at flags: that segment has no PF_X", LDS,
         enters),
    Rule("K2", Severity.E, KERNEL, "vaddr - paddr is the same in all segments, but for pc99's physical one",
         "the kernel maps itself by one offset", LDS, has_one_offset),
    Rule("K3", Severity.E, KERNEL, "physical addresses are in RAM: pc99 from 0x100000, virt from 0x40000000",
         "what is loaded elsewhere is lost; --ram says where another board has its memory",
         "QEMU's pc and virt; platform_gen.json of a build", is_in_ram),
    Rule("K4", Severity.E, KERNEL, "there is a section .boot; ki_boot_end and ki_end are ends of pages",
         "memory is given to the root task page by page, from there on", LDS, has_boot_part),
    Rule("K5", Severity.E, KERNEL, "pc99: a multiboot header, aligned, its sum 0, in the first 8192 bytes",
         "without it QEMU ends: Error loading uncompressed kernel without PVH ELF Note",
         "Multiboot Specification 0.6.96, section 3.1; measured", multiboot.bootable),
    Rule("K7", Severity.I, KERNEL, "which segments are both writable and executable",
         "as a rule all of them: the kernel protects itself otherwise", LDS, may_write_code),
    Rule("K8", Severity.I, KERNEL, "whether there is a PT_GNU_STACK", "nobody reads it here", LDS,
         has_no_stack_note),
    Rule("K9", Severity.I, KERNEL, "pc99: QEMU loads an ELF32",
         "QEMU ends: Cannot load x86-64 image, give a 32bit one", "measured, QEMU 7.2", multiboot.loadable),
)  # fmt: skip
