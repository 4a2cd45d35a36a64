"""skep up, a first job through the mount, skep down, and up again: as make up and make down run them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import ROOT, daemon, run, wait_for

pytestmark = pytest.mark.slow  # processes begin and end

JOB = str(ROOT / "examples" / "first-job.sh")


class Place:
    """A hive's directory and its mount point, brought up and down."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.mount = directory / "n"
        self.where = ("--dir", str(self.state), "--mount", str(self.mount))

    def up(self) -> list[str]:
        return self._lines("up")

    def down(self) -> list[str]:
        return self._lines("down")

    def _lines(self, command: str) -> list[str]:
        done = run(command, *self.where)
        assert (0, "") == (done.returncode, done.stderr), done
        return done.stdout.splitlines()

    def first_job(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run([JOB, str(self.mount)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    try:
        yield found
    finally:
        run("down", *found.where)


def test_a_hive_comes_up_does_a_job_goes_down_and_has_it_when_it_comes_up_again(place: Place) -> None:
    words = [line.split()[:2] for line in place.up()]
    assert [["queen", "started"], ["worker", "started"], ["mount", "started"]] == words[:3]
    assert os.path.ismount(place.mount)

    first = place.first_job()
    assert 0 == first.returncode, first.stdout + first.stderr
    assert "The worker and sha256sum agree." in first.stdout
    ids = os.listdir(place.mount / "jobs" / "by-state" / "succeeded")
    assert 1 == len(ids)

    assert ["worker", "mount", "queen"] == [line.split()[0] for line in place.down()]
    assert not os.path.ismount(place.mount)
    assert ["does not run"] * 3 == [line[7:] for line in place.down()]

    place.up()
    assert ids == os.listdir(place.mount / "jobs" / "by-state" / "succeeded")
    # The same archive under the same key is the same job.
    again = place.first_job()
    assert 0 == again.returncode, again.stdout + again.stderr
    assert ids == os.listdir(place.mount / "jobs" / "by-state" / "succeeded")


def test_a_hive_may_be_brought_up_for_others_to_reach(place: Place) -> None:
    done = run("up", *place.where, "--name", "nest", env={"SKEP_LISTEN": "tls:127.0.0.1:0"})
    assert 0 == done.returncode, done
    log = (place.state / "queen.log").read_text()
    tls = next(line.split()[1] for line in log.splitlines() if line.startswith("serving tls:"))
    assert f"others reach it at {tls}" in done.stdout.splitlines()
    hive = {"SKEP_HIVE": f"unix:{place.state}/hive.sock", "SKEP_IDENTITY": str(place.state.parent / "ann")}
    invite = run("invite", "--role", "operator", "--node", "ann", env=hive).stdout
    assert 0 == run("enroll", tls, "--invite", "-", stdin=invite, env=hive).returncode
    who = run("whoami", "-H", tls, env=hive).stdout
    assert "principal spiffe://nest/operator/ann" in who.splitlines()


def test_an_annex_of_this_machine_finds_the_hive_that_is_up(place: Place) -> None:
    place.up()
    annex = ("serve", "--role", "cuda-annex", "--device", "cpu", "--node", "a1")
    hive = {"SKEP_HIVE": f"unix:{place.state}/hive.sock"}
    with daemon("ready a1", *annex, "--dir", str(place.state.parent / "a1"), env=hive):
        assert "online\n" == (place.mount / "gpu" / "a1" / "health").read_text()


def test_a_hive_whose_queen_was_killed_comes_up_again_with_its_mount(place: Place) -> None:
    place.up()
    os.kill(int((place.state / "queen.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: not os.path.exists(place.mount / "state"), "the mount has noticed")
    assert ["started", "runs", "runs"] == [line.split()[1] for line in place.up()[:3]]
    wait_for(lambda: os.path.exists(place.mount / "state"), "the mount has found the hive again")


def test_what_runs_already_is_left_alone(place: Place) -> None:
    pids = {line.split()[0]: line.split()[3] for line in place.up()[:3]}
    again = {line.split()[0]: line.split()[4] for line in place.up()[:3]}
    assert {name: pid.rstrip("),") for name, pid in pids.items()} == {
        name: pid.rstrip(")") for name, pid in again.items()
    }


def test_a_part_that_cannot_start_says_why(place: Place) -> None:
    place.state.mkdir()
    (place.state / "handlers.toml").write_text("[x]\nargv = 1\n")
    done = run("up", *place.where)
    assert 1 == done.returncode
    assert "skep: the worker has ended:" in done.stderr
    assert "handlers.toml: [x]: Expected `array`, got `int` - at `$.argv`" in done.stderr


def test_a_first_job_without_a_hive_says_so(tmp_path: Path) -> None:
    done = subprocess.run([JOB, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert 3 == done.returncode
    assert f"first-job: {tmp_path} is no mounted hive" in done.stderr
