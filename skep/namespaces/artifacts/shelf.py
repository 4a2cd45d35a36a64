"""Where sealed bytes stand, by name: what the store asks of a place, and the place that is a directory.

    sha256/ab/ab12…   sealed bytes
    chunks/ab/ab12…   the hashes of their chunks, when there is more than one

What stands in an object store is objects.py's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from skep.fs.node import Maybe
from skep.trace.whole import sync

BYTES: Final = "sha256"
CHUNKS: Final = "chunks"
FOLDERS: Final = (BYTES, CHUNKS)


class Kept(NamedTuple):
    """Something on a shelf, and since when, in ns since 1970, it stands there as it is."""

    name: str
    since_ns: int


class Source(Protocol):
    """Bytes of a shelf, open. ``ahead``: how many more bytes are worth fetching for who reads on."""

    ahead: int

    def read(self, offset: int, count: int) -> Maybe[bytes]:
        """The bytes there; fewer only at the end."""

    def close(self) -> None: ...


class Shelf(Protocol):
    """Raises FileNotFoundError for names that are not there, OSError when it cannot."""

    async def take(self, name: str, file: Path) -> None:
        """Keep the file's bytes, over whatever stands there. They survive a crash from now on."""

    async def write(self, name: str, data: bytes) -> None:
        """Keep a few bytes that can be made again: a crash may lose them."""

    async def open(self, name: str) -> Source: ...

    async def since_ns(self, name: str) -> int: ...

    async def remove(self, name: str) -> None: ...

    def kept(self) -> AsyncIterator[Kept]:
        """All that stands there, what a crash has left behind too."""


class Directory:
    """A directory on the file system where files are staged: their bytes are linked, not copied."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        sync(root)

    async def take(self, name: str, file: Path) -> None:
        await asyncio.to_thread(_link, file, self.root / name)

    async def write(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(_replace, self.root / name, data)

    async def open(self, name: str) -> Source:
        return _Open(os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC))

    async def since_ns(self, name: str) -> int:
        # Not mtime: linking under the hash must count.
        return (self.root / name).stat().st_ctime_ns

    async def remove(self, name: str) -> None:
        (self.root / name).unlink()

    async def kept(self) -> AsyncIterator[Kept]:
        for folder in FOLDERS:
            for prefix in await asyncio.to_thread(os.listdir, self.root / folder):
                for name in await asyncio.to_thread(_ages, self.root, f"{folder}/{prefix}"):
                    yield name


class _Open:
    ahead = 0  # the system reads ahead

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def close(self) -> None:
        os.close(self.fd)


def _ages(root: Path, folder: str) -> list[Kept]:
    found = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                found.append(Kept(f"{folder}/{entry.name}", entry.stat().st_ctime_ns))
    return found


def _link(file: Path, target: Path) -> None:
    """``target`` is ``file`` too, and survives a crash."""
    if not target.parent.exists():
        target.parent.mkdir(exist_ok=True)
        sync(target.parent.parent)
    # Whatever stood there, a crash's remains or a rotten copy, these bytes are known to be right.
    fresh = target.with_name(f"{target.name}.{os.stat(file).st_ino}")
    with suppress(FileExistsError):
        os.link(file, fresh)
    os.replace(fresh, target)
    # Renaming one name of a file over another of the same file does nothing.
    fresh.unlink(missing_ok=True)
    sync(target.parent)


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_name(f"{target.name}.fresh")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, target)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def shelf_at(url: str, root: Path) -> Shelf:
    """The shelf that ``url`` names: "" the directory ``root``, else an object store.

    Raises ValueError when there can be none."""
    if not url:
        return Directory(root)
    try:
        from skep.namespaces.artifacts.objects import objects
    except ImportError as error:
        raise ValueError(f"artifacts {url}: it needs obstore: pip install 'skep[objects]'") from error
    return objects(url)
