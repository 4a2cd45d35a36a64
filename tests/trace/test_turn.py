from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_check import grow
from registers import Broke, Event, Register, Registers, Reply, Set, State, line

from skep.trace.entry import ENTRY_MAX, OK, Entry, canonical, entry_decoder, entry_of
from skep.trace.ledger import Ledger, LedgerBusy, LedgerError, LedgerFull, LedgerTampered
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import BATCH_MAX, WAITING_MAX, Done, Refused, Turn, TurnStopped

RegisterTurn = Turn[State, Event, Reply]
decode = entry_decoder(dict).decode


class HeldLedger(SqliteLedger):
    """A ledger in memory whose commits wait until they are let go, or fail as told."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.go = Flag()
        self.reached = Flag()
        self.commits = 0
        self.failure: Exception | None = None

    def commit(self) -> None:
        self.reached.set()
        self.go.wait()
        if self.failure is not None:
            raise self.failure
        self.commits += 1
        super().commit()


@asynccontextmanager
async def turn_on(ledger: Ledger, unrecorded: frozenset[str] = frozenset()) -> AsyncIterator[RegisterTurn]:
    turn: RegisterTurn = Turn(ledger, Registers(), unrecorded)
    try:
        yield turn
    finally:
        await turn.close()
        ledger.close()


def in_memory(story: Callable[[RegisterTurn], Awaitable[None]]) -> None:
    async def run() -> None:
        async with turn_on(SqliteLedger(":memory:"), frozenset({"MISSING"})) as turn:
            await story(turn)

    asyncio.run(run())


def held(story: Callable[[RegisterTurn, HeldLedger], Awaitable[None]]) -> None:
    async def run() -> None:
        ledger = HeldLedger()
        async with turn_on(ledger) as turn:
            try:
                await story(turn, ledger)
            finally:
                ledger.go.set()

    asyncio.run(run())


def entries(turn: RegisterTurn) -> list[Entry[dict[str, Any]]]:
    return [decode(body) for _, body in turn.read(0)]


def values(state: State) -> dict[str, float | None]:
    return {name: register.value for name, register in state.items()}


async def start(coroutine: Coroutine[Any, Any, Done[Reply]]) -> asyncio.Task[Done[Reply]]:
    """A task that has run to its first wait."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


async def reached(ledger: HeldLedger) -> None:
    """A batch is in its commit."""
    await asyncio.to_thread(ledger.reached.wait)
    ledger.reached.clear()


def test_a_write_is_answered_recorded_and_applied() -> None:
    async def story(turn: RegisterTurn) -> None:
        written = line("set a 1")
        assert await turn.submit(written) == Done(1, written.trace, (written.trace,))
        assert turn.state == {"a": Register(1.0, 1, written.time_ns, written.trace)}
        (entry,) = entries(turn)
        assert entry.written() == written
        assert (entry.seq, entry.outcome.code) == (1, "ok")
        assert entry.events == ({"type": "register.set", "name": "a", "value": 1.0},)

    in_memory(story)


def test_each_line_of_a_write_sees_the_lines_before_it() -> None:
    async def story(turn: RegisterTurn) -> None:
        done = await turn.submit(line("add a 1", "add a 2", "need a 3", "add a 4"))
        assert done.replies == (1.0, 3.0, None, 7.0)
        assert (turn.seq, values(turn.state)) == (1, {"a": 7.0})

    in_memory(story)


def test_a_refused_line_takes_its_whole_write_back() -> None:
    async def story(turn: RegisterTurn) -> None:
        await turn.submit(line("set a 1"))
        written = line("set a 2", "set b 2", "need a 9", "set c 2")
        with pytest.raises(Refused) as refused:
            await turn.submit(written)
        assert (refused.value.code, refused.value.text) == ("CONFLICT", "conflict: a is 2.0")
        assert (refused.value.trace, refused.value.k, refused.value.seq) == (written.trace, 2, 2)
        assert values(turn.state) == {"a": 1.0}
        entry = entries(turn)[1]
        assert msgspec.to_builtins(entry.outcome) == {
            "code": "CONFLICT",
            "text": "conflict: a is 2.0",
            "k": 2,
        }
        assert entry.events == ()
        assert (await turn.submit(line("add a 1"))).replies == (2.0,)

    in_memory(story)


def test_a_refusal_that_is_not_recorded_leaves_no_entry() -> None:
    async def story(turn: RegisterTurn) -> None:
        with pytest.raises(Refused, match="MISSING") as refused:
            await turn.submit(line("set a 1", "hide"))
        assert refused.value.seq is None
        assert (turn.seq, turn.state, turn.read(0)) == (0, {}, [])

    in_memory(story)


