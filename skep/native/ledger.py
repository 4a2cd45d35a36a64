"""A ledger's rows verified by ledger.c, where it was built and Python's SQLite can be found; else none are.

It goes as far as all is well. So there is nothing here that must be had: whoever asks goes on from there,
finds what is wrong and says it."""

from __future__ import annotations

# It is the SQLite that this loads that is asked.
import sqlite3  # noqa: F401
from typing import Any, Final, NamedTuple

from skep.native.trace import HASH, packed, unpacked

try:
    from skep.native._trace import ffi, lib
except ImportError:
    ffi = lib = None

AVAILABLE: Final = lib is not None and bool(lib.ledger_begin())


class End(NamedTuple):
    """Where verified rows end: a tree's size and peaks, its last commit's size and root."""

    size: int
    peaks: list[bytes]
    committed: int
    root: bytes


def follow(uri: str, sql: str, end: End, last: int, numbers: bool) -> End:
    """The end after the rows that follow on ``end``, up to entry ``last`` or the first that does not.

    ``sql`` selects seq, body, leaf, since and root after its first and up to its second value, from the
    database at ``uri``; ``numbers``: each body must say its own. The interpreter is left to others meanwhile,
    and a second core is used."""
    if not AVAILABLE:
        return end
    new: Any = ffi.new
    size, committed = new("uint64_t *", end.size), new("uint64_t *", end.committed)
    peaks, root = packed(end.size, end.peaks), bytearray(end.root)
    lib.ledger_follow(
        uri.encode(), sql.encode(), numbers, last, size, committed,
        ffi.from_buffer("uint8_t *", peaks), ffi.from_buffer("uint8_t *", root),
    )  # fmt: skip
    assert len(root) == HASH
    return End(size[0], unpacked(size[0], peaks), committed[0], bytes(root))
