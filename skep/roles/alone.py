"""One process to a directory: a lock that the kernel lets go of when the process ends, however it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Held(Exception):
    """Another process has the directory; the text is its pid."""


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which tells our pid. Raises Held."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Held(lock.read().strip() or "?") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
