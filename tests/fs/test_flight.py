"""Requests sent together: what they give, what a failure of each is told as, and that no fid stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.flight import Flight
from skep.fs.messages import Dialect, Rread, Tread, Twrite
from tests.fs.grounds import Grounds
from tests.fs.test_dial import DIALECTS, play


@DIALECTS
def test_a_file_is_read_and_a_ctl_written_in_one_flight(dialect: Dialect, tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        reply = await Flight(client, "/dir/sub/c", "r", lambda fid: Tread(fid, 0, 100)).wait()
        assert isinstance(reply, Rread)
        assert b"C\n" == bytes(reply.data)
        await Flight(client, "ctl", "w", lambda fid: Twrite(fid, 0, b"say what=hi\n")).wait()
        assert ["hi"] == grounds.said

    play(story, tmp_path, dialect)


@DIALECTS
@pytest.mark.parametrize("path", ["nothing", "dir/nothing", "dir/nothing/c"])
def test_a_walk_that_fails_is_told_as_such(path: str, dialect: Dialect, tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        with pytest.raises(FsError) as refused:
            await Flight(client, path, "r", lambda fid: Tread(fid, 0, 100)).wait()
        assert E.MISSING is refused.value.kind

    play(story, tmp_path, dialect)


@DIALECTS
def test_a_file_is_made_and_written_in_one_flight_once(dialect: Dialect, tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        def made() -> Flight:
            return Flight(client, "/", "w", lambda fid: Twrite(fid, 0, b"new"), create="made")

        await made().wait()
        assert b"new" == await client.read_file("made")
        with pytest.raises(FsError) as refused:
            await made().wait()
        assert E.EXISTS is refused.value.kind

    play(story, tmp_path, dialect, "host")
