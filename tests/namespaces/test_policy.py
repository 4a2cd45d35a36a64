"""Policy as a fold: what is published, what is refused, what is decided. No server, no files."""

from __future__ import annotations

import json

import pytest
from bundles import ANNS, MALS, bundle, engine_of, publish, trust
from hives import ANN, EYE, SIGNER, W1, Folded

from skep.fs.node import Caller
from skep.namespaces.hive import HIDDEN, TABLES, HiveRules
from skep.namespaces.policy.bundle import Bundle, BundleError, shipped
from skep.namespaces.policy.core import check_all, first_lines, mending_lines
from skep.namespaces.policy.engine import Engine, Live
from skep.namespaces.policy.request import Principal, Stated, written
from skep.namespaces.policy.schema import schema
from skep.trace.entry import Line
from skep.trace.rules import Meta, Refusal

DENY_DRAIN = '@id("no-drain") forbid (principal, action == Skep::Action::"hive.drain", resource);'
BOOTH = Caller("spiffe://hive/interactive-ai-booth/b1", "interactive-ai-booth")


def folded() -> Folded:
    """A hive that trusts ann's key."""
    hive = Folded()
    hive.write("/policy/ctl", trust("ann", ANNS))
    return hive


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    return str(caught.value)


# the default bundle


def test_the_default_bundle_is_good() -> None:
    assert 60 == check_all(shipped())


def test_the_schema_is_that_of_the_tables_of_verbs() -> None:
    said = "write it anew: skep policy schema > skep/namespaces/policy/default/skep.cedarschema"
    assert shipped().files["skep.cedarschema"] == schema(TABLES, HIDDEN), said


def test_every_line_of_the_default_policies_is_explained() -> None:
    for name, text in shipped().files.items():
        if name.endswith(".cedar"):
            lines = text.splitlines()
            ids = [i for i, line in enumerate(lines) if line.startswith("@id(")]
            assert all(lines[i + 1].startswith("@about(") for i in ids), name
            assert all(lines[i - 1].startswith("//") or not lines[i - 1] for i in ids), name


@pytest.mark.parametrize("role", ["observer", "validator", "gateway", "sensor-relay", "simulator-test", ""])
def test_a_role_without_a_policy_may_nothing(role: str) -> None:
    hive = Folded()
    for path, line in (
        ("/jobs/ctl", "submit topic=sum"),
        ("/ctl", "drain"),
        ("/nodes/ctl", "cordon node=w1"),
    ):
        assert "rule=default-deny" in refused(hive, path, line, Caller("unix:x", role))


def test_without_a_bundle_everything_is_denied() -> None:
    hive = Folded()
    hive.state.policy = HiveRules().fresh().policy
    assert "permission denied: rule=default-deny" in refused(hive, "/ctl", "drain")


def test_a_booth_submits_to_gpu_pools_alone() -> None:
    hive = Folded()
    for line in ("create pool=gpu-1", "map topic=see pool=gpu-1"):
        hive.write("/pools/ctl", line)
    assert hive.write("/jobs/ctl", "submit topic=see", BOOTH)
    assert "rule=default-deny" in refused(hive, "/jobs/ctl", "submit topic=sum", BOOTH)


def test_a_booth_cancels_its_own_jobs_alone() -> None:
    hive = Folded()
    for line in ("create pool=gpu", "map topic=see pool=gpu"):
        hive.write("/pools/ctl", line)
    its, anns = (
        hive.write("/jobs/ctl", "submit topic=see", BOOTH),
        hive.write("/jobs/ctl", "submit topic=see"),
    )
    assert "rule=default-deny" in refused(hive, "/jobs/ctl", f"cancel job={anns}", BOOTH)
    assert its == hive.write("/jobs/ctl", f"cancel job={its}", BOOTH)


