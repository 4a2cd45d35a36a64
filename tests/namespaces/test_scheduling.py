"""Which job a node gets, and which reader is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hives import ANN, BOB, W1, W2, Folded, Living, live, living, settled
from hypothesis import given, settings
from hypothesis import strategies as st
from leasing import AGEING, cancel, configure, end, lease, offer, refused, submit, tell

from skep.fs.node import Caller
from skep.namespaces.jobs import quotas
from skep.namespaces.jobs.placement import Fit
from skep.namespaces.live import Heartbeat
from skep.trace.clock import SECOND
from skep.trace.rules import Refusal

GPU = "gpu,zone:eu"


@pytest.fixture
def hive() -> Folded:
    return Folded()


# who goes next


def test_a_step_of_priority_counts_as_much_as_the_ageing_of_waiting(hive: Folded) -> None:
    old = submit(hive, "priority=4")
    hive.clock.advance((AGEING + 1) * SECOND)
    new, urgent = submit(hive, "priority=5"), submit(hive, "priority=6")
    assert [urgent, old, new] == [lease(hive) for _ in range(3)]


def test_a_pool_has_its_own_ageing(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=calm ageing=1h")
    hive.write("/pools/ctl", "map topic=sum pool=calm")
    submit(hive, "priority=4")
    hive.clock.advance((AGEING + 1) * SECOND)
    new = submit(hive, "priority=5")
    assert new == lease(hive, pool="calm")
    assert "expected more than nothing" in refused(hive, "/pools/ctl", "create pool=p ageing=0s")


def test_a_job_of_no_priority_is_leased_under_an_endless_stream_of_the_highest(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=quick ageing=2s")
    hive.write("/pools/ctl", "map topic=sum pool=quick")
    poor = submit(hive, "priority=0")
    leased = []
    while poor not in leased:
        submit(hive, "priority=9")
        leased.append(lease(hive, W1, "quick"))
        end(hive, leased[-1])
        hive.clock.advance(SECOND)
    assert 9 * 2 + 1 == len(leased)


def test_a_job_nobody_can_take_is_passed_by(hive: Folded) -> None:
    offer(hive, "w2", "gpu:a100")
    heavy = submit(hive, "priority=9 requires=gpu")
    light = submit(hive, "priority=1")
    assert light == lease(hive, W1)
    assert "NODATA" in refused(hive, "/pools/default/next", "lease", W1)
    assert heavy == lease(hive, W2)


def test_tenants_take_turns_whatever_they_wait_with(hive: Folded) -> None:
    for _ in range(6):
        submit(hive, "priority=9")
    for _ in range(3):
        submit(hive, "priority=0", BOB)
    leased = [hive.state.jobs.by_id[lease(hive)].request.tenant for _ in range(9)]
    assert [ANN.tenant, BOB.tenant] * 3 == leased[:6]
    assert [ANN.tenant] * 3 == leased[6:]


def test_who_comes_back_with_one_job_at_a_time_does_not_go_first_each_time(hive: Folded) -> None:
    for _ in range(4):
        submit(hive)
    leased = []
    for _ in range(4):
        submit(hive, "", BOB)
        leased.append(lease(hive))
        end(hive, leased[-1])
    tenants = [hive.state.jobs.by_id[job].request.tenant for job in leased]
    assert {ANN.tenant: 2, BOB.tenant: 2} == Counter(tenants)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_two_backlogged_tenants_hold_the_same_give_or_take_one_for_each_node(
    slots: int, seconds: int, priorities: list[int]
) -> None:
    hive = Folded()
    for n in range(60):
        submit(hive, f"priority={priorities[n % len(priorities)]}")
        submit(hive, "priority=5", BOB)
    got: Counter[str] = Counter()
    running: list[str] = []
    for _ in range(40 // slots):
        while len(running) < 2 * slots:
            job = lease(hive, (W1, W2)[len(running) % 2])
            got[hive.state.jobs.by_id[job].request.tenant] += 1
            running.append(job)
            assert abs(got[ANN.tenant] - got[BOB.tenant]) <= 2
        hive.clock.advance(seconds * SECOND)
        for job in running:
            end(hive, job)
        running.clear()


def test_a_tenant_has_only_so_many_kinds_of_jobs_waiting_for_a_lease_looks_at_each(
    hive: Folded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "KINDS_MAX", 4)
    offer(hive, "w1", "a:x,b:x")
    kinds = ("", "priority=7", "timeout=1s", "requires=a")
    jobs = [submit(hive, more) for more in (*kinds, *kinds)]
    assert 4 == hive.state.count_kinds(
        msgspec.structs.replace(hive.state.jobs.by_id[jobs[0]].request, actor="unix:other")
    )
    for more in ("timeout=2s", "requires=a,b", "priority=7 timeout=1s"):
        said = "QUOTA: quota exceeded: kinds (actor, priority, requires, time limit) have=4 max=4"
        assert said == refused(hive, "/jobs/ctl", f"submit topic=sum {more}")
    submit(hive, "timeout=2s", BOB)  # another tenant's are its own
    for job in jobs[1::4]:
        hive.write(f"/jobs/{job}/ctl", "cancel")
    submit(hive, "timeout=2s")


def test_a_tenant_at_its_limit_is_passed_by(hive: Folded) -> None:
    configure(hive, {"limits": {"jobs": 1}}, ANN.tenant)
    first, _ = submit(hive), submit(hive)
    other, more = submit(hive, "", BOB), submit(hive, "", BOB)
    assert [first, other, more] == [lease(hive) for _ in range(3)]
    assert "NODATA" in refused(hive, "/pools/default/next", "lease", W1)


def test_an_actor_at_its_limit_is_passed_by(hive: Folded) -> None:
    configure(hive, {"limits": {"actor-jobs": 1}}, ANN.tenant)
    amy = Caller("unix:amy", "operator")
    first, second, other = submit(hive), submit(hive), submit(hive, "", amy)
    assert [first, other] == [lease(hive) for _ in range(2)]
    end(hive, first)
    assert second == lease(hive)


# who is told


def test_the_reader_that_holds_the_least_for_what_it_can_is_told_first() -> None:
    async def story(alive: Living) -> None:
        await alive.hive.hear("w1", Heartbeat(capacity=2))
        await alive.hive.hear("w2", Heartbeat(capacity=4))
        for _ in range(2):
            await alive.submit()
        for who in (W1, W2):
            await alive.hive.take(who, "default")
        readers = [asyncio.create_task(alive.hive.take(who, "default")) for who in (W1, W2, W2)]
        await settled()
        await alive.submit()
        done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        assert ["w2"] == [task.result().node for task in done]
        await cancel(readers)

    live(story)


def test_readers_that_could_take_no_job_that_waits_are_not_told() -> None:
    async def story(alive: Living) -> None:
        await alive.hive.hear("w2", Heartbeat(labels={"gpu": "a100"}))
        reader = asyncio.create_task(alive.hive.take(W1, "default"))
        await settled()
        await alive.submit("requires=gpu")
        assert [("w1", W1.tenant)] == alive.hive.leases.ranked("default")
        await alive.hive.tick()
        await settled()
        assert [("w1", W1.tenant)] == alive.hive.leases.ranked("default")
        assert not alive.hive.leases.asking
        assert W2.node == (await alive.hive.take(W2, "default")).node
        await cancel([reader])

    live(story)


# the queues themselves

LABELS = ("", "requires=gpu", f"requires={GPU}")
steps = st.lists(
    st.tuples(st.sampled_from("slrcdenp"), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_lease_is_what_a_look_at_every_job_would_choose(script: list[tuple[str, int, int]]) -> None:
    hive = Folded()
    offer(hive, "w2", "gpu:a100,zone:eu")
    ids: list[str] = []
    for verb, n, m in script:
        act(hive, ids, verb, n, m)
        check_queues(hive)


def act(hive: Folded, ids: list[str], verb: str, n: int, m: int) -> None:
    job = ids[n % len(ids)] if ids else "none"
    record = hive.state.jobs.by_id.get(job)
    try:
        match verb:
            case "s":
                ids.append(submit(hive, f"priority={n} retries=1 {LABELS[m % 3]}", (ANN, BOB)[m % 2]))
            case "l":
                who = (W1, W2)[n % 2]
                expected = expected_lease(hive, who.node)
                try:
                    found = lease(hive, who)
                except Refusal:
                    found = ""
                assert expected == found
            case "r" if record is not None:
                hive.hive(f"/jobs/{job}", f"release fence={record.fence}")
            case "c":
                hive.write(f"/jobs/{job}/ctl", "cancel")
            case "d":
                hive.clock.advance((n * 10 + m) * SECOND)
            case "e" if record is not None and record.held:
                end(hive, job)
            case "n" if record is not None and record.held:
                tell(hive, job, "nack error=e")
            case "p":
                hive.hive(f"/jobs/{job}", "wake")
    except Refusal:
        pass


def expected_lease(hive: Folded, node: str) -> str:
    """Which job goes next, found by looking at all."""
    jobs, state = hive.state.jobs, hive.state
    held = Counter(jobs.by_id[id].request.tenant for id in jobs.held)
    shares = jobs.queues.by_pool["default"].shares if "default" in jobs.queues.by_pool else {}
    offers = state.offers(node)
    rows = [
        (
            held[job.request.tenant],
            shares[job.request.tenant].served,
            job.request.tenant,
            job.queued_ns - job.request.priority * AGEING * SECOND,
            job.place,
            job.id,
        )
        for job in jobs.by_id.values()
        if job.state == "queued" and offers.issuperset(job.request.requires)
    ]
    return min(rows)[-1] if rows else ""


def check_queues(hive: Folded) -> None:
    """The queues say what the records do, and a copy says the same and shares nothing."""
    jobs = hive.state.jobs
    queued = sorted(id for id, job in jobs.by_id.items() if job.state == "queued")
    assert queued == sorted(jobs.waiting("default"))
    assert len(queued) == jobs.count_waiting("default")
    assert Counter(jobs.by_id[id].node for id in jobs.held) == Counter(jobs.queues.by_node)
    assert len(jobs.held) == jobs.queues.count_held("default")
    copied = jobs.queues.copy()
    assert copied == jobs.queues
    for pool, queue in copied.by_pool.items():
        for share in queue.shares.values():
            share.bands.clear()
        queue.order.clear()
        assert not copied.waiting(pool, "", 1)
    assert queued == sorted(jobs.waiting("default"))


def test_many_that_leave_from_the_middle_leave_nothing_behind(hive: Folded) -> None:
    ids = [submit(hive) for _ in range(300)]
    for job in ids[1:]:
        hive.write(f"/jobs/{job}/ctl", "cancel")
    (share,) = hive.state.jobs.queues.by_pool["default"].shares.values()
    (band,) = share.bands.values()
    (lane,) = band.lanes.values()
    assert 1 == len(lane)
    assert len(lane.heap) < 70
    assert ids[0] == lease(hive)
    assert not share.bands


def test_jobs_of_one_kind_are_counted_without_a_look_at_each(hive: Folded) -> None:
    for _ in range(5):
        submit(hive, "priority=1")
    fit = Fit(hive.state, "default", frozenset(), hive.clock.now_ns())
    assert hive.state.jobs.queues.next("default", "", fit) == hive.state.jobs.waiting("default")[0]
    assert 5 == hive.state.jobs.queues.count_for("default", "", fit, 100)


def test_the_queue_of_a_pool_is_the_same_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        ledger = str(tmp_path / "ledger")
        async with living(tmp_path, ledger) as alive:
            for n in (1, 9, 5):
                await alive.submit(f"priority={n}")
            await alive.hive.take(W1, "default")
            before = alive.state.jobs.queues
        async with living(tmp_path, ledger) as alive:
            assert before == alive.state.jobs.queues

    asyncio.run(story())
