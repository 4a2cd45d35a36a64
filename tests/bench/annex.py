"""Jobs a second through an annex, of a kernel that has nothing to do; and what the control plane adds to one.

    python -m tests.bench.annex [--rounds N] [--seconds S] [--json FILE]

A job is vector_add of nothing, asked for at /gpu/ctl: its two arrays are fetched, a device is granted, a
process computes, its array is kept, all of it durable. Beside it: as many jobs of skep.worker whose function
does nothing, by the same queen, both by TLS on this machine; and the process of the kernel alone. So many are
asked for at a time; whenever one has ended, the next is. Cells are medians of interleaved rounds.

What the control plane adds: from the entry that leases the job to the one that ends it, less what the kernel
took. Processor time of a job: of the queen, of the annex, of the processes that kernels run in; it changes
less than rates do where the machine has other work. The device is this machine's CPU."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from skep.fs.dial import Client
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request
from tests.bench.queues_own import quantiles, told
from tests.bench.queues_sdk import SDK
from tests.bench.queues_servers import ROOT, line_of, process, wait_until

IN_FLIGHT: Final = (1, 64)
SLOTS: Final = 4  # jobs that run at a time, of the annex, and in the process alone
SIDE_BY_SIDE: Final = ("annex", "skep.worker", "process")
POOLS: Final = f"""create pool=bench requires=annex
map topic=gpu.run pool=bench
create pool={SDK}
map topic={SDK} pool={SDK}
"""
NODES: Final = {"annex": "cuda-annex", "sdk": "drone-worker"}  # and their roles
# What the command lines of processes have in them. Those of the kernel alone do nothing meanwhile.
MARKS: Final = {"queen": b"\0--listen\0", "annex": b"\0cuda-annex\0", "kernel": b"kernels.child\0"}
SKEP: Final = (sys.executable, "-m", "skep")


class Round(NamedTuple):
    """``overheads``: ns of each job; ``spent``: ns of processors, by MARKS. Both of an annex alone."""

    jobs: int
    seconds: float
    overheads: list[int]
    spent: dict[str, int]

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


Row = dict[str, list[Round]]  # by name of SIDE_BY_SIDE


@contextmanager
def hive(directory: Path) -> Iterator[str]:
    """A queen, an annex and a worker of the SDK; the queen's own socket is hive.sock."""
    log, socket = directory / "log", f"unix:{directory}/hive.sock"
    with ExitStack() as stack:
        queen = [*SKEP, "serve", "--dir", str(directory / "hive"), "--listen", socket]
        begun = stack.enter_context(process([*queen, "--listen", "tls:127.0.0.1:0"], log, told=True))
        address = ""
        while (line := line_of(begun.stdout, log)) != "ready\n":
            address = line.split()[1] if line.startswith("serving tls:") else address
        told(socket, "pools/ctl", POOLS)
        homes = {node: enrolled(directory, socket, address, node, role) for node, role in NODES.items()}
        annex = [
            *SKEP,
            "serve",
            "--role",
            "cuda-annex",
            "-H",
            address,
            "--dir",
            str(homes["annex"] / "state"),
        ]
        annex += ["--device", "cpu", "--slots", str(SLOTS), "--pools", "bench"]
        sdk = [sys.executable, "-m", "tests.bench.queues_sdk", address, str(max(IN_FLIGHT))]
        for node, command in (("annex", annex), ("sdk", sdk)):
            stack.enter_context(process(command, log, {"SKEP_IDENTITY": str(homes[node] / "identity")}))
        read = [*SKEP, "cat", "-H", socket, "/gpu/annex/health"]
        wait_until(lambda: b"online" in subprocess.run(read, capture_output=True).stdout, "the annex", log)
        yield socket


