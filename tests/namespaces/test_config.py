"""Configuration: the laws of merging, documents, scopes, versions, and /config as its callers see it."""

from __future__ import annotations

import asyncio
import json
from functools import reduce
from hashlib import sha256
from typing import Any

import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, Folded, living
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hive_tree import Served, refused, served

from skep.fs import ctl
from skep.fs.errors import E
from skep.fs.node import Caller
from skep.namespaces.config.core import Config, ConfigError, Published, apply, snapshot
from skep.namespaces.config.document import DocumentError, Layer, Said, Setting, Source, merge, parse
from skep.namespaces.config.keys import KEYS, Key, Value, is_within, tighter, told, value_of
from skep.namespaces.packed import TEXT_MAX, PackError, pack, unpack
from skep.trace.clock import MINUTE, SECOND
from skep.trace.entry import canonical
from skep.trace.rules import Meta, Refusal

SHEETS = ("export.csv", "import.csv")
TEAM = "other/project/env"  # BOB's tenant

words = st.lists(st.sampled_from("abcd"), unique=True, max_size=4).map(tuple)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(0, 9),
    "duration": st.integers(1, 9).map(lambda n: n * SECOND * 60),
    "bool": st.booleans(),
    "word": st.sampled_from("abc"),
    "set": words,
}
CONCRETE = {key.replace("*", "x"): row for key, row in KEYS.items()}


@st.composite
def keyed(draw: st.DrawFn, n: int) -> tuple[Key, list[Value]]:
    key = draw(st.sampled_from(list(KEYS.values())))
    return key, [draw(st.none() | VALUES[key.kind]) for _ in range(n)]


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A document's keys with their values, and which are locked, as parse reads it."""
    said: dict[str, Any] = {}
    keys = draw(st.lists(st.sampled_from(list(CONCRETE)), unique=True, max_size=6))
    for key in keys:
        table = said
        *path, last = key.split("/")
        for name in path:
            table = table.setdefault(name, {})
        table[last] = told(CONCRETE[key], draw(VALUES[CONCRETE[key].kind]))
    return said | {"lock": draw(st.lists(st.sampled_from(keys), unique=True)) if keys else []}


def layer(said: dict[str, Any], scope: str = "a") -> Layer:
    return parse(canonical(said), Source(scope, 1))


def values(found: Layer) -> dict[str, tuple[Value, Value]]:
    """Value and bound of each key, whoever said them."""
    return {
        key: (each.said.value if each.said else None, each.bound.value if each.bound else None)
        for key, each in found.items()
    }


# the laws


@given(keyed(3))
def test_tighter_is_associative_and_no_looser_than_either(given_: tuple[Key, list[Value]]) -> None:
    key, (a, b, c) = given_
    assert tighter(key, tighter(key, a, b), c) == tighter(key, a, tighter(key, b, c))
    assert is_within(key, a, tighter(key, a, b))
    assert tighter(key, a, a) == a
    if key.tight != "fixed":
        assert is_within(key, b, tighter(key, a, b))


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(documents(), documents(), documents())
def test_merging_is_associative_and_nothing_changes_nothing(a: Any, b: Any, c: Any) -> None:
    x, y, z = map(layer, (a, b, c))
    assert values(merge(merge(x, y), z)) == values(merge(x, merge(y, z)))
    assert x == merge({}, x) == merge(x, {})


@settings(max_examples=50, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=5))
def test_no_child_loosens_a_locked_key(chain: list[Any]) -> None:
    layers = list(map(layer, chain))
    whole = reduce(merge, layers)
    for i, outer in enumerate(layers):
        so_far = reduce(merge, layers[: i + 1])
        for key, setting in outer.items():
            if setting.bound is not None:
                row = CONCRETE[key]
                held = whole[key].effective(key).value
                assert is_within(row, so_far[key].effective(key).value, held), key


def test_a_child_of_an_unlocked_key_says_what_it_likes() -> None:
    a, b = layer({"limits": {"jobs": 10}}), layer({"limits": {"jobs": 20}}, "b")
    assert Said(20, Source("b", 1)) == merge(a, b)["limits/jobs"].effective("limits/jobs")


def test_a_child_overrides_what_its_parent_tightened_within_the_lock() -> None:
    locked = layer({"lock": ["limits/jobs"], "limits": {"jobs": 10}})
    parent, child = layer({"limits": {"jobs": 5}}, "b"), layer({"limits": {"jobs": 8}}, "c")
    assert 8 == merge(merge(locked, parent), child)["limits/jobs"].effective("limits/jobs").value


