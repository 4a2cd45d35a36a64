"""Directories of objects: a table of rows, one for each file, made when walked to.

A hive lists many thousands of jobs: a directory that is only listed makes none of its files.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from skep.fs.chan import settle
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Entry, Handle, How, Maybe, Node
from skep.fs.shapes import File
from skep.fs.tree import Dir, as_node, new_block, number

H = TypeVar("H")

NUMBER_DIGITS_MAX: Final = 18  # of the N in "events@N": a ledger number or an offset of 63 bits.


class Rows(File, Generic[H]):
    """The directory of the object ``id`` of ``hive``: ``rows`` gives the thing behind each name.

    ``at`` gives what stands behind ``name@N``, which is walked to but not listed. ``version``: the object's
    revision."""

    kind = stat.S_IFDIR

    def __init__(
        self,
        rows: Mapping[str, Callable[[H, str], Any]],
        hive: H,
        id: str,
        version: int = 0,
        at: Mapping[str, Callable[[H, str, int], Any]] | None = None,
    ) -> None:
        super().__init__(0o555)
        self.rows = rows
        self.hive = hive
        self.id = id
        self.version = version
        self.at = at or {}

    def walk(self, name: str, caller: Caller) -> Node:
        if name not in self.rows:
            return follower(name, {base: self._since(row) for base, row in self.at.items()})
        node = as_node(self.rows[name](self.hive, self.id))
        if isinstance(node, File):
            # A Listing sets numbers aside for what is below its entries.
            node.number = self.path + 1 + list(self.rows).index(name)
            node.version = self.version
        return node

    def _since(self, row: Callable[[H, str, int], Any]) -> Callable[[int], Any]:
        return lambda n: row(self.hive, self.id, n)

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Listed(self, caller)


class _Listed(Handle):
    def __init__(self, rows: Rows[Any], caller: Caller) -> None:
        self.rows = rows
        self.caller = caller

    async def entries(self) -> list[Entry]:
        entries = []
        for name in self.rows.rows:
            attr = await settle(self.rows.walk(name, self.caller).attr(self.caller))
            entries.append(Entry(name, attr.qid, attr.mode))
        return entries


def fixed(children: Mapping[str, Any]) -> dict[str, Node]:
    """The nodes that always stand in a Listing, numbered now: later, their numbers would tell a tenant
    whether somebody had looked before."""
    nodes = {name: as_node(thing) for name, thing in children.items()}
    first = new_block()
    for node in nodes.values():
        assert isinstance(node, File)
        first = number(node, first)
    return nodes


class Followed(Dir):
    """A directory of fixed names, some of which can be followed: ``at`` gives what is at ``name@N``."""

    def __init__(self, children: Mapping[str, Any], at: Mapping[str, Callable[[int], Any]]) -> None:
        super().__init__(children)
        self.at = at

    def walk(self, name: str, caller: Caller) -> Maybe[Node]:
        return super().walk(name, caller) if name in self.children else follower(name, self.at)


def follower(name: str, at: Mapping[str, Callable[[int], Any]]) -> Node:
    """What stands behind ``base@N``. Raises FsError(E.MISSING)."""
    base, sign, number = name.rpartition("@")
    if not sign or base not in at or not number.isascii() or not number.isdigit():
        raise FsError(E.MISSING, name)
    if len(number) > NUMBER_DIGITS_MAX:
        raise FsError(E.MISSING, name)
    return as_node(at[base](int(number)))