def enrolled(directory: Path, socket: str, address: str, node: str, role: str) -> Path:
    """The node's own directory, with its identity."""
    home = directory / node
    home.mkdir()
    invite = [*SKEP, "invite", "-H", socket, "--role", role, "--node", node]
    secret = subprocess.run(invite, cwd=ROOT, capture_output=True, check=True).stdout
    enroll = [*SKEP, "enroll", address, "--invite", "-", "--identity", str(home / "identity")]
    subprocess.run(enroll, cwd=ROOT, input=secret, stdout=subprocess.DEVNULL, check=True)
    return home


async def written(client: Client, path: str, line: str) -> str:
    """The first word of the reply."""
    async with await client.open(path, "rw") as fid:
        await fid.write(0, f"{line}\n".encode())
        return (await fid.read(0, fid.unit)).decode().split()[0]


async def sealed(client: Client, data: bytes) -> str:
    """SHA-256 of the artifact."""
    digest = sha256(data).hexdigest()
    await client.write_file("/artifacts/stage/nothing", data, create=True)
    await written(client, "/artifacts/ctl", f"seal name=nothing sha256={digest}")
    return digest


async def ended(client: Client, path: str, line: str) -> None:
    """Submit a job and wait for its end."""
    job = await written(client, path, line)
    end = (await client.read_file(f"/jobs/{job}/wait")).decode().strip()
    if end != "succeeded":
        raise RuntimeError(f"{line}: {end}: {(await client.read_file(f'/jobs/{job}/error')).decode()}")


async def closed_loop(one: Callable[[], Awaitable[None]], at_a_time: int, seconds: float) -> Round:
    """Begin another whenever one has ended, for so long."""
    begun, count = time.monotonic(), 0

    async def again() -> None:
        nonlocal count
        while time.monotonic() - begun < seconds:
            await one()
            count += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(at_a_time):
            group.create_task(again())
    return Round(count, time.monotonic() - begun, [], {})


def spent() -> dict[str, int]:
    """Ns of processors that the processes of a round's annex have had, by MARKS."""
    found = dict.fromkeys(MARKS, 0)
    for pid in below(os.getpid()):
        with suppress(OSError):  # it has ended
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            name = next((name for name, mark in MARKS.items() if mark in command), "")
            if name:
                stats = Path(f"/proc/{pid}/task").glob("*/schedstat")
                found[name] += sum(int(stat.read_text().split()[0]) for stat in stats)
    return found


def below(pid: int) -> Iterator[int]:
    """The processes that this one has begun, and those that they have."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                yield child
                yield from below(child)


class Nothing:
    """vector_add of nothing, in processes of its own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        file = directory / "nothing.npy"
        file.write_bytes(nothing())
        self.request = Request("vector_add", {"a": str(file), "b": str(file)}, {}, "", "cpu")
        self.places = [directory / f"out{n}" for n in range(SLOTS)]
        for place in self.places:
            place.mkdir()
        self.processes = [stack.enter_context(Process()) for _ in self.places]

    def round(self, at_a_time: int, seconds: float) -> Round:
        begun, used = time.monotonic(), min(at_a_time, SLOTS)

        def again(number: int) -> int:
            count, request = 0, self.request._replace(out=str(self.places[number]))
            while time.monotonic() - begun < seconds:
                self.processes[number].run(request)
                count += 1
            return count

        with ThreadPoolExecutor(used) as threads:
            jobs = sum(threads.map(again, range(used)))
        return Round(jobs, time.monotonic() - begun, [], {})


def nothing() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(0, "float32"), allow_pickle=False)
    return file.getvalue()


