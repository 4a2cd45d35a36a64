"""A worker of a simulated hive that misbehaves: it forgets to renew, and says again what it said long ago.

A job's input says how it goes: ``w=<ms it takes>,f=<attempts that fail>,h=1 the first attempt is silent,
o=final,a=<bytes of an artifact>``. Who does jobs as `skep worker` does them is hand.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.roles.uplink import Uplink
from skep.sim.history import UNSURE, History, Said
from skep.sim.queen import SPARES, WORKERS
from skep.trace.clock import MS, SECOND, parse_duration

HEARTBEAT_S: Final = 5.0
CPU: Final = {"device": "cpu"}  # what a start says of a job that has fallen back
AGAIN_S: Final = 1.0  # between tries of what the hive cannot take now
TRIES: Final = 30
SILENT_S: Final = 20.0  # how long a job hangs that hangs: longer than any lease
POOLS: Final = ("default", "default", "slim", "spare")  # a slot each
OFFERS: Final[dict[str, dict[str, Any]]] = {
    "w1": {"capacity": 3, "labels": {"gpu": "1", "zone": "eu"}},
    "w2": {"labels": {"gpu": "2"}},
    "w3": {"capacity": 2},
    "w4": {"capacity": 1, "labels": {"zone": "us"}},
}
PASSING: Final = (E.NOSPACE, E.THROTTLED, E.OVERLOAD, E.BUSY, E.IO)


class Lease(msgspec.Struct, frozen=True):
    """The line of /pools/<p>/next, as far as it is needed here."""

    job: str
    attempt: int
    fence: int
    lease: str
    input: str | None = None  # None: no text
    pool: str = ""  # whose next gave it


async def written(history: History, client: Client, said: Said, path: str) -> str:
    """Write what is said to a ctl file, and read its reply. Raises FsError."""
    async with await client.open(path, "rw") as fid:
        try:
            await fid.write_all(f"{said.line}\n".encode())
        except FsError as error:
            history.refused(said, error)
            raise
        history.answered(said)
        history.told(said, (await fid.read(0, 4096)).decode())
    return said.reply


def on_device(device: str, by: str, sha256: str = "") -> str:
    """The result of a job that asked for a device. ``sha256``: of the artifact that came of it, "": none
    did."""
    out = {"out": {"artifact": "out", "sha256": sha256}} if sha256 else {}
    return msgspec.json.encode({"device": device, "by": by, "out": out}).decode()


def how_of(input: str | None) -> dict[str, str]:
    """What a job's input says of how it goes."""
    return dict(word.split("=") for word in (input or "").split(",") if word)


# What a late holder says besides its fence.
LATE: Final[dict[str, dict[str, str]]] = {
    "ack": {"result": "late"},
    "nack": {"error": "late"},
    "fallback": {"reason": "oom"},
}


@dataclass
class Held:
    """A lease that the node had."""

    job: str
    fence: int


