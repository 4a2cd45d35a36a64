"""The fuzzers, for some seconds each; and that they find what there is to be found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, KEPT_MAX, ROOT, TARGETS, fuzz

SECONDS = 5  # of each, on what longer runs have kept


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_is_sent_breaks_a_reader(target: str) -> None:
    assert 0 == fuzz(target, SECONDS)


@pytest.mark.slow
def test_a_planted_mistake_is_found_and_can_be_played_again(capfd: pytest.CaptureFixture[str]) -> None:
    # A search is the same for the same seed. Some lose their way, so one that does not is named.
    assert any(0 != fuzz("planted", 10, seed=seed) for seed in (1, 2, 4))
    printed = capfd.readouterr().out
    found = re.search(r"planted: python -m (tests\.fuzz\.child) (planted) (\S+)", printed)
    assert found is not None, printed
    crash = Path(found[3])
    again = subprocess.run([sys.executable, "-m", *found.groups()], cwd=ROOT, capture_output=True, text=True)
    assert "AssertionError" in again.stdout + again.stderr
    assert 0 != again.returncode
    crash.unlink()
    crash.parent.rmdir()


def test_what_is_kept_to_begin_with_is_small() -> None:
    for target in TARGETS:
        assert KEPT_MAX >= sum(path.stat().st_size for path in (CORPUS / target).glob("*"))
    assert set(TARGETS) >= {path.name for path in CORPUS.iterdir()}