class Overheads:
    """What the ledger says of jobs that ran on the annex, as far as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seq = 0
        self.leased: dict[str, int] = {}  # job -> when

    def read(self) -> list[int]:
        """Ns of each job that ended since."""
        found = []
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as ledger:
            rows = ledger.execute("SELECT seq, body FROM entries WHERE seq > ? ORDER BY seq", (self.seq,))
            for self.seq, body in rows:
                entry = json.loads(body)
                for event in entry["events"]:
                    if event["type"] == "job.leased" and event["node"] == "annex":
                        self.leased[event["job"]] = entry["time"]
                    elif event["type"] == "job.ended" and event["job"] in self.leased:
                        kernel = json.loads(event["text"])["nanoseconds"]
                        found.append(entry["time"] - self.leased.pop(event["job"]) - kernel)
        return found


async def measured(directory: Path, socket: str, rounds: int, seconds: float) -> dict[int, Row]:
    """By jobs in flight."""
    overheads = Overheads(directory / "hive/ledger.db")
    rows: dict[int, Row] = {n: {name: [] for name in SIDE_BY_SIDE} for n in IN_FLIGHT}
    with ExitStack() as stack:
        alone = Nothing(directory, stack)
        async with await Client.connect(socket) as client:
            array = await sealed(client, nothing())
            run = f"run kernel=vector_add in=a:{array},b:{array}"
            asked = {
                "annex": partial(ended, client, "/gpu/ctl", run),
                "skep.worker": partial(ended, client, "/jobs/ctl", f"submit topic={SDK} input=x"),
            }
            for number in range(rounds + 1):  # the first one warms up
                for at_a_time, row in rows.items():
                    before = spent()
                    found = {"annex": await closed_loop(asked["annex"], at_a_time, seconds)}
                    after = {name: ns - before[name] for name, ns in spent().items()}
                    found["annex"] = found["annex"]._replace(overheads=overheads.read(), spent=after)
                    found["skep.worker"] = await closed_loop(asked["skep.worker"], at_a_time, seconds)
                    found["process"] = await asyncio.to_thread(alone.round, at_a_time, seconds)
                    for name, round in found.items() if number else ():
                        row[name].append(round)
    return rows


def drawn(rows: dict[int, Row]) -> Table:
    table = Table(title="a kernel that has nothing to do, jobs a second", title_justify="left")
    ratios = [f"annex/{name}" for name in SIDE_BY_SIDE[1:]]
    for column in ("in flight", *SIDE_BY_SIDE, *ratios, "added ms, p50", "p99", *MARKS):
        table.add_column(column, justify="right")
    for at_a_time, row in rows.items():
        rates = {name: median(round.rate for round in row[name]) for name in SIDE_BY_SIDE}
        p50, p99 = quantiles([ns for round in row["annex"] for ns in round.overheads])
        spent = [median(round.spent[name] / round.jobs for round in row["annex"]) for name in MARKS]
        table.add_row(
            str(at_a_time), *(f"{rates[name]:,.0f}" for name in SIDE_BY_SIDE),
            *(f"{ratio(row, name):.3f}" for name in SIDE_BY_SIDE[1:]), f"{p50 / 1e6:.1f}", f"{p99 / 1e6:.1f}",
            *(f"{ns / 1e6:.1f}" for ns in spent),
        )  # fmt: skip
    return table


def ratio(row: Row, beside: str) -> float:
    """Of the annex to it, in the same rounds."""
    return median(a.rate / b.rate for a, b in zip(row["annex"], row[beside], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.annex", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each cell; the median is shown")
    parser.add_argument("--seconds", type=float, default=2.0, help="of asking in each round")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with (
        tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp") as made,
        hive(Path(made)) as socket,
    ):
        rows = uvloop.run(measured(Path(made), socket, args.rounds, args.seconds))
    console.print(drawn(rows))
    said = f"{', '.join(MARKS)}: ms of processors a job; {os.cpu_count()} cores, {SLOTS} slots"
    console.print(f"{said}; medians of {args.rounds} rounds.")
    if args.json:
        about = {"machine": platform.machine(), "processors": os.cpu_count(), "slots": SLOTS}
        found = {n: {name: [r._asdict() for r in row[name]] for name in row} for n, row in rows.items()}
        args.json.write_text(json.dumps({**about, "in flight": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