@pytest.mark.parametrize(
    ("key", "outer", "tight", "loose"),
    [
        ("limits/jobs", 10, 9, 11),
        ("jobs/backoff", 2 * SECOND, 3 * SECOND, SECOND),
        ("topics/x/pools", ("a", "b"), ("b",), ("c",)),
        ("pools/x/requires", ("gpu",), ("big", "gpu"), ("big",)),
        ("jobs/preempt", False, False, True),
        ("jobs/schema", True, True, False),
        ("topics/x/request", "thumb@1", "thumb@1", "thumb@2"),
    ],
)
def test_what_tighter_means_of_each_kind(key: str, outer: Value, tight: Value, loose: Value) -> None:
    row = CONCRETE[key]
    assert is_within(row, outer, tight)
    assert not is_within(row, outer, loose)
    assert not is_within(row, outer, None)


def test_every_row_of_the_table_is_good() -> None:
    for key, row in KEYS.items():
        assert len(key.split("/")) == (3 if "*" in key else 2), key
        assert row.help, key
        if row.default is not None:
            assert row.default == value_of(row, told(row, row.default)), key


# documents


def test_toml_and_json_say_the_same() -> None:
    toml = b'lock = ["pools"]\n[limits]\njobs = 3\n[pools.gpu]\nlease = "1m"\nrequires = ["gpu"]\n'
    said = {"lock": ["pools"], "limits": {"jobs": 3}, "pools": {"gpu": {"lease": "1m", "requires": ["gpu"]}}}
    found = parse(toml, Source("a", 1))
    assert layer(said) == found
    lease = Said(MINUTE, Source("a", 1))
    assert Setting(lease, lease) == found["pools/gpu/lease"]
    assert None is found["limits/jobs"].bound


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[pools.x]\nfoo = 1", "/pools/x/foo: unknown key, expected lease waiting requires"),
        ("[pool.x]\nlease = '1m'", "/pool: unknown key, expected pools topics jobs limits artifacts trace"),
        ("[pools.x]\nlease = 30", "/pools/x/lease: expected a duration, like 30s"),
        ("[pools.x]\nlease = '1ms'", "/pools/x/lease: expected 1s or more"),
        ("limits = 3", "/limits: expected a table"),
        ("[limits]\njobs = -1", "/limits/jobs: expected a whole number"),
        ("[limits]\njobs = true", "/limits/jobs: expected a whole number"),
        ("[topics.x]\npools = ['a', 'a']", "/topics/x/pools: expected each name once"),
        ("[jobs]\npreempt = 'no'", "/jobs/preempt: expected true or false"),
        ("lock = ['limits/jobs']", "/lock/0: expected a key that this document has a value for"),
        ("lock = 1", "/lock: expected a list of keys"),
        ('{"limits": {"jobs": 1, "jobs": 2}}', "/: 'jobs' is there twice"),
        ('{"pools": {"a~b": {"x": 1}}}', "/pools/a~0b/x: unknown key, expected lease waiting requires"),
        ('{"limits": [' * 5000, "/: too deep"),
        ("x = ", "/: Invalid value (at end of document)"),
    ],
)
def test_a_document_that_is_not_good_is_refused_with_a_pointer(text: str, why: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse(text.encode(), Source("a", 1))
    assert str(caught.value).startswith(why)


# the fold


def line(verb: str, text: str = "", **args: str) -> str:
    if verb == "publish":
        args |= {"sha256": sha256(text.encode()).hexdigest(), "content": pack(text.encode())}
    return ctl.line(verb, args)


def publish(hive: Folded, text: str, scope: str = "system", who: Caller = ANN, **more: str) -> str:
    return hive.write("/config/ctl", line("publish", text, scope=scope, **more), who)


def refusal(hive: Folded, text: str, scope: str, who: Caller = ANN, **more: str) -> str:
    with pytest.raises(Refusal) as caught:
        publish(hive, text, scope, who, **more)
    return caught.value.text


def test_a_value_comes_with_the_scope_and_version_that_said_it() -> None:
    hive = Folded()
    assert (None, ("default", 0)) == hive.state.config.value(TEAM, "limits/jobs")
    assert "system@1" == publish(hive, "limits.jobs = 9")
    assert "other@1" == publish(hive, "limits.jobs = 8", "other")
    assert f"{TEAM}@1" == publish(hive, "limits.waiting = 7", TEAM)
    config = hive.state.config
    assert (8, ("other", 1)) == config.value(TEAM, "limits/jobs")
    assert (9, ("system", 1)) == config.value("acme/web/prod", "limits/jobs")
    assert (7, (TEAM, 1)) == config.value(f"{TEAM}/flow/step", "limits/waiting")
    assert (30 * SECOND, ("default", 0)) == config.value(TEAM, "pools/gpu/lease")
    assert "other@2" == publish(hive, "limits.jobs = 6", "other")
    assert (6, ("other", 2)) == config.value(TEAM, "limits/jobs")
    with pytest.raises(KeyError):
        config.value(TEAM, "limits/nothing")
    with pytest.raises(ConfigError, match="expected system, org"):
        config.value("a/b", "limits/jobs")


def test_what_loosens_a_locked_key_is_not_published_and_clamped_when_the_lock_comes_later() -> None:
    hive = Folded()
    publish(hive, "limits.jobs = 50", "other")
    publish(hive, "lock = ['limits']\nlimits.jobs = 10")
    assert (10, ("system", 1)) == hive.state.config.value(TEAM, "limits/jobs")
    assert "schema: /limits/jobs: 11 is looser than 10, locked by system@1" == refusal(
        hive, "limits.jobs = 11", TEAM
    )
    publish(hive, "limits.jobs = 3", TEAM)
    assert (3, (TEAM, 1)) == hive.state.config.value(TEAM, "limits/jobs")
    assert {"value": 3, "source": f"{TEAM}@1", "locked": "system@1"} == (
        snapshot(hive.state.config, TEAM)["values"]["limits/jobs"]  # type: ignore[index]
    )


def test_a_tenant_writes_its_workflows_and_steps_and_only_tightens_what_it_got() -> None:
    hive = Folded()
    publish(hive, "limits.jobs = 10\n[topics.thumb]\npools = ['a', 'b']", TEAM)
    for scope in ("system", "other", TEAM, "acme/web/prod/flow"):
        assert refusal(hive, "limits.jobs = 1", scope, BOB).startswith("permission denied: rule=scope-owner ")
    flow = f"{TEAM}/flow"
    assert "schema: /limits/jobs: 11 is looser than 10" in refusal(hive, "limits.jobs = 11", flow, BOB)
    assert 'schema: /topics/new/pools: ["gpu"] is looser than []' in refusal(
        hive, "topics.new.pools = ['gpu']", flow, BOB
    )
    publish(hive, "limits.jobs = 5\njobs.timeout = '1h'\ntopics.thumb.pools = ['b']", flow, BOB)
    step = f"{flow}/step"
    assert "looser than []" in refusal(hive, "topics.new.pools = ['gpu']", step, BOB)
    publish(hive, "limits.jobs = 8\njobs.timeout = '2h'", step, BOB)
    assert (8, (step, 1)) == hive.state.config.value(step, "limits/jobs")
    assert (("b",), (flow, 1)) == hive.state.config.value(step, "topics/thumb/pools")
    publish(hive, "limits.jobs = 2", TEAM)
    assert (2, (TEAM, 2)) == hive.state.config.value(step, "limits/jobs")


def test_rollback_is_exact() -> None:
    hive = Folded()
    publish(hive, "limits.jobs = 1\njobs.retries = 3")
    before = snapshot(hive.state.config, TEAM)
    publish(hive, "limits.jobs = 2")
    assert before != snapshot(hive.state.config, TEAM)
    assert "system@1" == hive.write("/config/ctl", line("rollback", v="1"))
    assert before == snapshot(hive.state.config, TEAM)
    assert "system@3" == publish(hive, "limits.jobs = 3")
    with pytest.raises(Refusal, match="there is no such version"):
        hive.write("/config/ctl", line("rollback", v="9"))


def test_if_rev_and_the_hash_are_held_to() -> None:
    hive = Folded()
    publish(hive, "limits.jobs = 1")
    rev = hive.state.config.scopes["system"].rev
    assert f"conflict: rev have={rev} want=1" == refusal(hive, "limits.jobs = 2", "system", **{"if-rev": "1"})
    assert "system@2" == publish(hive, "limits.jobs = 2", **{"if-rev": str(rev)})
    other = {"sha256": "0" * 64, "content": pack(b"limits.jobs = 3")}
    with pytest.raises(Refusal, match=f"integrity: sha256={'0' * 64}: the draft is "):
        hive.write("/config/ctl", ctl.line("publish", other))
    assert "system@2" == publish(hive, "limits.jobs = 2")


def test_a_scope_that_cannot_be_read_has_no_values_nor_has_what_is_in_it() -> None:
    hive = Folded()
    publish(hive, "lock = ['limits']\nlimits.jobs = 1", "other")
    config = hive.state.config
    # Of a release that has keys which this one has not.
    text = b"limits.unheard = 1"
    event = Published("other", 2, sha256(text).hexdigest(), "ann", "", pack(text))
    apply(config, event, Meta(99, 0, ""))
    for scope in ("other", TEAM, f"{TEAM}/flow", f"{TEAM}/flow/step"):
        for key in ("limits/jobs", "jobs/retries"):
            with pytest.raises(
                ConfigError, match="scope other@2 cannot be read: /limits/unheard: unknown key"
            ):
                config.value(scope, key)
        with pytest.raises(ConfigError):
            config.effective(scope)
    assert "scope other@2 cannot be read" in refusal(hive, "limits.jobs = 1", TEAM)
    assert None is config.value("acme/web/prod", "limits/jobs").value
    assert None is config.value("system", "limits/jobs").value
    hive.write("/config/ctl", line("rollback", scope="other", v="1"))
    assert 1 == config.value(TEAM, "limits/jobs").value
    broken = Published("other", 3, "0" * 64, "ann", "", "no such thing")
    apply(config, broken, Meta(100, 0, ""))
    with pytest.raises(ConfigError, match="other@3 cannot be read"):
        config.value(TEAM, "limits/jobs")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "other", TEAM]), documents()), max_size=6))