def test_an_entry_too_large_is_refused_and_the_refusal_recorded() -> None:
    async def story(turn: RegisterTurn) -> None:
        with pytest.raises(Refused, match=f"too large: max={ENTRY_MAX}") as refused:
            await turn.submit(line("set a 1", f"note {ENTRY_MAX}"))
        assert (refused.value.code, refused.value.seq) == ("TOOBIG", 1)
        assert turn.state == {}

    in_memory(story)


def test_a_line_too_large_to_record_is_refused_all_the_same() -> None:
    async def story(turn: RegisterTurn) -> None:
        with pytest.raises(Refused, match="TOOBIG") as refused:
            await turn.submit(line("set a 1", "note 1 " + "x" * ENTRY_MAX))
        assert (refused.value.seq, turn.seq, turn.state) == (None, 0, {})

    in_memory(story)


# A mistake in the rules is heard by who ran into it; the others of its batch are served.
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("bug", ZeroDivisionError),
        ("break", ZeroDivisionError),
        ("set a wrong", ValueError),
        ("set \udcff 1", UnicodeEncodeError),
    ],
)
def test_a_mistake_in_the_rules_is_nobody_elses(words: str, error: type[Exception]) -> None:
    async def story(turn: RegisterTurn) -> None:
        answers = await asyncio.gather(
            turn.submit(line("add a 1")),
            turn.submit(line("add a 10", words)),
            turn.submit(line("add a 100")),
            return_exceptions=True,
        )
        assert isinstance(answers[1], error)
        assert values(turn.state) == {"a": 101.0}
        assert (turn.seq, turn.failed) == (2, None)

    in_memory(story)


def test_what_json_cannot_say_is_applied_as_it_will_be_read() -> None:
    async def story(turn: RegisterTurn) -> None:
        await turn.submit(line("set a nan"))
        assert turn.state["a"].value is None

    in_memory(story)


# Group commit.


def test_lines_that_come_during_a_commit_are_the_next_batch() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        first = await start(turn.submit(line("add a 1")))
        await reached(ledger)
        rest = [await start(turn.submit(line("add a 1"))) for _ in range(50)]
        ledger.go.set()
        assert (await first).replies == (1.0,)
        assert [done.replies for done in await asyncio.gather(*rest)] == [(float(n),) for n in range(2, 52)]
        assert (ledger.commits, turn.seq) == (2, 51)

    held(story)


def test_lines_of_one_step_of_the_loop_share_a_commit() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        ledger.go.set()
        await asyncio.gather(*(turn.submit(line("add a 1")) for _ in range(20)))
        assert (ledger.commits, values(turn.state)) == (1, {"a": 20.0})

    held(story)


def test_a_batch_has_its_limit() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        ledger.go.set()
        await asyncio.gather(*(turn.submit(line("add a 1")) for _ in range(BATCH_MAX + 1)))
        assert (ledger.commits, values(turn.state)) == (2, {"a": BATCH_MAX + 1.0})

    held(story)


def test_a_batch_has_its_limit_in_bytes() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        ledger.go.set()
        await asyncio.gather(*(turn.submit(line("note 60000")) for _ in range(100)))
        assert ledger.commits == 2

    held(story)


def test_no_reader_sees_what_is_not_on_disk() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        task = await start(turn.submit(line("set a 1")))
        await reached(ledger)
        assert (turn.seq, turn.state, turn.read(0), task.done()) == (0, {}, [], False)
        ledger.go.set()
        await task
        assert (turn.seq, values(turn.state), len(turn.read(0))) == (1, {"a": 1.0}, 1)

    held(story)


def test_a_refusal_in_a_batch_keeps_the_lines_before_it() -> None:
    async def story(turn: RegisterTurn) -> None:
        answers = await asyncio.gather(
            turn.submit(line("add a 1")),
            turn.submit(line("add a 10", "need a 0")),
            turn.submit(line("add a 100")),
            return_exceptions=True,
        )
        assert [getattr(answer, "replies", "refused") for answer in answers] == [(1.0,), "refused", (101.0,)]
        assert values(turn.state) == {"a": 101.0}
        assert [entry.outcome.code for entry in entries(turn)] == ["ok", "CONFLICT", "ok"]

    in_memory(story)


