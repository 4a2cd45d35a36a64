"""Recordings as files of /log/trace: what orders them, which are being made, and those that there are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Blob, Ctl, Text
from skep.fs.tree import Listing
from skep.namespaces.follow import AUDITORS
from skep.namespaces.live import Hive
from skep.namespaces.log.recordings import VERBS
from skep.namespaces.order import covers
from skep.trace.clock import rfc3339

CTL: Final = "/log/trace/ctl"


def taped_files(hive: Hive) -> dict[str, Any]:
    """What stands in /log/trace about recordings."""
    return {
        "ctl": Ctl(VERBS, lambda caller, commands: record(hive, caller, commands)),
        "recordings": Text(lambda caller: recordings(hive, caller)),
        "sessions": Listing(
            lambda caller: list(_made(hive, caller)),
            lambda name, caller: _recording(_made(hive, caller).get(name)),
        ),
    }


def record(hive: Hive, caller: Caller, commands: list[Command]) -> Awaitable[list[str]]:
    """Order recordings. Raises FsError(E.MISSING) for a session that is not there for the caller."""
    for command in commands:
        id = command.args.get("session", "")
        session = hive.sessions.by_id.get(id)
        if id and command.args["set"] == "on" and (session is None or not _reaches(caller, session.caller)):
            raise FsError(E.MISSING, f"session={id}")
    return hive.writes(CTL)(caller, commands)


def _reaches(caller: Caller, other: Caller) -> bool:
    return covers(caller.tenant, other.tenant)


def recordings(hive: Hive, caller: Caller) -> str:
    """Lines of ``key=value`` words."""
    if caller.role not in AUDITORS:
        raise FsError(E.DENIED, f"rule=auditors {caller.role} is none")
    lines = [
        f"session={id} principal={tape.session.caller.principal} since={rfc3339(tape.since_ns)}"
        f" messages={tape.recorder.count} bytes={tape.recorder.size}"
        for id, tape in hive.tapes.tapes.items()
        if _reaches(caller, tape.session.caller)
    ]
    ordered = hive.state.log.recordings.principals
    lines += [f"principal={principal}" for of, principal in ordered if covers(caller.tenant, of)]
    return "".join(f"{line}\n" for line in lines)


def _made(hive: Hive, caller: Caller) -> dict[str, Path]:
    """The recordings that the caller may read, by name."""
    if caller.role not in AUDITORS:
        return {}
    return {made.path.name: made.path for made in hive.tapes.made() if covers(caller.tenant, made.tenant)}


def _recording(path: Path | None) -> Blob | None:
    if path is None:
        return None

    def read_at(offset: int, count: int) -> Awaitable[bytes]:
        return asyncio.to_thread(_read, path, offset, count)

    return Blob(read_at, lambda: _size(path))


def _read(path: Path, offset: int, count: int) -> bytes:
    """Raises FsError(E.MISSING) when it has been removed to make room."""
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), count, offset)
    except FileNotFoundError:
        raise FsError(E.MISSING, path.name) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise FsError(E.MISSING, path.name) from None