def test_a_fold_is_the_fold_of_its_copy_and_remembers_nothing_old(steps: list[tuple[str, Any]]) -> None:
    folded, fresh = Config(), Config()
    for seq, (scope, said) in enumerate(steps, 1):
        text = canonical(said)
        event = Published(scope, seq, sha256(text).hexdigest(), "ann", "", pack(text))
        apply(folded, event, Meta(seq, seq, ""))
        apply(fresh, event, Meta(seq, seq, ""))
        # The one is asked at every step, the other at the end.
        folded.effective(f"{TEAM}/flow")
        folded.value(TEAM, "limits/jobs")
        folded = folded.copy() if seq % 2 else folded
    assert fresh == folded
    assert fresh.effective(f"{TEAM}/flow") == folded.effective(f"{TEAM}/flow")
    assert fresh.value(TEAM, "limits/jobs") == folded.value(TEAM, "limits/jobs")


@given(st.binary(max_size=2000))
def test_what_is_packed_comes_back(text: bytes) -> None:
    assert text == unpack(pack(text))


def test_what_is_too_large_or_cut_is_not_unpacked() -> None:
    for wrong in ("", "AAAA", pack(b"x" * 100)[:-8], "é", pack(b"x") + "AAAA"):
        with pytest.raises(PackError):
            unpack(wrong)
    with pytest.raises(PackError):
        pack(b"x" * (TEXT_MAX + 1))