def test_a_red_node_gets_no_lease_and_ends_what_it_runs() -> None:
    hive = Folded()
    job = hive.write("/jobs/ctl", "submit topic=sum")
    assert job == hive.write("/pools/default/next", "lease", W1)
    hive.write("/nodes/ctl", "trust node=w1 level=red")
    hive.write("/jobs/ctl", "submit topic=sum")
    assert "rule=default/red-gets-no-work" in refused(hive, "/pools/default/next", "lease", W1)
    hive.write(f"/jobs/{job}/ctl", "start fence=1", W1)
    hive.write(f"/jobs/{job}/ctl", "ack fence=1", W1)
    hive.hive("/nodes/w1", "join principal=unix:work role=drone-worker")
    assert "red" == hive.state.nodes.by_id["w1"].trust


# publishing


def test_what_is_published_holds_at_once() -> None:
    hive = folded()
    assert "mine@1" == hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN)))
    assert "permission denied: rule=mine/no-drain" in refused(hive, "/ctl", "drain")


def test_another_bundle_takes_no_deny_away() -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN)))
    allow = '@id("drain") permit (principal, action == Skep::Action::"hive.drain", resource);'
    hive.write("/policy/ctl", publish("operator", bundle(allow)))
    assert "rule=mine/no-drain" in refused(hive, "/ctl", "drain")


def test_a_packages_policy_grants_nothing() -> None:
    hive = folded()
    allow = '@id("all") permit (principal, action, resource);'
    hive.write("/policy/ctl", publish("package", bundle(allow)))
    assert "rule=default-deny" in refused(hive, "/ctl", "drain", EYE)
    hive.write("/policy/ctl", publish("operator", bundle(allow)))
    assert "ok" == hive.write("/ctl", "drain", EYE)


def test_an_unsigned_bundle_is_refused_and_so_is_a_digest_for_a_signature() -> None:
    hive, made = folded(), bundle(DENY_DRAIN)
    line = {"verb": "publish", "bundle": "mine", "sha256": made.sha256}
    for sig in (made.sha256, made.sha256 * 2):
        said = json.dumps(line | {"sig": sig, "content": made.pack()})
        assert "UNSIGNED: signature: " in refused(hive, "/policy/ctl", said)
    assert "/sig is missing" in refused(hive, "/policy/ctl", json.dumps(line | {"content": made.pack()}))


def test_a_signature_is_for_one_bundle_by_a_trusted_key() -> None:
    hive, made = folded(), bundle(DENY_DRAIN)
    assert "UNSIGNED" in refused(hive, "/policy/ctl", publish("mine", made, MALS))
    of_mine = publish("mine", made)
    assert "UNSIGNED" in refused(hive, "/policy/ctl", of_mine.replace("bundle=mine", "bundle=operator"))
    other = bundle("")
    swapped = of_mine.replace(made.pack(), other.pack())
    assert "TAMPER: integrity: sha256=" in refused(hive, "/policy/ctl", swapped)
    assert "UNSIGNED" in refused(hive, "/policy/ctl", swapped.replace(made.sha256, other.sha256))


def test_after_the_first_a_key_is_introduced_by_a_trusted_one() -> None:
    hive = folded()
    assert "UNSIGNED" in refused(hive, "/policy/ctl", trust("mal", MALS))
    assert "UNSIGNED" in refused(hive, "/policy/ctl", trust("mal", MALS, by=MALS))
    assert "EXISTS" in refused(hive, "/policy/ctl", trust("ann", MALS, by=MALS))
    assert "EXISTS" in refused(hive, "/policy/ctl", trust("hive", MALS, by=ANNS))
    hive.write("/policy/ctl", "distrust-key name=ann")
    assert "UNSIGNED" in refused(hive, "/policy/ctl", trust("mal", MALS))
    assert "ann" == hive.write("/policy/ctl", trust("ann", ANNS, by=SIGNER))


