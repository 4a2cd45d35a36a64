"""What is refused is recorded: every operation, whoever asks; floods cost the hive next to nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from door import Door
from hives import ANN, BOB, EYE, W1, Living, live
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import messages as m
from skep.fs.chan import EVERYTHING, Chan, Right, View
from skep.fs.conversation import Peer
from skep.fs.errors import E, FsError
from skep.fs.messages import NOFID, NONUNAME, Dialect, Message
from skep.fs.node import Caller, Node
from skep.fs.shapes import Memory
from skep.fs.tree import Dir, Listing
from skep.namespaces.log.core import LOG
from skep.namespaces.log.denials import (
    KINDS_MAX,
    KINDS_PER_PEER,
    PEERS_MAX,
    Denials,
    Kinds,
    Record,
    What,
)
from skep.namespaces.tree import hive_tree
from skep.trace.clock import MS, SECOND, ManualClock
from tests.fs.grounds import Raw, wait_until

PEER = Peer("tls", "192.0.2.7:4711", spiffe="spiffe://hive/observer/eve", role="observer", node="eve")
DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)


# floods


def flood(kinds: Kinds, clock: ManualClock, whats: Sequence[What], step_ns: int) -> list[Record]:
    """Each refused, ``step_ns`` after the other; the records, taken ten times a second."""
    records: list[Record] = []
    due_ns = clock.now_ns()
    for what in whats:
        clock.advance(step_ns)
        kinds.note(what, f"{what.peer}:1", what.canonical, "", clock.now_ns())
        if clock.now_ns() >= due_ns:
            due_ns += SECOND // 10
            records += kinds.due(clock.now_ns())
    return records + kinds.due(clock.now_ns(), everything=True)


def what(peer: int = 1, path: int = 1) -> What:
    return What(f"tls:192.0.2.{peer}", "eve", "observer", "", "a/b/c", "walk", "MISSING", "none", f"/{path}")


@pytest.mark.slow
@pytest.mark.parametrize("paths", [1, 7, 100_000])
def test_a_hundred_thousand_refusals_of_one_peer_are_some_dozen_records_and_none_is_lost(paths: int) -> None:
    clock = ManualClock()
    kinds = Kinds(clock)
    records = flood(kinds, clock, [what(path=i % paths) for i in range(100_000)], MS)
    assert sum(record.times for record in records) == 100_000
    assert len(records) <= 100
    assert len(kinds) <= KINDS_PER_PEER + 1


def test_many_peers_cannot_make_the_hive_remember_more_than_it_will() -> None:
    clock = ManualClock()
    kinds = Kinds(clock)
    records = flood(kinds, clock, [what(peer=i) for i in range(20_000)], MS)
    assert sum(record.times for record in records) == 20_000
    assert len(kinds) <= KINDS_MAX + PEERS_MAX + 1
    assert len(records) <= KINDS_MAX + PEERS_MAX + 100


def test_the_first_is_recorded_at_once_and_repeats_in_windows_that_double_up_to_a_minute() -> None:
    clock = ManualClock()
    kinds = Kinds(clock)
    began = clock.now_ns()
    records = flood(kinds, clock, [what()] * 3000, 100 * MS)
    ends = [round((record.last_ns - began) / SECOND) for record in records]
    assert ends == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 300]
    assert records[0].times == 1


def test_all_of_one_window_are_told_the_id_of_its_record() -> None:
    clock = ManualClock()
    kinds = Kinds(clock)
    told = [kinds.note(what(), "p", "/1", "", clock.now_ns())]
    first = kinds.due(clock.now_ns())
    told += [kinds.note(what(), "p", "/1", "", clock.now_ns()) for _ in range(3)]
    clock.advance(SECOND)
    (second,) = kinds.due(clock.now_ns())
    assert [first[0].trace] + [second.trace] * 3 == told
    assert first[0].trace != second.trace


def test_a_kind_that_is_over_is_forgotten_and_begins_anew() -> None:
    clock = ManualClock()
    kinds = Kinds(clock)
    kinds.note(what(), "p", "/1", "", clock.now_ns())
    for _ in range(2000):
        clock.advance(SECOND)
        kinds.due(clock.now_ns())
    assert len(kinds) == 0
    assert kinds._peers == {}


# in a hive


class Narrow:
    """A view that hides "secret" and grants ``rights``."""

    def __init__(self, rights: Right = Right.READ) -> None:
        self.rights = rights

    def child(self, name: str) -> View | None:
        return None if name == "secret" else self


class Gate:
    """Everybody is ``caller``, but for who asks for another's tenant."""

    def __init__(self, root: Node, caller: Caller, view: View) -> None:
        self.root = root
        self.caller = caller
        self.view = view

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        if aname:
            raise FsError(E.MISSING, aname)
        if uname != "eve":
            raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}")
        return Chan(self.root, self.caller, self.view)

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        if uname == "eve":
            return Chan(_Proof(), self.caller, EVERYTHING)
        raise FsError(E.UNAUTHENTICATED, "rule=lockout come back later")


