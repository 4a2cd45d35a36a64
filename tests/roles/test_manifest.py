"""Manifests: what a role sees and may do, against a naive reading of the same rules; what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs import spiffe
from skep.fs.chan import ALL_RIGHTS, EVERYTHING, Right, View
from skep.roles.manifest import Manifest, load, parse
from skep.roles.sealed import ENROLLING, ManifestError, Source
from skep.roles.view import Rule

READ, WRITE, LIST, NONE = Right.READ, Right.WRITE, Right.LIST, Right(0)
NAMES: dict[str, Any] = {
    "node": "w1".__eq__,
    "leased": "j1".__eq__,
    "input": "f00d".__eq__,
    "own": "mine".__eq__,
    "annex": "gpu1".__eq__,
}


def manifest(*lines: str) -> Manifest:
    return parse("test", "\n".join(("mount hive /", *lines)).encode())


def at(view: View, path: str) -> View | None:
    here: View | None = view
    for name in path.split("/")[1:]:
        if here is None:
            return None
        here = here.child(name)
    return here


def rights(given: Manifest, path: str) -> Right | None:
    """None: it does not exist."""
    found = at(given.view(NAMES), path)
    return None if found is None else found.rights


# what exists


def test_nothing_exists_but_what_is_allowed() -> None:
    given = manifest("allow read /version")
    assert READ == rights(given, "/version")
    assert rights(given, "/state") is None
    assert rights(given, "/version/below") is None


def test_a_manifest_that_allows_nothing_shows_not_even_names() -> None:
    view = manifest().view(NAMES)
    assert NONE == view.rights
    assert view.child("version") is None


def test_a_name_is_matched_whole() -> None:
    given = manifest("allow read /srv/**")
    assert rights(given, "/srv") is not None
    assert rights(given, "/srvX") is None
    assert rights(given, "/sr") is None


def test_on_the_way_names_are_listed_and_no_more() -> None:
    given = manifest("allow write /jobs/*/ctl")
    view = given.view(NAMES)
    assert LIST == view.rights
    assert LIST == rights(given, "/jobs")
    assert LIST == rights(given, "/jobs/j7")
    assert WRITE == rights(given, "/jobs/j7/ctl")
    assert rights(given, "/jobs/j7/log") is None


def test_a_star_stands_for_one_name() -> None:
    given = manifest("allow read /jobs/*/state")
    assert LIST == rights(given, "/jobs/state")
    assert READ == rights(given, "/jobs/a/state")
    assert rights(given, "/jobs/a/b/state") is None


def test_two_stars_stand_for_a_place_and_everything_below() -> None:
    given = manifest("allow read /log/**")
    assert READ | LIST == rights(given, "/log")
    assert READ | LIST == rights(given, "/log/a/b/c")


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_denied_is_denied_wherever_the_line_stands(order: int) -> None:
    given = manifest(*["allow all /**", "deny write,create,remove /log/**", "deny all /secrets/**"][::order])
    assert READ | LIST == rights(given, "/log/trace")
    assert rights(given, "/secrets") is None
    assert rights(given, "/secrets/key/value") is None
    assert at(given.view(NAMES), "/jobs") is EVERYTHING


def test_a_variable_stands_for_what_it_means_now() -> None:
    leased: set[str] = set()
    given = manifest("allow write /jobs/<leased>/ctl")
    view = given.view(NAMES | {"leased": leased.__contains__})
    assert at(view, "/jobs/j2") is None
    leased.add("j2")
    assert at(view, "/jobs/j2/ctl") is not None


def test_a_file_called_like_a_pattern_is_not_what_the_pattern_means() -> None:
    given = manifest("allow read /nodes/<node>/state", "deny all /jobs/*", "allow read /jobs/x")
    assert rights(given, "/nodes/<node>") is None
    assert rights(given, "/nodes/w1") is not None
    assert rights(given, "/**") is None
    view = given.view(NAMES)
    for node, there in (("<node>", False), ("w1", True), ("<node>", False), ("w2", False), ("*", False)):
        assert there is (at(view, f"/nodes/{node}") is not None), node


def test_everything_allowed_is_told_as_the_view_that_asks_no_more() -> None:
    assert manifest("allow all /**").view(NAMES) is EVERYTHING
    assert at(manifest("allow all /jobs/**").view(NAMES), "/jobs") is EVERYTHING


def test_cd_says_where_relative_paths_begin() -> None:
    given = manifest("cd /jobs", "allow read x", "cd deep/er", "allow read y", "allow read /z")
    assert READ == rights(given, "/jobs/x")
    assert READ == rights(given, "/jobs/deep/er/y")
    assert READ == rights(given, "/z")


# against a naive reading

names = st.sampled_from(["a", "b", "w1", "aa"])
words = st.sampled_from(["a", "b", "aa", "*", "<node>"])
patterns = st.builds(
    lambda path, below: (*path, "**") if below else tuple(path), st.lists(words, max_size=3), st.booleans()
)
rules = st.builds(Rule, st.booleans(), st.sampled_from([READ, WRITE, READ | WRITE, ALL_RIGHTS]), patterns)


def matches(pattern: tuple[str, ...], path: list[str]) -> bool:
    """Whether the rule's path is this place."""
    if pattern and pattern[-1] == "**":
        return any(matches(pattern[:-1], path[:end]) for end in range(len(path) + 1))
    return len(pattern) == len(path) and all(
        word in ("*", name) or (word == "<node>" and name == "w1")
        for word, name in zip(pattern, path, strict=True)
    )