def test_a_key_for_one_bundle_signs_no_other() -> None:
    hive = folded()
    hive.write("/policy/ctl", trust("package", MALS, by=ANNS, bundle="package"))
    assert "UNSIGNED" in refused(hive, "/policy/ctl", publish("operator", bundle(), MALS))
    assert "package@1" == hive.write("/policy/ctl", publish("package", bundle(), MALS))


ANY = "(principal, action, resource);"
BAD = {
    "mine.cedar:3: unexpected token `}`": '\n\n@id("a") permit (principal, action, resource) when { 1 + };',
    "mine.cedar:2: a policy does not end": f'@id("a") permit {ANY}\npermit (principal',
    "mine.cedar:1: a: attribute `foo` on entity type `Skep::Principal` not found": (
        '@id("a") permit (principal, action, resource) when { principal.foo == 1 };'
    ),
    'mine.cedar:1: a: unrecognized action `Skep::Action::"jobs.fly"`': (
        '@id("a") permit (principal, action == Skep::Action::"jobs.fly", resource);'
    ),
    "mine.cedar:2: expected @id(": "// why\npermit (principal, action, resource);",
    'mine.cedar:2: @id("a") is at mine.cedar:1 too': '@id("a") permit (principal, action, resource);\n' * 2,
    "mine.cedar:1: @decison: expected one of": f'@id("a") @decison("DENY") forbid {ANY}',
    'mine.cedar:1: @decision("ALLOW") of a forbid': f'@id("a") @decision("ALLOW") forbid {ANY}',
    "mine.cedar:1: @constraints: cores<=x": (
        f'@id("a") @decision("ALLOW_WITH_CONSTRAINTS") @constraints("cores<=x") permit {ANY}'
    ),
    "mine.cedar:1: ?principal and ?resource": '@id("a") permit (principal == ?principal, action, resource);',
}


@pytest.mark.parametrize(("why", "policies"), BAD.items())
def test_a_bad_bundle_is_refused_with_its_line_and_the_last_good_one_stays(why: str, policies: str) -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN)))
    said = refused(hive, "/policy/ctl", publish("mine", bundle(policies)))
    assert f"SCHEMA: schema: {why}" in said
    assert 1 == hive.state.policy.bundles["mine"].live
    assert "rule=mine/no-drain" in refused(hive, "/ctl", "drain")


def test_a_bundle_whose_tests_fail_is_refused() -> None:
    tests = '[{"name": "a", "request": {"action": "hive.drain"}, "decision": "ALLOW"}]'
    said = refused(folded(), "/policy/ctl", publish("mine", bundle(DENY_DRAIN, tests)))
    assert "tests.json: test 1 'a': DENY by operator/no-drain, expected ALLOW" in said


def test_what_would_lock_its_publisher_out_is_refused() -> None:
    hive = folded()
    nobody = '@id("nobody") forbid (principal, action == Skep::Action::"policy.publish", resource);'
    assert "mine/nobody would not let unix:ann publish again" in refused(
        hive, "/policy/ctl", publish("mine", bundle(nobody))
    )
    assert "default-deny would not let" in refused(hive, "/policy/ctl", publish("default", bundle()))


def test_nobody_can_approve_yet_so_what_would_ask_for_approval_to_publish_is_refused() -> None:
    hive = folded()
    asks = (
        '@id("two") @decision("REQUIRE_APPROVAL") '
        'permit (principal, action == Skep::Action::"policy.publish", resource);'
    )
    assert "mine/two would not let unix:ann publish again" in refused(
        hive, "/policy/ctl", publish("mine", bundle(asks))
    )


def test_a_rollback_makes_an_earlier_version_live() -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN)))
    assert "mine@2" == hive.write("/policy/ctl", publish("mine", bundle()))
    assert "ok" == hive.write("/ctl", "drain")
    assert "mine@1" == hive.write("/policy/ctl", "rollback bundle=mine v=1")
    assert "rule=mine/no-drain" in refused(hive, "/ctl", "drain")
    assert "there is no such version" in refused(hive, "/policy/ctl", "rollback bundle=mine v=3")
    hive.write("/policy/ctl", "distrust-key name=ann")
    assert "UNSIGNED" in refused(hive, "/policy/ctl", "rollback bundle=mine v=2")


