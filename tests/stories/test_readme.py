"""The session in README.md, typed: what it prints is what stands there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TYPED = re.compile(r"<!-- typed by tests/stories/test_readme.py -->\n```console\n(.*?)```", re.DOTALL)
VOLATILE = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|rev=\d+")  # ids and ledger numbers


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory like a fresh clone's, with a hive up in it."""
    (tmp_path / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    skep = [sys.executable, "-m", "skep"]
    subprocess.run([*skep, "up"], cwd=tmp_path, check=True)
    yield tmp_path
    subprocess.run([*skep, "down"], cwd=tmp_path, check=True)


def session() -> list[tuple[str, str]]:
    """The commands of the README, each with what it prints."""
    found = TYPED.search((ROOT / "README.md").read_text())
    assert found is not None
    parts = re.split(r"^\$ (.*)\n", found.group(1), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_the_session_prints_what_the_readme_says(folder: Path) -> None:
    commands = session()
    assert len(commands) >= 8
    end = "--- end of a command ---"
    script = "".join(f"{command}\necho '{end}'\n" for command, _ in commands)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    typed = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = typed.stdout.split(f"{end}\n")
    for (command, expected), got in zip(commands, printed, strict=False):
        assert (command, VOLATILE.sub("…", expected)) == (command, VOLATILE.sub("…", got))
