"""limits.toml: what is in force for whom, reloaded while sessions go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from door import Door
from hives import Living, living

from skep.fs import messages as m
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.messages import NOFID, Dialect
from skep.fs.node import Caller, Node
from skep.namespaces.log.core import LOG
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.peers import network, peer_text
from skep.namespaces.sessions.core import Session
from skep.namespaces.sessions.limits import FILE, load
from skep.namespaces.tree import hive_tree
from skep.roles.sealed import ENROLLING
from skep.trace.clock import MS, SECOND
from tests.fs.grounds import Raw

OPERATOR = Caller("unix:root", "operator", session="operators")


def eve(host: int = 7, port: int = 1) -> Peer:
    return Peer("tls", f"192.0.2.{host}:{port}", spiffe="spiffe://hive/operator/eve")


class Gate:
    """What the queen's does with limits: everybody over TLS is an operator."""

    def __init__(self, alive: Living, root: Node, conversation: Conversation) -> None:
        self.limits = alive.hive.limits
        self.alive = alive
        self.root = root
        self.conversation = conversation
        conversation.witness = alive.hive.denials.witness(conversation.peer)
        self.limits.greet(conversation)

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        self.limits.admit(self.conversation, peer.spiffe, "operator")
        caller = Caller(peer.spiffe, "operator", HIVE_TENANT, session=self.alive.clock.new_id())
        session = Session(
            caller.session, caller, peer_text(peer), 0, lambda: 0, "", lambda: None, network=network(peer)
        )
        self.alive.hive.sessions.add(session)
        self.limits.attach(self.conversation, caller)
        return Chan(self.root, caller, EVERYTHING)

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        raise FsError(E.NOTSUP)


async def come(alive: Living, peer: Peer | None = None, attaches: int = 1) -> Raw:
    """Fids 0 and up are at the root."""
    raw = Raw(None, peer or eve())  # type: ignore[arg-type]
    raw.conversation.gate = Gate(alive, hive_tree(alive.hive), raw.conversation)
    await raw.version(Dialect.U)
    for fid in range(attaches):
        await raw.ask(0, m.Tattach(fid, NOFID, "eve", ""))
    return raw


def told(toml: str, story: Callable[[Living, Path], Awaitable[None]], directory: Path) -> None:
    async def run() -> None:
        (directory / FILE).write_text(toml)
        async with living(directory) as alive:
            await story(alive, directory / FILE)

    asyncio.run(run())


def refused(raw: Raw) -> list[str]:
    return [answer.ename for _, answer in raw.answers if isinstance(answer, m.Rerror)]


def stats(raw: Raw, count: int) -> int:
    """How many of so many calls were answered."""
    del raw.answers[:]
    raw.say(*((tag, m.Tstat(0)) for tag in range(count)))
    return count - len(refused(raw))


def test_who_only_comes_to_enrol_holds_little(tmp_path: Path) -> None:
    """What it opens is memory of the hive, and anybody may come."""

    async def story(alive: Living, path: Path) -> None:
        limiter = alive.hive.limits
        comes = Peer("tls", "192.0.2.7:1", enrolling=True)
        found = limiter.of_principal(comes, ENROLLING)
        assert (16, 16) == (found["fids"], found["tags"])
        # What is said of all principals makes it no more; what is said of the role does.
        path.write_text("[principal.tls]\nfids = 999\n[role.enrolling]\ntags = 32\n")
        limiter.reload()
        found = limiter.of_principal(comes, ENROLLING)
        assert (16, 32) == (found["fids"], found["tags"])

    told("", story, tmp_path)


# the file


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[principal.tls]\ncals = 1", "unknown field `cals` - at `$.principal.tls`"),
        ("[principal.quic]\ncalls = 1", "unknown field `quic`"),
        ("[peer.tls]\nfids = 1", "unknown field `fids` - at `$.peer.tls`"),
        ("[limits]\ncalls = 1", "unknown field `limits`"),
        ("[role.observer]\ncalls = 0", "Expected `int` >= 1"),
        ("[role.observer]\ncalls = -1", "Expected `int` >= 1"),
        ("[role.observer]\ncalls = 1.5", "got `float`"),
        ("[role.observer]\ncalls = true", "got `bool`"),
        ('[role.observer]\ncalls = "none"', "Invalid enum value 'none'"),
        ("[role.observer\ncalls = 1", "Expected ']'"),
    ],
)
def test_a_file_with_a_word_too_many_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(FsError) as caught:
        load(tmp_path / FILE)
    assert E.SCHEMA is caught.value.kind
    assert why in caught.value.text


