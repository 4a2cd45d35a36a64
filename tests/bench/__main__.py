"""Measure every server side by side, pinned to one core and unpinned, and print a table of each.

Depth 1 across two cores measures the scheduler, so the pinned table is the one to read for the cost of an
operation. Cells are medians of interleaved rounds. A dash: the server has nothing of the kind; stall, error:
it was asked and failed, and no figure stands for that."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from skep.bench import Case
from tests.bench import gates, tls
from tests.bench.rounds import ROWS, Bench, Cell, idle_connections, idle_row
from tests.bench.servers import DIOD, FLOOR, SERVERS, Server, grounds, version

WIDTH = 220  # of a table that no terminal bounds

NOTES = (
    """floor: answers from a table, checks and stores nothing; in the rows of durable commands it is
SQLite alone (WAL, synchronous=FULL), as many rows to a commit as there are writers.
walk+clunk counts pairs; stat is Tgetattr in 9P2000.L, Tstat in pyroute2's 9P2000; (64 K): the largest msize
that the server agreed to; pyroute2 serves its files from memory.
"""
    + tls.NOTE
    + "\n"
    + gates.NOTE
)

Rows = list[tuple[Case, dict[str, Cell]]]


def main() -> int:
    args = arguments().parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    servers = [s for s in SERVERS if s.present and s.name in args.servers]
    connections = idle_connections()
    about = machine(servers, args.rounds, args.seconds)
    tables = {}
    encrypted = {}
    for name, core in (("pinned", max(os.sched_getaffinity(0))), ("unpinned", None)):
        if args.table in (name, "both"):
            rows = measured(servers, core, args, 0 if core is not None else connections)
            tables[name] = rows
            console.print(drawn(title(core), servers, rows))
            for line in failures(rows):
                console.print(line, markup=False)
            with on(core):
                encrypted[name] = tls.measured(args.rounds, args.seconds, args.rows)
            if encrypted[name]:
                console.print(tls.drawn(f"TLS, {title(core)}", encrypted[name]))
    costs = gates.measured(args.rows)
    if costs:
        console.print(gates.drawn(costs))
    console.print(notes(about))
    if args.json:
        found = {"tables": recorded(tables, encrypted), "gates": gates.record(costs)}
        args.json.write_text(json.dumps({**about, **found}, indent=1) + "\n")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each cell; the median is shown")
    parser.add_argument("--seconds", type=float, default=0.5, help="of asking in each round")
    parser.add_argument("--quick", dest="rounds", action="store_const", const=1, help="one round")
    parser.add_argument("--table", choices=("pinned", "unpinned", "both"), default="both")
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--servers", nargs="+", default=[s.name for s in SERVERS], help="only these columns")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    return parser


def machine(servers: list[Server], rounds: int, seconds: float) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "machine": f"{os.cpu_count()} cores, {_cpu()}, Linux {platform.release()}",
        "python": platform.python_version(),
        "rounds": rounds,
        "seconds": seconds,
        "versions": {s.name: version(s) for s in servers},
        "absent": [s.name for s in SERVERS if not s.present],
    }


def measured(servers: list[Server], core: int | None, args: argparse.Namespace, connections: int) -> Rows:
    """All rows of one table; `connections` idle ones for its last row (0: no such row)."""
    with on(core), grounds(core) as where, ExitStack() as stack:
        bench = Bench(servers, where, args.rounds, args.seconds, stack)
        bench.start()
        return _rows(bench, args.rows, connections)


@contextmanager
def on(core: int | None) -> Iterator[None]:
    """This process, and those it starts, on one core; None: on any."""
    cores = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _rows(bench: Bench, wanted: str, connections: int) -> Rows:
    rows: Rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for use, case, others in progress.track([r for r in ROWS if wanted in r[1].name]):
            cells = bench.row(use, case)
            rows.append((case, cells))
            for view in (replace(case, unit=unit) for unit in others):
                rows.append((view, {name: cell.seen_as(view) for name, cell in cells.items()}))
    idle = Case(f"resident, {connections:,} idle connections", "idle", unit="MB")
    if connections and wanted in idle.name:
        rows.append((idle, idle_row(bench, connections)))
    return rows


def title(core: int | None) -> str:
    return "both ends on any core" if core is None else f"both ends on core {core}"


def drawn(name: str, servers: list[Server], rows: Rows) -> Table:
    """A column a server, and beside it how it compares with the floor and, skep's, with diod."""
    table = Table(title=name, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for column, _ in _columns(servers):
        table.add_column(column, justify="right", no_wrap=True)
    for case, cells in rows:
        table.add_row(case.name, case.unit, *(draw(case, cells) for _, draw in _columns(servers)))
    return table


def _columns(servers: list[Server]) -> list[tuple[str, Any]]:
    columns: list[tuple[str, Any]] = []
    for server in servers:
        columns.append((server.name, lambda case, cells, s=server: shown(case, cells[s.name])))
        rivals = [FLOOR, DIOD] if server.is_skep else [FLOOR]
        for rival in rivals:
            if rival in servers and rival is not server:
                columns.append(
                    (f"/{rival.name}", lambda case, cells, s=server, r=rival: ratio(case, cells, s, r))
                )
    return columns


def shown(case: Case, cell: Cell) -> str:
    if cell.error:
        return cell.error.partition(":")[0]
    if cell.median is None:
        return "-"
    figure = f"{cell.median:,.2f}" if case.unit == "p50 ms" else f"{cell.median:,.0f}"
    return f"({cell.msize_less >> 10} K) {figure}" if case.unit == "MB/s" and cell.msize_less else figure


def failures(rows: Rows) -> list[str]:
    """What stands behind each cell that says stall or error."""
    cells = ((case, name, cell) for case, row in rows for name, cell in row.items())
    return [f"{name}: {case.name}: {cell.error}" for case, name, cell in cells if cell.error]


def ratio(case: Case, cells: dict[str, Cell], server: Server, rival: Server) -> str:
    """How many times as fast (a latency or a size: as large)."""
    ours, theirs = cells[server.name].median, cells[rival.name].median
    return "" if ours is None or not theirs else f"{ours / theirs:.2f}"


def notes(about: dict[str, Any]) -> str:
    versions = "; ".join(f"{name} {said}" for name, said in about["versions"].items() if said)
    absent = f"\nnot installed: {', '.join(about['absent'])}" if about["absent"] else ""
    return f"""{about["machine"]}, Python {about["python"]}; {versions}.
Unix sockets; medians of {about["rounds"]} interleaved rounds of {about["seconds"]} s.{absent}
d: requests outstanding on each connection.
{NOTES}"""


def recorded(tables: dict[str, Rows], encrypted: dict[str, list[tls.Row]]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [{"row": case.name, "unit": case.unit, "cells": _record(cells)} for case, cells in rows]
        + [row.record() for row in encrypted[name]]
        for name, rows in tables.items()
    }


def _record(cells: dict[str, Cell]) -> dict[str, Any]:
    return {
        name: {
            "median": cell.median,
            "rounds": cell.figures,
            "error": cell.error,
            "p50_ns": [load.p50_ns for load in cell.loads],
            "p99_ns": [load.p99_ns for load in cell.loads],
            "msize": [load.msize for load in cell.loads],
        }
        for name, cell in cells.items()
        if cell.figures or cell.error
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
