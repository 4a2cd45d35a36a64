"""A served and mounted tree for tests: both processes, a shell inside, and nothing mounted afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT_S = 30.0
ROOT = Path(__file__).parents[2]
MOUNT = """
import asyncio, sys, uvloop
from skep.fs.address import parse
from skep.fs.errors import FsError
from skep.fs.mount import Options, mount
try:
    uvloop.run(mount(parse(sys.argv[1]), sys.argv[2], options=Options(**eval(sys.argv[3]))))
except (FsError, OSError) as error:
    sys.exit(f"refused: {error}")
"""


def wait_until(condition: Callable[[], bool]) -> None:
    """Look every 10 ms, for other processes tell us nothing. Raises TimeoutError."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.01)


def is_mounted(directory: Path) -> bool:
    return any(
        line.split()[1] == str(directory) for line in Path("/proc/self/mounts").read_text().splitlines()
    )


class Mounted:
    """``place`` is the mounted directory, ``host`` the one that is served at its /host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "n"
        self.host = folder / "host"
        self.address = f"unix:{folder}/hive.sock"
        self.place.mkdir()
        self.host.mkdir()
        self.server: subprocess.Popen[bytes] | None = None
        self.mount: subprocess.Popen[bytes] | None = None
        self.said = b""  # what the mount has said on stderr

    def serve(self) -> None:
        command = [sys.executable, "-m", "tests.fs.hive", self.address, str(self.host)]
        self.server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        assert b"serving\n" == self.server.stdout.readline()

    def stop_serving(self) -> None:
        """Kill the server."""
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
            self.server = None

    def start(self, **options: object) -> None:
        """Mount; returns when that has been said."""
        command = [sys.executable, "-c", MOUNT, self.address, str(self.place), repr(options)]
        self.mount = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        self.heard("is mounted at")

    def heard(self, text: str) -> str:
        """Wait until the mount says ``text``; all it has said. Raises EOFError when it ends without."""
        assert self.mount is not None
        assert self.mount.stderr is not None
        end = time.monotonic() + WAIT_S
        while text.encode() not in self.said:
            ready, _, _ = select.select([self.mount.stderr], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.mount.stderr.fileno(), 65536) if ready else b""
            if not piece:
                raise EOFError(self.said.decode())
            self.said += piece
        return self.said.decode()

    def ended(self) -> int:
        """Wait for the mount's process to end; its status."""
        assert self.mount is not None
        _, rest = self.mount.communicate(timeout=WAIT_S)
        self.said += rest
        return self.mount.returncode

    def stop(self) -> None:
        """End everything, whatever state it is in."""
        if self.mount is not None and self.mount.poll() is None:
            self.mount.terminate()
            try:
                self.ended()
            except subprocess.TimeoutExpired:
                self.mount.kill()
                self.mount.communicate()
        self.stop_serving()
        if is_mounted(self.place):
            subprocess.run(["umount", "-l", self.place], check=True)

    def sh(self, script: str, *, status: int = 0) -> str:
        """What ``script`` prints, stdout and stderr together, when run in the mounted directory."""
        done = subprocess.run(
            ["sh", "-c", script], cwd=self.place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=WAIT_S, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
        assert status == done.returncode, done.stdout
        return done.stdout

    def read(self, name: str) -> str:
        return (self.place / name).read_text()

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process in the mounted directory, killed at the end."""
        process = subprocess.Popen(command, cwd=self.place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=WAIT_S)


@contextlib.contextmanager
def mounted(folder: Path, **options: object) -> Iterator[Mounted]:
    """Served and mounted within."""
    made = Mounted(folder)
    try:
        made.serve()
        made.start(**options)
        yield made
    finally:
        made.stop()
    assert not is_mounted(made.place)
