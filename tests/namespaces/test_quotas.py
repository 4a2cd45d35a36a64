"""Quotas of tenants and actors: what they count, what they refuse, and that no burst goes beyond them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from door import BOTH, Door, say
from hives import ANN, BOB, W1, W2, Folded, Living, live, living
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.namespaces.artifacts.store import KEPT_NS, Store
from skep.namespaces.hive import UNRECORDED, HiveRules
from skep.namespaces.jobs.record import HELD, TERMINAL
from skep.namespaces.jobs.usage import ALL, DAY, NOTHING, Used, attempt_ns, bound_ns
from skep.namespaces.live import Heartbeat
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.packed import pack
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, MINUTE, MS, SECOND, ManualClock, SystemClock
from skep.trace.entry import Line
from skep.trace.rules import Refusal
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn

AMY = Caller("unix:amy", "operator")
BEA = Caller("unix:bea", "operator", tenant=BOB.tenant)
Said = int | str


def publishing(scope: str, document: dict[str, dict[str, Said]]) -> str:
    content = msgspec.json.encode(document)
    args = {"scope": scope, "sha256": sha256(content).hexdigest(), "content": pack(content)}
    return ctl.line("publish", args)


def limiting(scope: str, limits: dict[str, Said]) -> str:
    """The line that publishes these limits, and nothing else, for a scope; ``_`` stands for - in names."""
    return publishing(scope, {"limits": {name.replace("_", "-"): said for name, said in limits.items()}})


def limit(hive: Folded, scope: str = "system", **limits: Said) -> None:
    hive.write("/config/ctl", limiting(scope, limits))


async def limit_live(alive: Living, scope: str = "system", **limits: Said) -> None:
    await alive.write("/config/ctl", limiting(scope, limits))


@pytest.fixture
def hive() -> Folded:
    return Folded()


def submit(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    return hive.write("/jobs/ctl", f"submit topic=sum {more}", who)


def lease(hive: Folded, who: Caller = W1) -> str:
    return hive.write("/pools/default/next", "lease", who)


def tell(hive: Folded, job: str, verb: str, who: Caller = W1) -> None:
    hive.write(f"/jobs/{job}/ctl", f"{verb} fence={hive.state.jobs.by_id[job].fence}", who)


def run(hive: Folded, job: str, took_ns: int, last: str = "ack") -> None:
    """Lease the job, and do it for so long."""
    assert job == lease(hive)
    tell(hive, job, "start")
    hive.clock.advance(took_ns)
    tell(hive, job, last)


def refused(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        submit(hive, more, who)
    return f"{caught.value.code} {caught.value.text}"


def used(hive: Folded, tenant: str = HIVE_TENANT, actor: str = ALL) -> Used:
    return hive.state.jobs.usage.of(tenant, actor)


# each limit


def test_jobs_that_wait_are_limited_for_a_tenant_and_for_an_actor(hive: Folded) -> None:
    limit(hive, waiting=3, actor_waiting=2)
    first = submit(hive)
    submit(hive, "key=k")
    assert "QUOTA quota exceeded: actor-waiting have=2 max=2" == refused(hive, "key=new")
    submit(hive, who=AMY)
    assert "QUOTA quota exceeded: waiting have=3 max=3" == refused(hive, who=AMY)
    # A submit said again is no other job, and a refused one has left its key free.
    submit(hive, "key=k")
    hive.write("/jobs/ctl", f"cancel job={first}")
    submit(hive, "key=new input=another")
    for _ in range(2):
        submit(hive, who=BOB)
    assert (3, 2, 2) == (
        used(hive).waiting, used(hive, actor=ANN.principal).waiting, used(hive, BOB.tenant).waiting,
    )  # fmt: skip


def test_what_comes_back_from_a_lease_has_a_place_and_nothing_new_has_until_it_is_gone(hive: Folded) -> None:
    limit(hive, waiting=1)
    job = submit(hive, "retries=1")
    lease(hive)
    other = submit(hive)
    tell(hive, job, "nack error=e")
    assert ("delayed", 2) == (hive.job_state(job), used(hive).waiting)
    assert "QUOTA quota exceeded: waiting have=2 max=1" == refused(hive)
    hive.write("/jobs/ctl", f"cancel job={other}")
    assert "QUOTA quota exceeded: waiting have=1 max=1" == refused(hive)


def test_a_tenant_at_its_limit_of_held_jobs_stands_in_nobody_s_way(hive: Folded) -> None:
    limit(hive, BOB.tenant, jobs=1)
    of_bob = [submit(hive, "priority=9", BOB) for _ in range(3)]
    of_ann = [submit(hive, "priority=0") for _ in range(2)]
    taken = [lease(hive) for _ in range(3)]
    assert {of_bob[0], *of_ann} == set(taken)
    with pytest.raises(Refusal) as caught:
        lease(hive)
    assert "NODATA" == caught.value.code
    tell(hive, of_bob[0], "start")
    tell(hive, of_bob[0], "ack")
    assert of_bob[1] == lease(hive)


def test_an_actor_at_its_limit_stands_in_no_other_actor_s_way(hive: Folded) -> None:
    limit(hive, actor_jobs=1)
    anns = [submit(hive, "priority=9") for _ in range(2)]
    amys = submit(hive, who=AMY)
    assert [anns[0], amys] == [lease(hive), lease(hive)]
    with pytest.raises(Refusal):
        lease(hive)
    hive.write("/jobs/ctl", f"cancel job={anns[0]}")
    assert anns[1] == lease(hive)


def test_so_many_submissions_come_at_once_and_then_one_each_time_that_one_is_paid_for(hive: Folded) -> None:
    limit(hive, submits=4, actor_submits=3)
    for _ in range(3):
        submit(hive)
    assert "THROTTLED throttled: retry-ms=334" == refused(hive)
    submit(hive, who=AMY)
    assert "THROTTLED throttled: retry-ms=250" == refused(hive, who=AMY)
    hive.clock.advance(250 * MS)
    submit(hive, who=AMY)
    hive.clock.advance(84 * MS)
    # The actor could, its tenant not yet.
    assert "THROTTLED throttled: retry-ms=166" == refused(hive)
    hive.clock.advance(10 * SECOND)
    for _ in range(3):
        submit(hive)
    limit(hive, submits=0)
    hive.clock.advance(MINUTE)
    assert "QUOTA quota exceeded: submits have=0 max=0" == refused(hive)


def test_a_clock_that_is_put_back_throttles_nobody_for_that_long(hive: Folded) -> None:
    limit(hive, submits=2)
    for _ in range(2):
        submit(hive)
    hive.clock.time_ns -= HOUR
    for _ in range(2):
        submit(hive)
    assert "THROTTLED throttled: retry-ms=500" == refused(hive)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(0, 700), max_size=20))
def test_in_no_time_come_more_submissions_than_the_limit_says(most: int, gaps_ms: list[int]) -> None:
    taken: list[int] = []
    folded = Folded()
    limit(folded, submits=most)
    for gap_ms in gaps_ms:
        folded.clock.advance(gap_ms * MS)
        with suppress(Refusal):
            submit(folded)
            taken.append(folded.clock.now_ns())
    for k, first_ns in enumerate(taken):
        for n, last_ns in enumerate(taken[k:], 1):
            assert n <= most + (last_ns - first_ns) * most / SECOND


def test_runtime_of_a_day_is_limited_and_reserved_by_what_runs(hive: Folded) -> None:
    hive.clock.time_ns = 10 * DAY
    limit(hive, day_runtime="10m")
    assert "USAGE usage: submit: timeout= is missing: limits/day-runtime is 10m" == refused(hive)
    assert "QUOTA quota exceeded: day-runtime have=11m max=10m" == refused(hive, "timeout=11m")
    jobs = [submit(hive, "timeout=4m") for _ in range(4)]
    run(hive, jobs[0], 3 * MINUTE)
    assert (3 * MINUTE, 0) == (used(hive).ran_ns, used(hive).reserved_ns)
    lease(hive)
    # 3m ran and 4m are reserved.
    with pytest.raises(Refusal):
        lease(hive)
    short = submit(hive, "timeout=2m")
    assert short == lease(hive)
    tell(hive, short, "start")
    tell(hive, short, "ack")
    tell(hive, jobs[1], "start")
    hive.clock.advance(HOUR)
    # It ran longer than it may, what is beyond that was nobody's wish.
    tell(hive, jobs[1], "ack")
    assert 7 * MINUTE == used(hive).ran_ns
    with pytest.raises(Refusal):
        lease(hive)
    hive.clock.time_ns = 11 * DAY
    assert jobs[2] == lease(hive)
    tell(hive, jobs[2], "start")
    hive.clock.advance(MINUTE)
    tell(hive, jobs[2], "ack")
    assert MINUTE == used(hive).ran_ns


def test_of_an_attempt_that_ran_over_midnight_a_day_has_its_part(hive: Folded) -> None:
    hive.clock.time_ns = 11 * DAY - 2 * MINUTE
    run(hive, submit(hive), 5 * MINUTE)
    assert 3 * MINUTE == used(hive).ran_ns == used(hive, actor=ANN.principal).ran_ns


def test_a_job_asks_for_no_more_retries_and_priority_than_it_may(hive: Folded) -> None:
    document: dict[str, dict[str, Said]] = {
        "limits": {"retries": 2}, "jobs": {"priority-max": 3, "retries": 7},
    }  # fmt: skip
    hive.write("/config/ctl", publishing("system", document))
    assert "QUOTA quota exceeded: retries have=3 max=2" == refused(hive, "retries=3")
    assert "QUOTA quota exceeded: priority have=4 max=3" == refused(hive, "priority=4")
    request = hive.state.jobs.by_id[submit(hive)].request
    assert (2, 3) == (request.retries, request.priority)
    hive.write("/pools/ctl", "map topic=eager pool=default retries=9")
    job = hive.write("/jobs/ctl", "submit topic=eager")
    assert 2 == hive.state.jobs.by_id[job].request.retries


def test_a_retry_of_a_dead_letter_is_a_submission_of_who_submitted_it(hive: Folded) -> None:
    job = submit(hive)
    run(hive, job, 0, "nack error=e final=true")
    limit(hive, actor_waiting=1)
    submit(hive)
    with pytest.raises(Refusal, match="quota exceeded: actor-waiting have=1 max=1"):
        hive.write("/dlq/ctl", f"retry id={job}", AMY)
    limit(hive)
    again = hive.write("/dlq/ctl", f"retry id={job}", AMY)
    assert ANN.principal == hive.state.jobs.by_id[again].request.actor
    assert (2, NOTHING) == (
        used(hive, actor=ANN.principal).waiting, used(hive, actor=AMY.principal),
    )  # fmt: skip


def test_limits_move_with_what_is_published_and_lowering_ends_nothing(hive: Folded) -> None:
    limit(hive, jobs=2, waiting=9)
    for _ in range(4):
        submit(hive)
    held = [lease(hive), lease(hive)]
    limit(hive, jobs=1, waiting=1)
    assert "QUOTA quota exceeded: waiting have=2 max=1" == refused(hive)
    tell(hive, held[0], "start")
    tell(hive, held[0], "ack")
    with pytest.raises(Refusal):
        lease(hive)
    assert "leased" == hive.job_state(held[1])
    limit(hive, jobs=3)
    lease(hive)
    lease(hive)
    assert 3 == used(hive).held


def test_where_configuration_cannot_be_read_nothing_is_submitted_or_leased(hive: Folded) -> None:
    submit(hive)
    record = hive.state.config.scopes
    limit(hive, jobs=1)
    version = msgspec.structs.replace(record["system"].version, content="unreadable")
    record["system"] = msgspec.structs.replace(record["system"], versions={1: version})
    hive.state.config.changed()
    assert refused(hive).startswith("CONFLICT")
    with pytest.raises(Refusal):
        lease(hive)


def test_who_uses_nothing_any_more_takes_no_memory(hive: Folded) -> None:
    hive.clock.time_ns = 10 * DAY
    limit(hive, submits=1000, actor_submits=1000)
    for n in range(50):
        hive.write("/jobs/ctl", f"cancel job={submit(hive, who=Caller(f'unix:u{n}', 'operator'))}")
    assert 51 == len(hive.state.jobs.usage.by_tenant[HIVE_TENANT])
    hive.clock.advance(MINUTE)
    job = submit(hive, who=BOB)
    assert {BOB.tenant} == set(hive.state.jobs.usage.by_tenant)
    run(hive, job, MINUTE)
    assert MINUTE == used(hive, BOB.tenant).ran_ns
    hive.clock.time_ns = 11 * DAY
    submit(hive)
    assert {HIVE_TENANT} == set(hive.state.jobs.usage.by_tenant)


# always


PEOPLE = (ANN, AMY, BOB, BEA)
LIMITED: dict[str, dict[str, Said]] = {
    "limits": {"jobs": 3, "waiting": 5, "actor-jobs": 2, "actor-waiting": 4, "day-runtime": "20m"},
    "jobs": {"history": "48h"},  # what is recounted is in memory
}


class Counted(RuleBasedStateMachine):
    """Whatever happens to jobs: what is counted is what the table of jobs says, and no limit is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.hive = Folded()
        self.hive.clock.time_ns = 10 * DAY + 23 * HOUR

    @initialize()
    def limited(self) -> None:
        self.hive.write("/config/ctl", publishing("system", LIMITED))

    def attempt(self, path: str, line: str, who: Caller = ANN) -> str:
        try:
            return self.hive.write(path, line, who)
        except Refusal:
            return ""

    def any_job(self, n: int, *states: str) -> str:
        jobs = [job.id for job in self.hive.state.jobs.by_id.values() if job.state in states]
        return jobs[n % len(jobs)] if jobs else ""

    @rule(who=st.sampled_from(PEOPLE), timeout=st.integers(1, 9), retries=st.integers(0, 2))
    def submit(self, who: Caller, timeout: int, retries: int) -> None:
        tenant = self.hive.state.jobs.usage.of(who.tenant)
        actor = self.hive.state.jobs.usage.of(who.tenant, who.principal)
        done = self.attempt("/jobs/ctl", f"submit topic=sum timeout={timeout}m retries={retries}", who)
        assert bool(done) == (tenant.waiting < 5 and actor.waiting < 4)

    @rule(who=st.sampled_from((W1, W2)))
    def lease(self, who: Caller) -> None:
        self.attempt("/pools/default/next", "lease", who)

    @rule(
        n=st.integers(0, 99),
        verb=st.sampled_from(("start", "ack", "nack error=e", "nack error=e final=true")),
    )
    def tell(self, n: int, verb: str) -> None:
        if job := self.any_job(n, *HELD):
            record = self.hive.state.jobs.by_id[job]
            who = W1 if record.node == "w1" else W2
            self.attempt(f"/jobs/{job}/ctl", f"{verb} fence={record.fence}", who)

    @rule(n=st.integers(0, 99))
    def expire(self, n: int) -> None:
        if job := self.any_job(n, *HELD):
            record = self.hive.state.jobs.by_id[job]
            self.hive.clock.time_ns = max(self.hive.clock.time_ns, record.until_ns)
            self.hive.hive(f"/jobs/{job}", f"expire fence={record.fence}")

    @rule(n=st.integers(0, 99))
    def wake(self, n: int) -> None:
        if job := self.any_job(n, "delayed"):
            until_ns = self.hive.state.jobs.by_id[job].until_ns
            self.hive.clock.time_ns = max(self.hive.clock.time_ns, until_ns)
            self.hive.hive(f"/jobs/{job}", "wake")

    @rule(n=st.integers(0, 99))
    def cancel(self, n: int) -> None:
        if job := self.any_job(n, "queued", "delayed", *HELD):
            tenant = self.hive.state.jobs.by_id[job].request.tenant
            self.attempt("/jobs/ctl", f"cancel job={job}", ANN if tenant == HIVE_TENANT else BOB)

    @rule(minutes=st.integers(1, 10))
    def wait(self, minutes: int) -> None:
        self.hive.clock.advance(minutes * MINUTE)

    @invariant()
    def is_what_the_table_says(self) -> None:
        jobs = self.hive.state.jobs
        expected: dict[tuple[str, str], Used] = {}
        for job in jobs.by_id.values():
            request = job.request
            ended = job.attempts[:-1] if job.held else job.attempts
            more = Used(
                job.state not in TERMINAL and not job.held,
                job.held,
                job.held * bound_ns(request),
                sum(attempt_ns(request, attempt, jobs.usage.day) for attempt in ended),
            )
            for place in ((request.tenant, ALL), (request.tenant, request.actor)):
                have = expected.get(place, NOTHING)
                expected[place] = Used(*(getattr(have, f) + getattr(more, f) for f in Used.__struct_fields__))
        found = {
            (tenant, actor): used
            for tenant, rows in jobs.usage.by_tenant.items()
            for actor, used in rows.items()
        }
        assert {place: used for place, used in expected.items() if used != NOTHING} == found

    @invariant()
    def passes_no_limit(self) -> None:
        for tenant in {who.tenant for who in PEOPLE}:
            rows = self.hive.state.jobs.usage.by_tenant.get(tenant, {})
            for actor, row in rows.items():
                assert row.held <= (3 if actor == ALL else 2)
                assert row.ran_ns + row.reserved_ns <= 20 * MINUTE


