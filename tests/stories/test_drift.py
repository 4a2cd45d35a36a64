"""The same work twice, each on a fresh hive: what the two have written down must not drift.

The difference stays in build/artifacts, as a page and for programs: what continuous integration keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.daemons import ROOT, Hive, daemon, queen, run

pytestmark = pytest.mark.slow

ARTIFACTS = ROOT / "build" / "artifacts"
RULES = Path(__file__).with_name("drift.toml")


HANDLERS = """
[size]
argv = ["wc", "-c"]

[broken]
argv = ["false"]
"""


def work(hive: Hive) -> None:
    """A bit of everything, one after the other: jobs done, failed, cancelled and refused; a lock; drained."""
    done = hive.submit("topic=size input=hello key=k")
    assert "succeeded" == hive.ask("cat", f"/jobs/{done}/wait")
    assert done == hive.submit("topic=size input=hello key=k")
    failed = hive.submit("topic=broken")
    assert "failed" == hive.ask("cat", f"/jobs/{failed}/wait")
    hive.ask("write", "/pools/ctl", "drain pool=default")
    waiting = hive.submit("topic=size input=later")
    hive.ask("write", "/jobs/ctl", f"cancel job={waiting}")
    assert 0 != hive.skep("write", "/jobs/ctl", f"cancel job={waiting}").returncode
    hive.ask("write", "/locks/ctl", "acquire name=door mode=x ttl=30s")
    assert 0 != hive.skep("write", "/locks/ctl", "release name=door fence=9").returncode


def recorded(directory: Path) -> Path:
    with queen(directory, "--pool", "default=size,broken") as hive:
        (directory / "handlers.toml").write_text(HANDLERS)
        said = ("worker", "-H", hive.workers, "--handlers", str(directory / "handlers.toml"), "--node", "w1")
        with daemon("ready w1", *said, "--dir", str(directory / "w1")):
            work(hive)
    return directory


def test_the_same_work_leaves_the_same_trace(tmp_path: Path) -> None:
    before, after = recorded(tmp_path / "1"), recorded(tmp_path / "2")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page, report = ARTIFACTS / "drift.html", ARTIFACTS / "drift.json"
    args = ("diff", "--rules", str(RULES), str(before), str(after), "--html", str(page), "--json")
    done = run(*args)
    report.write_text(done.stdout)
    assert (0, "") == (done.returncode, done.stderr), page
    assert page.read_text().startswith("<!doctype html>")
    assert 3 == json.loads(done.stdout)["excused"]
