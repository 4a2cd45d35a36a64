"""What a request says besides its work: its envelope, what /config adds to it, schemas, and budgets."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from bundles import ANNS, bundle, publish, trust
from door import Door
from hives import ANN, BOB, W1, Folded, Living, live

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.fs.tracecontext import is_traceparent, is_tracestate
from skep.namespaces.artifacts.shelf import BYTES
from skep.namespaces.artifacts.store import place
from skep.namespaces.jobs.contract import CHECKED_MAX
from skep.namespaces.jobs.due import TIMEOUT_GRACE_NS, due
from skep.namespaces.jobs.record import Job, Submitted
from skep.namespaces.lease import lease_line
from skep.namespaces.live import Heartbeat
from skep.namespaces.packed import pack
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, MINUTE, SECOND
from skep.trace.entry import canonical
from skep.trace.rules import Refusal

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ENVELOPE = {
    "capability": "thumb.video", "risk": "pii,export", "pack": "p1", "actor-id": "carl@example.org",
    "actor-type": "agent", "workflow": "nightly", "run": "r7", "step": "resize", "traceparent": TRACE,
    "tracestate": "vendor=a,other@b=c", "runtime": "10m", "bytes": "100", "retries": "2", "timeout": "1m",
    "deadline": "1h", "labels": "a:b",
}  # fmt: skip
BAD = '{"width":"3"}'
THUMB = {"type": "object", "required": ["width"], "properties": {"width": {"type": "integer"}}}


@pytest.fixture
def hive() -> Folded:
    return Folded()


def submit(hive: Folded, **args: str) -> Job:
    return submit_as(hive, ANN, args)


def submit_as(hive: Folded, who: Caller, args: dict[str, str]) -> Job:
    job = hive.write("/jobs/ctl", ctl.line("submit", {"topic": "sum"} | args), who)
    return hive.state.jobs.by_id[job]


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    return caught.value.text


def refused_submit(hive: Folded, **args: str) -> str:
    return refused(hive, "/jobs/ctl", ctl.line("submit", {"topic": "sum"} | args))


def published(said: dict[str, Any], **more: str) -> str:
    text = canonical(said)
    return ctl.line("publish", more | {"sha256": sha256(text).hexdigest(), "content": pack(text)})


def configure(hive: Folded, said: dict[str, Any], scope: str = "system", who: Caller = ANN) -> None:
    hive.write("/config/ctl", published(said, scope=scope), who)


def schema(hive: Folded, said: dict[str, Any], **more: str) -> None:
    hive.write("/schemas/ctl", published(said, id="thumb", **more))


def running(hive: Folded, job: Job) -> Job:
    """It is leased to w1 and runs."""
    hive.write("/pools/default/next", "lease", W1)
    return say(hive, job, "start")


def now(hive: Folded, job: Job) -> Job:
    return hive.state.jobs.by_id[job.id]


def say(hive: Folded, job: Job, line: str) -> Job:
    hive.write(f"/jobs/{job.id}/ctl", f"{line} fence={now(hive, job).fence}", W1)
    return now(hive, job)


# the envelope


def test_what_is_said_of_a_job_is_in_its_record(hive: Folded) -> None:
    request = submit(hive, **ENVELOPE).request
    assert ("thumb.video", ("export", "pii"), "p1") == (request.capability, request.risk, request.pack)
    assert ("carl@example.org", "agent") == (request.actor_id, request.actor_type)
    assert ("nightly", "r7", "resize") == (request.workflow, request.run, request.step)
    assert (10 * MINUTE, 100, 2, MINUTE, HOUR) == (
        request.runtime_ns, request.bytes_max, request.retries, request.timeout_ns, request.deadline_ns,
    )  # fmt: skip
    assert (TRACE, "vendor=a,other@b=c") == (request.traceparent, request.tracestate)


def test_words_may_be_a_json_array(hive: Folded) -> None:
    line = json.dumps({"verb": "submit", "topic": "sum", "risk": ["pii", "export"], "input": {"a": [1]}})
    request = hive.state.jobs.by_id[hive.write("/jobs/ctl", line)].request
    assert (("export", "pii"), '{"a":[1]}') == (request.risk, request.input)
    for wrong in (["a,b"], [1], [""], []):
        said = refused(hive, "/jobs/ctl", json.dumps({"verb": "submit", "topic": "sum", "risk": wrong}))
        assert "submit: /risk: " in said


def test_an_entry_of_a_ledger_that_knew_no_envelope_loads() -> None:
    old = b'{"type":"job.submitted","job":"j","tenant":"t","actor":"a","topic":"x","pool":"p","body":"b"}'
    found = msgspec.json.decode(old, type=Submitted)
    assert ("", (), "", 0, None, "") == (
        found.capability, found.risk, found.traceparent, found.runtime_ns, found.bytes_max, found.checked,
    )  # fmt: skip
    assert json.loads(old) == json.loads(msgspec.json.encode(found))


def test_the_envelope_is_shown_to_those_who_ask_and_to_the_worker() -> None:
    async def story(alive: Living) -> None:
        job = (await alive.write("/jobs/ctl", ctl.line("submit", {"topic": "sum"} | ENVELOPE)))[0]
        ann = Door(hive_tree(alive.hive), ANN)
        shown = json.loads(await ann.read(f"/jobs/{job}/request.json"))
        assert 1 == shown["v"]
        said = {name.replace("-", "_"): value for name, value in ENVELOPE.items()}
        said |= {"risk": ["export", "pii"], "bytes": 100, "retries": 2, "labels": {"a": "b"}}  # type: ignore[dict-item]
        assert said == {name: shown[name] for name in said}
        leased = await alive.hive.take(W1, "default")
        line = json.loads(lease_line(alive.hive, leased))
        for name in ("capability", "risk", "pack", "actor_type", "workflow", "step", "bytes", "timeout"):
            assert shown[name] == line[name], name
        assert (TRACE, "vendor=a,other@b=c", "10m") == (
            line["traceparent"], line["tracestate"], line["runtime_left"],
        )  # fmt: skip

    live(story)


def test_an_actor_is_who_submits_and_of_its_role_s_type_where_nothing_is_said() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit()
        shown = json.loads(await Door(hive_tree(alive.hive), ANN).read(f"/jobs/{job}/request.json"))
        assert ("unix:ann", "human") == (shown["actor_id"], shown["actor_type"])

    live(story)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"labels": ",".join(f"k{n}:v" for n in range(65))}, "/labels: expected 64 or fewer, not 65"),
        ({"labels": "k:" + "v" * 257}, "/labels: k: expected a name, and 256 bytes at most"),
        ({"risk": ",".join(f"r{n}" for n in range(65))}, "/risk: expected 64 words or fewer"),
        ({"actor-id": "x" * 513}, "/actor-id: expected 1 to 512 bytes"),
        ({"actor-id": ""}, "/actor-id: expected 1 to 512 bytes"),
        ({"step": "s"}, "/step: expected workflow with it"),
        ({"tracestate": "a=b"}, "/tracestate: expected traceparent with it"),
        ({"runtime": "0s"}, "/runtime: 0s: expected more than nothing"),
        ({"deadline": "9999999999h"}, "/deadline: 9999999999h: expected more than nothing"),
    ],
)
def test_a_field_beyond_its_bounds_is_refused_with_its_place(
    hive: Folded, args: dict[str, str], said: str
) -> None:
    assert f"usage: submit: {said}" in refused_submit(hive, **args)


@pytest.mark.parametrize(
    ("json_line", "said"),
    [
        ({"colour": "red"}, "/colour: unknown field"),
        ({"checked": "thumb@1.0 00"}, "/checked: unknown field"),
        ({"actor-type": "robot"}, "/actor-type: robot: expected one of human agent service device"),
        ({"traceparent": TRACE[:-1]}, "/traceparent: "),
        ({"v": 2}, "unsupported version: /v: 2, expected 1"),
    ],
)
def test_unknown_fields_and_versions_are_refused_with_a_pointer(json_line: dict[str, Any], said: str) -> None:
    async def story(alive: Living) -> None:
        ann = Door(hive_tree(alive.hive), ANN)
        with pytest.raises(FsError) as caught:
            await ann.write("/jobs/ctl", json.dumps({"verb": "submit", "topic": "sum"} | json_line))
        assert said in str(caught.value)

    live(story)


@pytest.mark.parametrize(
    "value",
    [
        "", TRACE.upper(), f"01{TRACE[2:]}", f"ff{TRACE[2:]}", f"{TRACE}-00", TRACE.replace("4bf9", "4bg9"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{'a' * 32}-{'0' * 16}-01", f" {TRACE}", f"{TRACE}\n",
    ],
)  # fmt: skip
def test_a_traceparent_is_of_version_00_and_exact(value: str) -> None:
    assert is_traceparent(TRACE)
    assert not is_traceparent(value)


@pytest.mark.parametrize(
    "value",
    [
        "", "a", "a=", "A=b", "a=b,a=c", "a=b=c", "a=é", "a=b\n", ",".join(f"k{n}=v" for n in range(33)),
        f"a={'x' * 511}", ",",
    ],
)  # fmt: skip
def test_a_tracestate_is_bounded_and_each_vendor_is_there_once(value: str) -> None:
    assert is_tracestate("a=b, 0t@sys=c d,,e=f")
    assert not is_tracestate(value)


# the policies


@pytest.mark.parametrize(
    "when",
    [
        'context.risk.contains("pii")',
        'context.capabilities.contains("thumb.video")',
        'context.capabilities.contains("sum") && context.capability == "sum"',
        'context.pack == "p1"',
        'context.actor_type == "agent" && principal.type == "human"',
        'context.actor == "carl@example.org"',
        'context.workflow == "nightly" && context.run == "r7" && context.step == "resize"',
        'context.args has "bytes" && context.args["bytes"] == 100',
    ],
)
def test_a_policy_can_forbid_by_what_is_said_of_a_job_and_a_retry_says_it_again(
    hive: Folded, when: str
) -> None:
    job = say(hive, running(hive, submit(hive, **ENVELOPE)), "nack error=broken final=true")
    plain = say(hive, running(hive, submit(hive)), "nack error=broken final=true")
    hive.write("/policy/ctl", trust("ann", ANNS))
    rule = '@id("no") forbid (principal, action == Skep::Action::"jobs.submit", resource)'
    hive.write("/policy/ctl", publish("mine", bundle(f"{rule} when {{ {when} }};")))
    assert "rule=mine/no " in refused_submit(hive, **ENVELOPE)
    assert "rule=mine/no " in refused(hive, "/dlq/ctl", f"retry id={job.id}")
    if 'contains("sum")' not in when:
        submit(hive)
        hive.write("/dlq/ctl", f"retry id={plain.id}")


def test_a_capability_that_is_said_gives_no_topic_another_name(hive: Folded) -> None:
    """A console may submit the topics made for it, whatever it says that they do."""
    kim = Caller("spiffe://hive/kiosk-interactive/k1", "kiosk-interactive")
    line = ctl.line("submit", {"topic": "sum", "capability": "kiosk.report"})
    assert "rule=default-deny" in refused(hive, "/jobs/ctl", line, kim)


# /config


def test_the_line_comes_before_the_topic_s_map_the_pool_and_configuration(hive: Folded) -> None:
    configure(hive, {"jobs": {"retries": 1, "timeout": "1m", "deadline": "9m"}})
    assert (1, MINUTE, 9 * MINUTE) == terms(submit(hive))
    configure(hive, {"jobs": {"retries": 1, "timeout": "1m"}, "topics": {"sum": {"retries": 2}}})
    assert (2, MINUTE, 0) == terms(submit(hive))
    hive.write("/pools/ctl", "create pool=p retries=3 timeout=3m")
    hive.write("/pools/ctl", "map topic=sum pool=p timeout=4m")
    assert (3, 4 * MINUTE, 0) == terms(submit(hive))
    assert (5, 4 * MINUTE, 0) == terms(submit(hive, retries="5"))


def terms(job: Job) -> tuple[int, int, int]:
    return job.request.retries, job.request.timeout_ns, job.request.deadline_ns


def test_a_workflow_and_a_step_have_scopes_of_their_own(hive: Folded) -> None:
    configure(hive, {"jobs": {"retries": 1}})
    configure(hive, {"jobs": {"retries": 2}}, "other/project/env/nightly", BOB)
    configure(hive, {"jobs": {"retries": 3}}, "other/project/env/nightly/resize", BOB)
    assert [1, 2, 2, 3] == [
        submit_as(hive, BOB, args).request.retries
        for args in (
            {}, {"workflow": "nightly"}, {"workflow": "nightly", "step": "x"},
            {"workflow": "nightly", "step": "resize"},
        )
    ]  # fmt: skip
    assert 1 == submit(hive, workflow="nightly").request.retries


def test_limits_bound_what_is_said_and_hold_where_nothing_is(hive: Folded) -> None:
    configure(hive, {"limits": {"runtime": "5m", "retries": 1}, "jobs": {"retries": 3, "priority-max": 4}})
    request = submit(hive).request
    assert (5 * MINUTE, 1, 4) == (request.runtime_ns, request.retries, request.priority)
    for args in ({"runtime": "6m"}, {"retries": "2"}, {"priority": "5"}):
        assert "quota exceeded" in refused_submit(hive, **args)
    assert MINUTE == submit(hive, runtime="1m", retries="0", priority="0").request.runtime_ns


def test_a_lease_lasts_as_its_topic_s_configuration_says_from_the_next_one_on(hive: Folded) -> None:
    job = running(hive, submit(hive))
    assert hive.clock.now_ns() + 30 * SECOND == job.until_ns
    configure(hive, {"pools": {"default": {"lease": "10s"}}})
    assert hive.clock.now_ns() + 10 * SECOND == say(hive, job, "renew").until_ns
    configure(hive, {"topics": {"sum": {"lease": "5m"}}})
    assert hive.clock.now_ns() + 5 * MINUTE == say(hive, job, "renew").until_ns
    say(hive, job, "ack")
    assert hive.clock.now_ns() + 5 * MINUTE == running(hive, submit(hive)).until_ns


def test_a_tenant_shortens_a_lease_and_does_not_make_it_longer(hive: Folded) -> None:
    for n, (lease, seconds) in enumerate((("5m", 30), ("10s", 10))):
        configure(hive, {"topics": {"sum": {"lease": lease}}}, f"other/project/env/w{n}", BOB)
        running(hive, job := submit_as(hive, BOB, {"workflow": f"w{n}"}))
        assert hive.clock.now_ns() + seconds * SECOND == now(hive, job).until_ns


def test_the_delay_between_attempts_is_configured(hive: Folded) -> None:
    configure(hive, {"jobs": {"retries": 9, "backoff": "1m", "backoff-max": "90s"}})
    delays = []
    job = submit(hive)
    for _ in range(3):
        until_ns = say(hive, running(hive, job), "nack error=e").until_ns
        delays.append(until_ns - hive.clock.now_ns())
        hive.clock.advance(delays[-1])
        hive.hive(f"/jobs/{job.id}", "wake")
    for delay, whole in zip(delays, (MINUTE, 90 * SECOND, 90 * SECOND), strict=True):
        assert whole // 2 <= delay < whole


def unreadable(hive: Folded) -> None:
    """The system's document is one that this release cannot read."""
    configure(hive, {"jobs": {"retries": 1}})
    config = hive.state.config
    record = config.scopes["system"]
    broken = msgspec.structs.replace(record.version, sha256="0" * 64)
    config.scopes["system"] = msgspec.structs.replace(record, versions={1: broken})
    config.changed()


