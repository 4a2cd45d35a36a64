"""``skep annex prove``, on ledgers of GPU work that were written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpuwork import Work, in_place, out_of_memory, refused, well
from logs import as_tiles, changed, write_ledger

from skep.__main__ import run


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    work = Work().after(well, out_of_memory, in_place, refused)
    return write_ledger(tmp_path / "ledger.db", work.bodies())


def test_what_is_proven_is_told(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run(["annex", "prove", str(ledger.parent)])
    first, *claims, jobs, device, fell, ratio, times = capsys.readouterr().out.splitlines()
    assert first.startswith("verified: 25 entries of ")
    assert {"holds"} == {line.partition(":")[0] for line in claims}
    assert "4 jobs: 3 right, 1 with an error, 0 cancelled, 0 open, 0 silent" == jobs
    assert "where they were meant to be: 1 job, 1 on a GPU; 3 leases of devices" == device
    assert "fell back: 2 jobs: 1 no_device, 1 oom" == fell
    part = "66.67% of those without a device, 100.00% without the 1 that refused one"
    assert f"right after a fallback: 2 jobs, {part}" == ratio
    assert "from a fallback to the end: median 4.000 s, p99 4.000 s" == times


def test_programs_are_told_in_json(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run(["annex", "prove", "--json", str(ledger)])
    found = json.loads(capsys.readouterr().out)
    assert (25, 4, 3, 0, []) == tuple(found[key] for key in ("entries", "jobs", "right", "silent", "broken"))


def test_what_is_not_proven_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work().after(well, refused)
    del work.entries[-1][3][1]
    assert 1 == run(["annex", "prove", str(write_ledger(tmp_path / "ledger.db", work.bodies()))])
    said = capsys.readouterr()
    assert (
        "broken: what failed for want of a device raised an alert, and so did an annex that was lost: 1 of 1"
        in said.out
    )
    assert "    entry 12: alert: J1: it failed, kernel_failed, and no alert says so" in said.out
    assert said.err.endswith("ledger.db: 1 of 12 claims do not hold\n")


def test_a_copy_of_the_log_is_proven_as_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in as_tiles(Work().after(well).bodies()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert 0 == run(["annex", "prove", str(tmp_path)])
    assert "1 job: 1 right" in capsys.readouterr().out


def test_what_was_tampered_with_is_not_proven(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(ledger, ("UPDATE entries SET body = replace(body, 'oom', 'oon')", ()))
    assert 10 == run(["annex", "prove", str(ledger)])
    assert "(altered)" in capsys.readouterr().err


def test_where_there_is_no_log_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == run(["annex", "prove", str(tmp_path / "nothing")])
    assert "there is no log: expected a mount" in capsys.readouterr().err
