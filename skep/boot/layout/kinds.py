"""Which kind a file is, by its content."""

from __future__ import annotations

from typing import Final

from skep.boot.layout.cpio import find
from skep.boot.layout.multiboot import has_magic
from skep.boot.layout.reading import EM_386, ET_EXEC, PT_DYNAMIC, Elf
from skep.boot.layout.rule import TARGETS, Kind

PE_MAGIC: Final = b"MZ"
# Where kernels are: the high half; above 2 GiB in 32 bits; with a hypervisor on aarch64 from here on.
HIGH: Final = {32: 0x80000000, 64: 0x8000000000}
KERNEL_SYMBOLS: Final = ("ki_boot_end", "ki_end")


def kind_of(elf: Elf) -> Kind:
    """The first that fits; what has nothing special is a root task, as any program may be."""
    if elf.type != ET_EXEC and any(each.type == PT_DYNAMIC for each in elf.segments):
        return Kind.EFI
    if elf.symbol("_archive_start") is not None:
        return Kind.IMAGE
    if _is_kernel(elf):
        return Kind.KERNEL
    # A root task may have an archive too, of its own programs.
    return Kind.IMAGE if find(elf.data) is not None else Kind.ROOT


def _is_kernel(elf: Elf) -> bool:
    high = any(each.vaddr >= HIGH[elf.bits] and each.vaddr != each.paddr for each in elf.loads)
    named = any(elf.symbol(name) is not None for name in KERNEL_SYMBOLS)
    return high or named or elf.machine == EM_386 or has_magic(elf.data)


def target_of(elf: Elf) -> str | None:
    """The target whose machine it is for."""
    return next(
        (
            name
            for name, target in TARGETS.items()
            if any(machine == elf.machine for machine, _ in target.kernels)
        ),
        None,
    )
