"""Everybody is recorded: what was said to a queen, said again to a hive as it was, is answered as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skep.__main__ import run
from skep.fs.dial import login_name
from tests.daemons import ROOT, daemon, queen

HANDLERS = str(ROOT / "examples" / "handlers.toml")


def used(place: Path) -> None:
    """What somebody does in a mounted hive."""
    names = [path for path in place.rglob("*") if path.name != "next"]
    assert len(names) > 100
    (place / "jobs" / "ctl").write_text("submit topic=sha256 input=hello key=mounted\n")
    job = place / "jobs" / (place / "jobs" / "by-key" / "mounted").read_text().strip()
    assert "succeeded\n" == (job / "wait").read_text()
    assert 64 == len((job / "result").read_text().strip())
    for name in ("log", "attempts", "events.jsonl", "request.json", "artifacts"):
        (job / name).read_text()
    shutil.copyfile(HANDLERS, place / "artifacts" / "stage" / "x")
    (place / "artifacts" / "ctl").write_text("seal name=x\n")
    sealed = place / "artifacts" / (place / "artifacts" / "by-name" / "x").read_text().strip() / "data"
    assert Path(HANDLERS).read_bytes() == sealed.read_bytes()
    with pytest.raises(OSError, match="No such device or address"):
        (place / "jobs" / "ctl").write_text("submit topic=nobody\n")


@pytest.mark.slow
def test_what_everybody_said_is_answered_again_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "n"
    place.mkdir()
    with queen(tmp_path / "hive") as hive:
        hive.ask("write", "/log/trace/ctl", f"record principal=unix:{login_name()} on")
        worker = ("worker", "-H", hive.workers, "--handlers", HANDLERS, "--node", "w1")
        with daemon("ready", *worker), daemon("mounted", "mount", hive.address, str(place)):
            used(place)
            job = hive.submit("topic=sha256 input=typed")
            hive.ask("cat", f"/jobs/{job}/wait", "/whoami", "/version", "/log/net_trace_secure9p.log")
            hive.ask("ls", "-l", "/", "/jobs", f"/jobs/{job}", "/nodes", "/pools/default", "/log/trace")
    recordings = sorted((tmp_path / "hive" / "log" / "trace" / "sessions").iterdir())
    assert 5 == len(recordings)
    for recording in recordings:
        assert 0 == run(["replay", "--wire", str(recording), "--all"]), capsys.readouterr()
        assert 0 == run(["trace", "assert", str(recording)]), capsys.readouterr()
