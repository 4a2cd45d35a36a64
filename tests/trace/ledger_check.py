"""The meaning of the Ledger protocol, run for every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skep.trace.entry import leaf_hash
from skep.trace.ledger import Ledger
from skep.trace.merkle import EMPTY_ROOT, Frontier


def grow(ledger: Ledger, *bodies: bytes) -> None:
    """One turn that appends ``bodies``."""
    ledger.begin()
    list(ledger.tail())
    ledger.append(bodies)
    ledger.commit()


def root_of(bodies: Sequence[bytes]) -> bytes:
    frontier = Frontier()
    for body in bodies:
        frontier.append(leaf_hash(body))
    return frontier.root()


def check_ledger(make: Callable[[], Ledger]) -> None:
    """Each check gets a new and empty ledger from ``make``."""
    for check in (
        new_ledger_is_empty,
        what_is_committed_is_read,
        where_a_commit_ended_its_root_is_known,
        what_is_rolled_back_never_was,
        nothing_is_read_before_its_commit,
        reads_are_bounded,
        every_body_comes_back_as_it_was,
    ):
        ledger = make()
        try:
            check(ledger)
        finally:
            ledger.close()


def new_ledger_is_empty(ledger: Ledger) -> None:
    assert list(ledger.tail()) == []
    assert (ledger.size, ledger.root) == (0, EMPTY_ROOT)
    assert ledger.read(0) == []
    assert not ledger.changed()


def what_is_committed_is_read(ledger: Ledger) -> None:
    grow(ledger, b"one", b"two")
    assert (ledger.size, ledger.root) == (2, root_of([b"one", b"two"]))
    grow(ledger, b"three")
    assert (ledger.size, ledger.root) == (3, root_of([b"one", b"two", b"three"]))
    assert ledger.read(0) == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert ledger.read(2) == [(3, b"three")]
    assert list(ledger.tail()) == []
    assert not ledger.changed()


def where_a_commit_ended_its_root_is_known(ledger: Ledger) -> None:
    assert ledger.committed_root(0) is None
    grow(ledger, b"one")
    grow(ledger, b"two", b"three")
    assert ledger.committed_root(1) == root_of([b"one"])
    assert ledger.committed_root(3) == ledger.root
    assert ledger.committed_root(4) is None


def what_is_rolled_back_never_was(ledger: Ledger) -> None:
    grow(ledger, b"one")
    ledger.begin()
    ledger.append([b"wrong"])
    ledger.rollback()
    ledger.rollback()
    assert (ledger.size, ledger.root) == (1, root_of([b"one"]))
    grow(ledger, b"two")
    assert ledger.read(0) == [(1, b"one"), (2, b"two")]


def nothing_is_read_before_its_commit(ledger: Ledger) -> None:
    grow(ledger, b"one")
    ledger.begin()
    ledger.append([b"two"])
    assert (ledger.size, ledger.read(0)) == (1, [(1, b"one")])
    ledger.commit()
    assert (ledger.size, ledger.read(1)) == (2, [(2, b"two")])


def reads_are_bounded(ledger: Ledger) -> None:
    grow(ledger, *(b"%d" % n for n in range(1, 11)))
    assert ledger.read(3, 2) == [(4, b"4"), (5, b"5")]
    assert ledger.read(10) == []


def every_body_comes_back_as_it_was(ledger: Ledger) -> None:
    bodies = [b"", b"\x00", bytes(range(256)), b"x" * 65_536]
    grow(ledger, *bodies)
    assert [body for _, body in ledger.read(0)] == bodies