Counted.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestWhatIsCountedIsWhatTheTableSays = pytest.mark.slow(Counted.TestCase)


# through the hive's turn


async def burst(*doing: Awaitable[object]) -> tuple[int, set[str]]:
    """All at once: how many were done, and what kinds of refusals there were."""
    done = await asyncio.gather(*doing, return_exceptions=True)
    kinds = {each.kind.name for each in done if isinstance(each, FsError)}
    assert not [each for each in done if isinstance(each, BaseException) and not isinstance(each, FsError)]
    return sum(not isinstance(each, FsError) for each in done), kinds


def sessions(who: Caller, count: int) -> list[Caller]:
    return [msgspec.structs.replace(who, session=f"s{n}") for n in range(count)]


def test_no_burst_of_submissions_goes_beyond_a_limit() -> None:
    async def story(alive: Living) -> None:
        await limit_live(alive, waiting=10, actor_waiting=7)
        many = [alive.submit(f"key=k{n}", who) for n, who in enumerate(sessions(ANN, 40))]
        many += [alive.submit(f"key=a{n}", who) for n, who in enumerate(sessions(AMY, 40))]
        assert (10, {"QUOTA"}) == await burst(*many)
        usage = alive.state.jobs.usage
        assert [10, 7, 3] == sorted((u.waiting for u in usage.by_tenant[HIVE_TENANT].values()), reverse=True)
        await limit_live(alive, submits=12, actor_submits=8)
        many = [alive.submit(who=who) for who in (*sessions(BOB, 40), *sessions(BEA, 40))]
        assert (12, {"THROTTLED"}) == await burst(*many)

    live(story)


