"""The sessions in docs/WORKERS.md, typed: what they print is what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "WORKERS.md").read_text()
TYPED = re.compile(r"<!-- typed by tests/stories/test_workers.py -->\n```console\n(.*?)```", re.DOTALL)
FILES = re.compile(r"<!-- a file of tests/stories/test_workers.py: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
END = "--- end of a command ---"


def test_workers_are_written_as_the_page_says(tmp_path: Path) -> None:
    for name, text in FILES.findall(PAGE):
        (tmp_path / name).write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    parts = re.split(r"^\$ (.*)\n", "".join(TYPED.findall(PAGE)), flags=re.MULTILINE)
    commands = list(zip(parts[1::2], parts[2::2], strict=True))
    script = "".join(f"{command}\necho '{END}'\n" for command, _ in commands)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    hive = f"unix:{tmp_path}/hive/hive.sock"
    try:
        typed = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script}"],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "SKEP_HIVE": hive, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    finally:
        subprocess.run(
            [sys.executable, "-m", "skep", "down", "--dir", "hive", "--mount", "n"], cwd=tmp_path, check=False
        )
    printed = typed.stdout.split(f"{END}\n")
    for (command, expected), got in zip(commands, printed, strict=False):
        assert (command, expected) == (command, got)
    assert len(commands) == len(printed) - 1
