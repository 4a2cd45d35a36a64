"""Dead letters: seen, retried under today's rules with all they had, or thrown away with a reason."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bundles import ANNS, bundle, publish, trust
from door import Door
from hives import ANN, BOB, W1, Folded, Living, live

from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.namespaces.jobs.envelope import arguments
from skep.namespaces.jobs.record import Submitted
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, MINUTE
from skep.trace.rules import Refusal

KIM = Caller("spiffe://hive/kiosk-interactive/k1", "kiosk-interactive")
REQUEST = (
    "submit topic=sum key=k priority=7 labels=risk:pii+export,pack:p1,team:red retries=0 timeout=1m "
    "deadline=1h input='a b'"
)


@pytest.fixture
def hive() -> Folded:
    return Folded()


def failed(hive: Folded, line: str = REQUEST, who: Caller = ANN) -> str:
    """A job that has failed."""
    job = hive.write("/jobs/ctl", line, who)
    hive.write("/pools/default/next", "lease", W1)
    hive.write(f"/jobs/{job}/ctl", "nack fence=1 error=broken code=bad-input", W1)
    return job


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    return str(caught.value)


def letters(hive: Folded, tenant: str = ANN.tenant) -> list[str]:
    return list(hive.state.jobs.dead.get(tenant, ()))


def test_a_retry_is_another_job_with_all_that_the_first_had(hive: Folded) -> None:
    job = failed(hive)
    again = hive.write("/dlq/ctl", f"retry id={job}")
    first, second = (hive.state.jobs.by_id[id].request for id in (job, again))
    assert msgspec.structs.replace(first, job=again, retry_of=job) == second
    assert (7, MINUTE, HOUR, "a b") == (second.priority, second.timeout_ns, second.deadline_ns, second.input)
    assert ("failed", "queued") == (hive.job_state(job), hive.job_state(again))
    assert [] == letters(hive)


def test_the_key_names_the_retry(hive: Folded) -> None:
    job = failed(hive)
    assert job == hive.write("/jobs/ctl", REQUEST)
    again = hive.write("/dlq/ctl", f"retry id={job}")
    assert again == hive.write("/jobs/ctl", REQUEST)
    assert "MISSING file does not exist" == refused(hive, "/dlq/ctl", f"retry id={job}").replace(":", "", 1)


def test_what_submit_would_now_be_refused_is_refused_to_a_retry(hive: Folded) -> None:
    """A retry that drops metadata would pass a policy that its job failed."""
    job = failed(hive)
    hive.write("/policy/ctl", trust("ann", ANNS))
    forbidden = """
        @id("no-pii") forbid (principal, action == Skep::Action::"jobs.submit", resource)
        when { context.risk.contains("pii") };
    """
    hive.write("/policy/ctl", publish("mine", bundle(forbidden)))
    assert "rule=mine/no-pii" in refused(hive, "/jobs/ctl", REQUEST.replace("key=k", ""))
    assert "rule=mine/no-pii" in refused(hive, "/dlq/ctl", f"retry id={job}")
    assert [job] == letters(hive)


@pytest.mark.parametrize(
    "when",
    [
        'resource.hasTag("team") && resource.getTag("team") == "red"',
        'context.pack == "p1"',
        'context.capability == "sum"',
        'context.pool == "default"',
        'context.args has "priority" && context.args["priority"] == 7',
        'context.args has "input" && context.args["input"] == "a b"',
        'principal.actor == "unix:ann"',
    ],
)
def test_a_retry_shows_the_policies_all_that_its_submit_showed(hive: Folded, when: str) -> None:
    job = failed(hive)
    hive.write("/policy/ctl", trust("ann", ANNS))
    rule = '@id("no") forbid (principal, action == Skep::Action::"jobs.submit", resource)'
    hive.write("/policy/ctl", publish("mine", bundle(f"{rule} when {{ {when} }};")))
    other = Caller("unix:carl", "operator")
    assert "rule=mine/no " in refused(hive, "/dlq/ctl", f"retry id={job}", other)


def test_an_operator_s_retry_gives_a_submitter_no_more_than_its_own_rights(hive: Folded) -> None:
    hive.write("/pools/ctl", "map topic=kiosk.report pool=default")
    job = failed(hive, "submit topic=kiosk.report", KIM)
    hive.write("/policy/ctl", trust("ann", ANNS))
    rule = """
        @id("closed") forbid (principal, action == Skep::Action::"jobs.submit", resource)
        when { principal.role == "kiosk-interactive" };
    """
    hive.write("/policy/ctl", publish("mine", bundle(rule)))
    assert "rule=mine/closed role kiosk-interactive" in refused(hive, "/dlq/ctl", f"retry id={job}")
    assert "rule=default-deny" in refused(hive, "/dlq/ctl", f"retry id={job}", KIM)


def test_a_retry_has_no_route_when_its_topic_has_none(hive: Folded) -> None:
    job = failed(hive)
    hive.write("/pools/ctl", "unmap topic=sum")
    assert "NOROUTE" == refused(hive, "/dlq/ctl", f"retry id={job}").split(":")[0]
    assert [job] == letters(hive)


def test_a_retry_waits_for_a_place_in_the_queue(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=p queue=1")
    hive.write("/pools/ctl", "map topic=sum pool=p")
    job = hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/p/next", "lease", W1)
    hive.write(f"/jobs/{job}/ctl", "nack fence=1 error=broken", W1)
    hive.write("/jobs/ctl", "submit topic=sum")
    assert "OVERLOAD: pool_overloaded" in refused(hive, "/dlq/ctl", f"retry id={job}")
    assert [job] == letters(hive)


def test_a_letter_is_thrown_away_with_a_reason_and_the_job_stays(hive: Folded) -> None:
    job = failed(hive)
    assert "USAGE" == refused(hive, "/dlq/ctl", f"discard id={job}").split(":")[0]
    assert "expected why" in refused(hive, "/dlq/ctl", f"discard id={job} reason=' '")
    hive.write("/dlq/ctl", f"discard id={job} reason='no longer wanted'")
    assert ([], "failed") == (letters(hive), hive.job_state(job))
    assert "MISSING" in refused(hive, "/dlq/ctl", f"discard id={job} reason=again")


def test_what_succeeded_or_was_cancelled_is_no_dead_letter(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum")
    assert "MISSING" in refused(hive, "/dlq/ctl", f"retry id={job}")
    hive.write("/jobs/ctl", f"cancel job={job}")
    assert "MISSING" in refused(hive, "/dlq/ctl", f"retry id={job}")
    assert [] == letters(hive)


def test_other_tenants_letters_do_not_exist(hive: Folded) -> None:
    job = failed(hive, "submit topic=sum", BOB)
    for line in (f"retry id={job}", f"discard id={job} reason=r"):
        assert refused(hive, "/dlq/ctl", line) == refused(hive, "/dlq/ctl", line.replace(job, "none"))
    again = hive.write("/dlq/ctl", f"retry id={job}", BOB)
    assert BOB.tenant == hive.state.jobs.by_id[again].request.tenant


def test_a_request_of_a_ledger_that_did_not_say_the_role_is_answered_for_by_who_retries(hive: Folded) -> None:
    job = failed(hive, "submit topic=sum labels=a:b")
    old = hive.state.jobs.by_id[job]
    bare = msgspec.structs.replace(old.request, role="")
    hive.state.jobs.by_id[job] = msgspec.structs.replace(old, request=bare)
    again = hive.write("/dlq/ctl", f"retry id={job}", Caller("unix:carl", "operator"))
    request = hive.state.jobs.by_id[again].request
    assert ("unix:ann", {"a": "b"}) == (request.actor, request.labels)


def test_the_arguments_of_a_retry_leave_no_field_of_a_request_out() -> None:
    derived = {"job", "tenant", "actor", "role", "pool", "body", "retry-of", "cost", "actor-cost"}
    derived |= {"checked", "result-schema", "trigger", "depth", "imported"}
    values: dict[str, Any] = dict.fromkeys(Submitted.__struct_fields__, "x") | {
        "priority": 7, "labels": {"a": "b"}, "timeout_ns": 1, "retries": 1, "deadline_ns": 1, "runtime_ns": 1,
        "bytes_max": 1, "risk": ("pii",), "requires": ("gpu",), "artifact": "",
        "inputs": {"a": "ab" * 32}, "patience_ns": 1,
    }  # fmt: skip
    full = Submitted(**values)
    said = set(arguments(full)) | set(arguments(msgspec.structs.replace(full, artifact="ab" * 32)))
    assert {_argument(name) for name in Submitted.__struct_fields__} - derived == said


def _argument(field: str) -> str:
    """The argument of submit that a field has its value from."""
    return field.removesuffix("_ns").removesuffix("_max").replace("_", "-")


def test_letters_are_files() -> None:
    async def story(alive: Living) -> None:
        ann, bob = (Door(hive_tree(alive.hive), who) for who in (ANN, BOB))
        job = await alive.submit("input=x")
        await alive.hive.take(W1, "default")
        await alive.run(job, "start")
        await alive.run(job, "nack error='not JSON' final=true code=undecodable")
        always = ["ctl", "undecodable"]
        assert ([*always, job], always) == (await ann.names("/dlq"), await bob.names("/dlq"))
        entry: dict[str, Any] = msgspec.json.decode(await ann.read(f"/dlq/{job}/entry.json"))
        assert ("undecodable", "not JSON", "running", 1) == tuple(
            entry[name] for name in ("code", "message", "last_state", "attempts")
        )
        assert "not JSON\n" == await ann.read(f"/dlq/{job}/error")
        assert await ann.read(f"/jobs/{job}/request.json") == await ann.read(f"/dlq/{job}/request.json")
        with pytest.raises(FsError, match="file does not exist"):
            await bob.read(f"/dlq/{job}/error")
        assert job in await ann.names("/jobs/by-state/failed")
        await ann.write("/dlq/ctl", f"retry id={job}\n")
        assert always == await ann.names("/dlq")
        assert "failed\n" == await ann.read(f"/jobs/{job}/state")

    live(story)
