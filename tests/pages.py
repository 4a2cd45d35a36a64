"""Sessions in a page's console blocks, typed: what they print is what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
# Digests and ids; numbers of files, and who we are.
VOLATILE = re.compile(
    r"\b[0-9a-f]{64}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b|\([048]0? \d+ \d+\)|\(\d+\)$|\bunix:\w+", re.MULTILINE
)

UNCOMPARED = re.compile(r"^not compared: .*\n", re.MULTILINE)  # which, depends on what a process did before


def check_page(page: str, test: str, directory: Path, volatile: re.Pattern[str] = VOLATILE) -> None:
    """Type the block of ``page`` under the comment that names ``test``; UPDATE=1 writes what it prints.

    ``volatile`` is what may be another each time."""
    path = DOCS / page
    typed = re.compile(rf"(<!-- typed by {re.escape(test)} -->\n```console\n)(.*?)```", re.DOTALL)
    found = typed.search(path.read_text())
    assert found is not None
    commands = re.findall(r"^\$ (.*)$", found[2], re.MULTILINE)
    script = "exec 2>&1\n" + "".join(f"echo {_quoted(f'$ {command}')}\n{command}\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if os.environ.get("UPDATE"):
        path.write_text(typed.sub(lambda found: f"{found[1]}{done.stdout}```", path.read_text()))
        return
    assert _lasting(found[2], volatile) == _lasting(done.stdout, volatile)


def _lasting(text: str, volatile: re.Pattern[str]) -> str:
    return volatile.sub("…", UNCOMPARED.sub("", text))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
