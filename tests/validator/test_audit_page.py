"""The session in docs/AUDIT.md, typed: what it prints is what stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import queen

PAGE = Path(__file__).parent.parent.parent / "docs" / "AUDIT.md"
TYPED = re.compile(r"(<!-- typed by tests/validator/test_audit_page.py -->\n```console\n)(.*?)```", re.DOTALL)
# Hashes, keys, ids, times and the hive's own name.
VOLATILE = re.compile(
    r"\b[0-9a-f]{64}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b|hive-[0-9a-f]{8}|\+[0-9a-f]{8}\+\S+|[A-Za-z0-9+/]{43}=|unix:\w+"
)


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    found = TYPED.search(PAGE.read_text())
    assert found is not None
    commands = re.findall(r"^\$ (.*)$", found[2], re.MULTILINE)
    script = "exec 2>&1\n" + "".join(f"echo {shlex.quote(f'$ {each}')}\n{each}\n" for each in commands)
    with queen(tmp_path / "hive") as hive:
        typed = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SKEP_HIVE": hive.address},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    said = typed.stdout.replace(f"{tmp_path}/", "")
    if os.environ.get("UPDATE"):
        PAGE.write_text(TYPED.sub(lambda found: f"{found[1]}{said}```", PAGE.read_text()))
        return
    assert len(commands) >= 6
    assert VOLATILE.sub("…", found[2]) == VOLATILE.sub("…", said)
