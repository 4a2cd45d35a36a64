"""A worker of a simulated hive: the loops of `skep worker`, on an uplink that remembers what is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from skep.fs.address import Address
from skep.fs.ctl import parse_line
from skep.fs.errors import FsError
from skep.roles.leased import JobFailed, Lease, Leased
from skep.roles.uplink import Uplink
from skep.roles.worker import Loops, Plan
from skep.sim.drone import CPU, OFFERS, POOLS, SILENT_S, Held, how_of, on_device, written
from skep.sim.history import History
from skep.sim.queen import SPARES, WORKERS
from skep.trace.clock import MS, SECOND

if TYPE_CHECKING:
    from skep.fs.dial import Client

GRACE_S: Final = 3.0  # for what runs when the worker is told to stop
SAID: Final = ("start", "renew", "ack", "nack", "release", "fallback")


class Remembering(Uplink):
    """``past`` is what the node held, in all its lives; ``offers`` tells what its heartbeats say."""

    def __init__(
        self,
        node: str,
        history: History,
        past: list[Held],
        offers: Callable[[], Mapping[str, Any]],
        hive: Address = WORKERS,
    ) -> None:
        super().__init__(hive, node)
        self.history = history
        self.past = past
        self.offers = offers

    async def write(self, path: str, line: str) -> None:
        if path.endswith("/heartbeat"):
            # How busy this machine is, is no part of a seed.
            line = msgspec.json.encode(self.offers()).decode()
        # Of several lines in one write the last one counts: before an end it is said that it ran.
        last = line.splitlines()[-1]
        verb = last.partition(" ")[0]
        if verb not in SAID:
            return await super().write(path, line)
        args = parse_line(last).args
        fence = int(args.pop("fence"))

        async def work(client: Client) -> Any:
            # Said each time anew: of one that was cut off nobody knows whether it was heard.
            said = self.history.ask(self.node, verb, path.split("/")[2], line, fence=fence, **args)
            return await written(self.history, client, said, path)

        return await self.do(work)

    async def wait_read(self, path: str, unless: asyncio.Event | None = None) -> bytes:
        if not path.endswith("/next"):
            return await super().wait_read(path, unless)
        said = self.history.ask(self.node, "lease", path)
        try:
            data = await super().wait_read(path, unless)
        except FsError as error:
            self.history.refused(said, error)
            raise
        if data:
            lease = msgspec.json.decode(data, type=Lease)
            self.history.leased(said, lease.job, lease.fence, lease.attempt)
            self.past.append(Held(lease.job, lease.fence))
        return data


async def perform(leased: Leased) -> str:
    """Do the job as its input says; its result. Raises JobFailed."""
    await leased.begin_on(CPU) if leased.lease.pool in SPARES else await leased.begin()
    sha256, by = await endure(leased), f"{leased.uplink.node}-{leased.lease.fence}"
    return on_device("cpu", by, sha256) if leased.lease.pool in SPARES else by


async def endure(leased: Leased) -> str:
    """Do what has begun; the hash of the artifact that came of it, "": none. Raises JobFailed."""
    lease = leased.lease
    how = how_of(lease.input)
    if how.get("h") == "1" and lease.attempt == 1:
        await asyncio.sleep(SILENT_S)
    await asyncio.sleep(int(how["w"]) * MS / SECOND)
    if how.get("o") == "final":
        raise JobFailed("no way", final=True)
    if lease.attempt <= int(how.get("f", "0")):
        raise JobFailed(f"failed in attempt {lease.attempt}")
    if size := int(how.get("a", "0")):
        return await leased.keep("out", BytesIO(lease.job[-1:].encode() * size))
    return ""


async def labour(
    node: str,
    directory: Path,
    history: History,
    past: list[Held],
    told: asyncio.Event,
    pools: tuple[str, ...] = POOLS,
) -> None:
    """One life of the node, until it is ``told`` to stop."""
    offers = OFFERS[node]
    plan = Plan(
        WORKERS,
        node,
        directory,
        perform,
        pools,
        1,
        None,
        GRACE_S,
        offers.get("labels", {}),
        offers.get("capacity", 0),
        begins=pools != POOLS,
    )
    directory.mkdir(parents=True, exist_ok=True)
    loops = Loops(plan)
    loops.uplink = Remembering(node, history, past, lambda: offers)
    await loops.run(told, lambda said: None)
