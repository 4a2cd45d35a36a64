"""How fast a trace is hashed, and from how many entries on a kernel pays: python -m tests.bench.hashing

In memory: the entries' leaf hashes, and the tree over them with a root for each commit. In files: a ledger's
tail, as a role reads it when it starts, and skep verify. Beside them in the same rounds: sha256sum, openssl
and git fsck over the same bytes: "/sha256sum" is what part of its time was taken, by the clock and by all
processors. Cells are medians of interleaved rounds."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from skep.native.trace import HASH, Compiled, hashing
from skep.native.trace_cuda import Cuda, Cupy
from skep.native.trace_twin import Twin
from skep.trace.entry import OK, Line, canonical, entry_of
from skep.trace.merkle import Frontier
from skep.trace.proof import consistency, inclusion
from skep.trace.sqlite import SqliteLedger
from skep.trace.tiles import Tiles
from skep.validator.verify.sources import LedgerSource
from skep.validator.verify.verify import verify

COMMIT = 8  # entries of one
TURN = 64  # of one where they are appended
FLOORS = ("sha256sum", "openssl dgst")
FEW = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1024)  # entries of a batch


class Took(NamedTuple):
    """Seconds: by the clock, and of all processors, those of programs that were started included."""

    wall: float
    cpu: float


class Row(NamedTuple):
    """What was done to all entries, and how long it took in each round."""

    name: str
    took: list[Took]


def main() -> int:
    args = arguments().parse_args()
    entries = list(made(args.entries))
    with TemporaryDirectory(dir=args.dir, prefix="skep-hashing-") as place:
        found = measured(entries, Path(place), args.rounds)
    size = sum(map(len, entries))
    pays = {"leaves": paying(entries, "leaves"), "tree": paying(entries, "tree")}
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(drawn(found, len(entries), size))
    proofs = proving(args.leaves)
    for line in [*told(pays), *proofs_told(args.leaves, proofs), cuda_told()]:
        console.print(line, markup=False)
    if args.json:
        about = {"entries": len(entries), "bytes": size, "cores": os.cpu_count(), "sha": hashing.sha}
        rows = {row.name: row.took for row in found}
        args.json.write_text(
            json.dumps({**about, "seconds": rows, "pays_from": pays, "proofs_us": proofs}, indent=1) + "\n"
        )
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hashing", description=__doc__)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--leaves", type=int, default=10_000_000, help="of the tree that proofs are made of")
    parser.add_argument("--rounds", type=int, default=5, help="the median is shown")
    parser.add_argument("--dir", type=Path, help="where files are made; default: the temporary directory")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    return parser


def made(count: int) -> Iterator[bytes]:
    """Entries as workers write them, some 490 bytes each."""
    chance = Random(1)
    for seq in range(1, count + 1):
        job, lease = (f"{chance.getrandbits(128):026X}"[:26] for _ in "jl")
        lines = (f"finish job={job} lease={lease} state=ok",)
        line = Line("spiffe://hive/worker/w17", "worker", "acme", "/jobs/ctl", lines, seq * 10**9, lease)
        events: list[dict[str, Any]] = (
            [{"type": "trust.founded", "hive": "bench", "keys": []}]
            if seq == 1
            else [
                {"type": "job.finished", "job": job, "lease": lease, "node": "w17", "n": seq, "state": "ok"},
                {"type": "queue.moved", "pool": "default", "n": seq},
            ]
        )
        yield canonical(entry_of(line, seq, OK, tuple(events)))


# what is measured


def measured(entries: list[bytes], place: Path, rounds: int) -> list[Row]:
    """Every way of looking at all entries, in interleaved rounds."""
    ledger, joined, git, numbers = place / "ledger.db", place / "joined", place / "git", count()
    write_ledger(ledger, entries)
    joined.write_bytes(b"".join(entries))
    write_git(git, entries)
    ways: dict[str, Callable[[], object]] = {
        FLOORS[0]: lambda: run("sha256sum", str(joined)),
        FLOORS[1]: lambda: run("openssl", "dgst", "-sha256", str(joined)),
        "git fsck": lambda: run("git", "-C", str(git), "fsck", "--full", "--no-dangling"),
        **in_memory(entries),
        "a ledger's tail": lambda: read_tail(ledger),
        "skep verify": lambda: verify(LedgerSource(ledger)),
        "append, SQLite alone": lambda: append_plain(place / f"{next(numbers)}.db", entries),
        "append, with hashes and roots": lambda: append(place / f"{next(numbers)}.db", entries),
    }
    rows = [Row(name, []) for name in ways]
    for _ in range(rounds):
        for row in rows:
            row.took.append(timed(ways[row.name]))
    return rows


def in_memory(entries: list[bytes]) -> dict[str, Callable[[], object]]:
    """Hashing what is in memory already, joined where the way wants it so."""
    twin, data, ends = Twin(), b"".join(entries), array("Q", accumulate(map(len, entries)))
    leaves = twin.leaves(entries)
    sizes = range(COMMIT, len(entries) + 1, COMMIT)

    def in_c(sha: bool, threads: int) -> bytes:
        return Compiled(sha).leaves_of(data, ends, threads)

    ways: dict[str, Callable[[], object]] = {
        "leaves, Python": lambda: twin.leaves(entries),
        "leaves, C without SHA instructions": lambda: in_c(False, 1),
        "leaves, C, 1 thread": lambda: in_c(True, 1),
        "leaves, C, 2 threads": lambda: in_c(True, 2),
        "tree, Python": lambda: twin.grow(0, [], leaves, sizes),
        "tree, C": lambda: Compiled().grow(0, [], leaves, sizes),
        "leaves and tree, C, 1 thread": lambda: Compiled().grow(0, [], in_c(True, 1), sizes),
        "leaves and tree, C, 2 threads": lambda: Compiled().grow(0, [], in_c(True, 2), sizes),
    }
    cuda = device()
    return ways if cuda is None else {**ways, "leaves, CUDA": lambda: cuda.leaves_of(data, ends)}


def device() -> Cuda | None:
    try:
        return Cuda(Cupy())
    except (ImportError, RuntimeError):
        return None


def write_ledger(path: Path, entries: list[bytes]) -> None:
    """Their ledger. All commits are one of SQLite's: nobody waits for these."""
    SqliteLedger(str(path)).close()
    frontier = Frontier()
    leaves = hashing.leaves(entries)
    sizes = [*range(COMMIT, len(entries), COMMIT), len(entries)]
    roots = frontier.extend(leaves, sizes)
    file = sqlite3.connect(path, isolation_level=None)
    file.execute("BEGIN")
    rows = ((n + 1, body, leaves[n * HASH : (n + 1) * HASH]) for n, body in enumerate(entries))
    file.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
    file.executemany("INSERT INTO commits VALUES (?, ?, ?)", zip(sizes, [0, *sizes], roots, strict=False))
    file.execute("COMMIT")
    file.close()


