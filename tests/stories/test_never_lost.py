"""20,000 jobs on a network that fails, done by machines that die: each of them ends once.

Queen, four workers and the network between them are real: processes, TLS, network namespaces, a small disk.
While clients submit, queen and workers are killed, workers are stopped beyond their leases, cables come out,
the disk fills. Then the ends are counted from outside: by SQLite and the entries' JSON, nothing of skep's.

SKEP_SEED=<number> does the same things again, as far as time lets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvloop
from people import SKEP, Person, ready
from queens import ROOT, read, say
from wires import Wires, wired

from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = int(os.environ.get("SKEP_JOBS") or 20_000)
SUBMITTERS = 4
BATCH_MAX = 40  # jobs submitted in one write
OPEN_MAX = 1500  # jobs submitted and not ended, at most: the disk is small
DISK = 512 * 1024 * 1024
BALLAST = bytes(1024 * 1024)
LEASE_S = 2.0
BEYOND_S = (2.5, 4.0)  # how long a worker is stopped, or its cable out
PAUSE_S = (0.2, 1.0)  # between two mishaps
ROUNDS = 4  # of every mishap once, in any order
DRAIN_S = 400.0
WORKERS = ("w1", "w2", "w3", "w4")


@dataclass
class Told:
    """What the clients know. ``ids``: key -> job, as it was answered."""

    ids: dict[str, str] = field(default_factory=dict)
    lost: int = 0  # answers that never came
    full: int = 0  # refusals for want of space


class Worker:
    """A worker's process on its machine; it comes back whenever it was killed."""

    def __init__(self, person: Person, address: str, record: Path) -> None:
        self.person = person
        self.command = (*person.machine.prefix, sys.executable, str(ROOT / "tests/stories/drone.py"), address)
        self.record = record  # a line for each job that it did
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        with (self.person.home / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [*self.command, str(self.record)], env=self.person.env, stdout=said, stderr=said, cwd=ROOT
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Queen:
    """The queen's process on its machine, at one address all the time."""

    def __init__(self, person: Person, directory: Path) -> None:
        self.person = person
        self.directory = directory
        self.socket = f"unix:{directory}/hive.sock"
        self.address = f"tls:{person.machine.address}:0"  # until the system has picked a port
        self.process: subprocess.Popen[str] | None = None
        self.serves = asyncio.Event()

    async def begin(self) -> None:
        with (self.person.home / "said").open("a") as said:
            self.process = subprocess.Popen(
                [
                    *self.person.machine.prefix, *SKEP, "serve", "--dir", str(self.directory),
                    "--listen", self.socket, "--listen", self.address,
                ],
                env=self.person.env, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            )  # fmt: skip
        self.address = await asyncio.to_thread(ready, self.process)
        self.serves.set()

    def kill(self) -> None:
        assert self.process is not None
        self.serves.clear()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    async def operator(self) -> Client:
        return await Client.connect(self.socket)


# those who submit


class Submitter:
    """Submits its share of the jobs, each under a key; whoever gets no answer asks again."""

    def __init__(self, queen: Queen, told: Told, room: asyncio.Semaphore) -> None:
        self.queen = queen
        self.told = told
        self.room = room
        self.client: Client | None = None

    async def submit(self, keys: list[str], rng: random.Random) -> None:
        while keys:
            size = rng.randint(1, BATCH_MAX)
            batch, keys = keys[:size], keys[size:]
            for _ in batch:
                await self.room.acquire()
            ids = await self.asks(partial(ask, keys=batch))
            for key, id in zip(batch, ids, strict=True):
                assert self.told.ids.setdefault(key, id) == id

    async def asks(self, work: Callable[[Client], Awaitable[Any]]) -> Any:
        while True:
            await self.queen.serves.wait()
            try:
                if self.client is None:
                    self.client = await self.queen.operator()
                return await work(self.client)
            except (ConnectionLost, OSError):
                self.told.lost += 1
                await self.close()
            except FsError as error:
                if error.kind is not E.NOSPACE:
                    raise
                # The disk is full for a moment.
                self.told.full += 1
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()


async def ask(client: Client, keys: list[str]) -> list[str]:
    """Submit a job under each key; their ids."""
    return await say(client, "/jobs/ctl", *(f"submit topic=sum key={key} input={key}" for key in keys))


def result_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


async def count_ends(queen: Queen, told: Told, room: asyncio.Semaphore) -> None:
    """Make room for as many jobs as have ended, until JOBS have."""
    asking, ended = Submitter(queen, told, room), 0
    while ended < JOBS:
        open_now = await asking.asks(lambda client: read(client, "/pools/brief/load"))
        words = dict(line.split() for line in open_now.splitlines())
        now = len(told.ids) - int(words["waiting"]) - int(words["held"])
        for _ in range(max(0, now - ended)):
            room.release()
        ended = max(ended, now)
        await asyncio.sleep(0.05)
    await asking.close()


# mishaps


class Mishaps:
    """What happens to the queen, the workers, the network and the disk."""

    def __init__(self, queen: Queen, workers: list[Worker], wires: Wires, rng: random.Random) -> None:
        self.queen = queen
        self.workers = workers
        self.wires = wires
        self.rng = rng
        self.count: Counter[str] = Counter()

    def kinds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Those that can happen here: without namespaces there is no cable, without a disk of its own none
        is filled."""
        found: dict[str, Callable[[], Awaitable[None]]] = {
            "queen killed": self._kill_queen,
            "worker killed": self._kill_worker,
            "worker stopped": self._stop_worker,
        }
        if self.wires.prefix:
            found["cable out"] = self._cut
        if os.path.ismount(self.queen.directory):
            found["disk full"] = self._fill_disk
        return found

    async def happen(self) -> None:
        kinds = self.kinds()
        for _ in range(ROUNDS):
            for kind in self.rng.sample(sorted(kinds), len(kinds)):
                await asyncio.sleep(self.rng.uniform(*PAUSE_S))
                await kinds[kind]()
                self.count[kind] += 1

    async def _kill_queen(self) -> None:
        self.queen.kill()
        await self.queen.begin()

    async def _kill_worker(self) -> None:
        worker = self.rng.choice(self.workers)
        worker.end()
        worker.begin()

    async def _stop_worker(self) -> None:
        worker = self.rng.choice(self.workers)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(*BEYOND_S))
        worker.signal(signal.SIGCONT)

    async def _cut(self) -> None:
        with self.wires.cut(self.rng.choice(WORKERS)):
            await asyncio.sleep(self.rng.uniform(*BEYOND_S))

    async def _fill_disk(self) -> None:
        ballast = self.queen.directory / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(BALLAST):
                pass
        await asyncio.sleep(self.rng.uniform(*PAUSE_S))
        ballast.unlink()


# the story


@pytest.fixture
def wires() -> Iterator[Wires]:
    with wired("queen", *WORKERS) as found:
        yield found


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A file system of its own, where root makes one; else a directory."""
    at.mkdir()
    mounts = os.geteuid() == 0
    if mounts:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "skep-test", at], check=True)
    try:
        yield at
    finally:
        if mounts:
            subprocess.run(["umount", at], check=True)


