"""Snapshots: where a replay begins, what they are held against, and which are passed over."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from recorded import entry_with, story, tampered

from skep.__main__ import run
from skep.namespaces.evidence import KEY_FILE
from skep.namespaces.hive import HiveRules, HiveState
from skep.namespaces.policy.keys import load_or_create
from skep.namespaces.stored import head_of, newest, pack_state, unpack_state
from skep.roles.snapshots import own_keys, signing_by
from skep.trace.digest import digest
from skep.trace.ledger import Ledger
from skep.trace.snapshot import KEPT, listed, read_snapshot, state_hash, write_snapshot
from skep.trace.sqlite import SqliteLedger
from skep.validator.replay.replay import Replay

CUTS = (10, 20, 30)  # where the snapshots of ``hive`` are


def grow(path: Path, bodies: list[bytes]) -> None:
    """Append the entries in one commit."""
    with closing(SqliteLedger(str(path))) as opened:
        opened.begin()
        list(opened.tail())
        opened.append(bodies)
        opened.commit()


def lived(directory: Path, bodies: list[bytes]) -> Path:
    """A hive's directory with this ledger, and a snapshot at each cut."""
    load_or_create(directory / KEY_FILE)
    for begin, end in zip((0, *CUTS), (*CUTS, len(bodies)), strict=True):
        grow(directory / "ledger.db", bodies[begin:end])
        if end in CUTS:
            assert 0 == run(["snapshot", str(directory)])
    return directory


@pytest.fixture
def hive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The directory of a hive in which the story was recorded."""
    lived(tmp_path, list(story()))
    capsys.readouterr()
    return tmp_path


@pytest.fixture
def opened(hive: Path) -> Iterator[SqliteLedger]:
    with closing(SqliteLedger(str(hive / "ledger.db"))) as ledger:
        yield ledger


def said(capsys: pytest.CaptureFixture[str], *args: str, status: int = 0) -> list[str]:
    assert status == run(["replay", *args])
    return capsys.readouterr().out.splitlines()


def folded(upto: int) -> Replay:
    replay = Replay()
    for seq, body in enumerate(story()[:upto], 1):
        replay.fold(replay.decode(seq, body))
    return replay


def test_only_the_newest_are_kept(hive: Path) -> None:
    assert [30, 20][:KEPT] == [size for size, _ in listed(hive)]


def test_a_snapshot_says_what_the_first_entries_mean(hive: Path) -> None:
    head = read_snapshot(listed(hive)[0][1]).head
    assert (30, folded(30).digest()) == (head.size, head.digest)


def test_what_is_before_a_snapshot_is_not_folded_again(
    hive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = said(capsys, str(hive))
    assert ["begun from the snapshot of entry 30", *whole[-1:]] == [
        line for line in said(capsys, str(hive), "--from", "31") if "the same" not in line
    ]
    assert "begun from the snapshot of entry 20" in said(capsys, str(hive), "--from", "30")
    assert "begun" not in " ".join(said(capsys, str(hive), "--from", "20"))
    assert "begun" not in " ".join(said(capsys, str(hive), "--from", "31", "--no-snapshots"))
    found = json.loads(said(capsys, str(hive), "--from", "31", "--json")[0])
    assert (30, 31, len(story())) == (found["begun"], found["first"], found["last"])


def test_what_differs_after_a_snapshot_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = entry_with("BUSY")
    lived(tmp_path, tampered(at, "BUSY", "CONFLICT"))
    capsys.readouterr()
    lines = said(capsys, str(tmp_path), "--from", "31", status=1)
    assert "begun from the snapshot of entry 30" == lines[0]
    assert lines[1].startswith(f"entry {at}: ")


def test_good_snapshots_are_what_the_ledger_means(hive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, str(hive), "--check-snapshots")
    assert ["snapshot of entry 20: the same", "snapshot of entry 30: the same"] == lines[:2]
    found = json.loads(said(capsys, str(hive), "--check-snapshots", "--json")[0])
    assert [(20, False), (30, False)] == [(each["size"], each["wrong"]) for each in found["snapshots"]]


def forge(hive: Path, ledger: Ledger, state: HiveState) -> None:
    """Put another state in the place of the newest snapshot's, signed with the hive's own key."""
    size, path = listed(hive)[0]
    root = ledger.committed_root(size)
    assert root is not None
    head, packed = head_of(state, ledger)
    head = head._replace(size=size, root=root)
    path.unlink()
    write_snapshot(hive, signing_by(own_keys(hive, ""))(head.text()), packed)


def test_a_signed_snapshot_of_another_state_is_found(
    hive: Path, opened: SqliteLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    state = folded(30).state
    state.mode = "draining"
    forge(hive, opened, state)
    lines = said(capsys, str(hive), "--check-snapshots", status=1)
    there, here = digest(state), folded(30).digest()
    assert f"snapshot of entry 30: it has state {there}, folded is {here}" in lines
    assert 1 == run(["replay", str(hive), "--check-snapshots"])
    assert "a snapshot is not what the ledger means" in capsys.readouterr().err


def test_a_signed_snapshot_of_the_same_in_another_order_is_found(
    hive: Path, opened: SqliteLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    state = folded(30).state
    state.nodes.by_id = dict(reversed(state.nodes.by_id.items()))
    forge(hive, opened, state)
    lines = said(capsys, str(hive), "--check-snapshots", status=1)
    assert "snapshot of entry 30: it has the same state in another order" in lines


def test_a_ledger_that_is_older_than_its_snapshots_is_found(
    hive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in hive.glob("ledger.db*"):
        path.unlink()
    grow(hive / "ledger.db", list(story()[:20]))
    assert 0 == run(["replay", str(hive)])
    lines = said(capsys, str(hive), "--check-snapshots", status=1)
    assert "snapshot of entry 30: no commit of the ledger ends there" in lines


# which are believed


def warned(caplog: pytest.LogCaptureFixture, hive: Path, ledger: Ledger) -> tuple[int, str]:
    """The entry that a start goes on from, and why the newest snapshot was passed over."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        begun = newest(hive, ledger, own_keys(hive, ""))
    (record,) = caplog.records
    return 0 if begun is None else begun.seq, record.getMessage().rpartition("over: ")[2]


