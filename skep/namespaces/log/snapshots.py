"""The hive's snapshots as files of /log/trace: who keeps one, folds on from it when the hive is gone."""

from __future__ import annotations

import asyncio
import stat
from typing import Any

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Text
from skep.fs.tree import Listing
from skep.namespaces.follow import AUDITORS
from skep.namespaces.live import Hive
from skep.namespaces.log.tree import TileFile, check, traces
from skep.trace.snapshot import SnapshotError, listed, read_note


def snapshot_files(hive: Hive) -> dict[str, Any]:
    """What stands of them in /log/trace."""

    def note(caller: Caller) -> bytes:
        check(caller)
        for _, path in listed(hive.directory):
            try:
                return read_note(path)
            except SnapshotError:
                continue  # it has just been removed, or is damaged
        return b""

    def names(caller: Caller) -> list[str]:
        return [str(size) for size, _ in listed(hive.directory)] if traces(caller) else []

    def find(name: str, caller: Caller) -> TileFile | None:
        return _snapshot(hive, name) if name in names(caller) else None

    return {"snapshot": Text(note), "snapshots": Listing(names, find, listed=stat.S_IFREG)}


def _snapshot(hive: Hive, name: str) -> TileFile:
    """One of them, whole: it has every tenant's state. Memory for all of it is taken."""

    async def content(caller: Caller) -> bytes:
        check(caller, AUDITORS)
        for size, path in listed(hive.directory):
            if str(size) == name:
                return await asyncio.to_thread(path.read_bytes)
        raise FsError(E.MISSING, name)

    return TileFile(content)
