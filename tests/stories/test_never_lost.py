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
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvloop
from mishaps import PAUSE_S, Asking, Kinds, Process, Queen, happen
from people import Person
from queens import ROOT, read, say
from wires import Wires, wired

from skep.fs.dial import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = int(os.environ.get("SKEP_JOBS") or 20_000)
SUBMITTERS = 4
BATCH_MAX = 40  # jobs submitted in one write
OPEN_MAX = 1500  # jobs submitted and not ended, at most: the disk is small
DISK = 512 * 1024 * 1024
BALLAST = bytes(1024 * 1024)
LEASE_S = 2.0
BEYOND_S = (2.5, 4.0)  # how long a worker is stopped, or its cable out
ROUNDS = 4  # of every mishap once, in any order
DRAIN_S = 400.0
WORKERS = ("w1", "w2", "w3", "w4")
DRONE = str(ROOT / "tests/stories/drone.py")


@dataclass
class Told:
    """What the clients know. ``ids``: key -> job, as it was answered."""

    ids: dict[str, str] = field(default_factory=dict)
    lost: int = 0  # answers that never came
    full: int = 0  # refusals for want of space


# those who submit


class Submitter(Asking):
    """Submits its share of the jobs, each under a key."""

    def __init__(self, queen: Queen, told: Told, room: asyncio.Semaphore) -> None:
        super().__init__(queen)
        self.told = told
        self.room = room

    async def submit(self, keys: list[str], rng: random.Random) -> None:
        while keys:
            size = rng.randint(1, BATCH_MAX)
            batch, keys = keys[:size], keys[size:]
            for _ in batch:
                await self.room.acquire()
            ids = await self.asks(partial(ask, keys=batch))
            for key, id in zip(batch, ids, strict=True):
                assert self.told.ids.setdefault(key, id) == id


async def ask(client: Client, keys: list[str]) -> list[str]:
    """Submit a job under each key; their ids."""
    return await say(client, "/jobs/ctl", *(f"submit topic=sum key={key} input={key}" for key in keys))


def result_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


async def count_ends(asking: Asking, told: Told, room: asyncio.Semaphore) -> None:
    """Make room for as many jobs as have ended, until JOBS have."""
    ended = 0
    while ended < JOBS:
        open_now = await asking.asks(lambda client: read(client, "/pools/brief/load"))
        words = dict(line.split() for line in open_now.splitlines())
        now = len(told.ids) - int(words["waiting"]) - int(words["held"])
        for _ in range(max(0, now - ended)):
            room.release()
        ended = max(ended, now)
        await asyncio.sleep(0.05)


# mishaps


def mishaps(queen: Queen, workers: list[Process], wires: Wires, rng: random.Random) -> Kinds:
    """What can happen here: without namespaces there is no cable, without a disk of its own none is
    filled."""

    async def kill_queen() -> None:
        queen.kill()
        await queen.begin()

    async def kill_worker() -> None:
        worker = rng.choice(workers)
        worker.end()
        worker.begin()

    async def stop_worker() -> None:
        await rng.choice(workers).stop(rng.uniform(*BEYOND_S))

    async def cut() -> None:
        with wires.cut(rng.choice(WORKERS)):
            await asyncio.sleep(rng.uniform(*BEYOND_S))

    async def fill_disk() -> None:
        ballast = queen.directory / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(BALLAST):
                pass
        await asyncio.sleep(rng.uniform(*PAUSE_S))
        ballast.unlink()

    return (
        {"queen killed": kill_queen, "worker killed": kill_worker, "worker stopped": stop_worker}
        | ({"cable out": cut} if wires.prefix else {})
        | ({"disk full": fill_disk} if os.path.ismount(queen.directory) else {})
    )


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
        workers: list[Process] = []
        try:
            count = uvloop.run(story(queen, workers, people, wires, told, rng))
        finally:
            for worker in workers:
                worker.end()
            queen.kill()
        figures = check_ledger(directory / "ledger.db", told)
    check_records([worker.person.home / "record" for worker in workers], told)
    figures |= dict(count) | {"answers lost": told.lost, "refused for space": told.full}
    print(figures)
    record_property("figures", str(figures))


async def story(
    queen: Queen,
    workers: list[Process],
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
        queen.enroll(people[name], "drone-worker")
        record = str(people[name].home / "record")
        workers.append(Process(people[name], sys.executable, DRONE, queen.address, record))
        workers[-1].begin()
    room = asyncio.Semaphore(OPEN_MAX)
    keys = [f"k{n}" for n in range(JOBS)]
    submitters = [Submitter(queen, told, room) for _ in range(SUBMITTERS)]
    looking = Asking(queen)
    async with asyncio.TaskGroup() as group:
        ends = group.create_task(count_ends(looking, told, room))
        for n, submitter in enumerate(submitters):
            group.create_task(submitter.submit(keys[n::SUBMITTERS], random.Random(rng.random())))
        count = await happen(mishaps(queen, workers, wires, rng), ROUNDS, rng)
        assert len(told.ids) < JOBS, "everything was submitted before the last mishap"
        async with asyncio.timeout(DRAIN_S):
            await ends
    for one in (*submitters, looking):
        await one.close()
        told.lost += one.lost
        told.full += one.full
    return count


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