def test_if_rev_is_the_bundles_last_change() -> None:
    hive = folded()
    assert "mine@1" == hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN), **{"if-rev": "0"}))
    rev = hive.state.policy.bundles["mine"].rev
    assert "CONFLICT" in refused(hive, "/policy/ctl", publish("mine", bundle(), **{"if-rev": str(rev - 1)}))
    assert "mine@2" == hive.write("/policy/ctl", publish("mine", bundle(), **{"if-rev": str(rev)}))


def test_a_bundle_too_large_for_an_entry_is_refused() -> None:
    with pytest.raises(BundleError, match="at most 65536 were expected"):
        bundle("// " + "x" * 70_000).pack()


def test_a_newer_release_brings_its_default_unless_somebody_published_one() -> None:
    hive = folded()
    policy = hive.state.policy
    assert [] == first_lines(policy, SIGNER.public, SIGNER.sign)
    grown = Bundle(
        shipped().files
        | {"more.cedar": DENY_DRAIN.replace("principal,", 'principal == Skep::Principal::"x",')}
    )
    hive.write("/policy/ctl", publish("default", grown))
    assert [] == first_lines(policy, SIGNER.public, SIGNER.sign)
    hive.hive("/policy/ctl", publish("default", bundle(DENY_DRAIN)))
    assert 2 == len(first_lines(policy, SIGNER.public, SIGNER.sign))


def test_a_live_bundle_that_cannot_be_read_denies_everything_until_it_is_rolled_back() -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("mine", bundle(DENY_DRAIN)))
    broken = Live("mine", 2, "0" * 64, Bundle({"mine.cedar": "permit"}).pack())
    request = written(Stated("jobs.submit"), Principal("unix:ann", "operator"))
    assert "broken/mine" == Engine([broken]).decide(request).rule
    record = hive.state.policy.bundles["mine"]
    version = type(record.version)(2, broken.sha256, "", "ann", "unix:ann", 0, broken.packed)
    hive.state.policy.bundles["mine"] = type(record)("mine", 2, 1, record.versions | {2: version})
    assert ["rollback bundle=mine v=1"] == mending_lines(hive.state.policy)


# decisions

KINDS = {
    "allow": '@id("allow") permit (principal, action, resource);',
    "bound": (
        '@id("bound") @decision("ALLOW_WITH_CONSTRAINTS") @constraints("priority<=5 timeout<=10m")'
        ' permit (principal, action == Skep::Action::"jobs.submit", resource);'
    ),
    "throttle": (
        '@id("throttle") @decision("THROTTLE") @retry_ms("250")'
        ' permit (principal, action, resource) when { context.waiting > 1 };'
    ),
    "approve": (
        '@id("approve") @decision("REQUIRE_APPROVAL") permit (principal, action, resource)'
        ' when { resource.hasTag("risk") || context.risk.contains("high") };'
    ),
    "deny": '@id("deny") forbid (principal, action, resource) when { context has args.key };',
}  # fmt: skip
STRICTEST = ["deny", "approve", "throttle", "bound", "allow"]


