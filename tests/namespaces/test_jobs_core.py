from __future__ import annotations

import copy

import pytest
from hives import ANN, BOB, EYE, W1, W2, Folded
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.node import Caller
from skep.namespaces.jobs.core import INPUT_MAX
from skep.namespaces.jobs.record import HELD, MOVES, TERMINAL
from skep.trace.clock import SECOND
from skep.trace.rules import Refusal


@pytest.fixture
def hive() -> Folded:
    return Folded()


def refusal(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    """What the writer is told; the state is untouched."""
    before = copy.deepcopy(hive.state)
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    assert before == hive.state
    return f"{caught.value.code} {caught.value.text}"


def submit(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    return hive.write("/jobs/ctl", f"submit topic=sum {more}", who)


def lease(hive: Folded, who: Caller = W1) -> str:
    return hive.write("/pools/default/next", "lease", who)


def told(hive: Folded, job: str, line: str, who: Caller = W1) -> str:
    return hive.write(f"/jobs/{job}/ctl", line, who)


def test_a_job_goes_from_its_queue_to_a_node_and_ends(hive: Folded) -> None:
    job = submit(hive, "input='1 2' labels=a:b timeout=10s")
    assert "queued" == hive.job_state(job)
    assert job == lease(hive)
    assert "leased" == hive.job_state(job)
    told(hive, job, "start fence=1")
    assert "running" == hive.job_state(job)
    told(hive, job, "ack fence=1 result=3")
    record = hive.state.jobs.by_id[job]
    assert ("succeeded", "3", "") == (record.state, record.text, record.node)
    assert ("1 2", {"a": "b"}, 10 * SECOND) == (
        record.request.input, record.request.labels, record.request.timeout_ns,
    )  # fmt: skip
    assert [("w1", 1, "acked")] == [(a.node, a.fence, a.end) for a in record.attempts]
    assert not hive.state.jobs.held


def test_a_nack_ends_the_job_as_failed(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    told(hive, job, "nack fence=1 error='no handler'")
    assert ("failed", "no handler") == (hive.job_state(job), hive.state.jobs.by_id[job].text)


def test_a_topic_without_a_pool_has_no_route(hive: Folded) -> None:
    assert "NOROUTE no_pool_mapping: topic=none" == refusal(hive, "/jobs/ctl", "submit topic=none")


def test_jobs_go_in_the_order_of_priority_then_of_coming(hive: Folded) -> None:
    low, first, second, high = (submit(hive, f"priority={n}") for n in (1, 5, 5, 9))
    assert [high, first, second, low] == hive.state.jobs.waiting("default")
    assert [high, first, second, low] == [lease(hive) for _ in range(4)]
    assert "NODATA" == refusal(hive, "/pools/default/next", "lease", W1).split(" ")[0]


def test_the_same_key_and_request_is_the_same_job(hive: Folded) -> None:
    job = submit(hive, "key=k input=1")
    assert job == hive.write("/jobs/ctl", "submit input=1 key='k' topic=sum")
    assert 1 == len(hive.state.jobs.by_id)


def test_the_same_key_with_another_request_is_refused(hive: Folded) -> None:
    submit(hive, "key=k input=1")
    assert "IDEMPOTENCY idempotency mismatch: key=k" == refusal(
        hive, "/jobs/ctl", "submit topic=sum key=k input=2"
    )


def test_a_key_is_its_tenants_own(hive: Folded) -> None:
    assert submit(hive, "key=k") != submit(hive, "key=k", BOB)


def test_a_refused_submit_leaves_its_key_free(hive: Folded) -> None:
    refusal(hive, "/jobs/ctl", "submit topic=none key=k")
    assert hive.state.jobs.by_key == {}
    submit(hive, "key=k")


def test_an_input_of_an_artifact_is_resolved_when_submitted(hive: Folded) -> None:
    digest = "ab" * 32
    hive.write("/artifacts/ctl", f"seal name=f sha256={digest} size=3")
    job = submit(hive, "input=artifact:f key=k")
    assert (None, digest) == (
        hive.state.jobs.by_id[job].request.input,
        hive.state.jobs.by_id[job].request.artifact,
    )
    hive.write("/artifacts/ctl", f"seal name=f sha256={'cd' * 32} size=3")
    assert job == submit(hive, "input=artifact:f key=k")
    assert digest == hive.state.jobs.by_id[submit(hive, f"artifact=sha256:{digest}")].request.artifact


def test_an_artifact_nobody_sealed_or_another_tenant_did_is_refused(hive: Folded) -> None:
    hive.write("/artifacts/ctl", f"seal name=f sha256={'ab' * 32} size=3", BOB)
    said = "USAGE usage: submit: input=artifact:f: no artifact was sealed under that name"
    assert said == refusal(hive, "/jobs/ctl", "submit topic=sum input=artifact:f")
    assert "USAGE" == refusal(hive, "/jobs/ctl", f"submit topic=sum artifact={'ab' * 32}").split(" ")[0]


def test_a_long_input_is_told_its_limit(hive: Folded) -> None:
    submit(hive, f"input={'x' * INPUT_MAX}")
    assert f"TOOBIG too large: max={INPUT_MAX}" == refusal(
        hive, "/jobs/ctl", f"submit topic=sum input={'x' * (INPUT_MAX + 1)}"
    )


def test_a_lost_lease_puts_the_job_at_the_head_of_its_queue_and_fences_its_holder(hive: Folded) -> None:
    job, other = submit(hive), submit(hive)
    lease(hive)
    told(hive, job, "start fence=1")
    hive.clock.advance(30 * SECOND)
    hive.hive(f"/jobs/{job}", "expire fence=1")
    assert ("queued", 2) == (hive.job_state(job), hive.state.jobs.by_id[job].fence)
    assert [job, other] == hive.state.jobs.waiting("default")
    late = refusal(hive, f"/jobs/{job}/ctl", "ack fence=1 result=late", W1)
    assert "FENCED fenced: token=1 newest=2" == late
    assert job == lease(hive, W2)
    assert "FENCED fenced: token=1 newest=3" == refusal(hive, f"/jobs/{job}/ctl", "renew fence=1", W1)
    told(hive, job, "start fence=3", W2)
    told(hive, job, "ack fence=3", W2)
    attempts = hive.state.jobs.by_id[job].attempts
    assert [("w1", 1, "expired"), ("w2", 3, "acked")] == [(a.node, a.fence, a.end) for a in attempts]


def test_a_renewed_lease_does_not_end_at_its_first_end(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    hive.clock.advance(20 * SECOND)
    told(hive, job, "renew fence=1")
    hive.clock.advance(20 * SECOND)
    with pytest.raises(Refusal, match="the lease was renewed"):
        hive.hive(f"/jobs/{job}", "expire fence=1")
    hive.clock.advance(10 * SECOND)
    hive.hive(f"/jobs/{job}", "expire fence=1")


def test_a_released_lease_is_as_if_nobody_had_read_it_but_for_its_fence(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    hive.hive(f"/jobs/{job}", "release fence=1")
    assert ([job], 2) == (hive.state.jobs.waiting("default"), hive.state.jobs.by_id[job].fence)


def test_a_running_job_cannot_be_released(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    told(hive, job, "start fence=1")
    with pytest.raises(Refusal, match="illegal move: running -> queued"):
        hive.hive(f"/jobs/{job}", "release fence=1")


def test_success_needs_a_start(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    assert "ILLEGAL_MOVE illegal move: leased -> succeeded" == refusal(
        hive, f"/jobs/{job}/ctl", "ack fence=1", W1
    )


def test_another_node_with_the_right_fence_is_not_the_holder(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    # To a node that never held it, the job does not exist.
    assert "MISSING file does not exist" == refusal(hive, f"/jobs/{job}/ctl", "start fence=1", W2)
    assert "DENIED permission denied: rule=lease-holder" == refusal(hive, f"/jobs/{job}/ctl", "start fence=1")


def test_a_holder_that_says_the_end_twice_is_answered_twice(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    told(hive, job, "start fence=1")
    assert job == told(hive, job, "ack fence=1 result=3") == told(hive, job, "ack fence=1 result=3")
    assert "ILLEGAL_MOVE illegal move: succeeded -> succeeded" == refusal(
        hive, f"/jobs/{job}/ctl", "ack fence=1 result=4", W1
    )


def test_a_cancelled_job_leaves_its_queue(hive: Folded) -> None:
    job = submit(hive)
    hive.write("/jobs/ctl", f"cancel job={job} reason='not needed'")
    assert ("cancelled", "not needed") == (hive.job_state(job), hive.state.jobs.by_id[job].text)
    assert [] == hive.state.jobs.waiting("default")


def test_a_cancelled_holder_is_fenced_off(hive: Folded) -> None:
    job = submit(hive)
    lease(hive)
    told(hive, job, "start fence=1")
    hive.write(f"/jobs/{job}/ctl", "cancel")
    assert "FENCED fenced: token=1 newest=2" == refusal(hive, f"/jobs/{job}/ctl", "ack fence=1", W1)
    assert "cancelled" == hive.state.jobs.by_id[job].attempts[0].end


def test_foreign_jobs_do_not_exist(hive: Folded) -> None:
    job = submit(hive)
    assert "MISSING file does not exist" == refusal(hive, "/jobs/ctl", f"cancel job={job}", BOB)
    assert "MISSING file does not exist" == refusal(hive, "/jobs/ctl", "cancel job=nothing")


def test_a_revision_that_has_passed_is_a_conflict(hive: Folded) -> None:
    job = submit(hive)
    rev = hive.state.jobs.by_id[job].rev
    assert f"CONFLICT conflict: rev have={rev} want=1" == refusal(
        hive, "/jobs/ctl", f"cancel job={job} if-rev=1"
    )
    hive.write("/jobs/ctl", f"cancel job={job} if-rev={rev}")


def test_observers_write_nothing_and_workers_their_own_words(hive: Folded) -> None:
    said = "DENIED permission denied: rule=default-deny role observer may not jobs.submit"
    assert said == refusal(hive, "/jobs/ctl", "submit topic=sum", EYE)
    assert "DENIED" == refusal(hive, "/jobs/ctl", "submit topic=sum", W1).split(" ")[0]
    job = submit(hive)
    assert "DENIED" == refusal(hive, f"/jobs/{job}", "expire fence=0").split(" ")[0]


def test_a_node_that_is_cordoned_or_unknown_gets_no_lease(hive: Folded) -> None:
    submit(hive)
    hive.write("/nodes/ctl", "cordon node=w1")
    assert "NODATA no such attribute: node=w1 is cordoned" == refusal(
        hive, "/pools/default/next", "lease", W1
    )
    hive.write("/pools/ctl", "drain pool=default")
    assert "pool=default is draining" in refusal(hive, "/pools/default/next", "lease", W2)
    hive.write("/ctl", "drain")
    assert "the hive is quiesced" in refusal(hive, "/pools/default/next", "lease", W2)


def test_terminal_states_lead_nowhere() -> None:
    assert {"succeeded", "failed", "cancelled"} == TERMINAL
    assert {state for moves in MOVES.values() for state in moves} | {"queued"} == set(MOVES)


actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("lease"), st.integers(0, 1), st.just(0)),
    st.tuples(
        st.sampled_from(["start", "renew", "ack", "nack error=e", "cancel", "expire", "release"]),
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=40))
def test_whatever_is_written_a_job_ends_once_and_fences_and_attempts_only_grow(
    script: list[tuple[str, int, int]],
) -> None:
    hive = Folded()
    ids: list[str] = []
    for verb, n, fence in script:
        before = dict(hive.state.jobs.by_id)
        act(hive, ids, verb, n, fence)
        jobs = hive.state.jobs
        for id, old in before.items():
            new = jobs.by_id[id]
            assert old.state == new.state or new.state in MOVES[old.state]
            assert old.fence <= new.fence
            assert len(old.attempts) <= len(new.attempts)
        for tenant in ("", ANN.tenant):
            queued = jobs.waiting("default", tenant)
            assert sorted(queued) == sorted(id for id, job in jobs.by_id.items() if job.state == "queued")
        assert set(jobs.held) == {id for id, job in jobs.by_id.items() if job.state in HELD}


def act(hive: Folded, ids: list[str], verb: str, n: int, fence: int) -> None:
    job = ids[n % len(ids)] if ids else "none"
    try:
        match verb:
            case "submit":
                ids.append(submit(hive, f"key=k{n} input={n % 2} priority={fence}"))
            case "lease":
                lease(hive, (W1, W2)[n])
            case "wait":
                hive.clock.advance(n * SECOND)
            case "cancel":
                hive.write(f"/jobs/{job}/ctl", "cancel")
            case "expire" | "release":
                hive.hive(f"/jobs/{job}", f"{verb} fence={fence}")
            case _:
                told(hive, job, f"{verb} fence={fence}", W1)
    except Refusal:
        pass


@pytest.mark.parametrize(
    "spelled",
    [
        "submit topic=sum key=k labels=c:d,a:b timeout=1m retries=03",
        '{"verb":"submit","topic":"sum","key":"k","labels":{"a":"b","c":"d"},"timeout":"60s","retries":3}',
    ],
)
def test_a_request_under_its_key_is_compared_by_what_it_says(hive: Folded, spelled: str) -> None:
    job = submit(hive, "key=k labels=a:b,c:d timeout=60s retries=3")
    assert job == hive.write("/jobs/ctl", spelled)
    assert refusal(hive, "/jobs/ctl", "submit topic=sum key=k labels=a:b").startswith("IDEMPOTENCY")
