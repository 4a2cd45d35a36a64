"""Where a log is read from to be verified: a directory of tiles, a ledger's file.

A source tells what it holds and believes nothing of it; what it must find to go on it raises as a Finding."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from skep.trace.checkpoint import Checkpoint, handover_text, origin_of, parse_checkpoint, parse_handovers
from skep.trace.entry import leaf_hash
from skep.trace.merkle import EMPTY_ROOT, HASH_SIZE
from skep.trace.note import Note, NoteError, Vkey, parse_note, parse_vkey
from skep.trace.rows import ROWS_MAX, SELECT, Edge, skip
from skep.trace.sqlite import APPLICATION_ID, SEQ_MAX, SEQ_MIN
from skep.trace.tiles import WIDTH, Tile, fold
from skep.validator.verify.found import Finding, Kind

Read = Callable[[str], bytes | None]
"""A resource of the log by its path; None: there is none."""


def below(root: Path) -> Read:
    """The log that is files below a directory."""

    def read(name: str) -> bytes | None:
        try:
            return (root / name).read_bytes()
        except FileNotFoundError:
            return None

    return read


class Row(NamedTuple):
    """What stands at place ``seq``. ``root``: that of the commit that ends here, which began after ``since``;
    None: none ends here. ``behind``: the body behind the last of its bundle, where none should be; b"": none
    is."""

    seq: int
    body: bytes
    leaf: bytes
    since: int | None = None
    root: bytes | None = None
    behind: bytes = b""

    @classmethod
    def of(cls, row: Sequence[Any]) -> Row:
        """A row of a batch; what stands where a body should be and is none, is empty."""
        seq, body, *rest = row
        return cls(seq, body if type(body) is bytes else b"", *rest)


Batch = Sequence[Sequence[Any]]
"""Some rows, as Row has them or the first of its fields; somebody may have written anything there."""


class Source(Protocol):
    """A log: what its head says, who signed that, and the rows."""

    @property
    def head(self) -> Checkpoint: ...

    @property
    def note(self) -> Note | None:
        """The signed head; None: heads are not signed here."""

    def keys(self) -> list[Vkey]:
        """Those that it says are its own."""

    def handovers(self) -> list[Note]: ...

    def rows(self) -> Iterator[Row]:
        """All of them in their order; hashes above the leaves are checked on the way, and at the end."""

    def skip(self, edge: Edge, last: int) -> Edge:
        """The edge after rows up to ``last`` that follow on it and say their numbers: as many as can be seen
        faster than in ``batches``, or none."""

    def batches(self, after: int = 0) -> Iterator[Batch]:
        """The rows after those that were skipped, some at a time. What a Finding stands behind, is given
        before it is raised."""

    def row(self, seq: int) -> Row | None: ...


MISSING_MAX: Final = 64  # bundles in a row; who signs that there are a trillion need not be asked for each.


class TileSource:
    """A log in tiles, read through ``read``. Raises Finding when it has no checkpoint."""

    def __init__(self, read: Read) -> None:
        self._read = read
        data = read("checkpoint")
        if data is None:
            raise Finding(Kind.DAMAGED, 0, "there is no checkpoint")
        try:
            self.note: Note | None = parse_note(data)
            self.head = parse_checkpoint(self.note.text)
        except NoteError as error:
            raise Finding(Kind.DAMAGED, 0, f"checkpoint: {error}") from error
        self._last: tuple[int, list[Row]] = (-1, [])  # the tile that was looked into last

    def agreed(self) -> bytes:
        """The last checkpoint that witnesses have cosigned, and their lines; b"": it has none."""
        return self._read("agreed") or b""

    def keys(self) -> list[Vkey]:
        lines = (self._read("keys") or b"").decode("utf-8", "replace").splitlines()
        try:
            return [parse_vkey(line.split(" ")[0]) for line in lines if line]
        except NoteError as error:
            raise Finding(Kind.DAMAGED, 0, f"keys: {error}") from error

    def handovers(self) -> list[Note]:
        try:
            return parse_handovers(self._read("handovers") or b"")
        except NoteError as error:
            raise Finding(Kind.DAMAGED, 0, f"handovers: {error}") from error

    def rows(self) -> Iterator[Row]:
        return (row for rows in self._tiles() for row in rows)

    def skip(self, edge: Edge, last: int) -> Edge:
        return edge

    def batches(self, after: int = 0) -> Iterator[Batch]:
        assert not after, "tiles are looked at as a whole"
        return self._tiles()

    def _tiles(self) -> Iterator[list[Row]]:
        above = bytearray()  # what the whole tiles of level 0 hash to
        missing = 0  # bundles in a row
        for number in range(-(-self.head.size // WIDTH)):
            rows, found = self._rows(number)
            missing = 0 if rows else missing + 1
            if missing > MISSING_MAX:
                return
            if rows:
                yield rows
            if found is not None:
                raise found
            if len(rows) == WIDTH:
                above += fold(b"".join(row.leaf for row in rows))
        if len(above) == self.head.size // WIDTH * HASH_SIZE:
            self._check_above(bytes(above))

    def row(self, seq: int) -> Row | None:
        number, at = divmod(seq - 1, WIDTH)
        if not 1 <= seq <= self.head.size:
            return None
        if self._last[0] != number:
            self._last = number, self._rows(number)[0]
        rows = self._last[1]
        return rows[at] if at < len(rows) else None

    def _rows(self, number: int) -> tuple[list[Row], Finding | None]:
        """The rows of a bundle and its tile, [] where there is no bundle; and what ends them too soon or too
        late."""
        width = min(self.head.size - number * WIDTH, WIDTH)
        first = number * WIDTH + 1
        bundle, whole = self._fetch(Tile(None, number, width))
        if bundle is None:
            return [], None
        tile, _ = self._fetch(Tile(0, number, width))
        leaves = tile or b""
        rows: list[Row] = []
        for seq, (body, end) in enumerate(_bodies(bundle, leaves), first):
            if seq >= first + width:
                if not whole:
                    rows[-1] = rows[-1]._replace(behind=body)
                late = Finding(Kind.INSERTED, seq, "it stands in the bundle that ends before it")
                return rows, None if whole else late
            at = (seq - first) * HASH_SIZE
            leaf = leaves[at : at + HASH_SIZE]
            if len(leaf) < HASH_SIZE:
                text = f"tile {Tile(0, number, width).path()} has no leaf hash for it"
                return rows, Finding(Kind.TRUNCATED, seq, text)
            if not end and leaf_hash(body) != leaf:
                return rows, Finding(Kind.TRUNCATED, seq, "its bundle ends within it")
            rows.append(Row(seq, body, leaf))
        return rows, None

    def _fetch(self, tile: Tile) -> tuple[bytes | None, bool]:
        """A tile, or instead of a part the whole one that is there by now; whether it is that."""
        data = self._read(f"tile/{tile.path()}")
        if data is None and tile.width < WIDTH:
            return self._read(f"tile/{Tile(tile.level, tile.number).path()}"), True
        return data, False

    def _check_above(self, hashes: bytes) -> None:
        """The tiles of level 1 and up, of which level 1 should hold ``hashes``."""
        level = 1
        while hashes:
            for first in range(0, len(hashes), WIDTH * HASH_SIZE):
                expected = hashes[first : first + WIDTH * HASH_SIZE]
                tile = Tile(level, first // (WIDTH * HASH_SIZE), len(expected) // HASH_SIZE)
                self._check_tile(tile, expected)
            step = WIDTH * HASH_SIZE
            whole = len(hashes) // step * step
            hashes = b"".join(fold(hashes[i : i + step]) for i in range(0, whole, step))
            level += 1

    def _check_tile(self, tile: Tile, expected: bytes) -> None:
        assert tile.level is not None
        data, _ = self._fetch(tile)
        span = WIDTH**tile.level
        first = tile.number * WIDTH * span + 1
        if data is None or len(data) < len(expected):
            raise Finding(Kind.TRUNCATED, first, f"tile {tile.path()} is missing, or its end is")
        for n in range(tile.width):
            at = n * HASH_SIZE
            if data[at : at + HASH_SIZE] != expected[at : at + HASH_SIZE]:
                first += n * span
                text = f"tile {tile.path()}: hash {n} is not that of entries {first} to {first + span - 1}"
                raise Finding(Kind.ALTERED, first, text)


def _bodies(bundle: bytes, leaves: bytes) -> Iterator[tuple[bytes, bool]]:
    """The entries of a bundle, and whether it went on to their end. Where a length is not the one that was
    hashed, and one byte of it makes it so, the entry is given as it was read."""
    at = n = 0
    while at < len(bundle):
        begin = at + 2
        length = int.from_bytes(bundle[at:begin], "big")
        at = begin + length
        whole = at <= len(bundle) and begin <= len(bundle)
        if not whole:
            leaf = leaves[n * HASH_SIZE : (n + 1) * HASH_SIZE]
            others = (length & mask | byte << shift for mask, shift in _BYTES for byte in range(256))
            whole = any(leaf_hash(bundle[begin : begin + other]) == leaf for other in others)
        yield bundle[begin:at], whole
        n += 1


_BYTES: Final = ((0xFF00, 0), (0x00FF, 8))  # what stays of a length, and where the other byte is


class _Key(msgspec.Struct, frozen=True):
    what: str = ""
    id: str = ""
    cross: str = ""


class _Event(msgspec.Struct):
    """As much as is needed of those that make keys."""

    type: str
    hive: str = ""
    keys: tuple[_Key, ...] = ()
    key: _Key = _Key()


class _Typed(msgspec.Struct):
    type: str


class _Entry(msgspec.Struct):
    # What stands beside an event that is looked for may have fields of the same names and other kinds.
    events: tuple[msgspec.Raw, ...] = ()


_entry: Final = msgspec.json.Decoder(_Entry)
_typed: Final = msgspec.json.Decoder(_Typed)
_event: Final = msgspec.json.Decoder(_Event)


class LedgerSource:
    """The ledger in a SQLite file, which is only read; a hive may be writing to it. Raises Finding."""

    note: Note | None = None

    def __init__(self, path: Path) -> None:
        # Without a WAL beside it, it may be on a disk that nobody can write to.
        alone = "&immutable=1" if not path.with_name(f"{path.name}-wal").exists() else ""
        self._path, self._options = path, f"mode=ro{alone}"
        self._file = sqlite3.connect(f"{path.resolve().as_uri()}?{self._options}", uri=True)
        if self._one("PRAGMA application_id") != (APPLICATION_ID,):
            raise Finding(Kind.DAMAGED, 0, f"{path} is no ledger")
        # One moment of it, whoever writes meanwhile.
        self._one("BEGIN")
        size, root = self._one("SELECT size, root FROM commits ORDER BY size DESC LIMIT 1") or (0, EMPTY_ROOT)
        founded = next(self._events("trust.founded"), _Event(""))
        self.head = Checkpoint(origin_of(founded.hive), size, root)
        self._told: tuple[list[Vkey], list[Note]] | None = None  # None: not looked for yet, all entries are

    def keys(self) -> list[Vkey]:
        """Those that its entries tell of; a hive without certificates tells of none."""
        return self._trust()[0]

    def handovers(self) -> list[Note]:
        return self._trust()[1]

    def _trust(self) -> tuple[list[Vkey], list[Note]]:
        """Keys and their handovers, from the entries that made them."""
        if self._told is None:
            keys: list[Vkey] = []
            handovers: list[Note] = []
            for event in self._events("trust.founded", "trust.rotated"):
                for key in (key for key in (*event.keys, event.key) if key.what == "merkle"):
                    vkey, cross = Vkey(self.head.origin, bytes.fromhex(key.id)), bytes.fromhex(key.cross)
                    if keys and cross:
                        text = handover_text(vkey.name, vkey)
                        handovers.append(Note(text, ((vkey.name, keys[-1].id + cross),)))
                    keys.append(vkey)
            self._told = keys, handovers
        return self._told

    def _events(self, *types: str) -> Iterator[_Event]:
        """The events of these types, up to where it is damaged: about that, rows tell."""
        # One at a time: Python's cursor looks for the next one before it gives this.
        has = " OR ".join("instr(body, ?)" for _ in types)
        sql = f"SELECT seq, body FROM entries WHERE seq > ? AND ({has}) ORDER BY seq LIMIT 1"
        wanted, seq = [f'"{type}"'.encode() for type in types], 0
        with suppress(sqlite3.Error, msgspec.DecodeError):
            while found := self._file.execute(sql, (seq, *wanted)).fetchone():
                seq, body = found
                for event in _entry.decode(body).events:
                    if _typed.decode(event).type in types:
                        yield _event.decode(event)

    def rows(self) -> Iterator[Row]:
        return (Row.of(row) for rows in self.batches() for row in rows)

    def skip(self, edge: Edge, last: int) -> Edge:
        if self._one("SELECT 1 FROM entries WHERE seq < 1"):
            return edge
        return skip(self._path, edge, last, numbers=True, options=self._options)

    def batches(self, after: int = 0) -> Iterator[Batch]:
        rows: list[Any] = []
        failed: Finding | None = None
        try:
            for row in self._file.execute(SELECT, (after or SEQ_MIN, SEQ_MAX)):
                rows.append(row)
                if len(rows) == ROWS_MAX:
                    yield rows
                    rows = []
        except sqlite3.Error as error:
            failed = Finding(Kind.DAMAGED, 0, f"ledger: {error}")
            failed.__cause__ = error
        if rows:
            yield rows
        if failed is not None:
            raise failed

    def row(self, seq: int) -> Row | None:
        found = self._one("SELECT seq, body, leaf FROM entries WHERE seq = ?", seq)
        return Row(*found) if found else None

    def _one(self, sql: str, *values: object) -> Any:
        try:
            return self._file.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise Finding(Kind.DAMAGED, 0, f"ledger: {error}") from error
