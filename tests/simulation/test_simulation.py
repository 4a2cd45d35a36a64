"""A whole hive under a seed: the same seed is the same run, fresh seeds keep the promises, old ones too, and
mistakes are found."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mistakes import LENDING, MISTAKES

from skep.__main__ import run
from skep.sim.story import HOME, Action, Story, parse, story_of
from skep.sim.trial import attempt, shortest

HERE = Path(__file__).parent
STEPS = 120
STEPS_OF_A_LIFE = 200  # of a process, from the submits to the ends of their jobs
FRESH_S = 20.0  # how long fresh seeds are tried
LENT_S = 4.0  # and those of hives with annexes
SEEDS_MAX = 60  # in which a planted mistake must be found
FOUND = {
    "an ack is not asked for its fence": 16,
    "what has succeeded is cancelled": 8,
    "deciding depends on what was not written down": 2,
    "a key is free when its job has ended": 1,
    "a trigger fires again after a restart": 6,
    "a lock forgets who holds it": 1,
    "limits are not asked": 2,
    "an answer leaves before the entry is on the disk": 8,
    "what a full disk refused was done": 18,
    "readers see what is not on the disk": 11,
    "a disabled annex gives": 1,
    "who waits for a device is forgotten": 5,
    "nobody falls back by itself": 1,
}
"""Which seed found a mistake last, if not the first: it is tried first, as the others take long."""


def test_a_seed_gives_one_story() -> None:
    assert story_of("1", 50) == story_of("1", 50)
    assert story_of("1", 50) != story_of("2", 50)
    for lends in (False, True):
        assert parse(story_of("1", 50, lends).lines()) == story_of("1", 50, lends)


def test_a_small_story_ends_well() -> None:
    submit = Action(100, "submit", "c1", "s1", HOME, {"topic": "sum", "input": "w=10"})
    trial = attempt(Story("1", 1, 1, (submit,)))
    assert [] == trial.wrong
    assert trial.entries >= 8  # the hive begins, a node joins, submit, lease, start, ack


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_in_any_process() -> None:
    def digest(hash_seed: str) -> str:
        command = [sys.executable, "-m", "skep", "sim", "--seed", "same", "--steps", "150", "--json"]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        )
        return str(json.loads(done.stdout)["digest"])

    here = attempt(story_of("same", 150)).digest
    assert {here} == {attempt(story_of("same", 150)).digest, digest("1"), digest("2")}


@pytest.mark.slow
@pytest.mark.parametrize("who", ["queen", "w1"])
def test_a_process_may_die_at_any_step(who: str) -> None:
    """Three jobs, one of which fails once; the process is killed at any step that it takes meanwhile."""
    terms = ({"input": "w=20"}, {"input": "w=20,f=1", "retries": "1"}, {"input": "w=20,a=100"})
    submits = tuple(
        Action(100, "submit", "c1", f"s{n}", HOME, {"topic": "sum", "key": f"s{n}", **said})
        for n, said in enumerate(terms, 1)
    )
    for step in range(1, STEPS_OF_A_LIFE, 6):
        kill = Action(100, "kill", who, n=step, ms=50)
        assert [] == attempt(Story(f"step {step}", 1, 1, (*submits, kill))).wrong, f"step {step}"


def seeds() -> list[tuple[str, int]]:
    """Seed and steps of each line of seeds.txt."""
    lines = [line.partition("#")[0].split() for line in (HERE / "seeds.txt").read_text().splitlines()]
    return [(line[0], int(line[1])) for line in lines if line]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "steps"), seeds())
def test_what_failed_once_ends_well(seed: str, steps: int) -> None:
    assert [] == attempt(story_of(seed, steps)).wrong


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((HERE / "stories").glob("*.jsonl")), ids=lambda file: file.stem)
def test_a_story_that_was_kept_ends_well(file: Path) -> None:
    assert [] == attempt(parse(file.read_text())).wrong


@pytest.mark.slow
@pytest.mark.parametrize(("lends", "seconds"), [(False, FRESH_S), (True, LENT_S)], ids=["", "with annexes"])
def test_fresh_seeds_end_well(lends: bool, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    first, until, n = secrets.token_hex(4), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        seed = f"{first}.{n}"
        wrong = attempt(story_of(seed, STEPS, lends)).wrong
        assert [] == wrong, f"skep sim --seed {seed} --steps {STEPS}{' --annexes' if lends else ''}"
        n += 1
    with capsys.disabled():
        print(f"\nsimulation: seeds {first}.0 to {first}.{n - 1}, {STEPS} steps each")


def finding(mistake: str) -> Story:
    """A story in which the mistake does harm. Raises StopIteration: there is none."""
    seeds = dict.fromkeys((FOUND.get(mistake, 0), *range(SEEDS_MAX)))
    stories = (story_of(f"m{n}", 80, mistake in LENDING) for n in seeds)
    return next(story for story in stories if attempt(story, {**MISTAKES, **LENDING}[mistake]).wrong)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [*MISTAKES, *LENDING])
def test_a_planted_mistake_is_found(mistake: str) -> None:
    finding(mistake)


@pytest.mark.slow
def test_a_story_that_fails_is_told_as_short_as_it_can_be() -> None:
    mistake = "what has succeeded is cancelled"
    made = MISTAKES[mistake]
    short = shortest(finding(mistake), made)
    assert {"submit", "cancel"} == {action.do for action in short.actions}
    assert 2 == len(short.actions)
    again = parse(short.lines())
    assert attempt(again, made).wrong
    assert [] == attempt(again).wrong


@pytest.mark.slow
def test_the_command_plays_a_seed_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run(["sim", "--seed", "7", "--steps", "10", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ("7", 10, []) == (told["seed"], told["actions"], told["wrong"])
    file = tmp_path / "story.jsonl"
    file.write_text(story_of("7", 10).lines())
    assert 0 == run(["sim", "--story", str(file), "--json"])
    assert told["digest"] == json.loads(capsys.readouterr().out)["digest"]