def test_no_burst_of_readers_has_more_held_than_the_limit_and_each_end_makes_room_for_one() -> None:
    async def story(alive: Living) -> None:
        await limit_live(alive, jobs=3, actor_jobs=2)
        for who in (ANN, ANN, ANN, ANN, AMY, AMY, BOB, BOB, BOB):
            await alive.submit(who=who)
        readers = [asyncio.ensure_future(alive.hive.take(W1, "default")) for _ in range(12)]
        await until(lambda: sum(each.done() for each in readers) == 5)
        held = Counter(job.result().request.actor for job in readers if job.done())
        assert {ANN.principal: 2, AMY.principal: 1, BOB.principal: 2} == held
        # Nobody asks again and again meanwhile.
        asked = count_asks(alive)
        await quiet(alive)
        assert [] == asked
        first = next(
            each.result() for each in readers if each.done() and each.result().request.actor == AMY.principal
        )
        await alive.run(first.id, "start")
        await alive.run(first.id, "ack")
        await until(lambda: sum(each.done() for each in readers) == 6)
        assert ["/pools/default/next"] == [path for path in asked if path.endswith("next")]
        assert 3 == alive.state.jobs.usage.of(HIVE_TENANT).held
        # A limit that is raised lets those who wait go on at once.
        await limit_live(alive)
        await until(lambda: sum(each.done() for each in readers) == 9)
        for each in readers:
            each.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    live(story)


