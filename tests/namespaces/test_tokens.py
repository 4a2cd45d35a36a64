"""Tokens in a living hive: told once, believed or not, counted, revoked, and what guessing costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from biscuit_auth import Biscuit, KeyPair
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, Living, living

from skep.fs.chan import EVERYTHING, Right, View
from skep.fs.ctl import line
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.spiffe import Spiffe
from skep.namespaces.lockout import FORGET_NS, PEERS_MAX
from skep.namespaces.sessions.core import Session
from skep.namespaces.tokens.afid import AFIDS_MAX, WRITTEN_MAX, Afids, written
from skep.namespaces.tokens.biscuit import Terms, attenuate, ids_of, key_id, public_key, verify
from skep.namespaces.tokens.core import COUNTED_MAX
from skep.namespaces.tokens.desk import Bearer, Desk
from skep.namespaces.tokens.grant import Grant, channel_of
from skep.namespaces.tree import hive_tree
from skep.namespaces.trust.authority import Authority
from skep.trace.clock import HOUR, MINUTE, SECOND, ManualClock
from skep.trace.entry import Line
from skep.trace.rules import Refusal
from tests.namespaces.token_terms import TENANT, minted, terms

TOKENS = "/trust/tokens"
CLONE = f"{TOKENS}/clone"
QUEEN = Spiffe("hive", "queen-primary", "q1")
ANN_SHOWS = Bearer("unix:0", "unix:ann", TENANT, b"")


class Desked(Living):
    """A hive with keys, its tree, and what is done with tokens there."""

    def __init__(self, alive: Living) -> None:
        super().__init__(alive.hive, alive.clock)
        self.tree = hive_tree(alive.hive)

    @property
    def desk(self) -> Desk:
        assert self.hive.tokens is not None
        return self.hive.tokens

    def door(self, caller: Caller = ANN) -> Door:
        return Door(self.tree, caller)

    async def mint(self, said: str = "ops=read,write paths=/jobs ttl=1h", who: Caller = ANN) -> str:
        chan = await self.door(who).open(CLONE, BOTH)
        await say(chan, said)
        token = (await rest(chan)).decode().strip()
        await chan.clunk()
        return token

    def biscuit(self, token: str) -> Biscuit:
        raw = self.desk.public_key
        return verify(Biscuit.from_base64(token, public_key(raw)).to_bytes(), {key_id(raw): public_key(raw)})

    def narrowed(self, token: str, **terms: Any) -> str:
        return str(attenuate(self.biscuit(token), Terms(**terms)).to_base64())

    def id(self, token: str, block: int = 0) -> str:
        return ids_of(self.biscuit(token))[block]

    def believe(self, token: str | bytes, bearer: Bearer = ANN_SHOWS) -> Grant:
        return self.desk.believe(token.encode() if isinstance(token, str) else token, bearer)

    def bearing(self, token: str, who: Caller = ANN) -> Caller:
        """``who`` in a session under the token."""
        return msgspec.structs.replace(who, token=self.believe(token).token)

    def refused(self, token: str | bytes, bearer: Bearer = ANN_SHOWS) -> FsError:
        """Why it is not believed; not counted as a failure of the next one's."""
        with pytest.raises(FsError) as caught:
            self.believe(token, bearer)
        self.desk.lockout.passed(bearer.peer)
        return caught.value

    async def revoke(self, id: str) -> None:
        await self.write("/trust/ctl", f"revoke token={id}")

    def attach(self, view: View = EVERYTHING, binding: Callable[[], bytes] = bytes) -> Caller:
        """A session of Ann, seeing ``view``."""
        caller = msgspec.structs.replace(ANN, session=self.clock.new_id())
        session = Session(
            caller.session, caller, "unix:pid=1", 0, lambda: 0, "", lambda: None, view=view, binding=binding
        )
        self.hive.sessions.add(session)
        return caller


def desked(story: Callable[[Desked], Awaitable[None]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory)) as alive:
                await establish(alive, Path(directory))
                await story(Desked(alive))

    asyncio.run(run())


async def establish(alive: Living, directory: Path) -> None:
    authority = Authority.open(directory, clock=alive.clock)
    await alive.hive.establish(authority, QUEEN)


async def refusal(doing: Awaitable[object]) -> FsError:
    with pytest.raises(FsError) as caught:
        await doing
    return caught.value


# minting


