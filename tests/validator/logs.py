"""Logs to be tampered with: entries in a ledger's file, and the same as tiles."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.trace.checkpoint import Checkpoint, handover_text
from skep.trace.entry import OK, Line, canonical, entry_of, leaf_hash
from skep.trace.merkle import Frontier
from skep.trace.note import Note, Signing, Vkey, parse_note, sign_note
from skep.trace.sqlite import SqliteLedger
from skep.trace.tiles import WIDTH, Tile, Tiles, pack_entries, tiles_of
from skep.validator.verify.sources import LedgerSource, TileSource

ORIGIN = "h1/log/trace"
KEYS = [Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(3)]
VKEYS = [Vkey(ORIGIN, key.public) for key in KEYS]


def body(seq: int, said: str = "") -> bytes:
    line = Line("unix:ann", "operator", "", "/jobs/ctl", (f"submit n={seq} {said}",), seq, f"T{seq}")
    return canonical(entry_of(line, seq, OK, ({"type": "t", "n": seq},)))


def key_entries() -> list[bytes]:
    """The first entries of a hive that was founded, and whose key was rotated."""
    text = handover_text(ORIGIN, VKEYS[1])
    cross = KEYS[0].sign(text.encode()).hex()
    events: list[tuple[dict[str, object], ...]] = [
        ({"type": "trust.founded", "hive": "h1", "keys": [{"what": "merkle", "id": KEYS[0].public.hex()}]},),
        ({"type": "trust.rotated", "until_ns": 5,
          "key": {"what": "merkle", "id": KEYS[1].public.hex(), "cross": cross}},),
    ]  # fmt: skip
    line = Line("hive", "hive", "", "/trust/ctl", ("x",), 1, "T")
    return [canonical(entry_of(line, seq, OK, event)) for seq, event in enumerate(events, 1)]


def bodies(count: int) -> list[bytes]:
    return [*key_entries(), *(body(seq) for seq in range(3, count + 1))][:count]


def write_ledger(path: Path, entries: list[bytes], batch: int = 7) -> Path:
    """A ledger's file with a commit for each ``batch``, closed."""
    ledger = SqliteLedger(str(path))
    for first in range(0, len(entries), batch):
        ledger.begin()
        list(ledger.tail())
        ledger.append(entries[first : first + batch])
        ledger.commit()
    ledger.close()
    return path


def head_of(entries: list[bytes]) -> Checkpoint:
    frontier = Frontier()
    for entry in entries:
        frontier.append(leaf_hash(entry))
    return Checkpoint(ORIGIN, len(entries), frontier.root())


def checkpoint(entries: list[bytes], keys: list[Signing] | None = None) -> bytes:
    return sign_note(head_of(entries).text(), ORIGIN, keys or KEYS[:1])


def note(entries: list[bytes], keys: list[Signing] | None = None) -> Note:
    return parse_note(checkpoint(entries, keys))


def as_tiles(entries: list[bytes], keys: list[Signing] | None = None) -> dict[str, bytes]:
    """The files of a log, by their paths."""
    leaves = b"".join(map(leaf_hash, entries))
    tiles = Tiles(lambda first, count: leaves[first * 32 : (first + count) * 32])
    while not tiles.grow(len(entries)):
        pass
    files = {f"tile/{tile.path()}": tiles.tile(tile) for tile in tiles_of(len(entries))}
    for tile in (tile for tile in tiles_of(len(entries)) if tile.level == 0):
        first = tile.number * WIDTH
        bundle = pack_entries(entries[first : first + tile.width])
        files[f"tile/{Tile(None, tile.number, tile.width).path()}"] = bundle
    files["checkpoint"] = checkpoint(entries, keys)
    signers = keys or KEYS[:1]
    files["keys"] = "".join(f"{Vkey(ORIGIN, key.public)} active\n" for key in signers).encode()
    return files


def tile_source(files: dict[str, bytes]) -> TileSource:
    return TileSource(files.get)


Statements = tuple[tuple[str, tuple[object, ...]], ...]
"""What somebody does to a ledger's file: SQL, and its values."""


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def moved(place: int, put: bytes) -> Statements:
    """One more entry, and those behind it moved."""
    return (
        ("UPDATE entries SET seq = -seq WHERE seq >= ?", (place,)),
        ("UPDATE entries SET seq = 1 - seq WHERE seq < 0", ()),
        ("INSERT INTO entries VALUES (?, ?, ?)", (place, put, leaf_hash(put))),
    )


def exchanged(place: int, other: int) -> Statements:
    return (
        ("UPDATE entries SET seq = -1 WHERE seq = ?", (place,)),
        ("UPDATE entries SET seq = ? WHERE seq = ?", (place, other)),
        ("UPDATE entries SET seq = ? WHERE seq = -1", (other,)),
    )


def changed(path: Path, *statements: tuple[str, tuple[object, ...]]) -> LedgerSource:
    """The ledger after somebody wrote to its file."""
    file = sqlite3.connect(path)
    file.execute("PRAGMA synchronous = OFF")
    for sql, values in statements:
        file.execute(sql, values)
    file.commit()
    file.close()
    return LedgerSource(path)
