"""The session in docs/ENROLLING.md, typed at two desks: what it prints is what stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import ROOT

pytestmark = pytest.mark.slow

TYPED = re.compile(
    r"<!-- typed by tests/stories/test_enrolling.py: ([a-z ]+) -->\n```console\n(.*?)```", re.DOTALL
)
END = "--- end of a command ---"
VOLATILE = re.compile(
    r"^(?:session|serial|renews|until|directory|address|certificate|certificate-until) .*\n", re.MULTILINE
)
SERVED = re.compile(r"\b127\.0\.0\.1:\d+")
NUMBERS = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|rev=\d+")


class Desk:
    """A person's home, and a shell in it. ``address``: what hive.example.org:5640 stands for here."""

    def __init__(self, home: Path, address: str) -> None:
        home.mkdir()
        self.home = home
        self.address = address

    def types(self, commands: list[str]) -> list[str]:
        """What each command prints."""
        script = "".join(f"{command}\necho '{END}'\n" for command in commands)
        typed = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script.replace('hive.example.org:5640', self.address)}"],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            | {"SKEP_HIVE": f"unix:{self.home}/hive/hive.sock"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return typed.stdout.split(f"{END}\n")[:-1]


def sessions() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Whose desk, and the commands typed there, each with what it prints."""
    for desk, text in TYPED.findall((ROOT / "docs" / "ENROLLING.md").read_text()):
        parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
        yield desk, list(zip(parts[1::2], parts[2::2], strict=True))


def test_a_worker_enrols_as_the_page_says(tmp_path: Path) -> None:
    queen = Desk(tmp_path / "queen", "127.0.0.1:0")
    worker = Desk(tmp_path / "worker", "")
    try:
        desks = []
        for name, commands in sessions():
            desk = worker if name == "worker" else queen
            printed = desk.types([command for command, _ in commands])
            for (command, expected), got in zip(commands, printed, strict=True):
                got = SERVED.sub("hive.example.org:5640", VOLATILE.sub("", got).replace(str(desk.home), "~"))
                assert (command, NUMBERS.sub("…", expected)) == (command, NUMBERS.sub("…", got))
            desks.append(name)
            if name == "queen":
                shutil.copy(queen.home / "w7.invite", worker.home)
                said = (queen.home / "hive" / "queen.log").read_text()
                found = re.search(r"serving tls:(\S+)", said)
                assert found is not None
                worker.address = found.group(1)
        assert ["queen", "worker", "queen again"] == desks
    finally:
        queen.types(["skep down --dir hive --mount n"])
