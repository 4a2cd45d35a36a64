"""What a validator reads of a hive that means it ill: it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skep.cli.exits import Failed
from skep.cli.logs import of_log
from skep.fs.address import Address
from skep.fs.errors import E, FsError
from skep.fs.server import listen
from skep.fs.shapes import Stream
from skep.fs.tree import as_node
from skep.roles.uplink import Uplink
from skep.roles.validator import Reading, Stopped
from skep.trace.tiles import BUNDLE_MAX

PIECE = bytes(1 << 16)


class Endless:
    async def next(self) -> bytes:
        return PIECE

    def close(self, undelivered: bytes | None) -> None:
        """There is more."""


def test_a_file_without_an_end_is_not_read_for_ever(tmp_path: Path) -> None:
    async def story() -> None:
        trace = {"checkpoint": Stream(lambda caller: Endless()), "keys": "k\n"}
        async with listen(
            as_node({"log": {"trace": trace}}), Address("unix", path=f"{tmp_path}/s")
        ) as served:
            uplink = Uplink(served.address, "v1")
            keeping = asyncio.create_task(uplink.keep())
            reading = Reading(uplink, passes=1)
            assert b"k\n" == await asyncio.to_thread(reading.read, "keys")
            assert None is await asyncio.to_thread(reading.read, "tile/0/000")
            with pytest.raises(FsError) as caught:
                await asyncio.to_thread(reading.read, "checkpoint")
            assert E.TOOBIG is caught.value.kind
            reading.stop()
            with pytest.raises(Stopped):
                await asyncio.to_thread(reading.read, "keys")
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(story())


def test_who_verifies_a_hive_reads_no_file_without_an_end(tmp_path: Path) -> None:
    async def story() -> None:
        trace = {"checkpoint": Stream(lambda caller: Endless())}
        served_at = Address("unix", path=f"{tmp_path}/s")
        async with listen(as_node({"log": {"trace": trace}}), served_at) as served:
            with pytest.raises(Failed, match=f"max={BUNDLE_MAX}"):
                await asyncio.to_thread(of_log, str(served.address), lambda source: source.head)

    asyncio.run(story())
