"""/sessions: who is attached now.

    <id>/principal   R who it is
    <id>/peer        R the address of its other end
    <id>/fids        R how many files it has open or at hand
    <id>/since       R when it attached
    <id>/ns          R its namespace, as mount and bind lines
    <id>/limits      R its limits, a line each, what is left of them, and how often they refused
    <id>/ctl         W kick; R usage

A session exists for its tenant.

    echo kick > sessions/01JD…/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from skep.fs import ctl
from skep.fs.ctl import Command, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text
from skep.fs.tree import Listing
from skep.namespaces.live import Hive
from skep.namespaces.rows import Rows
from skep.namespaces.sessions.core import Session
from skep.trace.clock import rfc3339

VERBS: Final = ctl.verbs(Verb("kick", (), "kick", "end the session"))


def files(hive: Hive) -> Listing:
    """The tree of /sessions."""
    sessions = hive.sessions.by_id

    def names(caller: Caller) -> list[str]:
        return [session.id for session in sessions.values() if session.caller.tenant == caller.tenant]

    def walk(id: str, caller: Caller) -> Any:
        return Rows(FILES, hive, id) if id in names(caller) else None

    return Listing(names, walk)


def _record(render: Callable[[Session], object]) -> Callable[[Hive, str], Text]:
    """A row rendered from the session when opened."""
    return lambda hive, id: Text(lambda: f"{render(_session(hive, id))}\n")


def _session(hive: Hive, id: str) -> Session:
    """The session. Raises FsError(E.MISSING) when it has ended since it was walked to."""
    session = hive.sessions.by_id.get(id)
    if session is None:
        raise FsError(E.MISSING)
    return session


def _ns(hive: Hive, id: str) -> Text:
    return Text(lambda: _session(hive, id).ns)


def _ctl(hive: Hive, id: str) -> Ctl:
    def run(caller: Caller, commands: list[Command]) -> Any:
        return hive.command(caller, "/ctl", [ctl.line("kick", {"session": id})] * len(commands))

    return Ctl(VERBS, run)


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "principal": _record(lambda session: session.caller.principal),
    "peer": _record(lambda session: session.peer),
    "fids": _record(lambda session: session.fids()),
    "since": _record(lambda session: rfc3339(session.since_ns)),
    "ns": _ns,
    "limits": lambda hive, id: Text(lambda: hive.limits.text(_session(hive, id))),
    "ctl": _ctl,
}
