"""/locks as files: waiting and giving up, sessions that end, the fence check, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, W1, W2, Living, live, living, settled

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.locks.core import Lock
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.sessions.core import Session
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND, ManualClock

ROOT = Path(__file__).parent.parent.parent
SITTING = Caller("unix:ann", "operator", session="sitting")


def session(caller: Caller) -> Session:
    return Session(caller.session, caller, "peer", 0, lambda: 0, "", lambda: None)


class Client:
    """One caller's open /locks/ctl."""

    def __init__(self, alive: Living, who: Caller = ANN) -> None:
        self.door = Door(hive_tree(alive.hive), who)

    async def say(self, line: str, path: str = "/locks/ctl") -> str:
        """Write the line; the reply's first word."""
        chan = await self.door.open(path, BOTH)
        await say(chan, f"{line}\n")
        return (await rest(chan)).decode().partition(" ")[0].strip()

    async def acquire(self, mode: str = "x", more: str = "") -> str:
        return await self.say(f"acquire name=db mode={mode} ttl=30s {more}")


def lock(alive: Living) -> Lock:
    found = alive.state.locks.find(HIVE_TENANT, "db")
    assert found is not None
    return found


async def wait_queued(alive: Living, count: int) -> None:
    while len(lock(alive).waiters) != count:
        await alive.hive.turn.wait_past(alive.hive.turn.seq)


async def start(alive: Living, who: Caller, mode: str = "x", more: str = "wait=1m") -> asyncio.Task[str]:
    """An acquire that waits."""
    before = len(lock(alive).waiters)
    task = asyncio.ensure_future(Client(alive, who).acquire(mode, more))
    await wait_queued(alive, before + 1)
    return task


async def refusal(doing: object) -> FsError:
    with pytest.raises(FsError) as caught:
        await doing  # type: ignore[misc]
    return caught.value


def test_an_acquire_that_waits_is_answered_when_it_is_granted() -> None:
    async def story(alive: Living) -> None:
        ann = Client(alive)
        assert "1" == await ann.acquire()
        first, second = await start(alive, W1), await start(alive, W2)
        assert "exclusive\n" == await ann.door.read("/locks/db/state")
        told = await ann.door.read("/locks/db/waiters")
        assert ["unix:work#w1", "unix:work#w2"] == [
            line.split("holder=")[1].split(" ")[0] for line in told.splitlines()
        ]
        assert "1" == await ann.say("release name=db fence=1")
        assert "2" == await first
        assert not second.done()
        assert (await ann.door.read("/locks/db/holders")).startswith("2 mode=x holder=unix:work#w1 since=")
        await Client(alive, W1).say("release name=db fence=2")
        assert "3" == await second

    live(story)


def test_who_has_waited_long_enough_is_told_who_is_in_the_way() -> None:
    async def story(alive: Living) -> None:
        await Client(alive).acquire()
        waiting = await start(alive, W1, more="wait=5s")
        alive.clock.advance(5 * SECOND)
        await alive.hive.tick()
        error = await refusal(waiting)
        assert (E.BUSY, "holder=unix:ann until=2023-11-14T22:13:50.000000000Z") == (error.kind, error.detail)
        assert () == lock(alive).waiters

    live(story)


def test_a_write_given_up_is_out_of_the_queue_when_it_ends() -> None:
    async def story(alive: Living) -> None:
        await Client(alive).acquire("s")
        exclusive, shared = await start(alive, W1), await start(alive, W2, "s")
        exclusive.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exclusive
        assert () == lock(alive).waiters
        assert "2" == await shared

    live(story)


def test_a_write_given_up_while_it_is_written_down_or_granted_leaves_nothing() -> None:
    async def story(alive: Living) -> None:
        given_up = 0
        for steps in range(16):
            await Client(alive).acquire()
            release = f"release name=db fence={lock(alive).newest}"
            chan = await Client(alive, W1).door.open("/locks/ctl", BOTH)
            waiting = asyncio.ensure_future(say(chan, "acquire name=db mode=x ttl=30s wait=1m\n"))
            releasing = asyncio.ensure_future(Client(alive).say(release))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting, releasing])
            given_up += waiting.cancelled()
            if not waiting.cancelled():  # it was answered before
                await Client(alive, W1).say(f"release name=db fence={lock(alive).newest}")
            assert ((), ()) == (lock(alive).waiters, lock(alive).holders), steps
        assert given_up

    live(story)


def test_a_session_that_ends_releases_what_it_wanted_released() -> None:
    async def story(alive: Living) -> None:
        alive.hive.sessions.add(session(SITTING))
        mine = Client(alive, SITTING)
        assert ["1", "2"] == [await mine.acquire("s", "session=true"), await mine.acquire("s")]
        assert "session=sitting" in (await mine.door.read("/locks/db/holders")).splitlines()[0]
        alive.hive.sessions.remove("sitting")
        await alive.hive.turn.wait_past(alive.hive.turn.seq)
        assert [2] == [holder.fence for holder in lock(alive).holders]

    live(story)


