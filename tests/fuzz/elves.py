"""A file of a boot: a report of any bytes, which names nothing that a terminal would act on."""

from __future__ import annotations

from collections.abc import Iterator

from skep.boot.layout.checking import FINDINGS_MAX, Asked, check
from skep.boot.layout.crosscheck import crosscheck
from skep.boot.layout.growth import changes
from skep.boot.layout.rule import Kind
from tests.fuzz.holding import holds

LENGTH_MAX = 16384
KINDS = (None, *Kind)


def one(data: bytes) -> None:
    """The first byte picks the kind that is named, the rest is the file; and a log, which it is not."""
    kind = KINDS[(data[0] if data else 0) % len(KINDS)]
    file = check("file", data[1:], Asked(kind))
    crosscheck(data, [file])
    holds(not list(changes(file, file)), "a file is as large as itself")
    for report in file.report.all():
        for found in report.findings:
            holds(str(found).isprintable(), str(found))
        for rule in {each.rule for each in report.findings}:
            count = sum(each.rule == rule for each in report.findings)
            holds(count <= FINDINGS_MAX + 1, f"{rule} {count} times")


def seeds() -> Iterator[bytes]:
    from tests.boot.elves import CODE, SHAPES, PeFile, build, x86_kernel

    yield b"\0" + build(x86_kernel(32))[:LENGTH_MAX]
    for shape in SHAPES.values():
        yield b"\0" + build(shape())[: LENGTH_MAX - 1]
    yield b"\0" + PeFile(content=CODE, certificate=bytes(64)).build()
    yield b"\0" + b"Kernel loaded to: start=0x100000 end=0x0\n  paddr=[0..ffff]\nsize=0x1 v_entry=0x1\n"
