"""Attempts, delays, deadlines: how often a job is tried, and that it ends once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hives import ANN, W1, W2, Folded, Living, live, living, settled
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.errors import FsError
from skep.namespaces.agenda import SLACK, Agenda
from skep.namespaces.hive import HiveRules
from skep.namespaces.jobs import record
from skep.namespaces.jobs.core import LOSSES_MAX, backoff_ns
from skep.namespaces.jobs.due import TIMEOUT_GRACE_NS, due
from skep.namespaces.jobs.record import MOVES, TERMINAL, Ended
from skep.trace.clock import HOUR, MINUTE, SECOND, ManualClock
from skep.trace.rules import Meta, Refusal


@pytest.fixture
def hive() -> Folded:
    return Folded()


def submit(hive: Folded, more: str = "") -> str:
    return hive.write("/jobs/ctl", f"submit topic=sum {more}")


def attempt(hive: Folded, job: str, last: str = "nack error=e") -> None:
    """Lease the job, start it, and say ``last`` of it."""
    assert job == hive.write("/pools/default/next", "lease", W1)
    for verb in ("start", last):
        hive.write(f"/jobs/{job}/ctl", f"{verb} fence={hive.state.jobs.by_id[job].fence}", W1)


def wake(hive: Folded, job: str) -> None:
    hive.clock.time_ns = hive.state.jobs.by_id[job].until_ns
    hive.hive(f"/jobs/{job}", "wake")


def test_a_job_is_tried_as_often_as_it_has_retries_and_its_attempts_stay(hive: Folded) -> None:
    job = submit(hive, "retries=2")
    for _ in range(2):
        attempt(hive, job)
        assert ("delayed", "e") == (hive.job_state(job), hive.state.jobs.by_id[job].text)
        wake(hive, job)
    attempt(hive, job, "nack error=last code=bad-input")
    found = hive.state.jobs.by_id[job]
    assert ("failed", "last", "bad-input", "running") == (
        found.state, found.text, found.code, found.last_state,
    )  # fmt: skip
    assert ["nacked", "nacked", "nacked"] == [each.end for each in found.attempts]


def test_a_final_nack_is_the_last_whatever_retries_are_left(hive: Folded) -> None:
    job = submit(hive, "retries=9")
    attempt(hive, job, "nack error='not JSON' final=true")
    assert ("failed", "final") == (hive.job_state(job), hive.state.jobs.by_id[job].code)


def test_a_delay_is_what_the_worker_asks_for_and_does_not_end_before(hive: Folded) -> None:
    job = submit(hive, "retries=1")
    attempt(hive, job, "nack error=e delay=1h")
    assert hive.clock.now_ns() + HOUR == hive.state.jobs.by_id[job].until_ns
    with pytest.raises(Refusal, match="its delay is not over"):
        hive.hive(f"/jobs/{job}", "wake")
    with pytest.raises(Refusal, match="has no job waiting"):
        hive.write("/pools/default/next", "lease", W1)
    wake(hive, job)
    attempt(hive, job, "ack")
    assert "succeeded" == hive.job_state(job)


def test_a_delay_doubles_to_its_limit_and_half_of_it_is_chance() -> None:
    for failures, whole_ns in (
        (1, SECOND),
        (2, 2 * SECOND),
        (4, 8 * SECOND),
        (99, 5 * MINUTE),
    ):
        delays = {backoff_ns(failures, f"id-{n}", SECOND, 5 * MINUTE) for n in range(100)}
        assert all(whole_ns // 2 <= each < whole_ns for each in delays)
        assert len(delays) == 100
    assert 0 == backoff_ns(3, "id", 0, 5 * MINUTE)


def test_a_retry_that_would_come_after_the_deadline_is_none(hive: Folded) -> None:
    job = submit(hive, "retries=5 deadline=1m")
    attempt(hive, job, "nack error=e delay=2m")
    assert ("failed", "e") == (hive.job_state(job), hive.state.jobs.by_id[job].text)


def test_what_submit_does_not_say_its_topic_says_and_then_its_pool(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=p retries=7 timeout=1m deadline=1h")
    hive.write("/pools/ctl", "map topic=t pool=p retries=3")
    said = hive.write("/jobs/ctl", "submit topic=t timeout=2m")
    request = hive.state.jobs.by_id[said].request
    assert (3, 2 * MINUTE, HOUR) == (request.retries, request.timeout_ns, request.deadline_ns)
    hive.write("/pools/ctl", "drain pool=p")
    hive.write("/pools/ctl", "map topic=t pool=p")
    assert 7 == hive.state.jobs.by_id[hive.write("/jobs/ctl", "submit topic=t")].request.retries


def test_more_retries_than_a_record_should_hold_are_refused(hive: Folded) -> None:
    with pytest.raises(Refusal, match="submit: /retries: 101: expected 100 or less"):
        submit(hive, "retries=101")


def test_a_job_that_costs_every_worker_its_lease_ends(hive: Folded) -> None:
    job = submit(hive, "retries=100")
    for _ in range(LOSSES_MAX + 1):
        assert "queued" == hive.job_state(job)
        hive.write("/pools/default/next", "lease", W1)
        hive.clock.advance(30 * SECOND)
        hive.hive(f"/jobs/{job}", f"expire fence={hive.state.jobs.by_id[job].fence}")
    found = hive.state.jobs.by_id[job]
    assert ("failed", "lost", "expired") == (found.state, found.code, found.attempts[-1].end)


def test_a_job_that_its_holder_gives_back_has_not_failed_and_goes_to_another(hive: Folded) -> None:
    job = submit(hive)
    attempt(hive, job, "release")
    assert "queued" == hive.job_state(job)
    with pytest.raises(Refusal, match="token=1 newest=2"):
        hive.write(f"/jobs/{job}/ctl", "release fence=1", W1)
    assert job == hive.write("/pools/default/next", "lease", W2)
    assert ["released", ""] == [each.end for each in hive.state.jobs.by_id[job].attempts]


def test_a_job_that_every_worker_gives_back_ends(hive: Folded) -> None:
    job = submit(hive)
    for _ in range(LOSSES_MAX + 1):
        attempt(hive, job, "release")
    found = hive.state.jobs.by_id[job]
    assert ("failed", "lost", "released") == (found.state, found.code, found.attempts[-1].end)


def test_a_nack_said_twice_is_answered_twice_and_counts_once(hive: Folded) -> None:
    job = submit(hive, "retries=1")
    attempt(hive, job)
    assert job == hive.write(f"/jobs/{job}/ctl", "nack error=e fence=1", W1)
    assert 1 == len(hive.state.jobs.by_id[job].attempts)
    wake(hive, job)
    with pytest.raises(Refusal, match="illegal move: queued -> failed"):
        hive.write(f"/jobs/{job}/ctl", "nack error=e fence=1", W1)


def test_a_delayed_job_can_be_cancelled(hive: Folded) -> None:
    job = submit(hive, "retries=1")
    attempt(hive, job)
    hive.write("/jobs/ctl", f"cancel job={job}")
    assert "cancelled" == hive.job_state(job)
    with pytest.raises(Refusal, match="illegal move"):
        hive.hive(f"/jobs/{job}", "wake")


def test_a_full_queue_takes_no_more_and_what_comes_back_has_a_place(hive: Folded) -> None:
    hive.write("/pools/ctl", "create pool=p queue=2")
    hive.write("/pools/ctl", "map topic=t pool=p")
    first = hive.write("/jobs/ctl", "submit topic=t")
    hive.write("/jobs/ctl", "submit topic=t key=k")
    with pytest.raises(Refusal, match="pool_overloaded: pool=p max=2"):
        hive.write("/jobs/ctl", "submit topic=t key=free")
    # The same job again is no more to wait for.
    hive.write("/jobs/ctl", "submit topic=t key=k")
    hive.write("/pools/p/next", "lease", W1)
    hive.write("/jobs/ctl", "submit topic=t key=free")
    hive.hive(f"/jobs/{first}", "release fence=1")
    assert 3 == hive.state.jobs.count_waiting("p")


# by the hive's timers


def test_an_attempt_that_its_worker_does_not_end_is_ended_and_tried_again() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit("timeout=10s retries=1")
        await alive.hive.take(W1, "default")
        await alive.run(job, "start")
        alive.clock.advance(10 * SECOND + TIMEOUT_GRACE_NS - 1)
        await alive.hive.tick()
        assert "running" == alive.job_state(job)
        alive.clock.advance(1)
        await alive.hive.tick()
        assert ("delayed", "timeout: it ran longer than 10s") == (
            alive.job_state(job), alive.state.jobs.by_id[job].text,
        )  # fmt: skip
        with pytest.raises(FsError, match="fenced: token=1 newest=2"):
            await alive.run(job, "ack fence=1")

    live(story)


def test_delays_and_deadlines_go_on_where_the_hive_was_killed(tmp_path: Path) -> None:
    async def story() -> None:
        clock = ManualClock()
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            job = await alive.submit("retries=1 deadline=1h")
            await alive.hive.take(W1, "default")
            await alive.run(job, "nack error=e delay=30m")
        clock.advance(30 * MINUTE)
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            assert "delayed" == alive.job_state(job)
            await alive.hive.tick()
            assert "queued" == alive.job_state(job)
        clock.advance(30 * MINUTE)
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            await alive.hive.tick()
            found = alive.state.jobs.by_id[job]
            assert ("failed", "deadline", "queued") == (found.state, found.code, found.last_state)
            assert "deadline: it has not ended within 1h, the last error: e" == found.text

    asyncio.run(story())


def test_a_running_job_s_deadline_ends_its_lease() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit("deadline=20s retries=9")
        await alive.hive.take(W1, "default")
        await alive.run(job, "start")
        alive.clock.advance(20 * SECOND)
        await alive.hive.tick()
        found = alive.state.jobs.by_id[job]
        assert ("failed", "deadline", "deadline") == (found.state, found.code, found.attempts[0].end)
        assert not alive.state.jobs.held

    live(story)


def test_a_woken_job_is_given_to_who_waits_for_one() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit("retries=1")
        await alive.hive.take(W1, "default")
        await alive.run(job, "nack error=e delay=1s")
        reader = asyncio.ensure_future(alive.hive.take(W2, "default"))
        await settled()
        assert not reader.done()
        alive.clock.advance(SECOND)
        await alive.hive.tick()
        assert (job, "w2", 2) == ((await reader).id, (await reader).node, len((await reader).attempts))

    live(story)


def test_what_came_to_nothing_is_asked_again_and_a_renewal_costs_no_entry(hive: Folded) -> None:
    job = submit(hive)
    hive.write("/pools/default/next", "lease", W1)
    jobs = hive.state.jobs.by_id
    agenda = Agenda(jobs.get, jobs.values())
    for _ in range(9):
        hive.clock.advance(10 * SECOND)
        hive.write(f"/jobs/{job}/ctl", "renew fence=1", W1)
        agenda.moved(jobs[job])
    assert 1 == len(agenda._heap)
    assert [] == list(agenda.take(hive.clock.now_ns(), 0))
    hive.clock.advance(30 * SECOND)
    for _ in range(2):
        assert [(job, "expire fence=1")] == [
            (of.id, line) for of, line in agenda.take(hive.clock.now_ns(), 0)
        ]
        assert [] == list(agenda.take(hive.clock.now_ns(), 0))
        hive.clock.advance(SECOND)


def test_jobs_that_have_ended_leave_the_agenda(hive: Folded) -> None:
    jobs = hive.state.jobs.by_id
    agenda = Agenda(jobs.get, ())
    job = submit(hive, "deadline=24h")
    waiting = jobs[job]
    hive.write("/jobs/ctl", f"cancel job={job}")
    for _ in range(3 * SLACK):
        agenda.moved(waiting)
        agenda.moved(jobs[job])
    assert len(agenda._heap) <= SLACK + 2


# a job ends once


class Recording(HiveRules):
    """Rules that remember the events of jobs."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, Meta]] = []

    def apply(self, state: Any, event: Any, meta: Meta) -> None:
        if event.__struct_config__.tag.startswith("job."):
            self.events.append((event, meta))
        super().apply(state, event, meta)


