"""Decisions over random policies and requests: what is remembered, what comes first, what is added."""

from __future__ import annotations

import cedarpy
import pytest
from bundles import bundle, engine_of
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.namespaces.policy.bundle import DECISIONS, rules_of
from skep.namespaces.policy.engine import Engine, Live, Ruling, _ask, _strictest
from skep.namespaces.policy.references import NotUnderstood, dismisses, references
from skep.namespaces.policy.request import Principal, Resource, Stated, Written, written

STRICTNESS = {decision: i for i, decision in enumerate(DECISIONS)}

# Few values, so that random requests meet random policies.
ROLES = ("operator", "drone-worker", "observer")
ACTIONS = ("jobs.submit", "jobs.cancel", "pools.lease", "hive.drain")
SCOPES = (
    (
        "principal",
        'principal == Skep::Principal::"a"',
        "principal is Skep::Principal",
        *(f'principal in Skep::Role::"{role}"' for role in ROLES),
    ),
    (
        "action",
        'action in Skep::Action::"jobs"',
        'action in [Skep::Action::"hive.drain"]',
        *(f'action == Skep::Action::"{action}"' for action in ACTIONS),
    ),
    ("resource", 'resource == Skep::Resource::"/jobs/1"', 'resource in Skep::Resource::"/jobs"'),
)
ATOMS = (
    'principal.role == "operator"',
    'principal.trust != "red"',
    'principal.node like "w*"',
    'principal in Skep::Role::"drone-worker"',
    'principal in [Skep::Role::"observer", Skep::Principal::"b"]',
    'resource.owner == principal.actor',
    'resource.hasTag("team")',
    '(resource.hasTag("team") && resource.getTag("team") == "red")',
    'context.args has topic',
    '(context has args.topic && context.args.topic == "sum")',
    'context.args.priority > 5',  # errs where there is none
    'context.risk.contains("high")',
    'context.risk.containsAny(["high", "gpu"])',
    'context.waiting + 1 > 3',
    'context.time > datetime("2024-01-01")',
    'context == context',
    '[principal.role, context.pack].contains("p")',
    '(if context.token then principal else principal) == Skep::Principal::"a"',
    '{"a": context.pool}.a == "gpu"',
    '!(context.capability == "sum")',
)  # fmt: skip
NOTES = (
    ("permit", ""), ("permit", ""), ("forbid", ""),
    ("permit", '@decision("REQUIRE_APPROVAL")'),
    ("permit", '@decision("THROTTLE") @retry_ms("5")'),
    ("permit", '@decision("THROTTLE") @retry_ms("7")'),
    ("permit", '@decision("ALLOW_WITH_CONSTRAINTS") @constraints("priority<=5")'),
)  # fmt: skip

clauses = st.builds(
    lambda kind, atoms, word: f"{kind} {{ {word.join(atoms)} }}",
    st.sampled_from(("when", "unless")),
    st.lists(st.sampled_from(ATOMS), min_size=1, max_size=3),
    st.sampled_from((" && ", " || ")),
)


@st.composite
def policy_sets(draw: st.DrawFn) -> list[str]:
    found = []
    for i in range(draw(st.integers(0, 6))):
        effect, note = draw(st.sampled_from(NOTES))
        scope = ", ".join(draw(st.sampled_from(scopes)) for scopes in SCOPES)
        conditions = " ".join(draw(st.lists(clauses, max_size=2)))
        found.append(f'@id("p{i}") {note} {effect} ({scope}) {conditions};')
    return found


principals = st.builds(
    Principal,
    id=st.sampled_from(("a", "b")),
    role=st.sampled_from(ROLES),
    node=st.sampled_from(("", "w1")),
    trust=st.sampled_from(("green", "red")),
)
contexts = st.fixed_dictionaries(
    {
        "args": st.fixed_dictionaries(
            {}, optional={"topic": st.sampled_from(("sum", "see")), "priority": st.integers(4, 6)}
        )
    },
    optional={
        "capability": st.sampled_from(("sum", "see")),
        "pool": st.sampled_from(("gpu", "default")),
        "risk": st.lists(st.sampled_from(("high", "gpu")), max_size=2),
        "pack": st.sampled_from(("", "p")),
        "waiting": st.integers(0, 4),
        "token": st.booleans(),
        "time": st.sampled_from((0, 1_800_000_000 * 10**9)),
    },
)
resources = st.builds(
    Resource,
    id=st.sampled_from(("/jobs", "/jobs/1", "/pools/gpu", "/")),
    owner=st.sampled_from(("a", "a#w1", "")),
    labels=st.dictionaries(st.just("team"), st.sampled_from(("red", "blue"))),
)


@st.composite
def requests(draw: st.DrawFn) -> Written:
    stated = Stated(draw(st.sampled_from(ACTIONS)), None, draw(resources), draw(contexts))
    return written(stated, draw(principals))


def made(policies: list[str], name: str = "operator") -> Engine:
    return engine_of(**{name: "\n".join(policies)})


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(policy_sets(), st.lists(requests(), min_size=1, max_size=12))
def test_what_is_remembered_is_what_is_decided(policies: list[str], asked: list[Written]) -> None:
    engine = made(policies)
    for request in asked:
        first = engine.decide(request)
        assert first == engine.decide(request)
        # Cedar names policies that err by their place among those that were asked.
        told = first if first.rule != "error/policy" else Ruling("DENY", "error/policy")
        assert told == in_full(engine, request)


