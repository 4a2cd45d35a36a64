"""Every kind of tampering, at random places, in a ledger's file and in tiles: each is found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from logs import (
    KEYS,
    ORIGIN,
    VKEYS,
    as_tiles,
    bodies,
    body,
    changed,
    checkpoint,
    exchanged,
    flipped,
    head_of,
    moved,
    note,
    tile_source,
    write_ledger,
)

from skep.trace.checkpoint import Checkpoint, handover_text
from skep.trace.entry import OK, Line, canonical, entry_of, leaf_hash
from skep.trace.note import Note, parse_note, sign_note
from skep.trace.tiles import WIDTH, Tile, pack_entries
from skep.validator.verify.found import Finding, Kind
from skep.validator.verify.sources import LedgerSource, Source, TileSource
from skep.validator.verify.verify import verify

SIZE = 700
ENTRIES = bodies(SIZE)
TILES = as_tiles(ENTRIES)
PART = f"tile/{Tile(None, 2, SIZE - 2 * WIDTH).path()}"
OLD = note(ENTRIES[:300])
BATCH = 7
places = st.integers(3, SIZE - 3)
often = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def finding(source: Callable[[], Source], old: Note | None = None, **more: object) -> Finding:
    with pytest.raises(Finding) as caught:
        verify(source(), old, **more)  # type: ignore[arg-type]
    return caught.value


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """The ledger's file."""
    with TemporaryDirectory() as directory:
        yield write_ledger(Path(directory) / "ledger.db", ENTRIES, BATCH)


def in_ledger(kept: Path, *statements: tuple[str, tuple[object, ...]]) -> Finding:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "ledger.db"
        copy(kept, path)
        return finding(lambda: changed(path, *statements))


def bundled(entries: list[bytes], number: int) -> dict[str, bytes]:
    """A bundle of other entries, in the place of what was there."""
    width = min(SIZE - number * WIDTH, WIDTH)
    return {f"tile/{Tile(None, number, width).path()}": pack_entries(entries)}


def bundle_of(place: int) -> tuple[int, list[bytes], int]:
    """The bundle of an entry, its entries, and which of them it is."""
    number, at = divmod(place - 1, WIDTH)
    return number, ENTRIES[number * WIDTH : (number + 1) * WIDTH], at


def in_tiles(files: dict[str, bytes], old: Note | None = None) -> Finding:
    return finding(lambda: tile_source(TILES | files), old)


def told(found: Finding) -> tuple[Kind, int]:
    return found.kind, found.entry


# what is as it was


