"""Durable jobs a second, beside other queues: submitted, run, acknowledged, on the disk at every step.

    python -m tests.bench.queues [--quick] [--json FILE]

Every queue runs the same no-op job with a payload of 100 bytes, on the most durable settings it has, all in
one run, in interleaved rounds; the cells are medians. A round is as many jobs as the queue does in about
--seconds; its rate is from the first submit's begin until nothing is queued or unacknowledged.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench import queues_own
from tests.bench.queues_apps import WHERE
from tests.bench.queues_sdk import SDK
from tests.bench.queues_servers import has, line_of, postgres, process, queen, redis

WORKERS: Final = (1, 8, 64)
# For so many workers, rows with so many processes that each submit one job after the other.
SUBMITTERS: Final = {1: (1,), 8: (1, 4), 64: (4,)}
WARM_UP: Final = 40  # jobs, which also tell how many make a round
JOBS: Final = (40, 5000)  # of a round, at least and at most
LOOK_S: Final = 0.004  # between two looks at what is left
ROUND_S: Final = 60.0  # a round that takes longer has hung
WIDTH: Final = 200  # of a table that no terminal bounds
PYTHON: Final = sys.executable
APPS: Final = "tests.bench.queues_apps"

NOTE: Final = """e2e: submitted to acknowledged; submit: its answer; then the next is submitted.
skep: a ledger of synchronous=FULL; a session a worker; start and ack in one write, the next lease asked for
behind it, 16 asked for by one worker, 2 by each of 8. skep sdk: skep.worker, an async handler, one session.
celery: Redis, acks_late, no result backend, prefetch 64; prefork, with 64 workers gevent.
rq: Redis, SimpleWorker (no fork a job), a process a worker, so no 64.
huey: Redis, threads, with 64 greenlets; it takes a job off the queue
before it runs it, what it stores then is a result: no acknowledgement.
huey sqlite: the same over SQLite, synchronous=FULL, threads. procrastinate: PostgreSQL, an async task.
Redis: appendonly, appendfsync=always. PostgreSQL: fsync and synchronous_commit on. All on Unix sockets.
"""


@dataclass(frozen=True)
class Queue:
    """One column. ``server``: what it keeps jobs in; ``load``: its submitter's name in queues_load."""

    name: str
    load: str
    server: str
    package: str  # whose version is told
    worker: Callable[[str, int], list[str]]  # of where and how many, the command
    left: Callable[[str], Callable[[int], int]]  # of where and how many were ever submitted
    workers_max: int = max(WORKERS)

    @property
    def present(self) -> bool:
        return find_spec(self.package) is not None and SERVER_NEEDS[self.server]()


SERVER_NEEDS: Final[dict[str, Callable[[], bool]]] = {
    "queen": lambda: True,
    "sqlite": lambda: True,
    "redis": lambda: has("redis-server"),
    "postgres": lambda: has("postgres", "initdb"),
}


# the queues


def _skep_worker(where: str, workers: int) -> list[str]:
    return [PYTHON, "-m", "tests.bench.queues_skep", where.replace("hive.sock", "worker.sock"), str(workers)]


def _sdk_worker(where: str, workers: int) -> list[str]:
    return [PYTHON, "-m", "tests.bench.queues_sdk", where.replace("hive.sock", "worker.sock"), str(workers)]


def _celery_worker(where: str, workers: int) -> list[str]:
    pool = "gevent" if workers > 8 else "prefork"
    words = ["-m", "celery", "-A", f"{APPS}:celery", "worker", "-P", pool, "-c", str(workers), "-l", "ERROR"]
    return [PYTHON, *words, "--without-gossip", "--without-mingle", "--without-heartbeat"]


def _rq_worker(where: str, workers: int) -> list[str]:
    words = ["-m", "rq.cli", "worker-pool", "-q", "-n", str(workers), "-w", "rq.worker.SimpleWorker"]
    return [PYTHON, *words, "-u", f"unix://{where}?db=1"]