class _Proof(Memory):
    def setattr(self, change: Any, caller: Caller) -> None:
        raise FsError(E.DENIED, "rule=proof")


def tree() -> Dir:
    """``theirs`` is there for another tenant."""

    def walk(name: str, caller: Caller) -> Memory | None:
        if name == "theirs":
            raise FsError(E.MISSING, name, hidden=True)
        return None

    return Dir(
        {"file": Memory(b"text"), "dir": {"in": "text"}, "rows": Listing(lambda caller: [], walk)}, 0o777
    )


async def attached(
    alive: Living,
    root: Node | None = None,
    caller: Caller = ANN,
    view: View | None = None,
    dialect: Dialect = Dialect.U,
) -> Raw:
    """Fid 0 is at the root of a connection whose witness is the hive."""
    raw = Raw(Gate(root or tree(), caller, view or Narrow()), PEER)
    raw.conversation.witness = alive.hive.denials.witness(PEER)
    await raw.version(dialect)
    await raw.ask(0, m.Tattach(0, NOFID, "eve", "", NONUNAME))
    return raw


async def refusal(raw: Raw, message: Message) -> str:
    answer = await raw.ask(1, message)
    assert isinstance(answer, m.Rerror), answer
    return answer.ename


async def logged(alive: Living, caller: Caller = ANN) -> list[dict[str, Any]]:
    await alive.hive.denials.flush(everything=True)
    text = await Door(hive_tree(alive.hive), caller).read(f"/log/{LOG}")
    return [json.loads(line) for line in text.split("\n") if line]


def trace_of(text: str) -> str:
    return text.rpartition(" trace=")[2]


REFUSALS = ("permission denied", "operation not permitted")
MISSING = (E.MISSING.value.text,)
REFUSED: list[tuple[str, str, str, Message]] = [
    ("open", "/file", "write", m.Topen(1, m.OWRITE)),
    ("open", "/file", "write", m.Topen(1, m.OREAD | m.OTRUNC)),
    ("open", "/file", "remove", m.Topen(1, m.OREAD | m.ORCLOSE)),
    ("create", "/dir/new", "create", m.Tcreate(2, "new", 0o644, m.OREAD)),
    ("create", "/dir/new", "create", m.Tcreate(2, "new", m.DM.DIR | 0o755, m.OREAD)),
    ("remove", "/file", "remove", m.Tremove(1)),
    ("wstat", "/file", "write", m.Twstat(1, msgspec.structs.replace(m.DONT_TOUCH, length=0))),
]


@pytest.mark.parametrize(("op", "path", "rule", "message"), REFUSED)
def test_each_operation_refused_is_recorded_with_the_id_that_its_caller_was_told(
    op: str, path: str, rule: str, message: Message
) -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive)
        await raw.ask(1, m.Twalk(0, 1, ("file",)))
        await raw.ask(1, m.Twalk(0, 2, ("dir",)))
        text = await refusal(raw, message)
        (line,) = await logged(alive)
        assert text.startswith(f"permission denied: rule={rule} ")
        assert (op, path, path, rule, "DENIED", trace_of(text)) == (
            line["op"], line["path"], line["canonical"], line["rule"], line["code"], line["trace"],
        )  # fmt: skip
        assert (PEER.kind + ":" + PEER.address, ANN.principal, ANN.role, ANN.tenant, 1) == (
            line["peer"], line["principal"], line["role"], line["tenant"], line["count"],
        )  # fmt: skip

    live(story)


