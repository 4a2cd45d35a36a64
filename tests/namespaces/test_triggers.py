"""Triggers: ticks of zones, events, each fired for once, whatever dies; whose jobs they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from door import Door
from hives import ANN, BOB, EYE, W1, Folded, Living, live, living
from hypothesis import given, settings
from hypothesis import strategies as st
from trusting import FOUND

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.occasions import Occasion
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.tree import hive_tree
from skep.namespaces.triggers.core import CHAINED_MAX, CHAINED_NS, DEPTH_MAX, ON_MAX, RECENT, Trigger
from skep.namespaces.triggers.ticks import check, newest
from skep.namespaces.triggers.watch import MISSED_MAX, SEEN_EVERY, WAITING_MAX, Watch
from skep.trace.clock import EPOCH, HOUR, MINUTE, SECOND, ManualClock, parse_rfc3339, rfc3339
from skep.trace.entry import OK, Entry
from skep.trace.rules import Refusal

CTL = "/triggers/ctl"
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
DAY = 24 * HOUR


def ns(text: str) -> int:
    return parse_rfc3339(text)


def days(cron: str, zone: str, day: str, hours: int = 24) -> list[str]:
    """The ticks of the day in the zone, and whatever comes until so many hours after its midnight, in UTC."""
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    begin = int((midnight - EPOCH).total_seconds()) * SECOND - SECOND
    found = newest(cron, zone, begin, begin + hours * HOUR, 1000)
    return [rfc3339(tick)[11:16] for tick in found]


# zones


@pytest.mark.parametrize(
    ("zone", "day", "tick"), [(BERLIN, "2026-03-29", "01:00"), (NEW_YORK, "2026-03-08", "07:00")]
)
def test_a_time_that_clocks_skip_fires_when_they_go_on(zone: str, day: str, tick: str) -> None:
    assert [tick] == days("30 2 * * *", zone, day)
    assert [tick] == days("0,30 2 * * *", zone, day)  # two times, one tick


@pytest.mark.parametrize(
    ("zone", "day", "first"), [(BERLIN, "2026-10-25", "00:30"), (NEW_YORK, "2026-11-01", "05:30")]
)
def test_a_time_that_comes_twice_fires_the_first_time(zone: str, day: str, first: str) -> None:
    hour = 2 if zone == BERLIN else 1
    assert [first] == days(f"30 {hour} * * *", zone, day, 25)


@pytest.mark.parametrize("cron", ["*/30 * * * *", "0,30 * * * *", "*/30 1-3 * * *"])
def test_what_begins_with_a_star_goes_by_real_time(cron: str) -> None:
    spring = days(cron, BERLIN, "2026-03-29", 6)
    autumn = days(cron, BERLIN, "2026-10-25", 6)
    if "1-3" in cron:
        assert ["00:00", "00:30", "01:00", "01:30"] == spring
        assert ["23:00", "23:30", "00:00", "00:30", "01:00", "01:30", "02:00", "02:30"] == autumn
    else:
        assert 12 == len(spring) == len(autumn)


def test_an_hour_that_begins_with_a_star_goes_by_real_time() -> None:
    assert 23 == len(days("15 * * * *", BERLIN, "2026-03-29", 23))
    assert 25 == len(days("15 * * * *", BERLIN, "2026-10-25", 25))


@pytest.mark.slow
@given(
    cron=st.sampled_from(
        [
            "30 2 * * *",
            "*/7 * * * *",
            "15 2,3 * * *",
            "0 */2 * * *",
            "59 1 * * 0",
            "*/20 2 * * *",
        ]
    ),
    zone=st.sampled_from([BERLIN, NEW_YORK, "UTC", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    around=st.sampled_from(["2026-03-29T00:00:00Z", "2026-10-25T00:00:00Z", "2026-11-01T05:00:00Z"]),
    start=st.integers(0, 48 * 3600),
    later=st.integers(0, 24 * 3600),
)
@settings(max_examples=20, deadline=None)
def test_ticks_are_the_same_wherever_one_begins_to_look(
    cron: str, zone: str, around: str, start: int, later: int
) -> None:
    begin = ns(around) - DAY + start * SECOND
    end = ns(around) + 2 * DAY
    every = newest(cron, zone, begin, end, 10_000)
    assert every == sorted(set(every))
    since = begin + later * SECOND
    assert [tick for tick in every if tick > since] == newest(cron, zone, since, end, 10_000)
    assert every[-3:] == newest(cron, zone, begin, end, 3)


def test_what_names_no_time_or_no_zone_is_refused_at_the_door() -> None:
    for cron, zone, said in [
        ("30 2 * *", "UTC", "expected 5 fields"),
        ("0 30 2 * * *", "UTC", "expected 5 fields"),
        ("61 2 * * *", "UTC", "bad minute"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("0 0 31 4 */13", "UTC", ""),
        ("0 0 * * *", "Mars/Phobos", "expected a time zone"),
        ("0 0 * * *", "../../etc/passwd", "expected a time zone"),
    ]:
        with pytest.raises(FsError) as caught:
            check(cron, zone, 0)
        assert (E.USAGE, True) == (caught.value.kind, said in caught.value.detail), caught.value.detail


# deciding


@pytest.fixture
def hive() -> Folded:
    return Folded()


def create(hive: Folded, more: str = "cron='0 * * * *'", name: str = "t", who: Caller = ANN) -> str:
    return hive.write(CTL, f"create trigger={name} topic=sum {more}", who)


def trigger(hive: Folded | Living, name: str = "t", tenant: str = HIVE_TENANT) -> Trigger:
    found = hive.state.triggers.find(tenant, name)
    assert found is not None
    return found


def fire(hive: Folded, line: str, name: str = "t", tenant: str = HIVE_TENANT) -> str:
    return hive._write("hive", "hive", tenant, f"/triggers/{name}", f"fire {line}")


def refused(hive: Folded, line: str, who: Caller = ANN) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        hive.write(CTL, line, who)
    return caught.value.code, caught.value.text


def test_a_tick_is_fired_for_once_and_none_before_it(hive: Folded) -> None:
    create(hive)
    hive.clock.advance(2 * HOUR)
    at = rfc3339(hive.clock.now_ns() - HOUR)
    job = fire(hive, f"at={at}")
    assert "queued" == hive.job_state(job)
    for again in (at, rfc3339(hive.clock.now_ns() - 2 * HOUR), rfc3339(hive.clock.now_ns() + 1)):
        with pytest.raises(Refusal) as caught:
            fire(hive, f"at={again}")
        assert E.NODATA.name == caught.value.code
    assert 1 == len(hive.state.jobs.by_id)


def test_an_event_is_fired_for_once_and_none_before_it(hive: Folded) -> None:
    create(hive, "on=job.ended")
    seq = hive.seq + 1
    fire(hive, f"seq={seq} k=1 depth=0")
    for place in (f"seq={seq} k=1", f"seq={seq} k=0", "seq=1 k=5"):
        with pytest.raises(Refusal) as caught:
            fire(hive, f"{place} depth=0")
        assert E.NODATA.name == caught.value.code
    fire(hive, f"seq={seq} k=2 depth=0")
    assert 2 == len(hive.state.jobs.by_id)


def test_the_job_is_the_creators_and_says_which_trigger_made_it(hive: Folded) -> None:
    create(hive, "on=job.ended priority=7 labels=a:b")
    request = hive.state.jobs.by_id[fire(hive, "seq=900 k=0 depth=2")].request
    assert ("unix:ann", "operator", HIVE_TENANT, "t", 3, 7, {"a": "b"}) == (
        request.actor, request.role, request.tenant, request.trigger, request.depth, request.priority,
        request.labels,
    )  # fmt: skip


def test_what_is_refused_when_it_fires_is_recorded_and_past(hive: Folded) -> None:
    create(hive, "on=job.ended", "nowhere")
    hive.write("/pools/ctl", "unmap topic=sum")
    assert "refused" == fire(hive, "seq=900 k=0 depth=0", "nowhere")
    fired = trigger(hive, "nowhere").recent[-1].fired
    assert (E.NOROUTE.name, "", "no_pool_mapping: topic=sum") == (fired.code, fired.job, fired.text)
    assert (900, 0) == trigger(hive, "nowhere").cursor
    assert refused(hive, "run trigger=nowhere")[0] == E.NOROUTE.name  # who says so is told


def test_the_policies_are_asked_at_every_fire(hive: Folded) -> None:
    create(hive, "on=job.ended")
    made = trigger(hive).made
    hive.state.triggers.by_tenant[HIVE_TENANT]["t"] = msgspec.structs.replace(
        trigger(hive), made=msgspec.structs.replace(made, actor="unix:eye", role="observer")
    )
    fire(hive, "seq=900 k=0 depth=0")
    assert E.DENIED.name == trigger(hive).recent[-1].fired.code
    assert {} == hive.state.jobs.by_id


def enrolled(hive: Folded, role: str = "operator") -> str:
    """A new certificate for pat's name; its serial."""
    secret = "ab" * 32
    invite = hive.write("/trust/ctl", f"invite role={role} node=pat secret={secret}")
    hive.hive("/trust/enroll", f"enroll invite={invite} secret={secret} key=S0VZ ttl=24h")
    return hive.state.trust.nodes["pat"].serials[-1]


