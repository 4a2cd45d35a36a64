"""examples/hello.py, run as its reader would run it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs.dial import Client

pytestmark = pytest.mark.slow

HELLO = Path(__file__).parents[2] / "examples" / "hello.py"


@pytest.fixture(params=["tcp:127.0.0.1:0", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    where = f"unix:{tmp_path}/sub/hello.sock" if request.param == "unix" else request.param
    process = subprocess.Popen([sys.executable, HELLO, where], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving ")
    yield line.split()[1]
    process.send_signal(signal.SIGINT)
    assert 0 == process.wait(timeout=10)
    process.stdout.close()
    assert not (tmp_path / "sub" / "hello.sock").exists()


def test_its_files_are_read_listed_and_written(address: str) -> None:
    async def visit() -> None:
        async with await Client.connect(address) as client:
            assert ["hello", "time", "motto"] == [entry.name for entry in await client.listdir("/")]
            assert b"hello, world\n" == await client.read_file("/hello")
            assert b":" in await client.read_file("/time")
            await client.write_file("/motto", b"ad astra\n")
            assert b"ad astra\n" == await client.read_file("/motto")

    asyncio.run(visit())
