"""Manifests for the guests, and a machine that is busy."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 30.0  # a guest says all within a second, on a machine that is not busy


def manifest(
    images: Path,
    arch: str,
    words: str = "do=ready",
    *,
    more: str = "",
    seconds: float = DEADLINE_S,
    tail: str = "",
) -> Path:
    """A manifest beside the images of ``arch``; ``more``: keys of its head, ``tail``: tables."""
    kernel = 'kernel = "kernel"\nmodules = ["rootserver"]' if arch == "x86_64" else 'kernel = "image"'
    marks = {
        "kernel": 'symbol = "start"\nelf = "kernel.elf"',
        "calibrating": 'symbol = "wait_periods"\nelf = "kernel.elf"',
        "calibrated": 'symbol = "calibrated"\nelf = "kernel.elf"',
        "root": 'entry = "rootserver"',
        "ready": 'symbol = "ready"\nelf = "rootserver"',
        "said": 'line = "^ROOT: ready"',
    }
    said = "".join(f'[[milestone]]\nname = "{name}"\n{where}\n' for name, where in marks.items())
    path = images / arch / "boot.toml"
    path.write_text(
        f'name = "guest"\narch = "{arch}"\n{kernel}\ncmdline = "{words}"\n{more}\n'
        f"[deadline]\nmilestone = {seconds}\nend = {seconds}\n{said}"
        '[[wait]]\nname = "calibration"\nfrom = "calibrating"\nto = "calibrated"\n' + tail
    )
    return path


@contextmanager
def burning() -> Iterator[None]:
    """Three busy loops for each processor."""
    loops = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for each in loops:
        each.start()
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.join()


def _burn() -> None:
    while True:
        pass