PAT = Caller("spiffe://hive/operator/pat", "operator")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (("revoke node=pat",), "pat was revoked"),
        (("revoke serial={serial}",), "pat was revoked"),
        (("revoke node=pat", "observer"), "pat is no operator any more"),
        (("revoke node=pat", "operator tenant=acme/web/prod"), "pat is not of the tenant any more"),
        (("revoke node=pat", "operator"), ""),
        ((), ""),
    ],
)
def test_a_trigger_fires_no_more_when_its_creator_is_gone(
    hive: Folded, after: tuple[str, ...], why: str
) -> None:
    hive.hive("/trust/found", FOUND)
    serial = enrolled(hive)
    create(hive, "on=job.ended", who=PAT)
    hive.clock.advance(30 * DAY)  # an operator may be away for as long: what has run out says nothing
    for n, said in enumerate(after):
        if n:
            enrolled(hive, said)
        else:
            hive.write("/trust/ctl", said.format(serial=serial))
    fire(hive, "seq=900 k=0 depth=0")
    last = trigger(hive).recent[-1].fired
    if why:
        assert (E.DENIED.name, f"permission denied: rule=creator-gone {why}") == (last.code, last.text)
        assert E.DENIED.name == refused(hive, "run trigger=t")[0]
        assert {} == hive.state.jobs.by_id
    else:
        assert [last.job] == [*hive.state.jobs.by_id]


