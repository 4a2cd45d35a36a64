from __future__ import annotations

import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_check import check_ledger, grow, root_of

from skep.trace.entry import leaf_hash
from skep.trace.ledger import LedgerBusy, LedgerError, LedgerTampered, open_ledger
from skep.trace.sqlite import SKIP_MIN, SqliteLedger

COMMITS = [[b"1", b"2", b"3"], [b"4"], [b"5", b"6", b"7", b"8"], [b"9", b"10"]]
BODIES = [body for commit in COMMITS for body in commit]


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    """A ledger of ten entries in four commits."""
    path = tmp_path / "ledger.db"
    with closing(SqliteLedger(str(path))) as ledger:
        for commit in COMMITS:
            grow(ledger, *commit)
    return path


def opened(path: Path) -> list[bytes]:
    """The bodies of the ledger at ``path``, verified."""
    with closing(SqliteLedger(str(path))) as ledger:
        return [body for _, body in ledger.tail()]


def test_the_file_is_a_ledger(tmp_path: Path) -> None:
    numbers = count()
    check_ledger(lambda: open_ledger(f"sqlite://{tmp_path}/{next(numbers)}.db"))


def test_memory_is_a_ledger() -> None:
    check_ledger(lambda: open_ledger(":memory:"))


def test_a_ledger_is_found_again(ledger_path: Path) -> None:
    with closing(open_ledger(str(ledger_path))) as ledger:
        assert list(ledger.tail()) == list(enumerate(BODIES, 1))
        assert ledger.root == root_of(BODIES)


def test_what_is_known_is_verified_and_not_given(ledger_path: Path) -> None:
    with closing(open_ledger(str(ledger_path))) as ledger:
        assert list(ledger.tail(8)) == [(9, b"9"), (10, b"10")]
        assert (ledger.size, ledger.root) == (10, root_of(BODIES))
    edit(ledger_path, "UPDATE entries SET body = x'00' WHERE seq = 3")
    with closing(open_ledger(str(ledger_path))) as ledger, pytest.raises(LedgerTampered, match="entry 3: "):
        list(ledger.tail(8))


def test_very_much_that_is_known_is_verified_and_not_given(tmp_path: Path) -> None:
    path, bodies = tmp_path / "ledger.db", [b"%d" % n for n in range(1, SKIP_MIN + 100)]
    with closing(SqliteLedger(str(path))) as ledger:
        grow(ledger, *bodies)
        grow(ledger, b"last")
    with closing(SqliteLedger(str(path))) as ledger:
        assert list(ledger.tail(SKIP_MIN + 99)) == [(SKIP_MIN + 100, b"last")]
        assert ledger.root == root_of([*bodies, b"last"])
        grow(ledger, b"one more")
    edit(path, "UPDATE entries SET body = x'00' WHERE seq = 3000")
    with closing(SqliteLedger(str(path))) as ledger, pytest.raises(LedgerTampered, match="entry 3000: leaf"):
        list(ledger.tail(SKIP_MIN))
    edit(path, "INSERT INTO entries VALUES (0, x'00', leaf_hash(x'00'))")
    with closing(SqliteLedger(str(path))) as ledger, pytest.raises(LedgerTampered, match="entry 1: missing"):
        list(ledger.tail(SKIP_MIN))


def test_the_file_is_its_owners_alone(ledger_path: Path) -> None:
    with closing(SqliteLedger(str(ledger_path))) as ledger:
        grow(ledger, b"11")
        files = sorted(ledger_path.parent.iterdir())
        assert [file.name for file in files] == ["ledger.db", "ledger.db-shm", "ledger.db-wal"]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3


def test_an_url_of_no_engine_is_refused() -> None:
    with pytest.raises(LedgerError, match="no engine for mysql"):
        open_ledger("mysql://host/db")


def test_a_ledger_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        SqliteLedger(str(tmp_path / "nowhere" / "ledger.db"))


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t(x)")
    with pytest.raises(LedgerError, match="not a ledger"):
        SqliteLedger(str(path))


def test_a_file_that_is_no_database_does_not_open(ledger_path: Path) -> None:
    ledger_path.write_bytes(b"x" * 8192)
    with pytest.raises(LedgerTampered, match="not a database"):
        SqliteLedger(str(ledger_path))


def test_a_ledger_of_another_version_does_not_open(ledger_path: Path) -> None:
    edit(ledger_path, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="version 2"):
        SqliteLedger(str(ledger_path))


# Two ledgers on one file stand for two processes: SQLite locks each connection by itself.