def count_asks(alive: Living) -> list[str]:
    """What is asked of the turn from now on, in lines."""
    asked: list[str] = []
    submit = alive.hive.turn.submit

    async def counted(line: Line) -> Any:
        asked.append(line.path)
        return await submit(line)

    alive.hive.turn.submit = counted  # type: ignore[method-assign]
    return asked


async def quiet(alive: Living) -> None:
    """Some commits and ticks have gone by."""
    await alive.hive.tick()
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_who_waits_for_the_day_to_end_is_told_when_it_has() -> None:
    async def story(alive: Living) -> None:
        alive.clock.time_ns = 10 * DAY
        await limit_live(alive, day_runtime="1m")
        for _ in range(2):
            await alive.submit("timeout=1m")
        job = await alive.hive.take(W1, "default")
        reader = asyncio.ensure_future(alive.hive.take(W1, "default"))
        await alive.run(job.id, "start")
        alive.clock.advance(MINUTE)
        await alive.run(job.id, "ack")
        asked = count_asks(alive)
        await quiet(alive)
        assert (False, []) == (reader.done(), asked)
        alive.clock.time_ns = 11 * DAY
        await alive.hive.hear("w1", Heartbeat())
        await alive.hive.tick()
        await reader

    live(story)


@pytest.mark.slow
def test_two_processes_of_one_hive_keep_one_limit(tmp_path: Path) -> None:
    async def story() -> None:
        ledger, clock = str(tmp_path / "ledger.db"), ManualClock()
        async with (
            living(tmp_path / "one", ledger, clock) as one,
            living(tmp_path / "two", ledger, clock) as two,
        ):
            await limit_live(one, waiting=9, jobs=4)
            many = [(one, two)[n % 2].submit(f"key=k{n}", who) for n, who in enumerate(sessions(ANN, 30))]
            assert (9, {"QUOTA"}) == await burst(*many)
            readers = [asyncio.ensure_future(hive.hive.take(W1, "default")) for hive in (one, two) * 4]
            await until(lambda: sum(each.done() for each in readers) == 4)
            for alive in (one, two):
                await quiet(alive)
                assert 4 == alive.state.jobs.usage.of(HIVE_TENANT).held
            for each in readers:
                each.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    asyncio.run(story())


