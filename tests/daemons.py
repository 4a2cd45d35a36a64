"""Processes of ``skep`` under test: begun, waited for until they say that they are ready, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.decided import check_directory

ROOT = Path(__file__).parent.parent
WAIT_S = 60.0  # twenty times what anything here takes, for a machine that is busy


class Daemon:
    """``skep args``; ``lines`` are those it printed until it was ready."""

    def __init__(self, *args: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skep", *args],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def wait_ready(self, ready: str) -> None:
        """Return when it printed a line that begins with ``ready``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(ready):
                return
        raise AssertionError(f"ended with {self.process.wait()}: {self.lines}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        # A worker's jobs may hold its pipe: only the process is waited for.
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextlib.contextmanager
def daemon(ready: str, *args: str, env: dict[str, str] | None = None) -> Iterator[Daemon]:
    """``skep args`` within the ``with``, ready."""
    began = Daemon(*args, env=env)
    try:
        began.wait_ready(ready)
        yield began
    finally:
        if began.process.poll() is None:
            began.end()


class Hive:
    """A queen on a directory of its own, and what one asks it by the command line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/hive.sock"
        self.workers = f"unix:{directory}/worker.sock"

    def skep(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``skep args`` with this hive as the default."""
        return run(*args, stdin=stdin, env={"SKEP_HIVE": self.address})

    def ask(self, *args: str, stdin: str = "") -> str:
        """What ``skep args`` prints, which succeeds."""
        done = self.skep(*args, stdin=stdin)
        assert (0, "") == (done.returncode, done.stderr), done
        return done.stdout.rstrip("\n")

    def submit(self, what: str) -> str:
        """The id of a new job."""
        return self.ask("write", "/jobs/ctl", f"submit {what}").split()[0]


def run(*args: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``skep args``, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "skep", *args],
        cwd=ROOT,
        env=os.environ | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


@contextlib.contextmanager
def queen(directory: Path, *args: str, honest: bool = True) -> Iterator[Hive]:
    """A hive in ``directory``, served within the ``with``; what it wrote down is then decided again, unless
    somebody has meddled with it, who is not ``honest``."""
    hive = Hive(directory)
    with daemon("ready", "serve", "--dir", str(directory), *args):
        yield hive
    if honest:
        check_directory(directory)


def seconds(count: float) -> float:
    """So many seconds of a machine that is not busy: of one that is, as many more as wait for a processor."""
    return count * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return when ``condition`` holds: for what another process does and tells nobody."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"not in {WAIT_S:.0f} s: {what}"
        time.sleep(0.02)
