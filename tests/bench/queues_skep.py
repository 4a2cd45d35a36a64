"""skep's workers in the comparison with other queues: sessions of one process, each a node of its own.

    python -m tests.bench.queues_skep ADDRESS WORKERS

They use the protocol as docs/BENCHMARKS.md advises: all requests of a step go out in one flight, from fids
that were walked once; start and ack are one write; the next lease is asked for in the flight that
acknowledges the last job; and who has few sessions asks for several leases ahead. A line on stdin is answered
by a line of JSON: lease and ack, ns of each since the last such line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import uvloop

from skep.fs.client import Call
from skep.fs.dial import Client
from skep.fs.messages import Message, Rread, Tlopen, Tread, Twalk, Twrite

READ: Final = 32 * 1024  # bytes: what a lease may have
POOL: Final = "default"
HEARTBEAT_S: Final = 5.0
AHEAD: Final = 16  # leases asked for at a time by the process, at least one by each session


class Lease(msgspec.Struct):
    job: str
    fence: int


LEASE: Final = msgspec.json.Decoder(Lease)


@dataclass
class Steps:
    """Nanoseconds of each lease and each acknowledgement since they were last told."""

    lease: list[int] = field(default_factory=list)
    ack: list[int] = field(default_factory=list)

    def told(self) -> str:
        text = json.dumps({"lease": self.lease, "ack": self.ack})
        self.lease.clear()
        self.ack.clear()
        return text


@dataclass
class Flight:
    """Requests about one new fid that were sent together; ``last`` is the one they are for."""

    fid: int
    last: Call
    began: int


class Worker:
    """A lease, then its acknowledgement with the next lease asked for behind it, for ever. Several may share
    a session. ``next`` and ``jobs`` are fids to walk from."""

    def __init__(self, client: Client, next: int, jobs: int, steps: Steps) -> None:
        self.connection = client.connection
        self.next = next
        self.jobs = jobs
        self.steps = steps

    async def run(self) -> None:
        asked = self._ask()
        while True:
            answer = await self._ended(asked, self.steps.lease)
            assert isinstance(answer, Rread)
            self.connection.clunk(asked.fid)
            said = self._say(LEASE.decode(answer.data))
            # Behind a write a clunk waits for its answer; a read that waits it would end.
            self.connection.clunk(said.fid)
            asked = self._ask()
            await self._ended(said, self.steps.ack)

    async def _ended(self, flight: Flight, took: list[int]) -> Message:
        answer = await self.connection.wait(flight.last)
        took.append(time.perf_counter_ns() - flight.began)
        return answer

    def _ask(self) -> Flight:
        return self._flight(self.next, (), os.O_RDONLY, lambda fid: Tread(fid, 0, READ))

    def _say(self, lease: Lease) -> Flight:
        lines = f"start fence={lease.fence}\nack fence={lease.fence} result=ok\n".encode()
        return self._flight(self.jobs, (lease.job, "ctl"), os.O_WRONLY, lambda fid: Twrite(fid, 0, lines))

    def _flight(
        self, start: int, path: tuple[str, ...], flags: int, last: Callable[[int], Message]
    ) -> Flight:
        fid = self.connection.session.take_fid()
        began = time.perf_counter_ns()
        self.connection.start(Twalk(start, fid, path))
        self.connection.start(Tlopen(fid, flags))
        return Flight(fid, self.connection.start(last(fid)), began)


async def beat(client: Client, node: str) -> None:
    """Say that it is there: a node that says nothing for 15 s gets no lease."""
    async with await client.open(f"/nodes/{node}/heartbeat", "w") as heartbeat:
        while True:
            await heartbeat.write_all(b"{}\n")
            await asyncio.sleep(HEARTBEAT_S)


async def work(where: str, workers: int) -> None:
    steps = Steps()
    clients = [await Client.connect(where, uname=f"w{n}") for n in range(workers)]
    async with asyncio.TaskGroup() as group:
        tasks = []
        for n, client in enumerate(clients):
            tasks.append(group.create_task(beat(client, f"w{n}")))
            next, jobs = await client.walk(f"/pools/{POOL}/next"), await client.walk("/jobs")
            for _ in range(max(1, AHEAD // workers)):
                tasks.append(group.create_task(Worker(client, next.fid, jobs.fid, steps).run()))
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(steps.told(), flush=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], int(sys.argv[2])))
