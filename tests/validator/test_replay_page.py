"""The session in docs/REPLAY.md, typed: what it prints is what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import bundle, forged, ledger, story
from test_snapshots import lived

PAGE = Path(__file__).parent.parent.parent / "docs" / "REPLAY.md"
TYPED = re.compile(
    r"(<!-- typed by tests/validator/test_replay_page.py -->\n```console\n)(.*?)```", re.DOTALL
)
VOLATILE = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b")  # digests and ids

POLICIES = '@id("no-locks") forbid (principal, action in Skep::Action::"locks", resource);'


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    ledger(tmp_path / "ledger.db", story())
    ledger(tmp_path / "forged.db", forged())
    lived(tmp_path / "hive", list(story()))
    bundle(tmp_path, "operator", POLICIES)
    found = TYPED.search(PAGE.read_text())
    assert found is not None
    commands = re.findall(r"^\$ (.*)$", found[2], re.MULTILINE)
    assert len(commands) >= 4
    script = "exec 2>&1\n" + "".join(f"echo '$ {command}'\n{command}\n" for command in commands)
    typed = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if os.environ.get("UPDATE"):
        PAGE.write_text(TYPED.sub(lambda found: f"{found[1]}{typed.stdout}```", PAGE.read_text()))
        return
    assert VOLATILE.sub("…", found[2]) == VOLATILE.sub("…", typed.stdout)
