"""The session's inner loop as a table that Python fills: hot.c. Its twin is fs/session.py itself.

The loop answers what it has been told about; what it stops at the session answers. So there is nothing here
that must be had: without the compiled module every frame takes the longer way and gets the same answer.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

from skep.native.memory import Compiled

try:
    from skep.native._hot import ffi, lib
except ImportError:
    ffi = lib = None

AVAILABLE: Final = lib is not None
OUT_SIZE: Final = (1 << 20) + (64 << 10)  # bytes answered at a time: the longest answer, or many short ones
NOT_HERE: Final = -1
READ: Final = 1
WRITE: Final = 2
BUDGET_MAX: Final = (1 << 64) - 1  # no budget: nobody answers so many calls


class Ghost(NamedTuple):
    """A fid the loop made: at ``place``, or on the host ``name`` below the fid ``parent``, as ``node``."""

    fid: int
    place: int
    parent: int
    node: int
    path: int
    name: bytes


class _Out(threading.local):
    """One thread's room for answers."""

    def __init__(self) -> None:
        self.buffer = ffi.new("uint8_t[]", OUT_SIZE)
        self.used = ffi.new("uint64_t *")
        self.view = ffi.buffer(self.buffer)


_out = _Out() if AVAILABLE else None


def steady_changed() -> None:
    """A file that was told as steady has changed: every answer remembered is asked for again."""
    if AVAILABLE:
        lib.hot_epoch += 1


class Table:
    """One session's fids as the loop sees them."""

    def __init__(self, fids_max: int) -> None:
        table = lib.hot_new(fids_max)
        if table == ffi.NULL:
            raise MemoryError
        self._table = ffi.gc(table, lib.hot_free)
        self._run = lib.hot_run
        self._bytes = ffi.typeof("uint8_t[]")
        assert _out is not None
        self._out = _out.buffer, _out.used, _out.view  # of the thread whose event loop the session is on
        self._left = ffi.new("uint64_t[2]")
        self._kept: dict[int, Any] = {}  # what open fids point to

    def reset(self, msize: int, dialect: int) -> None:
        """Forget everything; the version agreed on (dialect 1 9P2000, 2 .u, 3 .L; 0 none)."""
        lib.hot_reset(self._table, msize, dialect)
        self._kept.clear()

    def run(self, data: Any, at: int) -> tuple[int, bytes]:
        """How far ``data`` from ``at`` on is answered, and the answers."""
        out, used, view = self._out
        raw = ffi.from_buffer(self._bytes, data)
        made = self._run(self._table, raw + at if at else raw, len(data) - at, out, OUT_SIZE, used)
        return used[0], view[0:made]

    def budget(self, calls: int, walks: int) -> None:
        """How many calls, and walks among them, may be answered from now on."""
        lib.hot_budget(self._table, calls, walks)

    @property
    def left(self) -> tuple[int, int]:
        """What is left of the budget."""
        lib.hot_left(self._table, self._left, self._left + 1)
        return self._left[0], self._left[1]

    def limit(self, fids_max: int) -> None:
        """So many fids at the most from now on."""
        lib.hot_fids_max(self._table, fids_max)

    def place(self) -> int:
        """A new place of the tree; NOT_HERE when there are too many."""
        return int(lib.hot_place(self._table))

    def name(self, parent: int, child: int, name: bytes, qid: bytes) -> None:
        """``name`` leads from one place to another, until something steady changes."""
        lib.hot_name(self._table, parent, child, name, len(name), qid)

    def reply(self, place: int, frame: bytes) -> None:
        """What a stat of ``place`` is answered with."""
        lib.hot_reply(self._table, place, frame, len(frame))

    def fid(self, fid: int, place: int, node: int = NOT_HERE, path: int = 0) -> None:
        """A fid the session has, not open."""
        self._kept.pop(fid, None)
        if lib.hot_fid(self._table, fid, place, node, path) < 0:
            raise MemoryError

    def open_bytes(self, fid: int, data: bytes) -> None:
        """It is open for reading ``data``."""
        raw = ffi.from_buffer("uint8_t[]", data)
        self._kept[fid] = raw
        lib.hot_open_bytes(self._table, fid, raw, len(data))

    def open_memory(self, fid: int, memory: Compiled, how: int) -> None:
        self._kept[fid] = memory
        lib.hot_open_memory(self._table, fid, memory.raw, how)

    def open_host(self, fid: int, fd: int, how: int) -> None:
        """It is open as the descriptor ``fd``, which stays open until ``drop``."""
        lib.hot_open_host(self._table, fid, fd, how)

    def drop(self, fid: int) -> None:
        """The session has it no more."""
        lib.hot_drop(self._table, fid)
        self._kept.pop(fid, None)

    def hold(self, tag: int, fids: tuple[int, ...]) -> None:
        """A call is outstanding: its tag and its fids are not the loop's."""
        if lib.hot_hold_tag(self._table, tag, 1) < 0:
            raise MemoryError
        for fid in fids:
            lib.hot_hold_fid(self._table, fid, 1)

    def release(self, tag: int, fids: tuple[int, ...], known: Any) -> None:
        """It is answered; ``known``: the fids the session has."""
        lib.hot_hold_tag(self._table, tag, 0)
        for fid in fids:
            lib.hot_hold_fid(self._table, fid, -1)
            if fid not in known:
                lib.hot_unheld(self._table, fid)

    @property
    def ghosts(self) -> int:
        """Fids the loop made that the session does not know."""
        return int(lib.hot_ghosts(self._table))

    def spill(self) -> list[Ghost]:
        """Those fids, which are the session's from now on; each ``node`` is the caller's to close."""
        at, one, ghosts = ffi.new("uint32_t *"), ffi.new("struct hot_ghost *"), []
        while lib.hot_spill(self._table, at, one):
            name = ffi.string(one.name)
            ghosts.append(Ghost(one.fid, one.place, one.parent, one.node, one.path, name))
        return ghosts
