"""The ledger against the machine: killed processes, full disks, several processes at once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from appender import WRITERS
from registers import Event, Registers, Reply, State, line, value_of

from skep.trace.entry import entry_decoder
from skep.trace.fold import apply_entry, tail_entries
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Refused, Turn

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
APPENDER = Path(__file__).with_name("appender.py")


@contextmanager
def appender(path: Path, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """An appender that has opened the ledger; it is dead afterwards."""
    command = [sys.executable, str(APPENDER), str(path), name, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def history(path: Path) -> tuple[State, dict[int, int]]:
    """The state of the ledger at ``path``, and for each entry the value its first event set."""
    ledger, rules = SqliteLedger(str(path)), Registers()
    state, firsts = rules.fresh(), {}
    for entry in tail_entries(ledger, entry_decoder(Event)):
        apply_entry(rules, state, entry)
        firsts[entry.seq] = int(entry.events[0].value)
    ledger.close()
    return state, firsts


def test_a_killed_process_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path, rng = tmp_path / "ledger.db", random.Random(3)
    answered: dict[int, int] = {}
    for _ in range(10):
        with appender(path, "k") as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 300)):
                seq, value = process.stdout.readline().split()
                answered[int(seq)] = int(value)
            process.kill()
            # What it had said before it died counts too; a last line may be cut off.
            rest = process.stdout.read().split(b"\n")[:-1]
            answered.update((int(seq), int(value)) for seq, value in map(bytes.split, rest))
        state, firsts = history(path)
        assert answered.items() <= firsts.items()
        # Each write counts twice, in its own register and in the total: none is half done.
        total = sum(value_of(state, f"k{n}") for n in range(WRITERS))
        assert value_of(state, "total") == total == len(firsts)


def test_processes_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def run() -> State:
        turn: Turn[State, Event, Reply] = Turn(SqliteLedger(str(path)), Registers())
        with appender(path, "a", "60") as a, appender(path, "b", "60") as b:
            for _ in range(200):
                await turn.submit(line("add total 1"))
            await turn.wait_past(200 + 2 * WRITERS * 60 - 1)
            assert a.stdout is not None
            assert b.stdout is not None
            said = a.stdout.read() + b.stdout.read()
            assert (a.wait(), b.wait()) == (0, 0)
        assert len(said.splitlines()) == 2 * WRITERS * 60
        await turn.close()
        turn.ledger.close()
        return turn.state

    state = asyncio.run(run())
    assert value_of(state, "total") == 200 + 2 * WRITERS * 60
    assert value_of(state, "a0") == value_of(state, "b7") == 60
    assert history(path)[0] == state


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the full disk is also tested with a ledger that says it is full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "skep-test", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_refuses_writes_until_space_returns(small_disk: Path) -> None:
    path, ballast = small_disk / "ledger.db", small_disk / "ballast"

    async def fill(turn: Turn[State, Event, Reply]) -> int:
        """Write until the disk is full; how many writes were kept."""
        before = turn.seq

        async def write_on() -> None:
            for n in range(1000):
                await turn.submit(line(f"set a {n}", "add count 1", "note 9000"))

        with pytest.raises(Refused, match="NOSPACE") as refused:
            await write_on()
        assert refused.value.seq is None
        return turn.seq - before

    async def run() -> None:
        turn: Turn[State, Event, Reply] = Turn(SqliteLedger(str(path)), Registers())
        ballast.write_bytes(bytes(400_000))
        kept = await fill(turn)
        assert kept > 1
        assert turn.state["a"].value == value_of(turn.state, "count") - 1 == kept - 1
        assert [seq for seq, _ in turn.read(0)] == list(range(1, kept + 1))
        # Still full: lines of one batch are all refused, and nothing has moved.
        again = await asyncio.gather(
            *(turn.submit(line("add count 1", "note 60000")) for _ in range(5)), return_exceptions=True
        )
        assert [answer.code for answer in again if isinstance(answer, Refused)] == ["NOSPACE"] * 5
        assert (turn.seq, turn.failed) == (kept, None)
        ballast.unlink()
        assert (await turn.submit(line("add count 1"))).replies == (kept + 1.0,)
        more = await fill(turn)
        assert more > 1
        assert turn.seq == kept + 1 + more
        await turn.close()
        turn.ledger.close()
        state, firsts = history(path)
        assert (state, len(firsts)) == (turn.state, turn.seq)

    asyncio.run(run())
