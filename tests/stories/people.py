"""People at machines of a network, each with a home and an identity of his own, who type commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from queens import ROOT
from wires import Machine

SKEP = (sys.executable, "-m", "skep")
PLENTY_S = 60.0


class Person:
    """Somebody at a machine, who types commands."""

    def __init__(self, machine: Machine, home: Path) -> None:
        self.machine = machine
        self.home = home
        home.mkdir()
        self.identity = home / "identity"
        self.env = {name: os.environ[name] for name in ("PATH",)} | {
            "HOME": str(home), "PYTHONPATH": str(ROOT), "SKEP_IDENTITY": str(self.identity),
        }  # fmt: skip

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.machine.prefix, *SKEP, *words],
            env=self.env, input=stdin, capture_output=True, text=True, timeout=PLENTY_S, check=False,
        )  # fmt: skip

    def does(self, *words: str, stdin: str = "") -> str:
        """What the command prints; it must succeed."""
        done = self.run(*words, stdin=stdin)
        assert (0, "") == (done.returncode, done.stderr if done.returncode else ""), words
        return done.stdout

    @contextmanager
    def runs(self, *words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on; told to stop afterwards."""
        with (self.home / "said").open("a") as said:
            process = subprocess.Popen(
                [*self.machine.prefix, *words],
                env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=PLENTY_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def ready(process: subprocess.Popen[str]) -> str:
    """The address that a queen serves by TLS."""
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if line.startswith("serving tls:"):
            address = line.split()[1]
        if line == "ready\n":
            return address
    raise AssertionError("the queen ended")


def wait_until(what: str, found: Any) -> Any:
    """What ``found`` gives once it gives something."""
    until = time.monotonic() + PLENTY_S
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")