def test_a_chain_of_triggers_ends(hive: Folded) -> None:
    create(hive, "on=job.ended")
    fire(hive, f"seq=900 k=0 depth={DEPTH_MAX - 1}")
    fire(hive, f"seq=901 k=0 depth={DEPTH_MAX}")
    first, second = (each.fired for each in trigger(hive).recent)
    assert DEPTH_MAX == hive.state.jobs.by_id[first.job].request.depth
    assert (E.QUOTA.name, "") == (second.code, second.job)


def test_jobs_that_triggers_made_fire_so_many_more_in_a_second(hive: Folded) -> None:
    create(hive, "on=job.ended")
    codes = []
    for n in range(CHAINED_MAX + 2):
        fire(hive, f"seq={900 + n} k=0 depth=1")
        codes.append(trigger(hive).recent[-1].fired.code)
    assert [E.THROTTLED.name] * 2 == [code for code in codes if code]
    assert "throttled: chain of triggers retry-ms=16" == trigger(hive).recent[-1].fired.text
    fire(hive, "seq=9000 k=0 depth=0")  # what nobody had fired for is not counted
    hive.clock.advance(CHAINED_NS)
    for seq, code in ((9001, ""), (9002, E.THROTTLED.name)):
        fire(hive, f"seq={seq} k=0 depth=1")
        assert code == trigger(hive).recent[-1].fired.code
    hive.clock.advance(-HOUR)  # a clock that is put back locks nobody out
    fire(hive, "seq=9003 k=0 depth=1")
    assert "" == trigger(hive).recent[-1].fired.code


def test_so_many_triggers_of_a_tenant_wait_for_events(hive: Folded) -> None:
    for n in range(ON_MAX):
        create(hive, "on=job.ended", f"t{n}")
    said = f"quota exceeded: triggers on events have={ON_MAX} max={ON_MAX}"
    assert (E.QUOTA.name, said) == refused(hive, "create trigger=t topic=sum on=job.ended")
    create(hive)
    create(hive, "on=job.ended", who=BOB)