LINUX: list[tuple[str, str, Message]] = [
    ("open", "/file", m.Tlopen(1, 1)),
    ("open", "/file", m.Tlopen(1, m.LO.TRUNC)),
    ("create", "/dir/new", m.Tlcreate(2, "new", m.LO.CREAT, 0o644, 0)),
    ("create", "/dir/new", m.Tmkdir(2, "new", 0o755, 0)),
    ("create", "/dir/new", m.Tsymlink(2, "new", "target", 0)),
    ("create", "/dir/new", m.Tmknod(2, "new", 0o100644, 0, 0, 0)),
    ("create", "/dir/new", m.Tlink(2, 1, "new")),
    ("rename", "/file", m.Trename(1, 2, "new")),
    ("rename", "/dir/in", m.Trenameat(2, "in", 0, "new")),
    ("remove", "/dir/in", m.Tunlinkat(2, "in", 0)),
    ("wstat", "/file", m.Tsetattr(1, m.SA.SIZE, 0, 0, 0, 0, 0, 0, 0, 0)),
    ("xattr", "/file", m.Txattrcreate(1, "user.x", 3, 0)),
    ("lock", "/file", m.Tlock(3, m.LockType.WRLCK, 0, 0, 0, 1, "me")),
]  # fmt: skip


@pytest.mark.parametrize(("op", "path", "message"), LINUX)
def test_each_operation_of_linux_refused_is_recorded(op: str, path: str, message: Message) -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive, dialect=Dialect.L)
        await raw.ask(1, m.Twalk(0, 1, ("file",)))
        await raw.ask(1, m.Twalk(0, 2, ("dir",)))
        await raw.ask(1, m.Twalk(0, 3, ("file",)))
        await raw.ask(1, m.Tlopen(3, 0))
        answer = await raw.ask(1, message)
        assert answer == m.Rlerror(13)
        (line,) = await logged(alive)
        assert (op, path, "DENIED") == (line["op"], line["canonical"], line["code"])

    live(story)


@pytest.mark.parametrize(
    ("names", "given", "canonical"),
    [
        (("secret",), "/secret", "/secret"),
        (("dir", "..", "secret", "below"), "/dir/../secret/below", "/secret"),
        (("rows", "theirs"), "/rows/theirs", "/rows/theirs"),
    ],
)
def test_a_hidden_name_answers_as_one_that_is_not_there_and_its_walk_is_recorded(
    names: tuple[str, ...], given: str, canonical: str
) -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive)
        hidden = await raw.ask(1, m.Twalk(0, 1, names))
        absent = await raw.ask(
            1, m.Twalk(0, 1, tuple("absent" if n in ("secret", "theirs") else n for n in names))
        )
        assert hidden == absent
        (line,) = await logged(alive)
        assert ("walk", given, canonical, "MISSING", "namespace") == (
            line["op"], line["path"], line["canonical"], line["code"], line["rule"],
        )  # fmt: skip

    live(story)


def test_what_is_not_there_is_no_refusal() -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive)
        assert "file does not exist" == await refusal(raw, m.Twalk(0, 1, ("absent",)))
        assert [] == await logged(alive)

    live(story)


def test_who_may_not_attach_is_recorded_and_learns_nothing_of_what_is_not_his() -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive)
        stranger = await refusal(raw, m.Tattach(5, NOFID, "mallory", "", NONUNAME))
        foreign = await refusal(raw, m.Tattach(5, NOFID, "eve", "other/a/b", NONUNAME))
        proof = await refusal(raw, m.Tauth(5, "mallory", "", NONUNAME))
        assert stranger.startswith("not authenticated: uname 'mallory' trace=")
        assert "file does not exist" == foreign
        lines = await logged(alive)
        assert [("attach", ""), ("attach", "other/a/b"), ("auth", "")] == [
            (line["op"], line["path"]) for line in lines
        ]
        assert {PEER.spiffe} == {line["principal"] for line in lines}
        assert [trace_of(stranger), trace_of(proof)] == [lines[0]["trace"], lines[2]["trace"]]

    live(story)