@pytest.mark.slow
def test_too_many_that_wait_are_told_to_come_back() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        tasks = [asyncio.ensure_future(turn.submit(line("hide"))) for _ in range(WAITING_MAX + 1)]
        ledger.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        codes = [answer.code for answer in answers if isinstance(answer, Refused)]
        assert (codes.count("MISSING"), codes.count("THROTTLED")) == (WAITING_MAX, 1)

    held(story)


# Cancellation.


def test_a_write_cancelled_before_its_turn_never_happens() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        first = await start(turn.submit(line("add a 1")))
        await reached(ledger)
        second = await start(turn.submit(line("add a 10")))
        third = await start(turn.submit(line("add a 100")))
        second.cancel()
        ledger.go.set()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.gather(first, third)
        assert (turn.seq, values(turn.state)) == (2, {"a": 101.0})

    held(story)


def test_a_write_cancelled_during_its_commit_is_answered() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        task = await start(turn.submit(line("add a 1")))
        await reached(ledger)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        ledger.go.set()
        assert (await task).replies == (1.0,)
        assert values(turn.state) == {"a": 1.0}

    held(story)


def test_a_write_cancelled_as_its_answer_leaves_is_answered() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        task = await start(turn.submit(line("add a 1")))

        def listen(entries: list[Entry[Event]]) -> None:
            task.cancel()

        turn.on_commit.append(listen)
        ledger.go.set()
        assert (await task).replies == (1.0,)

    held(story)


# What goes wrong below.


def test_a_full_disk_refuses_the_batch_and_the_turn_goes_on() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        ledger.go.set()
        await turn.submit(line("set a 1"))
        ledger.failure = LedgerFull("disk")
        answers = await asyncio.gather(
            turn.submit(line("add a 1")), turn.submit(line("need a 9")), return_exceptions=True
        )
        assert [answer.code for answer in answers if isinstance(answer, Refused)] == ["NOSPACE", "NOSPACE"]
        assert (turn.seq, values(turn.state), turn.failed) == (1, {"a": 1.0}, None)
        ledger.failure = None
        assert (await turn.submit(line("add a 1"))).replies == (2.0,)
        assert [entry.seq for entry in entries(turn)] == [1, 2]

    held(story)


def test_a_failed_commit_stops_the_turn() -> None:
    async def story(turn: RegisterTurn, ledger: HeldLedger) -> None:
        ledger.failure = LedgerError("input/output error")
        follower = asyncio.ensure_future(turn.wait_past(0))
        first = await start(turn.submit(line("set a 1")))
        await reached(ledger)
        second = await start(turn.submit(line("set a 2")))
        ledger.go.set()
        for waiting in (first, second, follower, turn.submit(line("set a 3")), turn.wait_past(0)):
            with pytest.raises(TurnStopped, match="input/output error"):
                await waiting
        assert await turn.wait_failed() is ledger.failure
        assert (turn.seq, turn.state) == (0, {})

    held(story)