# /config


async def put(door: Door, text: str, scope: str = "") -> str:
    """Write a draft and publish it; the reply."""
    name = scope.replace("/", ":")
    if scope and not await door.exists(f"/config/{name}"):
        await (await door.walk("/config")).mkdir(name, 0o755, 0)
    draft = await door.open(f"/config/{name}/draft" if scope else "/config/draft", BOTH)
    await say(draft, text)
    await draft.clunk()
    chan = await door.open("/config/ctl", BOTH)
    of = f"scope={scope} " if scope else ""
    await say(chan, f"publish {of}sha256={sha256(text.encode()).hexdigest()}\n")
    return (await rest(chan)).decode().split(" ")[0]


async def ask(door: Door, said: str) -> Any:
    chan = await door.open("/config/effective", BOTH)
    await say(chan, said)
    return json.loads(await rest(chan))


def test_a_draft_is_published_holds_at_once_and_is_told() -> None:
    async def story(hive: Served) -> None:
        ann = hive.ann
        assert ["ctl", "keys", "effective.json", "effective", *SHEETS, "draft"] == await ann.names("/config")
        assert "system@1" == await put(ann, "limits.jobs = 4\n")
        assert "limits.jobs = 4\n" == await ann.read("/config/live") == await ann.read("/config/versions/1")
        assert "" == await ann.read("/config/draft")
        assert "other@1" == await put(ann, "lock = ['limits/jobs']\nlimits.jobs = 3\n", "other")
        found = await ask(ann, "other limits/jobs")
        assert {"scope": "other", "key": "limits/jobs", "value": 3, "source": "other@1"} == found
        whole = json.loads(await ann.read("/config/effective.json"))
        assert {"value": 4, "source": "system@1"} == whole["values"]["limits/jobs"]
        assert {"value": "24h", "source": "default"} == whole["values"]["jobs/key-window"]
        theirs = json.loads(await ann.read("/config/other/effective.json"))
        assert {"value": 3, "source": "other@1", "locked": "other@1"} == theirs["values"]["limits/jobs"]
        assert (await ask(ann, "other")) == theirs
        await put(ann, "limits.jobs = 5\n")
        assert ["1", "2"] == await ann.names("/config/versions")
        await ann.write("/config/ctl", "rollback v=1\n")
        assert "limits.jobs = 4\n" == await ann.read("/config/live")
        assert whole == json.loads(await ann.read("/config/effective.json"))
        assert 'pools/*/lease duration less "30s" a lease lasts' in await ann.read("/config/keys")
        events = [line for line in (await ann.read("/events")).splitlines() if '"config.' in line]
        assert 4 == len(events)

    served(story)


