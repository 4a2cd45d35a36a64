"""The session about signatures in docs/BOOT.md, typed: what it prints is what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import check_page

VOLATILE = re.compile(r"\b[0-9a-f]{64}\b|\d{4}-\d\d-\d\dT[0-9:.]+Z")
MANIFEST = """name = "worker"
arch = "aarch64"
kernel = "image"
[[milestone]]
name = "root"
entry = "rootserver"
"""


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "boot.toml").write_text(MANIFEST)
    (tmp_path / "image").write_bytes(bytes(38248))
    (tmp_path / "rootserver").write_bytes(bytes(9072))
    check_page("BOOT.md", "tests/boot/test_signing_page.py", tmp_path, VOLATILE)
