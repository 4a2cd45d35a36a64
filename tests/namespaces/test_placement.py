"""Which pool a job goes to, what nodes offer for it, and what is planned."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from bundles import ANNS, bundle, publish, trust
from door import BOTH, Door, rest, say
from hives import ANN, BOB, SIGNER, W1, W2, Folded, Living, live, settled
from hypothesis import given, settings
from hypothesis import strategies as st
from leasing import cancel, configure, end, lease, offer, refused, submit

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.namespaces.jobs.queues import rank_ns
from skep.namespaces.jobs.record import Job
from skep.namespaces.live import OFFER_NS, Heartbeat
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.plan import planned
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND
from skep.trace.entry import events_decoder
from skep.trace.rules import Meta


@pytest.fixture
def hive() -> Folded:
    return Folded()


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


@pytest.mark.parametrize("said", [f"checked='s@1.0 {'a' * 64}'", "absent=9", "trigger=t"])
def test_a_plan_takes_what_a_submit_takes_and_no_more(said: str) -> None:
    async def story(alive: Living) -> None:
        chan = await Door(hive_tree(alive.hive), ANN).open("/pools/plan", BOTH)
        await say(chan, f"topic=sum {said}")
        refused = msgspec.json.decode(await rest(chan))["refused"]
        assert refused.startswith(
            f"USAGE: usage: line 1: submit: {said.partition('=')[0]}=: unknown argument"
        )
        with pytest.raises(FsError, match="too large: max=20480 bytes, this has 30010"):
            await say(chan, f"topic=sum input={'x' * 30_000}"[:30_010])

    live(story)


GPU_SERVERS = """@id("gpu-servers") @about("what a node says of itself makes it no GPU server")
forbid (principal, action == Skep::Action::"pools.lease", resource)
when { context.pool == "gpu" && !(principal in Skep::Role::"cuda-annex") };"""


def test_a_policy_binds_a_pool_to_a_role_whatever_a_node_says_of_itself(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=gpu requires=gpu")
    hive.write("/pools/ctl", "map topic=sum pool=gpu")
    annex = Caller("unix:gpu", "cuda-annex", node="g1")
    hive.hive("/nodes/g1", "join principal=unix:gpu role=cuda-annex")
    for node in ("w1", "g1"):
        offer(hive, node, "gpu:a100")
    jobs = [submit(hive), submit(hive)]
    assert jobs[0] == lease(hive, pool="gpu"), "a worker is taken at its word"
    hive.write("/policy/ctl", trust("ann", ANNS, SIGNER))
    hive.write("/policy/ctl", publish("gpu", bundle(GPU_SERVERS)))
    said = "DENIED: permission denied: rule=gpu/gpu-servers"
    assert refused(hive, "/pools/gpu/next", "lease", W1).startswith(said)
    assert jobs[1] == lease(hive, annex, "gpu")


def test_jobs_that_wait_before_another_are_counted_no_further_than_is_told(hive: Folded) -> None:
    now, jobs = hive.clock.now_ns(), []
    for n in range(60):
        hive.clock.time_ns = now + (n * 37 % 60) * SECOND  # a clock that goes forth and back
        jobs.append(submit(hive, f"priority={n % 4} {'timeout=1s' if n % 3 else ''}"))
    for job in jobs[::7]:
        hive.write(f"/jobs/{job}/ctl", "cancel")
    queues, ageing = hive.state.jobs.queues, hive.state.ageing_ns("default")
    waiting = [hive.state.jobs.by_id[job] for job in hive.state.jobs.waiting("default")]
    ranks = [rank_ns(job.queued_ns, job.request.priority, ageing) for job in waiting]
    for rank in (*ranks, min(ranks) - 1, max(ranks) + 1):
        before = sum(each <= rank for each in ranks)
        for most in (1, 5, 100):
            assert min(before, most) == queues.count_before("default", HIVE_TENANT, rank, ageing, most)


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
