"""Measure skep boot check beside readelf -a, LIEF and pyelftools: MB/s of processor time, in one run.

Each reads all segments, sections and symbols of the same files. Readelf also prints them, to nowhere; ours
also hashes the file and applies the rules; LIEF also builds what it could write again. What a process of its
own takes to start is in the last column alone. Cells are medians of interleaved rounds.

    python -m tests.bench.checking [--rounds N]
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import lief
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from rich.console import Console
from rich.table import Table

from skep.boot.guest.build import cpio
from skep.boot.layout.checking import check
from tests.boot.elves import CODE, LOAD, File, R, Seg, Sym, W, X, arm_kernel, arm_root, build, image

ROUNDS = 5
MIB = 1 << 20


def kernel(symbols: int, size: int) -> File:
    """As the kernel for aarch64, so large and with so many functions."""
    file = arm_kernel()
    begin = file.segments[0].vaddr
    named = tuple(Sym(f"function_number_{n}", begin + n * 16, 16, 2, 0x12) for n in range(symbols))
    return file.but(
        segments=(Seg(LOAD, R | W | X, 0x2000, begin, size, size, 0x40000000, 0x2000, CODE),),
        sections=file.sections[:1],
        symbols=(*file.symbols[:1], *named),
    )


def files() -> dict[str, bytes]:
    plain = build(kernel(3000, MIB))
    packed = cpio([("kernel.elf", plain), ("app", build(arm_root()))])
    return {
        "kernel, 1 MiB, 3,000 symbols": plain,
        "program, 8 MiB, 50,000 symbols": build(kernel(50_000, 8 * MIB)),
        "stripped, 32 MiB": build(kernel(0, 32 * MIB).but(symbols=(), sections=())),
        "elfloader image, kernel inside": build(image(packed, base=0x48000000)),
    }


def ours(path: Path) -> None:
    check(path.name, path.read_bytes())


def readelf(path: Path) -> None:
    subprocess.run(
        ["readelf", "-aW", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )


def by_lief(path: Path) -> None:
    found = lief.ELF.parse(str(path))
    assert found is not None
    for each in (*found.segments, *found.sections, *found.symbols):
        assert each is not None


def by_pyelftools(path: Path) -> None:
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            for symbol in section.iter_symbols():
                assert symbol.name is not None
    for segment in elf.iter_segments():
        assert segment["p_type"]


def command(path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "skep", "boot", "check", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


READERS: dict[str, Callable[[Path], None]] = {
    "skep": ours,
    "readelf -a": readelf,
    "LIEF": by_lief,
    "pyelftools": by_pyelftools,
    "skep boot check, whole": command,
}


def spent(work: Callable[[Path], None], path: Path) -> float:
    """Seconds of processor, of this process and of those it waited for."""

    def now() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    begin = now()
    work(path)
    return now() - begin


def main() -> None:
    lief.logging.disable()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    table = Table(title="MB/s of processor time, ms below", title_justify="left")
    for column in ("file", *READERS):
        table.add_column(column, justify="left" if column == "file" else "right")
    with TemporaryDirectory() as directory:
        for name, data in files().items():
            path = Path(directory) / "file"
            path.write_bytes(data)
            times: dict[str, list[float]] = {reader: [] for reader in READERS}
            for _ in range(rounds):
                for reader, work in READERS.items():
                    times[reader].append(spent(work, path))
            cells = (max(median(times[reader]), 1e-6) for reader in READERS)
            table.add_row(name, *(f"{len(data) / 1e6 / cell:,.0f}\n{cell * 1e3:,.1f}" for cell in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
