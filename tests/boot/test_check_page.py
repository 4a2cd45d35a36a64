"""docs/BOOT_CHECK.md: its session, typed, and its table of rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skep.boot.layout.checking import STATED
from tests.pages import DOCS, check_page
from tests.test_docs import generated

# Another compiler makes other guests.
VOLATILE = re.compile(r"\b\d{4,} bytes|0x[0-9a-f]+")
PAGE = "BOOT_CHECK.md"


def _key(rule: str) -> tuple[int, int]:
    return "EWIKRLPSX".index(rule[0]), int(rule[1:])


def test_the_rules_are_those_of_the_tables() -> None:
    rows = ["| id | | of | what holds | why | source |\n", "|---|---|---|---|---|---|\n"]
    for rule in sorted(STATED, key=_key):
        stated = STATED[rule]
        of = " ".join(stated.kinds)
        rows.append(
            f"| {rule} | {stated.severity} | {of} | {stated.says} | {stated.reason} | {stated.source} |\n"
        )
    generated(DOCS / PAGE, "rules", "".join(rows))


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    check_page(PAGE, "tests/boot/test_check_page.py", tmp_path, VOLATILE)
