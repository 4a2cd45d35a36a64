"""A replay shared by processes finds what one process finds."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import bundle, forged, ledger, story

from skep.__main__ import run
from skep.validator.replay.shares import DECIDING, shares


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, 16))
def test_each_entry_is_in_one_share_and_the_shares_cost_about_the_same(
    first: int, more: int, jobs: int
) -> None:
    last = first + more
    parts = shares(first, last, jobs)
    assert 1 <= len(parts) <= jobs
    assert (parts[0][0], parts[-1][1]) == (first, last)
    assert all(end + 1 == begin for (_, end), (begin, _) in pairwise(parts))
    costs = [begin + DECIDING * (end + 1 - begin) for begin, end in parts]
    assert max(costs) - min(costs[:-1], default=max(costs)) <= 2 * DECIDING


def told(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, object]]:
    status = run(["replay", "--json", *args])
    found = json.loads(capsys.readouterr().out)
    del found["begun"]
    return status, found


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--all"], ["--every", "7"], ["--from", "10", "--to", "40"]])
@pytest.mark.parametrize("of", [story, forged])
def test_three_find_what_one_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of: object, more: list[str]
) -> None:
    path = str(ledger(tmp_path / "ledger.db", of()))  # type: ignore[operator]
    assert told(capsys, path, "--jobs", "3", *more) == told(capsys, path, *more)


@pytest.mark.slow
def test_another_policy_is_asked_about_by_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ledger(tmp_path / "ledger.db", story()))
    locks = '@id("no-locks") forbid (principal, action in Skep::Action::"locks", resource);'
    under = str(bundle(tmp_path, "operator", locks))
    one = told(capsys, path, "--policy", under)
    assert one[1]["escalated"]
    assert told(capsys, path, "--policy", under, "--jobs", "2") == one


@pytest.mark.slow
def test_what_processes_cannot_share_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ledger(tmp_path / "ledger.db", story()))
    assert run(["replay", path, "--jobs", "2", "--check-snapshots"]) == 2
    assert run(["replay", path, "--jobs", "2", "--from", "10000"]) == 2
    assert run(["replay", str(tmp_path), "--jobs", "2"]) == 0
    (tmp_path / "empty").mkdir()
    assert run(["replay", str(tmp_path / "empty"), "--jobs", "2"]) == 2
    assert "expected a hive's directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ledger_that_was_changed_is_told_by_whoever_comes_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ledger(tmp_path / "ledger.db", story())
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("UPDATE entries SET body = body || ' ' WHERE seq = 30")
        opened.commit()
    assert run(["replay", str(path), "--jobs", "2"]) == 1
    assert "entry 30" in capsys.readouterr().err
