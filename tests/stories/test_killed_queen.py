"""A queen killed at random moments under load: nothing that was answered is lost, nothing happens twice.

Clients submit, cancel and work over 9P, as people and machines do: who got no answer asks again, with the
same key or the same fence. What they were told is then compared with a fresh queen's files, and with its
ledger.

SKEP_SEED=<number> kills at the moments of that seed again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop
from queens import LEASES, Queen, events_of, history, read, reigning, say

from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.namespaces.jobs import record as jobs

T = TypeVar("T")
KILLS = 50  # of queens that were ready; some more die while they start
LIFE_S = (0.02, 0.7)  # how long a queen lives once it is ready
LONG_LIFE_S = (10.2, 11.2)  # long enough that leases of dead queens' jobs end: they do 10 s after a start
BIRTH_S = (0.05, 0.25)  # how long one lives that is killed before it is ready
DRAIN_S = 60.0  # in which everything has come to its end: leases of the dead take some twelve
SUBMITTERS = 8
WORKERS = 6
OPEN_MAX = 48  # jobs submitted and not ended: the queues stay short and every kind of line goes on
BATCH_MAX = 4  # jobs submitted in one write
HEARTBEAT_S = 5.0
REFUSALS = (E.FENCED, E.ILLEGAL_MOVE, E.CONFLICT)  # a job has gone another way; 9P2000.L tells an errno
LEDGER = "ledger.db"


class Lease(msgspec.Struct):
    """The line of /pools/<p>/next, as far as it is needed."""

    job: str
    attempt: int
    fence: int


@dataclass
class Told:
    """What the hive has answered. ``acknowledged`` grows when a write is answered, ``ids`` when its reply
    has been read as well."""

    acknowledged: set[str] = field(default_factory=set)  # keys
    ids: dict[str, str] = field(default_factory=dict)  # key -> job
    cancelled: set[str] = field(default_factory=set)  # jobs
    leases: dict[tuple[str, int], tuple[str, int]] = field(
        default_factory=dict
    )  # job, attempt -> node, fence
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)  # job -> state, text
    lost: Counter[str] = field(default_factory=Counter)  # answers that never came, by what was asked


class Line:
    """A client that comes back: ``do`` begins its work again whenever the queen has died on the way."""

    def __init__(self, queen: Queen, told: Told, node: str = "") -> None:
        self.queen = queen
        self.told = told
        self.node = node  # "": an operator
        self._client: Client | None = None  # None: not connected

    async def do(self, what: str, work: Callable[[Client], Awaitable[T]]) -> T:
        """What ``work`` gives, in the end. Raises FsError for what the hive refuses."""
        while True:
            try:
                return await work(await self._connected())
            except (ConnectionLost, OSError):
                self.told.lost[what] += 1
                await self.close()

    async def _connected(self) -> Client:
        await self.queen.ready.wait()
        if self._client is None:
            self._client = await (self.queen.worker(self.node) if self.node else self.queen.operator())
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class Load:
    """The submitters and workers, until ``drain``."""

    def __init__(self, queen: Queen, told: Told, rng: random.Random) -> None:
        self.queen = queen
        self.told = told
        self.rng = rng
        self.draining = False
        self.open = asyncio.Semaphore(OPEN_MAX)
        self.left: set[str] = set()  # jobs that nobody has been told the end of
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, group: asyncio.TaskGroup) -> None:
        self.tasks = [group.create_task(self._submit(n)) for n in range(SUBMITTERS)]
        self.workers = [group.create_task(self._work(n)) for n in range(WORKERS)]

    async def drain(self) -> None:
        """Return when every job that was submitted has ended and nobody does anything more."""
        self.draining = True
        await asyncio.wait(self.tasks)
        line = Line(self.queen, self.told)
        for job in sorted(self.left):
            await line.do("wait", partial(read, path=f"/jobs/{job}/wait"))
        await line.close()
        for worker in self.workers:
            worker.cancel()
        await asyncio.wait(self.workers)

    # those who submit

    async def _submit(self, n: int) -> None:
        line = Line(self.queen, self.told)
        count = 0
        while not self.draining:
            size = self.rng.randint(1, BATCH_MAX)
            keys = [f"k{n}-{count + i}" for i in range(size)]
            count += size
            for _ in keys:
                await self.open.acquire()
            ids = await line.do("submit", partial(self._ask, keys=keys))
            self.left.update(ids)
            if self.rng.random() < 0.1:
                await self._cancel(line, ids[0])
        await line.close()

    async def _ask(self, client: Client, keys: list[str]) -> list[str]:
        async with await client.open("/jobs/ctl", "rw") as fid:
            data = "".join(f"submit topic=sum key={key} input={key}\n" for key in keys).encode()
            assert len(data) == await fid.write(0, data)
            self.told.acknowledged.update(keys)
            ids = [line.split()[0] for line in (await fid.read(0, fid.unit)).decode().splitlines()]
            assert len(keys) == len(ids)
            for key, id in zip(keys, ids, strict=True):
                # Told twice, it is told the same.
                assert self.told.ids.setdefault(key, id) == id
            return ids

    async def _cancel(self, line: Line, job: str) -> None:
        """Cancel the job, if it has not ended."""
        try:
            await line.do(
                "cancel", lambda client: say(client, "/jobs/ctl", f"cancel job={job} reason=changed")
            )
        except FsError as error:
            if error.kind not in REFUSALS:
                raise
            # Asked again, it may have been cancelled the first time.
            if await line.do("state", lambda client: read(client, f"/jobs/{job}/state")) != "cancelled":
                return
        self.told.cancelled.add(job)
        self._ended(job)

    def _ended(self, job: str) -> None:
        self.open.release()
        self.left.discard(job)

    # those who work

    async def _work(self, n: int) -> None:
        line = Line(self.queen, self.told, f"w{n}")
        try:
            while True:
                lease = await line.do("next", partial(_next, node=line.node))
                seen = self.told.leases.setdefault((lease.job, lease.attempt), (line.node, lease.fence))
                assert (line.node, lease.fence) == seen
                try:
                    await self._finish(line, lease)
                except FsError as error:
                    # Cancelled, or the lease ended while the queen was away.
                    if error.kind not in REFUSALS:
                        raise
        finally:
            await line.close()

    async def _finish(self, line: Line, lease: Lease) -> None:
        """Say that the job runs and how it ended, both once more when no answer came."""
        text = f"{line.node}/{lease.attempt}"
        acked = self.rng.random() < 0.8
        end = f"ack fence={lease.fence} result={text}" if acked else f"nack fence={lease.fence} error={text}"
        path = f"/jobs/{lease.job}/ctl"
        try:
            await line.do("start", lambda client: say(client, path, f"start fence={lease.fence}"))
        except FsError as error:
            # It was heard the first time.
            if error.kind not in (E.ILLEGAL_MOVE, E.CONFLICT) or not self.told.lost["start"]:
                raise
        await line.do("end", lambda client: say(client, path, end))
        assert lease.job not in self.told.ends
        self.told.ends[lease.job] = ("succeeded" if acked else "failed", text)
        self._ended(lease.job)


async def _next(client: Client, node: str) -> Lease:
    """A lease, waited for; the hive hears of the node meanwhile."""
    while True:
        await client.write_file(f"/nodes/{node}/heartbeat", b"{}")
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S), await client.open("/pools/brief/next") as fid:
                return msgspec.json.decode(await fid.read(0, fid.unit), type=Lease)


async def reign_of_terror(queen: Queen, rng: random.Random) -> list[float]:
    """Kill the queen KILLS times; how long each start took that was let come to its end, in seconds."""
    starts = []
    for n in range(KILLS):
        long = n == KILLS // 2
        await lived(queen, *(LONG_LIFE_S if long else LIFE_S), rng)
        await queen.kill()
        # Every fourth successor is killed while it starts.
        if rng.random() < 0.25:
            await queen.spawn()
            await lived(queen, *BIRTH_S, rng)
            await queen.kill()
        starts.append(await queen.begin())
    return starts


async def lived(queen: Queen, least_s: float, most_s: float, rng: random.Random) -> None:
    """Return after a random time. Raises AssertionError when the queen ends by itself before."""
    assert queen.process is not None
    try:
        async with asyncio.timeout(rng.uniform(least_s, most_s)):
            await queen.process.wait()
    except TimeoutError:
        return
    raise AssertionError(f"the queen ended: {queen.said()}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_queen_keeps_what_it_answered_and_ends_each_job_once(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    seed = int(os.environ.get("SKEP_SEED") or random.SystemRandom().getrandbits(32))
    print(f"SKEP_SEED={seed}")
    told = Told()

    async def run() -> list[float]:
        rng = random.Random(seed)
        async with reigning(tmp_path / "hive", *LEASES) as queen:
            load = Load(queen, told, rng)
            async with asyncio.TaskGroup() as group:
                load.start(group)
                starts = await reign_of_terror(queen, rng)
                async with asyncio.timeout(DRAIN_S):
                    await load.drain()
            assert load.left == set()
            await queen.kill()
            await queen.begin()
            async with await queen.operator() as client:
                await check_files(client, told)
            return starts

    starts = uvloop.run(run())
    entries = check_ledger(tmp_path / "hive" / LEDGER, told)
    figures = {
        "jobs": len(told.ids), "entries": entries, "answers lost": dict(told.lost),
        "start s": f"median {median(starts):.2f}, longest {max(starts):.2f}",
    }  # fmt: skip
    print(figures)
    record_property("figures", str(figures))


# what is found afterwards


async def check_files(client: Client, told: Told) -> None:
    """What the files of a fresh queen say is what was told."""
    keys = {entry.name for entry in await client.listdir("/jobs/by-key")}
    assert told.acknowledged == set(told.ids) == keys
    listed = Counter[str]()
    for state in jobs.MOVES:
        names = [entry.name for entry in await client.listdir(f"/jobs/by-state/{state}")]
        assert state in jobs.TERMINAL or names == []
        listed.update(names)
    # Two keys never led to one job.
    assert Counter(told.ids.values()) == listed

    limit = asyncio.Semaphore(32)

    async def check(key: str, job: str) -> None:
        async with limit:
            assert job == await read(client, f"/jobs/by-key/{key}")
            assert key == msgspec.json.decode(await client.read_file(f"/jobs/{job}/request.json"))["key"]
            state = await read(client, f"/jobs/{job}/wait")
            assert state == await read(client, f"/jobs/{job}/state")
            if job in told.cancelled:
                assert state == "cancelled"
            if job in told.ends:
                said = "result" if state == "succeeded" else "error"
                assert told.ends[job] == (state, await read(client, f"/jobs/{job}/{said}"))
            attempts = (await read(client, f"/jobs/{job}/attempts")).splitlines()
            for (_, attempt), (node, fence) in by_job.get(job, {}).items():
                assert attempts[attempt - 1].startswith(f"{attempt} node={node} fence={fence} ")

    by_job: dict[str, dict[tuple[str, int], tuple[str, int]]] = {}
    for place, holder in told.leases.items():
        by_job.setdefault(place[0], {})[place] = holder
    await asyncio.gather(*(check(key, job) for key, job in told.ids.items()))


def check_ledger(path: Path, told: Told) -> int:
    """What the ledger says is what was told; how many entries it has. Reading it verifies it."""
    state, entries = history(path)
    submitted = list(events_of(entries, jobs.Submitted))
    assert told.ids == {event.key: event.job for event in submitted}
    assert len(told.ids) == len(submitted)
    # One write is one transaction.
    for entry in entries:
        if entry.events and isinstance(entry.events[0], jobs.Submitted):
            assert len(entry.line.splitlines()) == len(entry.events)
    # Each job ended once.
    ends = {event.job: event for event in events_of(entries, jobs.Ended)}
    assert set(told.ids.values()) == set(ends)
    assert len(ends) == sum(1 for _ in events_of(entries, jobs.Ended))
    for job, end in told.ends.items():
        assert (ends[job].state, ends[job].text) == end
    assert {"cancelled"} == {ends[job].state for job in told.cancelled}
    check_attempts(state.jobs, list(events_of(entries, jobs.Leased)), told)
    return len(entries)


def check_attempts(found: jobs.Jobs, leased: list[jobs.Leased], told: Told) -> None:
    """Each lease is an attempt, fences rise, and what workers were told stands there."""
    assert not found.held
    counted = Counter(event.job for event in leased)
    for job in found.by_id.values():
        assert counted[job.id] == len(job.attempts)
        fences = [attempt.fence for attempt in job.attempts]
        assert fences == sorted(set(fences))
        assert all(attempt.end for attempt in job.attempts)
    for (id, attempt), holder in told.leases.items():
        kept = found.by_id[id].attempts[attempt - 1]
        assert holder == (kept.node, kept.fence)
    assert max(counted.values()) > 1, "no lease was ever lost: the story was not told"
