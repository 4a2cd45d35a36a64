"""A log of a hundred thousand entries: no kind of tampering, at whatever place, passes; each is told by its
kind and its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import (
    KEYS,
    Statements,
    as_tiles,
    bodies,
    body,
    changed,
    checkpoint,
    exchanged,
    flipped,
    moved,
    note,
    tile_source,
    write_ledger,
)

from skep.trace.entry import leaf_hash
from skep.trace.note import Note
from skep.trace.tiles import WIDTH, Tile, pack_entries
from skep.validator.verify.found import Finding, Kind
from skep.validator.verify.sources import LedgerSource, Source
from skep.validator.verify.verify import verify

pytestmark = pytest.mark.slow
SIZE = 100_000
BATCH = 500  # entries of a commit
LAST = (SIZE - 1) // WIDTH * WIDTH  # entries before the last bundle
places = st.integers(3, SIZE - 2000)
few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
Files = dict[str, bytes]


class Log(NamedTuple):
    """``older``: a checkpoint of its first half, which somebody kept."""

    entries: list[bytes]
    files: Files
    ledger: Path
    older: Note


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    entries = bodies(SIZE)
    with TemporaryDirectory() as directory:
        ledger = write_ledger(Path(directory) / "ledger.db", entries, BATCH)
        yield Log(entries, as_tiles(entries), ledger, note(entries[: SIZE // 2]))


def test_untampered_it_is_consistent(log: Log) -> None:
    for source in (tile_source(log.files), LedgerSource(log.ledger)):
        found = verify(source, log.older)
        assert (SIZE, SIZE // 2) == (found.head.size, found.old.size if found.old is not None else 0)


def told(source: Callable[[], Source], old: Note | None) -> tuple[Kind, int]:
    with pytest.raises(Finding) as caught:
        verify(source(), old)
    return caught.value.kind, caught.value.entry


# the tiles


def bundled(log: Log, place: int, change: Callable[[list[bytes], int], None]) -> Files:
    """The bundle of an entry, after ``change`` of its entries, given which of them it is."""
    number, at = divmod(place - 1, WIDTH)
    some = log.entries[number * WIDTH : (number + 1) * WIDTH]
    width = len(some)
    change(some, at)
    return {f"tile/{Tile(None, number, width).path()}": pack_entries(some)}


def _flip(some: list[bytes], at: int) -> None:
    some[at] = flipped(some[at], at % len(some[at]))


def _swap(some: list[bytes], at: int) -> None:
    other = (at + 100) % len(some)
    some[at], some[other] = some[other], some[at]


def _swapped(log: Log, place: int) -> tuple[Files, int]:
    at = (place - 1) % WIDTH
    return bundled(log, place, _swap), place - at + min(at, (at + 100) % WIDTH)


def _hash(level: int) -> Callable[[Log, int], tuple[Files, int]]:
    def change(log: Log, place: int) -> tuple[Files, int]:
        span = WIDTH**level
        number, at = divmod((place - 1) // span, WIDTH)
        path = f"tile/{Tile(level, number).path()}"
        if path not in log.files:
            path = next(name for name in log.files if name.startswith(f"{path}.p/"))
        data = flipped(log.files[path], at * 32 + place % 32)
        return {path: data}, (place - 1) // span * span + 1

    return change


def _cut(log: Log, place: int) -> tuple[Files, int]:
    """The bundles from that of the entry on are not there."""
    first = (place - 1) // WIDTH
    gone = {f"tile/{Tile(None, number).path()}": b"" for number in range(first, LAST // WIDTH)}
    last = {f"tile/{Tile(None, LAST // WIDTH, SIZE - LAST).path()}": b""}
    return gone | last, first * WIDTH + 1


def _forked(log: Log, place: int) -> tuple[Files, int]:
    place = place // 2
    return as_tiles([*log.entries[: place - 1], body(place, "otherwise"), *log.entries[place:]]), 0


TILES: dict[str, tuple[Kind, Callable[[Log, int], tuple[Files, int]]]] = {
    "a byte": (Kind.ALTERED, lambda log, place: (bundled(log, place, _flip), place)),
    "a leaf's hash": (Kind.ALTERED, _hash(0)),
    "a hash above": (Kind.ALTERED, _hash(1)),
    "dropped": (Kind.DROPPED, lambda log, at: (bundled(log, at, lambda some, n: some.__delitem__(n)), at)),
    "swapped": (Kind.SWAPPED, _swapped),
    "inserted": (
        Kind.INSERTED,
        lambda log, at: (bundled(log, at, lambda some, n: some.insert(n, body(at, "forged"))), at),
    ),
    "truncated": (Kind.TRUNCATED, _cut),
    "forked": (Kind.FORKED, _forked),
    "rewound": (
        Kind.REWOUND,
        lambda log, at: ({"checkpoint": checkpoint(log.entries[: at // 2 - 1])}, at // 2),
    ),
    "signed by another": (
        Kind.RESIGNED,
        lambda log, at: ({"checkpoint": checkpoint(log.entries[:-at], KEYS[2:])}, 0),
    ),
    "no note": (Kind.DAMAGED, lambda log, at: ({"checkpoint": os.urandom(at % 200)}, 0)),
}


@pytest.mark.parametrize("name", TILES)
def test_no_tampering_with_tiles_passes(log: Log, name: str) -> None:
    kind, tamper = TILES[name]

    @few
    @given(places)
    def at_any(place: int) -> None:
        files, expected = tamper(log, place)
        there = {path: data for path, data in (log.files | files).items() if data}
        assert (kind, expected) == told(lambda: tile_source(there), log.older)

    at_any()


# the ledger's file


def _rewritten(log: Log, place: int) -> Statements:
    """An entry and its hash, as who can write to the file can: its commit says otherwise."""
    put = body(place, "forged")
    return (("UPDATE entries SET body = ?, leaf = ? WHERE seq = ?", (put, leaf_hash(put), place)),)


LEDGER: dict[str, tuple[Kind, Callable[[Log, int], Statements], Callable[[int], int]]] = {
    "a byte": (
        Kind.ALTERED,
        lambda log, at: (("UPDATE entries SET body = ? WHERE seq = ?", (_other(log, at), at)),),
        int,
    ),
    "a byte and its hash": (Kind.ALTERED, _rewritten, lambda place: (place - 1) // BATCH * BATCH + 1),
    "dropped": (Kind.DROPPED, lambda log, at: (("DELETE FROM entries WHERE seq = ?", (at,)),), int),
    "swapped": (Kind.SWAPPED, lambda log, at: exchanged(at, at + 1000), int),
    "inserted": (Kind.INSERTED, lambda log, at: moved(at, body(at, "forged")), int),
    "truncated": (Kind.TRUNCATED, lambda log, at: (("DELETE FROM entries WHERE seq >= ?", (at,)),), int),
    "rewound": (
        Kind.REWOUND,
        lambda log, at: (
            ("DELETE FROM entries WHERE seq > ?", (_left(at),)),
            ("DELETE FROM commits WHERE size > ?", (_left(at),)),
        ),
        lambda place: _left(place) + 1,
    ),
    "a root": (
        Kind.ALTERED,
        lambda log, at: (("UPDATE commits SET root = zeroblob(32) WHERE size = ?", (_commit(at),)),),
        lambda place: _commit(place) - BATCH + 1,
    ),
}


def _other(log: Log, place: int) -> bytes:
    entry = log.entries[place - 1]
    return flipped(entry, place % len(entry))


def _commit(place: int) -> int:
    """The size of the commit of an entry."""
    return -(-place // BATCH) * BATCH


def _left(place: int) -> int:
    """How many entries a rewound ledger has: whole commits, fewer than the older checkpoint."""
    return place // 1000 * BATCH + BATCH


@pytest.mark.parametrize("name", LEDGER)
def test_no_tampering_with_a_ledgers_file_passes(log: Log, name: str) -> None:
    kind, tamper, expected = LEDGER[name]

    @few
    @given(places)
    def at_any(place: int) -> None:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "ledger.db"
            copy(log.ledger, path)
            old = log.older if kind is Kind.REWOUND else None
            assert (kind, expected(place)) == told(lambda: changed(path, *tamper(log, place)), old)

    at_any()


def test_a_ledger_that_was_written_anew_is_a_fork(log: Log, tmp_path: Path) -> None:
    entries = [*log.entries[:33_332], body(33_333, "otherwise"), *log.entries[33_333:]]
    path = write_ledger(tmp_path / "ledger.db", entries, BATCH)
    assert (Kind.FORKED, 0) == told(lambda: LedgerSource(path), log.older)
