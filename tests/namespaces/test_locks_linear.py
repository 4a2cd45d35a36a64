"""Clients of a live hive over a socket, some cut off in the middle of a call: what they were told of a lock
is what one lock, used by one after the other, could have told. A hive that lies is found out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hives import FIRST
from msgspec.structs import replace

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.server import listen
from skep.namespaces.hive import UNRECORDED, Event, HiveRules, HiveState
from skep.namespaces.live import Hive
from skep.namespaces.locks.core import Granted
from skep.namespaces.tree import hive_tree
from skep.roles.gate import Doorkeeper
from skep.roles.manifest import load
from skep.sim.linear import LOCK, NEVER, Object, Op, linearization
from skep.trace.clock import ManualClock
from skep.trace.rules import Meta
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn

CLIENTS = 4
ROUNDS = 14  # operations of each
KILLS = 4


class Serving:
    """A hive that listens; ``ops`` is what its clients did and were told."""

    def __init__(self, hive: Hive, address: str) -> None:
        self.hive = hive
        self.address = address
        self.ops: list[Op] = []
        self.moment = 0
        self.clients = 0
        self.kills = KILLS
        self.fences = 0

    def now(self) -> int:
        self.moment += 1
        return self.moment

    async def ask(self, caller: Calling, asked: tuple[Any, ...], path: str, line: str) -> Any:
        """The answer; None: it was cut off."""
        called, answer = self.now(), None
        try:
            answer = await caller.say(path, line)
            self.ops.append(Op(caller.number, asked, answer, called, self.now()))
        finally:
            if answer is None:
                self.ops.append(Op(caller.number, asked, None, called))
        return answer


class Calling:
    """One session."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number

    async def say(self, path: str, line: str) -> Any:
        """The fence, "ok", BUSY or FENCED."""
        async with await self.client.open(path, "rw") as file:
            try:
                await file.write(0, f"{line}\n".encode())
            except FsError as error:
                if error.kind in (E.BUSY, E.FENCED):
                    return error.kind.name
                raise
            word = (await file.read(0, 4096)).decode().split()[0]
        return int(word) if word.isdigit() else word


@asynccontextmanager
async def serving(rules: HiveRules) -> AsyncIterator[Serving]:
    with TemporaryDirectory() as directory:
        ledger = SqliteLedger(":memory:")
        turn = Turn(ledger, rules, UNRECORDED)
        hive = Hive(turn, ManualClock(), Path(directory), "0.1")
        await hive.start(FIRST)
        keeper = Doorkeeper(hive, hive_tree(hive), load("operator"))
        address = f"unix:{directory}/hive.sock"
        async with listen(keeper, address):
            yield Serving(hive, address)
        await hive.close()
        await turn.close()
        ledger.close()


async def connect(at: Serving) -> Calling:
    at.clients += 1
    number = at.clients  # others connect meanwhile
    return Calling(await Client.connect(at.address), number)


async def work(at: Serving, seed: str) -> None:
    """One client's life: it acquires, checks and releases, guesses fences, and is cut off at times."""
    chance = random.Random(seed)
    caller, held = await connect(at), 0
    for _ in range(ROUNDS):
        match chance.choice(("acquire", "acquire", "release", "check", "guess", "die")):
            case "acquire" if not held:
                held, cut = await acquire(at, caller, chance)
                if cut:
                    caller = await connect(at)
            case "release" if held:
                await at.ask(caller, ("release", held), "/locks/ctl", f"release name=db fence={held}")
                held = 0
            case "check":
                await check(at, caller, held)
            case "guess":
                await check(at, caller, chance.randint(1, at.fences + 1))
            case "die" if at.kills:
                await die(at, caller)
                caller, held = await connect(at), 0
    if held:
        await at.ask(caller, ("release", held), "/locks/ctl", f"release name=db fence={held}")
    await die(at, caller)


async def check(at: Serving, caller: Calling, fence: int) -> None:
    await at.ask(caller, ("check", fence), "/locks/check", f"name=db fence={fence}")


async def acquire(at: Serving, caller: Calling, chance: random.Random) -> tuple[int, bool]:
    """The fence, 0: it is busy; and whether the session was cut off meanwhile."""
    mode, wait = chance.choice("xs"), chance.choice(("", "wait=1h"))
    line = f"acquire name=db mode={mode} ttl=1h session=true {wait}"
    asking = asyncio.ensure_future(at.ask(caller, ("acquire", mode), "/locks/ctl", line))
    if wait and at.kills and chance.random() < 0.5:
        for _ in range(chance.randint(0, 30)):
            await asyncio.sleep(0)
        if not asking.done():
            await die(at, caller)
            await asyncio.wait([asking])
            assert asking.exception() is None or isinstance(asking.exception(), FsError | OSError)
            return 0, True
    answer = await asking
    if answer == "BUSY":
        return 0, False
    at.fences = max(at.fences, answer)
    return answer, False


async def die(at: Serving, caller: Calling) -> None:
    """Cut the session off."""
    at.kills -= 1
    at.ops.append(Op(caller.number, ("die",), None, at.now()))
    await caller.client.close()


