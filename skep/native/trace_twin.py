"""trace.c without a compiler: the same hashes in Python, one by one.

Method for method what trace.Compiled is; there each is told. Threads wait for each other here."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

from skep.native.trace import HASH


class Twin:
    """The hashes, by hashlib."""

    sha = False

    def leaves(self, bodies: Sequence[bytes], threads: int = 1) -> bytes:
        return b"".join([sha256(b"\x00" + body).digest() for body in bodies])

    def leaves_of(self, data: bytes, ends: array[int], threads: int = 1) -> bytes:
        begins = [0, *ends]
        return self.leaves([data[begin:end] for begin, end in zip(begins, ends, strict=False)])

    def fold(self, hashes: bytes, levels: int) -> bytes:
        for _ in range(levels):
            pairs = range(0, len(hashes), 2 * HASH)
            hashes = b"".join([sha256(b"\x01" + hashes[i : i + 2 * HASH]).digest() for i in pairs])
        return hashes

    def grow(
        self, size: int, peaks: Sequence[bytes], leaves: bytes, sizes: Sequence[int] = ()
    ) -> tuple[list[bytes], bytes]:
        grown, roots, asked = list(peaks), [], iter(sizes)
        wanted = next(asked, 0)
        for i in range(0, len(leaves), HASH):
            node, n = leaves[i : i + HASH], size
            while n & 1:
                node = sha256(b"\x01" + grown.pop() + node).digest()
                n >>= 1
            grown.append(node)
            size += 1
            while size == wanted:
                roots.append(root_of(grown))
                wanted = next(asked, 0)
        return grown, b"".join(roots)


def root_of(peaks: Sequence[bytes]) -> bytes:
    """The hash of a tree that has some leaves."""
    *others, root = peaks
    for peak in reversed(others):
        root = sha256(b"\x01" + peak + root).digest()
    return root
