"""A queen killed while she records: what there is of the recording is good, and nobody goes on with it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
import uvloop
from queens import Queen, events_of, history, read, reigning, say

from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.ninept import Reading
from skep.fs.ninept import read as read_recording
from skep.namespaces.log.recordings import Recorded

CTL = "/log/trace/ctl"


async def recorded(client: Client) -> str:
    """Have the client's session recorded; its id."""
    said = dict(line.split(" ", 1) for line in (await read(client, "/whoami")).splitlines())
    await say(client, CTL, f"record session={said['session']} on")
    return said["session"]


async def talk(client: Client) -> None:
    """Until the queen is gone."""
    try:
        while True:
            await say(client, "/jobs/ctl", "submit topic=sum")
    except (ConnectionLost, FsError):
        return


async def wait_size(path: Path, size: int) -> None:
    while not path.exists() or path.stat().st_size < size:
        await asyncio.sleep(0.01)


def opened(path: Path) -> Reading:
    return read_recording(path.read_bytes())[1]


@pytest.mark.slow
def test_a_killed_queens_recording_is_read_to_its_last_whole_record(tmp_path: Path) -> None:
    async def story(queen: Queen) -> None:
        client = await queen.operator()
        session = await recorded(client)
        path = queen.directory / "log" / "trace" / "sessions" / f"{session}.9pt"
        talking = asyncio.create_task(talk(client))
        async with asyncio.timeout(30):
            await wait_size(path, 100_000)
            await queen.kill()
            await talking
        reading = opened(path)
        records = list(reading)
        assert len(records) > 100
        assert reading.cut
        left = path.read_bytes()
        await queen.begin()
        async with await queen.operator() as client:
            assert "" == await read(client, "/log/trace/recordings")
            again = await recorded(client)
            names = {entry.name for entry in await client.listdir("/log/trace/sessions")}
            assert {path.name} <= names <= {path.name, f"{again}.9pt"}
            assert left == await client.read_file(f"/log/trace/sessions/{path.name}")
        assert 0 == await queen.end(signal.SIGTERM)
        # One that is stopped ends what it records, and the ledger has the link of it.
        reading = opened(path.with_name(f"{again}.9pt"))
        assert "E" == list(reading)[-1].kind
        assert left == path.read_bytes()
        _, entries = history(queen.directory / "ledger.db")
        ended = events_of(entries, Recorded)
        assert [(again, "closed", reading.link.hex())] == [(e.session, e.why, e.link) for e in ended]

    async def run() -> None:
        async with reigning(tmp_path / "hive", "create pool=brief", "map topic=sum pool=brief") as queen:
            await story(queen)

    uvloop.run(run())
