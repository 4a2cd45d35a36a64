"""Reaching a log in tiles from a command: on a mount, in a directory, at a hive's address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from skep.cli.exits import Failed, told
from skep.fs.address import Address, parse

if TYPE_CHECKING:  # cryptography takes a while to import
    from skep.validator.verify.sources import Read, Source

T = TypeVar("T")
TRACE: Final = "log/trace"  # where a hive has it


class NoLog(Failed):
    """It is no place where a log could be."""


def of_log(target: str, work: Callable[[Source], T], copy: Path | None = None) -> T:
    """What ``work`` makes of the log; what it reads is put into the directory ``copy``, too. Raises NoLog,
    Failed, and Finding where there is no checkpoint."""
    from skep.validator.verify.sources import below

    path = Path(target)
    if path.is_dir():
        root = path / TRACE if (path / TRACE).is_dir() else path
        return work(_source(below(root), copy))
    try:
        hive = parse(target)
    except ValueError as error:
        raise NoLog(f"{target}: expected a directory, a file or an address: {error}") from error
    return asyncio.run(_of_hive(hive, target, work, copy))


def _source(read: Read, copy: Path | None) -> Source:
    from skep.validator.verify.sources import TileSource

    if copy is None:
        return TileSource(read)
    source = TileSource(_copying(read, copy))
    # Asked for or not: who verifies the copy has them there.
    source.keys()
    source.handovers()
    return source


def _copying(read: Read, directory: Path) -> Read:
    """``read``, which also puts what it reads into the directory."""

    def kept(name: str) -> bytes | None:
        data = read(name)
        if data is not None:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        return data

    return kept


async def _of_hive(hive: Address, target: str, work: Callable[[Source], T], copy: Path | None) -> T:
    """The same of a hive that is reached, on a thread: it asks for what it needs."""
    from skep.cli.connect import dialled
    from skep.fs.errors import E, FsError
    from skep.trace.tiles import BUNDLE_MAX

    loop = asyncio.get_running_loop()
    async with dialled(hive) as client:

        async def fetched(name: str) -> bytes | None:
            try:
                return await client.read_file(f"/{TRACE}/{name}", BUNDLE_MAX)
            except FsError as error:
                if error.kind is E.MISSING:
                    return None
                raise

        def read(name: str) -> bytes | None:
            return asyncio.run_coroutine_threadsafe(fetched(name), loop).result()

        with told(f"{target}/{TRACE}"):
            return await asyncio.to_thread(lambda: work(_source(read, copy)))