def test_what_cannot_be_read_refuses_what_is_new_and_lets_go_on_what_runs(hive: Folded) -> None:
    job, other = submit(hive, retries="1"), submit(hive)
    running(hive, job)
    unreadable(hive)
    assert refused_submit(hive).startswith("conflict: config: scope system@1 cannot be read")
    assert hive.clock.now_ns() + 30 * SECOND == say(hive, job, "renew").until_ns
    assert "delayed" == say(hive, job, "nack error=e").state
    assert "queued" == now(hive, other).state


# schemas


def test_an_input_is_checked_by_its_topic_s_schema(hive: Folded) -> None:
    schema(hive, THUMB)
    configure(hive, {"topics": {"sum": {"request": "thumb@1"}}})
    assert "thumb@1.0" == submit(hive, input='{"width":3}').request.checked
    assert refused_submit(hive, input='{"width":"3"}').startswith("schema: /input/width: ")
    assert refused_submit(hive, input="{}").startswith("schema: /input: ")
    assert refused_submit(hive, input="{").startswith("schema: /input: expected JSON")
    assert refused_submit(hive, input="[" * 9000).startswith("schema: /input: too deep")
    assert refused_submit(hive).startswith("schema: /input: is missing")
    schema(hive, THUMB | {"title": "a thumb"})
    assert "thumb@1.1" == submit(hive, input='{"width":3}').request.checked