def test_after_a_kill_usage_is_what_it_was(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path, str(tmp_path / "ledger.db")) as alive:
            await limit_live(alive, submits=50, actor_submits=50)
            for who in (ANN, AMY, BOB):
                for _ in range(3):
                    await alive.submit("timeout=5m retries=1", who)
            for n in range(5):
                job = await alive.hive.take(W1, "default")
                await alive.run(job.id, "start")
                alive.clock.advance(SECOND * n)
                if n < 3:
                    await alive.run(job.id, "nack error=e" if n else "ack")
            before, clock = alive.state.jobs.usage, alive.clock
            # Another process opens what a killed one has left: nothing was said to the first.
            ledger = SqliteLedger(str(tmp_path / "ledger.db"))
            turn = Turn(ledger, HiveRules(), UNRECORDED)
            assert (before, alive.state.artifacts.sizes) == (
                turn.state.jobs.usage,
                turn.state.artifacts.sizes,
            )
            await turn.close()
            ledger.close()
            assert 2 == before.of(HIVE_TENANT).held + before.of(BOB.tenant).held
            assert clock.now_ns() > 0

    asyncio.run(story())


# artifacts


async def stage(door: Door, name: str, size: int, piece: int = 100) -> int:
    """Write a file of so many bytes in pieces; how many there was room for."""
    chan = await door.create("/artifacts/stage", name)
    wrote = 0
    with suppress(FsError):
        while wrote < size:
            data = name[-1] * min(piece, size - wrote)
            await say(chan, data, wrote)
            wrote += len(data)
            await asyncio.sleep(0)
    await chan.clunk()
    return wrote