def test_a_handshake_refused_is_recorded_with_its_peer_and_reason() -> None:
    async def story(alive: Living) -> None:
        reason = SimpleNamespace(name="EXPIRED", value="certificate expired")
        alive.hive.refused(SimpleNamespace(address="192.0.2.7:999", reason=reason, detail="whose"))  # type: ignore[arg-type]
        (line,) = await logged(alive)
        assert ("connect", "tls:192.0.2.7:999", "expired", "certificate expired: whose") == (
            line["op"], line["peer"], line["rule"], line["why"],
        )  # fmt: skip

    live(story)


def test_a_command_refused_is_in_the_log_by_its_own_entry() -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError) as caught:
            await alive.write("/pools/ctl", "create pool=mine", who=W1)
        (line,) = await logged(alive)
        assert (caught.value.trace, "write", "/pools/ctl", "w1", "DENIED") == (
            line["trace"], line["op"], line["canonical"], line["node"], line["code"],
        )  # fmt: skip

    live(story)


def test_a_tenant_s_auditor_sees_its_own_and_nobody_else_sees_any() -> None:
    async def story(alive: Living) -> None:
        theirs = await attached(alive, caller=BOB)
        ours = await attached(alive, caller=ANN)
        await refusal(theirs, m.Twalk(0, 1, ("secret",)))
        await refusal(ours, m.Twalk(0, 1, ("secret",)))
        await refusal(ours, m.Tattach(5, NOFID, "mallory", "", NONUNAME))
        assert [("walk", BOB.tenant)] == [(n["op"], n["tenant"]) for n in await logged(alive, BOB)]
        assert {"walk", "attach"} == {line["op"] for line in await logged(alive, ANN)}
        for other in (EYE, W1):
            with pytest.raises(FsError) as caught:
                await logged(alive, other)
            assert caught.value.kind is E.DENIED

    live(story)


@pytest.mark.parametrize("path", ["/log/trace/live.jsonl", "/events"])
def test_what_was_refused_is_told_to_auditors_alone_by_the_trace_and_the_events_too(path: str) -> None:
    async def story(alive: Living) -> None:
        await refusal(await attached(alive, caller=ANN), m.Twalk(0, 1, ("secret",)))
        await logged(alive)
        tree = hive_tree(alive.hive)
        told = [await Door(tree, who).read(path) for who in (ANN, EYE, BOB)]
        assert [True, False, False] == ["log.denied" in text for text in told]
        assert "hive.started" in told[1] or "node.joined" in told[1]

    live(story)


def test_refusals_are_recorded_without_anybody_asking_and_counted() -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive)
        seq = alive.hive.turn.seq
        await refusal(raw, m.Twalk(0, 1, ("secret",)))
        await wait_until(lambda: alive.hive.turn.seq > seq)
        assert "walk MISSING 1\n" == await Door(hive_tree(alive.hive), ANN).read("/log/denials")

    live(story)


def test_a_hive_that_ends_records_what_it_had_counted() -> None:
    entries: list[str] = []

    async def story() -> None:
        async def write(tenant: str, lines: list[str]) -> None:
            entries.extend(lines)

        denials = Denials(ManualClock(), write)
        for _ in range(9):
            denials.note("walk", "p", "DENIED", "rule")
        await denials.flush()
        for _ in range(4):
            denials.note("walk", "p", "DENIED", "rule")
        await denials.close()

    asyncio.run(story())
    assert ["count=9", "count=4"] == [word for line in entries for word in line.split() if "count=" in word]