async def history(seed: int, rules: HiveRules) -> list[Op]:
    """What the clients of a hive were told, and one who comes last and finds the lock free."""
    async with serving(rules) as at:
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(work(at, f"{seed} {n}")) for n in range(CLIENTS)]
            # What was being written when its session ended is taken back by the hive's clock.
            while not all(client.done() for client in working):
                await at.hive.tick()
                await asyncio.sleep(0)
        while at.hive.sessions.by_id:
            await asyncio.sleep(0)
        await at.hive.tick()
        last = await connect(at)
        await at.ask(last, ("acquire", "x"), "/locks/ctl", "acquire name=db mode=x ttl=1h")
        await last.client.close()
    return at.ops


def explained(seed: int, rules: HiveRules | None = None) -> bool:
    async def run() -> list[Op]:
        async with asyncio.timeout(60):
            return await history(seed, rules or HiveRules())

    return linearization(asyncio.run(run()), LOCK) is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_what_clients_were_told_is_what_one_lock_could_have_told(seed: int) -> None:
    assert explained(seed), f"seed {seed}"


class Forgetful(HiveRules):
    """Forgets, now and then, who has just been granted the lock."""

    def apply(self, state: HiveState, event: Event, meta: Meta) -> None:
        super().apply(state, event, meta)
        if isinstance(event, Granted) and event.fences[0] % 2:
            locks = state.locks.by_tenant[event.tenant]
            # Whoever waits would wait for ever, and there would be no history.
            if not locks[event.lock].waiters:
                locks[event.lock] = replace(locks[event.lock], holders=())


class Recounting(HiveRules):
    """Counts its fences from the beginning, after each grant."""

    def apply(self, state: HiveState, event: Event, meta: Meta) -> None:
        super().apply(state, event, meta)
        if isinstance(event, Granted):
            locks = state.locks.by_tenant[event.tenant]
            locks[event.lock] = replace(locks[event.lock], newest=0)
            state.locks.newest[event.tenant] = 0


@pytest.mark.slow
@pytest.mark.parametrize("rules", [Forgetful, Recounting])
def test_a_hive_that_lies_is_found_out(rules: type[HiveRules]) -> None:
    assert not all(explained(seed, rules()) for seed in range(8))


# the checker


def told(*ops: tuple[int, tuple[Any, ...], Any, int, int]) -> bool:
    return linearization([Op(*op) for op in ops], LOCK) is not None


def test_one_after_the_other_is_as_it_was_told() -> None:
    first = (1, ("acquire", "x"), 1, 1, 2)
    assert told(first, (1, ("release", 1), 1, 3, 4), (2, ("acquire", "x"), 2, 5, 6))
    assert not told(first, (2, ("acquire", "x"), 2, 3, 4), (1, ("release", 1), 1, 5, 6))
    assert not told(first, (1, ("release", 1), 1, 3, 4), (2, ("acquire", "x"), 1, 5, 6))
    assert not told(first, (1, ("release", 1), 1, 3, 4), (2, ("acquire", "x"), "BUSY", 5, 6))


def test_what_overlaps_may_have_been_in_either_order() -> None:
    first, second = (1, ("acquire", "x"), 1, 1, 2), (2, ("acquire", "x"), 2, 3, 8)
    assert told(first, second, (1, ("release", 1), 1, 4, 5))
    assert not told(first, second, (1, ("release", 1), 1, 9, 10))
    assert told((1, ("acquire", "x"), 2, 1, 9), (2, ("acquire", "x"), 1, 1, 9), (2, ("release", 1), 1, 2, 9))


def test_what_was_never_answered_may_have_been_done_or_not() -> None:
    cut = (1, ("acquire", "x"), None, 1, NEVER)
    assert told(cut, (2, ("acquire", "x"), "BUSY", 2, 3))
    assert told(cut, (2, ("acquire", "x"), 1, 2, 3))
    assert not told(cut, (2, ("acquire", "x"), "BUSY", 2, 3), (2, ("acquire", "x"), 1, 4, 5))
    death = (1, ("die",), None, 2, NEVER)
    assert told(cut, death, (2, ("acquire", "x"), "BUSY", 2, 3), (2, ("acquire", "x"), 2, 4, 5))


def test_a_fence_that_was_not_told_may_be_guessed() -> None:
    """Of a lock that was granted, and is free again when its holder's death is noticed."""
    before, cut = (1, ("acquire", "s"), 2, 1, 2), (2, ("acquire", "s"), None, 3, NEVER)
    assert told(before, cut, (3, ("check", 3), "ok", 4, 5), (3, ("check", 4), "FENCED", 6, 7))
    assert not told(before, cut, (3, ("check", 3), "ok", 4, 5), (3, ("check", 4), "ok", 6, 7))
    assert not told(before, cut, (3, ("check", 1), "ok", 4, 5))
    assert not told(before, (3, ("check", 3), "ok", 4, 5))
    assert not told(before, cut, (3, ("check", 3), "ok", 4, 5), (4, ("acquire", "s"), 3, 6, 7))


def test_other_objects_are_checked_the_same() -> None:
    """A register, as the sources have it."""
    register: Object[int] = Object(
        0, lambda value, op: [op.asked[1]] if op.asked[0] == "write" else [value] * (op.answer == value)
    )
    write = Op(1, ("write", 1), "ok", 1, 6)
    assert linearization([write, Op(2, ("read",), 1, 2, 3), Op(2, ("read",), 1, 4, 5)], register)
    assert not linearization([write, Op(2, ("read",), 1, 2, 3), Op(2, ("read",), 0, 4, 5)], register)
