"""Addresses and names of an ELF file's functions. What cannot be read has none."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from skep.boot.layout.cpio import BadArchive, find, members

SYMBOLS_MAX: Final = 1 << 18  # of one file; a kernel has some thousands
SEGMENTS_MAX: Final = 64
FILE_MAX: Final = 1 << 30
IMAGE_MAX: Final = 1 << 28  # of a file that is searched for an archive


class Symbols:
    """Of one file: ``entry``, ``machine`` (EM_…), ``span`` and the addresses by name."""

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        """``content``: of a file that is in another, ``path``."""
        self.entry = 0
        self.machine = ""
        self.span: tuple[int, int] | None = None  # of its segments in memory; None: there are none
        self.by_name: dict[str, int] = {}
        self._functions: list[tuple[int, int, str]] = []
        if path.stat().st_size > FILE_MAX:
            return
        with path.open("rb") if content is None else BytesIO(content) as file:
            try:
                self._read(ELFFile(file))
            # Sizes and offsets of a file are not to be trusted; pyelftools raises these over them.
            except (ELFError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
                return

    def _read(self, elf: ELFFile) -> None:
        self.entry = elf.header["e_entry"]
        self.machine = str(elf.header["e_machine"])
        loaded = [each.header for each in islice(elf.iter_segments("PT_LOAD"), SEGMENTS_MAX)]
        if loaded:
            ends = [each["p_vaddr"] + each["p_memsz"] for each in loaded]
            self.span = (min(each["p_vaddr"] for each in loaded), max(ends))
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection) or table.num_symbols() > SYMBOLS_MAX:
            return
        for symbol in table.iter_symbols():
            kind, value = symbol["st_info"]["type"], symbol["st_value"]
            if (
                symbol.name
                and kind in ("STT_FUNC", "STT_NOTYPE", "STT_OBJECT")
                and symbol["st_shndx"] != "SHN_UNDEF"
            ):
                self.by_name.setdefault(symbol.name, value)
                if kind != "STT_OBJECT":
                    self._functions.append((value, symbol["st_size"], symbol.name))
        self._functions.sort()

    def place(self, address: int) -> str:
        """``function+0x12``; "": in none."""
        at = bisect_right(self._functions, (address, 1 << 64, "")) - 1
        if at < 0:
            return ""
        begin, size, name = self._functions[at]
        # Written in assembly, a function has no size: up to the next one.
        if (size and address >= begin + size) or address - begin > 1 << 20:
            return ""
        return f"{name}+{address - begin:#x}"


def archived(path: Path) -> list[Symbols]:
    """Of the files in the archive of an elfloader's image: the kernel and the root task; else none."""
    if path.stat().st_size > IMAGE_MAX:
        return []
    image = path.read_bytes()
    begin = find(image)
    if begin is None:
        return []
    found: list[Symbols] = []
    with suppress(BadArchive):  # those before what is wrong with it
        found += (Symbols(path, image[each.begin : each.end]) for each in members(image, begin, len(image)))
    return found