def test_a_good_one_is_begun_from(hive: Path, opened: SqliteLedger) -> None:
    begun = newest(hive, opened, own_keys(hive, ""))
    assert begun is not None
    assert (30, folded(30).digest()) == (begun.seq, digest(begun.state))
    assert newest(hive, opened, own_keys(hive, ""), 9) is None


def test_one_that_another_key_signed_is_passed_over(
    hive: Path, opened: SqliteLedger, caplog: pytest.LogCaptureFixture
) -> None:
    (hive / KEY_FILE).unlink()
    load_or_create(hive / KEY_FILE)
    caplog.set_level(logging.WARNING)
    assert newest(hive, opened, own_keys(hive, "")) is None
    assert 2 == sum("expected a key that is known" in each.getMessage() for each in caplog.records)


def test_one_of_another_ledger_is_passed_over(
    hive: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path_factory.mktemp("other") / "ledger.db"
    grow(other, list(story()[:20]))
    with closing(SqliteLedger(str(other))) as ledger:
        assert (20, "it is not of this ledger") == warned(caplog, hive, ledger)


@pytest.mark.parametrize("left", [0, 10, 300, -1])
def test_one_that_was_cut_is_passed_over(
    hive: Path, opened: SqliteLedger, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    path = listed(hive)[0][1]
    path.write_bytes(path.read_bytes()[:left])
    assert 20 == warned(caplog, hive, opened)[0]


def test_one_under_another_name_is_passed_over(
    hive: Path, opened: SqliteLedger, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(hive)[0][1]
    path.rename(path.with_name("31.snapshot"))
    assert (20, "it is of entry 30") == warned(caplog, hive, opened)


def test_one_that_other_code_made_is_passed_over_and_not_called_wrong(
    hive: Path, opened: SqliteLedger, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(hive)[0][1]
    found = read_snapshot(path)
    head = found.head._replace(rules=state_hash(b"other code"))
    path.unlink()
    write_snapshot(hive, signing_by(own_keys(hive, ""))(head.text()), found.packed)
    assert (20, "it was made by other code than this") == warned(caplog, hive, opened)
    lines = said(capsys, str(hive), "--check-snapshots")
    assert "snapshot of entry 30: passed over: it was made by other code than this" in lines


@pytest.mark.slow
def test_no_bit_of_it_can_be_changed(
    hive: Path, opened: SqliteLedger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    path, keys = listed(hive)[0][1], own_keys(hive, "")
    whole = path.read_bytes()
    for at in [*range(700), *range(700, len(whole), 997)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        begun = newest(hive, opened, keys)
        assert begun is not None
        assert 20 == begun.seq, at


def test_a_tampered_ledger_is_refused_where_a_snapshot_covers_it(hive: Path) -> None:
    with closing(sqlite3.connect(hive / "ledger.db")) as found, found:
        found.execute("UPDATE entries SET body = replace(body, 'a', 'b') WHERE seq = 4")
    assert 1 == run(["replay", str(hive), "--from", "31"])


def test_a_snapshot_of_a_state_is_not_changed_by_its_ways(hive: Path) -> None:
    state = HiveRules().fresh()
    assert pack_state(state) == pack_state(unpack_state(pack_state(state)))
