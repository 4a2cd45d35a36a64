from __future__ import annotations

from typing import Any

import msgspec
import pytest
from door import Door
from hives import ANN, BOB, W1, W2, Folded, Living, live

from skep.fs import ctl
from skep.fs.node import Caller
from skep.namespaces.alerts import Alerted
from skep.namespaces.jobs import adoption, record
from skep.namespaces.jobs.due import due
from skep.namespaces.jobs.letters import with_request
from skep.namespaces.jobs.record import Job
from skep.namespaces.lease import lease_line
from skep.namespaces.live import LOST_NS, START_GRACE_NS, Heartbeat
from skep.namespaces.pools.core import PATIENCE_NS
from skep.namespaces.stored import pack_state, unpack_state
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, SECOND
from skep.trace.digest import digest
from skep.trace.entry import Entry, Line, entry_decoder
from skep.trace.rules import Refusal
from skep.validator.replay.replay import Replay
from tests.validator.recorded import HIVE, Recorder

G1 = Caller("unix:gpu", "cuda-annex", node="g1")
POOLS = ("create pool=gpu-cpu", "create pool=gpu requires=gpu fallback=gpu-cpu", "map topic=fast pool=gpu")
OFFER = "offer labels={} capacity=4"


@pytest.fixture
def hive() -> Folded:
    """A hive with a pool that falls back, and the annex g1, which has a GPU of the kind h100."""
    hive = Folded()
    for line in POOLS:
        hive.write("/pools/ctl", line)
    hive.hive("/nodes/g1", "join principal=unix:gpu role=cuda-annex")
    hive.hive("/nodes/g1", OFFER.format('\'{"gpu":"h100","annex":"g1"}\''))
    return hive