def test_a_topic_without_a_schema_takes_no_jobs_where_one_is_asked_for(hive: Folded) -> None:
    configure(hive, {"jobs": {"schema": True}})
    assert refused_submit(hive).startswith("schema: /topic: sum has no schema")


@pytest.mark.parametrize("which", ["request", "result"])
def test_a_schema_that_is_missing_lets_nothing_pass(hive: Folded, which: str) -> None:
    configure(hive, {"topics": {"sum": {which: "thumb@2"}}})
    assert "thumb@2: there is no such schema" in refused_submit(hive, input="{}")
    schema(hive, THUMB)
    assert "thumb@2: there is no such version" in refused_submit(hive, input="{}")


def test_a_schema_that_this_release_cannot_read_lets_nothing_pass(hive: Folded) -> None:
    schema(hive, THUMB)
    record = hive.state.schemas.by_id["thumb"]
    broken = msgspec.structs.replace(record.newest, content="?")
    hive.state.schemas.by_id["thumb"] = msgspec.structs.replace(record, versions={"1.0": broken})
    configure(hive, {"topics": {"sum": {"request": "thumb"}}})
    assert "schema: /input: thumb@1.0: it cannot be read" in refused_submit(hive, input="{}")


def test_a_result_is_checked_and_its_job_goes_on_when_it_is_refused(hive: Folded) -> None:
    schema(hive, THUMB)
    configure(hive, {"topics": {"sum": {"result": "thumb@1"}}})
    job = running(hive, submit(hive))
    line = ctl.line("ack", {"fence": str(job.fence), "result": '{"width":"3"}'})
    assert refused(hive, f"/jobs/{job.id}/ctl", line, W1).startswith("schema: /result/width: ")
    assert refused(hive, f"/jobs/{job.id}/ctl", f"ack fence={job.fence}", W1).startswith("schema: /result: ")
    assert "running" == now(hive, job).state
    # What it was submitted under holds for it, whatever is asked of the next one.
    configure(hive, {"topics": {"sum": {}}})
    assert "schema" in refused(hive, f"/jobs/{job.id}/ctl", line, W1)
    assert "succeeded" == say(hive, job, """ack result='{"width":3}'""").state


