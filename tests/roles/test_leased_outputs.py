"""What the holder of a job gives of it: sealed in the write of its ack, of any size, whatever was there."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from skep.fs.address import parse
from skep.fs.dial import Client
from skep.roles.leased import OUTPUT_MAX, JobFailed, Lease, Leased
from skep.roles.uplink import Uplink
from tests.daemons import queen

pytestmark = pytest.mark.slow  # a queen begins and ends
SIZES = {"empty": 0, "small": 100, "large": OUTPUT_MAX, "larger": 3 * OUTPUT_MAX + 1}


def data_of(name: str) -> bytes:
    return bytes(n % 251 for n in range(SIZES[name]))


async def held(client: Client, uplink: Uplink, directory: Path) -> Leased:
    """A job that is leased to the uplink's node."""
    await client.write_file("/jobs/ctl", b"submit topic=outputs\n")
    lease = msgspec.json.decode(await uplink.wait_read("/pools/outputs/next"), type=Lease)
    return Leased(lease, uplink, directory / lease.job, asyncio.Lock(), 0.1, begins=True)


def play(directory: Path, story: Callable[[Client, Uplink], Awaitable[None]]) -> None:
    workers = f"unix:{directory}/workers.sock"

    async def run(address: str) -> None:
        async with await Client.connect(address) as client:
            await client.write_file("/pools/ctl", b"create pool=outputs\nmap topic=outputs pool=outputs\n")
            uplink = Uplink(parse(workers), "g1")
            keeping = asyncio.create_task(uplink.keep())
            try:
                async with asyncio.timeout(60):
                    await story(client, uplink)
            finally:
                keeping.cancel()
                with suppress(asyncio.CancelledError):
                    await keeping

    with queen(directory, "--listen-workers", workers) as hive:
        asyncio.run(run(hive.address))


async def outputs(client: Client, job: str) -> dict[str, bytes]:
    """The job's outputs by their names, once it has ended."""
    await client.read_file(f"/jobs/{job}/wait")
    lines = (await client.read_file(f"/jobs/{job}/artifacts")).decode().splitlines()
    hashes = dict(line.split(" sha256:") for line in lines)
    return {name: await client.read_file(f"/artifacts/{sha256}/data") for name, sha256 in hashes.items()}


def test_outputs_of_any_size_are_there_with_the_end(tmp_path: Path) -> None:
    async def story(client: Client, uplink: Uplink) -> None:
        leased = await held(client, uplink, tmp_path)

        async def perform(leased: Leased) -> str:
            for name in SIZES:
                sha256 = await leased.give(name, io.BytesIO(data_of(name)))
                assert hashlib.sha256(data_of(name)).hexdigest() == sha256
            assert b"" == await client.read_file(f"{leased.path}/artifacts")
            return "done"

        await leased.run(perform)
        assert {name: data_of(name) for name in SIZES} == await outputs(client, leased.lease.job)
        assert b"done\n" == await client.read_file(f"{leased.path}/result")
        # Who stages sees nothing of it any more.
        assert [] == await uplink.do(lambda node: node.listdir("/artifacts/stage"))

    play(tmp_path, story)


def test_what_was_staged_before_under_its_name_is_written_anew(tmp_path: Path) -> None:
    async def story(client: Client, uplink: Uplink) -> None:
        leased = await held(client, uplink, tmp_path)

        async def perform(leased: Leased) -> str:
            await leased.give("small", io.BytesIO(data_of("small")))
            # As a write leaves it whose connection was lost on the way.
            staged = f"/artifacts/stage/{leased.lease.job}.{leased.lease.fence}.small"
            await uplink.do(lambda node: node.write_file(staged, b"half", create=True))
            return "done"

        await leased.run(perform)
        assert {"small": data_of("small")} == await outputs(client, leased.lease.job)

    play(tmp_path, story)


def test_a_job_that_failed_has_nothing_of_what_it_was_to_give(tmp_path: Path) -> None:
    async def story(client: Client, uplink: Uplink) -> None:
        leased = await held(client, uplink, tmp_path)

        async def perform(leased: Leased) -> str:
            for name in SIZES:
                await leased.give(name, io.BytesIO(data_of(name)))
            raise JobFailed("no", final=True)

        await leased.run(perform)
        assert {} == await outputs(client, leased.lease.job)
        assert b"failed\n" == await client.read_file(f"{leased.path}/state")

    play(tmp_path, story)