def test_more_events_than_there_is_room_for_are_left_in_the_ledger(hive: Folded) -> None:
    for n in range(ON_MAX):
        create(hive, "on=job.ended", f"t{n}")

    async def say(path: str, lines: Sequence[str], tenant: str) -> None:
        pass

    many = (
        Occasion(Entry(1, 1000 + n, 0, "", "", "", "", "", "", OK, ()), 0, "job.ended", (HIVE_TENANT,))
        for n in range(100_000)
    )
    watch = Watch(lambda: hive.state.triggers, lambda seq, kinds: ([], seq), say)
    watch.seq = 999
    assert watch.moved(1000, 101_000, lambda kinds: many)
    looked_at = WAITING_MAX // ON_MAX
    assert 999 + looked_at == watch.seq
    assert looked_at + 1 == 100_000 - sum(1 for _ in many)


@pytest.mark.slow
def test_triggers_that_fire_each_other_come_to_an_end_and_keep_nobody_waiting() -> None:
    async def story(alive: Living) -> None:
        for n in range(8):
            await created(alive, "on=job.submitted", f"t{n}")
        await alive.submit()
        every = [f"t{n}" for n in range(8)]
        while sum(trigger(alive, name).fired for name in every) < 8 * len(alive.state.jobs.by_id):
            await alive.hive.turn.wait_past(alive.hive.turn.seq)
            await alive.hive.tick()  # leases end, whatever fires
        assert 1 + 8 + CHAINED_MAX == len(alive.state.jobs.by_id)

    live(story)


def test_a_paused_trigger_does_not_fire_and_goes_on_from_when_it_is_resumed(hive: Folded) -> None:
    create(hive)
    create(hive, "on=job.ended", "e")
    for name in ("t", "e"):
        hive.write(CTL, f"pause trigger={name}")
    hive.clock.advance(HOUR)
    at = rfc3339(hive.clock.now_ns())
    for name, line in (("t", f"at={at}"), ("e", "seq=900 k=0 depth=0")):
        with pytest.raises(Refusal):
            fire(hive, line, name)
    for name in ("t", "e"):
        hive.write(CTL, f"resume trigger={name}")
    with pytest.raises(Refusal):
        fire(hive, f"at={at}")
    with pytest.raises(Refusal):
        fire(hive, f"seq={trigger(hive, 'e').cursor[0]} k=0 depth=0", "e")
    assert {} == hive.state.jobs.by_id


def test_a_trigger_is_what_its_creator_may_say(hive: Folded) -> None:
    create(hive)
    for line, code in [
        ("create trigger=t topic=sum cron='0 * * * *'", E.EXISTS),
        ("create trigger=ctl topic=sum cron='0 * * * *'", E.EXISTS),
        ("create trigger=u topic=sum", E.USAGE),
        ("create trigger=u topic=sum cron='0 * * * *' on=job.ended", E.USAGE),
        ("create trigger=u topic=sum on=job.ended zone=UTC", E.USAGE),
        ("create trigger=u topic=sum on=job.forgotten", E.USAGE),
        ("create trigger=u topic=sum on=artifact.sealed on-topic=x", E.USAGE),
        ("create trigger=u topic=sum on=job.ended key=k", E.USAGE),
        ("create trigger=u on=job.ended", E.USAGE),
        ("pause trigger=u", E.MISSING),
        ("remove trigger=t if-rev=1", E.CONFLICT),
        ("seen seq=9", E.DENIED),
    ]:
        assert code.name == refused(hive, line)[0], line
    for who in (EYE, W1):
        assert E.DENIED.name == refused(hive, "create trigger=u topic=sum on=job.ended", who)[0]
    with pytest.raises(Refusal, match="own-verbs"):
        hive.write("/triggers/t", "fire at=2026-01-01T00:00:00Z")