def test_a_token_is_told_once_and_never_written_down() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=read paths=/jobs ttl=1h uses=3 subject=unix:ann")
        entries = b"".join(body for _, body in hive.hive.turn.ledger.read(0, 1000))
        assert hive.id(token).encode() in entries
        secret = bytes(hive.biscuit(token).to_bytes())[-32:]
        assert not any(piece in entries for piece in (token[:40].encode(), secret, secret.hex().encode()))
        assert (await hive.door().read(CLONE)).startswith("mint ops=")
        told = msgspec.json.decode(await hive.door().read(f"{TOKENS}/{hive.id(token)}"))
        assert {
            "token": hive.id(token), "key": hive.desk.public_key.hex(), "ops": ["read"], "paths": ["/jobs/"],
            "tenant": TENANT, "minted": "2023-11-14T22:13:20.000000000Z",
            "until": "2023-11-14T23:13:20.000000000Z", "by": "unix:ann", "subject": "unix:ann", "channel": "",
            "uses": 3, "used": 0, "revoked": False,
        } == told  # fmt: skip

    desked(story)


def test_the_verb_may_stand_before_the_line_and_one_open_makes_one_token() -> None:
    async def story(hive: Desked) -> None:
        assert await hive.mint("# for the night\nmint ops=all paths=/ ttl=1h\n")
        chan = await hive.door().open(CLONE, BOTH)
        await say(chan, "ops=read paths=/ ttl=1h")
        error = await refusal(say(chan, "ops=read paths=/ ttl=1h"))
        assert (E.USAGE, "mint: one open makes one token") == (error.kind, error.detail)

    desked(story)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ("ops=read,exec paths=/jobs ttl=1h", E.USAGE, "operation 'exec': unknown"),
        ("ops=submit paths=/jobs ttl=1h", E.USAGE, "operation 'submit': unknown"),
        ("ops=all,read paths=/jobs ttl=1h", E.USAGE, "operation 'all': unknown"),
        ("ops=read paths=/jobs/../policy ttl=1h", E.USAGE, "'..' is no name"),
        ("ops=read paths=jobs ttl=1h", E.USAGE, "expected a canonical one"),
        ("ops=read paths=/jobs//1 ttl=1h", E.USAGE, "expected a canonical one"),
        ("ops=read paths=/jobs,, ttl=1h", E.USAGE, "path"),
        ("ops=read paths=/jobs ttl=721h", E.USAGE, "a ttl of at most 720h"),
        ("ops=read paths=/jobs ttl=0s", E.USAGE, "a ttl of at most 720h"),
        ("ops=read paths=/jobs", E.USAGE, "ttl= is missing"),
        ("ops=read paths=/jobs ttl=1h forever=yes", E.USAGE, "forever=: unknown argument"),
        ("ops=read paths=/jobs ttl=1h uses=0", E.USAGE, "uses 0"),
        ("ops=read paths=/jobs ttl=1h bind=channel", E.USAGE, "this session has no TLS channel"),
        ("ops=read paths=/jobs ttl=1h bind=me", E.USAGE, "expected bind=channel"),
        ("ops=read paths=/jobs ttl=1h binding=12", E.USAGE, "channel '12'"),
        ("ops=read paths=/jobs ttl=1h tenant=other/project/env", E.DENIED, "rule=token-tenant"),
    ],
)
def test_what_cannot_be_granted_is_refused(said: str, kind: E, text: str) -> None:
    async def story(hive: Desked) -> None:
        error = await refusal(hive.mint(said))
        assert kind is error.kind
        assert text in error.detail

    desked(story)


class _Reading:
    """Reads /jobs and below, and nothing else is there."""

    def __init__(self, rights: Right, names: tuple[str, ...] | None) -> None:
        self.rights = rights
        self.names = names

    def child(self, name: str) -> View | None:
        return _Reading(Right.READ, None) if self.names is None or name in self.names else None


def test_a_session_grants_only_what_it_has() -> None:
    async def story(hive: Desked) -> None:
        caller = hive.attach(_Reading(Right.LIST, ("jobs",)))
        assert await hive.mint("ops=read paths=/jobs/1 ttl=1h", caller)
        wrong = await refusal(hive.mint("ops=read,write paths=/jobs/1 ttl=1h", caller))
        assert (E.DENIED, "rule=token-rights write /jobs/1/") == (wrong.kind, wrong.detail)
        wrong = await refusal(hive.mint("ops=read paths=/ ttl=1h", caller))
        assert (E.DENIED, "rule=token-rights read /") == (wrong.kind, wrong.detail)
        hidden = await refusal(hive.mint("ops=read paths=/jobs,/nodes ttl=1h", caller))
        assert "file does not exist" == hidden.text

    desked(story)


