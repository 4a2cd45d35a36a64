"""Snapshots as files of /log/trace: for whom they are there."""

from __future__ import annotations

import pytest
from door import Door, rest
from hives import ANN, BOB, EYE, W1, Living, live

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.evidence import Evidence
from skep.namespaces.stored import head_of
from skep.namespaces.tree import hive_tree
from skep.trace.note import sign_note
from skep.trace.snapshot import FOLDER, write_snapshot

TRACE = "/log/trace"
VAL = Caller("spiffe://hive/validator/v1", "validator")


def written(alive: Living) -> tuple[int, bytes, bytes]:
    """Make a snapshot of the hive: its size, its note and all of it."""
    head, packed = head_of(alive.state, alive.hive.turn.ledger)
    note = sign_note(head.text(), head.origin, Evidence(alive.hive).signing())
    return head.size, note, write_snapshot(alive.hive.directory, note, packed).read_bytes()


async def read(alive: Living, who: Caller, path: str) -> bytes:
    chan = await Door(hive_tree(alive.hive), who).open(f"{TRACE}/{path}")
    try:
        return await rest(chan)
    finally:
        await chan.clunk()


@pytest.mark.parametrize("who", [ANN, VAL])
def test_auditors_read_all_of_it(who: Caller) -> None:
    async def story(alive: Living) -> None:
        assert b"" == await read(alive, who, "snapshot")
        size, note, whole = written(alive)
        assert note == await read(alive, who, "snapshot")
        assert [str(size)] == await Door(hive_tree(alive.hive), who).names(f"{TRACE}/snapshots")
        assert whole == await read(alive, who, f"snapshots/{size}")
        (alive.hive.directory / FOLDER / f"{size + 1}.snapshot").write_bytes(b"damaged")
        assert note == await read(alive, who, "snapshot")

    live(story)


@pytest.mark.parametrize(
    ("who", "of_head", "of_all"),
    [(EYE, None, E.DENIED), (BOB, E.DENIED, E.MISSING), (W1, E.DENIED, E.MISSING)],
)
def test_others_read_less_or_none(who: Caller, of_head: E | None, of_all: E) -> None:
    async def story(alive: Living) -> None:
        size, note, _ = written(alive)
        for path, kind in (("snapshot", of_head), (f"snapshots/{size}", of_all)):
            if kind is None:
                assert note == await read(alive, who, path)
                continue
            with pytest.raises(FsError) as caught:
                await read(alive, who, path)
            assert kind is caught.value.kind

    live(story)


@pytest.mark.parametrize("name", ["1", "x", "01", "7.snapshot"])
def test_what_is_none_is_not_there(name: str) -> None:
    async def story(alive: Living) -> None:
        written(alive)
        with pytest.raises(FsError) as caught:
            await read(alive, ANN, f"snapshots/{name}")
        assert E.MISSING is caught.value.kind

    live(story)
