"""A ledger's rows in C: they are verified as far as all is well, and not one row further."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from skep.native import ledger
from skep.native.ledger import AVAILABLE, End, follow
from skep.native.trace_twin import Twin, root_of
from skep.trace.entry import OK, Line, canonical, entry_of
from skep.trace.rows import SELECT
from skep.trace.sqlite import SqliteLedger
from skep.validator.verify.verify import seq_of

TWIN = Twin()
COUNT = 1300  # more than two batches of ledger.c
NEW = End(0, [], 0, bytes(32))


def body(seq: int, token: str = "", actor: str = "unix:ann", trace: str = "T") -> bytes:
    line = Line(actor, "operator", "acme", "/jobs/ctl", (f"submit n={seq}",), seq, trace, token)
    return canonical(entry_of(line, seq, OK, ({"type": "t", "seq": 7},)))


def write(path: Path, bodies: list[bytes], every: int = 3) -> Path:
    """A ledger of these, with a commit for ``every`` and one at the end."""
    SqliteLedger(str(path)).close()
    leaves = TWIN.leaves(bodies)
    sizes = sorted({*range(every, len(bodies), every), len(bodies)})
    roots = TWIN.grow(0, [], leaves, sizes)[1]
    with closing(sqlite3.connect(path)) as file:
        rows = [(n, one, leaves[n * 32 - 32 : n * 32]) for n, one in enumerate(bodies, 1)]
        file.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        commits = [(size, since, roots[n * 32 : n * 32 + 32]) for n, (size, since) in enumerate(
            zip(sizes, [0, *sizes], strict=False)
        )]  # fmt: skip
        file.executemany("INSERT INTO commits VALUES (?, ?, ?)", commits)
        file.commit()
    return path


def end_of(bodies: list[bytes], every: int = 3) -> End:
    """What follow should come to after these, where they are not all of a ledger."""
    committed = len(bodies) // every * every
    leaves = TWIN.leaves(bodies)
    peaks = TWIN.grow(0, [], leaves)[0]
    root = root_of(TWIN.grow(0, [], leaves[: committed * 32])[0]) if committed else bytes(32)
    return End(len(bodies), peaks, committed, root)


def followed(path: Path, end: End = NEW, last: int = COUNT, numbers: bool = True) -> End:
    return follow(f"{path.as_uri()}?mode=ro", SELECT, end, last, numbers)


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    return [body(seq) for seq in range(1, COUNT + 1)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]) -> Path:
    return write(tmp_path_factory.mktemp("kept") / "ledger.db", bodies)


@pytest.fixture
def whole(tmp_path: Path, kept: Path) -> Path:
    return Path(shutil.copy(kept, tmp_path / "ledger.db"))


def edit(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute(sql, values)
        file.commit()


def test_it_is_available_here() -> None:
    assert AVAILABLE


def test_a_whole_ledger_is_followed_to_its_end(whole: Path, bodies: list[bytes]) -> None:
    root = root_of(TWIN.grow(0, [], TWIN.leaves(bodies))[0])
    assert end_of(bodies)._replace(committed=COUNT, root=root) == followed(whole)


@pytest.mark.parametrize("last", [0, 1, 2, 3, 511, 512, 513, 1024, 1025, 1299])
def test_it_stops_where_it_should_and_goes_on_from_there(whole: Path, bodies: list[bytes], last: int) -> None:
    end = followed(whole, last=last)
    assert end_of(bodies[:last]) == end
    assert followed(whole) == followed(whole, end)


WRONG = {
    "body": "UPDATE entries SET body = x'7b7d' WHERE seq = ?",
    "body as text": "UPDATE entries SET body = CAST(body AS TEXT) WHERE seq = ?",
    "hash": "UPDATE entries SET leaf = zeroblob(32) WHERE seq = ?",
    "short hash": "UPDATE entries SET leaf = zeroblob(31) WHERE seq = ?",
    "missing row": "DELETE FROM entries WHERE seq = ?",
    "root": "UPDATE commits SET root = zeroblob(32) WHERE size = ?",
    "root as text": "UPDATE commits SET root = 'root' WHERE size = ?",
    "beginning of a commit": "UPDATE commits SET since = 1 WHERE size = ?",
    "missing commit": "DELETE FROM commits WHERE size = ?",
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("seq", [3, 510, 513, 1026, 1299])
def test_no_row_is_followed_that_is_wrong(whole: Path, bodies: list[bytes], wrong: str, seq: int) -> None:
    edit(whole, WRONG[wrong], seq)
    end = followed(whole)
    # A commit that is missing shows where the next one begins.
    shows = seq + 3 if wrong == "missing commit" else seq
    assert shows - 512 <= end.size + 1 <= shows
    expected = end_of(bodies[: end.size])
    assert (expected.size, expected.peaks) == (end.size, end.peaks)
    assert expected == end or wrong == "missing commit"


def test_numbers_are_asked_for_where_they_are_wanted(tmp_path: Path, bodies: list[bytes]) -> None:
    path = write(tmp_path / "ledger.db", [*bodies[:5], bodies[5], bodies[5], *bodies[7:]])
    assert COUNT == followed(path, numbers=False).size
    assert followed(path).size < 7


BODIES = {
    "as it is": (body(1), True),
    "with a token": (body(1, token="2f"), True),
    "a writer with quotes": (body(1, actor='"seq":2,"'), True),
    "another number": (body(2), False),
    "a longer number": (body(11), False),
    "a trace with an escape": (body(1, trace='"'), False),
    "a number in the trace": (body(2, trace=',"seq":1,"tenant":"","time":1,"trace":"","v":1}'), False),
    "of another version": (body(1).replace(b'"v":1', b'"v":222'), True),
    "cut": (body(1)[:-1], False),
    "no more than the end": (b',"seq":1,"tenant":"","time":1,"trace":"","v":1}', True),
    "spaces": (body(1).replace(b'"seq":1', b'"seq": 1'), False),
    "a zero before": (body(1).replace(b'"seq":1', b'"seq":01'), False),
    "nothing": (b"", False),
    "a bracket": (b"}", False),
    "a string": (b'"', False),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_an_entry_says_its_number_or_is_left_to_others(tmp_path: Path, name: str) -> None:
    """What is followed says it to whoever reads JSON, too, where it is JSON at all."""
    one, expected = BODIES[name]
    assert expected == (1 == followed(write(tmp_path / "ledger.db", [one])).size)
    if expected and name != "no more than the end":
        assert 1 == seq_of(one)


def test_bodies_of_every_length_are_followed(tmp_path: Path) -> None:
    chance = Random(6)
    some = [b"", *(chance.randbytes(chance.choice([0, 1, 63, 64, 500, 65_535])) for _ in range(600))]
    assert 601 == followed(write(tmp_path / "ledger.db", some), numbers=False).size


def test_no_file_and_no_table_are_no_rows(tmp_path: Path) -> None:
    assert NEW == followed(tmp_path / "none.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    assert NEW == followed(tmp_path / "empty.db")


def test_what_is_not_available_follows_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "AVAILABLE", False)
    assert NEW == followed(whole)
