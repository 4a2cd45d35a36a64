"""Proofs about the Merkle tree of RFC 6962: that an entry is in it, that one tree continues another.

They are made from the hashes of complete subtrees, whoever keeps those (tiles.py), and checked with nothing
but the roots. Entries are counted from 0 here.
Sources: RFC 6962, 2.1.1 and 2.1.2 (making); RFC 9162, 2.1.3.2 and 2.1.4.2 (checking)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from skep.trace.merkle import EMPTY_ROOT

Node = Callable[[int, int], bytes]
"""(level, index) -> the hash of the complete subtree of the 2**level leaves from index * 2**level on."""


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root_of(size: int, node: Node) -> bytes:
    """The hash of the tree's first ``size`` leaves."""
    return _hash_of(0, size, node) if size else EMPTY_ROOT


def inclusion(index: int, size: int, node: Node) -> list[bytes]:
    """The path of leaf ``index``, which is below ``size``: from its sibling up."""
    assert 0 <= index < size
    begin, end, path = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_hash_of(middle, end, node))
            end = middle
        else:
            path.append(_hash_of(begin, middle, node))
            begin = middle
    return path[::-1]


def consistency(old: int, new: int, node: Node) -> list[bytes]:
    """What shows that the tree of ``new`` leaves begins with that of ``old``; [] for none or as many."""
    assert 0 <= old <= new
    if not old:
        return []
    begin, end, path = 0, new, []
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_hash_of(middle, end, node))
            end = middle
        else:
            path.append(_hash_of(begin, middle, node))
            begin = middle
    if begin:
        path.append(_hash_of(begin, end, node))
    return path[::-1]


def is_included(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` leads from the leaf's hash at ``index`` to the root of a tree of ``size``."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for sibling in path:
        if not last:
            return False
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return not last and found == root


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` shows that the tree of ``new`` leaves begins with that of ``old``."""
    if old == 0 <= new != 0:
        return not path and old_root == EMPTY_ROOT
    return roots(old, new, old_root, path) == (old_root, new_root)


def roots(old: int, new: int, old_root: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """The roots of the trees of ``old`` leaves, not none, and of ``new`` that ``path`` leads to; None: it is
    of other sizes. Where the tree of ``old`` is complete its root is in no path, and believed to be
    ``old_root``."""
    if not 0 <= old <= new:
        return None
    if old == new:
        return None if path else (old_root, old_root)
    # A complete subtree's root is not repeated in the path.
    rest = [old_root, *path] if not old & (old - 1) else list(path)
    if not old or not rest:
        return None
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = rest[0]
    for sibling in rest[1:]:
        if not last:
            return None
        if at & 1 or at == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        at, last = at >> 1, last >> 1
    return None if last else (before, after)


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is above 1."""
    return 1 << (size - 1).bit_length() - 1


def _hash_of(begin: int, end: int, node: Node) -> bytes:
    """MTH(D[begin:end]) of a range that the tree's definition comes to: the largest subtrees are first."""
    hashes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        hashes.append(node(level, begin >> level))
        begin += 1 << level
    found = hashes.pop()
    while hashes:
        found = node_hash(hashes.pop(), found)
    return found
