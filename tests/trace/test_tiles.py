from __future__ import annotations

from hashlib import sha256

import pytest
import tlog
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.ledger import LedgerTampered
from skep.trace.proof import consistency, inclusion, root_of
from skep.trace.tiles import (
    GROW_MAX,
    Tile,
    Tiles,
    fold,
    index_path,
    pack_entries,
    parse_tile,
    tiles_of,
    unpack_entries,
)

# Two levels and a bit, in one step of growth and in several.
MANY = [sha256(b"%d" % n).digest() for n in range(256 * (GROW_MAX + 2) + 7)]


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
def test_a_name_is_that_of_one_tile(level: int | None, number: int, width: int) -> None:
    tile = Tile(level, number, width)
    assert tile == parse_tile(tile.path())
    assert f"tile/{tile.path()}" == tlog.tile_path(str("entries" if level is None else level), number, width)


@pytest.mark.parametrize(
    "name",
    ["", "0", "0/1", "0/0001", "00/001", "64/001", "-1/001", "0/x000/001", "0/001.p/256", "0/001.p/0",
     "0/001.p/01", "0/001.p", "x/001", "0/001/002", "0/x001", "٣/001"],
)  # fmt: skip
def test_what_is_no_tiles_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no tile's name"):
        parse_tile(name)


@given(st.lists(st.binary(max_size=70)))
def test_a_bundle_gives_back_its_entries(bodies: list[bytes]) -> None:
    data = pack_entries(bodies)
    assert bodies == unpack_entries(data)
    if data:
        with pytest.raises(ValueError, match="ends within"):
            unpack_entries(data + b"\x00")


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
