"""skep's own queue figures: how fast jobs are submitted, leased and acknowledged, what each step takes, and
how much memory a job that waits has.

Jobs are submitted by as many connections as there are workers, a write each, then taken by the workers: so no
lease waits for a job."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from skep.native.load import FILE, ROOT, Place, attach, call, measure, reach
from tests.bench.queues_load import PAYLOAD
from tests.bench.queues_servers import line_of, process, queen

SUBMIT: Final = f"submit topic=sha256 input={PAYLOAD} labels=n:%d\n"
LOOK_S: Final = 0.004
READ: Final = 4096
# How one connection may submit: a name, lines a write, writes at a time.
WAYS: Final = (("one line a write", 1, 1), ("16 lines a write", 16, 1), ("16 writes at a time", 1, 16))
STALL_S: Final = 30.0


def told(where: str, path: str, lines: str) -> None:
    """Write lines to a ctl file."""
    sock, _ = attach(Place(where), 65536, STALL_S)
    with sock:
        reach(sock, Place(where, path), os.O_WRONLY)
        size = len(lines).to_bytes(4, "little")
        call(sock, 0, 118, FILE.to_bytes(4, "little") + bytes(8) + size + lines.encode())


def loads(where: str, pool: str = "default") -> Callable[[], int]:
    """How many jobs wait or are held in the pool, as a blocking client reads it."""
    sock, _ = attach(Place(where), 65536, STALL_S)
    names = b"".join(len(name).to_bytes(2, "little") + name.encode() for name in ("pools", pool, "load"))

    def look() -> int:
        call(sock, 0, 110, ROOT.to_bytes(4, "little") + FILE.to_bytes(4, "little") + b"\x03\x00" + names)
        call(sock, 0, 12, FILE.to_bytes(4, "little") + bytes(4))
        text = call(sock, 0, 116, FILE.to_bytes(4, "little") + bytes(8) + READ.to_bytes(4, "little"))[4:]
        call(sock, 0, 120, FILE.to_bytes(4, "little"))
        found = dict(line.split() for line in text.decode().splitlines())
        return int(found["waiting"]) + int(found["held"])

    return look


@dataclass
class Steps:
    """One number of workers, a figure a round. Latencies in ns."""

    workers: int
    submits: list[float] = field(default_factory=list)  # a second
    jobs: list[float] = field(default_factory=list)  # leased and acknowledged, a second
    p50: dict[str, list[int]] = field(default_factory=dict)  # by step
    p99: dict[str, list[int]] = field(default_factory=dict)

    def took(self, step: str, p50: int, p99: int) -> None:
        self.p50.setdefault(step, []).append(p50)
        self.p99.setdefault(step, []).append(p99)


@dataclass
class Own:
    steps: list[Steps]
    ways: dict[str, list[float]]  # jobs a second, by name of WAYS
    bytes_a_job: float | None = None  # None: not measured


def measured(workers: tuple[int, ...], rounds: int, seconds: float, queued: int) -> Own:
    with tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp") as made, queen(Path(made)):
        steps = [_steps(Path(made), n, rounds, seconds) for n in workers]
        ways = _ways(f"unix:{made}/hive.sock", rounds, seconds)
    return Own(steps, ways, bytes_a_job(queued) if queued else None)


def _steps(directory: Path, workers: int, rounds: int, seconds: float) -> Steps:
    where, log = f"unix:{directory}/hive.sock", directory / "worker.log"
    found, left = Steps(workers), loads(where)
    command = [sys.executable, "-m", "tests.bench.queues_skep", f"unix:{directory}/worker.sock", str(workers)]
    for number in range(rounds + 1):  # the first one warms up
        load = measure(Place(where, "jobs/ctl"), "ctl", seconds=seconds, connections=workers, line=SUBMIT)
        if load.error:
            raise RuntimeError(load.error)
        queued = left()
        with process(command, log, told=True) as begun:
            line_of(begun.stdout, log)
            began = time.monotonic_ns()
            while left():
                time.sleep(LOOK_S)
            took = time.monotonic_ns() - began
            assert begun.stdin is not None
            begun.stdin.write("\n")
            begun.stdin.flush()
            told = json.loads(line_of(begun.stdout, log))
        if number:
            found.submits.append(load.per_second)
            found.jobs.append(queued * 1e9 / took)
            found.took("submit", load.p50_ns, load.p99_ns)
            for step, ns in told.items():
                found.took(step, *quantiles(ns))
    return found


def _ways(where: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name, _, _ in WAYS}
    for _ in range(rounds):
        for name, lines, depth in WAYS:
            line = SUBMIT.replace("%d", "0") * (lines - 1) + SUBMIT
            load = measure(Place(where, "jobs/ctl"), "ctl", seconds=seconds, depth=depth, line=line)
            if load.error:
                raise RuntimeError(load.error)
            found[name].append(load.per_second * lines)
    return found


def quantiles(ns: list[int]) -> tuple[int, int]:
    """p50 and p99."""
    ns = sorted(ns)
    return ns[len(ns) // 2], ns[len(ns) * 99 // 100]


def bytes_a_job(queued: int) -> float:
    """Resident bytes of the queen for each waiting job more, between a tenth of ``queued`` and all of it."""
    with tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp") as made:
        directory = Path(made)
        with queen(directory) as begun:
            place, left = (
                Place(f"unix:{directory}/hive.sock", "jobs/ctl"),
                loads(f"unix:{directory}/hive.sock"),
            )
            seen = []
            for most in (queued // 10, queued):
                while (have := left()) < most:
                    # About as long as it takes.
                    seconds = min(max((most - have) / 8000, 0.05), 2.0)
                    load = measure(place, "ctl", seconds=seconds, connections=4, depth=16, line=SUBMIT)
                    if load.error:
                        raise RuntimeError(load.error)
                seen.append((have, _rss(begun.pid)))
    (few, least), (many, most_bytes) = seen
    return (most_bytes - least) / (many - few)


def _rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def drawn(own: Own) -> Table:
    table = Table("skep's own", "unit", title="skep: submit, lease, start and ack", title_justify="left")
    for steps in own.steps:
        table.add_column(f"{steps.workers} workers", justify="right")
    table.add_row(
        "submit, as many writers", "1/s", *(f"{statistics.median(s.submits):,.0f}" for s in own.steps)
    )
    table.add_row("lease, start and ack", "jobs/s", *(f"{statistics.median(s.jobs):,.0f}" for s in own.steps))
    for step in ("submit", "lease", "ack"):
        for name in ("p50", "p99"):
            figures = [statistics.median(getattr(s, name)[step]) / 1e6 for s in own.steps]
            table.add_row(step, f"{name} ms", *(f"{figure:,.2f}" for figure in figures))
    for way, figures in own.ways.items():
        table.add_row(f"submit by one, {way}", "jobs/s", f"{statistics.median(figures):,.0f}")
    if own.bytes_a_job is not None:
        table.add_row("a job that waits", "bytes", f"{own.bytes_a_job:,.0f}")
    return table


def record(own: Own) -> dict[str, Any]:
    return {"steps": [vars(steps) for steps in own.steps], "ways": own.ways, "bytes_a_job": own.bytes_a_job}