def test_an_artifact_that_is_an_input_is_checked_at_the_door() -> None:
    async def story(alive: Living) -> None:
        ann = Door(hive_tree(alive.hive), ANN)
        for name, text in (
            ("good", '{"width":3}'),
            ("bad", BAD),
            ("big", " " * (CHECKED_MAX + 1)),
        ):
            await ann.create("/artifacts/stage", name)
            await ann.write(f"/artifacts/stage/{name}", text)
            await ann.write("/artifacts/ctl", f"seal name={name}")
        plain = await alive.write("/jobs/ctl", "submit topic=sum input=artifact:bad")
        await alive.write("/schemas/ctl", published(THUMB, id="thumb"))
        await alive.write("/config/ctl", published({"topics": {"sum": {"request": "thumb"}}}, scope="system"))
        await ann.write("/jobs/ctl", "submit topic=sum input=artifact:good")
        good = list(alive.state.jobs.by_id)[-1]
        assert good not in plain
        assert "thumb@1.0" == alive.state.jobs.by_id[good].request.checked
        for line, said in (
            ("submit topic=sum input=artifact:bad", "schema: /input/width: "),
            (
                f"submit topic=sum artifact={sha256(BAD.encode()).hexdigest()}",
                "schema: /artifact/width: ",
            ),
            ("submit topic=sum input=artifact:big", "schema: /input: 1048577 bytes, at most"),
        ):
            with pytest.raises(FsError) as caught:
                await ann.write("/jobs/ctl", line)
            assert said in str(caught.value)
        # What was read once is not read again, good or bad: a MiB that is checked holds everybody up.
        for text in ('{"width":3}', BAD):
            await alive.hive.store.shelf.remove(place(BYTES, sha256(text.encode()).hexdigest()))
        await ann.write("/jobs/ctl", "submit topic=sum input=artifact:good")
        with pytest.raises(FsError, match="schema: /input/width: "):
            await ann.write("/jobs/ctl", "submit topic=sum input=artifact:bad")
        # Past the door, nothing is taken on trust.
        with pytest.raises(FsError, match="schema: /artifact: it was not checked by thumb"):
            await alive.write("/jobs/ctl", "submit topic=sum input=artifact:good")

    live(story)