def test_a_full_ledger_loses_no_refusal() -> None:
    kept: list[str] = []
    full = [True]

    async def write(tenant: str, lines: list[str]) -> None:
        if full[0]:
            raise FsError(E.NOSPACE)
        kept.extend(lines)

    async def story() -> None:
        clock = ManualClock()
        denials = Denials(clock, write)
        for i in range(500):
            denials.note("walk", "p", "DENIED", "rule", path=f"/{i}")
            clock.advance(SECOND)
            await denials.flush()
        full[0] = False
        await denials.close()

    asyncio.run(story())
    counts = [int(word[6:]) for line in kept for word in line.split() if word.startswith("count=")]
    assert sum(counts) == 500


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3000), min_size=6, max_size=6))
def test_whatever_a_peer_says_fits_into_an_entry(texts: list[str]) -> None:
    async def story(alive: Living) -> None:
        path, canonical, why, principal, peer, rule = texts
        for i in range(20):
            alive.hive.denials.note(
                "walk", peer or "p", "DENIED", rule or "r", path=path, canonical=f"{i}{canonical}", why=why,
                principal=principal,
            )  # fmt: skip
        assert 20 == sum(line["count"] for line in await logged(alive))

    live(story)


# the log is not to be touched


def opens(dialect: Dialect, fid: int) -> list[Message]:
    if dialect is Dialect.L:
        flags = (1, 2, m.LO.TRUNC, 2 | m.LO.TRUNC, m.LO.APPEND | 1)
        return [m.Tlopen(fid, flag) for flag in flags]
    modes = (m.OWRITE, m.ORDWR, m.OREAD | m.OTRUNC, m.ORDWR | m.OTRUNC)
    return [m.Topen(fid, mode) for mode in modes]


def changes(dialect: Dialect, fid: int, directory: int) -> list[Message]:
    if dialect is not Dialect.L:
        create = m.Tcreate(directory, "other", 0o644, m.ORDWR)
        replace = msgspec.structs.replace
        stats = [replace(m.DONT_TOUCH, length=0), replace(m.DONT_TOUCH, name="other")]
        return [create, *(m.Twstat(fid, stat) for stat in stats)]
    sizes = [
        m.Tsetattr(fid, valid, 0o666, 0, 0, 0, 0, 0, 0, 0)
        for valid in (m.SA.SIZE, m.SA.SIZE | m.SA.MTIME, m.SA.MODE, m.SA.MTIME)
    ]
    return [
        *sizes,
        m.Tlcreate(directory, LOG, 2 | m.LO.TRUNC, 0o644, 0),
        m.Trename(fid, directory, "other"),
        m.Trenameat(directory, LOG, directory, "other"),
        m.Tunlinkat(directory, LOG, 0),
        m.Tlink(directory, fid, "other"),
    ]


@DIALECTS
@pytest.mark.parametrize("name", [LOG, f"{LOG}@0"])
def test_the_log_is_not_written_not_cut_and_not_removed_by_anybody(dialect: Dialect, name: str) -> None:
    async def story(alive: Living) -> None:
        raw = await attached(alive, hive_tree(alive.hive), ANN, EVERYTHING, dialect)
        await raw.ask(1, m.Tattach(9, NOFID, "mallory", "", NONUNAME))
        before = await logged(alive)
        # Each walk to a follower makes it anew: it cannot be found again to be renamed.
        gone = {2} if "@" in name else set()
        await raw.ask(1, m.Twalk(0, 1, ("log", name)))
        await raw.ask(1, m.Twalk(0, 2, ("log",)))
        for message in [*opens(dialect, 1), *changes(dialect, 1, 2), m.Tremove(1)]:
            answer = await raw.ask(1, message)
            assert isinstance(answer, (m.Rerror, m.Rlerror)), (message, answer)
            if isinstance(answer, m.Rlerror):
                assert answer.ecode in gone | {1, 13}, message
            else:
                assert answer.ename.split(":")[0].split(" trace")[0] in REFUSALS + MISSING * len(gone), (
                    message
                )
        if dialect is not Dialect.L:
            await raw.ask(1, m.Twalk(0, 3, ("log", name)))
            await raw.ask(1, m.Topen(3, m.OREAD | m.ORCLOSE))
            assert isinstance(await raw.ask(1, m.Tclunk(3)), m.Rerror)
        assert before == (await logged(alive))[: len(before)]

    live(story)