def write_git(path: Path, entries: list[bytes]) -> None:
    """A repository that holds them as blobs, packed."""
    run("git", "init", "-q", "--bare", str(path))
    stream = b"".join(b"blob\ndata %d\n%s\n" % (len(body), body) for body in entries)
    subprocess.run(["git", "-C", str(path), "fast-import", "--quiet"], input=stream, check=True)


def read_tail(path: Path) -> None:
    ledger = SqliteLedger(str(path))
    for _ in ledger.tail():
        pass
    ledger.close()


def append(path: Path, entries: list[bytes]) -> None:
    """As a turn that is busy does."""
    with closing(SqliteLedger(str(path))) as ledger:
        for first in range(0, len(entries), TURN):
            ledger.begin()
            ledger.append(entries[first : first + TURN])
            ledger.commit()


def append_plain(path: Path, entries: list[bytes]) -> None:
    """The same bodies, as durably, and nothing that shows whether they were changed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.execute("CREATE TABLE entries(seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        for first in range(0, len(entries), TURN):
            file.execute("BEGIN IMMEDIATE")
            file.executemany(
                "INSERT INTO entries VALUES (?, ?)", enumerate(entries[first : first + TURN], first + 1)
            )
            file.execute("COMMIT")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def timed(act: Callable[[], object]) -> Took:
    began, before = time.perf_counter(), cpu_s()
    act()
    return Took(time.perf_counter() - began, cpu_s() - before)


def cpu_s() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


# from how many on it pays


def paying(entries: list[bytes], what: str) -> int:
    """The fewest entries of a batch from which C is the faster one, up to the longest batch; 0: none."""
    twin, compiled = Twin(), Compiled(always=True)
    peaks = [bytes(HASH)] * 10

    def act(one: Twin | Compiled, some: list[bytes], leaves: bytes) -> object:
        return one.leaves(some) if what == "leaves" else one.grow(1023, peaks, leaves)

    first = 0
    for few in FEW:
        some = entries[:few]
        leaves = twin.leaves(some)
        python, c = (best(partial(act, one, some, leaves)) for one in (twin, compiled))
        first = 0 if python <= c else first or few
    return first


def best(act: Callable[[], object], times: int = 200) -> float:
    """Of five runs: what is asked is where two ways cross, not what a machine does beside them."""
    return min(timed(lambda: [act() for _ in range(times)]).wall for _ in range(5))


# proofs


def proving(leaves: int) -> dict[str, list[float]]:
    """µs of each of a thousand proofs, from leaf hashes in memory, in ascending order."""
    chance = Random(2)
    data = chance.randbytes(HASH * 4096) * (leaves // 4096 + 1)
    tiles = Tiles(lambda first, some: data[first * HASH : (first + some) * HASH])
    while not tiles.grow(leaves):
        pass
    places = [chance.randrange(1, leaves) for _ in range(1000)]
    kinds: dict[str, Callable[[int], object]] = {
        "inclusion": lambda place: inclusion(place, leaves, tiles.node),
        "consistency": lambda place: consistency(place, leaves, tiles.node),
    }
    return {
        kind: sorted(timed(partial(prove, place)).wall * 1e6 for place in places)
        for kind, prove in kinds.items()
    }


# what is said


def drawn(rows: list[Row], entries: int, size: int) -> Table:
    table = Table(title=f"{entries:,} entries, {size / 1e6:,.0f} MB, a commit for each {COMMIT}")
    table.add_column("")
    for column in ("entries/s", "GB/s", "/sha256sum", "/openssl", "CPU µs/entry", "/sha256sum", "/openssl"):
        table.add_column(column, justify="right")
    wall = {row.name: median(took.wall for took in row.took) for row in rows}
    cpu = {row.name: median(took.cpu for took in row.took) for row in rows}
    for name in wall:
        clock, spent = ([f"{took[name] / took[floor]:.2f}" for floor in FLOORS] for took in (wall, cpu))
        speed = (f"{entries / wall[name]:,.0f}", f"{size / wall[name] / 1e9:.2f}")
        table.add_row(name, *speed, *clock, f"{cpu[name] / entries * 1e6:.2f}", *spent)
    return table


def told(pays: dict[str, int]) -> Iterator[str]:
    for what, few in pays.items():
        yield f"{what}: C pays from {few} entries on" if few else f"{what}: C does not pay"


def proofs_told(leaves: int, took_us: dict[str, list[float]]) -> Iterator[str]:
    for kind, took in took_us.items():
        median_us, late_us = took[len(took) // 2], took[len(took) * 99 // 100]
        yield f"proof of {kind} in {leaves:,} entries: median {median_us:,.0f} µs, p99 {late_us:,.0f} µs"


def cuda_told() -> str:
    try:
        Cupy()
    except ImportError:
        return "CUDA did not run: cupy is not here (the extra cuda)"
    except RuntimeError as error:
        return f"CUDA did not run: no device ({error})"
    return "CUDA: the bytes go to the device and the hashes come back within the time"


if __name__ == "__main__":
    sys.exit(main())
