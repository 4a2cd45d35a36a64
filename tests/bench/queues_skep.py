"""skep's workers in the comparison with other queues: sessions of one process, each a node of its own.

    python -m tests.bench.queues_skep ADDRESS WORKERS

They use the protocol as docs/BENCHMARKS.md advises: all requests of a step go out in one flight, start and
ack are one write, and the next lease is asked for in the flight that acknowledges the last job. A line on
stdin is answered by a line of JSON: lease and ack, ns of each since the last such line.
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
    """One session: a lease, then its acknowledgement with the next lease asked for behind it, for ever."""

    def __init__(self, client: Client, steps: Steps) -> None:
        self.client = client
        self.connection = client.connection
        self.steps = steps

    async def run(self) -> None:
        asked = self._ask()
        while True:
            answer = await self._ended(asked, self.steps.lease)
            assert isinstance(answer, Rread)
            lease = LEASE.decode(answer.data)
            said = self._say(lease)
            asked = self._ask()
            await self._ended(said, self.steps.ack)

    async def _ended(self, flight: Flight, took: list[int]) -> Message:
        answer = await self.connection.wait(flight.last)
        took.append(time.perf_counter_ns() - flight.began)
        self.connection.clunk(flight.fid)
        return answer

    def _ask(self) -> Flight:
        return self._flight(("pools", POOL, "next"), os.O_RDONLY, lambda fid: Tread(fid, 0, READ))

    def _say(self, lease: Lease) -> Flight:
        lines = f"start fence={lease.fence}\nack fence={lease.fence} result=ok\n".encode()
        return self._flight(("jobs", lease.job, "ctl"), os.O_WRONLY, lambda fid: Twrite(fid, 0, lines))

    def _flight(self, path: tuple[str, ...], flags: int, last: Callable[[int], Message]) -> Flight:
        fid = self.connection.session.take_fid()
        began = time.perf_counter_ns()
        self.connection.start(Twalk(self.client.root.fid, fid, path))
        self.connection.start(Tlopen(fid, flags))
        return Flight(fid, self.connection.start(last(fid)), began)


async def work(where: str, workers: int) -> None:
    steps = Steps()
    clients = [await Client.connect(where, uname=f"w{n}") for n in range(workers)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(Worker(client, steps).run()) for client in clients]
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(steps.told(), flush=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], int(sys.argv[2])))
