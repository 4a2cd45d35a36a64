"""A ledger that was torn opens, as far as it goes; one that was edited does not, and it is said where."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop
from queens import LEASES, Queen, events_of, history, reigning, say

from skep.namespaces.jobs.record import Submitted
from skep.trace.entry import Entry

pytestmark = pytest.mark.slow
SEED: Final = 7
JOBS = 60
TEARS = 120

Hive = tuple[Path, list[Entry[Any]]]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Hive:
    """What a killed queen left, most of it in the WAL: its directory and its entries."""
    directory = tmp_path_factory.mktemp("left") / "hive"

    async def run() -> None:
        async with reigning(directory, *LEASES) as queen, await queen.operator() as client:
            for n in range(JOBS // 2):
                await say(client, "/jobs/ctl", f"submit topic=sum key=a{n} input={n:0>300}")
            # These share their commits.
            await asyncio.gather(
                *(say(client, "/jobs/ctl", f"submit topic=sum key=b{n}") for n in range(JOBS // 2))
            )
            await queen.kill()

    uvloop.run(run())
    # Read from a copy: who closes the ledger last empties its WAL.
    _, entries = history(copied(directory, directory.with_name("copy")) / "ledger.db")
    assert len([*events_of(entries, Submitted)]) == JOBS
    return directory, entries


def copied(directory: Path, to: Path) -> Path:
    """A copy of the ledger and its keys alone, without the WAL's index, as after a reboot."""
    to.mkdir()
    shutil.copytree(directory / "keys", to / "keys")
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copy(directory / name, to / name)
    return to


# torn

TEARS_BY_NAME: Final[dict[str, Callable[[bytes, random.Random], bytes]]] = {
    "cut": lambda rest, rng: b"",
    "never written": lambda rest, rng: bytes(len(rest)),
    "garbage": lambda rest, rng: rng.randbytes(len(rest)),
}


def torn(directory: Path, to: Path, rng: random.Random) -> tuple[Path, int]:
    """A copy whose WAL is as it was up to a random offset, and that offset."""
    path = copied(directory, to) / "ledger.db-wal"
    whole = path.read_bytes()
    offset = rng.randrange(len(whole))
    tear = TEARS_BY_NAME[rng.choice(list(TEARS_BY_NAME))]
    path.write_bytes(whole[:offset] + tear(whole[offset:], rng))
    return to, offset


def test_a_torn_ledger_is_a_whole_one_that_ends_earlier(left: Hive, tmp_path: Path) -> None:
    directory, entries = left
    rng = random.Random(SEED)
    sizes = {}
    for n in range(TEARS):
        place, offset = torn(directory, tmp_path / f"{n}", rng)
        _, found = history(place / "ledger.db")
        assert entries[: len(found)] == found
        sizes[offset] = len(found)
    # A later tear never costs more.
    ordered = [size for _, size in sorted(sizes.items())]
    assert sorted(ordered) == ordered
    assert len(set(ordered)) > 20


@pytest.mark.slow
def test_a_queen_begins_on_a_torn_ledger_and_goes_on(left: Hive, tmp_path: Path) -> None:
    directory, entries = left
    rng = random.Random(SEED + 1)

    async def run(place: Path) -> set[str]:
        async with reigning(place) as queen, await queen.operator() as client:
            before = {entry.name for entry in await client.listdir("/jobs/by-key")}
            # The pool may have been torn off too.
            topic = "sum" if before else "sha256"
            await say(client, "/jobs/ctl", f"submit topic={topic} key=after")
        return before

    for n in range(4):
        place, _ = torn(directory, tmp_path / f"{n}", rng)
        before = uvloop.run(run(place))
        _, found = history(place / "ledger.db")
        keys = [event.key for event in events_of(found, Submitted)]
        assert {*before, "after"} == set(keys)
        assert [event.key for event in events_of(entries, Submitted)][: len(before)] == keys[:-1]


# edited


def one_byte(ledger: sqlite3.Connection, seq: int, rng: random.Random) -> None:
    """Another digit of the time at which the entry was written."""
    (body,) = ledger.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
    k = body.rindex(b'"time":') + len(b'"time":') + rng.randrange(10)
    digit = b"%d" % ((int(body[k : k + 1]) + 1) % 10)
    ledger.execute("UPDATE entries SET body = ? WHERE seq = ?", (body[:k] + digit + body[k + 1 :], seq))


def byte_and_hash(ledger: sqlite3.Connection, seq: int, rng: random.Random) -> None:
    one_byte(ledger, seq, rng)
    (body,) = ledger.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
    ledger.execute("UPDATE entries SET leaf = ? WHERE seq = ?", (sha256(b"\0" + body).digest(), seq))


def taken_out(ledger: sqlite3.Connection, seq: int, rng: random.Random) -> None:
    ledger.execute("DELETE FROM entries WHERE seq = ?", (seq,))


def commit_taken_out(ledger: sqlite3.Connection, seq: int, rng: random.Random) -> None:
    ledger.execute("DELETE FROM commits WHERE size = ?", (seq,))


def exchanged(ledger: sqlite3.Connection, seq: int, rng: random.Random) -> None:
    """The entry and the next one."""
    for before, after in ((seq, -1), (seq + 1, seq), (-1, seq + 1)):
        ledger.execute("UPDATE entries SET seq = ? WHERE seq = ?", (after, before))


EDITS: Final[dict[Callable[[sqlite3.Connection, int, random.Random], None], str]] = {
    one_byte: "integrity: entry {seq}: leaf hash is not that of its body",
    byte_and_hash: "integrity: entry {seq}: tree root is not that of its commit",
    taken_out: "integrity: entry {seq}: missing, entry {next} is in its place",
    commit_taken_out: "integrity: entry {next}: its commit begins after {seq}, expected {before}",
    exchanged: "integrity: entry {seq}: tree root is not that of its commit",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_ledger_does_not_open_and_it_is_said_where(
    left: Hive, tmp_path: Path, edit: Callable[[sqlite3.Connection, int, random.Random], None]
) -> None:
    directory, _ = left
    rng = random.Random(SEED)
    # Among the first half, where each entry has a commit of its own.
    seq = rng.randrange(5, JOBS // 2)
    place = copied(directory, tmp_path / "hive")
    with closing(sqlite3.connect(place / "ledger.db")) as ledger, ledger:
        edit(ledger, seq, rng)
    status, said = uvloop.run(refused_start(place))
    assert 1 == status
    assert EDITS[edit].format(seq=seq, next=seq + 1, before=seq - 1) in said


async def refused_start(directory: Path) -> tuple[int, str]:
    """The exit status of a queen that does not begin, and what it says."""
    queen = Queen(directory)
    await queen.spawn()
    assert queen.process is not None
    assert queen.process.stdout is not None
    assert b"" == await queen.process.stdout.read()
    return await queen.process.wait(), queen.said()
