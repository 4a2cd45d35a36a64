"""The Merkle tree in tiles of 256 hashes: what C2SP tlog-tiles serves, and what proofs are made from.

Leaf hashes are the ledger's; of the levels above only what whole tiles hash to is kept, 32 bytes for 256
entries, added as the ledger grows. Nothing here is written down: a tile is the same whenever it is made.
Source: c2sp.org/tlog-tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from skep.native.trace import hashing
from skep.trace.entry import ENTRY_MAX
from skep.trace.ledger import LedgerTampered
from skep.trace.merkle import HASH_SIZE

WIDTH: Final = 256  # hashes of a whole tile
BUNDLE_MAX: Final = WIDTH * (2 + ENTRY_MAX)  # bytes of a bundle: no other file of a log has more
HEIGHT: Final = 8  # levels of the tree that one level of tiles spans
STEP: Final = WIDTH * HASH_SIZE  # bytes of a whole tile
LEVEL_MAX: Final = 7  # a ledger of 2**63 entries has no more
GROW_MAX: Final = 8  # tiles taken in at a time: some 5 ms, and a pause for the others

ENTRIES: Final = "entries"


class Tile(NamedTuple):
    """A tile's place. ``level`` None: not hashes, the entries of the tile of level 0."""

    level: int | None
    number: int
    width: int = WIDTH

    def path(self) -> str:
        """As it is served, after ``tile/``."""
        level = ENTRIES if self.level is None else str(self.level)
        part = f".p/{self.width}" if self.width < WIDTH else ""
        return f"{level}/{index_path(self.number)}{part}"


def index_path(index: int) -> str:
    """1234067 is x001/x234/067."""
    text = f"{index % 1000:03}"
    while index := index // 1000:
        text = f"x{index % 1000:03}/{text}"
    return text


def tiles_of(size: int) -> Iterator[Tile]:
    """The hash tiles of a tree of ``size`` leaves, level by level."""
    level = 0
    while size:
        whole, rest = divmod(size, WIDTH)
        yield from (Tile(level, index) for index in range(whole))
        if rest:
            yield Tile(level, whole, rest)
        level, size = level + 1, whole


def fold(hashes: bytes) -> bytes:
    """The hash of the complete subtree over these, a power of two of them."""
    return hashing.fold(hashes, (len(hashes) // HASH_SIZE).bit_length() - 1)


def pack_entries(bodies: Iterable[bytes]) -> bytes:
    """An entry bundle: of each entry length[2, big-endian] body[length]."""
    return b"".join(len(body).to_bytes(2, "big") + body for body in bodies)


class Tiles:
    """The tiles over ``leaves``, a function of first and count that gives so many leaf hashes, joined.

    It grows by ``grow`` to a size up to which there are leaves, and knows the tree up to there."""

    def __init__(self, leaves: Callable[[int, int], bytes]) -> None:
        self._leaves = leaves
        self._above: list[bytearray] = [bytearray() for _ in range(LEVEL_MAX)]  # of levels 1 and up

    def grow(self, size: int) -> bool:
        """Take in some more of the first ``size`` leaves; whether that is all of them."""
        for level, above in enumerate(self._above):
            done = len(above) // HASH_SIZE
            size //= WIDTH
            some = min(size - done, GROW_MAX)
            data = self.hashes(level, done * WIDTH, some * WIDTH)
            if len(data) != some * STEP:
                raise LedgerTampered(f"leaf hashes are missing before entry {(done + some) * WIDTH + 1}")
            above += hashing.fold(data, HEIGHT)
            if done + some < size:
                return False
        return True

    def hashes(self, level: int, first: int, count: int) -> bytes:
        """Hashes of tile level ``level``, joined; as many of them as there are."""
        if not level:
            return self._leaves(first, count)
        return bytes(self._above[level - 1][first * HASH_SIZE : (first + count) * HASH_SIZE])

    def tile(self, tile: Tile) -> bytes:
        """A hash tile's bytes."""
        assert tile.level is not None
        return self.hashes(tile.level, tile.number * WIDTH, tile.width)

    def node(self, level: int, index: int) -> bytes:
        """A complete subtree's hash, as proofs want it."""
        tile_level, rest = divmod(level, HEIGHT)
        return fold(self.hashes(tile_level, index << rest, 1 << rest))