async def seal(door: Door, name: str, more: str = "") -> None:
    await door.write("/artifacts/ctl", f"seal name={name} {more}\n")


async def artifact_bytes(door: Door) -> str:
    lines = (await door.read("/tenants/self/usage")).splitlines()
    return next(line for line in lines if line.startswith("artifact-bytes"))


def test_what_is_staged_and_sealed_together_never_goes_beyond_the_limit() -> None:
    async def story(alive: Living) -> None:
        await limit_live(alive, artifact_bytes=5000)
        tree = hive_tree(alive.hive)
        doors = [Door(tree, who) for who in (ANN, AMY)]
        wrote = await asyncio.gather(*(stage(doors[n % 2], f"f{n}", 900 + n) for n in range(8)))
        assert 5000 - 100 < sum(wrote) <= 5000
        await seal(doors[0], "f0")
        staged = sum(wrote) - wrote[0]
        assert f"artifact-bytes have={sum(wrote)} staged={staged} max=5000" == await artifact_bytes(doors[0])
        assert 0 == await stage(doors[1], "g", 1000, 1000)
        # What others have is nothing to this tenant.
        assert 1000 == await stage(Door(tree, BOB), "g", 1000)
        await (await doors[0].walk("/artifacts/stage/f2")).remove()
        assert wrote[2] // 100 * 100 <= await stage(doors[0], "h", 5000) <= wrote[2] + 100
        digest = next(iter(alive.state.artifacts.by_hash[HIVE_TENANT]))
        await alive.write("/artifacts/ctl", f"remove sha256={digest}")
        assert wrote[0] // 100 * 100 <= await stage(doors[1], "i", 5000)

    live(story)