def test_who_is_on_this_machine_is_not_limited_unless_told_so(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        limiter = alive.hive.limits
        assert {"sessions", "fids", "tags"} == set(limiter.of_principal(Peer("unix", uid=0), "operator"))
        assert 1_000_000 == limiter.of_principal(eve(), "operator")["calls"]
        assert 10 == limiter.of_principal(eve(), "observer")["calls"]
        assert "walks" not in limiter.of_principal(eve(), "observer")

    told('[role.observer]\ncalls = 10\nwalks = "unlimited"', story, tmp_path)


# in force


def test_a_principal_s_connections_share_its_limit_and_slow_nobody_else(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        one, two = await come(alive, eve(7)), await come(alive, eve(8))
        other = await come(alive, eve(9)._replace(spiffe="spiffe://hive/operator/ann"))
        alive.clock.advance(SECOND)
        assert [3, 2] == [stats(one, 3), stats(two, 10)]
        assert 5 == stats(other, 10)
        alive.clock.advance(10 * MS)
        assert [1, 0] == [stats(two, 5), stats(one, 5)]

    told("[principal.tls]\ncalls = 100", story, tmp_path)


def test_a_peer_s_principals_share_its_limit(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        one = await come(alive, eve(7, 1))
        two = await come(alive, eve(7, 2)._replace(spiffe="spiffe://hive/operator/ann"))
        other = await come(alive, eve(8))
        alive.clock.advance(SECOND)
        assert [5, 0, 5] == [stats(one, 10), stats(two, 10), stats(other, 10)]

    told("[peer.tls]\ncalls = 100", story, tmp_path)


def test_who_comes_again_finds_the_bucket_as_it_was_left(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        one = await come(alive)
        alive.clock.advance(SECOND)
        assert 5 == stats(one, 10)
        alive.hive.limits.left(one.conversation)
        alive.hive.limits.sweep()
        again = Raw(None, eve())  # type: ignore[arg-type]
        again.conversation.gate = Gate(alive, hive_tree(alive.hive), again.conversation)
        await again.version(Dialect.U)
        await again.ask(0, m.Tattach(0, NOFID, "eve", ""))
        assert 0 == stats(again, 10)
        alive.hive.limits.left(again.conversation)
        alive.clock.advance(SECOND)
        alive.hive.limits.sweep()
        assert {} == alive.hive.limits._sources

    told("[principal.tls]\ncalls = 100", story, tmp_path)


@pytest.mark.parametrize(("whose", "host"), [("principal", 8), ("peer", 7)])
def test_sessions_are_counted_by_principal_and_by_peer(tmp_path: Path, whose: str, host: int) -> None:
    async def story(alive: Living, file: Path) -> None:
        await come(alive, eve(7), attaches=2)
        last = await come(alive, eve(host, 9))
        (text,) = refused(last)
        assert text.startswith(f"quota exceeded: sessions of this {whose} have=2 max=2 trace=")

    told(f"[{whose}.tls]\nsessions = 2", story, tmp_path)


def test_commands_beyond_the_limit_are_throttled_and_that_is_in_the_log(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        raw = await come(alive)
        await raw.ask(1, m.Twalk(0, 1, ("pools", "ctl")))
        await raw.ask(1, m.Topen(1, m.OWRITE))
        assert isinstance(await raw.ask(1, m.Twrite(1, 0, b"create pool=a\ncreate pool=b\n")), m.Rwrite)
        answer = await raw.ask(1, m.Twrite(1, 0, b"create pool=c\n"))
        assert isinstance(answer, m.Rerror)
        # One was at hand, two were taken: two seconds until there is one again.
        assert answer.ename.startswith("throttled: retry-ms=2000 trace=")
        alive.clock.advance(2 * SECOND)
        assert isinstance(await raw.ask(1, m.Twrite(1, 0, b"create pool=c\n")), m.Rwrite)
        await alive.hive.denials.flush(everything=True)
        log = await Door(hive_tree(alive.hive), OPERATOR).read(f"/log/{LOG}")
        assert answer.ename.rpartition("=")[2] in log

    told("[principal.tls]\ncommands = 1", story, tmp_path)


def test_a_plan_counts_as_a_command(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        raw = await come(alive)
        assert isinstance(await raw.ask(0, m.Twalk(0, 1, ("pools", "plan"))), m.Rwalk)
        await raw.ask(0, m.Topen(1, 2))
        said = b"topic=sum"
        assert isinstance(await raw.ask(0, m.Twrite(1, 0, said)), m.Rwrite)
        alive.clock.advance(MS)
        for _ in range(9):
            throttled = await raw.ask(0, m.Twrite(1, 0, said))
            assert isinstance(throttled, m.Rerror), throttled
            assert throttled.ename.startswith("throttled: retry-ms=999"), throttled.ename
        alive.clock.advance(SECOND)
        assert isinstance(await raw.ask(0, m.Twrite(1, 0, said)), m.Rwrite)
        raw.leave()

    told("[principal.tls]\ncommands = 1", story, tmp_path)


def test_a_session_tells_what_is_left_of_its_limits(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        raw = await come(alive)
        (id,) = alive.hive.sessions.by_id
        alive.clock.advance(SECOND)
        stats(raw, 10)
        lines = (await Door(hive_tree(alive.hive), OPERATOR).read(f"/sessions/{id}/limits")).splitlines()
        assert "principal calls limit=100 left=0" in lines
        assert "principal commands limit=2000 left=100" in lines
        assert "peer walks unlimited" in lines
        assert "principal sessions limit=256 left=255" in lines
        assert "session fids limit=9 left=8" in lines
        assert "throttled 5" == lines[-1]

    told(
        '[principal.tls]\ncalls = 100\n[role.operator]\nfids = 9\n[peer.tls]\nwalks = "unlimited"',
        story,
        tmp_path,
    )


def test_a_reload_changes_what_is_in_force_for_living_sessions(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        raw = await come(alive)
        file.write_text("[principal.tls]\ncalls = 1000")
        alive.clock.advance(SECOND)
        assert 5 == stats(raw, 100)
        door = Door(hive_tree(alive.hive), OPERATOR)
        await door.write("/ctl", "reload\n")
        alive.clock.advance(SECOND)
        assert 50 == stats(raw, 100)
        file.write_text('[principal.tls]\ncalls = "unlimited"\n[peer.tls]\ncalls = "unlimited"')
        await door.write("/ctl", "reload\n")
        assert 400 == stats(raw, 400)

    told("[principal.tls]\ncalls = 100", story, tmp_path)


def test_a_file_that_is_not_good_changes_nothing_and_who_asked_is_told(tmp_path: Path) -> None:
    async def story(alive: Living, file: Path) -> None:
        raw = await come(alive)
        file.write_text("[principal.tls]\ncals = 1000")
        with pytest.raises(FsError) as caught:
            await Door(hive_tree(alive.hive), OPERATOR).write("/ctl", "reload\n")
        assert caught.value.text.startswith("schema: limits.toml: Object contains unknown field `cals`")
        alive.hive.limits.reload()  # as another process of this hive would have it
        alive.clock.advance(SECOND)
        assert 5 == stats(raw, 100)

    told("[principal.tls]\ncalls = 100", story, tmp_path)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (Peer("unix", uid=7, pid=1), "unix:uid=7"),
        (Peer("tls", "192.0.2.7:4711"), "tls:192.0.2.7"),
        (Peer("tls", "2001:db8:1:2:3:4:5:6:4711"), "tls:2001:db8:1:2::/64"),
        (Peer("tls", "[2001:db8::1]:4711"), "tls:2001:db8::/64"),
    ],
)
def test_peers_of_one_origin_are_one(peer: Peer, name: str) -> None:
    assert name == network(peer)
