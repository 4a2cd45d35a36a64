"""The session in docs/DIFF.md, typed: what it prints is what stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Recorder, ledger

from skep.trace.clock import ManualClock
from tests.pages import check_page

RULES = """at_least = 10

[[may]]
why = "inputs are of the day"
path = "/jobs/ctl"
field = "line"

[[may]]
why = "and so is what they are hashed to"
path = "/jobs/ctl"
field = "events[*].*"

[[may]]
why = "leases are longer since the upgrade"
kind = ["added", "removed"]
path = "/jobs/*/ctl"
at_most = 2
"""


def day(input: str, seed: int, more: bool) -> list[bytes]:
    """Two jobs are done; on one of the days the second is renewed."""
    hive = Recorder()
    hive.clock = ManualClock(seed=seed)
    for n, said in enumerate((input, "of every day")):
        hive.submit(f"input='{said}'")
        job = hive.lease()
        hive.tell(job, "start")
        if n and more:
            hive.tell(job, "renew")
        hive.tell(job, "ack result=1")
    return hive.bodies


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    ledger(tmp_path / "monday.db", day("of monday", 1, False))
    ledger(tmp_path / "tuesday.db", day("of tuesday", 2, True))
    (tmp_path / "rules.toml").write_text(RULES)
    check_page("DIFF.md", "tests/validator/test_diff_page.py", tmp_path)
