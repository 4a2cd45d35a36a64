"""The session in docs/REPLAY.md, typed: what it prints is what stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import bundle, forged, ledger, story
from test_snapshots import lived

from tests.pages import check_page

POLICIES = '@id("no-locks") forbid (principal, action in Skep::Action::"locks", resource);'


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    ledger(tmp_path / "ledger.db", story())
    ledger(tmp_path / "forged.db", forged())
    lived(tmp_path / "hive", list(story()))
    bundle(tmp_path, "operator", POLICIES)
    check_page("REPLAY.md", "tests/validator/test_replay_page.py", tmp_path)