def leads_below(pattern: tuple[str, ...], path: list[str]) -> bool:
    """Whether the rule's path is, or may be, a place below this one."""
    if pattern and pattern[-1] == "**":
        return matches(pattern, path) or leads_below(pattern[:-1], path) or matches(pattern[:-1], path)
    return len(pattern) > len(path) and matches(pattern[: len(path)], path)


def naive(given: list[Rule], path: list[str]) -> Right | None:
    allowed = denied = denied_below = ahead = NONE
    for rule in given:
        if matches(rule.path, path):
            if rule.allow:
                allowed |= rule.rights
            else:
                denied |= rule.rights
                denied_below |= rule.rights if rule.path[-1:] == ("**",) else NONE
        if rule.allow and leads_below(rule.path, path):
            ahead |= rule.rights
    found = allowed & ~denied
    if ahead & ~denied_below:
        found |= LIST
    return found or None


@pytest.mark.slow
@given(st.lists(rules, max_size=6), st.lists(names, max_size=4))
def test_a_view_is_what_a_naive_reading_of_the_rules_says(given: list[Rule], path: list[str]) -> None:
    found = rights(Manifest("test", tuple(given)), "/" + "/".join(path) if path else "")
    expected = naive(given, path)
    if found is not None and found & ALL_RIGHTS == ALL_RIGHTS:
        found |= LIST  # EVERYTHING need not say it
        expected = None if expected is None else expected | LIST
    assert expected == (found or None)


@given(st.lists(rules, max_size=6), st.lists(names, min_size=1, max_size=4))
def test_what_is_above_a_place_that_exists_exists(given: list[Rule], path: list[str]) -> None:
    read = Manifest("test", tuple(given))
    if rights(read, "/" + "/".join(path)) is not None:
        assert all(rights(read, "/" + "/".join(path[:end])) for end in range(1, len(path)))


