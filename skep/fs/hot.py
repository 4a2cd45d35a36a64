"""What the session's inner loop is told of a tree: which fids stand where, what a stat there answers.

Told are places that stay what they are: fixed directories, files whose attributes are steady, open texts,
memory files, files of an exported directory. Everything else is left to the session.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Any, Final

from skep.fs.chan import EVERYTHING, Chan
from skep.fs.export import HostHandle, HostNode
from skep.fs.messages import Dialect, Qid
from skep.fs.shapes import File, MemoryHandle, Snapshot
from skep.fs.tree import Dir
from skep.native.hot import AVAILABLE, BUDGET_MAX, NOT_HERE, READ, WRITE, Table
from skep.native.memory import Compiled

_NUMBERS: Final = {Dialect.PLAIN: 1, Dialect.U: 2, Dialect.L: 3}


class Hot:
    """One session's table, in terms of chans. The session calls it on every change of its fids."""

    def __init__(self, fids_max: int) -> None:
        self.table = Table(fids_max)
        self._places: dict[tuple[int, str], int] = {}  # (parent place, name) -> place
        self._chans: dict[int, Chan] = {}  # place -> a chan there, not open

    def reset(self, msize: int, dialect: Dialect | None) -> None:
        self.table.reset(msize, _NUMBERS[dialect] if dialect else 0)
        self._places.clear()
        self._chans.clear()

    def run(self, data: Any, at: int) -> tuple[int, bytes]:
        """How far ``data`` from ``at`` on is answered, and the answers."""
        return self.table.run(data, at)

    def budget(self, calls: int, walks: int) -> None:
        self.table.budget(min(calls, BUDGET_MAX), min(walks, BUDGET_MAX))

    def left(self) -> tuple[int, int]:
        return self.table.left

    def limit(self, fids_max: int) -> None:
        self.table.limit(fids_max)

    def hold(self, tag: int, fids: tuple[int, ...]) -> None:
        self.table.hold(tag, fids)

    def release(self, tag: int, fids: tuple[int, ...], known: Mapping[int, Any]) -> None:
        self.table.release(tag, fids, known)

    def drop(self, fid: int) -> None:
        self.table.drop(fid)

    def bound(self, fid: int, chan: Chan) -> None:
        """A fid is bound to ``chan``, which is not open."""
        node = chan.node
        if isinstance(node, HostNode):
            seen = chan.plain and chan.view is EVERYTHING
            self.table.fid(fid, NOT_HERE, node.fd if seen else NOT_HERE, node.path)
            return
        self.table.fid(fid, self._place(chan))

    def taken(self, fid: int) -> None:
        """A fid is bound to what is not a file: for proofs, or an attribute. All of it is the session's."""
        self.table.fid(fid, NOT_HERE)

    def opened(self, fid: int, chan: Chan) -> None:
        """A fid bound to ``chan`` has been opened. What is open otherwise than here is none of the loop's."""
        handle, how = chan.handle, chan.how
        if handle is None or how is None:  # a special file just made: a fid that is open for nothing
            return
        access = (READ if how.read else 0) | (WRITE if how.write else 0)
        if type(handle) is Snapshot:
            self.table.open_bytes(fid, handle.data)
        elif type(handle) is MemoryHandle and isinstance(handle.file.data, Compiled):
            if not handle.append:
                self.table.open_memory(fid, handle.file.data, access)
        elif (
            isinstance(handle, HostHandle)
            and isinstance(chan.node, HostNode)
            and stat.S_ISREG(chan.node.format)
        ):
            self.table.open_host(fid, handle.fd, access)

    def walked(self, chan: Chan, qid: Qid) -> None:
        """A walk led to ``chan``: its name is known from now on."""
        if chan.up is None or not chan.plain or not isinstance(chan.up.node, Dir) or not _steady(chan.node):
            return
        parent, here = self._place(chan.up), self._place(chan)
        raw = qid.type.to_bytes(1, "little") + qid.vers.to_bytes(4, "little") + qid.path.to_bytes(8, "little")
        self.table.name(parent, here, chan.name.encode("utf-8", "surrogateescape"), raw)

    def told(self, chan: Chan, frame: bytes) -> None:
        """A stat of ``chan`` was answered with ``frame``."""
        place = self._place(chan)
        if place != NOT_HERE and _steady(chan.node):
            self.table.reply(place, frame)

    def _place(self, chan: Chan) -> int:
        """The number of the place where ``chan`` is, if it can be told by fixed names from the root."""
        if chan.place is None:
            chan.place = self._find(chan) if chan.plain else NOT_HERE
        return chan.place

    def _find(self, chan: Chan) -> int:
        if chan.up is None:
            # What the ids are of is kept by the chan in _chans.
            key = (NOT_HERE, f"/{id(chan.node)}/{id(chan.caller)}/{id(chan.view)}")
        elif isinstance(chan.up.node, Dir) and (above := self._place(chan.up)) != NOT_HERE:
            key = (above, chan.name)
        else:
            return NOT_HERE
        if key not in self._places:
            place = self.table.place()
            if place == NOT_HERE:
                return NOT_HERE
            self._places[key] = place
            self._chans[place] = chan.clone()
        return self._places[key]

    def spill(self, fids: Mapping[int, Any]) -> list[tuple[int, Chan]]:
        """The fids the loop bound by itself since, and where each is."""
        if not self.table.ghosts:
            return []
        spilled = []
        for ghost in self.table.spill():
            if ghost.node == NOT_HERE:
                chan = self._chans[ghost.place].clone()
                chan.place = ghost.place
            else:
                above: Chan = fids[ghost.parent].chan
                assert isinstance(above.node, HostNode)
                node = HostNode(above.node.tree, ghost.node)
                name = ghost.name.decode("utf-8", "surrogateescape")
                chan = Chan(node, above.caller, above.view, above.clone(), name)
            spilled.append((ghost.fid, chan))
        return spilled


def _steady(node: Any) -> bool:
    """Whether its stat stays the same until it says that it has moved."""
    kind = type(node)
    return isinstance(node, File) and node.steady and kind.attr is File.attr and kind.size is File.size


def hot(fids_max: int) -> Hot | None:
    """A table for one session; None where the loop was not compiled."""
    return Hot(fids_max) if AVAILABLE else None
