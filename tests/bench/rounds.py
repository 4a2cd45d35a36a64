"""The rounds: every server's cell of a row, side by side, several times over, and the medians."""

import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count as count_up
from pathlib import Path

from skep.bench import CASES, Case, Unit, bulk, row, small
from skep.native.load import IO_HEADER, Load, idle
from tests.bench.durable import commits
from tests.bench.servers import FLOOR, Grounds, Server, running

IDLE = 10_000
SPARE_FDS = 200  # for everything that is not an idle connection


def ctl(connections: int) -> Case:
    writers = "1 writer" if connections == 1 else f"{connections} writers"
    return Case(f"durable ctl command, {writers}", "ctl", connections=connections)


# The use that says which of a server's files it is about, the case, and what else its figures are shown in.
ROWS: list[tuple[str, Case, tuple[Unit, ...]]] = [
    *(("read", case, ()) for case in small("read", "read 64 B")),
    *(("write", case, ()) for case in small("write", "write 64 B")),
    *(("stat", case, ()) for case in CASES["stat"]),
    *(("walk", case, ()) for case in CASES["walk"]),
    *(("bulk read", case, ()) for case in bulk("read", "bulk read")),
    *(("bulk write", case, ()) for case in bulk("write", "bulk write")),
    *(("ctl", case, ("p50 ms",)) for case in (ctl(1), ctl(64))),
]


@dataclass
class Cell:
    """One server's figures in one row, a figure a round."""

    offered: int = 0  # msize
    figures: list[float] = field(default_factory=list)  # in the row's unit
    loads: list[Load] = field(default_factory=list)  # that the figures come from; an idle row's have none
    error: str = ""  # why there is no figure; the rounds after it are not tried

    @property
    def median(self) -> float | None:
        """None: the server has no such file, or failed."""
        return statistics.median(self.figures) if self.figures and not self.error else None

    @property
    def msize_less(self) -> int:
        """The smaller msize that the server insisted on; 0: it took what was offered."""
        return self.loads[0].msize if self.loads and self.loads[0].msize < self.offered else 0

    def seen_as(self, case: Case) -> "Cell":
        """The same rounds in the case's unit."""
        return replace(self, figures=[case.value(load) for load in self.loads])


@dataclass
class Bench:
    """The servers of one table, up and running.

    A server that dies is started again for the next row, and the row shows its error. One that does not
    start is told of on stderr, once, and has errors for cells."""

    servers: list[Server]
    where: Grounds
    rounds: int
    seconds: float
    stack: ExitStack
    up: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    serial: Iterator[int] = field(default_factory=lambda: count_up(1, 10_000_000))

    def start(self) -> None:
        for server in self.servers:
            process = self.up.get(server.name)
            if server.name not in self.broken and (process is None or process.poll() is not None):
                self._start(server)

    def _start(self, server: Server) -> None:
        try:
            self.up[server.name] = self.stack.enter_context(running(server, self.where))
        except RuntimeError as e:
            self.broken.add(server.name)
            print(e, file=sys.stderr)

    def row(self, use: str, case: Case) -> dict[str, Cell]:
        cells = {server.name: self.cell(server, use, case.msize) for server in self.servers}
        for _ in range(self.rounds):
            for server in self.servers:
                self._measure(server, use, case, cells[server.name])
        self.start()
        return {name: cell.seen_as(case) for name, cell in cells.items()}

    def cell(self, server: Server, use: str, msize: int = 0) -> Cell:
        """Empty; or an error already, when the server should be asked and is not there."""
        asked = server.name in self.broken and use in server.files
        return Cell(msize, error="error: it did not start" if asked else "")

    def _measure(self, server: Server, use: str, case: Case, cell: Cell) -> None:
        if cell.error:
            return
        if use == "ctl" and server is FLOOR:
            cell.loads.append(commits(self.where.disk, self.seconds, case.connections))
        elif use in server.files:
            self._ask(server, use, case, cell)

    def _ask(self, server: Server, use: str, case: Case, cell: Cell) -> None:
        place = self.where.place(server, use)
        got = row(place, case, self.seconds, line=server.line, serial=next(self.serial))
        cell.error = got.error
        if got.load is None or got.error:
            return
        cell.loads.append(got.load)
        if case.op in ("read", "write") and got.load.count < min(case.count, got.load.msize - IO_HEADER):
            cell.error = f"error: {got.load.count} bytes where {case.count} were asked for"


def idle_connections() -> int:
    """How many connections one process may hold here, up to IDLE; raises its soft limit to that end."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(IDLE, hard - SPARE_FDS)


def idle_row(bench: Bench, connections: int) -> dict[str, Cell]:
    """Resident megabytes of each server while it holds idle connections."""
    return {server.name: _idle_cell(bench, server, connections) for server in bench.servers}


def _idle_cell(bench: Bench, server: Server, connections: int) -> Cell:
    cell = bench.cell(server, "idle")
    if cell.error or "idle" not in server.files:
        return cell
    try:
        return Cell(figures=[_idle_rss(bench, server, connections)])
    except TimeoutError:
        return Cell(error="stall")
    except OSError as e:
        return Cell(error=f"error: {e.strerror or e}")


def _idle_rss(bench: Bench, server: Server, connections: int) -> float:
    with idle(bench.where.place(server, "idle"), connections):
        return sum(map(_rss, _family(bench.up[server.name].pid))) / 1e6


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