# reading


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("union -a /x /y", "union: unknown verb, expected one of mount bind unmount cd allow deny"),
        ("alow read /x", "alow: unknown verb, expected one of mount bind unmount cd allow deny"),
        ("allow read", "allow read: expected allow rights path"),
        ("allow read /x /y", "allow read /x /y: expected allow rights path"),
        ("allow reed /x", "'reed': unknown right, expected some of read,write,create,remove,all"),
        ("allow read, /x", "'': unknown right, expected some of read,write,create,remove,all"),
        ("allow read,read /x", "read,read: a right is there twice"),
        ("allow all,read /x", "all,read: a right is there twice"),
        ("deny all //x", "//x: '' in a path, expected names parted by single slashes"),
        ("deny all /x/", "/x/: '' in a path, expected names parted by single slashes"),
        ("deny all /x/../y", "/x/../y: '..' in a path, expected names parted by single slashes"),
        ("deny all /**/x", "/**/x: ** ends a path"),
        (
            "deny all /a*",
            "/a*: a*: expected a whole name, * or ** alone, or one of <node> <leased> <input> <own> <annex>",
        ),
        (
            "deny all /<who>",
            "/<who>: <who>: expected a whole name, * or ** alone, or one of "
            "<node> <leased> <input> <own> <annex>",
        ),
        ("cd /jobs/*", "cd /jobs/*: expected a plain path"),
        ("cd", "cd: expected cd path"),
        ("mount queen /x", "mount queen /x: expected mount hive path"),
        ("bind /x", "bind /x: expected bind [-a|-b] [-c] new old"),
        ("bind -ab /x /y", "bind -ab: expected at most one of -a -b, and -c"),
        ("bind -a -a /x /y", "bind -aa: expected at most one of -a -b, and -c"),
        ("bind -d /x /y", "bind -d: expected at most one of -a -b, and -c"),
        ("bind /x/* /y", "bind /x/*: expected a plain path"),
        ("bind /x /<node>", "bind /<node>: expected a plain path"),
        ("bind /x/.. /y", "/x/..: '..' in a path, expected names parted by single slashes"),
        ("unmount", "unmount: expected unmount [new] old"),
        ("unmount /x /y /z", "unmount /x /y /z: expected unmount [new] old"),
        ("mount hive /", "mount hive /: / is mounted already"),
        ("mount hive", "mount hive: expected mount [-a|-b] [-c] hive path"),
    ],
)
def test_a_line_that_is_not_understood_is_refused_with_its_number(line: str, why: str) -> None:
    with pytest.raises(ManifestError) as caught:
        manifest("# a comment", "", line)
    assert f"test.ns:4: {why}" == str(caught.value)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"test\.ns:2: byte 11 is not UTF-8"):
        parse("test", b"mount hive /\nallow read \xff\n")


def test_a_manifest_that_mounts_nothing_is_refused() -> None:
    with pytest.raises(ManifestError, match="no mount line"):
        parse("test", b"allow all /**\n")


ROLES = [
    "boot-lab", "cuda-annex", "drone-worker", "gateway", "glasses-agent", "interactive-ai-booth",
    "kiosk-interactive", "observer", "operator", "queen-bare-metal", "queen-primary", "queen-regional",
    "sensor-relay", "simulator-test", "validator",
]  # fmt: skip
QUEENS = ["operator", "queen-bare-metal", "queen-primary"]


@pytest.mark.parametrize("role", ["nobody", "../operator", "operator.ns", "", "operator/", "Operator"])
def test_a_role_without_a_manifest_is_none(role: str) -> None:
    with pytest.raises(ManifestError, match="expected one of boot-lab cuda-annex drone-worker"):
        load(role)


def test_every_shipped_manifest_is_understood() -> None:
    assert ROLES == Source.told().roles()
    for role in (*ROLES, ENROLLING):
        assert "mount hive /\n" == load(role).ns


def test_every_role_of_a_certificate_has_a_manifest() -> None:
    assert frozenset(ROLES) >= spiffe.ROLES
    assert ENROLLING not in spiffe.ROLES


@pytest.mark.parametrize("role", [role for role in ROLES if role not in QUEENS])
def test_everybody_may_know_who_it_is_and_renew_its_certificate(role: str) -> None:
    manifest = load(role)
    for path in ("/whoami", "/ns", "/version", "/state", "/trust/ca.pem", "/trust/crl.pem"):
        assert READ == (rights(manifest, path) or NONE) & ALL_RIGHTS, path
    assert READ | WRITE == (rights(manifest, "/trust/renew") or NONE) & ALL_RIGHTS
    for path in ("/trust/ctl", "/policy/ctl", "/ctl", "/nodes/ctl", "/pools/ctl", "/log/trace/live.jsonl"):
        assert not (rights(manifest, path) or NONE) & (ALL_RIGHTS & ~READ), path
    for path in ("/trust/enroll", "/trust/tokens/clone", "/secrets/x/value", "/tenants/t/keys"):
        assert rights(manifest, path) is None, path


def test_who_has_no_certificate_may_ask_for_one_and_nothing_else() -> None:
    found = {rule.path: rule.rights for rule in load(ENROLLING).rules}
    assert {
        ("version",): READ,
        ("trust", "ca.pem"): READ,
        ("trust", "enroll"): READ | WRITE,
    } == found