def test_a_lock_that_came_after_its_sessions_end_is_released_by_the_tick() -> None:
    async def story(alive: Living) -> None:
        alive.hive.sessions.add(session(SITTING))
        acquiring = asyncio.ensure_future(Client(alive, SITTING).acquire("x", "session=true"))
        await settled()
        alive.hive.sessions.remove("sitting")
        await acquiring
        await alive.hive.tick()
        assert () == lock(alive).holders
        await alive.hive.tick()
        assert [] == alive.hive.lock_ends.of_session("sitting")

    live(story)


def test_session_true_needs_a_session_and_is_not_taken_from_anothers_word() -> None:
    async def story(alive: Living) -> None:
        said = (await refusal(Client(alive).acquire("x", "session=true"))).text
        assert "usage: line 1: acquire: session=true: there is no session" == said
        assert "expected one of true false" in (await refusal(Client(alive).acquire("x", "session=s"))).text

    live(story)


def test_a_waiting_acquire_is_the_only_line_of_its_write() -> None:
    async def story(alive: Living) -> None:
        lines = "acquire name=a mode=x ttl=9s\nacquire name=b mode=x ttl=9s"
        assert "1" == await Client(alive).say(lines)
        error = await refusal(Client(alive).say(f"{lines} wait=1s"))
        assert "usage: acquire: wait=: expected a write of one line, this one has 2" == error.text
        # Several at once, or none: nobody holds one while waiting for the other.
        both = "acquire name=c mode=x ttl=9s\nacquire name=a mode=x ttl=9s"
        assert E.BUSY is (await refusal(Client(alive).say(both))).kind
        assert None is alive.state.locks.find(HIVE_TENANT, "c")

    live(story)


def test_a_store_asks_whether_a_fence_is_good() -> None:
    async def story(alive: Living) -> None:
        ann = Client(alive)
        await ann.acquire()
        assert "ok" == await ann.say("name=db fence=1", "/locks/check")
        alive.clock.advance(30 * SECOND)
        for line, said in (
            ("name=db fence=1", "fenced: token=1 newest=1"),
            ("name=never fence=1", "fenced: token=1 newest=1"),
            ("name=db", "usage: line 1: check: fence= is missing, expected check name=<name> fence=<number>"),
        ):
            assert said == (await refusal(ann.say(line, "/locks/check"))).text
        other = await refusal(Client(alive, BOB).say("name=db fence=1", "/locks/check"))
        assert "fenced: token=1 newest=0" == other.text

    live(story)


def test_a_lock_exists_for_its_tenant() -> None:
    async def story(alive: Living) -> None:
        ann, bob = Client(alive), Client(alive, BOB)
        await ann.acquire()
        assert (["ctl", "check", "db"], ["ctl", "check"]) == (
            await ann.door.names("/locks"), await bob.door.names("/locks"),
        )  # fmt: skip
        assert not await bob.door.exists("/locks/db")
        assert "1" == await bob.acquire()
        assert (await ann.door.attr("/locks/db")).qid != (await bob.door.attr("/locks/db")).qid
        assert "" == await bob.door.read("/locks/db/waiters")
        assert "lock." not in await bob.door.read("/events") or "unix:ann" not in await bob.door.read(
            "/events"
        )

    live(story)


def test_a_restart_keeps_the_grants_and_forgets_queues_and_sessions(tmp_path: Path) -> None:
    ledger, clock = str(tmp_path / "ledger"), ManualClock()

    async def before() -> None:
        async with living(tmp_path, ledger, clock) as alive:
            alive.hive.sessions.add(session(SITTING))
            await Client(alive, SITTING).acquire("s", "session=true")
            await Client(alive).acquire("s")
            waiting = await start(alive, W1)
            # As kill -9 does it: nobody is told, nothing is withdrawn.
            await alive.hive.turn.close()
            waiting.cancel()
            await asyncio.wait([waiting])

    async def after() -> None:
        async with living(tmp_path, ledger, clock) as alive:
            assert ([2], ()) == ([holder.fence for holder in lock(alive).holders], lock(alive).waiters)
            await Client(alive).say("release name=db fence=2")
            assert "3" == await Client(alive).acquire()

    asyncio.run(before())
    asyncio.run(after())


HOLDING = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from hives import ANN, living
async def main():
    async with living(Path(sys.argv[2]), sys.argv[2] + "/ledger") as alive:
        for n in range(1000):
            (fence,) = await alive.write("/locks/ctl", "acquire name=db mode=x ttl=1h")
            print(fence, flush=True)
            await alive.write("/locks/ctl", f"release name=db fence={fence}")
asyncio.run(main())
"""


@pytest.mark.slow
def test_no_fence_is_given_twice_whenever_the_hive_is_killed(tmp_path: Path) -> None:
    paths = f"{ROOT}:{Path(__file__).parent}"
    told: list[int] = []
    for lines in (1, 4, 2):
        command = [sys.executable, "-c", HOLDING, paths, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            for _ in range(lines):
                told.append(int(process.stdout.readline()))
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().splitlines()]

        async def free() -> None:
            async with living(tmp_path, str(tmp_path / "ledger")) as alive:
                for holder in lock(alive).holders:
                    await alive.write("/locks/ctl", f"release name=db fence={holder.fence}")

        asyncio.run(free())
    assert len(told) >= 7
    assert sorted(set(told)) == told
