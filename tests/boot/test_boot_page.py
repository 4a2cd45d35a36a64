"""The session in docs/BOOT.md, typed: what it prints is what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import DOCS, check_page

# Another compiler makes other guests; times of the wall are others every time.
VOLATILE = re.compile(r" +\d+(?:\.\d+)?\b(?: ms)?| \(after \w+\)|\+0x[0-9a-f]+")


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    text = (DOCS / "BOOT.md").read_text()
    manifest = text.partition("boot.toml\n")[2].partition("\n$ ")[0]
    (tmp_path / "images" / "aarch64").mkdir(parents=True)
    (tmp_path / "images" / "aarch64" / "boot.toml").write_text(manifest + "\n")
    check_page("BOOT.md", "tests/boot/test_boot_page.py", tmp_path, VOLATILE)
