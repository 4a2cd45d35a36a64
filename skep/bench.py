"""Measuring a live 9P server: what `skep bench` prints. Comparing servers is tests/bench.

It reads, stats and walks; it never writes, for the server is somebody's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from skep.native.load import IO_HEADER, Load, Place, measure

Unit = Literal["ops/s", "MB/s", "p50 ms", "MB"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: an operation, how many ask at once, and what is reported of it."""

    name: str
    op: str  # as in skep.native.load
    connections: int = 1
    depth: int = 1  # requests outstanding on each connection
    msize: int = 65536
    count: int = 64  # bytes of each read or write
    unit: Unit = "ops/s"

    def value(self, load: Load) -> float:
        """In the case's unit."""
        if self.unit == "p50 ms":
            return load.p50_ns / 1e6
        if self.unit == "MB/s":
            return load.bytes / load.seconds / 1e6 if load.seconds else 0.0
        return load.per_second


@dataclass(frozen=True, slots=True)
class Row:
    case: Case
    load: Load | None  # None: the server refused before the first operation
    error: str  # why the row holds no figure; empty: it does

    @property
    def value(self) -> float | None:
        """In the case's unit; None when anything went wrong."""
        return self.case.value(self.load) if self.load and not self.error else None


def small(op: str, name: str) -> list[Case]:
    """An operation at both depths, alone and from 16 connections."""
    shapes = [(1, 1, "1 conn"), (32, 1, "1 conn"), (1, 16, "16 conns"), (32, 16, "16 conns")]
    return [Case(f"{name}, d{d}, {conns}", op, connections=c, depth=d) for d, c, conns in shapes]


def bulk(op: str, name: str) -> list[Case]:
    """Whole messages of 64 KiB, 8 outstanding, and of 512 KiB, 4 outstanding."""
    shapes = [(65536, 8), (524288, 4)]
    return [Case(f"{name}, msize {m >> 10} KiB, d{d}", op, 1, d, m, m - IO_HEADER, "MB/s") for m, d in shapes]


CASES = {
    "read": [*small("read", "read 64 B"), *bulk("read", "bulk read")],
    "stat": small("stat", "stat"),
    "walk": small("walk", "walk+clunk"),
}


def run(place: Place, *, seconds: float = 1.0) -> Iterator[Row]:
    """A row at a time, as it is measured; a place without a path is not read.

    A server that cannot do a row gives a row that says so."""
    for op in ("read", "stat", "walk") if place.path else ("stat", "walk"):
        for case in CASES[op]:
            yield row(place, case, seconds)


def row(place: Place, case: Case, seconds: float, *, line: str = "", serial: int = 0) -> Row:
    """One measurement; `line` and `serial` are the ctl operation's."""
    try:
        load = measure(
            place,
            case.op,
            seconds=seconds,
            connections=case.connections,
            depth=case.depth,
            msize=case.msize,
            count=case.count,
            line=line,
            serial=serial,
        )
    except TimeoutError:
        return Row(case, None, "stall")
    except OSError as e:
        return Row(case, None, f"error: {e.strerror or e}")
    return Row(case, load, _complaint(load, case))


def _complaint(load: Load, case: Case) -> str:
    if load.stalled:
        return "stall"
    if case.unit == "MB/s" and load.count < min(case.count, load.msize - IO_HEADER):
        return "the file is shorter than a message"
    return f"error: {load.error}" if load.errors else ""
