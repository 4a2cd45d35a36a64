"""Sheets: what is exported and imported is exported as the same bytes; mistakes are told where they are."""

from __future__ import annotations

import csv
import io
from hashlib import sha256
from typing import Any

import pytest
from door import Door
from hives import ANN, BOB, Living, live
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.errors import E, FsError
from skep.fs.node import Caller, How
from skep.namespaces.sheet import Form, Row, read
from skep.namespaces.tree import hive_tree
from skep.trace.entry import Entry, entry_decoder

FORM = Form("things.v1", ("thing", "text"))


def sheet(rows: list[tuple[str, str]], header: tuple[str, ...] = FORM.header) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")))
)
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back(texts: dict[str, str]) -> None:
    found: list[Row] = [line.row for line in read(FORM, sheet([*texts.items()]))]
    assert [{"thing": name, "text": text} for name, text in texts.items()] == found


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", E.USAGE, "line 1: expected the header things.v1,text"),
        (b"thing,text\r\n", E.USAGE, "line 1: expected the header things.v1,text"),
        (b"things.v2,text\r\n", E.VERSION, "line 1: column 1: things.v2, expected things.v1"),
        (sheet([("a", "x\ny"), ("b", "1"), ("a", "2")]), E.USAGE, "line 5: column thing: a is on line 2 too"),
        (b"things.v1,text\r\na,b,c\r\n", E.USAGE, "line 2: 3 columns, expected 2"),
        (b'things.v1,text\r\na,"b\r\n', E.USAGE, "line 2: unexpected end of data"),
        (b"things.v1,text\r\na,\xff\r\n", E.USAGE, "line 2: byte 18: not UTF-8"),
    ],
)
def test_a_mistake_is_told_with_its_line(data: bytes, kind: E, said: str) -> None:
    with pytest.raises(FsError) as caught:
        read(FORM, data)
    assert (kind, said) == (caught.value.kind, caught.value.detail)


def test_a_sheet_from_before_a_column_came_has_nothing_in_it() -> None:
    form = Form("things.v1", ("thing", "colour", "text"), frozenset({"colour"}))
    assert [{"thing": "a", "colour": "", "text": "b"}] == [
        line.row for line in read(form, sheet([("a", "b")]))
    ]
    data = b"things.v1,colour,text\r\na,red,b\r\n"
    assert [{"thing": "a", "colour": "red", "text": "b"}] == [line.row for line in read(form, data)]
    with pytest.raises(FsError, match=r"expected the header things\.v1,colour,text"):
        read(form, b"things.v1,colour\r\na,red\r\n")


# the nouns' sheets


async def imported(door: Door, noun: str, data: str) -> None:
    await door.write(f"/{noun}/import.csv", data, How(write=True, trunc=True))
    await door.write(f"/{noun}/ctl", f"import sha256={sha256(data.encode()).hexdigest()}\n")


async def refused(door: Door, noun: str, data: str) -> tuple[E, str]:
    with pytest.raises(FsError) as caught:
        await imported(door, noun, data)
    return caught.value.kind, caught.value.detail


async def exported(noun: str, fill: str, door: Door) -> str:
    """What is exported of a hive that had ``fill`` imported."""
    await imported(door, noun, fill)
    return await door.read(f"/{noun}/export.csv")


CONFIG = (
    "config.v1,document\r\n"
    'system,"# =SUM(A1:A2)\nlock = [""limits/submits""]\n[limits]\nsubmits = 5\n"\r\n'
    'lab,"{""jobs"": {""retries"": 2}}"\r\n'
    'lab/web/prod,"limits.submits = 9\n"\r\n'
)


def test_configuration_comes_back_as_the_same_bytes() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        assert "config.v1,document\r\n" == await door.read("/config/export.csv")
        # What is looser than what is locked above came before it, and is no mistake.
        assert CONFIG == await exported("config", CONFIG, door)
        assert "" == await door.read("/config/import.csv")
        seq = alive.hive.turn.seq
        await imported(door, "config", CONFIG)
        assert {1} == {record.live for record in alive.state.config.scopes.values()}
        assert seq + 1 >= alive.hive.turn.seq

    live(story)


