"""What the boot lab costs beside a bare QEMU, and what is exact: python -m tests.bench.booting

The project's own guests, x86_64 and aarch64. *bare*: QEMU by itself with the same arguments, its serial
port a pipe that is read here, killed when the guest is ready. *lab*: `skep.boot.run.wall`, from the call to
its return. In turns, so that both see the same machine. Then boots by the clock and exact ones, idle and
beside three busy loops for each core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

from skep.boot.argv import command
from skep.boot.guest.build import ARCHES, build
from skep.boot.manifest import Manifest, parse
from skep.boot.run import exact, wall
from tests.boot.lab import burning

READY = rb"^ROOT: ready"
KERNEL = {
    "x86_64": 'kernel = "kernel"\nmodules = ["rootserver"]\ncmdline = "do=ready wait=1"',
    "aarch64": 'kernel = "image"\ncmdline = "do=ready"',
}
MILESTONES = """
[[milestone]]
name = "root"
entry = "rootserver"
[[milestone]]
name = "ready"
line = "^ROOT: ready"
"""


class Took(msgspec.Struct):
    """ms from the start of one boot: to the first byte printed, to being ready, to being reaped."""

    spoke: float
    ready: float
    ended: float


class Spread(msgspec.Struct):
    """Of one architecture's boots, idle or loaded. ``counts``: how many there were of them; ``wall``: ms."""

    arch: str
    loaded: bool
    counts: list[int]
    wall: list[float]


class Found(msgspec.Struct):
    boots: int
    bare: dict[str, list[Took]]
    lab: dict[str, list[Took]]
    spreads: list[Spread]


def bare(manifest: Manifest, base: Path) -> Took:
    begun = time.monotonic()
    process = subprocess.Popen(
        [*command(manifest, exact=False), "-chardev", "file,id=s,path=/dev/fd/1", "-serial", "chardev:s"],
        cwd=base,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    printed, spoke = b"", 0.0
    while not re.search(READY, printed, re.MULTILINE):
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, "QEMU has ended"
        spoke = spoke or time.monotonic()
        printed += piece
    ready = time.monotonic()
    process.kill()
    process.wait()
    process.stdout.close()
    return _took(begun, spoke, ready)


def lab(manifest: Manifest, base: Path) -> Took:
    begun = time.monotonic()
    spoke, ready, printed = 0.0, 0.0, b""

    def heard(data: bytes) -> None:
        nonlocal spoke, ready, printed
        printed += data
        spoke = spoke or time.monotonic()
        if not ready and re.search(READY, printed, re.MULTILINE):
            ready = time.monotonic()

    boot = asyncio.run(wall(manifest, base, heard))
    assert boot.verdict is None, boot.verdict
    return _took(begun, spoke, ready)


def _took(begun: float, spoke: float, ready: float) -> Took:
    return Took(*((at - begun) * 1000 for at in (spoke, ready, time.monotonic())))


def spread(manifest: Manifest, base: Path, boots: int, loaded: bool) -> Spread:
    counts, walls = set(), []
    for _ in range(boots):
        counted = asyncio.run(exact(manifest, base))
        assert counted.verdict is None, counted.verdict
        counts.add(counted.reached[-1].instructions or 0)
        timed = asyncio.run(wall(manifest, base))
        assert timed.verdict is None, timed.verdict
        walls.append(timed.reached[-1].wall_ms or 0.0)
    return Spread(manifest.arch, loaded, sorted(counts), sorted(walls))


def measured(into: Path, boots: int) -> Found:
    found = Found(boots, {}, {}, [])
    manifests = {}
    for arch in ARCHES:
        build(arch, into / arch)
        manifests[arch] = parse(f'name = "guest"\narch = "{arch}"\n{KERNEL[arch]}\n{MILESTONES}')
        found.bare[arch], found.lab[arch] = [], []
        for _ in range(boots):
            found.bare[arch].append(bare(manifests[arch], into / arch))
            found.lab[arch].append(lab(manifests[arch], into / arch))
        found.spreads.append(spread(manifests[arch], into / arch, boots, loaded=False))
    with burning():
        for arch in ARCHES:
            found.spreads.append(spread(manifests[arch], into / arch, boots, loaded=True))
    return found


def _median(boots: Sequence[Took], what: Callable[[Took], float]) -> float:
    return median(what(each) for each in boots)


def tell(found: Found) -> Iterator[str]:
    yield f"{found.boots} boots each, ms from the start: medians"
    yield "| | bare | lab | lab /bare |"
    yield "|---|---:|---:|---:|"
    rows: dict[str, Callable[[Took], float]] = {
        "first byte printed": lambda took: took.spoke,
        "ready": lambda took: took.ready,
        "ended, nothing left": lambda took: took.ended,
    }
    for arch in found.bare:
        for name, what in rows.items():
            plain, ours = _median(found.bare[arch], what), _median(found.lab[arch], what)
            yield f"| {arch}, {name} | {plain:.1f} | {ours:.1f} | {ours / plain:.2f} |"
    yield ""
    yield "| | distinct counts | instructions | wall, median | least to most |"
    yield "|---|---:|---:|---:|---:|"
    for each in found.spreads:
        counts = " ".join(f"{count:,}" for count in each.counts[:3])
        yield (
            f"| {each.arch}, {'loaded' if each.loaded else 'idle'} | {len(each.counts)} | {counts} "
            f"| {median(each.wall):.1f} ms | {each.wall[0]:.1f} to {each.wall[-1]:.1f} ms |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.booting", description=__doc__)
    parser.add_argument("--boots", type=int, default=20, help="of each cell")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory() as into:
        found = measured(Path(into), args.boots)
    print(msgspec.json.encode(found).decode() if args.json else "\n".join(tell(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
