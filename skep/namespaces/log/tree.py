"""The ledger's tree as files of /log/trace: checkpoint, keys, tiles, bundles of entries, proofs.

Their contents are evidence.py's. A tile that is not whole yet is <N>.p/<W>; of any tile or bundle the first W
can be read that way, for every W there ever was a checkpoint for."""

from __future__ import annotations

import re
import stat
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Handle, How
from skep.fs.shapes import File, Snapshot, Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.evidence import Evidence
from skep.namespaces.follow import AUDITORS, TRACERS
from skep.namespaces.order import HIVE_TENANT
from skep.trace.tiles import ENTRIES, LEVEL_MAX, WIDTH, Tile

PROOF: Final = "c2sp.org/tlog-proof@v1"
GROUP: Final = 1000  # names in one directory of tiles
_WIDTH_NAME: Final = re.compile(r"[1-9]\d{0,2}")
_QUESTIONS: Final = {
    "inclusion": ctl.verbs(Verb("inclusion", (Arg("entry", required=True, kind="number"),))),
    "consistency": ctl.verbs(
        Verb("consistency", (Arg("old", required=True, kind="number"), Arg("size", kind="number")))
    ),
}


def evidence_files(evidence: Evidence) -> dict[str, Any]:
    """What stands in /log/trace beside the trace itself."""

    def told(content: Callable[[], str | bytes]) -> Text:
        def read(caller: Caller) -> str | bytes:
            check(caller)
            return content()

        return Text(read)

    return {
        "checkpoint": told(evidence.checkpoint),
        "keys": told(evidence.keys),
        "handovers": told(evidence.handovers),
        # How many entries there are, would tell what others do.
        "tile": Listing(
            lambda caller: levels(evidence) if traces(caller) else [],
            lambda name, caller: _level(evidence, name) if traces(caller) else None,
            listed=stat.S_IFDIR,
        ),
        "proof": {
            "inclusion": Transaction(lambda caller, said: included(evidence, caller, said)),
            "consistency": Transaction(lambda caller, said: consistent(evidence, caller, said)),
        },
    }


def traces(caller: Caller) -> bool:
    """Whether the whole trace is there for the caller."""
    return caller.tenant == HIVE_TENANT and caller.role in TRACERS


def check(caller: Caller, roles: frozenset[str] = TRACERS) -> None:
    """Refuse who may not read the whole trace."""
    if caller.tenant != HIVE_TENANT:
        raise FsError(E.DENIED, "rule=hive-tenant the tree is of all tenants' entries")
    if caller.role not in roles:
        raise FsError(E.DENIED, f"rule=auditors {caller.role} is none")


# tiles


class TileFile(File):
    """A tile or bundle, taken when opened. ``content`` raises FsError for what is not there."""

    def __init__(self, content: Callable[[Caller], Awaitable[bytes]]) -> None:
        super().__init__(0o444)
        self.content = content

    async def opened(self, how: How, caller: Caller) -> Handle:
        return Snapshot(await self.content(caller))


def levels(evidence: Evidence) -> list[str]:
    """The names in /log/trace/tile."""
    sizes = (evidence.size >> 8 * level for level in range(LEVEL_MAX + 1))
    return [ENTRIES, *(str(level) for level, size in enumerate(sizes) if size)]


def _level(evidence: Evidence, name: str) -> Listing | None:
    if name == ENTRIES:
        return _folder(evidence, None)
    known = name.isascii() and name.isdecimal() and str(int(name)) == name and int(name) <= LEVEL_MAX
    return _folder(evidence, int(name)) if known else None


def _folder(evidence: Evidence, level: int | None, group: int = 0) -> Listing:
    """The directory of the tiles of a level whose numbers begin with ``group``."""

    def size() -> int:
        """Hashes, or entries, that there are now."""
        return evidence.size >> 8 * (level or 0)

    def names(caller: Caller) -> list[str]:
        whole, rest = divmod(size(), WIDTH)
        begin = group * GROUP
        found = [f"{index % GROUP:03}" for index in range(begin, min(begin + GROUP, whole))]
        if rest and begin <= whole < begin + GROUP:
            found.append(f"{whole % GROUP:03}.p")
        beyond = (whole if rest else whole - 1) // GROUP  # the last group below
        return found + [
            f"x{below % GROUP:03}" for below in range(max(begin, 1), min(begin + GROUP, beyond + 1))
        ]

    def find(name: str, caller: Caller) -> Any:
        below = _number(name.removeprefix("x"))
        if name.startswith("x"):
            inside = group * GROUP + below
            there = below >= 0 and inside > 0 and inside * GROUP * WIDTH < size()
            return _folder(evidence, level, inside) if there else None
        index = group * GROUP + _number(name.removesuffix(".p"))
        if _number(name.removesuffix(".p")) < 0 or index * WIDTH >= size():
            return None
        if name.endswith(".p"):
            return _parts(evidence, level, index, size)
        return _tile(evidence, Tile(level, index)) if (index + 1) * WIDTH <= size() else None

    return Listing(names, find)


def _number(name: str) -> int:
    """Of three digits; -1: it is not."""
    return int(name) if len(name) == 3 and name.isascii() and name.isdecimal() else -1


def _parts(evidence: Evidence, level: int | None, index: int, size: Callable[[], int]) -> Listing:
    """``<N>.p``: listed is what there is now, found is what there was."""

    def width() -> int:
        return min(size() - index * WIDTH, WIDTH - 1)

    def find(name: str, caller: Caller) -> TileFile | None:
        known = _WIDTH_NAME.fullmatch(name) is not None and int(name) <= width()
        return _tile(evidence, Tile(level, index, int(name))) if known else None

    return Listing(lambda caller: [str(width())], find)


def _tile(evidence: Evidence, tile: Tile) -> TileFile:
    async def content(caller: Caller) -> bytes:
        check(caller, TRACERS if tile.level is not None else AUDITORS)
        return await evidence.hash_tile(tile) if tile.level is not None else evidence.entries(tile)

    return TileFile(content)


# proofs


async def included(evidence: Evidence, caller: Caller, said: bytes) -> bytes:
    """A tlog-proof: index, path, checkpoint."""
    index = int(_asked("inclusion", caller, said)["entry"]) - 1
    path, checkpoint = await evidence.inclusion(index)
    return _lines([PROOF, f"index {index}"], path, checkpoint)


async def consistent(evidence: Evidence, caller: Caller, said: bytes) -> bytes:
    """As tlog-witness sends it: old size, path, checkpoint."""
    asked = _asked("consistency", caller, said)
    return await shown(evidence, int(asked["old"]), int(asked["size"]) if "size" in asked else None)


async def shown(evidence: Evidence, old: int, size: int | None) -> bytes:
    """The checkpoint of ``size`` entries, None: of all, with the proof that it continues that of ``old``."""
    path, checkpoint = await evidence.consistency(old, size)
    return _lines([f"old {old}"], path, checkpoint)


def _asked(question: str, caller: Caller, said: bytes) -> dict[str, str]:
    check(caller)
    commands = ctl.parse(question.encode() + b" " + said)
    if len(commands) != 1:
        raise FsError(E.USAGE, "expected one line")
    ctl.check(commands[0], _QUESTIONS[question])
    return commands[0].args


def _lines(head: Sequence[str], path: Sequence[bytes], checkpoint: bytes) -> bytes:
    lines = [*head, *(b64encode(found).decode() for found in path), ""]
    return "".join(f"{line}\n" for line in lines).encode() + checkpoint