def test_who_has_no_verb_to_mint_mints_nothing() -> None:
    async def story(hive: Desked) -> None:
        for who in (EYE, W1):
            assert E.DENIED is (await refusal(hive.mint(who=who))).kind

    desked(story)


def test_who_came_with_a_token_mints_none() -> None:
    async def story(hive: Desked) -> None:
        bearing = hive.bearing(await hive.mint("ops=all paths=/ ttl=1h"))
        error = await refusal(hive.mint(who=bearing))
        assert E.DENIED is error.kind
        assert error.detail.startswith("rule=token-mints")

    desked(story)


def test_tokens_of_one_tenant_are_not_there_for_another() -> None:
    async def story(hive: Desked) -> None:
        id = hive.id(await hive.mint())
        assert ["clone", "key", "channel", id] == await hive.door().names(TOKENS)
        assert ["clone", "key", "channel"] == await hive.door(BOB).names(TOKENS)
        assert not await hive.door(BOB).exists(f"{TOKENS}/{id}")

    desked(story)


def test_a_hive_without_keys_has_no_tokens() -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory)) as alive:
                door = Door(hive_tree(alive.hive), ANN)
                assert [] == await door.names(TOKENS)
                assert not await door.exists(CLONE)

    asyncio.run(run())


def test_the_public_key_is_told() -> None:
    async def story(hive: Desked) -> None:
        assert f"ed25519/{hive.desk.public_key.hex()}\n" == await hive.door().read(f"{TOKENS}/key")

    desked(story)


# believing


def test_a_token_gives_what_it_says() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=read,write paths=/jobs,/nodes/w1 ttl=1h uses=5")
        token = hive.narrowed(token, ops=frozenset({"read"}), places=frozenset({("nodes",)}), uses=2)
        grant = hive.believe(token)
        ids = hive.id(token), hive.id(token, 1)
        assert f"{ids[0]}=5 {ids[1]}=2" == grant.token
        assert (frozenset({"read"}), frozenset({("nodes", "w1")})) == (grant.ops, grant.places)
        assert (TENANT, hive.clock.now_ns() + HOUR) == (grant.tenant, grant.until_ns)
        assert hive.believe(bytes(hive.biscuit(token).to_bytes())) == grant
        assert hive.believe(f"{token}\n") == grant

    desked(story)


def test_a_token_ends_by_the_hives_clock() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=read paths=/jobs ttl=90s")
        short = hive.narrowed(token, until_ns=hive.clock.now_ns() + 60 * SECOND)
        hive.clock.advance(60 * SECOND - 1)
        assert hive.believe(short)
        hive.clock.advance(1)
        error = hive.refused(short)
        assert (E.EXPIRED, f"token={hive.id(token)} until=2023-11-14T22:14:20.000000000Z") == (
            error.kind,
            error.detail,
        )
        assert hive.believe(token)
        hive.clock.advance(30 * SECOND)
        assert E.EXPIRED is hive.refused(token).kind
        hive.clock.advance(-31 * SECOND)
        assert hive.believe(token)

    desked(story)


def test_a_holder_cannot_make_it_last_longer() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=read paths=/jobs ttl=60s")
        until_ns = hive.clock.now_ns() + 60 * SECOND
        assert until_ns == hive.believe(hive.narrowed(token, until_ns=until_ns + HOUR)).until_ns

    desked(story)


def test_a_token_of_another_is_refused() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=read paths=/jobs ttl=1h subject=unix:bob")
        error = hive.refused(token)
        assert (E.DENIED, f"rule=token-subject token={hive.id(token)}") == (error.kind, error.detail)
        assert hive.believe(token, ANN_SHOWS._replace(principal="unix:bob"))

    desked(story)


def test_a_token_of_another_channel_is_refused() -> None:
    async def story(hive: Desked) -> None:
        here, there = b"h" * 32, b"t" * 32
        caller = hive.attach(binding=lambda: here)
        own = await hive.mint("ops=read paths=/jobs ttl=1h bind=channel", caller)
        given = await hive.mint(f"ops=read paths=/jobs ttl=1h binding={channel_of(here)}")
        assert f"{channel_of(here)}\n" == await hive.door(caller).read(f"{TOKENS}/channel")
        for token in (own, given):
            assert hive.believe(token, ANN_SHOWS._replace(binding=here))
            for binding in (there, b""):
                error = hive.refused(token, ANN_SHOWS._replace(binding=binding))
                assert (E.DENIED, f"rule=token-channel token={hive.id(token)}") == (error.kind, error.detail)

    desked(story)


