"""A ledger's rows, many at a time: whether they follow on the tree so far. Which does not, is not said here.

A row is (seq, body, leaf, since, root, ...): an entry, its leaf hash, and of the commit that ends with it
where that began and the tree's root; None where none ends. Somebody may have written anything to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from skep.native.trace import hashing
from skep.trace.merkle import EMPTY_ROOT, HASH_SIZE, Frontier

ROWS_MAX: Final = 256  # of one batch: 16 MiB at the most; what is in the cache is hashed faster


class Edge(NamedTuple):
    """Where a ledger ends so far: the tree of its entries, and the size and the root of its last commit."""

    frontier: Frontier
    committed: int = 0
    root: bytes = EMPTY_ROOT


def follow(edge: Edge, rows: Sequence[Sequence[Any]]) -> Edge | None:
    """The edge after ``rows``, of which there are some; None: one of them does not follow.

    Edges share nothing: the one before stays as it is."""
    seqs, bodies, leaves, sinces, roots, *_ = zip(*rows, strict=True)
    size = edge.frontier.size
    if seqs != tuple(range(size + 1, size + len(rows) + 1)):
        return None
    if {bytes} != {*map(type, bodies), *map(type, leaves)}:
        return None
    hashes = b"".join(leaves)
    if {HASH_SIZE} != set(map(len, leaves)) or hashes != hashing.leaves(bodies):
        return None
    ends = [seq for seq, root in zip(seqs, roots, strict=True) if root is not None]
    if [edge.committed, *ends][:-1] != [since for since in sinces if since is not None]:
        return None
    frontier = edge.frontier.copy()
    made = frontier.extend(hashes, ends)
    if made != [root for root in roots if root is not None]:
        return None
    return Edge(frontier, ends[-1], made[-1]) if ends else Edge(frontier, edge.committed, edge.root)
