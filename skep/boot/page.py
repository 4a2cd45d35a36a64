"""BootInfo in the memory of a guest that has been stopped: found, read, checked against the root task."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from skep.boot.bootinfo import EXTRA_MAX, PAGE, BootInfo, BootInfoError, decode, misplaced
from skep.boot.manifest import Page
from skep.boot.qemu import LabError, Machine
from skep.boot.symbols import Symbols

POINTER: Final = 8  # bytes; both architectures have 64 bits


class Found(NamedTuple):
    """``broken``: what does not hold of it. ``info`` None: it could not be read."""

    data: bytes
    info: BootInfo | None
    broken: tuple[str, ...]


async def find(machine: Machine, page: Page, base: Path) -> Found:
    """Read it where the manifest says that it is."""
    symbols = Symbols(base / page.elf) if page.elf else None
    address = page.address
    try:
        if page.symbol:
            assert symbols is not None
            if page.symbol not in symbols.by_name:
                return Found(b"", None, (f"{page.elf} has no {page.symbol}",))
            address = int.from_bytes(await machine.memory(symbols.by_name[page.symbol], POINTER), "little")
        where, physical = (address, False) if address is not None else (page.physical or 0, True)
        data = await machine.memory(where, PAGE, physical)
        extra = min(decode(data, mcs=page.mcs).words["extraLen"], EXTRA_MAX)
        if extra:
            data += await machine.memory(where + PAGE, extra, physical)
        info = decode(data, mcs=page.mcs)
    except (LabError, BootInfoError) as error:
        return Found(b"", None, (str(error),))
    info.broken += misplaced(info, address, symbols.span if symbols is not None else None)
    return Found(data, info, tuple(info.broken))
