"""A queen killed again and again while triggers fire: each event is fired for once, as the ledger has it.

SKEP_SEED=<number> kills at the moments of that seed again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from queens import Queen, events_of, history, reigning, say

from skep.fs.connection import ConnectionLost
from skep.fs.errors import FsError
from skep.namespaces.jobs.record import Submitted
from skep.namespaces.triggers.core import Fired
from tests.daemons import WAIT_S

KILLS = 5
LIFE_S = (0.005, 0.25)
LINES = 20  # of one write
LEDGER = "ledger.db"
FIRST = (
    "create trigger=echo topic=sum on=job.submitted on-labels=mark:yes input=event",
    "create trigger=second topic=sum on=job.submitted on-labels=mark:yes",
    "create trigger=minute topic=sum cron='* * * * *'",
)


async def submit(queen: Queen) -> None:
    """Submit until the queen dies."""
    with suppress(ConnectionLost, FsError, OSError):
        async with await queen.operator() as client:
            while True:
                await say(client, "/jobs/ctl", *["submit topic=sum labels=mark:yes"] * LINES)


async def wait_quiet(queen: Queen) -> None:
    """Return when the events that there are have been fired for."""
    async with await queen.operator() as client:
        until = asyncio.get_running_loop().time() + WAIT_S
        while True:
            path = queen.directory / LEDGER
            state, entries = await asyncio.to_thread(history, path)
            marked = sum(event.labels == {"mark": "yes"} for event in events_of(entries, Submitted))
            if all(state.triggers.by_tenant[tenant][name].fired >= marked for tenant, name in KEYS):
                return
            assert asyncio.get_running_loop().time() < until, (marked, state.triggers.by_tenant)
            await client.read_file("/state")


KEYS = [("default/default/default", name) for name in ("echo", "second")]


async def story(directory: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with reigning(directory, "create pool=brief lease=2s", "map topic=sum pool=brief") as queen:
        async with await queen.operator() as client:
            for line in FIRST:
                await say(client, "/triggers/ctl", line)
        for _ in range(KILLS):
            submitting = asyncio.ensure_future(submit(queen))
            await asyncio.wait([submitting], timeout=chance.uniform(*LIFE_S))
            await queen.kill()
            await submitting
            await queen.begin()
        await wait_quiet(queen)
    state, entries = history(directory / LEDGER)
    marked = [
        (entry.seq, k)
        for entry in entries
        for k, event in enumerate(entry.events)
        if isinstance(event, Submitted) and event.labels == {"mark": "yes"}
    ]
    assert len(marked) >= LINES
    fired = [event for event in events_of(entries, Fired) if event.why == "event"]
    for _, name in KEYS:
        assert marked == [(event.seq, event.k) for event in fired if event.trigger == name]
    made = Counter(event.job for event in events_of(entries, Submitted) if event.trigger)
    assert {1} == set(made.values())
    assert made.keys() == {event.job for event in events_of(entries, Fired) if event.job}
    ticks = [event.at_ns for event in events_of(entries, Fired) if event.why == "cron"]
    assert ticks == sorted(set(ticks))
    assert state.triggers.seen < len(entries)


@pytest.mark.slow
def test_each_event_is_fired_for_once_whenever_the_queen_dies(tmp_path: Path) -> None:
    seed = int(os.environ.get("SKEP_SEED", random.randrange(1 << 32)))
    print(f"SKEP_SEED={seed}")
    uvloop.run(story(tmp_path / "hive", seed))
