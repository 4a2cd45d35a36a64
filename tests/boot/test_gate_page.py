"""docs/BOOT_GATE.md: its session, typed; what its snippets for CI run is what was typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.boot.test_boot_page import VOLATILE
from tests.pages import DOCS, check_page

PAGE = "BOOT_GATE.md"


def snippets() -> tuple[dict[Any, Any], dict[Any, Any]]:
    """GitHub's and GitLab's."""
    github, gitlab = re.findall(r"^```yaml\n(.*?)^```", (DOCS / PAGE).read_text(), re.MULTILINE | re.DOTALL)
    return yaml.safe_load(github), yaml.safe_load(gitlab)


@pytest.mark.slow
def test_the_gates_session_prints_what_the_page_says(tmp_path: Path) -> None:
    manifest = (DOCS / PAGE).read_text().partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "build" / "aarch64").mkdir(parents=True)
    (tmp_path / "build" / "aarch64" / "boot.toml").write_text(manifest)
    check_page(PAGE, "tests/boot/test_gate_page.py", tmp_path, VOLATILE)


def test_the_snippets_run_what_was_typed() -> None:
    typed = re.findall(r"^\$ (skep .*)$", (DOCS / PAGE).read_text(), re.MULTILINE)
    guest, _, gate = typed
    github, gitlab = snippets()
    run = [step["run"] for step in github["jobs"]["boot"]["steps"] if "run" in step]
    assert run[-2:] == [guest, gate]
    job = gitlab["boot"]
    assert job["script"] == [guest, gate]
    assert job["before_script"] == run[:-2]
    assert job["image"] == github["jobs"]["boot"]["container"]


def test_what_the_snippets_keep_is_what_the_gate_writes() -> None:
    github, gitlab = snippets()
    (kept,) = (step["with"]["path"] for step in github["jobs"]["boot"]["steps"] if "with" in step)
    assert gitlab["boot"]["artifacts"]["paths"] == [kept]
    assert gitlab["boot"]["artifacts"]["reports"]["junit"] == f"{kept}/junit.xml"
    # YAML takes "on" for true.
    assert github[True] == ["push", "pull_request"]
