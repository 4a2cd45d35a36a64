"""A validator and a queen as processes: runs asked for, done, found out, and done again after a death."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, Hive, daemon, queen

pytestmark = pytest.mark.slow  # processes begin and end


@contextlib.contextmanager
def validator(hive: Hive, node: str = "v1") -> Iterator[Daemon]:
    place = hive.directory / node
    socket = f"unix:{hive.directory}/validator.sock"
    with daemon(f"ready {node}", "validator", "-H", socket, "--node", node, "--dir", str(place)) as began:
        yield began


@contextlib.contextmanager
def hive_in(directory: Path) -> Iterator[Hive]:
    with queen(directory, "--listen-validators", f"unix:{directory}/validator.sock") as hive:
        yield hive


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with hive_in(tmp_path_factory.mktemp("hive")) as hive:
        yield hive


def ask(hive: Hive, line: str) -> str:
    """The id of a run."""
    return hive.ask("write", "/validator/ctl", line).split()[0]


def test_runs_are_done_and_their_reports_kept(hive: Hive) -> None:
    with validator(hive):
        run = ask(hive, "verify")
        assert "succeeded" == hive.ask("cat", f"/validator/{run}/wait")
        verdict = hive.ask("cat", f"/validator/{run}/verdict")
        assert verdict.startswith("consistent: ")
        assert "" == hive.ask("cat", f"/validator/{run}/diff")
        report = json.loads(hive.ask("cat", f"/log/validator/{run}.json"))
        assert (run, "validator.verify", True, verdict) == (
            report["run"], report["what"], report["good"], report["verdict"]
        )  # fmt: skip
        assert "" == report["kept"]
        again = ask(hive, "replay from=2 to=5")
        assert "succeeded" == hive.ask("cat", f"/validator/{again}/wait")
        assert hive.ask("cat", f"/validator/{again}/verdict").startswith("same: entries 2 to 5: the same")
        second = json.loads(hive.ask("cat", f"/log/validator/{again}.json"))
        assert report["checkpoint"] == second["kept"]
    names = hive.ask("ls", "/log/validator").split()
    assert sorted([f"{run}.json", f"{again}.json"]) == names
    assert {run, again, "ctl"} == set(hive.ask("ls", "/validator").split())
