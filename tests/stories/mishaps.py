"""Processes of a hive on machines of a network, what happens to them, and a client that asks until it is
answered.

The queen has one address all the time; whoever was killed comes back as the same.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from people import SKEP, Person, ready
from queens import ROOT

from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError

PAUSE_S = (0.2, 1.0)  # between two mishaps
FULL_S = 0.05  # before a full disk is asked again

Kinds = Mapping[str, Callable[[], Awaitable[None]]]


class Process:
    """A command that goes on, on the machine of a person; what it says is appended to ``said`` there."""

    def __init__(self, person: Person, *words: str) -> None:
        self.person = person
        self.name = person.machine.name
        self.words = words
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        with (self.person.home / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [*self.person.machine.prefix, *self.words],
                env=self.person.env, stdout=said, stderr=said, cwd=ROOT,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process is not None:  # it was begun
            self.process.kill()
            self.process.wait()

    async def stop(self, seconds: float) -> None:
        """It does nothing for so long, and does not know."""
        self.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.signal(signal.SIGCONT)


class Queen:
    """The queen's process on its machine, at one address all the time."""

    def __init__(self, person: Person, directory: Path) -> None:
        self.person = person
        self.directory = directory
        self.socket = f"unix:{directory}/hive.sock"
        self.address = f"tls:{person.machine.address}:0"  # until the system has picked a port
        self.process: subprocess.Popen[str] | None = None
        self.serves = asyncio.Event()

    async def begin(self) -> None:
        with (self.person.home / "said").open("a") as said:
            self.process = subprocess.Popen(
                [
                    *self.person.machine.prefix, *SKEP, "serve", "--dir", str(self.directory),
                    "--listen", self.socket, "--listen", self.address,
                ],
                env=self.person.env, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            )  # fmt: skip
        self.address = await asyncio.to_thread(ready, self.process)
        self.serves.set()

    def kill(self) -> None:
        assert self.process is not None
        self.serves.clear()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    async def operator(self) -> Client:
        return await Client.connect(self.socket)

    def enroll(self, person: Person, role: str) -> None:
        """The person's machine becomes a node of the hive, by its name."""
        invited = ("-H", self.socket, "--role", role, "--node", person.machine.name)
        invite = self.person.does("invite", *invited).strip()
        person.does("enroll", self.address, "--invite", "-", stdin=f"{invite}\n")


class Asking:
    """An operator's connection; whoever gets no answer asks again."""

    def __init__(self, queen: Queen) -> None:
        self.queen = queen
        self.client: Client | None = None
        self.lost = 0  # answers that never came
        self.full = 0  # refusals for want of space

    async def asks(self, work: Callable[[Client], Awaitable[Any]]) -> Any:
        while True:
            await self.queen.serves.wait()
            try:
                if self.client is None:
                    self.client = await self.queen.operator()
                return await work(self.client)
            except (ConnectionLost, OSError):
                self.lost += 1
                await self.close()
            except FsError as error:
                if error.kind is not E.NOSPACE:
                    raise
                # The disk is full for a moment.
                self.full += 1
                await asyncio.sleep(FULL_S)

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()


async def happen(kinds: Kinds, rounds: int, rng: random.Random) -> Counter[str]:
    """Every kind of mishap once a round, in any order; how many there were of each."""
    count: Counter[str] = Counter()
    for _ in range(rounds):
        for kind in rng.sample(sorted(kinds), len(kinds)):
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            await kinds[kind]()
            count[kind] += 1
    return count
