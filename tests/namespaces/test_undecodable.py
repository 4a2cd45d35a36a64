"""What somebody who may submit wrote and nobody can read: kept within bounds, told of, thrown away."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

import msgspec
import pytest
from door import Door
from hives import ANN, BOB, EYE, Folded, Living, live

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.node import Caller, How
from skep.namespaces.garbled import keep
from skep.namespaces.jobs.undecodable import KEPT_MAX, LETTERS_MAX
from skep.namespaces.tree import hive_tree
from skep.trace.rules import Refusal

BOOTH = Caller("spiffe://hive/interactive-ai-booth/b1", "interactive-ai-booth", node="b1")


def doors(alive: Living, *callers: Caller) -> list[Door]:
    return [Door(hive_tree(alive.hive), caller) for caller in callers]


async def told(door: Door, path: str, data: bytes | str) -> str:
    chan = await door.open(path, How(write=True))
    try:
        with pytest.raises(FsError) as caught:
            await chan.write(0, memoryview(data if isinstance(data, bytes) else data.encode()))
    finally:
        await chan.clunk()
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"submit topic=sum input=\xff\xfe", "usage: line 1: byte 23: not UTF-8"),
        (b'{"verb":"submit","topic"', "usage: line 1: "),
        (b"submit topic=sum input='a", "usage: line 1: a quote ' is not closed"),
        (b"please add 1 and 2", "usage: line 1: add: expected key=value"),
    ],
)
def test_what_is_no_command_is_kept_as_it_was_and_its_writer_is_told(data: bytes, why: str) -> None:
    async def story(alive: Living) -> None:
        ann, bob = doors(alive, ANN, BOB)
        assert (await told(ann, "/jobs/ctl", data)).startswith(why)
        [id] = await ann.names("/dlq/undecodable")
        entry = msgspec.json.decode(await ann.read(f"/dlq/undecodable/{id}/entry.json"))
        assert ("undecodable", "unix:ann", len(data), sha256(data).hexdigest()) == tuple(
            entry[name] for name in ("code", "submitter", "size", "sha256")
        )
        assert entry["message"].startswith(why)
        assert b64encode(data).decode() == entry["data"]
        assert [] == await bob.names("/dlq/undecodable")
        with pytest.raises(FsError, match="file does not exist"):
            await bob.read(f"/dlq/undecodable/{id}/entry.json")

    live(story)


def test_an_open_of_clone_keeps_it_too_and_only_the_beginning_of_what_is_long() -> None:
    async def story(alive: Living) -> None:
        [ann] = doors(alive, ANN)
        data = b"submit " + b"x" * 3 * KEPT_MAX
        assert "expected key=value" in await told(ann, "/jobs/clone", data)
        [id] = await ann.names("/dlq/undecodable")
        assert data[:KEPT_MAX].decode() == await ann.read(f"/dlq/undecodable/{id}/data")
        assert f'"size":{len(data)}' in await ann.read(f"/dlq/undecodable/{id}/entry.json")

    live(story)


def test_a_request_that_can_be_read_and_is_refused_is_none() -> None:
    async def story(alive: Living) -> None:
        [ann] = doors(alive, ANN)
        await told(ann, "/jobs/ctl", "submit topic=sum colour=red")
        await told(ann, "/jobs/ctl", "submit topic=nowhere")
        assert [] == await ann.names("/dlq/undecodable")

    live(story)


def test_what_may_not_be_kept_for_its_writer_is_not() -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError) as caught:
            ctl.parse(b"no command")
        for caller, many in ((EYE, 0), (BOOTH, 1)):
            await keep(alive.hive, caller, b"no command", caught.value)
            assert many == len(alive.state.undecodable.by_tenant.get(caller.tenant, ()))
        # No file takes what the door writes.
        [ann] = doors(alive, ANN)
        assert "keep: unknown verb" in await told(ann, "/dlq/ctl", "keep data=eA== size=1 sha256=00 why=x")

    live(story)


def test_of_a_tenant_there_are_only_so_many_and_the_ledger_grows_no_more() -> None:
    async def story(alive: Living) -> None:
        ann, bob = doors(alive, ANN, BOB)
        for n in range(LETTERS_MAX + 3):
            await told(ann, "/jobs/ctl", f"no command {n}")
        ids = await ann.names("/dlq/undecodable")
        assert LETTERS_MAX == len(ids)
        seq = alive.hive.turn.seq
        await told(ann, "/jobs/ctl", "no command")
        assert seq == alive.hive.turn.seq
        await told(bob, "/jobs/ctl", "no command")
        assert 1 == len(await bob.names("/dlq/undecodable"))

    live(story)


@pytest.fixture
def hive() -> Folded:
    return Folded()


def kept(hive: Folded, who: Caller = ANN) -> str:
    args = {"data": "eA==", "size": "1", "sha256": sha256(b"x").hexdigest(), "why": "usage"}
    return hive.write("/dlq/ctl", ctl.line("keep", args), who)


def refused(hive: Folded, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write("/dlq/ctl", line, who)
    return caught.value.text


def test_it_is_not_tried_again_and_thrown_away_with_a_reason(hive: Folded) -> None:
    id = kept(hive)
    assert f"usage: retry: id={id}: nobody could read it" in refused(hive, f"retry id={id}")
    assert "reason= is missing" in refused(hive, f"discard id={id}")
    assert "expected why" in refused(hive, f"discard id={id} reason=' '")
    assert refused(hive, f"discard id={id} reason=r", BOB) == refused(hive, "discard id=none reason=r", BOB)
    hive.write("/dlq/ctl", f"discard id={id} reason='a stray cat'")
    assert {} == hive.state.undecodable.by_tenant


def test_more_than_is_kept_is_refused(hive: Folded) -> None:
    data = b64encode(b"x" * (KEPT_MAX + 1)).decode()
    line = ctl.line("keep", {"data": data, "size": "99999", "sha256": "0" * 64, "why": "w"})
    assert "expected 4096 at most" in refused(hive, line)
    assert "keep: data=" in refused(hive, line.replace(data, "#"))