def submit(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    return hive.write("/jobs/ctl", f"submit topic=fast {more}", who)


def held(hive: Folded, more: str = "") -> str:
    """A job that g1 holds."""
    job = submit(hive, more)
    assert job == hive.write("/pools/gpu/next", "lease", G1)
    return job


def told(hive: Folded, job: str, line: str, who: Caller = G1) -> str:
    return hive.write(f"/jobs/{job}/ctl", line, who)


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.hive(path, line) if who is HIVE else hive.write(path, line, who)
    return caught.value.text


def job_of(hive: Folded, job: str) -> Job:
    return hive.state.jobs.by_id[job]


def decided(hive: Folded, path: str, line: str, who: Caller = HIVE) -> tuple[Any, ...]:
    """What would follow from a line."""
    actor = who.principal + (f"#{who.node}" if who.node else "")
    tenant = "" if who is HIVE else who.tenant
    written = Line(actor, who.role, tenant, path, (line,), hive.clock.now_ns(), hive.clock.new_id())
    return hive.rules.decide(hive.state, written, 0).events


# by its holder


def test_a_job_that_its_holder_cannot_do_waits_in_the_other_pool_at_once(hive: Folded) -> None:
    job = held(hive, "requires=gpu:h100,annex")
    told(hive, job, "start fence=1")
    hive.clock.advance(SECOND)
    told(hive, job, "fallback fence=1 reason=oom error='4 GiB asked'")
    of, now_ns = job_of(hive, job), hive.clock.now_ns()
    assert ("queued", "gpu-cpu", (), 1, "") == (
        of.state, of.request.pool, of.request.requires, of.fence, of.node,
    )  # fmt: skip
    text = "the device had not enough memory (annex=g1): 4 GiB asked"
    assert (record.Fallback("oom", "g1", now_ns, "gpu", text, ("annex", "gpu:h100")),) == of.fallbacks
    assert (["fallback"], text, now_ns) == ([each.end for each in of.attempts], of.text, of.queued_ns)
    jobs = hive.state.jobs
    assert ([], [job]) == (jobs.waiting("gpu"), jobs.waiting("gpu-cpu"))
    assert (0, 0, {}) == (
        jobs.queues.count_held("gpu"),
        jobs.queues.count_held("gpu-cpu"),
        jobs.queues.by_node,
    )
    used = jobs.usage.of(ANN.tenant)
    assert (1, 0, SECOND) == (used.waiting, used.held, used.ran_ns)
    assert job == hive.write("/pools/gpu-cpu/next", "lease", W1)
    told(hive, job, "start fence=2 device=cpu", W1)
    told(hive, job, "ack fence=2 result=3", W1)
    assert ("succeeded", ["fallback", "acked"]) == (
        hive.job_state(job), [each.end for each in job_of(hive, job).attempts],
    )  # fmt: skip
    assert ["", "cpu"] == [each.device for each in job_of(hive, job).attempts]


def test_what_has_nothing_to_do_with_devices_is_required_still(hive: Folded) -> None:
    hive.hive("/nodes/w1", OFFER.format('\'{"zone":"eu"}\''))
    hive.hive("/nodes/g1", OFFER.format('\'{"gpu":"h100","zone":"eu"}\''))
    job = held(hive, "requires=gpu,zone:eu")
    told(hive, job, "fallback fence=1 reason=kernel_failed")
    assert ("zone:eu",) == job_of(hive, job).request.requires
    assert "no job waiting that node=w2 can have" in refused(hive, "/pools/gpu-cpu/next", "lease", W2)
    assert job == hive.write("/pools/gpu-cpu/next", "lease", W1)


def test_a_fallback_that_is_said_again_is_the_same(hive: Folded) -> None:
    job, late = held(hive), held(hive, "fallback=refuse")
    for of in (job, late):
        told(hive, of, "fallback fence=1 reason=oom")
        before = job_of(hive, of)
        told(hive, of, "fallback fence=1 reason=oom")
        assert before is job_of(hive, of)
    hive.write("/pools/gpu-cpu/next", "lease", W1)
    assert "token=1 newest=2" in refused(hive, f"/jobs/{job}/ctl", "fallback fence=1 reason=oom", G1)
    assert "token=1 newest=2" in refused(hive, f"/jobs/{job}/ctl", "ack fence=1", G1)


def test_a_job_that_may_not_fall_back_fails_with_the_reason_and_an_alert(hive: Folded) -> None:
    job = held(hive, "fallback=refuse")
    error = "kernel_failed: the kernel failed (annex=g1): illegal address; fallback=refuse"
    line = "fallback fence=1 reason=kernel_failed error='illegal address'"
    events = decided(hive, f"/jobs/{job}/ctl", line, G1)
    assert Alerted("job", job, ANN.tenant, "kernel_failed", error) == events[-1]
    told(hive, job, line)
    of = job_of(hive, job)
    assert ("failed", "kernel_failed", error) == (of.state, of.code, of.text)
    assert job in hive.state.jobs.dead[ANN.tenant]


def test_a_job_that_fails_where_it_fell_back_to_raises_an_alert_too(hive: Folded) -> None:
    job = held(hive)
    told(hive, job, "fallback fence=1 reason=oom")
    assert job == hive.write("/pools/gpu-cpu/next", "lease", W1)
    line = f"nack fence={job_of(hive, job).fence} error=broken code=odd final=true"
    _, alert = decided(hive, f"/jobs/{job}/ctl", line, W1)
    assert ("job", job, "odd", "broken") == (alert.about, alert.id, alert.reason, alert.text)
    # One that never fell back fails as jobs do.
    other = held(hive)
    ended = decided(hive, f"/jobs/{other}/ctl", "nack fence=1 error=broken final=true", G1)
    assert ["failed"] == [event.state for event in ended]


def test_a_job_falls_back_once(hive: Folded) -> None:
    job = held(hive)
    told(hive, job, "fallback fence=1 reason=oom")
    hive.write("/pools/gpu-cpu/next", "lease", W1)
    told(hive, job, "fallback fence=2 reason=kernel_failed", W1)
    of = job_of(hive, job)
    assert ("failed", "kernel_failed") == (of.state, of.code)
    assert of.text.endswith("; pool=gpu-cpu has no fallback")


def test_a_fallback_gives_a_job_no_more_time_than_it_has(hive: Folded) -> None:
    job = held(hive, "runtime=10s")
    told(hive, job, "start fence=1")
    hive.clock.advance(10 * SECOND)
    told(hive, job, "fallback fence=1 reason=oom")
    assert ("failed", "budget") == (hive.job_state(job), job_of(hive, job).code)


# where it starts


def test_a_start_on_a_cpu_is_written_down_as_a_fallback(hive: Folded) -> None:
    job = held(hive)
    hive.hive("/gpu/g1", offered("cpu:0", "cpu"))
    told(hive, job, "start fence=1 device=cpu:0 memory=1024 slots=1")
    of = job_of(hive, job)
    assert ("running", "gpu", "cpu:0") == (of.state, of.request.pool, of.attempts[-1].device)
    assert [("no_device", "g1", True)] == [(each.reason, each.annex, each.in_place) for each in of.fallbacks]
    told(hive, job, "fallback fence=1 reason=kernel_failed")
    assert "gpu-cpu" == job_of(hive, job).request.pool
    assert ["no_device", "kernel_failed"] == [each.reason for each in job_of(hive, job).fallbacks]


def test_a_start_on_a_cpu_is_refused_where_that_is_no_answer(hive: Folded) -> None:
    job = held(hive, "fallback=refuse")
    assert "fallback=refuse" in refused(hive, f"/jobs/{job}/ctl", "start fence=1 device=cpu:0", G1)
    assert "leased" == hive.job_state(job)


def test_an_annex_says_on_which_device_it_runs_what_it_says_it_has_done(hive: Folded) -> None:
    job = held(hive, "requires=annex")
    told(hive, job, "start fence=1")
    assert "was not said: expected start device=" in refused(hive, f"/jobs/{job}/ctl", "ack fence=1", G1)
    told(hive, job, "nack fence=1 error=wrong final=true")
    assert "failed" == job_of(hive, job).state


def test_a_start_on_a_gpu_is_no_fallback(hive: Folded) -> None:
    job = held(hive, "fallback=refuse")
    hive.hive("/gpu/g1", offered("cuda:0", "cuda"))
    told(hive, job, "start fence=1 device=cuda:0 memory=1024 slots=1")
    assert ((), "cuda:0") == (job_of(hive, job).fallbacks, job_of(hive, job).attempts[-1].device)


def test_a_device_is_called_as_annexes_call_theirs(hive: Folded) -> None:
    job = held(hive)
    assert "device=tpu: expected" in refused(hive, f"/jobs/{job}/ctl", "start fence=1 device=tpu", G1)


def offered(device: str, kind: str) -> str:
    card = {"id": device, "kind": kind, "name": "a card", "memory": 1 << 30, "slots": 4}
    return ctl.line("offer", {"devices": msgspec.json.encode([card]).decode(), "every": "30s"})


# when nobody is there


def why(hive: Folded) -> tuple[str, str]:
    return hive.state.why_no_annex("gpu", ANN.tenant)


def test_why_nobody_is_there_is_what_was_there_last(hive: Folded) -> None:
    assert ("", "") == why(hive)
    hive.hive("/nodes/g1", "suspect")
    assert ("annex_lost", "g1") == why(hive)
    hive.hive("/nodes/g1", "lost")
    assert ("annex_lost", "g1") == why(hive)
    hive.hive("/nodes/g1", "back")
    assert ("", "") == why(hive)
    hive.write("/nodes/ctl", "cordon node=g1")
    assert ("disabled", "g1") == why(hive)
    hive.write("/nodes/ctl", "uncordon node=g1")
    hive.hive("/gpu/g1", offered("cuda:0", "cuda"))
    hive.write("/gpu/g1/ctl", "disable reason=drill")
    assert ("disabled", "g1") == why(hive)
    hive.write("/gpu/g1/ctl", "enable")
    assert ("no_device", "g1") == hive.state.why_no_annex("gpu", ANN.tenant, ("gpu:a100",))
    assert ("no_device", "") == hive.state.why_no_annex("gpu", ANN.tenant, ("annex:g9",))
    hive.hive("/nodes/g1", "leave")
    hive.write("/nodes/ctl", "remove node=g1")
    assert ("no_device", "") == why(hive)


def test_an_annex_of_another_tenant_is_none(hive: Folded) -> None:
    hive.hive("/nodes/g2", f"join principal=unix:gpu2 role=cuda-annex tenant={BOB.tenant}")
    hive.hive("/nodes/g2", OFFER.format('\'{"gpu":"a100"}\''))
    assert ("no_device", "g1") == hive.state.why_no_annex("gpu", ANN.tenant, ("gpu:a100",))
    assert ("", "") == hive.state.why_no_annex("gpu", BOB.tenant, ("gpu:a100",))


def test_a_job_that_waits_for_what_is_lost_falls_back_at_once_and_for_that_alone(hive: Folded) -> None:
    job = submit(hive)
    assert "annex_lost is not so" in refused(
        hive, f"/jobs/{job}", "fallback reason=annex_lost annex=g1", HIVE
    )
    hive.hive("/nodes/g1", "lost")
    assert "its patience is not over" in refused(hive, f"/jobs/{job}", "fallback reason=full", HIVE)
    hive.hive(f"/jobs/{job}", "fallback reason=annex_lost annex=g1")
    of = job_of(hive, job)
    assert ("queued", "gpu-cpu", 0, ()) == (of.state, of.request.pool, of.fence, of.attempts)
    assert "nowhere to fall back to" in refused(hive, f"/jobs/{job}", "fallback reason=annex_lost", HIVE)


def test_a_job_that_refuses_waits_as_long_as_it_is_patient_and_fails(hive: Folded) -> None:
    job = submit(hive, "fallback=refuse patience=50s")
    hive.hive("/nodes/g1", "lost")
    hive.clock.advance(50 * SECOND - 1)
    assert "is not over" in refused(hive, f"/jobs/{job}", "fallback reason=annex_lost annex=g1", HIVE)
    hive.clock.advance(1)
    hive.hive(f"/jobs/{job}", "fallback reason=annex_lost annex=g1")
    of = job_of(hive, job)
    error = "annex_lost: the annex is not heard (annex=g1); fallback=refuse"
    assert ("failed", "annex_lost", error) == (of.state, of.code, of.text)


def test_patience_begins_anew_after_a_lease_that_was_lost(hive: Folded) -> None:
    job = held(hive)
    began_ns = hive.clock.now_ns()
    hive.clock.advance(30 * SECOND)
    hive.hive(f"/jobs/{job}", "expire fence=1")
    assert began_ns == job_of(hive, job).queued_ns
    found = due(job_of(hive, job))
    assert (hive.clock.now_ns() + PATIENCE_NS, "fallback reason=full") == found
    hive.clock.advance(PATIENCE_NS)
    hive.hive(f"/jobs/{job}", "fallback reason=full")
    assert "the device was not free within its patience of 30s" == job_of(hive, job).text
    assert due(job_of(hive, job)) is None


def test_a_lease_that_is_held_falls_back_by_its_fence_alone(hive: Folded) -> None:
    job = held(hive)
    assert "it is leased" in refused(hive, f"/jobs/{job}", "fallback reason=disabled", HIVE)
    hive.hive(f"/jobs/{job}", "fallback reason=disabled annex=g1 fence=1")
    assert ("queued", 2) == (hive.job_state(job), job_of(hive, job).fence)
    assert "token=1 newest=2" in refused(hive, f"/jobs/{job}/ctl", "ack fence=1", G1)


def test_a_pool_without_a_fallback_waits_for_ever(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum patience=1s fallback=refuse")
    of = job_of(hive, job)
    assert (0, "refuse", None) == (of.request.patience_ns, of.request.fallback, due(of))
    assert "nowhere to fall back" in refused(hive, f"/jobs/{job}", "fallback reason=full", HIVE)


def test_a_pool_names_a_pool_that_is_there_and_ends_the_way(hive: Folded) -> None:
    for line, said in {
        "create pool=a fallback=b": "pool=b: there is no such pool",
        "create pool=a fallback=a": "pool=a: there is no such pool",
        "create pool=a fallback=gpu": "fallback=gpu: expected a pool that has none itself",
        "create pool=a patience=1s": "expected fallback= with it",
        "create pool=a fallback=gpu-cpu patience=0s": "patience=0s: expected",
    }.items():
        assert said in refused(hive, "/pools/ctl", line)
    hive.write("/pools/ctl", "create pool=a fallback=gpu-cpu patience=5s")
    assert ("gpu-cpu", 5 * SECOND) == hive.state.fallback_of("a")


def test_a_device_that_no_node_has_is_no_reason_to_refuse_a_job_that_falls_back(hive: Folded) -> None:
    job = submit(hive, "requires=gpu:b200")
    assert ("no_device", "g1") == hive.state.why_no_annex(
        "gpu", ANN.tenant, job_of(hive, job).request.requires
    )
    assert "pool=gpu requires=" in refused(hive, "/jobs/ctl", "submit topic=fast requires=gpu,zone:mars")


# what is said of it elsewhere


def test_a_retry_goes_to_the_first_pool_again(hive: Folded) -> None:
    job = submit(hive, "requires=gpu:h100 patience=7s")
    hive.hive("/nodes/g1", "lost")
    hive.hive(f"/jobs/{job}", "fallback reason=annex_lost annex=g1")
    hive.write("/pools/gpu-cpu/next", "lease", W1)
    told(hive, job, "nack fence=1 error=x final=true", W1)
    hive.clock.advance(HOUR + SECOND)
    asked = job_of(hive, job).asked
    submit(hive)
    assert job not in hive.state.jobs.by_id
    again = hive.write("/dlq/ctl", ctl.line("retry", {"id": job} | with_request(asked)))
    request = job_of(hive, again).request
    assert ("gpu", ("gpu:h100",), "allow", 7 * SECOND) == (
        request.pool, request.requires, request.fallback, request.patience_ns,
    )  # fmt: skip


def test_a_sheet_has_the_job_as_it_was_submitted(hive: Folded) -> None:
    job = submit(hive, "requires=gpu:h100")
    before = adoption.arguments(job_of(hive, job), False)
    hive.hive("/nodes/g1", "lost")
    hive.hive(f"/jobs/{job}", "fallback reason=annex_lost annex=g1")
    assert before == adoption.arguments(job_of(hive, job), False)
    assert ("gpu", "30s") == (before["pool"], before["patience"])


def test_a_ledger_with_fallbacks_is_decided_again_also_from_a_snapshot() -> None:
    hive = Recorder()
    hive.write("/pools/ctl", *POOLS)
    moved, kept = (hive.write("/jobs/ctl", f"submit topic=fast {more}") for more in ("", "fallback=refuse"))
    assert "NODATA" == hive.write(f"/jobs/{moved}", "fallback reason=full", who=HIVE)
    assert moved == hive.write(f"/jobs/{moved}", "fallback reason=no_device", who=HIVE)
    assert moved == hive.write("/pools/gpu-cpu/next", "lease", who=W1)
    assert moved == hive.tell(moved, "start device=cpu", "fallback reason=oom")
    hive.clock.advance(PATIENCE_NS)
    assert kept == hive.write(f"/jobs/{kept}", "fallback reason=no_device", who=HIVE)
    replay = Replay()
    for seq, body in enumerate(hive.bodies, 1):
        replay.state = unpack_state(pack_state(replay.state))
        assert replay.judge(replay.decode(seq, body), body) is None
    assert digest(hive.state) == digest(replay.state)


# the living hive


async def annexed(alive: Living) -> None:
    await alive.write("/pools/ctl", *POOLS)
    await alive.hive.join(G1)
    await alive.hive.hear("g1", Heartbeat(labels={"gpu": "h100"}, capacity=4))


async def passed(alive: Living, ns: int) -> None:
    """Time has passed, and everybody but g1 was heard."""
    alive.clock.advance(ns)
    for node in ("w1", "w2"):
        await alive.hive.hear(node, Heartbeat())
    await alive.hive.tick()


def entries(alive: Living) -> list[Entry[dict[str, Any]]]:
    decoder = entry_decoder(dict[str, Any])
    found, seq = [], 0
    while read := alive.hive.turn.read(seq):
        found += [decoder.decode(body) for _, body in read]
        seq = read[-1][0]
    return found


@pytest.mark.slow
def test_a_thousand_jobs_of_an_annex_that_is_lost_move_within_two_ticks() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        jobs = []
        for _ in range(10):
            jobs += await alive.write("/jobs/ctl", *["submit topic=fast patience=1h"] * 100)
        never = (await alive.write("/jobs/ctl", "submit topic=fast fallback=refuse patience=2h"))[0]
        await alive.hive.tick()
        assert 1001 == alive.state.count_waiting("gpu")
        await passed(alive, LOST_NS + SECOND)
        await passed(alive, SECOND // 2)
        await passed(alive, SECOND // 2)
        assert (1, 1000) == (alive.state.count_waiting("gpu"), alive.state.count_waiting("gpu-cpu"))
        assert {("annex_lost", "g1")} == {
            (each.reason, each.annex) for job in jobs for each in alive.state.jobs.by_id[job].fallbacks
        }
        assert jobs == alive.state.jobs.waiting("gpu-cpu")
        assert "queued" == alive.job_state(never)
        await passed(alive, 2 * HOUR)
        assert ("failed", "annex_lost") == (alive.job_state(never), alive.state.jobs.by_id[never].code)
        # No line of these was refused, and each job has one entry that moved it.
        last = [each for entry in entries(alive) for each in entry.events if each["type"] == "alert.raised"]
        assert [(never, "annex_lost")] == [
            (each["id"], each["reason"]) for each in last if each["about"] == "job"
        ]
        assert ["ok"] == list({entry.outcome.code for entry in entries(alive)})

    live(story)


def test_an_alert_is_seen_by_its_own_tenant_and_fires_triggers() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        await alive.write("/triggers/ctl", "create trigger=t on=alert.raised topic=sum input=event")
        job = (await alive.write("/jobs/ctl", "submit topic=fast fallback=refuse"))[0]
        await alive.hive.take(G1, "gpu")
        await alive.run(job, "fallback reason=oom", G1)
        while not (fired := alive.state.jobs.waiting("default")):
            await alive.hive.turn.wait_past(alive.hive.turn.seq)
        request = alive.state.jobs.by_id[fired[0]].request
        said = msgspec.json.decode(request.input or "")
        assert ("alert.raised", job, "oom", 1) == (said["type"], said["id"], said["reason"], request.depth)
        for who, seen in ((ANN, 1), (BOB, 0), (W1, 0)):
            events = await Door(hive_tree(alive.hive), who).read("/events")
            assert seen == events.count('"type":"alert.raised"')

    live(story)


def test_jobs_that_nobody_takes_where_they_fell_back_to_raise_one_alert_until_somebody_does() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        first, second = await alive.write("/jobs/ctl", "submit topic=fast", "submit topic=fast")
        await passed(alive, LOST_NS + SECOND)
        assert 2 == alive.state.count_waiting("gpu-cpu")
        await passed(alive, SECOND)
        assert [] == alerts(alive, "pool")
        for _ in range(3):
            await passed(alive, PATIENCE_NS)
        assert [("gpu-cpu", "no_worker")] == alerts(alive, "pool")
        assert first == (await alive.hive.take(W1, "gpu-cpu")).id
        await alive.run(first, f"release fence={alive.state.jobs.by_id[first].fence}", W1)
        assert {"queued"} == {alive.job_state(first), alive.job_state(second)}
        for _ in range(3):
            await passed(alive, PATIENCE_NS)
        assert 2 == len(alerts(alive, "pool"))
        await alive.hive.command(ANN, "/ctl", ["drain"])
        assert not alive.state.is_stuck("gpu-cpu")

    live(story)


def alerts(alive: Living, about: str) -> list[tuple[str, str]]:
    raised = [each for entry in entries(alive) for each in entry.events if each["type"] == "alert.raised"]
    return [(each["id"], each["reason"]) for each in raised if each["about"] == about]


def test_what_waits_longer_than_its_patience_falls_back_when_its_time_has_come() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        alive.clock.advance(START_GRACE_NS)
        await alive.write("/nodes/ctl", "cordon node=w1")
        job = (await alive.write("/jobs/ctl", "submit topic=fast patience=5s deadline=1h"))[0]
        alive.clock.advance(5 * SECOND - 1)
        await alive.hive.tick()
        assert "gpu" == alive.state.jobs.by_id[job].request.pool
        await alive.hive.command(ANN, "/ctl", ["drain"])
        alive.clock.advance(1)
        await alive.hive.tick()
        assert "gpu" == alive.state.jobs.by_id[job].request.pool
        await alive.hive.command(ANN, "/ctl", ["resume"])
        alive.clock.advance(SECOND)
        await alive.hive.tick()
        of = alive.state.jobs.by_id[job]
        assert ("gpu-cpu", "full") == (of.request.pool, of.fallbacks[0].reason)

    live(story)


def test_a_deadline_comes_also_for_what_cannot_fall_back_now() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        job = (await alive.write("/jobs/ctl", "submit topic=fast patience=5s deadline=20s"))[0]
        await alive.hive.command(ANN, "/ctl", ["drain"])
        alive.clock.advance(20 * SECOND)
        await alive.hive.tick()
        assert ("failed", "deadline") == (alive.job_state(job), alive.state.jobs.by_id[job].code)

    live(story)


def test_annexes_have_time_to_come_back_after_a_start_of_the_hive() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        await alive.hive.leave("g1")
        job = (await alive.write("/jobs/ctl", "submit topic=fast"))[0]
        alive.clock.advance(START_GRACE_NS - 1)
        await alive.hive.tick()
        assert "gpu" == alive.state.jobs.by_id[job].request.pool
        alive.clock.advance(1)
        await alive.hive.tick()
        assert "gpu-cpu" == alive.state.jobs.by_id[job].request.pool

    live(story)


def test_files_tell_where_a_job_ran_and_why_not_elsewhere() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        ann = Door(hive_tree(alive.hive), ANN)
        assert "gpu-cpu patience=30s\n" == await ann.read("/pools/gpu/fallback")
        assert "" == await ann.read("/pools/gpu-cpu/fallback")
        job = (await alive.write("/jobs/ctl", "submit topic=fast requires=gpu:h100"))[0]
        assert "" == await ann.read(f"/jobs/{job}/device")
        alive.clock.advance(10 * SECOND)
        line = msgspec.json.decode(lease_line(alive.hive, await alive.hive.take(G1, "gpu")))
        assert ("allow", "20s") == (line["fallback"], line["patience"])
        await alive.run(job, "fallback reason=no_device error='it fell off the bus'", G1)
        line = msgspec.json.decode(lease_line(alive.hive, await alive.hive.take(W1, "gpu-cpu")))
        assert (2, "no_device", False) == (line["attempt"], line["fell_back"], "patience" in line)
        await alive.run(job, "start device=cpu")
        assert "cpu: no_device\n" == await ann.read(f"/jobs/{job}/device")
        await alive.run(job, "ack result=1")
        request = msgspec.json.decode(await ann.read(f"/jobs/{job}/request.json"))
        assert ("gpu", ["gpu:h100"], {"pool": "gpu-cpu", "requires": []}) == (
            request["pool"], request["requires"], request["now"],
        )  # fmt: skip
        assert [("no_device", "g1", "gpu")] == [
            (each["reason"], each["annex"], each["from"]) for each in request["fallbacks"]
        ]
        told = (await ann.read(f"/jobs/{job}/attempts")).splitlines()
        assert ("end=fallback", True) == (told[0].split()[-1], " device=cpu " in told[1])
        # What has left memory is told the same.
        files = ("request.json", "device", "attempts", "events.jsonl")
        before = [await ann.read(f"/jobs/{job}/{name}") for name in files]
        alive.clock.advance(HOUR)
        await alive.submit()
        assert job not in alive.state.jobs.by_id
        assert before == [await ann.read(f"/jobs/{job}/{name}") for name in files]

    live(story)


def test_a_gpu_is_named_by_its_annex() -> None:
    async def story(alive: Living) -> None:
        await annexed(alive)
        await alive.hive.say("/gpu/g1", offered("cuda:0", "cuda"))
        job = (await alive.write("/jobs/ctl", "submit topic=fast"))[0]
        await alive.hive.take(G1, "gpu")
        await alive.run(job, "start device=cuda:0 memory=1024 slots=1", G1)
        ann = Door(hive_tree(alive.hive), ANN)
        assert "cuda:g1/0\n" == await ann.read(f"/jobs/{job}/device")
        await alive.run(job, "fallback reason=kernel_failed", G1)
        await alive.hive.take(W1, "gpu-cpu")
        assert "cuda:g1/0\n" == await ann.read(f"/jobs/{job}/device")
        # Whoever does not say what it runs on, does not run on what another did.
        await alive.run(job, "start")
        assert "" == await ann.read(f"/jobs/{job}/device")

    live(story)