def test_a_token_is_of_one_tenant() -> None:
    async def story(hive: Desked) -> None:
        error = hive.refused(await hive.mint(), ANN_SHOWS._replace(tenant="other/project/env"))
        assert E.DENIED is error.kind
        assert error.detail.startswith("rule=token-tenant ")

    desked(story)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_a_revoked_block_ends_every_token_that_has_it(block: int, whole: bool) -> None:
    async def story(hive: Desked) -> None:
        parent = await hive.mint()
        child = hive.narrowed(parent, uses=5)
        bearing, parents = hive.bearing(child), hive.bearing(parent)
        id = hive.biscuit(child).revocation_ids[block]
        await hive.revoke(id if whole else id[:32])
        error = hive.refused(child)
        assert (E.REVOKED, f"token={id[:32]}") == (error.kind, error.detail)
        assert E.REVOKED is (await refusal(hive.submit(who=bearing))).kind
        if block:
            assert hive.believe(parent)
            assert await hive.submit(who=parents)
        else:
            assert E.REVOKED is hive.refused(parent).kind

    desked(story)


def test_half_an_id_revokes_nothing() -> None:
    async def story(hive: Desked) -> None:
        assert E.USAGE is (await refusal(hive.revoke(hive.id(await hive.mint())[:16]))).kind

    desked(story)


def test_a_rotated_key_is_believed_until_it_is_retired() -> None:
    async def story(hive: Desked) -> None:
        old = await hive.mint("ops=read,write paths=/jobs ttl=24h")
        bearing, ended = hive.bearing(old), []
        hive.desk.held.hold(hive.believe(old), lambda: ended.append("old"))
        await hive.door().write("/trust/ctl", "rotate what=token overlap=1h")
        new = await hive.mint("ops=read,write paths=/jobs ttl=24h")
        assert hive.believe(old)
        assert hive.believe(new)
        hive.clock.advance(HOUR + MINUTE)
        await hive.hive.tick()
        assert E.UNSIGNED is hive.refused(old).kind
        assert hive.believe(new)
        assert ["old"] == ended
        error = await refusal(hive.submit(who=bearing))
        assert (E.REVOKED, "the key of token=") == (error.kind, error.detail[:17])

    desked(story)


def test_errors_name_the_reason_and_never_hold_the_token() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint()
        for wrong in (token[:-4], token[:40], f"{token}AAAA", "", "hello", minted(KeyPair()).to_base64()):
            error = hive.refused(wrong)
            assert E.UNSIGNED is error.kind
            assert not wrong or wrong[:16] not in error.text

    desked(story)


def test_a_token_that_no_entry_tells_of_is_refused() -> None:
    """One whose minting was refused was made all the same, but told to nobody."""

    async def story(hive: Desked) -> None:
        fresh = hive.desk.mint(terms())
        error = hive.refused(fresh.token)
        assert E.UNSIGNED is error.kind
        assert error.detail.startswith(f"token={fresh.id} is none that this hive minted")

    desked(story)


@pytest.mark.slow
def test_a_loaded_machine_refuses_no_valid_token() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint(f"ops=all paths={','.join(f'/jobs/{n}' for n in range(100))} ttl=1h")
        stop = threading.Event()
        burners = [threading.Thread(target=_burn, args=(stop,)) for _ in range(4)]
        for burner in burners:
            burner.start()
        try:
            for _ in range(20):
                assert hive.believe(token)
        finally:
            stop.set()
            for burner in burners:
                burner.join()

    desked(story)