def test_an_artifact_is_checked_when_a_trigger_fires_and_when_a_dead_letter_is_retried() -> None:
    async def story(alive: Living) -> None:
        ann = Door(hive_tree(alive.hive), ANN)
        for name, text in (("good", '{"width":3}'), ("bad", BAD)):
            await ann.create("/artifacts/stage", name)
            await ann.write(f"/artifacts/stage/{name}", text)
            await ann.write("/artifacts/ctl", f"seal name={name}")
            await ann.write(
                "/triggers/ctl", f"create trigger={name} cron='* * * * *' topic=sum input=artifact:{name}"
            )
        await ann.write("/triggers/ctl", "run trigger=bad")
        (old,) = alive.state.jobs.by_id
        await alive.write("/schemas/ctl", published(THUMB, id="thumb"))
        await alive.write("/config/ctl", published({"topics": {"sum": {"request": "thumb"}}}, scope="system"))
        with pytest.raises(FsError, match="schema: /input/width: "):
            await ann.write("/triggers/ctl", "run trigger=bad")
        with pytest.raises(FsError, match="unknown argument"):
            await ann.write("/triggers/ctl", f"run trigger=bad checked='thumb@1.0 {'ab' * 32}'")
        await ann.write("/triggers/ctl", "run trigger=good")
        alive.clock.advance(MINUTE)
        await alive.hive.tick()
        jobs = [job.request for job in alive.state.jobs.by_id.values()]
        assert [("bad", ""), ("good", "thumb@1.0"), ("good", "thumb@1.0")] == [
            (job.trigger, job.checked) for job in jobs
        ]
        assert "error /input/width: " in (await ann.read("/triggers/bad/last")).replace("schema: ", "")
        # What has failed goes through the same door, and stays its trigger's.
        await alive.hive.hear("w1", Heartbeat())
        for job in (old, jobs[1].job):
            await alive.write("/pools/default/next", "lease", who=W1)
            await alive.write(f"/jobs/{job}/ctl", "nack fence=1 error=e", who=W1)
        with pytest.raises(FsError, match="schema: /artifact/width: "):
            await ann.write("/dlq/ctl", f"retry id={old}")
        await alive.write("/schemas/ctl", published(THUMB | {"title": "a thumb"}, id="thumb"))
        await ann.write("/dlq/ctl", f"retry id={jobs[1].job}")
        again = list(alive.state.jobs.by_id.values())[-1].request
        assert ("thumb@1.1", "good", 1, jobs[1].job) == (
            again.checked, again.trigger, again.depth, again.retry_of,
        )  # fmt: skip

    live(story)