def _huey_worker(where: str, workers: int) -> list[str]:
    kind = "greenlet" if workers > 8 and not where.endswith(".sqlite") else "thread"
    return [PYTHON, "-m", "huey.bin.huey_consumer", f"{APPS}.huey", "-w", str(workers), "-k", kind, "-q"]


def _procrastinate_worker(where: str, workers: int) -> list[str]:
    return [PYTHON, "-m", "procrastinate", "--app", f"{APPS}.procrastinate", "worker", "-c", str(workers)]


def _skep_left(where: str) -> Callable[[int], int]:
    look = queues_own.loads(where)
    return lambda submitted: look()


def _sdk_left(where: str) -> Callable[[int], int]:
    queues_own.told(where, "pools/ctl", f"create pool={SDK}\nmap topic={SDK} pool={SDK}\n")
    look = queues_own.loads(where, SDK)
    return lambda submitted: look()


def _celery_left(where: str) -> Callable[[int], int]:
    import redis as client

    server = client.Redis(unix_socket_path=where, db=0)

    def left(submitted: int) -> int:
        # What is taken off the list is among the unacknowledged first.
        queued = server.llen("celery")
        return int(queued + server.hlen("unacked"))

    return left


def _rq_left(where: str) -> Callable[[int], int]:
    import redis as client

    server = client.Redis(unix_socket_path=where, db=1)
    return lambda submitted: submitted - int(server.zcard("rq:finished:default"))


def _huey_left(where: str) -> Callable[[int], int]:
    from tests.bench.queues_apps import huey_app

    app = huey_app(where).app
    return lambda submitted: submitted - int(app.result_count())


def _procrastinate_left(where: str) -> Callable[[int], int]:
    import psycopg
    from procrastinate import SyncPsycopgConnector

    from tests.bench.queues_apps import procrastinate_app

    app = procrastinate_app(SyncPsycopgConnector(conninfo=where))
    server = psycopg.connect(where, autocommit=True)
    if server.execute("select to_regclass('procrastinate_jobs')").fetchone() == (None,):
        with app.open():
            app.schema_manager.apply_schema()
    asked = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
    return lambda submitted: int(server.execute(asked).fetchone()[0])  # type: ignore[index]


QUEUES: Final = [
    Queue("skep", "skep", "queen", "skep", _skep_worker, _skep_left),
    Queue("skep sdk", "skep sdk", "queen", "skep", _sdk_worker, _sdk_left),
    Queue("celery", "celery", "redis", "celery", _celery_worker, _celery_left),
    Queue("rq", "rq", "redis", "rq", _rq_worker, _rq_left, workers_max=8),
    Queue("huey", "huey", "redis", "huey", _huey_worker, _huey_left),
    Queue("huey sqlite", "huey", "sqlite", "huey", _huey_worker, _huey_left),
    Queue("procrastinate", "procrastinate", "postgres", "procrastinate", _procrastinate_worker,
          _procrastinate_left),
]  # fmt: skip


# the rounds


@dataclass
class Cell:
    """One queue in one row, a figure a round."""

    rates: list[float] = field(default_factory=list)  # jobs a second
    p50_ns: list[int] = field(default_factory=list)  # of submits
    p99_ns: list[int] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)  # a second, of all submitters
    error: str = ""  # why there is no figure; the rounds after it are not tried

    def median(self, what: str) -> float | None:
        figures = getattr(self, what)
        return statistics.median(figures) if figures and not self.error else None


Row = tuple[int, int, dict[str, Cell]]  # workers, submitters, the queues' cells