@pytest.mark.parametrize("size", [1, 2, 6, 256, 257, 512, SIZE])
def test_an_untouched_log_is_consistent(size: int, tmp_path: Path) -> None:
    entries = ENTRIES[:size]
    old = note(entries[: size // 2]) if size > 1 else None
    found = verify(tile_source(as_tiles(entries)), old)
    assert head_of(entries) == found.head
    assert (VKEYS[0],) == found.signers
    path = write_ledger(tmp_path / "ledger.db", entries)
    again = verify(LedgerSource(path), old)
    assert (found.head, found.old, ()) == (again.head, again.old, again.signers)


def test_a_log_grows_while_its_head_is_verified() -> None:
    more = as_tiles(bodies(SIZE + 400))
    # Its last bundle and tile are whole by now, and the parts of them were removed.
    files = {path: data for path, data in TILES.items() if "/002.p/" not in path} | more
    assert SIZE == verify(tile_source(files | {"checkpoint": TILES["checkpoint"]})).head.size


# a byte


@often
@given(places, st.data())
def test_a_flipped_byte_is_found_in_its_entry(kept: Path, place: int, data: st.DataObject) -> None:
    entry = ENTRIES[place - 1]
    other = flipped(entry, data.draw(st.integers(0, len(entry) - 1)))
    assert (Kind.ALTERED, place) == told(
        in_ledger(kept, ("UPDATE entries SET body = ? WHERE seq = ?", (other, place)))
    )
    number, some, at = bundle_of(place)
    assert (Kind.ALTERED, place) == told(in_tiles(bundled([*some[:at], other, *some[at + 1 :]], number)))


@often
@given(places)
def test_an_entry_whose_hash_was_changed_too_is_found_in_its_commit(kept: Path, place: int) -> None:
    other = body(place, "forged")
    change = ("UPDATE entries SET body = ?, leaf = ? WHERE seq = ?", (other, leaf_hash(other), place))
    first = (place - 1) // BATCH * BATCH + 1
    assert (Kind.ALTERED, first) == told(in_ledger(kept, change))


@often
@given(st.data())
def test_a_flipped_byte_of_a_tile_is_found(data: st.DataObject) -> None:
    path = data.draw(
        st.sampled_from(sorted(path for path in TILES if "entries" not in path and "tile" in path))
    )
    at = data.draw(st.integers(0, len(TILES[path]) - 1))
    found = in_tiles({path: flipped(TILES[path], at)})
    level, number = int(path[5]), int(path[7:10])
    span = WIDTH**level
    assert (Kind.ALTERED, number * WIDTH * span + at // 32 * span + 1) == told(found)


@settings(often, max_examples=40)
@given(st.integers(0, len(TILES["tile/entries/001"]) - 1))
def test_a_flipped_byte_anywhere_in_a_bundle_is_found_in_its_entry(at: int) -> None:
    path, ends, end = "tile/entries/001", [], 0
    for entry in ENTRIES[WIDTH : 2 * WIDTH]:
        end += 2 + len(entry)
        ends.append(end)
    place = next(n for n, end in enumerate(ends, WIDTH + 1) if at < end)
    found = in_tiles({path: flipped(TILES[path], at)})
    assert (Kind.ALTERED, place) == told(found)


def test_a_flipped_byte_of_a_checkpoint_or_commit_is_found(kept: Path) -> None:
    sized = TILES["checkpoint"].replace(b"\n700\n", b"\n701\n")
    assert Kind.ALTERED is in_tiles({"checkpoint": sized}).kind
    forged = ("UPDATE commits SET root = ? WHERE size = 14", (bytes(32),))
    assert (Kind.ALTERED, 8) == told(in_ledger(kept, forged))
    since = ("UPDATE commits SET since = 3 WHERE size = 14", ())
    assert (Kind.ALTERED, 14) == told(in_ledger(kept, since))


# entries taken out, moved, put in


@often
@given(places)
def test_a_dropped_entry_is_found(kept: Path, place: int) -> None:
    gone = ("DELETE FROM entries WHERE seq = ?", (place,))
    assert (Kind.DROPPED, place) == told(in_ledger(kept, gone))
    closed = (
        gone,
        ("UPDATE entries SET seq = -seq WHERE seq > ?", (place,)),
        ("UPDATE entries SET seq = -seq - 1 WHERE seq < 0", ()),
    )
    assert (Kind.DROPPED, place) == told(in_ledger(kept, *closed))
    number, some, at = bundle_of(place)
    assert (Kind.DROPPED, place) == told(in_tiles(bundled(some[:at] + some[at + 1 :], number)))


@often
@given(places, st.integers(1, 300))
def test_swapped_entries_are_found(kept: Path, place: int, apart: int) -> None:
    other = min(place + apart, SIZE)
    assert (Kind.SWAPPED, place) == told(in_ledger(kept, *exchanged(place, other)))
    number, some, at = bundle_of(place)
    to = min(at + apart, len(some) - 1)
    if to > at:
        moved = some.copy()
        moved[at], moved[to] = moved[to], moved[at]
        assert (Kind.SWAPPED, place) == told(in_tiles(bundled(moved, number)))


@often
@example(place=256, what="forged")
@example(place=256, what="later")
@example(place=255, what="later")
@example(place=257, what="before")
@given(places, st.sampled_from(["forged", "before", "early", "later", "foreign"]))
def test_an_inserted_entry_is_found(kept: Path, place: int, what: str) -> None:
    put = {
        "forged": body(place, "forged"), "before": ENTRIES[place - 2], "early": ENTRIES[0],
        "later": ENTRIES[place], "foreign": b"{}",
    }[what]  # fmt: skip
    assert (Kind.INSERTED, place) == told(in_ledger(kept, *moved(place, put)))
    number, some, at = bundle_of(place)
    assert (Kind.INSERTED, place) == told(in_tiles(bundled([*some[:at], put, *some[at:]], number)))


def test_an_entry_after_the_last_commit_is_one_put_in(kept: Path) -> None:
    put = body(SIZE + 1)
    row = ("INSERT INTO entries VALUES (?, ?, ?)", (SIZE + 1, put, leaf_hash(put)))
    assert (Kind.INSERTED, SIZE + 1) == told(in_ledger(kept, row))
    assert (Kind.INSERTED, 257) == told(in_tiles(bundled([*ENTRIES[:WIDTH], put], 0)))


# the end


@often
@given(places)
def test_a_cut_off_end_is_found(kept: Path, place: int) -> None:
    cut = ("DELETE FROM entries WHERE seq >= ?", (place,))
    assert (Kind.TRUNCATED, place) == told(in_ledger(kept, cut))
    number, some, at = bundle_of(place)
    last = (SIZE - 1) // WIDTH
    shorter = bundled(some[:at], number)
    if number == last:
        assert (Kind.TRUNCATED, place) == told(in_tiles(shorter))
    without = {path: data for path, data in TILES.items() if not path.startswith(f"tile/entries/{last:03}")}
    assert (Kind.TRUNCATED, last * WIDTH + 1) == told(finding(lambda: tile_source(without)))
    path = f"tile/{Tile(None, number, min(SIZE - number * WIDTH, WIDTH)).path()}"
    torn = {path: pack_entries(some[: at + 1])[:-9]}
    assert (Kind.TRUNCATED, place) == told(in_tiles(torn))


@often
@given(st.integers(1, SIZE - 1))
def test_a_head_that_was_rewound_is_found_by_an_older_checkpoint(kept: Path, size: int) -> None:
    old = note(ENTRIES)
    assert (Kind.REWOUND, size + 1) == told(finding(lambda: tile_source(as_tiles(ENTRIES[:size])), old))
    if size >= BATCH:
        left = size // BATCH * BATCH
        cut = [(f"DELETE FROM {table} WHERE {by} > ?", (left,)) for table, by in _TABLES]
        with TemporaryDirectory() as directory:
            path = Path(directory) / "ledger.db"
            copy(kept, path)
            assert (Kind.REWOUND, left + 1) == told(finding(lambda: changed(path, *cut), old))


_TABLES = (("entries", "seq"), ("commits", "size"))


@often
@given(st.integers(3, 300), st.integers(0, 300))
def test_a_fork_is_found_by_an_older_checkpoint(place: int, more: int) -> None:
    other = [*ENTRIES[: place - 1], body(place, "otherwise"), *ENTRIES[place : 300 + more]]
    assert Kind.FORKED is finding(lambda: tile_source(as_tiles(other)), OLD).kind


def test_a_fork_of_a_ledger_is_found_by_an_older_checkpoint(tmp_path: Path) -> None:
    other = [*ENTRIES[:99], body(100, "otherwise"), *ENTRIES[100:]]
    path = write_ledger(tmp_path / "ledger.db", other, SIZE)
    assert Kind.FORKED is finding(lambda: LedgerSource(path), OLD).kind


def test_tiles_that_were_made_anew_without_the_key_are_a_fork() -> None:
    other = [*ENTRIES[:99], body(100, "otherwise"), *ENTRIES[100:]]
    files = as_tiles(other) | {"checkpoint": TILES["checkpoint"]}
    found = finding(lambda: tile_source(files))
    assert "integrity: the tree of these 700 entries is not the one that was signed (forked)" == str(found)


def test_a_head_of_very_many_entries_is_not_looked_for_forever() -> None:
    asked: list[str] = []
    head = Checkpoint(ORIGIN, 10**12, bytes(32)).text()
    files = {**TILES, "checkpoint": sign_note(head, ORIGIN, KEYS[:1])}
    # Of what was its end, a part is no part any more.
    files["tile/entries/002"], files["tile/0/002"] = TILES[PART], TILES[PART.replace("entries", "0")]

    def read(name: str) -> bytes | None:
        asked.append(name)
        return files.get(name)

    assert (Kind.TRUNCATED, SIZE + 1) == told(finding(lambda: TileSource(read)))
    assert len(asked) < 300


# the signature


def test_another_key_is_found_by_a_checkpoint_a_pin_or_the_logs_own_word() -> None:
    old = note(ENTRIES[:300])
    forged = as_tiles(ENTRIES, KEYS[2:])
    assert Kind.RESIGNED is finding(lambda: tile_source(forged), old).kind
    assert Kind.RESIGNED is finding(lambda: tile_source(forged), pinned=VKEYS[:1]).kind
    both = forged["keys"] + TILES["keys"]
    assert Kind.RESIGNED is finding(lambda: tile_source(forged | {"keys": both}), old).kind
    assert Kind.RESIGNED is in_tiles({"checkpoint": forged["checkpoint"]}).kind


def test_a_key_that_the_old_one_vouched_for_is_believed(tmp_path: Path) -> None:
    old = note(ENTRIES[:300])
    keys = f"{VKEYS[1]} active\n{VKEYS[0]} retired\n".encode()
    origin = VKEYS[0].name
    handover = sign_note(handover_text(origin, VKEYS[1]), origin, KEYS[:1])
    rotated = as_tiles(ENTRIES, KEYS[1:2]) | {"keys": keys}
    assert Kind.RESIGNED is finding(lambda: tile_source(rotated), old).kind
    assert (VKEYS[1],) == verify(tile_source(rotated | {"handovers": handover}), old).signers
    assert (VKEYS[1],) == verify(tile_source(rotated | {"handovers": handover}), pinned=VKEYS[:1]).signers
    # The ledger's own entries say the same.
    path = write_ledger(tmp_path / "ledger.db", ENTRIES, 100)
    assert 300 == verify(LedgerSource(path), parse_note(checkpoint(ENTRIES[:300], KEYS[1:2]))).old.size
    assert VKEYS[:2] == LedgerSource(path).keys()
    assert VKEYS[:1] == LedgerSource(path).handovers()[0].signers(VKEYS[:1])


def test_a_key_is_known_that_came_as_others_were_retired(tmp_path: Path) -> None:
    cross = KEYS[1].sign(handover_text(ORIGIN, VKEYS[2]).encode()).hex()
    events = (
        {"type": "trust.rotated", "until_ns": 5,
         "key": {"what": "merkle", "id": KEYS[2].public.hex(), "cross": cross}},
        {"type": "trust.retired", "what": "merkle", "key": KEYS[1].public.hex()},
    )  # fmt: skip
    line = Line("hive", "hive", "", "/trust/ctl", ("x",), 1, "T")
    entries = [*bodies(5), canonical(entry_of(line, 6, OK, events))]
    path = write_ledger(tmp_path / "ledger.db", entries)
    assert VKEYS == LedgerSource(path).keys()
    verified = verify(LedgerSource(path), note(entries, KEYS[2:]), VKEYS[:1])
    assert head_of(entries) == verified.old


def test_a_checkpoint_of_another_log_is_not_of_this_one() -> None:
    other = sign_note(head_of(ENTRIES).text().replace("h1/", "h2/"), "h2/log/trace", KEYS[:1])
    found = finding(lambda: tile_source(TILES), parse_note(other))
    assert Kind.RESIGNED is found.kind
    assert "the older checkpoint is of h2/log/trace" in str(found)


# what is no log


def test_what_cannot_be_read_says_so(tmp_path: Path, kept: Path) -> None:
    assert Kind.DAMAGED is finding(lambda: tile_source({})).kind
    assert Kind.DAMAGED is in_tiles({"checkpoint": b"no note"}).kind
    assert Kind.DAMAGED is in_tiles({"keys": b"no key\n"}).kind
    path = tmp_path / "ledger.db"
    data = kept.read_bytes()
    path.write_bytes(data[:100] + bytes(4000) + data[4100:])
    assert Kind.DAMAGED is finding(lambda: LedgerSource(path)).kind
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t(x)")
    assert Kind.DAMAGED is finding(lambda: LedgerSource(tmp_path / "other.db")).kind
