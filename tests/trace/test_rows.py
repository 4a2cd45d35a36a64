"""Batches of a ledger's rows: they follow, or something about one of them is not as it must be."""

from __future__ import annotations

from typing import Any

import pytest

from skep.trace.entry import leaf_hash
from skep.trace.merkle import EMPTY_ROOT, Frontier
from skep.trace.rows import Edge, follow

ENDS = (2, 3, 9, 17)  # of commits
Rows = list[list[Any]]


def rows(count: int = 20) -> Rows:
    """The first rows of a ledger, whose last are in no commit."""
    frontier, since = Frontier(), 0
    made: Rows = []
    for seq in range(1, count + 1):
        body = b"body %d" % seq
        frontier.append(leaf_hash(body))
        ends = seq in ENDS
        made.append([seq, body, leaf_hash(body), since if ends else None, frontier.root() if ends else None])
        since = seq if ends else since
    return made


def root_of(count: int) -> bytes:
    frontier = Frontier()
    for row in rows(count):
        frontier.append(row[2])
    return frontier.root()


@pytest.mark.parametrize("cut", range(1, 21))
def test_rows_follow_however_they_are_cut(cut: int) -> None:
    edge: Edge | None = Edge(Frontier())
    for first in range(0, 20, cut):
        assert edge is not None
        edge = follow(edge, rows()[first : first + cut])
    assert edge is not None
    assert (20, root_of(20), 17, root_of(17)) == (
        edge.frontier.size,
        edge.frontier.root(),
        edge.committed,
        edge.root,
    )


def test_the_edge_before_stays_as_it_is() -> None:
    edge = Edge(Frontier())
    assert follow(edge, rows()) is not None
    assert (0, EMPTY_ROOT) == (edge.frontier.size, edge.frontier.root())


WRONG: dict[str, tuple[int, int, object]] = {
    "another number": (4, 0, 6),
    "another body": (4, 1, b"other"),
    "a body as text": (4, 1, "body 5"),
    "another hash": (4, 2, bytes(32)),
    "no hash": (4, 2, None),
    "another beginning of a commit": (8, 3, 2),
    "another root": (8, 4, bytes(32)),
    "a root as text": (8, 4, "root"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_one_wrong_field_is_enough(wrong: str) -> None:
    at, field, value = WRONG[wrong]
    made = rows()
    made[at][field] = value
    assert follow(Edge(Frontier()), made) is None


def test_hashes_are_not_shifted_from_row_to_row() -> None:
    made = rows()
    both = made[4][2] + made[5][2]
    made[4][2], made[5][2] = both[:31], both[31:]
    assert follow(Edge(Frontier()), made) is None


def test_rows_that_follow_on_another_tree_do_not_on_this() -> None:
    assert follow(Edge(Frontier()), rows()[3:]) is None
    edge = follow(Edge(Frontier()), rows()[:3])
    assert edge is not None
    assert follow(edge._replace(committed=2), rows()[3:]) is None
