"""The page about assertions says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recorded import ledger, story

from skep.validator.assertions import facts
from tests.pages import DOCS, check_page

HOUSE = """nobody but operators and the hive writes policies:
    never write where ok and path under /policy and not role in operator, hive

whoever was leased a job begins it at once:
    every job.leased is followed by job.started with the same job, fence within 1s
"""


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    ledger(tmp_path / "ledger.db", story())
    (tmp_path / "house.rules").write_text(HOUSE)
    check_page("ASSERTIONS.md", "tests/validator/test_assertions_page.py", tmp_path)


@pytest.mark.parametrize(
    ("kind", "known"), [("write", facts.KINDS["write"]), ("message", facts.MESSAGE), ("event", facts.EVENT)]
)
def test_the_page_names_every_field(kind: str, known: frozenset[str]) -> None:
    part = (DOCS / "ASSERTIONS.md").read_text().partition("## What there is")[2]
    assert known - {"type"} <= set(re.findall(r"`(\w+)`", part)), kind