@pytest.mark.parametrize("order", [STRICTEST, STRICTEST[::-1]])
def test_the_strictest_match_wins_whatever_the_order(order: list[str]) -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("operator", bundle("\n".join(KINDS[each] for each in order))))
    assert "priority<=5" in refused(hive, "/jobs/ctl", "submit topic=sum")
    assert "priority<=5" in refused(hive, "/jobs/ctl", "submit topic=sum timeout=1m priority=6")
    assert "timeout<=10m" in refused(hive, "/jobs/ctl", "submit topic=sum timeout=11m priority=5")
    for _ in range(2):
        assert hive.write("/jobs/ctl", "submit topic=sum timeout=10m priority=5")
    said = refused(hive, "/jobs/ctl", "submit topic=sum timeout=10m priority=5")
    assert "THROTTLED: throttled: retry-ms=250 rule=operator/throttle" in said
    said = refused(hive, "/jobs/ctl", "submit topic=sum labels=risk:high")
    assert "APPROVAL: approval required: ref=" in said
    assert "rule=operator/deny" in refused(hive, "/jobs/ctl", "submit topic=sum labels=risk:high key=k")


def test_an_approval_is_for_one_payload() -> None:
    hive = folded()
    hive.write("/policy/ctl", publish("operator", bundle(KINDS["approve"])))
    one = refused(hive, "/jobs/ctl", "submit topic=sum labels=risk:high input=a")
    assert one == refused(hive, "/jobs/ctl", "submit topic=sum labels=risk:high input=a")
    assert one != refused(hive, "/jobs/ctl", "submit topic=sum labels=risk:high input=b")
    assert one != refused(
        hive, "/jobs/ctl", "submit topic=sum labels=risk:high input=a", Caller("unix:x", "operator")
    )


def test_a_policy_that_errs_denies() -> None:
    engine = engine_of(
        operator='@id("a") permit (principal, action, resource);'
        '@id("b") forbid (principal, action, resource) when { context.waiting + 9223372036854775807 > 1 };'
    )
    stated = Stated("jobs.submit", context={"waiting": 1})
    assert "error/policy" == engine.decide(written(stated, Principal("unix:ann", "operator"))).rule


def test_the_time_is_asked_for_at_each_line() -> None:
    hive = folded()
    until = '@id("later") forbid (principal, action == Skep::Action::"hive.drain", resource) when'
    when = '{ context.time < datetime("2100-01-01T00:00:00Z") };'
    hive.write("/policy/ctl", publish("mine", bundle(f"{until} {when}")))
    assert "rule=mine/later" in refused(hive, "/ctl", "drain")
    hive.clock.advance(4_102_444_800 * 10**9)
    assert "ok" == hive.write("/ctl", "drain")


def test_the_same_lines_are_decided_the_same() -> None:
    outcomes = []
    for _ in range(2):
        hive = folded()
        lines = [
            ("/policy/ctl", publish("operator", bundle("\n".join(KINDS.values())))),
            ("/jobs/ctl", "submit topic=sum"),
            ("/jobs/ctl", "submit topic=sum timeout=1m priority=1"),
            ("/jobs/ctl", "submit topic=sum labels=risk:high"),
            ("/policy/ctl", publish("mine", bundle(DENY_DRAIN))),
            ("/ctl", "drain"),
        ]
        said = []
        for path, line in lines:
            try:
                said.append(hive.write(path, line))
            except Refusal as error:
                said.append(str(error))
        outcomes.append(said)
    assert outcomes[0][1:2] + outcomes[0][3:] == outcomes[1][1:2] + outcomes[1][3:]


def test_a_fold_of_the_events_is_the_state() -> None:
    rules = HiveRules()
    one, two = rules.fresh(), rules.fresh()
    lines = [
        *first_lines(one.policy, SIGNER.public, SIGNER.sign),
        trust("ann", ANNS),
        publish("a", bundle(DENY_DRAIN)),
    ]
    for seq, line in enumerate([*lines, "rollback bundle=a v=1", "distrust-key name=ann"], 1):
        written_line = Line("hive", "hive", "", "/policy/ctl", (line,), seq, f"t{seq}")
        for event in rules.decide(one, written_line, 0).events:
            rules.apply(one, event, Meta(seq, seq, f"t{seq}"))
            rules.apply(two, event, Meta(seq, seq, f"t{seq}"))
    assert one == two == rules.copy(one)
    assert one.policy.live is two.policy.live
