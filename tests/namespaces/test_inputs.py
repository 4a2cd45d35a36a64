"""Artifacts that go into a job besides its input, each under a name: which, for whom, for how long."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from door import Door, say
from hives import ANN, BOB, W1, W2, Folded, Living, live
from leasing import lease, refused, submit, tell
from test_stored import same

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.namespaces.checked import vouched_line
from skep.namespaces.jobs.inputs import INPUTS_MAX
from skep.namespaces.jobs.letters import with_request
from skep.namespaces.jobs.past import HISTORY_NS
from skep.namespaces.stored import pack_state, unpack_state
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR
from skep.trace.entry import canonical

A, B, C = "ab" * 32, "cd" * 32, "ef" * 32


@pytest.fixture
def hive() -> Folded:
    """A hive whose operator has sealed two artifacts."""
    hive = Folded()
    seal(hive, "x.npy", A)
    seal(hive, "y.npy", B)
    return hive


def seal(hive: Folded, name: str, digest: str, kind: str = "short") -> None:
    hive.write("/artifacts/ctl", f"seal name={name} sha256={digest} size=3 class={kind}")


def inputs(hive: Folded, job: str) -> dict[str, str]:
    return hive.state.jobs.by_id[job].request.inputs


def expire(hive: Folded) -> set[str]:
    """The artifacts that are there once those are gone whose time is over."""
    hive._write("hive", "hive", ANN.tenant, "/artifacts/ctl", "expire")
    return set(hive.state.artifacts.by_hash.get(ANN.tenant, ()))


# which


def test_names_are_resolved_when_the_job_is_submitted(hive: Folded) -> None:
    job = submit(hive, f"inputs=b:y.npy,a:x.npy,c:sha256:{B} input=x key=k")
    assert [("a", A), ("b", B), ("c", B)] == list(inputs(hive, job).items())
    seal(hive, "x.npy", C)
    assert {"a": A, "b": B, "c": B} == inputs(hive, job)
    assert {"a": C} == inputs(hive, submit(hive, "inputs=a:x.npy"))


def test_the_same_inputs_are_the_same_request_however_they_are_spelled(hive: Folded) -> None:
    job = submit(hive, f"key=k inputs=a:x.npy,b:{B}")
    assert job == submit(hive, f"key=k inputs=b:sha256:{B},a:x.npy")
    said = ctl.line("submit", {"topic": "sum", "key": "k", "inputs": f'{{"b":"{B}","a":"x.npy"}}'})
    assert job == hive.write("/jobs/ctl", said)
    assert refused(hive, "/jobs/ctl", "submit topic=sum key=k inputs=a:x.npy").startswith("IDEMPOTENCY")
    assert refused(hive, "/jobs/ctl", f"submit topic=sum key=k inputs=a:y.npy,b:{B}").startswith("IDEM")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("a:z.npy", "USAGE: usage: submit: inputs=a:z.npy: no artifact was sealed under that name"),
        (f"a:{C}", f"USAGE: usage: submit: inputs=a:{C}: no artifact of that hash was sealed"),
        ("a:x.npy,a:y.npy", "USAGE: usage: line 1: submit: inputs=a:x.npy,a:y.npy: expected artifacts by"),
        ("x.npy", "USAGE: usage: line 1: submit: inputs=x.npy: expected artifacts by"),
        ("a:", "USAGE: usage: line 1: submit: inputs=a:: expected artifacts by"),
        ("../a:x.npy", "USAGE: usage: line 1: submit: inputs=../a:x.npy: expected artifacts by"),
        ("''", "USAGE: usage: line 1: submit: inputs='': expected artifacts by"),
        (
            ",".join(f"a{n}:x.npy" for n in range(INPUTS_MAX + 1)),
            "USAGE: usage: submit: inputs=: expected 16 or fewer, not 17",
        ),
    ],
)
def test_what_is_wrong_with_them_is_told(hive: Folded, said: str, why: str) -> None:
    assert why == refused(hive, "/jobs/ctl", f"submit topic=sum inputs={said}")[: len(why)]


def test_another_tenants_artifacts_are_nobodys(hive: Folded) -> None:
    for said in ("a:x.npy", f"a:{A}"):
        line = f"submit topic=sum inputs={said}"
        assert refused(hive, "/jobs/ctl", line, BOB).startswith(
            f"USAGE: usage: submit: inputs={said}: no artif"
        )


def test_a_trigger_has_their_names_resolved_as_it_fires_and_keeps_those_that_are_hashes(hive: Folded) -> None:
    hive.write("/triggers/ctl", f"create trigger=t on=job.ended topic=sum inputs=a:x.npy,b:{B}")
    hive.clock.advance(48 * HOUR)
    assert {B} == expire(hive)
    seal(hive, "x.npy", C)
    assert {"a": C, "b": B} == inputs(hive, hive.write("/triggers/ctl", "run trigger=t"))


# for how long


def test_they_stay_until_the_job_has_ended(hive: Folded) -> None:
    job = submit(hive, "inputs=a:x.npy,b:y.npy")
    hive.clock.advance(48 * HOUR)
    assert {A, B} == expire(hive)
    for digest in (A, B):
        assert refused(hive, "/artifacts/ctl", f"remove sha256={digest}").startswith("BUSY")
    lease(hive)
    for verb in ("start", "ack"):
        tell(hive, job, verb)
    assert set() == expire(hive)


def test_a_retry_of_a_dead_letter_has_them_also_when_it_has_left_memory(hive: Folded) -> None:
    first = submit(hive, "inputs=a:x.npy,b:y.npy artifact=" + B)
    lease(hive)
    tell(hive, first, "nack error=e")
    second = hive.write("/dlq/ctl", f"retry id={first}")
    assert {"a": A, "b": B} == inputs(hive, second)
    lease(hive)
    tell(hive, second, "nack error=e")
    request = hive.state.jobs.by_id[second].request
    hive.clock.advance(HISTORY_NS + 48 * HOUR)
    submit(hive)
    assert second not in hive.state.jobs.by_id
    # What no other job needs, stays.
    assert {A, B} == expire(hive)
    (command,) = ctl.parse(f"retry id={second}\n".encode())
    forged = msgspec.structs.replace(request, inputs={"a": B})
    line = vouched_line(command, with_request(forged))
    assert refused(hive, "/dlq/ctl", line).startswith("MISSING")
    third = hive.write("/dlq/ctl", vouched_line(command, with_request(request)))
    assert ({"a": A, "b": B}, B) == (inputs(hive, third), hive.state.jobs.by_id[third].request.artifact)
    hive.write("/jobs/ctl", f"cancel job={third}")
    assert set() == expire(hive)


def test_a_state_with_them_comes_back_from_its_bytes_and_goes_on(hive: Folded) -> None:
    failed, waiting = submit(hive, "inputs=a:x.npy,b:y.npy priority=9"), submit(hive, "inputs=a:x.npy")
    lease(hive)
    tell(hive, failed, "nack error=e")
    hive.clock.advance(HISTORY_NS)
    submit(hive)
    assert failed not in hive.state.jobs.by_id
    back = unpack_state(pack_state(hive.state))
    same(hive.state, back)
    hive.state = back
    assert {A, B} == hive.state.artifacts_used(ANN.tenant)
    assert waiting == lease(hive)
    assert [(ANN.tenant, A)] == hive.state.artifacts_held("w1")


def test_a_request_without_them_is_written_as_ever(hive: Folded) -> None:
    assert b"inputs" not in canonical(hive.state.jobs.by_id[submit(hive)].request)


# for whom


def test_who_holds_the_job_is_told_of_them_and_reads_them_and_nobody_else() -> None:
    async def story(alive: Living) -> None:
        ann, w1, w2 = (Door(hive_tree(alive.hive), who) for who in (ANN, W1, W2))
        one, two = (sha256(text.encode()).hexdigest() for text in ("one", "four"))
        for text in ("one", "four"):
            chan = await ann.create("/artifacts/stage", text)
            await say(chan, text)
            await chan.clunk()
            await ann.write("/artifacts/ctl", f"seal name={text}\n")
        job = await alive.submit(f"inputs=a:one,b:{two},c:one input=x")
        request = msgspec.json.decode(await ann.read(f"/jobs/{job}/request.json"))
        shown = {"a": f"sha256:{one}", "b": f"sha256:{two}", "c": f"sha256:{one}"}
        assert (shown, "x") == (request["inputs"], request["input"])
        for door in (w1, w2):
            with pytest.raises(FsError, match="file does not exist"):
                await door.read(f"/artifacts/{one}/data")
        said = msgspec.json.decode(await w1.read("/pools/default/next"))
        given = {"sha256": one, "size": 3}
        assert {"a": given, "b": {"sha256": two, "size": 4}, "c": given} == said["inputs"]
        assert ["one", "four"] == [await w1.read(f"/artifacts/{each}/data") for each in (one, two)]
        with pytest.raises(FsError, match="file does not exist"):
            await w2.read(f"/artifacts/{one}/data")
        await alive.run(job, "start")
        await alive.run(job, "ack")
        with pytest.raises(FsError, match="file does not exist"):
            await w1.read(f"/artifacts/{one}/data")

    live(story)