def test_twenty_thousand_jobs_end_once_each(
    wires: Wires, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    seed = int(os.environ.get("SKEP_SEED") or random.SystemRandom().getrandbits(32))
    print(f"SKEP_SEED={seed}")
    rng = random.Random(seed)
    told = Told()
    people = {name: Person(machine, tmp_path / name) for name, machine in wires.machines.items()}
    with small_disk(tmp_path / "hive") as directory:
        queen = Queen(people["queen"], directory)
        workers: list[Worker] = []
        try:
            count = uvloop.run(story(queen, workers, people, wires, told, rng))
        finally:
            for worker in workers:
                worker.end()
            queen.kill()
        figures = check_ledger(directory / "ledger.db", told)
    check_records([worker.record for worker in workers], told)
    figures |= dict(count) | {"answers lost": told.lost, "refused for space": told.full}
    print(figures)
    record_property("figures", str(figures))


async def story(
    queen: Queen,
    workers: list[Worker],
    people: dict[str, Person],
    wires: Wires,
    told: Told,
    rng: random.Random,
) -> Counter[str]:
    """Submit and do JOBS jobs amid mishaps; how many of each kind there were."""
    await queen.begin()
    async with await queen.operator() as client:
        await say(client, "/pools/ctl", f"create pool=brief lease={LEASE_S:.0f}s", "map topic=sum pool=brief")
    for name in WORKERS:
        enroll(people["queen"], people[name], queen)
        workers.append(Worker(people[name], queen.address, people[name].home / "record"))
        workers[-1].begin()
    room = asyncio.Semaphore(OPEN_MAX)
    mishaps = Mishaps(queen, workers, wires, rng)
    keys = [f"k{n}" for n in range(JOBS)]
    submitters = [Submitter(queen, told, room) for _ in range(SUBMITTERS)]
    async with asyncio.TaskGroup() as group:
        ends = group.create_task(count_ends(queen, told, room))
        for n, submitter in enumerate(submitters):
            group.create_task(submitter.submit(keys[n::SUBMITTERS], random.Random(rng.random())))
        await mishaps.happen()
        assert len(told.ids) < JOBS, "everything was submitted before the last mishap"
        async with asyncio.timeout(DRAIN_S):
            await ends
    for submitter in submitters:
        await submitter.close()
    return mishaps.count


def enroll(queen: Person, worker: Person, hive: Queen) -> None:
    name = worker.machine.name
    invite = queen.does("invite", "-H", hive.socket, "--role", "drone-worker", "--node", name).strip()
    worker.does("enroll", hive.address, "--invite", "-", stdin=f"{invite}\n")


# the count from outside


def check_ledger(path: Path, told: Told) -> dict[str, int]:
    """Every key became one job, and every job ended once, succeeded with its result."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
        entries = [json.loads(body) for (body,) in ledger.execute("SELECT body FROM entries ORDER BY seq")]
    events = [event for entry in entries for event in entry["events"]]
    submitted = [event for event in events if event["type"] == "job.submitted"]
    assert JOBS == len(told.ids) == len(submitted)
    assert told.ids == {event["key"]: event["job"] for event in submitted}
    ends = [event for event in events if event["type"] == "job.ended"]
    assert Counter(told.ids.values()) == Counter(event["job"] for event in ends)
    expected = {job: ("succeeded", result_of(key)) for key, job in told.ids.items()}
    assert expected == {event["job"]: (event["state"], event["text"]) for event in ends}

    fences: dict[str, int] = {}
    for event in events:
        if event["type"] == "job.leased":
            assert event["fence"] > fences.get(event["job"], 0)
            fences[event["job"]] = event["fence"]
    lost = sum(event["type"] == "job.returned" for event in events)
    refused = Counter(entry["outcome"]["code"] for entry in entries)
    assert lost > 0, "no lease was ever lost: the story was not told"
    return {
        "entries": len(entries),
        "leases": len(fences),
        "lost leases": lost,
        "late words": refused["FENCED"],
    }


def check_records(records: list[Path], told: Told) -> None:
    """What the workers wrote down themselves: every job was done somewhere."""
    done = {line.split()[0] for record in records for line in record.read_text().splitlines()}
    assert set(told.ids.values()) == done