def test_a_bad_draft_is_refused_with_a_pointer_and_stays() -> None:
    async def story(hive: Served) -> None:
        error = await refused(put(hive.ann, "[pools.x]\nfoo = 1\n"))
        assert error.kind is E.SCHEMA
        assert error.text.startswith("schema: /pools/x/foo: unknown key")
        assert "[pools.x]\nfoo = 1\n" == await hive.ann.read("/config/draft")
        error = await refused(hive.ann.write("/config/ctl", f"publish scope=acme sha256={'0' * 64}\n"))
        assert error.text.startswith("schema: /: there is no draft of acme")

    served(story)


def test_a_tenant_sees_its_own_scopes_and_values_and_no_other() -> None:
    async def story(hive: Served) -> None:
        ann, bob = hive.ann, hive.door(BOB)
        await put(ann, "limits.jobs = 4\n", TEAM)
        await put(ann, "limits.jobs = 5\n", "acme/web/prod")
        assert ["ctl", "keys", "effective.json", "effective", *SHEETS] == await bob.names("/config")
        found = json.loads(await bob.read("/config/effective.json"))
        assert {"value": 4, "source": f"{TEAM}@1"} == found["values"]["limits/jobs"]
        assert f"{TEAM}/flow@1" == await put(bob, "limits.jobs = 2\n", f"{TEAM}/flow")
        assert 2 == (await ask(bob, f"{TEAM}/flow/step limits/jobs"))["value"]
        for name in ("draft", "live", "acme:web:prod", "other:project:env", "system"):
            assert not await bob.exists(f"/config/{name}")
        for scope in ("system", "acme/web/prod", "other", "other/project/envy"):
            assert E.MISSING is (await refused(ask(bob, scope))).kind
        assert not await ann.exists("/config/other:project:env:flow")
        assert E.MISSING is (await refused(ask(ann, f"{TEAM}/flow"))).kind
        config = await bob.walk("/config")
        assert E.DENIED is (await refused(config.mkdir("acme:web:prod:flow", 0o755, 0))).kind

    served(story)


def test_a_scope_that_was_begun_is_taken_back_and_one_that_was_published_is_not() -> None:
    async def story(hive: Served) -> None:
        config = await hive.ann.walk("/config")
        for wrong in ("a:b", "Acme", "system", "a:b:c:d:e:f"):
            assert E.USAGE is (await refused(config.mkdir(wrong, 0o755, 0))).kind
        await config.mkdir("acme", 0o755, 0)
        assert E.EXISTS is (await refused(config.mkdir("acme", 0o755, 0))).kind
        await config.unlinkat("acme", True)
        assert not await hive.ann.exists("/config/acme")
        await put(hive.ann, "limits.jobs = 4\n", "acme")
        assert E.READONLY is (await refused(config.unlinkat("acme", True))).kind

    served(story)


def test_what_was_published_is_there_after_a_restart(tmp_path: Any) -> None:
    async def story() -> None:
        ledger = str(tmp_path / "ledger")
        async with living(tmp_path, ledger) as alive:
            await alive.write("/config/ctl", line("publish", "limits.jobs = 7", scope="other"))
            before = alive.state.config
        async with living(tmp_path, ledger) as again:
            assert before == again.state.config
            assert 7 == again.state.config.value(TEAM, "limits/jobs").value

    asyncio.run(story())