def test_an_observer_may_change_nothing_anywhere() -> None:
    changing = [rule for rule in load("observer").rules if rule.allow and rule.rights != READ]
    assert [Rule(True, WRITE, ("trust", "renew"))] == changing
    view = load("observer").view(NAMES)
    for path in ("/secrets", "/pools/default/next", "/jobs/clone", "/artifacts/stage", "/trust/tokens"):
        assert at(view, path) is None


@pytest.mark.parametrize(
    ("role", "path", "expected"),
    [
        ("boot-lab", "/pools/boot-lab/next", READ),
        ("boot-lab", "/pools/default", None),
        ("boot-lab", "/boot", None),
        ("boot-lab", "/jobs/other", None),
        ("cuda-annex", "/pools/gpu/next", READ),
        ("cuda-annex", "/jobs/j2", None),
        ("cuda-annex", "/gpu/w1/leases", READ | LIST),
        ("cuda-annex", "/gpu/w2", None),
        ("cuda-annex", "/gpu/sources/f00d", READ),
        ("cuda-annex", "/gpu/ctl", None),
        ("gateway", "/jobs", None),
        ("gateway", "/artifacts", None),
        ("glasses-agent", "/nodes/gpu1/heartbeat", READ),
        ("glasses-agent", "/nodes/gpu1/ctl", None),
        ("glasses-agent", "/nodes/w2", None),
        ("glasses-agent", "/jobs/ctl", READ | WRITE),
        ("glasses-agent", "/gpu/ctl", READ | WRITE | LIST),
        ("glasses-agent", "/gpu/gpu1/health", READ),
        ("glasses-agent", "/gpu/gpu1/ctl", None),
        ("interactive-ai-booth", "/jobs/mine/result", READ | LIST),
        ("interactive-ai-booth", "/jobs/other", None),
        ("interactive-ai-booth", "/pools", None),
        ("interactive-ai-booth", "/gpu/ctl", READ | WRITE | LIST),
        ("interactive-ai-booth", "/gpu/gpu1/load", READ),
        ("interactive-ai-booth", "/gpu/gpu1/leases", None),
        ("observer", "/gpu/gpu1/leases", READ | LIST),
        ("kiosk-interactive", "/jobs/mine/result", READ),
        ("kiosk-interactive", "/jobs/mine/log", None),
        ("kiosk-interactive", "/artifacts", None),
        ("queen-bare-metal", "/hives", None),
        ("queen-bare-metal", "/jobs/ctl", ALL_RIGHTS),
        ("queen-regional", "/hives/w1/jobs/ctl", ALL_RIGHTS),
        ("queen-regional", "/hives/w2", None),
        ("queen-regional", "/jobs", None),
        ("sensor-relay", "/nodes/w1/heartbeat", WRITE),
        ("sensor-relay", "/jobs", None),
        ("simulator-test", "/log/trace/live.jsonl", READ | LIST),
        ("simulator-test", "/validator", None),
        ("validator", "/log/trace/live.jsonl", READ | LIST),
        ("validator", "/validator/ctl", READ | WRITE | LIST),
        ("validator", "/boot/config", READ),
        ("validator", "/boot/images", None),
        ("validator", "/jobs", LIST),
        ("validator", "/pools/validator/next", READ),
        ("validator", "/pools/default", None),
    ],
)
def test_a_role_has_what_its_manifest_gives(role: str, path: str, expected: Right | None) -> None:
    assert expected == rights(load(role), path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/jobs/j1/ctl", READ | WRITE),
        ("/jobs/j1/request.json", None),
        ("/jobs/j2", None),
        ("/jobs/ctl", None),
        ("/jobs/by-key", None),
        ("/nodes/w1/heartbeat", WRITE),
        ("/nodes/w2", None),
        ("/nodes/ctl", None),
        ("/artifacts/f00d/data", READ),
        ("/artifacts/beef", None),
        ("/artifacts/by-name", None),
        ("/sessions", None),
        ("/log", None),
        ("/events", None),
        ("/ctl", None),
        ("/trust/renew", READ | WRITE),
        ("/trust/enroll", None),
        ("/trust/certificates", None),
    ],
)
def test_a_worker_sees_its_leases_and_itself(path: str, expected: Right | None) -> None:
    assert expected == rights(load("drone-worker"), path)
