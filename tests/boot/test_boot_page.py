"""The session in docs/BOOT.md, typed: what it prints is what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import check_page

# Another compiler makes other guests; times of the wall are others every time.
VOLATILE = re.compile(r" +\d+(?:\.\d+)?\b(?: ms)?| \(after \w+\)|\+0x[0-9a-f]+")


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    check_page("BOOT.md", "tests/boot/test_boot_page.py", tmp_path, VOLATILE)
