"""The Merkle tree of RFC 6962, grown by a leaf or by many.

Only hashes of whole subtrees that still can grow are kept (at most one a bit of the size), so a
leaf costs two hashes on average and the root one for each bit set. Proofs and tiles are elsewhere.
Source: RFC 6962, 2.1."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from skep.native.trace import hashing

HASH_SIZE = 32
EMPTY_ROOT = sha256().digest()


class Frontier:
    """The right edge of a tree of ``size`` leaves: its complete subtrees' hashes, largest first."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: tuple[bytes, ...] = ()) -> None:
        assert len(peaks) == size.bit_count()
        self.size = size
        self._peaks = list(peaks)

    @property
    def peaks(self) -> list[bytes]:
        """The hashes of its complete subtrees, largest first."""
        return self._peaks[:]

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        peaks, n = self._peaks, self.size
        self.size = n + 1
        while n & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            n >>= 1
        peaks.append(leaf)

    def extend(self, leaves: bytes, sizes: Sequence[int] = ()) -> list[bytes]:
        """Add leaves' hashes, joined; the roots that the tree has on the way at ``sizes``, which ascend from
        above its own."""
        self._peaks, roots = hashing.grow(self.size, self._peaks, leaves, sizes)
        self.size += len(leaves) // HASH_SIZE
        return [roots[i : i + HASH_SIZE] for i in range(0, len(roots), HASH_SIZE)]

    def root(self) -> bytes:
        """The tree's hash."""
        if not self._peaks:
            return EMPTY_ROOT
        peaks = reversed(self._peaks)
        root = next(peaks)
        for peak in peaks:
            root = sha256(b"\x01" + peak + root).digest()
        return root

    def copy(self) -> Frontier:
        return Frontier(self.size, tuple(self._peaks))

    def pack(self) -> bytes:
        """size[8, big-endian] then 32 bytes for each complete subtree, largest first."""
        return self.size.to_bytes(8, "big") + b"".join(self._peaks)

    @classmethod
    def unpack(cls, data: bytes) -> Frontier:
        """What ``pack`` gave; raises ValueError when the length is not the size's."""
        size = int.from_bytes(data[:8], "big")
        if len(data) != 8 + HASH_SIZE * size.bit_count():
            raise ValueError(f"frontier of {size} leaves in {len(data)} bytes")
        return cls(size, tuple(data[i : i + HASH_SIZE] for i in range(8, len(data), HASH_SIZE)))