def test_a_limit_that_was_lowered_below_what_is_staged_lets_nothing_be_sealed_beyond_it() -> None:
    async def story(alive: Living) -> None:
        ann = Door(hive_tree(alive.hive), ANN)
        for name in ("a", "b"):
            await stage(ann, name, 300)
        await limit_live(alive, artifact_bytes=500)
        done = await burst(seal(ann, "a"), seal(ann, "b"))
        assert ((1, {"QUOTA"}), 300) == (done, alive.state.artifacts.sizes[HIVE_TENANT])
        await limit_live(alive, artifact_size=200)
        # What is sealed already takes no room.
        digest = next(iter(alive.state.artifacts.by_hash[HIVE_TENANT]))
        name = "a" if "a" not in await ann.names("/artifacts/stage") else "b"
        await stage(ann, name, 200)
        chan = await ann.open(f"/artifacts/stage/{name}", BOTH)
        with pytest.raises(FsError, match="too large: max=200 bytes of one artifact"):
            await say(chan, "x", 200)
        await chan.clunk()
        assert digest in alive.state.artifacts.by_hash[HIVE_TENANT]

    live(story)


def test_an_output_has_room_in_its_job_s_tenant_s_bytes_and_in_the_job_s() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        await limit_live(alive, BOB.tenant, artifact_bytes=1000)
        job = await alive.submit("bytes=600", who=BOB)
        await alive.hive.take(W1, "default")
        w1, bob = Door(tree, W1), Door(tree, BOB)
        assert 500 == await stage(bob, "mine", 500)
        # The node's bytes are its own tenant's until they are sealed.
        assert [600, 500, 601] == [await stage(w1, *each) for each in (("a", 600), ("b", 500), ("c", 601))]
        await alive.run(job, "start")
        assert (0, {"QUOTA"}) == await burst(seal(w1, "a", f"job={job}"))
        await seal(w1, "b", f"job={job}")
        assert "artifact-bytes have=1000 staged=500 max=1000" == await artifact_bytes(bob)
        await limit_live(alive, BOB.tenant)
        with pytest.raises(FsError, match="quota exceeded: bytes have=1101 max=600"):
            await seal(w1, "c", f"job={job}")

    live(story)


