"""``skep conformance worker``: the examples pass it, and what is wrong with a worker is found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skep.cli.kit import CASES
from tests.daemons import ROOT, run, wait_for

pytestmark = pytest.mark.slow

# None lasts longer than twenty seconds.
PARTS = (
    ("takes", "text", "once", "fails", "retried", "unknown", "artifact", "drain"),
    ("renews",),
    ("one", "cancel", "late"),
    ("restart", "unanswered", "beats"),
)
PYTHON = ("--", sys.executable, "examples/worker.py")
SHELL = ("--mount", "--", "sh", "examples/worker.sh")


Tried = tuple[int, dict[str, bool | None], str]
"""The exit status, what came of each case, and the reasons of those that failed."""


def tried(cases: tuple[str, ...], *command: str) -> Tried:
    chosen = [word for case in cases for word in ("--case", case)]
    done = run("conformance", "worker", "--json", *chosen, *command, env={"PYTHONPATH": str(ROOT)})
    found = [json.loads(text) for text in done.stdout.splitlines()]
    return (
        done.returncode,
        {each["case"]: each["ok"] for each in found},
        "\n".join(each["why"] for each in found),
    )


def test_every_case_is_tried_here() -> None:
    assert {case.name for case in CASES} == {case for part in PARTS for case in part}


@pytest.fixture(scope="module", params=[PYTHON, SHELL], ids=["python", "shell"])
def found(request: pytest.FixtureRequest) -> dict[tuple[str, ...], Tried]:
    """What came of each part: all are tried at once, as each waits most of the time."""
    with ThreadPoolExecutor(len(PARTS)) as pool:
        return dict(zip(PARTS, pool.map(lambda cases: tried(cases, *request.param), PARTS), strict=True))


@pytest.mark.parametrize("cases", PARTS, ids=lambda part: part[0])
def test_the_example_does_all_that_is_asked(
    cases: tuple[str, ...], found: dict[tuple[str, ...], Tried]
) -> None:
    assert (0, dict.fromkeys(cases, True)) == found[cases][:2], found[cases][2]


# A renewal that is refused tells of a cancel too, later where leases are longer.
@pytest.mark.parametrize(("case", "without"), [("renews", "renew"), ("cancel", "renew watch")])
def test_a_worker_that_leaves_out_a_duty_is_found_out(case: str, without: str, tmp_path: Path) -> None:
    lazy = tmp_path / "lazy.sh"
    text = (ROOT / "examples" / "worker.sh").read_text()
    for duty in without.split():
        text = text.replace(f"    {duty} &\n", "    : &\n")
    lazy.write_text(text)
    status, ok, why = tried((case,), "--mount", "--", "sh", str(lazy))
    assert (1, {case: False}) == (status, ok)
    assert "the job succeeded; seen: " in why


def test_what_is_not_claimed_is_told_and_not_tried() -> None:
    assert (0, {"renews": None}) == tried(("renews",), "--without", "renews", "--", "false")[:2]


def test_a_command_that_is_no_worker_is_told_so() -> None:
    status, ok, why = tried(("takes",), "--", "sh", "-c", "echo no worker; exit 3")
    assert (1, {"takes": False}) == (status, ok)
    assert why.endswith("seen: it ended with status 3: no worker")


def test_a_kit_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "skep", "conformance", "worker", "--case", "renews", *PYTHON]
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    kit = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(processes(tmp_path)) >= 3, "the kit, its hive and the worker run")
        kit.terminate()
        assert 130 == kit.wait(20)
    finally:
        kit.kill()
        kit.wait()
    assert [] == processes(tmp_path)
    assert [] == [*tmp_path.iterdir()]


def processes(directory: Path) -> list[str]:
    """Those that have the directory in their environment, and are no zombies."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def test_a_case_that_is_none_is_refused() -> None:
    done = run("conformance", "worker", "--case", "nothing", "--", "true")
    assert 2 == done.returncode
    assert "nothing: no case of this name: expected one of takes text " in done.stderr
