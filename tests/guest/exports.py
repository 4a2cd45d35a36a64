"""Servers of a directory of the host: the guest mounts each of them, and finds the same."""

import subprocess
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
