"""The queen of a simulated hive: what roles/queen.py puts together, on made-up time, network and disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.fs.address import Address
from skep.fs.errors import FsError
from skep.fs.server import listen
from skep.namespaces.hive import ANNEX, OPERATOR, UNRECORDED, WORKER, HiveRules
from skep.namespaces.live import Hive
from skep.namespaces.policy.keys import Signer
from skep.namespaces.stored import pack_state, unpack_state
from skep.namespaces.tree import hive_tree
from skep.roles.gate import Doorkeeper
from skep.roles.manifest import Manifest, load
from skep.sim.disk import Disk, SimCommits, SimLedger
from skep.sim.loop import Process
from skep.trace.clock import SECOND
from skep.trace.turn import Turn

OPERATORS: Final = Address("tcp", "127.0.0.1", 1)
WORKERS: Final = Address("tcp", "127.0.0.1", 2)
ANNEXES: Final = Address("tcp", "127.0.0.1", 3)
AGEING_NS: Final = 4 * SECOND  # of every pool
QUEUES: Final = {"slim": 6}  # how many jobs may wait in a pool
CAPACITIES: Final = {"spare": 2}  # how many of a pool may be held
FIRST: Final = (
    "create pool=default lease=5s ageing=4s",
    f"create pool=slim lease=3s ageing=4s queue={QUEUES['slim']}",
    f"create pool=spare lease=5s ageing=4s capacity={CAPACITIES['spare']}",
    "map topic=sum pool=default",
    "map topic=slim pool=slim retries=1",
    "map topic=any pool=default,spare",
)
NEEDS: Final = {"gpu": "gpu", "lab": "annex"}  # what a node of the pool must have; on a CPU it is a drill
SPARES: Final = {f"{pool}-cpu": pool for pool in NEEDS}  # where the jobs of which pool fall back to
# Of a hive with annexes, besides:
LENT: Final = (
    *(f"create pool={spare} lease=4s ageing=4s" for spare in SPARES),
    *(
        f"create pool={pool} requires={need} fallback={pool}-cpu patience=4s lease=4s ageing=4s"
        for pool, need in NEEDS.items()
    ),
    *(f"map topic={pool}.run pool={pool}" for pool in NEEDS),
)
SIGNER: Final = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))  # the same in every run


@dataclass(frozen=True)
class Made:
    """What a queen is made of; another to show that a mistake in it is found."""

    rules: Callable[[], HiveRules] = HiveRules
    turn: Callable[..., Any] = Turn
    commits: Callable[..., Any] = SimCommits


@cache
def manifest(role: str) -> Manifest:
    return load(role)


async def reign(
    process: Process, disk: Disk, directory: Path, made: Made, up: Callable[[Hive], None], lends: bool = False
) -> None:
    """One life of the queen; ``up`` is told when it serves. Ends when its ledger has failed. ``lends``: its
    hive has annexes.

    It goes on from the snapshot that the life before left behind, and leaves one itself."""
    packed, known = disk.snapshot or (b"", 0)
    begun = unpack_state(packed) if packed else None
    turn = made.turn(SimLedger(disk), made.rules(), UNRECORDED, made.commits, begun, known)
    disk.snapshot = pack_state(turn.state), turn.seq
    hive = Hive(turn, process, directory, "sim")
    hive.signer = SIGNER
    try:
        await hive.start((*FIRST, *LENT) if lends else FIRST)
    except FsError:
        return  # the disk; it is started again
    root = hive_tree(hive)
    operators = Doorkeeper(hive, root, manifest(OPERATOR))
    workers = Doorkeeper(hive, root, manifest(WORKER))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listen(operators, OPERATORS))
        await stack.enter_async_context(listen(workers, WORKERS))
        if lends:
            annexes = Doorkeeper(hive, root, manifest(ANNEX))
            await stack.enter_async_context(listen(annexes, ANNEXES))
        up(hive)
        tasks = [asyncio.create_task(hive.run()), asyncio.create_task(turn.wait_failed())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done() and turn.failed is None:
            tasks[0].result()  # a mistake of the hive's own
