"""A file that is replaced whole: at any time either content is there, whoever is killed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NEW: Final = ".new"  # the end of the name of one that is being written, after a dot and its own


def write_whole(path: Path, data: bytes) -> None:
    """Replace ``path``, for its owner alone to read; on the disk when this returns. One writer at a time.
    Raises OSError, and then the old content is there still."""
    new = path.with_name(f".{path.name}{NEW}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Return when the names in a directory are on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
