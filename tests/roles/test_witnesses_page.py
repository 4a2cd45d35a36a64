"""The session in docs/WITNESSES.md, typed: what it prints is what stands there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.daemons import daemon, queen
from tests.pages import check_page


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with queen(tmp_path / "hive") as hive, contextlib.ExitStack() as stack:
        for name in ("w1", "w2", "w3"):
            args = ("--dir", str(tmp_path / name), "--name", f"{name}.example.org", "--trust-first")
            stack.enter_context(daemon("ready", "witness", *args, hive.address))
        monkeypatch.setenv("SKEP_HIVE", hive.address)
        check_page("WITNESSES.md", "tests/roles/test_witnesses_page.py", tmp_path)