class Drone:
    """The loops of one life of a node; ``past`` is what all its lives held."""

    def __init__(
        self,
        node: str,
        history: History,
        past: list[Held],
        pools: tuple[str, ...] = POOLS,
        hive: Address = WORKERS,
    ) -> None:
        self.node = node
        self.history = history
        self.past = past
        self.pools = pools
        self.hive = hive
        self.uplink = Uplink(hive, node)

    async def run(self) -> None:
        """Until the process dies, or the hive refuses the node."""
        loops = [self.uplink.keep(), self._beat(), *(self._slot(pool) for pool in self.pools)]
        tasks = [asyncio.create_task(loop) for loop in loops]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()

    async def _beat(self) -> None:
        while True:
            try:
                said = msgspec.json.encode(self.offers()).decode()
                await self.uplink.write(f"/nodes/{self.node}/heartbeat", said)
            except FsError as error:
                if error.kind not in PASSING:
                    raise
            await self.wait_beat()

    def offers(self) -> dict[str, Any]:
        """What its heartbeat says now."""
        return OFFERS[self.node]

    async def wait_beat(self) -> None:
        await asyncio.sleep(HEARTBEAT_S)

    async def _slot(self, pool: str) -> None:
        while True:
            said = self.history.ask(self.node, "lease", pool)
            try:
                data = await self.uplink.wait_read(f"/pools/{pool}/next")
            except FsError as error:
                self.history.refused(said, error)
                await asyncio.sleep(AGAIN_S)
                continue
            if data:
                lease = msgspec.structs.replace(msgspec.json.decode(data, type=Lease), pool=pool)
                self.history.leased(said, lease.job, lease.fence, lease.attempt)
                self.past.append(Held(lease.job, lease.fence))
                await self._job(lease)

    async def _job(self, lease: Lease) -> None:
        """Do it, unless it is not ours any more."""
        how = how_of(lease.input)
        work = asyncio.create_task(self.work(lease, how))
        watching = asyncio.create_task(self._watch(lease, how))
        try:
            await asyncio.wait((work, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            watching.cancel()
            await asyncio.wait((work, watching))

    async def work(self, lease: Lease, how: dict[str, str]) -> None:
        if await self.say(lease.job, lease.fence, "start"):
            by = f"{self.node}-{lease.fence}"
            await self.end(lease, how, on_device("cpu", by) if lease.pool in SPARES else by)

    async def end(self, lease: Lease, how: dict[str, str], result: str) -> None:
        """Do what has begun, and say how it ended."""
        silent = how.get("h") == "1" and lease.attempt == 1
        await asyncio.sleep(SILENT_S if silent else int(how["w"]) * MS / SECOND)
        if silent:
            return
        if how.get("o") == "final":
            await self.say(lease.job, lease.fence, "nack", error="no way", final="true")
        elif lease.attempt <= int(how.get("f", "0")):
            await self.say(lease.job, lease.fence, "nack", error=f"failed in attempt {lease.attempt}")
        else:
            await self.say(lease.job, lease.fence, "ack", result=result)

    async def _watch(self, lease: Lease, how: dict[str, str]) -> None:
        """Renew the lease; returns when it is lost, or the job has ended."""
        ended = asyncio.create_task(self._wait_ended(lease.job))
        silent = how.get("h") == "1" and lease.attempt == 1
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=parse_duration(lease.lease) / SECOND / 3)
                if not ended.done() and not silent and not await self.say(lease.job, lease.fence, "renew"):
                    return
        finally:
            ended.cancel()

    async def _wait_ended(self, job: str) -> None:
        """Return when the lease, or the job, has ended."""
        while True:
            try:
                await self.uplink.wait_read(f"/jobs/{job}/wait")
            except FsError as error:
                if error.kind in PASSING:
                    await asyncio.sleep(AGAIN_S)
                    continue
            return

    async def say(self, job: str, fence: int, verb: str, **args: str) -> bool:
        """Write a holder's word until there is an answer; whether it was taken."""
        for _ in range(TRIES):
            try:
                await self.tell(job, fence, verb, **args)
                return True
            except FsError as error:
                if error.kind not in PASSING and error.kind not in UNSURE:
                    return False
            await asyncio.sleep(AGAIN_S)
        return False

    async def tell(self, job: str, fence: int, verb: str, **args: str) -> None:
        """Write a holder's word, once where the answer is a refusal. Raises FsError."""
        text = line(verb, {"fence": str(fence)} | args)

        async def work(client: Client) -> Any:
            said = self.history.ask(self.node, verb, job, text, fence=fence, **args)
            return await written(self.history, client, said, f"/jobs/{job}/ctl")

        try:
            await self.uplink.do(work)
        except FsError as error:
            if verb == "start" and error.kind is E.ILLEGAL_MOVE and "running -> running" in error.detail:
                return  # said before the connection was lost
            raise

    async def haunt(self, held: Held, verb: str) -> None:
        """Say once what an old holder might say."""
        args = LATE.get(verb, {})
        text = line(verb, {"fence": str(held.fence)} | args)
        said = self.history.ask(self.node, verb, held.job, text, fence=held.fence, **args)
        try:
            client = await Client.connect(self.hive, uname=self.node)
        except (OSError, FsError):
            return
        try:
            await written(self.history, client, said, f"/jobs/{held.job}/ctl")
        except ConnectionLost:
            return
        except FsError:
            pass
        await client.close()