def _burn(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


# quotas


def test_a_quota_is_never_overshot_however_many_write_at_once() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint("ops=write paths=/jobs ttl=1h uses=7")
        bearing = hive.bearing(token)
        done = await asyncio.gather(*(hive.submit(who=bearing) for _ in range(50)), return_exceptions=True)
        refused = [error for error in done if isinstance(error, FsError)]
        assert (43, 7) == (len(refused), len(hive.state.jobs.by_id))
        assert {(E.QUOTA, "token uses have=7 max=7")} == {(error.kind, error.detail) for error in refused}
        assert 7 == msgspec.json.decode(await hive.door().read(f"{TOKENS}/{hive.id(token)}"))["used"]

    desked(story)


def test_a_write_of_more_lines_than_are_left_is_refused_whole() -> None:
    async def story(hive: Desked) -> None:
        bearing = hive.bearing(await hive.mint("ops=write paths=/jobs ttl=1h uses=2"))
        lines = ["submit topic=sum"] * 3
        error = await refusal(hive.write("/jobs/ctl", *lines, who=bearing))
        assert (E.QUOTA, "token uses have=2 max=2 (line 3)") == (error.kind, error.detail)
        assert not hive.state.jobs.by_id
        await hive.write("/jobs/ctl", *lines[:2], who=bearing)
        assert E.QUOTA is (await refusal(hive.submit(who=bearing))).kind

    desked(story)


def test_a_refused_command_uses_nothing_up() -> None:
    async def story(hive: Desked) -> None:
        bearing = hive.bearing(await hive.mint("ops=write paths=/jobs ttl=1h uses=1"))
        assert E.NOROUTE is (await refusal(hive.write("/jobs/ctl", "submit topic=none", who=bearing))).kind
        assert await hive.submit(who=bearing)

    desked(story)


def test_children_use_up_their_parents_quota_and_their_own() -> None:
    async def story(hive: Desked) -> None:
        parent = await hive.mint("ops=write paths=/jobs ttl=1h uses=3")
        one, other = (hive.bearing(hive.narrowed(parent, uses=2)) for _ in range(2))
        await hive.submit(who=one)
        await hive.submit(who=one)
        assert "token uses have=2 max=2" == (await refusal(hive.submit(who=one))).detail
        await hive.submit(who=other)
        assert "token uses have=3 max=3" == (await refusal(hive.submit(who=other))).detail
        assert E.QUOTA is (await refusal(hive.submit(who=hive.bearing(parent)))).kind

    desked(story)


def test_counts_outlast_the_process(tmp_path: Path) -> None:
    ledger, clock = f"{tmp_path}/ledger.db", ManualClock()

    async def run() -> None:
        async with living(tmp_path, ledger, clock) as alive:
            await establish(alive, tmp_path)
            hive = Desked(alive)
            token = await hive.mint("ops=write paths=/jobs ttl=1h uses=2")
            await hive.submit(who=hive.bearing(token))
        async with living(tmp_path, ledger, clock) as alive:
            await establish(alive, tmp_path)
            hive = Desked(alive)
            await hive.submit(who=hive.bearing(token))
            assert E.QUOTA is (await refusal(hive.submit(who=hive.bearing(token)))).kind

    asyncio.run(run())


def test_the_ledger_decides_alike_again() -> None:
    async def story(hive: Desked) -> None:
        bearing = hive.bearing(await hive.mint("ops=write paths=/jobs ttl=1h uses=1"))
        await hive.submit(who=bearing)
        assert bearing.token == _newest(hive)["token"]
        assert [{"type": "token.used", "token": bearing.token[:32], "counted": [bearing.token[:32]]}] == (
            _newest(hive)["events"][-1:]
        )
        with pytest.raises(Refusal, match="QUOTA: quota exceeded: token uses have=1 max=1"):
            hive.hive.turn.rules.decide(hive.state, _submit(hive, bearing.token), 0)

    desked(story)


def _submit(hive: Desked, token: str) -> Line:
    said, now_ns = ("submit topic=sum",), hive.clock.now_ns()
    return Line("unix:ann", "operator", TENANT, "/jobs/ctl", said, now_ns, "T", token)


def _newest(hive: Desked) -> dict[str, Any]:
    ((_, body),) = hive.hive.turn.ledger.read(hive.hive.turn.seq - 1, 1)
    return msgspec.json.decode(body, type=dict[str, Any])


def test_blocks_with_quotas_of_their_own_are_bounded() -> None:
    async def story(hive: Desked) -> None:
        bearing = hive.bearing(await hive.mint("ops=write paths=/jobs ttl=1h"))
        first = bearing.token
        found = hive.state.tokens.by_id[first]
        full = {f"{n:032x}": 1 for n in range(COUNTED_MAX)}
        state = hive.state.copy()
        state.tokens.by_id[first] = msgspec.structs.replace(found, used=full)
        decide = hive.hive.turn.rules.decide
        assert decide(state, _submit(hive, f"{first} {0:032x}=5"), 0)
        with pytest.raises(Refusal, match=f"token blocks have={COUNTED_MAX + 1} max={COUNTED_MAX}"):
            decide(state, _submit(hive, f"{first} {'f' * 32}=5"), 0)

    desked(story)


def test_what_has_expired_is_forgotten() -> None:
    async def story(hive: Desked) -> None:
        old = hive.id(await hive.mint("ops=read paths=/jobs ttl=1h"))
        hive.clock.advance(2 * HOUR)
        new = hive.id(await hive.mint())
        assert [new] == [*hive.state.tokens.by_id]
        assert old != new

    desked(story)


# guessing


def test_bad_tokens_cost_more_and_more_time_until_a_good_one() -> None:
    async def story(hive: Desked) -> None:
        token = await hive.mint()
        for _ in range(4):
            with pytest.raises(FsError):
                hive.believe("guess")
        waits = []
        for _ in range(3):
            with pytest.raises(FsError) as caught:
                hive.believe(token)
            assert E.THROTTLED is caught.value.kind
            waits.append(caught.value.detail)
            hive.clock.advance(int(waits[-1].split()[0].removeprefix("retry-ms=")) * 1_000_000)
            with pytest.raises(FsError) as caught:
                hive.believe("guess")
            assert E.UNSIGNED is caught.value.kind
        assert [f"retry-ms={n} rule=token-lockout" for n in (250, 500, 1000)] == waits
        assert hive.believe(token, ANN_SHOWS._replace(peer="unix:1000"))
        hive.clock.advance(5 * MINUTE)
        assert hive.believe(token)
        with pytest.raises(FsError) as caught:
            hive.believe("guess")
        assert hive.believe(token)

    desked(story)


def test_failures_are_forgotten_in_time_and_bounded_in_number() -> None:
    async def story(hive: Desked) -> None:
        lockout = hive.desk.lockout
        for n in range(PEERS_MAX + 10):
            lockout.failed(f"peer {n}")
        assert PEERS_MAX == len(lockout)
        for _ in range(60):
            lockout.failed("one")
        with pytest.raises(FsError, match="retry-ms=300000 "):
            lockout.check("one")
        # A clock that was set back makes it no longer.
        hive.clock.advance(-HOUR)
        with pytest.raises(FsError, match="retry-ms=300000 "):
            lockout.check("one")
        hive.clock.advance(HOUR + FORGET_NS)
        lockout.check("one")
        assert PEERS_MAX - 1 == len(lockout)

    desked(story)


# living under a token


@pytest.mark.slow
def test_a_session_ends_with_its_token() -> None:
    async def story(hive: Desked) -> None:
        ended: list[str] = []
        held = hive.desk.held
        tokens = {ttl: await hive.mint(f"ops=read paths=/jobs ttl={ttl}") for ttl in ("1h", "2h", "3h")}
        for name, token in tokens.items():
            held.hold(hive.believe(token), lambda name=name: ended.append(name))  # type: ignore[misc]
        held.hold(hive.believe(tokens["1h"]), lambda: ended.append("left"))()
        await hive.revoke(hive.id(tokens["2h"]))
        assert ["2h"] == ended
        hive.clock.advance(HOUR)
        while len(held) > 1:
            await asyncio.sleep(0.01)
        assert ["2h", "1h"] == ended

    desked(story)


# the afid


def test_an_afid_takes_a_token_in_pieces() -> None:
    chan = Afids().chan()

    async def story() -> None:
        for at, piece in ((0, b"abc"), (3, b"def"), (3, b"xyz")):
            assert len(piece) == await chan.write(at, memoryview(piece))
        assert b"abcxyz" == written(chan)
        assert b"" == await chan.read(0, 100)
        for at, size, kind in ((7, 1, E.INVALID), (0, WRITTEN_MAX + 1, E.TOOBIG), (1 << 62, 1, E.TOOBIG)):
            assert kind is (await refusal(chan.write(at, memoryview(bytes(size))))).kind

    asyncio.run(story())


def test_a_connection_has_few_afids_at_a_time() -> None:
    afids = Afids()

    async def story() -> None:
        chans = [afids.chan() for _ in range(AFIDS_MAX)]
        with pytest.raises(FsError) as caught:
            afids.chan()
        assert (E.QUOTA, f"afids have={AFIDS_MAX} max={AFIDS_MAX}") == (
            caught.value.kind,
            caught.value.detail,
        )
        await chans[0].clunk()
        afids.chan()

    asyncio.run(story())


def test_lines_of_the_hive_know_only_their_own_arguments() -> None:
    """What the hive adds to a line cannot be written by people."""

    async def story(hive: Desked) -> None:
        error = await refusal(hive.mint(line("mint", {"ops": "read", "paths": "/", "ttl": "1h", "id": "x"})))
        assert (E.USAGE, "line 1: mint: id=: unknown argument") == (error.kind, error.detail[:35])

    desked(story)
