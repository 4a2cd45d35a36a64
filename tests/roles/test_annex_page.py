"""The session in docs/ANNEX.md, typed: what it prints is what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.daemons import daemon, queen
from tests.pages import VOLATILE, check_page

# Times, numbers of entries, what the device has and does, how long a fallback took.
MEASURED = re.compile(
    VOLATILE.pattern
    + r'|\d{4}-\d\d-\d\dT[^"]*Z|"nanoseconds":\d+|\d+\.\d{3} s\b|\b(seq":|rev=|fence=)\d+'
    + r"|memory=\d+/\d+ slots=\d+/\d+ leases=\d+( utilisation=\S+)?|max=\d+",
    re.MULTILINE,
)


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = f"unix:{tmp_path}/annexes.sock"
    here = tmp_path / "here"
    here.mkdir()
    annex = ("serve", "--role", "cuda-annex", "-H", door, "--node", "a1", "--device", "cpu")
    with (
        queen(tmp_path / "hive", "--listen-annexes", door) as hive,
        daemon("ready", *annex, "--dir", str(tmp_path / "a1")),
    ):
        monkeypatch.setenv("SKEP_HIVE", hive.address)
        check_page("ANNEX.md", "tests/roles/test_annex_page.py", here, MEASURED)
