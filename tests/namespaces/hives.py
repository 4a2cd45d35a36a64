"""A hive in memory for the tests: a manual clock, a ledger in memory, callers of every role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.fs.node import Caller
from skep.namespaces.hive import UNRECORDED, HiveRules, HiveState
from skep.namespaces.live import Hive
from skep.namespaces.policy.core import first_lines
from skep.namespaces.policy.keys import Signer
from skep.trace.clock import ManualClock
from skep.trace.entry import Line
from skep.trace.rules import Decision, Meta
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn
from tests.decided import Written, check_decided

ANN = Caller("unix:ann", "operator")
BOB = Caller("unix:bob", "operator", tenant="other/project/env")
EYE = Caller("unix:eye", "observer")
W1 = Caller("unix:work", "drone-worker", node="w1")
W2 = Caller("unix:work", "drone-worker", node="w2")
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))  # the key of hives that have no directory
FIRST = ("create pool=default", "map topic=sum pool=default")


class Living:
    """A hive and its clock."""

    def __init__(self, hive: Hive, clock: ManualClock) -> None:
        self.hive = hive
        self.clock = clock

    @property
    def state(self) -> HiveState:
        return self.hive.state

    async def write(self, path: str, *lines: str, who: Caller = ANN) -> list[str]:
        """The first word of each reply."""
        return [reply.split(" ")[0] for reply in await self.hive.command(who, path, lines)]

    async def submit(self, more: str = "", who: Caller = ANN) -> str:
        return (await self.write("/jobs/ctl", f"submit topic=sum {more}", who=who))[0]

    async def run(self, job: str, verb: str, who: Caller = W1) -> None:
        """Write a holder's ``verb``, with the newest fence unless it names one."""
        fence = "" if "fence=" in verb else f" fence={self.state.jobs.by_id[job].fence}"
        await self.write(f"/jobs/{job}/ctl", verb + fence, who=who)

    def job_state(self, job: str) -> str:
        return self.state.jobs.by_id[job].state


@asynccontextmanager
async def living(
    directory: Path, ledger: str = ":memory:", clock: ManualClock | None = None, bookmark_s: float = 15.0
) -> AsyncIterator[Living]:
    """A hive with the pool ``default`` for the topic ``sum``, and the nodes w1 and w2 joined. What it wrote
    down is decided again at the end."""
    clock = clock or ManualClock()
    opened = SqliteLedger(ledger)
    turn = Turn(opened, HiveRules(), UNRECORDED)
    hive = Hive(turn, clock, directory, "0.1", bookmark_s)
    await hive.start(FIRST)
    await hive.join(W1)
    await hive.join(W2)
    with closing(opened):
        try:
            yield Living(hive, clock)
        finally:
            await hive.close()
            await turn.close()
        check_decided(Written(opened))


def live(story: Callable[[Living], Awaitable[None]]) -> None:
    """Run a story on a fresh hive."""

    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory)) as alive:
                await story(alive)

    asyncio.run(run())


async def settled() -> None:
    """Whoever can go on has gone on, as far as no disk is waited for."""
    for _ in range(5):
        await asyncio.sleep(0)


class Folded:
    """The rules without a turn: lines decided and applied one after the other."""

    def __init__(self) -> None:
        self.rules = HiveRules()
        self.state = self.rules.fresh()
        self.clock = ManualClock()
        self.seq = 0
        for line in first_lines(self.state.policy, SIGNER.public, SIGNER.sign):
            self.hive("/policy/ctl", line)
        for line in FIRST:
            self.write("/pools/ctl", line)
        for node in ("w1", "w2"):
            self.hive(f"/nodes/{node}", "join principal=unix:work role=drone-worker")

    def write(self, path: str, line: str, who: Caller = ANN) -> str:
        actor = who.principal + (f"#{who.node}" if who.node else "")
        return self._write(actor, who.role, who.tenant, path, line)

    def hive(self, path: str, line: str) -> str:
        return self._write("hive", "hive", "", path, line)

    def _write(self, actor: str, role: str, tenant: str, path: str, line: str) -> str:
        self.seq += 1
        written = Line(actor, role, tenant, path, (line,), self.clock.now_ns(), self.clock.new_id())
        decision: Decision[object, str] = self.rules.decide(self.state, written, 0)
        for event in decision.events:
            self.rules.apply(self.state, event, Meta(self.seq, written.time_ns, written.trace))  # type: ignore[arg-type]
        return decision.reply

    def job_state(self, job: str) -> str:
        return self.state.jobs.by_id[job].state
