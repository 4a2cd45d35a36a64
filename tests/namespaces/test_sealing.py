"""Outputs that are sealed in the ctl of their job: in the write of its ack, all of it or nothing."""

from __future__ import annotations

from hashlib import sha256

import pytest
from bundles import ANNS, bundle, publish, trust
from door import Door
from hives import ANN, W1, W2, Folded, Living, live
from leasing import lease, submit
from leasing import tell as told

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.tree import hive_tree
from skep.trace.rules import Refusal

ONE = sha256(b"one").hexdigest()


async def held(alive: Living) -> tuple[str, str]:
    """A job that w1 runs, and where it seals what it has staged."""
    job = await alive.submit()
    await alive.write("/pools/default/next", "lease", who=W1)
    await alive.run(job, "start")
    return job, f"/jobs/{job}/ctl"


def fence(alive: Living, job: str) -> int:
    return alive.state.jobs.by_id[job].fence


async def stage(alive: Living, name: str, data: bytes = b"one", who: Caller = W1) -> None:
    chan = await Door(hive_tree(alive.hive), who).create("/artifacts/stage", name)
    await chan.write(0, memoryview(data))
    await chan.clunk()


async def tell(alive: Living, path: str, said: str, who: Caller = W1) -> None:
    await Door(hive_tree(alive.hive), who).write(path, said)


async def refused(alive: Living, path: str, said: str, who: Caller = W1) -> FsError:
    with pytest.raises(FsError) as caught:
        await tell(alive, path, said, who)
    return caught.value


def outputs(alive: Living, job: str) -> dict[str, str]:
    return alive.state.artifacts.outputs.get(job, {})


def ack(fence: int, result: str = "done", digest: str = ONE, name: str = "out") -> str:
    return f"seal fence={fence} name={name} sha256={digest}\nack fence={fence} result={result}\n"


def test_outputs_and_the_end_are_one_entry() -> None:
    async def story(alive: Living) -> None:
        job, path = await held(alive)
        one = fence(alive, job)
        for name, data in (("out", b"one"), ("more", b"two")):
            await stage(alive, f"{job}.{one}.{name}", data)
        before = alive.hive.turn.seq
        await tell(alive, path, f"seal fence={one} name=more\n{ack(one)}")
        assert (before + 1, "succeeded") == (alive.hive.turn.seq, alive.job_state(job))
        ann = Door(hive_tree(alive.hive), ANN)
        two = sha256(b"two").hexdigest()
        assert f"more sha256:{two}\nout sha256:{ONE}\n" == await ann.read(f"/jobs/{job}/artifacts")
        assert "one" == await ann.read(f"/artifacts/{ONE}/data")
        assert [] == await Door(hive_tree(alive.hive), W1).names("/artifacts/stage")

    live(story)


def test_where_the_end_is_refused_nothing_is_sealed_and_it_can_be_said_again() -> None:
    async def story(alive: Living) -> None:
        job, path = await held(alive)
        one = fence(alive, job)
        await stage(alive, f"{job}.{one}.out")
        assert E.TOOBIG is (await refused(alive, path, ack(one, "x" * 17000))).kind
        assert ({}, "running") == (outputs(alive, job), alive.job_state(job))
        await tell(alive, path, ack(one))
        assert {"out": ONE} == outputs(alive, job)

    live(story)


def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    async def story(alive: Living) -> None:
        job, path = await held(alive)
        one = fence(alive, job)
        await stage(alive, f"{job}.{one}.out")
        await tell(alive, path, ack(one))
        record = alive.state.jobs.by_id[job]
        await tell(alive, path, ack(one))
        assert (record, {"out": ONE}) == (alive.state.jobs.by_id[job], outputs(alive, job))
        # What it never said is no answer that was lost.
        other = sha256(b"two").hexdigest()
        assert E.USAGE is (await refused(alive, path, ack(one, digest=other))).kind
        await stage(alive, f"{job}.{one}.out", b"two")
        assert E.ILLEGAL_MOVE is (await refused(alive, path, ack(one, digest=other))).kind

    live(story)


def test_only_the_holder_seals_and_only_by_its_fence() -> None:
    async def story(alive: Living) -> None:
        job, path = await held(alive)
        one = fence(alive, job)
        for who in (W1, W2, ANN):
            await stage(alive, f"{job}.{one}.out", who=who)
            await stage(alive, f"{job}.{one + 1}.out", who=who)
        assert E.FENCED is (await refused(alive, path, ack(one + 1))).kind
        assert {E.DENIED, E.MISSING} >= {
            (await refused(alive, path, ack(one), who)).kind for who in (W2, ANN)
        }
        assert E.TAMPER is (await refused(alive, path, ack(one, digest="ab" * 32))).kind
        await alive.run(job, "release")
        # Who gave it back has nothing to seal any more.
        await refused(alive, path, ack(one))
        assert ({}, "queued") == (outputs(alive, job), alive.job_state(job))

    live(story)


def test_jobs_of_a_node_stage_the_same_name_at_a_time() -> None:
    async def story(alive: Living) -> None:
        jobs = [await held(alive) for _ in range(2)]
        for data, (job, _) in zip((b"one", b"two"), jobs, strict=True):
            await stage(alive, f"{job}.{fence(alive, job)}.out", data)
        for data, (job, path) in zip((b"one", b"two"), jobs, strict=True):
            await tell(alive, path, ack(fence(alive, job), digest=sha256(data).hexdigest()))
            assert {"out": sha256(data).hexdigest()} == outputs(alive, job)

    live(story)


def test_a_policy_about_seals_is_one_about_these() -> None:
    hive = Folded()
    hive.write("/policy/ctl", trust("anns", ANNS))
    rule = """@id("no") forbid (principal, action == Skep::Action::"artifacts.seal", resource)
        when { context.args has job && context.args.size > 3 };"""
    hive.write("/policy/ctl", publish("mine", bundle(rule)))
    job = submit(hive)
    lease(hive)
    told(hive, job, "start")
    said = f"seal fence={hive.state.jobs.by_id[job].fence} name=out sha256={ONE}"
    with pytest.raises(Refusal, match="DENIED"):
        hive.write(f"/jobs/{job}/ctl", f"{said} size=4", W1)
    assert f"sha256:{ONE}" == hive.write(f"/jobs/{job}/ctl", f"{said} size=3", W1)
    assert {"out": ONE} == hive.state.artifacts.outputs[job]