def test_a_tenants_triggers_are_its_own(hive: Folded) -> None:
    create(hive)
    for name in ("t", "no"):
        said = (E.MISSING.name, f"file does not exist: trigger={name}")
        assert said == refused(hive, f"pause trigger={name}", BOB)
    create(hive, who=BOB)
    job = hive.write(CTL, "run trigger=t", BOB)
    assert BOB.tenant == hive.state.jobs.by_id[job].request.tenant
    assert 0 == trigger(hive).fired
    hive.write(CTL, "remove trigger=t", BOB)
    assert 0 == trigger(hive).fired


def test_what_fired_is_remembered_as_far_as_the_last(hive: Folded) -> None:
    create(hive, "on=job.ended")
    for n in range(RECENT + 3):
        fire(hive, f"seq={900 + n} k=0 depth=0")
    assert (RECENT + 3, [*range(903, 903 + RECENT)]) == (
        trigger(hive).fired,
        [each.fired.seq for each in trigger(hive).recent],
    )


def test_an_index_has_the_active_triggers(hive: Folded) -> None:
    triggers = hive.state.triggers
    create(hive)
    create(hive, "on=job.ended", "e")
    key = (HIVE_TENANT, "e")
    assert ([(HIVE_TENANT, "t")], [key]) == ([*triggers.cron], [*triggers.on["job.ended"]])
    for name in "te":
        hive.write(CTL, f"pause trigger={name}")
    assert ({}, {}) == (triggers.cron, triggers.on)
    hive.write(CTL, "resume trigger=e")
    for name in "te":
        hive.write(CTL, f"remove trigger={name}")
    assert ({}, {}, {}) == (triggers.cron, triggers.on, triggers.by_tenant)


# living


def fired(alive: Living, name: str = "t", tenant: str = HIVE_TENANT) -> list[str]:
    """The times or places that it fired for."""
    found = alive.state.triggers.find(tenant, name)
    assert found is not None
    return [
        rfc3339(each.fired.at_ns)[11:16] if each.fired.why == "cron" else each.fired.why
        for each in found.recent
    ]


async def created(alive: Living, more: str, name: str = "t", who: Caller = ANN) -> None:
    door = Door(hive_tree(alive.hive), who)
    await door.write(CTL, f"create trigger={name} topic=sum {more}\n")


async def wait_fired(alive: Living, count: int, name: str = "t", tenant: str = HIVE_TENANT) -> None:
    """Return when it has fired so often."""
    while True:
        found = alive.state.triggers.find(tenant, name)
        if found is not None and found.fired >= count:
            return
        await alive.hive.turn.wait_past(alive.hive.turn.seq)


def at(clock: ManualClock, text: str) -> None:
    clock.time_ns = ns(text)


def test_a_cron_trigger_fires_at_its_time_and_once() -> None:
    async def story(alive: Living) -> None:
        at(alive.clock, "2026-05-04T10:00:00Z")
        await created(alive, "cron='30 12 * * *' zone=Europe/Berlin input=event")
        door = Door(hive_tree(alive.hive), ANN)
        assert "2026-05-04T10:30:00.000000000Z\n" == await door.read("/triggers/t/next")
        at(alive.clock, "2026-05-04T10:29:59Z")
        await alive.hive.tick()
        assert [] == fired(alive)
        at(alive.clock, "2026-05-04T10:30:00.3Z")
        for _ in range(3):
            await alive.hive.tick()
        assert ["10:30"] == fired(alive)
        (job,) = alive.state.jobs.by_id.values()
        assert {"type": "trigger.tick", "trigger": "t", "at": "2026-05-04T10:30:00.000000000Z"} == json.loads(
            job.request.input or ""
        )
        assert "2026-05-05T10:30:00.000000000Z\n" == await door.read("/triggers/t/next")

    live(story)


@pytest.mark.parametrize(
    ("missed", "expected"),
    [("once", ["13:00"]), ("skip", []), ("all", ["11:00", "12:00", "13:00"])],
)
def test_ticks_that_passed_while_the_hive_was_down(missed: str, expected: list[str], tmp_path: Path) -> None:
    async def run() -> None:
        clock = ManualClock()
        at(clock, "2026-05-04T10:10:00Z")
        ledger = str(tmp_path / "ledger")
        async with living(tmp_path, ledger, clock) as alive:
            await created(alive, f"cron='0 * * * *' missed={missed}")
        at(clock, "2026-05-04T13:10:00Z")
        async with living(tmp_path, ledger, clock) as alive:
            for _ in range(2):
                await alive.hive.tick()
            assert expected == fired(alive)
            at(clock, "2026-05-04T14:00:30Z")
            await alive.hive.tick()
            assert [*expected, "14:00"] == fired(alive)

    asyncio.run(run())