def in_full(engine: Engine, request: Written) -> Ruling:
    """The ruling by all policies, each given all there is to know."""
    every = cedarpy.PolicySet.from_str("\n".join(each.rule.text for each in engine.policies))
    answer = _ask(every, request).diagnostics
    if answer.errors:
        return Ruling("DENY", "error/policy")
    return _strictest([engine.policies[int(id.removeprefix("policy"))] for id in answer.reasons])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(policy_sets(), st.randoms(use_true_random=False), requests())
def test_the_order_of_policies_changes_nothing(policies: list[str], random, request: Written) -> None:  # type: ignore[no-untyped-def]
    shuffled = policies[:]
    random.shuffle(shuffled)
    one, two = made(policies).ask(request), made(shuffled).ask(request)
    # Where policies err, Cedar names them by their place.
    assert (one.decision, one.rule, one.constraints) == (two.decision, two.rule, two.constraints)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(policy_sets(), policy_sets(), requests())
def test_another_bundle_never_loosens_what_is_denied(
    one: list[str], two: list[str], request: Written
) -> None:
    before = made(one).ask(request)
    after = engine_of(operator="\n".join(one), package="\n".join(two)).ask(request)
    assert STRICTNESS[after.decision] <= STRICTNESS[before.decision]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(policy_sets(), requests())
def test_a_permit_never_turns_a_deny_by_a_forbid_into_anything_else(
    policies: list[str], request: Written
) -> None:
    before = made(policies).ask(request)
    after = made([*policies, '@id("more") permit (principal, action, resource);']).ask(request)
    if before.rule != "default-deny":
        assert STRICTNESS[after.decision] <= STRICTNESS[before.decision]
        assert before.rule in (after.rule, *after.reasons) or before.decision == "DENY"


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(policy_sets(), requests())
def test_what_is_explained_as_matching_is_what_decided(policies: list[str], request: Written) -> None:
    engine = made(policies)
    ruling, explained = engine.ask(request), list(engine.explain(request))
    assert len(policies) == len(explained)
    matched = {str(each["policy"]) for each in explained if each["matched"]}
    assert all(each["matched"] or each["why"] for each in explained)
    if not ruling.rule.startswith("error/"):
        assert set(ruling.reasons) <= matched
        assert not matched or ruling.rule in matched


def test_decisions_of_what_stays_the_same_are_remembered() -> None:
    engine = made(['@id("a") permit (principal in Skep::Role::"operator", action, resource);'])
    for i in range(5):
        stated = Stated("jobs.submit", context={"args": {"topic": f"t{i}"}})
        assert engine.decide(written(stated, Principal(f"p{i}", "operator"))).allowed
    assert 1 == len(engine._remembered)


def test_a_number_and_a_truth_are_not_the_same_request() -> None:
    engine = made(['@id("a") permit (principal, action, resource) when { context.args.x == true };'])
    found = [
        engine.decide(written(Stated("jobs.submit", context={"args": {"x": x}}), Principal("a"))).decision
        for x in (1, True, 1)
    ]
    assert ["DENY", "ALLOW", "DENY"] == found


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("context.pool == \"gpu\"", {"context.pool"}),
        ("context.args has topic && context.args.topic == \"a\"", {"context.args.topic"}),
        ("resource.hasTag(\"a.b\")", {"resource.tags.a.b"}),
        ("principal in Skep::Role::\"operator\"", {"principal.role"}),
        ("principal == Skep::Principal::\"a\"", {"principal", "principal.role"}),
        ("context has args", set()),
        ("context.time > datetime(\"2024-01-01\")", None),
        ("context == context", None),
        ("context.args == {}", None),
        ("resource.hasTag(principal.role)", None),
    ],
)  # fmt: skip
def test_a_policy_is_known_by_what_it_refers_to(condition: str, names: set[str] | None) -> None:
    (rule,) = rules_of(bundle(f'@id("a") permit (principal, action, resource) when {{ {condition} }};'))
    if names is None:
        with pytest.raises(NotUnderstood):
            references(rule.tree)
    else:
        assert names == {".".join(name) for name in references(rule.tree)}


@pytest.mark.parametrize(
    ("rest", "dismisses_it"),
    [
        ('(principal in Skep::Role::"operator", action, resource)', True),
        ('(principal in Skep::Role::"observer", action, resource)', False),
        ('(principal, action, resource) when { principal.role == "operator" && context.pool == "a" }', True),
        (
            '(principal, action, resource) unless { principal.role == "observer" || context.pool == "a" }',
            True,
        ),
        # What stands before it may err, and then the answer is another.
        ('(principal, action, resource) when { context.pool == "a" && principal.role == "operator" }', False),
        ('(principal, action, resource) when { context.pool == "a" } when { principal.role == "x" }', False),
        ('(principal, action, resource) when { principal.role like "o*" }', False),
    ],
)
def test_a_policy_that_another_role_is_meant_by_is_not_asked(rest: str, dismisses_it: bool) -> None:
    (rule,) = rules_of(bundle(f'@id("a") permit {rest};'))
    assert dismisses_it == dismisses(rule.tree, "observer")


def test_bundles_are_asked_in_no_order() -> None:
    both = [
        Live(name, 1, text.sha256, text.pack())
        for name, text in (
            ("operator", bundle('@id("a") permit (principal, action, resource);')),
            ("package", bundle('@id("b") forbid (principal, action, resource);')),
        )
    ]
    request = written(Stated("jobs.submit"), Principal("a"))
    assert Engine(both).ask(request) == Engine(both[::-1]).ask(request)
