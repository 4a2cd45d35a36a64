"""/dlq/undecodable: what was written to submit a job and nobody could read; files.py is its man page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from skep.fs.node import Caller
from skep.fs.shapes import Text
from skep.fs.tree import Listing
from skep.namespaces.jobs.undecodable import CODE, Letter
from skep.namespaces.live import Hive
from skep.namespaces.order import actor_of
from skep.namespaces.rows import Rows
from skep.trace.clock import rfc3339


def files(hive: Hive) -> Listing:
    """The tree of /dlq/undecodable."""

    def walk(id: str, caller: Caller) -> Any:
        letter = _seen(hive, id, caller)
        return None if letter is None else Rows(FILES, letter, id, letter.rev)

    def names(caller: Caller) -> list[str]:
        return [
            id for id in hive.state.undecodable.by_tenant.get(caller.tenant, ()) if _seen(hive, id, caller)
        ]

    return Listing(names, walk)


def _seen(hive: Hive, id: str, caller: Caller) -> Letter | None:
    """The letter, if it exists for the caller; to a node what it wrote itself."""
    actor = actor_of(caller.principal, caller.node) if caller.node else ""
    return hive.state.undecodable.find(caller.tenant, id, actor)


def _entry(letter: Letter) -> str:
    kept = letter.kept
    shown = {
        "letter": kept.letter, "tenant": kept.tenant, "submitter": kept.actor, "code": CODE,
        "message": kept.why, "size": kept.size, "sha256": kept.sha256, "kept": len(letter.data),
        "data": kept.data, "written": rfc3339(letter.time_ns),
    }  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


FILES: Final[Mapping[str, Callable[[Letter, str], Text]]] = {
    "entry.json": lambda letter, id: Text(_entry(letter)),
    "data": lambda letter, id: Text(letter.data),
    "error": lambda letter, id: Text(f"{letter.kept.why}\n"),
}