def test_an_actor_s_bytes_are_those_it_sealed_last_and_its_jobs_outputs(hive: Folded) -> None:
    limit(hive, actor_artifact_bytes=100)

    def seal(name: str, size: int, who: Caller = ANN, more: str = "") -> str:
        digest = sha256(name.encode()).hexdigest()
        try:
            hive.write("/artifacts/ctl", f"seal name={name} sha256={digest} size={size} {more}", who)
        except Refusal as refusal:
            return refusal.text
        return ""

    full = "quota exceeded: actor-artifact-bytes have={} max=100"
    assert ["", full.format(60), ""] == [seal("a", 60), seal("b", 41), seal("b", 40)]
    job = submit(hive, who=AMY)
    lease(hive)
    assert ["", full.format(90)] == [seal("out", 90, W1, f"job={job}"), seal("more", 11, W1, f"job={job}")]
    # What another has sealed is the one's who seals it next.
    assert [full.format(90), "", ""] == [seal("a", 60, AMY), seal("out", 90, BOB), seal("out", 90, BOB)]
    actors = hive.state.artifacts.actors
    assert {ANN.principal: 100, AMY.principal: 90} == actors[HIVE_TENANT]
    hive.write("/artifacts/ctl", f"remove sha256={sha256(b'a').hexdigest()}")
    assert ["", {ANN.principal: 100, AMY.principal: 90}] == [seal("c", 60), actors[HIVE_TENANT]]


def test_what_was_staged_before_a_start_counts_and_what_was_swept_does_not(tmp_path: Path) -> None:
    most = 1000
    store = Store(tmp_path, limit=lambda tenant: (0, most))
    for name in ("a", "b"):
        file = store.create("t\0ann", name)
        file.write(0, memoryview(b"x" * 400))
        store.close(file)
    store = Store(tmp_path, limit=lambda tenant: (0, most))
    assert (800, 0) == (store.room.used("t"), store.room.used("other"))
    file = store.create("t\0amy", "c")
    with pytest.raises(FsError, match="quota exceeded: artifact-bytes have=800 max=1000"):
        file.write(0, memoryview(b"x" * 201))
    file.write(0, memoryview(b"x" * 200))
    # Removed, it takes room until nobody has it open.
    store.remove("t\0amy", "c")
    assert 1000 == store.room.used("t")
    file.truncate(50)
    assert 850 == store.room.used("t")
    store.close(file)
    asyncio.run(store.sweep(SystemClock().now_ns() + 2 * KEPT_NS, lambda digest: True))
    assert 0 == store.room.used("t")


# files


def test_a_tenant_s_limits_and_usage_are_files_for_itself_and_for_the_hive_s_own() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        ann, bob = Door(tree, ANN), Door(tree, BOB)
        name = BOB.tenant.replace("/", ":")
        assert ["self", name] == await bob.names("/tenants")
        await limit_live(alive, BOB.tenant, jobs=3, day_runtime="1h", actor_submits=2)
        for who in (BOB, BOB, BEA):
            await alive.submit("timeout=10m", who)
        await alive.hive.take(W1, "default")
        assert ["self", "default:default:default", name] == await ann.names("/tenants")
        usage = (
            "jobs have=1 max=3\nwaiting have=2\nsubmits have=0\n"
            "day-runtime have=0s reserved=10m max=1h\nartifact-bytes have=0 staged=0\n"
        )
        for door, path in ((bob, "self"), (bob, name), (ann, name)):
            assert usage == await door.read(f"/tenants/{path}/usage")
        assert "jobs have=0\n" == (await ann.read("/tenants/self/usage")).splitlines(keepends=True)[0]
        limits = await bob.read("/tenants/self/limits")
        assert f"\njobs 3 {BOB.tenant}@1\nwaiting - default\n" in "\n" + limits
        assert (
            "unix:bea jobs=0 waiting=1 submits=1 day-runtime=0s artifact-bytes=0\n"
            "unix:bob jobs=1 waiting=1 submits=2 day-runtime=0s artifact-bytes=0\n"
        ) == await bob.read("/tenants/self/actors")
        for place in ("default:default:default", "third:project:env", BOB.tenant, "none"):
            assert not await bob.exists(f"/tenants/{place}")
        assert not await ann.exists("/tenants/third:project:env")

    live(story)