@pytest.mark.slow
def test_of_missed_ticks_the_last_hundred_fire() -> None:
    async def story(alive: Living) -> None:
        at(alive.clock, "2026-05-04T10:00:30Z")
        await created(alive, "cron='* * * * *' missed=all")
        alive.clock.advance(365 * DAY)
        await alive.hive.tick()
        jobs = [*alive.state.jobs.by_id]
        assert MISSED_MAX == len(jobs)
        found = alive.state.triggers.find(HIVE_TENANT, "t")
        assert found is not None
        assert "2027-05-04T10:00:00" == rfc3339(found.after_ns)[:19]

    live(story)


def test_an_event_fires_a_trigger_once_with_the_event_as_its_input() -> None:
    async def story(alive: Living) -> None:
        await created(alive, "on=job.ended on-state=cancelled on-topic=sum on-labels=a:b input=event")
        jobs = [await alive.submit(more) for more in ("", "labels=a:b,c:d", "labels=a:b")]
        for job in jobs:
            await alive.write(f"/jobs/{job}/ctl", "cancel reason=enough")
        await wait_fired(alive, 2)
        for _ in range(2):
            await alive.hive.tick()
        assert ["event", "event"] == fired(alive)
        made = [job.request for job in alive.state.jobs.by_id.values() if job.request.trigger]
        said = [json.loads(request.input or "") for request in made]
        assert [("job.ended", job, "enough") for job in jobs[1:]] == [
            (event["type"], event["job"], event["text"]) for event in said
        ]
        assert [1, 1] == [request.depth for request in made]

    live(story)


def test_a_trigger_that_fires_itself_comes_to_an_end() -> None:
    async def story(alive: Living) -> None:
        await created(alive, "on=job.submitted")
        await alive.submit()
        await wait_fired(alive, DEPTH_MAX + 1)
        await alive.hive.tick()
        assert 1 + DEPTH_MAX == len(alive.state.jobs.by_id)
        told = await Door(hive_tree(alive.hive), ANN).read("/triggers/t/last")
        assert "code QUOTA\nerror quota exceeded: chain of triggers have=8 max=8\n" in told

    live(story)


