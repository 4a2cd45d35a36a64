"""The index of the ledger when its file is another's, wrong, or cannot be written."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from door import Door
from hives import ANN, Living, living
from test_history import fill

from skep.fs.errors import FsError
from skep.namespaces.jobs.history import AGAIN_S, FILE, PENDING_MAX, VERSION, History
from skep.namespaces.tree import hive_tree
from skep.trace.clock import ManualClock

STATES = ["cancelled\n"] * 5


async def states(alive: Living, jobs: list[str]) -> list[str]:
    door = Door(hive_tree(alive.hive), ANN)
    return [await door.read(f"/jobs/{job}/state") for job in jobs]


def restarted(directory: Path, harm: Callable[[Path], None]) -> list[str]:
    """What five forgotten jobs are in a hive that is begun again, its index harmed meanwhile."""
    clock = ManualClock()

    async def first() -> list[str]:
        async with living(directory, str(directory / "ledger"), clock) as alive:
            jobs = await fill(alive, 5)
            await alive.hive.wait_history()
            return jobs

    async def second(jobs: list[str]) -> list[str]:
        async with living(directory, str(directory / "ledger"), clock) as alive:
            return await states(alive, jobs)

    jobs = asyncio.run(first())
    harm(directory / FILE)
    return asyncio.run(second(jobs))


def says(*lines: str) -> Callable[[Path], None]:
    """Put a database in its place that these lines make."""

    def harm(path: Path) -> None:
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(";".join(lines))

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        says("CREATE TABLE jobs(name TEXT)"),
        says("CREATE TABLE jobs(name TEXT)", f"PRAGMA user_version = {VERSION}"),
        says(f"PRAGMA user_version = {VERSION}"),
        says("CREATE TABLE jobs(name TEXT)", f"PRAGMA user_version = {VERSION + 1}"),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name(f"{FILE}-wal").write_bytes(b"no log" * 999),
    ],
    ids=["of another program", "with our version", "without tables", "newer", "empty", "with another's log"],
)
def test_a_file_that_is_no_index_of_this_release_is_replaced(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    assert STATES == restarted(tmp_path, harm)


@pytest.mark.parametrize("more", [1, 12], ids=["shorter than the index", "longer by now"])
def test_an_index_of_what_the_ledger_no_longer_says_is_made_anew(tmp_path: Path, more: int) -> None:
    clock = ManualClock()
    ledger, copied = tmp_path / "ledger", tmp_path / "copied"

    async def live(jobs: int) -> list[str]:
        async with living(tmp_path, str(ledger), clock) as alive:
            made = await fill(alive, jobs)
            await alive.hive.wait_history()
            return made

    async def read(jobs: list[str], lost: list[str]) -> None:
        async with living(tmp_path, str(ledger), clock) as alive:
            assert ["cancelled\n"] * len(jobs) == await states(alive, jobs)
            await alive.hive.wait_history()
            assert [None] * len(lost) == [alive.hive.history.find(job) for job in lost]

    kept = asyncio.run(live(3))
    shutil.copy(ledger, copied)  # closed, it is one file
    lost = asyncio.run(live(5))
    shutil.copy(copied, ledger)
    if more > 5:
        # What goes on from the copy has passed the index before this is opened.
        index = tmp_path / FILE
        index.rename(tmp_path / "aside")
        kept += asyncio.run(live(more))
        shutil.copy(tmp_path / "aside", index)
    asyncio.run(read(kept, lost))


def in_one_hive(directory: Path, story: Callable[[Living, list[str]], Awaitable[None]]) -> None:
    """Five forgotten jobs, in the index."""

    async def run() -> None:
        async with living(directory, str(directory / "ledger")) as alive:
            jobs = await fill(alive, 5)
            await alive.hive.wait_history()
            await story(alive, jobs)

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong",
    [
        "UPDATE jobs SET state = 'succeeded'",
        "UPDATE entries SET seq = seq + 1000000",
        "DELETE FROM entries",
    ],
)
def test_an_index_that_says_something_else_than_the_ledger_is_made_anew(tmp_path: Path, wrong: str) -> None:
    async def story(alive: Living, jobs: list[str]) -> None:
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as connection:
            connection.execute(wrong)
        with pytest.raises(FsError, match="history of jobs"):
            await states(alive, jobs)
        assert STATES == await states(alive, jobs)

    in_one_hive(tmp_path, story)


def test_while_it_is_made_anew_nothing_is_said_to_be_missing(tmp_path: Path) -> None:
    async def story(alive: Living, jobs: list[str]) -> None:
        history = alive.hive.history
        await alive.submit()
        history.write()  # a batch is on its way
        await asyncio.sleep(0)
        history._spoil(ValueError("damaged"))
        assert STATES == await states(alive, jobs)

    in_one_hive(tmp_path, story)


def test_damage_that_is_found_while_writing_hides_no_job(tmp_path: Path) -> None:
    async def story(alive: Living, jobs: list[str]) -> None:
        history = alive.hive.history
        writer = history._writer
        assert writer is not None
        writer.close()
        history._writer = another = sqlite3.connect(tmp_path / "no.db", check_same_thread=False)
        (tmp_path / "no.db").write_bytes(b"no database" * 1000)
        await alive.submit()
        with pytest.raises(FsError, match="not a database"):
            await history.wait_reached(alive.hive.turn.seq)
        assert STATES == await states(alive, jobs)
        another.close()

    in_one_hive(tmp_path, story)


def test_whatever_fails_those_who_wait_are_told(tmp_path: Path) -> None:
    def read(after: int, limit: int) -> list[tuple[int, bytes]]:
        return []

    async def story() -> None:
        history = History(tmp_path / FILE, read, 3)
        async with asyncio.timeout(30):
            with pytest.raises(FsError, match="history of jobs"):
                await history.wait_reached(3)
            await history.close()

    asyncio.run(story())


def test_who_asks_after_the_end_is_told_so(tmp_path: Path) -> None:
    async def story() -> None:
        history = History(tmp_path / FILE, lambda after, limit: [], 3)
        await history.close()
        async with asyncio.timeout(30):
            with pytest.raises(FsError, match="the hive has stopped"):
                await history.wait_reached(3)

    asyncio.run(story())


def test_what_cannot_be_written_is_tried_now_and_then_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "skep.history")

    async def story(alive: Living, jobs: list[str]) -> None:
        history = alive.hive.history
        tries = 0
        put = history._put

        def full(batch: object) -> int:
            nonlocal tries
            tries += 1
            raise sqlite3.OperationalError("database or disk is full")

        history._put = full  # type: ignore[method-assign]
        for _ in range(8):
            await alive.submit()
            history.write()
            for _ in range(3):
                await asyncio.sleep(0.001)
        assert tries == 1
        with pytest.raises(FsError, match="disk is full"):
            await history.wait_reached(alive.hive.turn.seq)
        assert len(caplog.records) == 1
        history._put = put  # type: ignore[method-assign]
        history._again_s -= AGAIN_S
        history.write()
        await history.wait_reached(alive.hive.turn.seq)
        assert [True] == ["written again" in each.message for each in caplog.records[1:]]

    in_one_hive(tmp_path, story)


@pytest.mark.slow
def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    async def story(alive: Living, jobs: list[str]) -> None:
        history = alive.hive.history
        history._again_s = float("inf")  # the disk is full for ever
        (job,) = await alive.write("/jobs/ctl", "submit topic=sum")
        for _ in range(PENDING_MAX // 200 + 3):
            await asyncio.gather(*(alive.write("/jobs/ctl", "submit topic=sum key=k") for _ in range(200)))
            assert len(history._told) <= PENDING_MAX + 256
        await alive.write("/jobs/ctl", f"cancel job={job}")
        await history.wait_reached(alive.hive.turn.seq)
        row = history.find(job)
        assert row is not None
        assert ("cancelled", alive.hive.turn.seq) == (row.state, row.rev)

    in_one_hive(tmp_path, story)
