"""A worker that is lost with a lease: its job goes to another, and what it says later is refused.

Leases do not end in a queen's first ten seconds, so that workers find their way back to it.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import uvloop
from queens import LEASES, ROOT, Queen, read, reigning, say

from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.trace.clock import SECOND, parse_rfc3339

HOLDER: Final = Path(__file__).with_name("holder.py")
WAIT_S = 40.0


class Holder:
    """A worker process that holds a lease."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lease: dict[str, Any] = {}

    async def answer(self) -> Any:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        return "ok" if line == b"ok\n" else msgspec.json.decode(line)

    async def say(self, line: str) -> Any:
        """What becomes of ``line``: "ok", or the errno and text of its refusal."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        return await self.answer()


@asynccontextmanager
async def holding(queen: Queen, node: str, dialect: Dialect) -> AsyncIterator[Holder]:
    """A worker that has taken a lease and started its job; dead afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HOLDER), queen.worker_socket, node, dialect.name, "brief"),
        env={"PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        holder = Holder(process)
        holder.lease = await holder.answer()
        assert "ok" == await holder.say(f"start fence={holder.lease['fence']}")
        yield holder
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def submit(queen: Queen, key: str) -> str:
    async with await queen.operator() as client:
        (job,) = await say(client, "/jobs/ctl", f"submit topic=sum key={key}")
    return job


async def finish(queen: Queen, job: str, node: str) -> dict[str, Any]:
    """Take the job's next lease as ``node`` and do it; the lease."""
    async with await queen.worker(node) as client:
        async with await client.open("/pools/brief/next") as fid:
            lease: dict[str, Any] = msgspec.json.decode(await fid.read(0, fid.unit))
        assert job == lease["job"]
        for verb in ("start", f"ack result={node}"):
            await say(client, f"/jobs/{job}/ctl", f"{verb} fence={lease['fence']}")
    return lease


async def check_two_attempts(queen: Queen, job: str, first: str, second: str) -> None:
    """The first lease expired, no earlier than it said, and the second was acknowledged."""
    async with await queen.operator() as client:
        assert ["succeeded", second] == [
            await read(client, f"/jobs/{job}/{name}") for name in ("state", "result")
        ]
        attempts = (await read(client, f"/jobs/{job}/attempts")).splitlines()
    rows = [dict(word.split("=") for word in line.split()[1:]) for line in attempts]
    assert [(first, "1", "expired"), (second, "3", "acked")] == [
        (row["node"], row["fence"], row["end"]) for row in rows
    ]
    times = [parse_rfc3339(rows[0][name]) for name in ("leased", "ended")] + [
        parse_rfc3339(rows[1]["leased"])
    ]
    assert sorted(times) == times
    assert times[1] - times[0] >= 2 * SECOND


# how it is lost; each story has the one job that is queued while it happens


async def stopped(queen: Queen, dialect: Dialect) -> tuple[int, str]:
    """Its process stands still, and goes on when the job is done; how its ack is refused."""
    job = await submit(queen, f"stopped-{dialect.name}")
    async with holding(queen, f"sleeper-{dialect.name.lower()}", dialect) as holder:
        assert job == holder.lease["job"]
        holder.process.send_signal(signal.SIGSTOP)
        lease = await finish(queen, job, "w2")
        assert (1, 2) == (holder.lease["attempt"], lease["attempt"])
        holder.process.send_signal(signal.SIGCONT)
        refusal = await holder.say("ack fence=1 result=late")
        # Not even as itself again, with the newest fence.
        assert "ok" != await holder.say("ack fence=3 result=late")
    await check_two_attempts(queen, job, f"sleeper-{dialect.name.lower()}", "w2")
    return refusal[0], refusal[1]


async def cut(queen: Queen, dialect: Dialect) -> tuple[int, str]:
    """Its connection ends; it comes back on another when the job is done."""
    job = await submit(queen, f"cut-{dialect.name}")
    node = f"cut-{dialect.name.lower()}"
    client = await queen.worker(node, dialect)
    async with await client.open("/pools/brief/next") as fid:
        assert job == msgspec.json.decode(await fid.read(0, fid.unit))["job"]
    await say(client, f"/jobs/{job}/ctl", "start fence=1")
    await client.close()
    await finish(queen, job, "w3")
    await check_two_attempts(queen, job, node, "w3")
    async with await queen.worker(node, dialect) as back:
        return await refused(lambda: say(back, f"/jobs/{job}/ctl", "ack fence=1 result=late"))


async def refused(work: Callable[[], Awaitable[object]]) -> tuple[int, str]:
    with pytest.raises(FsError) as refusal:
        await work()
    return refusal.value.errno, refusal.value.text


async def killed(queen: Queen, dialect: Dialect) -> tuple[int, str]:
    """Its process dies; its successor of the same name has the same job with another fence."""
    job = await submit(queen, f"killed-{dialect.name}")
    node = f"killed-{dialect.name.lower()}"
    async with holding(queen, node, dialect) as holder:
        assert job == holder.lease["job"]
        holder.process.kill()
        await holder.process.wait()
    lease = await finish(queen, job, node)
    assert 3 == lease["fence"]
    await check_two_attempts(queen, job, node, node)
    client: Client
    async with await queen.worker(node, dialect) as client:
        return await refused(lambda: say(client, f"/jobs/{job}/ctl", "ack fence=1 result=late"))


@pytest.mark.slow
def test_a_lost_workers_job_is_done_by_another_and_its_late_word_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with reigning(tmp_path / "hive", *LEASES) as queen, asyncio.timeout(WAIT_S):
            for lose in (stopped, cut, killed):
                for dialect in (Dialect.L, Dialect.U):
                    number, text = await lose(queen, dialect)
                    assert errno.EOWNERDEAD == number
                    # 9P2000.L has no texts.
                    if dialect is Dialect.U:
                        assert text.startswith("fenced: token=1 newest=3")

    uvloop.run(run())
