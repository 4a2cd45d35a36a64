"""Servers of a directory of the host: the guest mounts each of them, and finds the same."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 10.0


@contextmanager
def diod(root: Path, folder: Path) -> Iterator[Path]:
    """Debian's diod serving ``root`` to anybody until the block ends; the Unix socket it listens on."""
    address, log = folder / "diod.socket", folder / "diod.log"
    command = ["diod", "-f", "-n", "-c", "/dev/null", "-L", str(log), "-l", str(address), "-e", str(root)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not address.exists():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "diod does not listen"
        yield address
    finally:
        server.kill()
        server.wait()


@contextmanager
def skep_export(root: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """``skep export`` serving ``root`` on loopback until the block ends; the host and port it listens on."""
    command = [sys.executable, "-m", "skep", "export", str(root), "--listen", "tcp:127.0.0.1:0"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("serving tcp:127.0.0.1:"), said
        yield "127.0.0.1", int(said.rpartition(":")[2])
    finally:
        server.terminate()
        server.wait(START_S)