def test_events_that_were_not_fired_for_are_when_the_hive_is_back(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = str(tmp_path / "ledger")
        clock = ManualClock()
        async with living(tmp_path, ledger, clock) as alive:
            await created(alive, "on=job.ended")
            # It dies between the event and what follows from it.
            alive.hive.turn.on_commit.clear()
            for _ in range(3):
                await alive.write("/jobs/ctl", f"cancel job={await alive.submit()}")
            assert [] == fired(alive)
        for _ in range(2):
            async with living(tmp_path, ledger, clock) as alive:
                await alive.hive.tick()
                await alive.hive.tick()
                assert 3 * ["event"] == fired(alive)
                assert 6 == len(alive.state.jobs.by_id)

    asyncio.run(run())


def test_the_rest_of_an_entry_is_fired_for_when_the_hive_died_within_it(tmp_path: Path) -> None:
    async def run() -> None:
        ledger, clock = str(tmp_path / "ledger"), ManualClock()
        async with living(tmp_path, ledger, clock) as alive:
            await created(alive, "on=job.submitted on-labels=a:b")
            alive.hive.turn.on_commit.clear()
            await alive.write("/jobs/ctl", *["submit topic=sum labels=a:b"] * 3)
            await alive.hive.say("/triggers/t", f"fire seq={alive.hive.turn.seq} k=0 depth=0", HIVE_TENANT)
        async with living(tmp_path, ledger, clock) as alive:
            await alive.hive.tick()
            assert 3 * ["event"] == fired(alive)

    asyncio.run(run())


@pytest.mark.slow
def test_how_far_it_has_looked_is_written_down_now_and_then(tmp_path: Path) -> None:
    async def run() -> None:
        ledger, clock = str(tmp_path / "ledger"), ManualClock()
        async with living(tmp_path, ledger, clock) as alive:
            await created(alive, "on=job.ended on-topic=other")
            for _ in range(SEEN_EVERY // 4 + 1):
                lines = (f"/nodes/w1 {word}" for word in ("cordon", "uncordon"))
                await asyncio.gather(
                    *(alive.write("/nodes/ctl", f"{line.split(' ')[1]} node=w1") for line in (*lines,) * 2)
                )
            await alive.hive.tick()
            seen = alive.state.triggers.seen
            assert SEEN_EVERY <= seen <= alive.hive.turn.seq
        async with living(tmp_path, ledger, clock) as alive:
            await alive.hive.triggers.catch_up(seen + 1)
            assert seen < alive.hive.triggers.seq
            await alive.write("/jobs/ctl", f"cancel job={await alive.submit()}")
            await alive.hive.tick()
            assert [] == fired(alive)

    asyncio.run(run())


def test_two_processes_of_a_hive_fire_once(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = str(tmp_path / "ledger")
        clock = ManualClock()
        async with living(tmp_path, ledger, clock) as one, living(tmp_path, ledger, clock) as other:
            await created(one, "on=job.ended")
            await created(one, "cron='* * * * *'", "c")
            await one.write("/jobs/ctl", f"cancel job={await one.submit()}")
            clock.advance(MINUTE)
            for _ in range(2):
                await asyncio.gather(one.hive.tick(), other.hive.tick())
            other.hive.turn.refresh()
            for alive in (one, other):
                assert (["event"], 1) == (fired(alive), len(fired(alive, "c")))

    asyncio.run(run())


def test_a_burst_of_events_fires_for_each_in_its_order() -> None:
    async def story(alive: Living) -> None:
        await created(alive, "on=job.submitted on-topic=sum on-labels=burst:yes input=event")
        lines = [f"submit topic=sum labels=burst:yes input={'x' * 200}{n}" for n in range(60)]
        submitted = await alive.write("/jobs/ctl", *lines)
        await wait_fired(alive, 60)
        jobs = alive.state.jobs.by_id.values()
        said = [json.loads(job.request.input or "")["job"] for job in jobs if job.request.trigger]
        assert submitted == said

    live(story)


def test_a_tenant_sees_its_own_triggers_and_fires_for_its_own_events() -> None:
    async def story(alive: Living) -> None:
        await created(alive, "on=job.submitted on-labels=a:b")
        await created(alive, "on=job.submitted on-labels=a:b", "bobs", BOB)
        await alive.submit("labels=a:b", who=BOB)
        await wait_fired(alive, 1, "bobs", BOB.tenant)
        await alive.hive.tick()
        assert [] == fired(alive)
        ann, bob = (Door(hive_tree(alive.hive), who) for who in (ANN, BOB))
        assert (["ctl", "t"], ["ctl", "bobs"]) == (await ann.names("/triggers"), await bob.names("/triggers"))
        assert not await bob.exists("/triggers/t")
        assert "active\n" == await bob.read("/triggers/bobs/state")

    live(story)


def test_the_files_of_a_trigger_tell_what_it_is() -> None:
    async def story(alive: Living) -> None:
        await created(alive, "on=job.ended on-state=failed on-labels=a:b input=event")
        door = Door(hive_tree(alive.hive), ANN)
        spec = json.loads(await door.read("/triggers/t/spec"))
        assert ("unix:ann", "job.ended", "failed", {"a": "b"}, {"topic": "sum", "input": "event"}) == (
            spec["creator"], spec["on"], spec["on-state"], spec["on-labels"], spec["submit"],
        )  # fmt: skip
        assert ["", "", ""] == [
            await door.read(f"/triggers/t/{name}") for name in ("next", "last", "fired.jsonl")
        ]
        await door.write(CTL, "run trigger=t\n")
        assert "run" == json.loads(await door.read("/triggers/t/fired.jsonl"))["why"]
        await door.write(CTL, "pause trigger=t\n")
        assert "paused\n" == await door.read("/triggers/t/state")
        with pytest.raises(FsError, match="bad minute"):
            await created(alive, "cron='99 * * * *'", "u")

    live(story)
