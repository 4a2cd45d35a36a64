"""Measure skep diff: two traces of a million entries, few and many differences, beside GNU diff and git diff.

Those two are given the same work as lines of JSON, in which jobs go by numbers and there is no time. Theirs
is the time of comparing lines; ours is also that of reading two ledgers whose times and ids are all others,
of forgetting those and of telling what changed. The first table is the search alone: from which number of
edits on the compiled one pays.

    python -m tests.bench.diffing [--entries N] [--directory DIR]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from skep.native.myers import PURE, align, compiled
from skep.trace.clock import ulid
from skep.trace.entry import OK, Line, canonical, entry_of
from skep.trace.sqlite import SqliteLedger
from skep.validator.diff.diff import diff_traces
from skep.validator.diff.report import Report
from skep.validator.diff.rules import Rules
from skep.validator.diff.traces import opened

ENTRIES = 1_000_000
BATCH = 4096  # entries to a commit
START_NS = 1_700_000_000_000_000_000
EDITS = (10, 100, 300, 500, 1000, 2000, 4000, 8000)  # of the second table
RIVALS = (("diff",), ("git", "diff", "--no-index", "--numstat"))
TENANT = "default/default/default"

Written = tuple[str, str, str, dict[str, Any]]  # actor, path, line, event


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.diffing", description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--directory", type=Path, help="where the ledgers go; default: a temporary one")
    args = parser.parse_args()
    console = Console(width=120)
    console.print(searches())
    with TemporaryDirectory(dir=args.directory) as directory:
        console.print(traces(Path(directory), args.entries))


def traces(directory: Path, entries: int) -> Table:
    table = Table(title=f"two traces of {entries:,} entries, seconds of processor", title_justify="left")
    for column in ("differences", "skep diff", "found", "diff", "git diff --no-index"):
        table.add_column(column, justify="right")
    first = list(work(entries))
    write(directory / "a", first, seed=1)
    for name, edits in (("none", 0), ("100", 100), ("10 %", entries // 10)):
        write(directory / "b", edited(first, edits), seed=2)
        seconds, report = timed(compare, directory)
        counts = ", ".join(f"{n:,} {kind}" for kind, n in report.counts.items() if n)
        counts += "" if report.minimal else " (not minimal)"
        a, b = (str(directory / f"{side}.jsonl") for side in "ab")
        rivals = [lines_compared(command, a, b) for command in RIVALS]
        table.add_row(name, f"{seconds:.1f}", counts or "-", *(f"{rival:.1f}" for rival in rivals))
    return table


def work(entries: int) -> Iterator[Written]:
    """Jobs, ten of them at a time: submitted, leased, ended. A job is named by its number."""
    for first in range(0, entries // 3 + 10, 10):
        jobs = range(first, first + 10)
        for n in jobs:
            yield (
                "unix:ann",
                "/jobs/ctl",
                f"submit topic=sum input={n % 97}",
                {"type": "job.submitted", "job": n},
            )
        for n in jobs:
            yield f"unix:work#w{n % 4}", "/pools/default/next", "lease", {"type": "job.leased", "job": n}
        for n in jobs:
            yield (f"unix:work#w{n % 4}", f"/jobs/{{{n}}}/ctl", f"ack result={n % 89} fence=1",
                   {"type": "job.ended", "job": n, "fence": 1})  # fmt: skip


def edited(written: list[Written], edits: int) -> list[Written]:
    """With so many places in which one was left out, is another or stands twice."""
    chance = random.Random(edits)
    places = set(chance.sample(range(len(written)), edits))
    found: list[Written] = []
    for i, each in enumerate(written):
        kind = i % 3 if i in places else -1
        if kind == 1:
            actor, path, line, event = each
            found.append((actor, path, f"{line} note={i}", event))
        elif kind != 0:
            found += [each] * (2 if kind == 2 else 1)
    return found


def write(path: Path, written: list[Written], seed: int) -> None:
    """The ledger, and the lines for the others. Ids and times are those of the seed, the others' of none."""
    file = path.with_suffix(".db")
    file.unlink(missing_ok=True)
    ledger = SqliteLedger(str(file))
    with path.with_suffix(".jsonl").open("wb") as lines:
        for first in range(0, len(written), BATCH):
            ledger.begin()
            list(ledger.tail())
            batch = written[first : first + BATCH]
            ledger.append([entry(each, first + n, seed) for n, each in enumerate(batch, 1)])
            ledger.commit()
            lines.writelines(canonical(each) + b"\n" for each in batch)
    ledger.close()


def entry(written: Written, seq: int, seed: int) -> bytes:
    actor, path, said, event = written
    job = name(event["job"], seed)
    path = path.replace(f"{{{event['job']}}}", job)
    time_ns = START_NS * seed + seq * 1000
    line = Line(actor, "operator", TENANT, path, (said,), time_ns, name(-seq, seed))
    return canonical(entry_of(line, seq, OK, (event | {"job": job, "until_ns": time_ns + 10**9},)))


def name(n: int, seed: int) -> str:
    return ulid(START_NS + n * 1_000_000, hash((n, seed)) % (1 << 80))


def compare(directory: Path) -> Report:
    a, b = (opened(str(directory / f"{side}.db")) for side in "ab")
    assert a is not None
    assert b is not None
    return diff_traces(a, b, Rules())


def timed(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of processor, and what it gives."""
    begin = time.process_time()
    found = work(*args)
    return time.process_time() - begin, found


def lines_compared(command: tuple[str, ...], a: str, b: str) -> float:
    begin = sum(os.times()[2:4])
    done = subprocess.run([*command, a, b], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode in (0, 1), command
    return sum(os.times()[2:4]) - begin


def searches() -> Table:
    table = Table(title="the search alone, 100,000 items, seconds of processor", title_justify="left")
    for column in ("edits", "in Python", "compiled"):
        table.add_column(column, justify="right")
    engine = compiled()
    assert engine is not None
    seconds, _ = timed(align, array("q", [1, 2]), array("q", [2, 1]), engine)
    table.caption = f"compiling it, or loading what was compiled: {seconds:.2f} s, once"
    chance = random.Random(0)
    a = array("q", [chance.randrange(1000) for _ in range(100_000)])
    for edits in EDITS:
        b = array("q", a)
        for _ in range(edits // 2):
            b[chance.randrange(len(b))] = chance.randrange(1000)
        cells = [timed(align, a, b, each, each)[0] for each in (PURE, engine)]
        table.add_row(f"{edits:,}", *(f"{seconds:.2f}" for seconds in cells))
    return table


if __name__ == "__main__":
    main()
