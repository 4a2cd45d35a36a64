"""A hive on a full disk: it refuses, says why, is read on, and goes on when there is space."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import uvloop
from queens import LEASES, events_of, history, read, reigning, say

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.namespaces.artifacts.core import Sealed
from skep.namespaces.jobs import record as jobs

DISK = 8 * 1024 * 1024
SUBMITS_MAX = 2000  # each of some twenty KiB: more than the disk holds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the full disk is also tested with a ledger that says it is full")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "skep-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@contextmanager
def refused_for_space() -> Iterator[None]:
    with pytest.raises(FsError) as refused:
        yield
    assert (E.NOSPACE, errno.ENOSPC) == (refused.value.kind, refused.value.errno), refused.value


async def submit(client: Client, key: str) -> str:
    (id,) = await say(client, "/jobs/ctl", f"submit topic=sum key={key} input={key:x>8000}")
    return id


async def fill(client: Client, told: dict[str, str]) -> None:
    """Submit until it is refused."""
    with refused_for_space():
        for n in range(SUBMITS_MAX):
            key = f"k{len(told)}"
            assert n < SUBMITS_MAX - 1
            told[key] = await submit(client, key)


async def check_told(client: Client, told: dict[str, str]) -> None:
    for key, id in told.items():
        assert id == await read(client, f"/jobs/by-key/{key}")
    assert "online" == await read(client, "/state")
    assert set(told) == {entry.name for entry in await client.listdir("/jobs/by-key")}


@pytest.mark.slow
def test_a_hive_on_a_full_disk_is_read_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    ballast, directory = small_disk / "ballast", small_disk
    told: dict[str, str] = {}

    async def run() -> None:
        ballast.write_bytes(bytes(DISK // 2))
        async with reigning(directory, *LEASES) as queen, await queen.operator() as client:
            await fill(client, told)
            assert len(told) > 20
            # Still full, and it is read on. Even what changes nothing would be an entry.
            for key in ("late", "k0"):
                with refused_for_space():
                    await submit(client, key)
            await check_told(client, told)
            ballast.unlink()
            told["late"] = await submit(client, "late")
            await check_told(client, told)
            await fill(client, told)
            # It dies on the full disk, and its successor has all that was written.
            await queen.kill()
            await queen.begin()
            async with await queen.operator() as again:
                await check_told(again, told)

    uvloop.run(run())
    _, entries = history(directory / "ledger.db")
    assert told == {event.key: event.job for event in events_of(entries, jobs.Submitted)}


@pytest.mark.slow
def test_a_queen_that_was_stopped_on_a_full_disk_begins_again_and_is_read(small_disk: Path) -> None:
    ballast, directory = small_disk / "ballast", small_disk

    async def run() -> None:
        async with reigning(directory, *LEASES) as queen:
            async with await queen.operator() as client:
                early = await submit(client, "early")
                fill_up(ballast)
                with refused_for_space():
                    await submit(client, "late")
            assert 0 == await queen.end(signal.SIGTERM)
            fill_up(small_disk / "more")
            await queen.begin()
            assert "Traceback" not in queen.said()
            async with await queen.operator() as client:
                assert early == await read(client, "/jobs/by-key/early")
                with refused_for_space():
                    await submit(client, "late")
                ballast.unlink()
                await submit(client, "late")

    uvloop.run(run())


def fill_up(path: Path) -> None:
    """Make a file that takes all the space there is."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


@pytest.mark.slow
def test_an_artifact_that_does_not_fit_is_refused_and_leaves_nothing(small_disk: Path) -> None:
    ballast, directory = small_disk / "ballast", small_disk
    small = os.urandom(100_000)
    digest = sha256(small).hexdigest()

    def used() -> int:
        found = os.statvfs(small_disk)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    async def run() -> None:
        async with reigning(directory, *LEASES) as queen, await queen.operator() as client:
            before = used()
            with refused_for_space():
                await client.write_file("/artifacts/stage/large", bytes(2 * DISK), create=True)
            await client.remove("/artifacts/stage/large")
            assert [] == await client.listdir("/artifacts/stage")
            assert used() - before < len(small)
            # What fits, but cannot be written down any more, waits to be sealed again.
            await client.write_file("/artifacts/stage/small", small, create=True)
            fill_up(ballast)
            with refused_for_space():
                await say(client, "/artifacts/ctl", "seal name=small")
            assert [] == await client.listdir("/artifacts/by-name")
            ballast.unlink()
            assert [f"sha256:{digest}"] == await say(client, "/artifacts/ctl", "seal name=small")
            assert small == await client.read_file(f"/artifacts/{digest}/data")
            assert [] == await client.listdir("/artifacts/stage")

    uvloop.run(run())
    _, entries = history(directory / "ledger.db")
    assert [digest] == [event.sha256 for event in events_of(entries, Sealed)]