def test_a_retry_s_artifact_is_good_by_later_minor_versions_and_by_no_other_major(hive: Folded) -> None:
    digest = "ab" * 32
    hive.write("/artifacts/ctl", f"seal name=f sha256={digest} size=3")
    schema(hive, THUMB)
    configure(hive, {"topics": {"sum": {"request": "thumb"}}})
    vouched = {"artifact": digest, "checked": f"thumb@1.0 {digest}"}
    first, second = submit(hive, **vouched), submit(hive, **vouched)
    for job in (first, second):
        say(hive, running(hive, job), "nack error=e final=true")
    schema(hive, THUMB | {"title": "a thumb"})
    assert (
        "thumb@1.0" == hive.state.jobs.by_id[hive.write("/dlq/ctl", f"retry id={first.id}")].request.checked
    )
    schema(hive, {"type": "string"}, bump="major")
    said = refused(hive, "/dlq/ctl", f"retry id={second.id}")
    assert "schema: /artifact: it was checked by thumb@1.0, not by thumb@2.0" == said
    other = {"artifact": digest, "checked": f"thumb@2.0 {'cd' * 32}"}
    assert "conflict: the artifact was sealed anew meanwhile" == refused_submit(hive, **other)


# budgets


def test_all_attempts_of_a_job_together_have_its_runtime(hive: Folded) -> None:
    job = running(hive, submit(hive, runtime="60s", retries="9"))
    hive.clock.advance(40 * SECOND)
    job = say(hive, job, "nack error=first delay=10s")
    hive.clock.advance(10 * SECOND)
    hive.hive(f"/jobs/{job.id}", "wake")
    job = running(hive, job)
    end_ns = hive.clock.now_ns() + 20 * SECOND + TIMEOUT_GRACE_NS
    assert (end_ns, f"spent fence={job.fence}") == due(job)
    with pytest.raises(Refusal, match="its budget is not used up"):
        hive.hive(f"/jobs/{job.id}", f"spent fence={job.fence}")
    hive.clock.advance(20 * SECOND + TIMEOUT_GRACE_NS)
    hive.hive(f"/jobs/{job.id}", f"spent fence={job.fence}")
    job = now(hive, job)
    assert ("failed", "budget") == (job.state, job.code)
    assert "budget: its attempts ran 60s together, the last error: first" == job.text.replace("1m", "60s")
    assert "budget" == job.attempts[-1].end
    assert "FENCED" in refused_code(hive, job, 2)


def refused_code(hive: Folded, job: Job, fence: int) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(f"/jobs/{job.id}/ctl", f"ack fence={fence}", W1)
    return caught.value.code


def test_a_job_that_has_used_up_its_runtime_is_not_tried_again(hive: Folded) -> None:
    job = running(hive, submit(hive, runtime="10s", retries="9"))
    hive.clock.advance(11 * SECOND)
    job = say(hive, job, "nack error='it was slow'")
    assert ("failed", "budget") == (job.state, job.code)
    assert "it was slow" in job.text
    lost = running(hive, submit(hive, runtime="10s"))
    hive.clock.advance(31 * SECOND)
    hive.hive(f"/jobs/{lost.id}", f"expire fence={lost.fence}")
    assert ("failed", "budget") == (now(hive, lost).state, now(hive, lost).code)


def test_a_worker_that_is_done_within_the_grace_has_done_it(hive: Folded) -> None:
    job = running(hive, submit(hive, runtime="10s"))
    hive.clock.advance(11 * SECOND)
    assert "succeeded" == say(hive, job, "ack").state
