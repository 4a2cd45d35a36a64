"""What running jobs print: files that grow to a limit, beside the ledger.

<root>/<id>/log, <root>/<id>/out
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from skep.fs.errors import E, FsError

LOG_MAX: Final = 16 * 1024 * 1024  # bytes of one file: longer output is an artifact.
NAMES: Final = ("log", "out")


class Logs:
    """The files. Appends are one system call each; nothing is synced: a crash may cost the last lines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def append(self, job: str, name: str, data: bytes) -> None:
        """Add ``data``. Raises FsError(E.TOOBIG) when it does not fit: then nothing is added."""
        directory = self.root / job
        directory.mkdir(exist_ok=True)
        fd = os.open(directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size + len(data) > LOG_MAX:
                raise FsError(E.TOOBIG, f"max={LOG_MAX}")
            # A short write: the disk is full, the next one says so.
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)

    def size(self, job: str, name: str) -> int:
        try:
            return os.stat(self.root / job / name).st_size
        except FileNotFoundError:
            return 0

    def mtime_ns(self, job: str, name: str) -> int | None:
        """When it last grew; None: it has not begun."""
        try:
            return os.stat(self.root / job / name).st_mtime_ns
        except FileNotFoundError:
            return None

    def read(self, job: str, name: str, offset: int, count: int) -> bytes:
        try:
            fd = os.open(self.root / job / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, count, offset)
        finally:
            os.close(fd)
