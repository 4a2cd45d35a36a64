"""Sealed bytes in an object store: S3, GCS, Azure, or whatever else obstore has a URL for.

    s3://bucket/prefix    with the credentials of the environment

Bytes survive a crash when the store has said yes. What was uploaded in part is the store's own to forget.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from skep.namespaces.artifacts.shelf import FOLDERS, Kept, Source

AHEAD: Final = 4 * 1024 * 1024  # bytes: a request takes tens of milliseconds, however little it asks for.


class Objects:
    """A shelf of an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    async def take(self, name: str, file: Path) -> None:
        with _told(name):
            await obstore.put_async(self.store, name, file)

    async def write(self, name: str, data: bytes) -> None:
        with _told(name):
            await obstore.put_async(self.store, name, data)

    async def open(self, name: str) -> Source:
        with _told(name):
            size = (await obstore.head_async(self.store, name))["size"]
        return _Open(self.store, name, size)

    async def since_ns(self, name: str) -> int:
        with _told(name):
            return int((await obstore.head_async(self.store, name))["last_modified"].timestamp() * 1e9)

    async def remove(self, name: str) -> None:
        with _told(name):
            await obstore.delete_async(self.store, name)

    async def kept(self) -> AsyncIterator[Kept]:
        for folder in FOLDERS:
            with _told(folder):
                async for found in obstore.list(self.store, folder):
                    for each in found:
                        yield Kept(each["path"], int(each["last_modified"].timestamp() * 1e9))


class _Open:
    ahead = AHEAD

    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self.store = store
        self.name = name
        self.size = size

    async def read(self, offset: int, count: int) -> bytes:
        length = min(count, self.size - offset)
        if length <= 0:
            return b""
        with _told(self.name):
            found = await obstore.get_range_async(self.store, self.name, start=offset, length=length)
        return bytes(found)

    def close(self) -> None:
        pass


@contextmanager
def _told(name: str) -> Iterator[None]:
    """The store's errors as a file system tells them."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(name) from error
    except BaseError as error:
        raise OSError(f"{name}: {str(error).partition(chr(10))[0]}") from error


def objects(url: str) -> Objects:
    """The object store at ``url``. Raises ValueError when there can be none."""
    try:
        return Objects(from_url(url))
    except (BaseError, ValueError) as error:
        raise ValueError(f"artifacts {url}: {str(error).partition(chr(10))[0]}") from error
