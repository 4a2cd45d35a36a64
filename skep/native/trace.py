"""The hashes of RFC 6962 over batches of entries, and the tree above them: trace.c, else its twin.

A batch costs some microseconds before its first hash, and leaves the interpreter to others meanwhile. Hashes
are joined, 32 bytes each; the peaks of a tree are its complete subtrees' hashes, largest first.
Source: RFC 6962, 2.1."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

HASH: Final = 32
LEVELS: Final = 64  # of the tallest tree
LEAVES_PAY: Final = 5  # from so many entries or leaves on it is faster than the twin: tests.bench.hashing
GROWTH_PAYS: Final = 13


class Compiled:
    """The hashes, by trace.c where there are enough for it. ``sha``: with the processor's SHA instructions,
    where it has them; that holds for all of the process."""

    def __init__(self, sha: bool = True, always: bool = False) -> None:
        from skep.native._trace import ffi, lib
        from skep.native.trace_twin import Twin

        self._twin = Twin()
        self._leaves_pay, self._growth_pays = (0, 0) if always else (LEAVES_PAY, GROWTH_PAYS)

        self._ffi: Any = ffi
        self._lib: Any = lib
        self.sha = bool(lib.trace_sha(sha))

    def leaves(self, bodies: Sequence[bytes], threads: int = 1) -> bytes:
        """The hash of each entry."""
        if len(bodies) < self._leaves_pay:
            return self._twin.leaves(bodies)
        ends = array("Q", accumulate(map(len, bodies)))
        return self.leaves_of(b"".join(bodies), ends, threads)

    def leaves_of(self, data: bytes, ends: array[int], threads: int = 1) -> bytes:
        """The same of entries that are joined, where each ends; ``ends`` is of 64 bits."""
        out = bytearray(len(ends) * HASH)
        buffer = self._ffi.from_buffer
        self._lib.trace_leaves(
            buffer(data), buffer("uint64_t *", ends), len(ends), buffer("uint8_t *", out), threads
        )
        return bytes(out)

    def fold(self, hashes: bytes, levels: int) -> bytes:
        """The nodes ``levels`` above these hashes, a multiple of 2**levels."""
        if not levels:
            return hashes
        out = bytearray(len(hashes) // 2)
        buffer = self._ffi.from_buffer
        self._lib.trace_fold(buffer(hashes), len(hashes) // HASH, levels, buffer("uint8_t *", out))
        return bytes(out[: len(hashes) >> levels])

    def grow(
        self, size: int, peaks: Sequence[bytes], leaves: bytes, sizes: Sequence[int] = ()
    ) -> tuple[list[bytes], bytes]:
        """The peaks of a tree of ``size`` leaves after these more, and the roots that it had at ``sizes`` on
        the way, which ascend from above ``size``."""
        if len(leaves) < self._growth_pays * HASH:
            return self._twin.grow(size, peaks, leaves, sizes)
        by_level = packed(size, peaks)
        count = len(leaves) // HASH
        roots = bytearray(len(sizes) * HASH)
        buffer = self._ffi.from_buffer
        failed = self._lib.trace_grow(
            size, buffer("uint8_t *", by_level), buffer(leaves), count,
            buffer("uint64_t *", array("Q", sizes)), len(sizes), buffer("uint8_t *", roots),
        )  # fmt: skip
        if failed:
            raise MemoryError
        return unpacked(size + count, by_level), bytes(roots)


def packed(size: int, peaks: Sequence[bytes]) -> bytearray:
    """The peaks of a tree by their level: peaks[64][32]."""
    by_level = bytearray(LEVELS * HASH)
    for level, peak in zip(_levels(size), peaks, strict=True):
        by_level[level * HASH : (level + 1) * HASH] = peak
    return by_level


def unpacked(size: int, by_level: bytearray) -> list[bytes]:
    """The same, largest first."""
    return [bytes(by_level[level * HASH : (level + 1) * HASH]) for level in _levels(size)]


def _levels(size: int) -> list[int]:
    """Those of a tree's peaks."""
    return [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]


def _calls() -> Any:
    """The compiled hashes where they were built, else the twin's."""
    try:
        return Compiled()
    except ImportError:
        from skep.native.trace_twin import Twin

        return Twin()


hashing: Final[Compiled] = _calls()
