"""Which job a node gets, which pool a job goes to: queues, placement, preemption."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, W1, W2, Folded, Living, live, living, settled
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.namespaces.jobs.placement import Fit
from skep.namespaces.jobs.preemption import preemptions
from skep.namespaces.jobs.record import Job
from skep.namespaces.live import OFFER_NS, Heartbeat
from skep.namespaces.packed import pack
from skep.namespaces.plan import planned
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND
from skep.trace.entry import events_decoder
from skep.trace.rules import Meta, Refusal

AGEING = 30  # seconds
GPU = "gpu,zone:eu"


@pytest.fixture
def hive() -> Folded:
    return Folded()


def submit(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    return hive.write("/jobs/ctl", f"submit topic=sum {more}", who)


def lease(hive: Folded, who: Caller = W1, pool: str = "default") -> str:
    return hive.write(f"/pools/{pool}/next", "lease", who)


def tell(hive: Folded, job: str, verb: str) -> None:
    record = hive.state.jobs.by_id[job]
    node = Caller("unix:work", "drone-worker", node=record.node)
    hive.write(f"/jobs/{job}/ctl", f"{verb} fence={record.fence}", node)


def end(hive: Folded, job: str) -> None:
    tell(hive, job, "start")
    tell(hive, job, "ack")


def offer(hive: Folded, node: str, labels: str = "", capacity: int = 0) -> None:
    hive.hive(f"/nodes/{node}", ctl.line("offer", {"labels": labels, "capacity": str(capacity)}))


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    """What the writer is told; the state is untouched."""
    before = copy.deepcopy(hive.state)
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    assert before == hive.state
    return str(caught.value)


def configure(hive: Folded, document: dict[str, object], scope: str = "system") -> None:
    content = msgspec.json.encode(document)
    args = {"scope": scope, "sha256": sha256(content).hexdigest(), "content": pack(content)}
    hive.write("/config/ctl", ctl.line("publish", args))


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


# what nodes offer


def test_requirements_are_labels_or_labels_with_a_value(hive: Folded) -> None:
    offer(hive, "w1", "gpu:a100,zone:us")
    job = submit(hive, "requires=zone:us,gpu")
    assert "NOWORKER" in refused(hive, "/jobs/ctl", "submit topic=sum requires=zone:eu")
    assert ("gpu", "zone:us") == hive.state.jobs.by_id[job].request.requires
    assert "NODATA" in refused(hive, "/pools/default/next", "lease", W2)
    assert job == lease(hive, W1)


def test_a_pool_requires_labels_too_and_configuration_more(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=big requires=gpu")
    hive.write("/pools/ctl", "map topic=sum pool=big")
    job = submit(hive)
    assert "NODATA" in refused(hive, "/pools/big/next", "lease", W1)
    configure(hive, {"pools": {"big": {"requires": ["fast"]}}})
    offer(hive, "w1", "gpu:a100")
    assert "NODATA" in refused(hive, "/pools/big/next", "lease", W1)
    offer(hive, "w1", "gpu:a100,fast:")
    assert job == lease(hive, W1, "big")


def test_a_node_gets_no_more_leases_than_its_capacity(hive: Folded) -> None:
    offer(hive, "w1", capacity=1)
    first, second = submit(hive), submit(hive)
    assert first == lease(hive)
    assert "node=w1 holds the 1 leases" in refused(hive, "/pools/default/next", "lease", W1)
    assert second == lease(hive, W2)


def test_a_pool_gives_no_more_leases_than_its_capacity(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=licence capacity=1")
    hive.write("/pools/ctl", "map topic=sum pool=licence")
    first, second = submit(hive), submit(hive)
    assert first == lease(hive, W1, "licence")
    assert "no more than 1" in refused(hive, "/pools/licence/next", "lease", W2)
    end(hive, first)
    assert second == lease(hive, W2, "licence")


def test_the_same_offer_is_recorded_once(hive: Folded) -> None:
    offer(hive, "w1", "gpu:a100", 2)
    rev = hive.state.nodes.by_id["w1"].rev
    offer(hive, "w1", "gpu:a100", 2)
    node = hive.state.nodes.by_id["w1"]
    assert (rev, {"gpu": "a100"}, 2) == (node.rev, node.labels, node.capacity)
    hive.hive("/nodes/w1", "join principal=unix:work role=drone-worker")
    assert {"gpu": "a100"} == hive.state.nodes.by_id["w1"].labels
    hive.write("/nodes/ctl", "remove node=w1")
    assert "NOWORKER" in refused(hive, "/jobs/ctl", "submit topic=sum requires=gpu")


def test_nodes_offer_by_their_heartbeats_and_not_each_time() -> None:
    async def story(alive: Living) -> None:
        said = Heartbeat(labels={"gpu": "a100"}, capacity=2)
        await alive.hive.hear("w1", said)
        seq = alive.hive.turn.seq
        await alive.hive.hear("w1", said)
        await alive.hive.hear("w1", Heartbeat())
        assert (seq, {"gpu": "a100"}) == (alive.hive.turn.seq, alive.state.nodes.by_id["w1"].labels)
        alive.clock.advance(OFFER_NS)
        await alive.hive.hear("w1", Heartbeat())
        assert {} == alive.state.nodes.by_id["w1"].labels

    live(story)


# where jobs go


def two_pools(hive: Folded, more: str = "") -> None:
    hive.write("/pools/ctl", f"create pool=a {more}")
    hive.write("/pools/ctl", f"create pool=b {more}")
    hive.write("/pools/ctl", "map topic=sum pool=a,b")


def pool_of(hive: Folded, job: str) -> str:
    return hive.state.jobs.by_id[job].request.pool


def test_a_job_goes_to_the_pool_with_the_least_to_do(hive: Folded) -> None:
    two_pools(hive)
    jobs = [submit(hive) for _ in range(3)]
    assert ["a", "b", "a"] == [pool_of(hive, job) for job in jobs]
    lease(hive, W1, "b")
    assert "b" == pool_of(hive, submit(hive))


def test_what_a_pool_can_do_at_a_time_counts(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=a capacity=1")
    hive.write("/pools/ctl", "create pool=b capacity=4")
    hive.write("/pools/ctl", "map topic=sum pool=a,b")
    jobs = [submit(hive) for _ in range(6)]
    assert Counter({"b": 4, "a": 2}) == Counter(pool_of(hive, job) for job in jobs)


def test_a_pool_that_drains_is_the_last_resort(hive: Folded) -> None:
    two_pools(hive, "queue=1")
    hive.write("/pools/ctl", "drain pool=a")
    assert ["b", "a"] == [pool_of(hive, submit(hive)) for _ in range(2)]
    said = refused(hive, "/jobs/ctl", "submit topic=sum")
    assert "OVERLOAD: pool_overloaded: pool=a max=1" == said


def test_configuration_replaces_the_pools_of_a_topic(hive: Folded) -> None:
    two_pools(hive)
    configure(hive, {"topics": {"sum": {"pools": ["b"]}, "new": {"pools": ["a"]}}})
    assert ["b", "b"] == [pool_of(hive, submit(hive)) for _ in range(2)]
    assert "a" == pool_of(hive, hive.write("/jobs/ctl", "submit topic=new"))
    configure(hive, {"topics": {"sum": {"pools": ["gone"]}}})
    assert "NOROUTE: no_pool_mapping: topic=sum pool=gone: there is no such pool" == refused(
        hive, "/jobs/ctl", "submit topic=sum"
    )


def test_a_job_nobody_could_do_is_refused_and_one_that_somebody_away_could_waits(hive: Folded) -> None:
    said = refused(hive, "/jobs/ctl", "submit topic=sum requires=gpu")
    assert "NOWORKER: no_workers: pool=default requires=gpu" == said
    offer(hive, "w1", "gpu:a100")
    hive.hive("/nodes/w1", "leave")
    submit(hive, "requires=gpu")


def test_a_pool_may_refuse_jobs_while_no_node_is_there(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=now empty=refuse")
    hive.write("/pools/ctl", "map topic=sum pool=now")
    submit(hive)
    for node in ("w1", "w2"):
        hive.hive(f"/nodes/{node}", "leave")
    assert "NOWORKER: no_workers: pool=now" == refused(hive, "/jobs/ctl", "submit topic=sum")


def test_a_node_of_another_tenant_does_no_job_of_this_one(hive: Folded) -> None:
    hive.hive("/nodes/b1", f"join principal=unix:b role=drone-worker tenant={BOB.tenant}")
    offer(hive, "b1", "gpu:a100")
    assert "NOWORKER" in refused(hive, "/jobs/ctl", "submit topic=sum requires=gpu")
    submit(hive, "requires=gpu", BOB)


def test_a_pool_that_an_older_ledger_made_loads(hive: Folded) -> None:
    old = (
        b'[{"type":"pool.created","pool":"old","lease_ns":30000000000},'
        b'{"type":"pool.mapped","topic":"t","pool":"old"}]'
    )
    for event in events_decoder(hive.rules.event_type).decode(old):
        hive.rules.apply(hive.state, event, Meta(99, 0, "t"))
    assert "old" == pool_of(hive, hive.write("/jobs/ctl", "submit topic=t"))


# places taken


def preempt(hive: Folded, job: str, other: str) -> None:
    hive.hive(f"/jobs/{job}", f"preempt for={other}")


def test_an_urgent_job_takes_the_place_of_the_least_urgent_that_came_last(hive: Folded) -> None:
    configure(hive, {"jobs": {"preempt": True}})
    old, low, last = submit(hive, "priority=3"), submit(hive, "priority=2"), submit(hive, "priority=2")
    for _ in range(3):
        lease(hive)
    urgent = submit(hive, "priority=9")
    assert [] == list(preemptions(hive.state.jobs, hive.state, hive.clock.now_ns()))
    hive.clock.advance(SECOND)
    ((job, other),) = preemptions(hive.state.jobs, hive.state, hive.clock.now_ns())
    assert (last, urgent) == (job.id, other.id) or (low, urgent) == (job.id, other.id)
    preempt(hive, job.id, urgent)
    assert ("queued", 2, "preempted") == (
        hive.job_state(job.id), hive.state.jobs.by_id[job.id].fence,
        hive.state.jobs.by_id[job.id].attempts[-1].end,
    )  # fmt: skip
    assert [urgent, job.id] == [lease(hive), lease(hive)]
    assert old in hive.state.jobs.held


@pytest.mark.parametrize(
    ("priority", "who", "config", "why"),
    [
        (9, BOB, True, "of another pool or tenant"),
        (2, ANN, True, "its priority is 2"),
        (3, ANN, False, "jobs/preempt is not set"),
    ],
)
def test_a_place_is_kept(hive: Folded, priority: int, who: Caller, config: bool, why: str) -> None:
    configure(hive, {"jobs": {"preempt": config}})
    job = submit(hive, "priority=2")
    lease(hive)
    other = submit(hive, f"priority={priority}", who)
    with pytest.raises(Refusal, match=why):
        preempt(hive, job, other)


def test_no_job_loses_its_place_twice(hive: Folded) -> None:
    configure(hive, {"jobs": {"preempt": True}})
    job = submit(hive, "priority=0")
    lease(hive)
    first = submit(hive, "priority=9")
    preempt(hive, job, first)
    end(hive, lease(hive))
    assert job == lease(hive)
    with pytest.raises(Refusal, match="it has lost its place once"):
        preempt(hive, job, submit(hive, "priority=9"))


def test_a_job_that_would_go_first_again_keeps_its_place(hive: Folded) -> None:
    configure(hive, {"jobs": {"preempt": True}})
    job = submit(hive, "priority=4")
    lease(hive)
    hive.clock.advance((AGEING + 1) * SECOND)
    with pytest.raises(Refusal, match="it would go before"):
        preempt(hive, job, submit(hive, "priority=5"))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("sslte"), st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=50
    )
)
def test_only_lesser_jobs_lose_their_place_and_once(script: list[tuple[str, int, int]]) -> None:
    hive = Folded()
    configure(hive, {"jobs": {"preempt": True}})
    offer(hive, "w1", capacity=2)
    offer(hive, "w2", capacity=1)
    for verb, n, m in script:
        if verb == "s":
            submit(hive, f"priority={n}", (ANN, BOB)[m % 2])
        elif verb == "t":
            hive.clock.advance(m * SECOND)
        elif verb == "e" and hive.state.jobs.held:
            end(hive, next(iter(hive.state.jobs.held)))
        else:
            for who in (W1, W2):
                with suppress(Refusal):
                    lease(hive, who)
        for job, other in list(preemptions(hive.state.jobs, hive.state, hive.clock.now_ns())):
            assert job.request.priority < other.request.priority
            assert job.request.tenant == other.request.tenant
            node = job.node
            try:
                preempt(hive, job.id, other.id)
            except Refusal:
                continue
            assert other.id == lease(hive, (W1, W2)[node == "w2"])
        assert all(job.count("preempted") <= 1 for job in hive.state.jobs.by_id.values())


def test_a_hive_sees_to_it_that_urgent_jobs_get_their_place() -> None:
    async def story(alive: Living) -> None:
        content = msgspec.json.encode({"jobs": {"preempt": True}})
        digest = sha256(content).hexdigest()
        args = {"scope": "system", "sha256": digest, "content": pack(content)}
        await alive.write("/config/ctl", ctl.line("publish", args))
        await alive.hive.hear("w1", Heartbeat(capacity=1))
        job = await alive.submit("priority=1")
        await alive.hive.take(W1, "default")
        urgent = await alive.submit("priority=9")
        alive.clock.advance(SECOND)
        await alive.hive.tick()
        assert "queued" == alive.job_state(job)
        assert urgent == (await alive.hive.take(W1, "default")).id

    live(story)


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


async def cancel(tasks: list[asyncio.Task[Job]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# plans


def test_a_plan_says_where_a_job_would_go_and_why_not_elsewhere() -> None:
    async def story(alive: Living) -> None:
        await alive.write("/pools/ctl", "create pool=full queue=0", "create pool=busy", "create pool=free")
        await alive.write("/pools/ctl", "map topic=x pool=busy", "map topic=sum pool=full,busy,free,default")
        await alive.write("/jobs/ctl", "submit topic=x")
        await alive.hive.hear("w2", Heartbeat(labels={"gpu": "a100"}))
        reader = asyncio.create_task(alive.hive.take(W2, "free"))
        await settled()
        door = Door(hive_tree(alive.hive), ANN)
        chan = await door.open("/pools/plan", BOTH)
        await say(chan, "topic=sum requires=gpu")
        found = msgspec.json.decode(await rest(chan))
        assert ("free", "w2", True, 0) == (found["pool"], found["worker"], found["at_once"], found["ahead"])
        assert {
            "full": "pool_overloaded: pool=full max=0",
            "busy": "it has more to do than free",
            "default": "it has no less to do than free, which stands before it",
        } == {row["pool"]: row["rejected"] for row in found["pools"] if "rejected" in row}
        assert {"w1": "it has no gpu"} == {
            row["node"]: row["rejected"] for row in found["workers"] if "rejected" in row
        }
        assert [] == [id for id, job in alive.state.jobs.by_id.items() if job.request.topic == "sum"]
        await cancel([reader])

    live(story)


calls = st.tuples(
    st.sampled_from(["", "requires=gpu", "requires=zone:eu,gpu", "key=k", "workflow=w"]),
    st.integers(0, 9),
    st.sampled_from([ANN, BOB]),
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), calls),
        st.tuples(st.just("drain"), st.sampled_from("ab")),
        st.tuples(st.just("resume"), st.sampled_from("ab")),
        st.tuples(
            st.just("offer"), st.sampled_from(["w1 gpu:a100", "w2 gpu:t4,zone:eu", "w1 zone:eu", "w2 x:"])
        ),
        st.tuples(st.just("read"), st.sampled_from(["w1 a", "w2 a", "w1 b", "w2 b"])),
        st.tuples(st.just("cordon"), st.sampled_from(["w1", "w2"])),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(moves)
def test_what_is_planned_is_what_is_done(script: list[tuple[str, object]]) -> None:
    async def story(alive: Living) -> None:
        await alive.write(
            "/pools/ctl", "create pool=a queue=4 capacity=3", "create pool=b requires=gpu queue=3"
        )
        await alive.write("/pools/ctl", "map topic=sum pool=a,b")
        readers: list[asyncio.Task[Job]] = []
        for verb, said in script:
            alive.clock.advance(SECOND)
            await step(alive, readers, verb, said)
        if readers:
            await cancel(readers)

    live(story)


async def step(alive: Living, readers: list[asyncio.Task[Job]], verb: str, said: object) -> None:
    match verb, said:
        case "submit", (str(more), int(priority), Caller() as who):
            await check_plan(alive, f"topic=sum priority={priority} {more}".strip(), who)
        case "offer", str(text):
            node, labels = text.split(" ")
            await alive.hive.hear(node, Heartbeat(labels=ctl.labels(labels), capacity=2))
        case "read", str(text):
            node, pool = text.split(" ")
            readers.append(asyncio.create_task(alive.hive.take({"w1": W1, "w2": W2}[node], pool)))
        case "cordon", str(node):
            await alive.write("/nodes/ctl", f"cordon node={node}")
        case _, str(pool):
            await alive.write("/pools/ctl", f"{verb} pool={pool}")
    await quiet(alive)


async def quiet(alive: Living) -> None:
    """Whoever was told has its job: nobody asks any more."""
    while True:
        seq = alive.hive.turn.seq
        for _ in range(3):
            await asyncio.to_thread(lambda: None)
            await settled()
        if alive.hive.turn.seq == seq and not alive.hive.leases.asking:
            return


async def check_plan(alive: Living, args: str, who: Caller) -> None:
    plan = planned(alive.hive, who, f"submit {args}")
    try:
        (job,) = await alive.write("/jobs/ctl", f"submit {args}", who=who)
    except FsError as error:
        job, refused = "", error.kind.name
    else:
        refused = ""
    assert refused == plan.refused.partition(":")[0]
    if refused:
        return
    await quiet(alive)
    record = alive.state.jobs.by_id[job]
    assert plan.pool == record.request.pool
    if plan.job:
        assert plan.job == job
        return
    assert plan.at_once == bool(record.attempts)
    if plan.worker:
        assert plan.worker == record.attempts[0].node


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