def test_of_a_sheet_of_configuration_all_is_published_or_nothing() -> None:
    async def story(alive: Living) -> None:
        door, bob = (Door(hive_tree(alive.hive), who) for who in (ANN, BOB))
        for line, said in [
            ("lab,x = [\r\n", "line 5: column document: /: "),
            ("lab/web/prod/thumbs,\r\n", "line 5: column scope: 'lab/web/prod/thumbs': expected a scope"),
            ("nowhere/at,\r\n", "line 5: column scope: 'nowhere/at': expected a scope"),
            ("other,jobs.unknown = 1\r\n", "line 5: column document: /jobs/unknown: "),
        ]:
            kind, detail = await refused(
                door, "config", f'config.v1,document\r\nsystem,"# good\n\n"\r\n{line}'
            )
            assert detail.startswith(said), detail
            assert {} == alive.state.config.scopes
        with pytest.raises(FsError, match="integrity"):
            await door.write("/config/ctl", f"import sha256={64 * '0'}\n")
        await imported(bob, "config", "config.v1,document\r\nother/project/env/thumbs,\r\n")
        assert "config.v1,document\r\n" == await door.read("/config/export.csv")
        assert "config.v1,document\r\nother/project/env/thumbs,\r\n" == await bob.read("/config/export.csv")
        kind, detail = await refused(bob, "config", CONFIG)
        assert (E.USAGE, "line 2: column scope: 'system'") == (kind, detail[:30])

    live(story)


NODES = (
    "nodes.v1,principal,role,tenants,duty,trust,labels,capacity,version\r\n"
    "a1,spiffe://hive/cuda-annex/a1,cuda-annex,lab/web/prod default/default/default,draining,yellow,"
    '"{""gpu"":""a,b"",""zone"":""=1+1""}",4,0.9\r\n'
    "a2,spiffe://hive/drone-worker/a2,drone-worker,,open,green,,,\r\n"
)


def test_nodes_come_back_as_the_same_bytes_and_join_as_who_they_are() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        await alive.write("/nodes/ctl", "remove node=w1", "remove node=w2")
        assert NODES == await exported("nodes", NODES, door)
        assert ("expected\n", "yellow\n") == (
            await door.read("/nodes/a1/state"),
            await door.read("/nodes/a1/trust"),
        )
        with pytest.raises(FsError, match="rule=node-owner"):
            await alive.hive.join(Caller("unix:other", "drone-worker", node="a2"))
        await alive.hive.join(Caller("spiffe://hive/cuda-annex/a1", "cuda-annex", "lab/web/prod", node="a1"))
        assert "draining\n" == await door.read("/nodes/a1/state")
        assert NODES == await door.read("/nodes/export.csv")
        seq = alive.hive.turn.seq
        await imported(door, "nodes", NODES)
        assert not any(entry.events for entry in since(alive, seq))

    live(story)


def since(alive: Living, seq: int) -> list[Entry[dict[str, Any]]]:
    decoder = entry_decoder(dict)
    return [decoder.decode(body) for _, body in alive.hive.turn.read(seq)]


def test_of_a_sheet_of_nodes_everything_is_checked_first() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        head, good = NODES.split("\r\n")[0], "a3,unix:x,drone-worker,,,,,,"
        for line, said in [
            (
                "a4,unix:x,drone-worker,,,blue,,,",
                "line 3: expect: trust=blue: expected one of green yellow red",
            ),
            ("a4,,drone-worker,,,,,,", "line 3: expect: principal= is missing"),
            ("a4,unix:x,drone-worker,,,,x,,", "line 3: expect: labels=x: expected labels"),
            ("w1,unix:x,drone-worker,,,,,,", "line 3: column principal: the node is unix:work's"),
            ("a#4,unix:x,drone-worker,,,,,,", "line 3: column node: a#4: expected a name without #"),
        ]:
            _, detail = await refused(door, "nodes", f"{head}\r\n{good}\r\n{line}\r\n")
            assert detail.startswith(said), detail
        assert {"w1", "w2"} == alive.state.nodes.by_id.keys()
        bob = Door(hive_tree(alive.hive), BOB)
        assert "import.csv" not in await bob.names("/nodes")
        assert f"{head}\r\n" == await bob.read("/nodes/export.csv")

    live(story)


def test_a_sheet_of_thousands_of_nodes_is_several_entries() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        await alive.write("/nodes/ctl", "remove node=w1", "remove node=w2")
        head = NODES.split("\r\n")[0]
        rows = (f"n{n:05},unix:{n},drone-worker,,open,green,,,\r\n" for n in range(3000))
        data = f"{head}\r\n{''.join(rows)}"
        seq = alive.hive.turn.seq
        assert data == await exported("nodes", data, door)
        assert 20 < alive.hive.turn.seq - seq < 80

    live(story)
