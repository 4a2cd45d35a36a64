"""A conversation that was recorded over TLS, played to a hive in memory and to the hive it was said to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.daemons import wait_for
from tests.networked import networked


@pytest.mark.slow
def test_it_is_played_as_whom_the_certificate_names(tmp_path: Path) -> None:
    with networked(tmp_path) as hive:
        ann = hive.enroll("operator", "ann")
        principal = ann.ask("cat", "/whoami").splitlines()[0].removeprefix("principal ")
        hive.ask("write", "/log/trace/ctl", f"record principal={principal} on")
        ann.ask("cat", "/state", "/trust/ca.pem", "/jobs/ctl")
        sessions = hive.directory / "log" / "trace" / "sessions"
        wait_for(
            lambda: sessions.is_dir() and "log.recorded" in hive.ask("cat", "/events"), "the recording's end"
        )
        (recording,) = sessions.iterdir()
        again = ann.skep("replay", "--wire", str(recording))
        assert (0, True) == (again.returncode, "answers: the same" in again.stdout), again
        there = ann.skep("replay", "--wire", str(recording), hive.tls, "--json")
        assert 0 == there.returncode, there
        found = msgspec.json.decode(there.stdout)
        assert (0, found["compared"]) == (found["differ"], found["said"])
        # Who has no papers is let in nowhere.
        assert 0 != hive.skep("replay", "--wire", str(recording), hive.tls).returncode
