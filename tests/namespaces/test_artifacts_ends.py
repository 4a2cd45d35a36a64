"""How long artifacts stay, and what keeps them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from door import Door, rest, say
from hives import ANN, BOB, W1, Folded, Living, living
from test_session_limits import come

from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Change
from skep.namespaces.artifacts.chunks import CHUNK
from skep.namespaces.artifacts.core import CLASSES, DAY, EXPIRED_MAX, OUTPUTS_MAX, Artifact, Sealed
from skep.namespaces.artifacts.store import KEPT_NS, place
from skep.namespaces.live import EXPIRE_NS, SWEEP_NS
from skep.namespaces.sessions.limits import FILE
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, MINUTE, SECOND, ManualClock, SystemClock
from skep.trace.rules import Meta, Refusal

A, B = "ab" * 32, "cd" * 32


@pytest.fixture
def hive() -> Folded:
    return Folded()


def seal(hive: Folded, digest: str = A, more: str = "", who: Caller = ANN, name: str = "f") -> Artifact:
    hive.write("/artifacts/ctl", f"seal name={name} sha256={digest} size=3 {more}", who)
    return hive.state.artifacts.by_hash[who.tenant][digest]


def told(hive: Folded, line: str, who: Caller = ANN) -> str:
    """What a line is answered, or refused with."""
    try:
        return hive.write("/artifacts/ctl", line, who)
    except Refusal as error:
        return f"{error.code} {error.text}"


def expire(hive: Folded, tenant: str = ANN.tenant) -> int:
    """How many of the tenant's artifacts the hive's own line left."""
    hive._write("hive", "hive", tenant, "/artifacts/ctl", "expire")
    return len(hive.state.artifacts.by_hash.get(tenant, ()))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_says_how_long_and_ttl_says_it_within_bounds(hive: Folded, kind: str) -> None:
    now_ns, of = hive.clock.now_ns(), CLASSES[kind]
    assert now_ns + of.kept_ns == seal(hive, more=f"class={kind}").until_ns
    longest = seal(hive, B, f"class={kind} ttl={of.most_ns // HOUR}h")
    assert now_ns + of.most_ns == longest.until_ns
    for ttl_ns in (of.least_ns - MINUTE, of.most_ns + HOUR):
        line = f"seal name=f sha256={A} size=3 class={kind} ttl={ttl_ns // MINUTE}m"
        assert told(hive, line).startswith(f"USAGE usage: seal: ttl={ttl_ns // MINUTE}m: expected ")


def test_the_classes_are_a_day_thirty_days_and_seven_years() -> None:
    assert [DAY, 30 * DAY, 7 * 365 * DAY] == [of.kept_ns for of in CLASSES.values()]


def test_an_artifact_ends_when_its_time_is_over_with_its_names(hive: Folded) -> None:
    seal(hive, A, "class=short")
    seal(hive, A, "class=short", name="g")
    seal(hive, B, name="g")
    hive.clock.advance(DAY - 1)
    assert 2 == expire(hive)
    hive.clock.advance(1)
    assert 1 == expire(hive)
    state = hive.state.artifacts
    assert ({"g": B}, {B: 1}) == (state.by_name[ANN.tenant], state.sealed)
    assert {(ANN.tenant, B): {"g": None}} == state.names
    missing = f"MISSING file does not exist: {A}"
    assert missing == told(hive, f"hold sha256={A} reason=late")
    # Sealed again, it is new.
    assert hive.clock.now_ns() + DAY == seal(hive, A, "class=short").until_ns


def test_sealed_again_it_has_the_longer_time(hive: Folded) -> None:
    longer = seal(hive, A).until_ns
    assert longer == seal(hive, A, "class=short ttl=1h").until_ns
    hive.clock.advance(HOUR)
    assert longer + HOUR == seal(hive, A).until_ns


def test_what_is_held_stays_until_it_is_released(hive: Folded) -> None:
    seal(hive, A, "class=short")
    assert f"sha256:{A}" == told(hive, f"hold sha256=sha256:{A} reason='case 7'")
    assert "CONFLICT conflict: it is held: case 7" == told(hive, f"hold sha256={A} reason=mine")
    hive.clock.advance(2 * DAY)
    assert 1 == expire(hive)
    assert "DENIED permission denied: rule=legal-hold case 7" == told(hive, f"remove sha256={A}")
    assert "case 7" == seal(hive, A, "class=short").hold
    hive.clock.advance(2 * DAY)
    assert f"sha256:{A}" == told(hive, f"release sha256={A}")
    assert "CONFLICT conflict: it is not held" == told(hive, f"release sha256={A}")
    assert 0 == expire(hive)


def test_a_hold_needs_a_reason(hive: Folded) -> None:
    seal(hive)
    assert "USAGE usage: hold: reason= is empty" == told(hive, f"hold sha256={A} reason=' '")
    assert told(hive, f"hold sha256={A}").startswith("USAGE")


def test_it_is_removed_before_its_time_as_its_class_allows(hive: Folded) -> None:
    seal(hive, A, "class=audit")
    refusal = told(hive, f"remove sha256={A}")
    assert refusal.startswith("DENIED permission denied: rule=retention class=audit until=20")
    for kind in ("short", "standard"):
        seal(hive, B, f"class={kind}")
        assert f"sha256:{B}" == told(hive, f"remove sha256={B}")
        assert [A] == list(hive.state.artifacts.by_hash[ANN.tenant])


def test_what_a_job_needs_stays_until_the_job_has_ended(hive: Folded) -> None:
    seal(hive, A, "class=short")
    hive.write("/jobs/ctl", "submit topic=sum input=artifact:f")
    job = hive.write("/pools/default/next", "lease", W1)
    hive.write("/artifacts/ctl", f"seal name=out sha256={B} size=3 class=short job={job}", W1)
    hive.clock.advance(2 * DAY)
    assert 2 == expire(hive)
    assert "BUSY exclusive lock: a job that has not ended uses it" == told(hive, f"remove sha256={A}")
    hive.write(f"/jobs/{job}/ctl", "start fence=1", W1)
    hive.write(f"/jobs/{job}/ctl", "ack fence=1", W1)
    assert 0 == expire(hive)


def test_a_job_has_so_many_outputs_and_no_more_however_small(hive: Folded) -> None:
    hive.write("/jobs/ctl", "submit topic=sum")
    job = hive.write("/pools/default/next", "lease", W1)
    for n in range(OUTPUTS_MAX):
        seal(hive, more=f"job={job}", who=W1, name=f"f{n}")
    with pytest.raises(Refusal, match=f"quota exceeded: outputs have={OUTPUTS_MAX} max={OUTPUTS_MAX}"):
        seal(hive, more=f"job={job}", who=W1)
    seal(hive, B, f"job={job}", W1, "f7")
    assert B == hive.state.artifacts.outputs[job]["f7"]


def test_what_a_dead_letter_needs_stays_until_it_is_discarded(hive: Folded) -> None:
    seal(hive, A, "class=short")
    job = hive.write("/jobs/ctl", "submit topic=sum input=artifact:f retries=0")
    hive.write("/pools/default/next", "lease", W1)
    hive.write(f"/jobs/{job}/ctl", "start fence=1", W1)
    hive.write(f"/jobs/{job}/ctl", "nack fence=1 error=bad final=true", W1)
    hive.clock.advance(2 * DAY)
    assert 1 == expire(hive)
    hive.write("/dlq/ctl", f"discard id={job} reason=old")
    assert 0 == expire(hive)


def test_tenants_end_what_is_theirs_and_tell_nothing_of_others(hive: Folded) -> None:
    seal(hive, A)
    missing = f"MISSING file does not exist: {A}"
    for line in (f"hold sha256={A} reason=x", f"release sha256={A}", f"remove sha256={A}"):
        assert missing == told(hive, line, BOB)
        assert missing.replace(A, B) == told(hive, line.replace(A, B), BOB)
    seal(hive, A, who=BOB)
    told(hive, f"hold sha256={A} reason=x", BOB)
    assert 2 == hive.state.artifacts.sealed[A]
    assert f"sha256:{A}" == told(hive, f"remove sha256={A}")
    assert 1 == hive.state.artifacts.sealed[A]


def test_expire_is_the_hives_and_a_node_holds_nothing(hive: Folded) -> None:
    seal(hive)
    assert told(hive, "expire").startswith("DENIED permission denied: rule=own-verbs")
    assert told(hive, f"hold sha256={A} reason=x", W1).startswith("DENIED")


def test_one_line_ends_so_many_and_no_more(hive: Folded) -> None:
    for n in range(EXPIRED_MAX + 3):
        seal(hive, f"{n:064x}", "class=short")
    hive.clock.advance(DAY)
    assert 3 == expire(hive)
    assert 0 == expire(hive)


def test_what_older_releases_sealed_has_no_end_and_can_be_removed(hive: Folded) -> None:
    old = {"type": "artifact.sealed", "sha256": A, "size": 3, "tenant": ANN.tenant, "name": "f", "actor": "x"}
    event = msgspec.json.decode(msgspec.json.encode(old), type=Sealed)
    hive.rules.apply(hive.state, event, Meta(1, 0, ""))
    hive.clock.advance(100 * 365 * DAY)
    assert 1 == expire(hive)
    assert 0 == seal(hive, A, "class=short").until_ns
    told(hive, f"remove sha256={A}")
    assert 0 == expire(hive)


# in a hive that lives


async def put(door: Door, data: bytes, more: str = "", name: str = "f") -> str:
    chan = await door.create("/artifacts/stage", name)
    await chan.write(0, memoryview(data))
    await chan.clunk()
    await door.write("/artifacts/ctl", f"seal name={name} {more}\n")
    return sha256(data).hexdigest()


async def refused(asked: Awaitable[object]) -> FsError:
    with pytest.raises(FsError) as caught:
        await asked
    return caught.value


def door(alive: Living, who: Caller = ANN) -> Door:
    return Door(hive_tree(alive.hive), who)


async def swept(alive: Living) -> None:
    await alive.hive.tick()
    if alive.hive._sweeping is not None:
        await alive.hive._sweeping


def test_the_ticks_end_it_and_the_sweep_takes_the_bytes_when_no_tenant_has_them(tmp_path: Path) -> None:
    async def run() -> None:
        # The file system's clock is the world's, so the hive's begins there.
        clock = ManualClock(SystemClock().now_ns())
        async with living(tmp_path, clock=clock) as alive:
            ann, bob = door(alive), door(alive, BOB)
            data = os.urandom(CHUNK + 1)
            digest = await put(ann, data, "class=short")
            assert digest == await put(bob, data, "class=short ttl=48h")
            bytes_there = tmp_path / "artifacts" / place("sha256", digest)
            meta = msgspec.json.decode(await ann.read(f"/artifacts/{digest}/meta.json"))
            assert meta["until"] is not None
            assert meta["hold"] is None
            clock.advance(24 * HOUR + SECOND)
            await swept(alive)
            assert not await ann.exists(f"/artifacts/{digest}")
            assert not await ann.exists("/artifacts/by-name/f")
            chan = await bob.open(f"/artifacts/{digest}/data")
            assert data == await rest(chan)
            await chan.clunk()
            clock.advance(24 * HOUR + KEPT_NS)
            await alive.hive.tick()
            clock.advance(SWEEP_NS)
            await swept(alive)
            assert not await bob.exists(f"/artifacts/{digest}")
            assert not bytes_there.exists()
            assert [] == list(tmp_path.glob("artifacts/chunks/*/*"))

    asyncio.run(run())


def test_a_sweep_takes_nothing_that_a_job_needs_however_old(tmp_path: Path) -> None:
    async def run() -> None:
        clock = ManualClock(SystemClock().now_ns())
        async with living(tmp_path, clock=clock) as alive:
            ann = door(alive)
            digest = await put(ann, b"hello", "class=short")
            job = await alive.submit("input=artifact:f")
            clock.advance(100 * DAY)
            await swept(alive)
            clock.advance(EXPIRE_NS)
            await swept(alive)
            assert "hello" == await ann.read(f"/artifacts/{digest}/data")
            await alive.write("/jobs/ctl", f"cancel job={job} reason=enough")
            clock.advance(SWEEP_NS)
            await swept(alive)
            clock.advance(SWEEP_NS)
            await swept(alive)
            assert [] == list(tmp_path.glob("artifacts/sha256/*/*"))

    asyncio.run(run())


def test_bytes_that_changed_on_disk_are_told_as_that_and_never_given(tmp_path: Path) -> None:
    async def run() -> None:
        async with living(tmp_path) as alive:
            ann = door(alive)
            digest = await put(ann, b"hello")
            there = tmp_path / "artifacts" / place("sha256", digest)
            there.chmod(0o600)
            there.write_bytes(b"jello")
            error = await refused(ann.read(f"/artifacts/{digest}/data"))
            assert E.TAMPER is error.kind
            assert error.text.startswith(f"integrity: sha256:{digest}")

    asyncio.run(run())


def test_removing_the_directory_ends_it_as_the_class_allows(tmp_path: Path) -> None:
    async def run() -> None:
        async with living(tmp_path) as alive:
            ann = door(alive)
            kept, gone = await put(ann, b"1", "class=audit"), await put(ann, b"2", name="g")
            await (await ann.walk(f"/artifacts/{gone}")).remove()
            assert not await ann.exists(f"/artifacts/{gone}")
            error = await refused((await ann.walk(f"/artifacts/{kept}")).remove())
            assert (E.DENIED, True) == (error.kind, "rule=retention" in error.text)
            assert E.READONLY is (await refused((await ann.walk("/artifacts/ctl")).remove())).kind
            bob = door(alive, BOB)
            assert E.MISSING is (await refused((await bob.walk("/artifacts")).unlinkat(kept, True))).kind

    asyncio.run(run())


def test_seal_and_hold_are_one_write(tmp_path: Path) -> None:
    async def run() -> None:
        async with living(tmp_path) as alive:
            ann = door(alive)
            chan = await ann.create("/artifacts/stage", "f")
            await say(chan, "hello")
            await chan.clunk()
            digest = sha256(b"hello").hexdigest()
            await ann.write("/artifacts/ctl", f"seal name=f\nhold sha256={digest} reason=case\n")
            assert "case" == alive.state.artifacts.by_hash[ANN.tenant][digest].hold

    asyncio.run(run())


def test_limits_toml_says_how_large_a_staged_file_may_be(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / FILE).write_text("[role.operator]\nartifact = 5\n")
        async with living(tmp_path) as alive:
            await come(alive)
            (session,) = alive.hive.sessions.by_id.values()
            near, far = door(alive), door(alive, session.caller)
            chan = await far.create("/artifacts/stage", "f")
            await say(chan, "12345")
            assert "too large: max=5 bytes of one artifact" == (await refused(say(chan, "6", 5))).text
            assert E.TOOBIG is (await refused(chan.setattr(Change(size=6)))).kind
            await chan.clunk()
            assert "12345" == await far.read("/artifacts/stage/f")
            await put(near, b"123456")

    asyncio.run(run())
