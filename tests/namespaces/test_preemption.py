"""Places taken: whose, by whom, and how often."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

import msgspec
import pytest
from hives import ANN, BOB, W1, W2, Folded, Living, live
from hypothesis import given, settings
from hypothesis import strategies as st
from leasing import AGEING, configure, end, lease, offer, submit

from skep.fs import ctl
from skep.fs.node import Caller
from skep.namespaces.jobs.preemption import preemptions
from skep.namespaces.live import Heartbeat
from skep.namespaces.packed import pack
from skep.trace.clock import SECOND
from skep.trace.rules import Refusal


@pytest.fixture
def hive() -> Folded:
    return Folded()


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