def tick(hive: Folded, agenda: Agenda) -> None:
    for job, line in agenda.take(hive.clock.now_ns(), 0):
        said(hive, f"/jobs/{job.id}", line)
        agenda.moved(hive.state.jobs.by_id[job.id])


def said(hive: Folded, path: str, line: str, who: Any = None) -> str:
    try:
        return hive.hive(path, line) if who is None else hive.write(path, line, who)
    except Refusal:
        return ""


def lines(n: int) -> Iterator[str]:
    yield from (f"submit topic=sum retries={n % 3}", f"submit topic=sum retries={n} deadline=40s timeout=5s")


ACTIONS = (
    "submit", "lease", "start", "renew", "ack", "nack error=e", "nack error=e final=true",
    "nack error=e delay=3s", "cancel", "release", "expire", "wake", "timeout", "overdue", "tick", "wait",
    "kill",
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.integers(0, 3)), max_size=50))
def test_whatever_is_written_killed_and_restarted_a_job_ends_once(script: list[tuple[str, int, int]]) -> None:
    hive = Folded()
    rules = hive.rules = Recording()
    jobs = hive.state.jobs
    agenda = Agenda(lambda id: hive.state.jobs.by_id.get(id), ())
    ids: list[str] = []
    for verb, n, m in script:
        before = dict(jobs.by_id)
        job = ids[n % len(ids)] if ids else "none"
        fence = jobs.by_id[job].fence - (m == 3) if ids else 0
        match verb:
            case "submit":
                ids.append(hive.write("/jobs/ctl", list(lines(n))[m % 2]))
            case "lease":
                said(hive, "/pools/default/next", "lease", (W1, W2)[n % 2])
            case "cancel":
                said(hive, f"/jobs/{job}/ctl", "cancel", ANN)
            case "wake" | "overdue":
                said(hive, f"/jobs/{job}", verb)
            case "expire" | "release" | "timeout":
                said(hive, f"/jobs/{job}", f"{verb} fence={fence}")
            case "wait":
                hive.clock.advance((n + 1) * 5 * SECOND)
            case "tick":
                tick(hive, agenda)
            case "kill":
                folded = record.Jobs()
                for event, meta in rules.events:
                    record.apply(folded, event, meta)
                assert folded == jobs
                agenda = Agenda(lambda id: hive.state.jobs.by_id.get(id), jobs.by_id.values())
            case _:
                said(hive, f"/jobs/{job}/ctl", f"{verb} fence={max(fence, 0)}", (W1, W2)[m % 2])
        for id, new in jobs.by_id.items():
            old = before.get(id, new)
            assert old.state == new.state or new.state in MOVES[old.state]
            assert old.fence <= new.fence
            assert [each.fence for each in old.attempts] == [
                each.fence for each in new.attempts[: len(old.attempts)]
            ]
            agenda.moved(new)
    # Time alone brings an end to what has a deadline, and a dead letter is what failed.
    for _ in range(30):
        hive.clock.advance(10 * SECOND)
        tick(hive, agenda)
    ends = Counter(event.job for event, _ in rules.events if isinstance(event, Ended))
    assert set(ends) == {id for id, job in jobs.by_id.items() if job.state in TERMINAL}
    assert set(ends.values()) <= {1}
    assert all(job.state in TERMINAL for job in jobs.by_id.values() if job.request.deadline_ns)
    assert not jobs.held
    assert {id for ids in jobs.dead.values() for id in ids} == {
        id for id, job in jobs.by_id.items() if job.state == "failed"
    }
    assert all(due(job) is None for job in jobs.by_id.values() if job.state in TERMINAL)