def test_a_turn_excludes_other_turns_but_no_reader(ledger_path: Path) -> None:
    with closing(SqliteLedger(str(ledger_path))) as one, closing(SqliteLedger(str(ledger_path))) as other:
        assert len(list(one.tail())) == 10
        one.begin()
        one.append([b"11"])
        with pytest.raises(LedgerBusy):
            other.begin()
        assert len(list(other.tail())) == 10
        assert other.read(8) == [(9, b"9"), (10, b"10")]
        one.commit()
        other.begin()
        other.rollback()


def test_each_process_folds_what_the_other_appended(ledger_path: Path) -> None:
    with closing(SqliteLedger(str(ledger_path))) as one, closing(SqliteLedger(str(ledger_path))) as other:
        list(one.tail())
        list(other.tail())
        grow(one, b"11", b"12")
        assert not one.changed()
        assert other.changed()
        assert other.read(10) == []
        assert list(other.tail()) == [(11, b"11"), (12, b"12")]
        assert not other.changed()
        grow(other, b"13")
        one.begin()
        assert list(one.tail()) == [(13, b"13")]
        one.rollback()
        assert one.root == other.root == root_of([*BODIES, b"11", b"12", b"13"])


def edit(path: Path, *statements: str) -> None:
    """What somebody with an SQLite shell could do to the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.create_function("leaf_hash", 1, leaf_hash)
        for statement in statements:
            shell.execute(statement)


EDITS = {
    "changed body": ("UPDATE entries SET body = x'00' WHERE seq = 4", "entry 4: leaf hash"),
    "body as text": ("UPDATE entries SET body = CAST(body AS TEXT) WHERE seq = 4", "entry 4: leaf hash"),
    "changed leaf": ("UPDATE entries SET leaf = zeroblob(32) WHERE seq = 7", "entry 7: leaf hash"),
    "changed body and leaf": (
        "UPDATE entries SET body = x'00', leaf = leaf_hash(x'00') WHERE seq = 5",
        "entry 8: tree root",
    ),
    "deleted row": ("DELETE FROM entries WHERE seq = 6", "entry 6: missing"),
    "deleted first row": ("DELETE FROM entries WHERE seq = 1", "entry 1: missing"),
    "deleted last row": ("DELETE FROM entries WHERE seq = 10", "entry 10: missing|entry 9: no commit"),
    "deleted whole commit": ("DELETE FROM entries WHERE seq > 8", "entry 9: missing"),
    "deleted all rows": ("DELETE FROM entries", "entry 1: missing"),
    "row put in": ("INSERT INTO entries VALUES (11, x'00', leaf_hash(x'00'))", "entry 11: no commit"),
    "row put before the first": (
        "INSERT INTO entries VALUES (0, x'00', leaf_hash(x'00'))",
        "entry 1: missing, entry 0",
    ),
    "changed root": ("UPDATE commits SET root = zeroblob(32) WHERE size = 4", "entry 4: tree root"),
    "deleted commit": (
        "DELETE FROM commits WHERE size = 4",
        "entry 8: its commit begins after 4, expected 3",
    ),
    "deleted last commit": ("DELETE FROM commits WHERE size = 10", "entry 9: no commit"),
    "deleted all commits": ("DELETE FROM commits", "entry 1: no commit"),
    "moved commit": ("UPDATE commits SET size = 9 WHERE size = 10", "entry 9: tree root"),
    "commit put in": ("INSERT INTO commits VALUES (2, 0, zeroblob(32))", "entry 2: tree root"),
    "commit put behind": ("INSERT INTO commits VALUES (11, 10, zeroblob(32))", "entry 11: missing"),
    "commit put before": ("INSERT INTO commits VALUES (0, 0, zeroblob(32))", "entry 0: a commit"),
    "changed commit": ("UPDATE commits SET since = 2 WHERE size = 4", "entry 4: its commit begins after 2"),
    "trigger": ("CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END", "schema"),
    "table put in": ("CREATE TABLE more(x)", "schema"),
    "dropped table": ("DROP TABLE commits", "schema"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_ledger_that_was_edited_does_not_open(ledger_path: Path, name: str) -> None:
    statement, where = EDITS[name]
    edit(ledger_path, statement)
    with pytest.raises(LedgerTampered, match=where):
        opened(ledger_path)


def test_rows_that_changed_places_are_found(ledger_path: Path) -> None:
    edit(
        ledger_path,
        "UPDATE entries SET seq = -5 WHERE seq = 5",
        "UPDATE entries SET seq = 5 WHERE seq = 6",
        "UPDATE entries SET seq = 6 WHERE seq = -5",
    )
    with pytest.raises(LedgerTampered, match="entry 8: tree root"):
        opened(ledger_path)


def test_entries_taken_back_under_an_open_ledger_are_missed(ledger_path: Path) -> None:
    with closing(SqliteLedger(str(ledger_path))) as ledger:
        list(ledger.tail())
        edit(ledger_path, "DELETE FROM entries WHERE seq > 8", "DELETE FROM commits WHERE size > 8")
        assert ledger.changed()
        with pytest.raises(LedgerTampered, match="entry 9: taken away while the ledger was open"):
            list(ledger.tail())


def test_a_root_changed_under_an_open_ledger_is_found(ledger_path: Path) -> None:
    with closing(SqliteLedger(str(ledger_path))) as ledger:
        list(ledger.tail())
        edit(ledger_path, "UPDATE commits SET root = zeroblob(32) WHERE size = 10")
        with pytest.raises(LedgerTampered, match="entry 10: tree root changed while the ledger was open"):
            list(ledger.tail())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "ledger.db"
    with closing(SqliteLedger(str(path))) as ledger:
        for commit in COMMITS:
            grow(ledger, *commit)
    return path


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_found(pristine: Path, data: st.DataObject) -> None:
    table, key, column = data.draw(
        st.sampled_from([("entries", "seq", "body"), ("entries", "seq", "leaf"), ("commits", "size", "root")])
    )
    path = pristine.parent / "edited.db"
    shutil.copy(pristine, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        rows = shell.execute(f"SELECT {key}, {column} FROM {table}").fetchall()
        number, value = data.draw(st.sampled_from(rows))
        bit = data.draw(st.integers(0, len(value) * 8 - 1))
        flipped = (int.from_bytes(value, "big") ^ 1 << bit).to_bytes(len(value), "big")
        shell.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (flipped, number))
    with pytest.raises(LedgerTampered, match=f"^entry {number}: "):
        opened(path)


def torn_copies(source: Path, target: Path, cut: Callable[[bytes], Iterator[bytes]]) -> Iterator[Path]:
    """Copies of an open ledger as a crash could leave it, its WAL as ``cut`` makes it."""
    wal = Path(f"{source}-wal").read_bytes()
    for torn in cut(wal):
        shutil.copy(source, target)
        Path(f"{target}-wal").write_bytes(torn)
        Path(f"{target}-shm").unlink(missing_ok=True)
        yield target


def test_a_torn_end_leaves_the_last_whole_commit(tmp_path: Path) -> None:
    rng = random.Random(1)
    bodies = [b"entry %d " % n * 30 for n in range(60)]
    ends = [0]
    with closing(SqliteLedger(str(tmp_path / "ledger.db"))) as ledger:
        while ends[-1] < len(bodies):
            ends.append(min(ends[-1] + rng.randint(1, 5), len(bodies)))
            grow(ledger, *bodies[ends[-2] : ends[-1]])

        def cut(wal: bytes) -> Iterator[bytes]:
            for size in sorted(rng.sample(range(len(wal)), 40)):
                yield wal[:size]
            yield wal

        sizes = []
        for copy in torn_copies(tmp_path / "ledger.db", tmp_path / "torn.db", cut):
            found = opened(copy)
            assert found == bodies[: len(found)]
            assert len(found) in ends
            sizes.append(len(found))
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(bodies)
    assert len(set(sizes)) > 5


def test_an_end_of_other_bytes_leaves_the_last_whole_commit(tmp_path: Path) -> None:
    rng = random.Random(2)
    bodies = [b"entry %d " % n * 30 for n in range(30)]
    with closing(SqliteLedger(str(tmp_path / "ledger.db"))) as ledger:
        for body in bodies:
            grow(ledger, body)

        def cut(wal: bytes) -> Iterator[bytes]:
            for _ in range(20):
                at = rng.randrange(len(wal) // 2, len(wal))
                yield wal[:at] + rng.randbytes(len(wal) - at)

        for copy in torn_copies(tmp_path / "ledger.db", tmp_path / "torn.db", cut):
            found = opened(copy)
            assert found == bodies[: len(found)]
            assert len(found) >= 10


def test_processes_that_make_one_ledger_at_once_share_it(tmp_path: Path) -> None:
    for n in range(5):
        path = str(tmp_path / f"{n}.db")
        with ThreadPoolExecutor(4) as pool:
            ledgers = list(pool.map(SqliteLedger, [path] * 4))
        for m, ledger in enumerate(ledgers, 1):
            grow(ledger, b"%d" % m)
            assert ledger.size == m
        for ledger in ledgers:
            ledger.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{n}.db" for n in range(5)]


def test_an_emptied_file_is_no_new_ledger(ledger_path: Path) -> None:
    ledger_path.write_bytes(b"")
    with pytest.raises(LedgerError, match="not a ledger"):
        SqliteLedger(str(ledger_path))
