from __future__ import annotations

from hashlib import sha256

import pytest
import tlog
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.ledger import LedgerTampered
from skep.trace.proof import consistency, inclusion, root_of
from skep.trace.tiles import (
    Tile,
    Tiles,
    fold,
    index_path,
    pack_entries,
    tiles_of,
)

# Two levels and a bit, taken in by several steps.
MANY = [sha256(b"%d" % n).digest() for n in range(256 * 34 + 7)]


def grown(leaves: list[bytes], size: int) -> Tiles:
    tiles = Tiles(lambda first, count: b"".join(leaves[first : min(first + count, size)]))
    while not tiles.grow(size):
        pass
    return tiles


def test_the_published_names_of_tiles() -> None:
    assert "x001/x234/067" == index_path(1234067)
    assert "000" == index_path(0)
    assert "0/x001/x234/067" == Tile(0, 1234067).path()
    assert "entries/273.p/112" == Tile(None, 273, 112).path()


def test_the_published_tiles_of_seventy_thousand_entries() -> None:
    found = list(tiles_of(70_000))
    assert [Tile(0, 273, 112), Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)] == found[273:]
    assert [Tile(0, n) for n in range(273)] == found[:273]
    assert [Tile(0, 0), Tile(1, 0, 1)] == list(tiles_of(256))


@given(st.none() | st.integers(0, 63), st.integers(0, 2**40), st.integers(1, 256))
def test_a_tile_has_the_name_that_the_text_gives_it(level: int | None, number: int, width: int) -> None:
    name = tlog.tile_path(str("entries" if level is None else level), number, width)
    assert name == f"tile/{Tile(level, number, width).path()}"


def test_a_bundle_has_each_entry_behind_its_length() -> None:
    assert b"\x00\x03one\x00\x00\x01\x00" + bytes(256) == pack_entries([b"one", b"", bytes(256)])


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512, len(MANY)])
def test_tiles_are_those_of_the_definition(size: int) -> None:
    tiles, hashes, level = grown(MANY, size), MANY[:size], 0
    while hashes:
        for tile in (tile for tile in tiles_of(size) if tile.level == level):
            first = tile.number * 256
            assert b"".join(hashes[first : first + tile.width]) == tiles.tile(tile)
        hashes = [tlog.mth(hashes[n : n + 256]) for n in range(0, len(hashes) - 255, 256)]
        level += 1
    assert tlog.mth(MANY[:size]) == root_of(size, tiles.node)


def test_proofs_from_tiles_are_those_of_the_definition() -> None:
    size = len(MANY)
    tiles = grown(MANY, size)
    for index in (0, 255, 256, 4711, size - 1):
        assert tlog.path(index, MANY) == inclusion(index, size, tiles.node)
    for old in (1, 256, 300, 8192, size - 7, size - 1):
        assert tlog.proof(old, MANY) == consistency(old, size, tiles.node)


def test_tiles_grow_with_their_ledger() -> None:
    size = 100
    tiles = Tiles(lambda first, count: b"".join(MANY[first : min(first + count, size)]))
    for size in (100, 300, 900, len(MANY)):
        while not tiles.grow(size):
            pass
        assert tlog.mth(MANY[:size]) == root_of(size, tiles.node)


def test_a_ledger_that_lost_leaves_is_not_grown_from() -> None:
    tiles = Tiles(lambda first, count: bytes(32) * (count - 1))
    with pytest.raises(LedgerTampered, match="leaf hashes are missing before entry 513"):
        tiles.grow(512)


def test_a_fold_is_the_root_of_a_complete_tree() -> None:
    assert tlog.mth(MANY[:8]) == fold(b"".join(MANY[:8]))
    assert MANY[0] == fold(MANY[0])
