"""A ledger's rows, many at a time: whether they follow on the tree so far. Which does not, is not said here.

A row is (seq, body, leaf, since, root, ...): an entry, its leaf hash, and of the commit that ends with it
where that began and the tree's root; None where none ends. Somebody may have written anything to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from skep.native import ledger as native
from skep.native.trace import hashing
from skep.trace.merkle import EMPTY_ROOT, HASH_SIZE, Frontier

ROWS_MAX: Final = 256  # of one batch: 16 MiB at the most; what is in the cache is hashed faster
SKIP_MAX: Final = 1 << 20  # of one call: about a second, in which nobody can interrupt
# After a number and up to another.
SELECT: Final = """SELECT e.seq, e.body, e.leaf, c.since, c.root
    FROM entries e LEFT JOIN commits c ON c.size = e.seq WHERE e.seq > ? AND e.seq <= ? ORDER BY e.seq"""


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


def skip(path: Path, edge: Edge, last: int, numbers: bool = False, options: str = "mode=ro") -> Edge:
    """The edge after the rows up to entry ``last`` of the ledger in a file, or after fewer of them: where one
    does not follow, or where this cannot be done faster than by reading them. ``numbers``: an entry must say
    its own, too. ``options``: of SQLite's URI."""
    uri = f"{path.resolve().as_uri()}?{options}"
    while (size := edge.frontier.size) < last:
        upto = min(last, size + SKIP_MAX)
        end = native.follow(
            uri, SELECT, native.End(size, edge.frontier.peaks, edge.committed, edge.root), upto, numbers
        )
        edge = Edge(Frontier(end.size, tuple(end.peaks)), end.committed, end.root)
        if end.size < upto:
            break
    return edge