class LoopCommits:
    """Commits that run on the loop, a step later; they fail, or do not begin, as told."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.failure: Exception | None = None
        self.refusal: Exception | None = None
        self.ended = False

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        if self.refusal is not None:
            raise self.refusal
        asyncio.get_running_loop().call_soon(self._run, done)

    def _run(self, done: Callable[[Exception | None], None]) -> None:
        if self.failure is None:
            self.ledger.commit()
        done(self.failure)

    def end(self) -> None:
        self.ended = True

    def wait_ended(self) -> None:
        assert self.ended


@asynccontextmanager
async def turn_by_loop() -> AsyncIterator[tuple[RegisterTurn, LoopCommits]]:
    ledger = SqliteLedger(":memory:")
    commits = LoopCommits(ledger)
    turn: RegisterTurn = Turn(ledger, Registers(), commits=lambda ledger: commits)
    async with asyncio.timeout(10):
        yield turn, commits
        await turn.close()
    ledger.close()


def test_commits_of_another_loop_fail_as_those_of_the_thread_do() -> None:
    async def run() -> None:
        async with turn_by_loop() as (turn, commits):
            assert (await turn.submit(line("set a 1"))).seq == 1
            commits.failure = LedgerFull("disk")
            with pytest.raises(Refused, match="NOSPACE"):
                await turn.submit(line("add a 1"))
            commits.failure = None
            assert (await turn.submit(line("add a 1"))).replies == (2.0,)
            commits.failure = LedgerError("input/output error")
            with pytest.raises(TurnStopped, match="input/output error"):
                await turn.submit(line("add a 1"))
            assert (turn.seq, values(turn.state)) == (2, {"a": 2.0})

    asyncio.run(run())


def test_a_turn_whose_commit_does_not_begin_ends() -> None:
    async def run() -> None:
        async with turn_by_loop() as (turn, commits):
            commits.refusal = RuntimeError("no thread")
            with pytest.raises(TurnStopped, match="no thread"):
                await turn.submit(line("set a 1"))
            assert turn.seq == 0

    asyncio.run(run())


@pytest.mark.slow
def test_a_full_queue_behind_a_disk_that_fills_and_empties_answers_everybody() -> None:
    async def run() -> None:
        async with turn_by_loop() as (turn, commits):
            asked = [asyncio.ensure_future(turn.submit(line("add a 1"))) for _ in range(WAITING_MAX + 99)]
            commits.failure = LedgerFull("disk")
            while not any(each.done() and "NOSPACE" in str(each.exception()) for each in asked):
                await asyncio.sleep(0)
            commits.failure = None
            answers = await asyncio.gather(*asked, return_exceptions=True)
            codes = Counter(each.code if isinstance(each, Refused) else "ok" for each in answers)
            assert (99, 0) == (codes["THROTTLED"], codes["NOSPACE"] % BATCH_MAX)
            assert codes["NOSPACE"] >= BATCH_MAX
            assert codes["ok"] == turn.state["a"].value == WAITING_MAX - codes["NOSPACE"]

    asyncio.run(run())


def test_a_closed_turn_takes_nothing_more() -> None:
    async def run() -> None:
        ledger = HeldLedger()
        turn: RegisterTurn = Turn(ledger, Registers())
        first = await start(turn.submit(line("set a 1")))
        await reached(ledger)
        second = await start(turn.submit(line("set a 2")))
        closing_task = asyncio.ensure_future(turn.close())
        await asyncio.sleep(0)
        assert not closing_task.done()
        ledger.go.set()
        await closing_task
        assert (await first).seq == 1
        for waiting in (second, turn.submit(line("set a 3"))):
            with pytest.raises(TurnStopped, match="closed"):
                await waiting
        ledger.close()

    asyncio.run(run())


def test_a_turn_closed_under_load_answers_everybody(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")

    async def run() -> None:
        answered: list[int] = []

        async def write_on() -> None:
            while True:
                answered.append((await turn.submit(line("add a 1"))).seq)

        async with turn_on(SqliteLedger(path)) as turn:
            writers = [asyncio.ensure_future(write_on()) for _ in range(20)]
            await turn.wait_past(100)
        ends = await asyncio.gather(*writers, return_exceptions=True)
        assert [type(end) for end in ends] == [TurnStopped] * 20
        async with turn_on(SqliteLedger(path)) as again:
            assert sorted(answered) == list(range(1, again.seq + 1))

    asyncio.run(run())


class BusyLedger(SqliteLedger):
    """A ledger that another process never lets go."""

    def begin(self) -> None:
        raise LedgerBusy("begin")


def test_a_process_that_keeps_its_turn_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.trace.turn.BUSY_STEPS_MAX", 5)

    async def run() -> None:
        async with turn_on(BusyLedger(":memory:")) as turn:
            answers = await asyncio.gather(
                turn.submit(line("add a 1")), turn.submit(line("add a 1")), return_exceptions=True
            )
            assert [answer.code for answer in answers if isinstance(answer, Refused)] == ["BUSY", "BUSY"]
            assert turn.failed is None

    asyncio.run(run())


# Following.


def test_followers_and_listeners_hear_of_each_commit() -> None:
    async def story(turn: RegisterTurn) -> None:
        heard: list[tuple[int, tuple[Event, ...], float | None]] = []

        def listen(entries: list[Entry[Event]]) -> None:
            heard.extend((entry.seq, entry.events, turn.state["a"].value) for entry in entries)

        turn.on_commit.append(listen)
        follower = asyncio.ensure_future(turn.wait_past(1))
        await turn.submit(line("set a 1"))
        assert not follower.done()
        await turn.submit(line("set a 2"))
        await follower
        await turn.wait_past(1)
        assert heard == [(1, (Set("a", 1.0),), 1.0), (2, (Set("a", 2.0),), 2.0)]
        assert [seq for seq, _ in turn.read(1)] == [2]

    in_memory(story)


def test_a_follower_that_leaves_is_forgotten() -> None:
    async def story(turn: RegisterTurn) -> None:
        follower = asyncio.ensure_future(turn.wait_past(0))
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        await turn.submit(line("set a 1"))
        await turn.wait_past(0)

    in_memory(story)


# Two turns on one file stand for two processes.


@asynccontextmanager
async def two_turns(tmp_path: Path) -> AsyncIterator[tuple[RegisterTurn, RegisterTurn]]:
    path = str(tmp_path / "ledger.db")
    async with turn_on(SqliteLedger(path)) as one, turn_on(SqliteLedger(path)) as other:
        yield one, other


def test_two_turns_decide_on_one_history(tmp_path: Path) -> None:
    async def write(turn: RegisterTurn, count: int) -> None:
        for _ in range(count):
            await turn.submit(line("add a 1"))

    async def run() -> None:
        async with two_turns(tmp_path) as (one, other):
            await asyncio.gather(write(one, 60), write(one, 60), write(other, 60), write(other, 60))
            await other.submit(line("need a 240"))
            await one.submit(line("need a 240"))
            other.refresh()
            assert one.state == other.state
            assert one.read(0) == other.read(0)
            assert one.ledger.root == other.ledger.root

    asyncio.run(run())


def test_a_follower_hears_of_another_turns_commit(tmp_path: Path) -> None:
    async def run() -> None:
        async with two_turns(tmp_path) as (one, other):
            heard: list[int] = []
            other.on_commit.append(lambda entries: heard.extend(entry.seq for entry in entries))
            follower = asyncio.ensure_future(other.wait_past(0))
            await one.submit(line("set a 1"))
            await asyncio.wait_for(follower, 10)
            assert (heard, values(other.state)) == ([1], {"a": 1.0})

    asyncio.run(run())


def test_a_turn_waits_for_another_process_to_end_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        path = str(tmp_path / "ledger.db")
        with closing(SqliteLedger(path)) as other:
            async with turn_on(SqliteLedger(path)) as turn:
                other.begin()
                task = await start(turn.submit(line("add a 1")))
                await asyncio.wait({task}, timeout=0.02)
                assert not task.done()
                other.rollback()
                assert (await task).replies == (1.0,)

    asyncio.run(run())


# Folding.

writes = st.lists(
    st.lists(
        st.sampled_from(
            ["set a 1", "set b nan", "add a 2", "add b 1", "need a 3", "need b 0", "hide", "bug"]
        ),
        min_size=1,
        max_size=3,
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(writes, st.randoms(use_true_random=False))
def test_a_fold_is_the_fold_of_its_re_read_ledger(written: list[list[str]], rng: random.Random) -> None:
    async def run(path: str) -> None:
        async with turn_on(SqliteLedger(path), frozenset({"MISSING"})) as turn:
            waiting = list(written)
            while waiting:
                batch = [waiting.pop(0) for _ in range(min(len(waiting), rng.randint(1, 4)))]
                await asyncio.gather(*(turn.submit(line(*words)) for words in batch), return_exceptions=True)
            state, seq, root = turn.state, turn.seq, turn.ledger.root
        async with turn_on(SqliteLedger(path)) as again:
            assert (again.state, again.seq, again.ledger.root) == (state, seq, root)

    with TemporaryDirectory() as directory:
        asyncio.run(run(f"{directory}/ledger.db"))


def test_a_body_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")

    with closing(SqliteLedger(path)) as ledger:
        grow(ledger, b"{}")

    async def run() -> None:
        with (
            closing(SqliteLedger(path)) as ledger,
            pytest.raises(LedgerTampered, match="entry 1: Object miss"),
        ):
            Turn(ledger, Registers())

    asyncio.run(run())


def test_an_entry_under_another_number_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    with closing(SqliteLedger(path)) as ledger:
        grow(ledger, canonical(entry_of(line("set a 1"), 2, OK, ())))

    async def run() -> None:
        with closing(SqliteLedger(path)) as ledger, pytest.raises(LedgerTampered, match="says it is entry 2"):
            Turn(ledger, Registers())

    asyncio.run(run())


# An entry of another process that does not follow the rules: the state would be unsure.
def test_an_entry_that_cannot_be_applied_stops_the_turn(tmp_path: Path) -> None:
    async def run() -> None:
        async with two_turns(tmp_path) as (one, other):
            with closing(SqliteLedger(str(tmp_path / "ledger.db"))) as third:
                grow(third, canonical(entry_of(line("break"), 1, OK, (Broke(),))))
            one.refresh()
            assert isinstance(await one.wait_failed(), ZeroDivisionError)
            with pytest.raises(TurnStopped):
                await other.submit(line("set a 1"))

    asyncio.run(run())