@dataclass
class Running:
    """A queue whose submitters and workers are up."""

    queue: Queue
    log: Path
    submitters: list[subprocess.Popen[str]]
    workers: subprocess.Popen[str]
    left: Callable[[int], int]
    submitted: list[int]  # one number, ever; of all its Runnings
    rate: float = 0.0  # jobs a second, of the last round

    def round(self, submitters: int, jobs: int) -> dict[str, Any]:
        """Submit so many and wait until nothing is left; rate, submits, and took, ns of each submit."""
        share = max(jobs // submitters, 1)
        chosen = self.submitters[:submitters]
        for one in chosen:
            assert one.stdin is not None
            one.stdin.write(f"{share}\n")
            one.stdin.flush()
        told = [json.loads(line_of(one.stdout, self.log)) for one in chosen]
        self.submitted[0] += share * submitters
        began, last = min(t["began"] for t in told), max(t["ended"] for t in told)
        while self.left(self.submitted[0]) > 0:
            if self.workers.poll() is not None or time.monotonic_ns() - last > ROUND_S * 1e9:
                raise RuntimeError(
                    f"{self.left(self.submitted[0])} jobs are left\n{self.log.read_text()[-1000:]}"
                )
            time.sleep(LOOK_S)
        self.rate = share * submitters * 1e9 / (time.monotonic_ns() - began)
        submits = share * submitters * 1e9 / (last - began)
        return {"rate": self.rate, "submits": submits, "took": sorted(ns for t in told for ns in t["took"])}


@dataclass
class Bench:
    """The servers of a run, and where each is."""

    directory: Path
    queues: list[Queue]
    places: dict[str, str]  # by queue: where its clients go
    looks: dict[str, Callable[[int], int]]
    submitted: dict[str, list[int]]

    def rows(self, workers: int, rounds: int, seconds: float) -> list[Row]:
        """The rows of so many workers: of one submitter, and of several."""
        with ExitStack() as stack:
            rows: list[Row] = [
                (workers, n, {q.name: Cell() for q in self.queues}) for n in SUBMITTERS[workers]
            ]
            up: list[Running] = []
            for queue in self.queues:
                if workers <= queue.workers_max:
                    self._start(stack, queue, workers, up, rows)
            for _, submitters, cells in rows:
                for _ in range(rounds):
                    for one in up:
                        _measure(one, submitters, seconds, cells[one.queue.name])
            return rows

    def _start(
        self, stack: ExitStack, queue: Queue, workers: int, up: list[Running], rows: list[Row]
    ) -> None:
        try:
            up.append(stack.enter_context(self._running(queue, workers)))
        except (RuntimeError, OSError) as error:
            for _, _, cells in rows:
                cells[queue.name].error = f"error: {error}"

    @contextmanager
    def _running(self, queue: Queue, workers: int) -> Iterator[Running]:
        """Workers and submitters, warm: each has done something."""
        log = self.directory / f"{queue.name}.log"
        where = self.places[queue.name]
        env = {WHERE: where}
        with ExitStack() as stack:
            submit = [PYTHON, "-m", "tests.bench.queues_load", queue.load, where]
            submitters = [
                stack.enter_context(process(submit, log, env, told=True))
                for _ in range(max(SUBMITTERS[workers]))
            ]
            command = queue.worker(where, workers)
            begun = stack.enter_context(process(command, log, env, told=queue.server == "queen"))
            for one in submitters:
                line_of(one.stdout, log)
            up = Running(queue, log, submitters, begun, self.looks[queue.name], self.submitted[queue.name])
            # The first round waits for the workers to come up.
            for _ in range(2):
                up.round(len(submitters), WARM_UP)
            yield up


def _measure(one: Running, submitters: int, seconds: float, cell: Cell) -> None:
    if cell.error:
        return
    try:
        told = one.round(submitters, int(min(max(one.rate * seconds, JOBS[0]), JOBS[1])))
    except (RuntimeError, OSError) as error:
        cell.error = f"error: {error}"
        return
    took = told["took"]
    cell.rates.append(told["rate"])
    cell.submits.append(told["submits"])
    cell.p50_ns.append(took[len(took) // 2])
    cell.p99_ns.append(took[len(took) * 99 // 100])


@contextmanager
def grounds(names: list[str]) -> Iterator[Bench]:
    """The servers that the queues need, up."""
    queues = [queue for queue in QUEUES if queue.name in names and queue.present]
    with tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp") as made, ExitStack() as stack:
        directory = Path(made)
        wanted = {queue.server for queue in queues}
        at = {"sqlite": str(directory / "huey.sqlite"), "queen": f"unix:{directory}/hive.sock"}
        if "queen" in wanted:
            stack.enter_context(queen(directory))
        if "redis" in wanted:
            at["redis"] = stack.enter_context(redis(directory))
        if "postgres" in wanted:
            at["postgres"] = stack.enter_context(postgres(directory))
        places = {queue.name: at[queue.server] for queue in queues}
        looks = {queue.name: queue.left(at[queue.server]) for queue in queues}
        yield Bench(directory, queues, places, looks, {queue.name: [0] for queue in queues})


def measured(names: list[str], workers: tuple[int, ...], rounds: int, seconds: float) -> list[Row]:
    with grounds(names) as bench:
        return [row for n in workers for row in bench.rows(n, rounds, seconds)]


# what is told


FIGURES: Final = (
    ("e2e", "jobs/s", "rates", 1.0, "{:,.0f}"),
    ("submit", "1/s", "submits", 1.0, "{:,.0f}"),
    ("submit", "p50 ms", "p50_ns", 1e-6, "{:,.2f}"),
    ("submit", "p99 ms", "p99_ns", 1e-6, "{:,.2f}"),
)


def drawn(rows: list[Row], names: list[str]) -> Table:
    """A column a queue; beside each peer, in the first rows of each block, how many times as fast skep is."""
    table = Table("workers", "submitters", "", "unit", title="Durable jobs", title_justify="left")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        if name != "skep" and "skep" in names:
            table.add_column("skep/it", justify="right", no_wrap=True)
    for workers, submitters, cells in rows:
        for what, unit, key, scale, form in FIGURES:
            words = [
                word for name in names for word in _words(cells, name, key, scale, form, "skep" in names)
            ]
            table.add_row(str(workers), str(submitters), what, unit, *words)
    return table


def _words(
    cells: dict[str, Cell], name: str, key: str, scale: float, form: str, beside: bool
) -> Iterator[str]:
    """A queue's figure, and how skep's compares."""
    figure = cells[name].median(key)
    yield (form.format(figure * scale) if figure is not None else "error" if cells[name].error else "-")
    if name != "skep" and beside:
        ours = cells["skep"].median(key)
        yield "" if figure is None or ours is None else f"{ours / figure:.2f}"


def record(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "row": "durable jobs",
            "workers": workers,
            "submitters": submitters,
            "cells": {name: vars(cell) for name, cell in cells.items() if cell.rates or cell.error},
        }
        for workers, submitters, cells in rows
    ]


def failures(rows: list[Row]) -> list[str]:
    return [
        f"{name}, {workers} workers: {cell.error}"
        for workers, _, cells in rows
        for name, cell in cells.items()
        if cell.error
    ]


def versions(names: list[str]) -> dict[str, str]:
    found = {}
    for queue in QUEUES:
        if queue.name in names:
            try:
                found[queue.package] = version(queue.package)
            except PackageNotFoundError:
                continue
    return found


def main() -> int:
    args = arguments().parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    names = [queue.name for queue in QUEUES if queue.name in args.queues and queue.present]
    rows = measured(names, tuple(args.workers), args.rounds, args.seconds) if names else []
    console.print(drawn(rows, names))
    for line in failures(rows):
        console.print(line, markup=False)
    found: dict[str, Any] = {"versions": versions(names), "queues": record(rows)}
    if "skep" in names:
        own = queues_own.measured(tuple(args.workers), args.rounds, args.seconds, args.queued)
        console.print(queues_own.drawn(own))
        found["skep"] = queues_own.record(own)
    said = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    console.print(f"{os.cpu_count()} cores; {said}; medians of {args.rounds} rounds.\n{NOTE}", markup=False)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queues", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each cell; the median is shown")
    parser.add_argument("--seconds", type=float, default=0.5, help="about, of each round")
    parser.add_argument("--queued", type=int, default=100_000, help="jobs to measure the memory of; 0: none")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, choices=WORKERS)
    parser.add_argument("--queues", nargs="+", default=[q.name for q in QUEUES], help="only these columns")
    parser.add_argument("--quick", action=Quick, nargs=0, help="one round, 1 and 8 workers, 10,000 queued")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    return parser


class Quick(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.rounds, namespace.workers, namespace.queued = 1, [1, 8], 10_000


if __name__ == "__main__":
    sys.exit(main())
