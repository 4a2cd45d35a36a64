"""``skep sim``: a whole hive under one seed, and everything that can go wrong in it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec

from skep.cli.connect import json_option
from skep.cli.exits import Failed
from skep.sim.story import Story, parse, story_of
from skep.sim.trial import Trial, attempt, shortest
from skep.trace.clock import SECOND, SystemClock


@click.command()
@click.option("--seed", default="", help="Which story; made up when not given.")
@click.option("--steps", default=200, show_default=True, help="Actions of the story.")
@click.option(
    "--runs", default=1, show_default=True, help="So many seeds, one after the other: S, S.1, S.2 …"
)
@click.option("--annexes", is_flag=True, help="Of a hive that lends devices, and may lose them.")
@click.option("--story", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Play this file.")
@click.option("--whole", is_flag=True, help="Do not look for the shortest story that fails.")
@json_option
def sim_command(
    seed: str, steps: int, runs: int, annexes: bool, story: Path | None, whole: bool, as_json: bool
) -> None:
    """Play a whole hive under one seed, and all that can go wrong in it.

    Queen, workers, clients, network and disk are in one thread, and what a hive promises is checked. The same
    seed is the same run, byte for byte. What fails is shown as the shortest story that does; kept in a file,
    --story plays it again.

    \b
    Examples:
      skep sim --seed 7 --steps 500
      skep sim --runs 100
      skep sim --annexes
      skep sim --story story.jsonl
    """
    for told in [parse(story.read_text())] if story else _stories(seed, steps, runs, annexes):
        began = time.perf_counter()
        trial = attempt(told)
        took_s = time.perf_counter() - began
        click.echo(_json(told, trial, took_s) if as_json else _line(told, trial, took_s))
        if trial.wrong:
            _fail(told, steps, story, whole, as_json)


def _stories(seed: str, steps: int, runs: int, annexes: bool) -> list[Story]:
    seed = seed or SystemClock().new_id()[-10:]
    return [story_of(f"{seed}.{n}" if n else seed, steps, annexes) for n in range(runs)]


def _fail(story: Story, steps: int, file: Path | None, whole: bool, as_json: bool) -> None:
    """Show how the story ends badly, as short as it can be told. Raises Failed."""
    if not whole:
        story = shortest(story, told=_progress)
        for wrong in attempt(story).wrong:
            click.echo(wrong, err=as_json)
        click.echo(story.lines(), nl=False, err=as_json)
    again = f"--story {file}" if file else f"--seed {story.seed} --steps {steps}"
    again += " --annexes" if story.annexes and not file else ""
    raise Failed(f"a promise was broken; again: skep sim {again}  # {_commit()}")


def _progress(tries: int, left: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\rshortening: {left} actions after {tries} tries ", err=True, nl=False)


def _commit() -> str:
    """What was tried, as far as git knows."""
    command = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "no commit"
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit"


def _line(story: Story, trial: Trial, took_s: float) -> str:
    how = "ok" if not trial.wrong else f"{len(trial.wrong)} WRONG: {trial.wrong[0]}"
    return (
        f"seed {story.seed}: {len(story.actions)} actions, {trial.steps} steps, {trial.entries} entries, "
        f"{trial.lasted_ns / SECOND:.0f} s in {took_s:.2f} s, {trial.digest[:12]}: {how}"
    )


def _json(story: Story, trial: Trial, took_s: float) -> bytes:
    return msgspec.json.encode(
        {"seed": story.seed, "actions": len(story.actions), "took_s": round(took_s, 3)} | trial._asdict()
    )
