"""Annexes as a fold: what a device has is never given twice, who waits comes in order, and all of it ends."""

from __future__ import annotations

import pytest
from annexes import CARD, CTL, G1, GIB, Annexed
from hives import ANN, BOB, W1

from skep.fs.node import Caller
from skep.namespaces.alerts import Alerted
from skep.namespaces.gpu.core import WAITERS_MAX, WAITERS_OF_ONE, WAITING, gone
from skep.namespaces.gpu.record import GRANTS_MAX, Ended, Leased, Withdrawn, used
from skep.namespaces.order import HIVE_TENANT, Order
from skep.trace.clock import HOUR, SECOND
from skep.trace.entry import Line, canonical
from skep.trace.rules import Refusal

EVE = Caller("unix:eve", "operator")


@pytest.fixture
def hive() -> Annexed:
    return Annexed()


def lease(hive: Annexed, memory: str = "1GiB", more: str = "", who: Caller = ANN) -> str:
    """The lease's id, or WAITING."""
    return hive.write(CTL, f"lease memory={memory} ttl=60s {more}", who).split(" ")[0]


def given(hive: Annexed, memory: str = "1GiB", more: str = "", who: Caller = ANN) -> Leased:
    """What is granted at once."""
    id = lease(hive, memory, more, who)
    return hive.annex.grants[id].given


def named(hive: Annexed, id: str) -> str:
    """How renew and release name a lease."""
    return f"lease={id} fence={hive.annex.grants[id].given.fence}"


def refused(hive: Annexed, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    return f"{caught.value.code} {caught.value.text}"


# capacity


def test_a_lease_is_told_its_id_its_fence_and_its_device(hive: Annexed) -> None:
    reply = hive.write(CTL, "lease memory=4GiB slots=2 ttl=60s")
    (grant,) = hive.annex.grants.values()
    assert f"{grant.lease} fence={grant.given.fence} device=cuda:0" == reply
    assert (4 * GIB, 2, False, 1) == used(hive.annex.on("cuda:0"))


@pytest.mark.parametrize("more", ["", "wait=1h", "exclusive=true wait=1h", "priority=9"])
def test_a_lease_that_is_larger_than_the_card_is_refused_at_once(hive: Annexed, more: str) -> None:
    want = f"max={8 * GIB} want={9 * GIB}"
    assert want in refused(hive, CTL, f"lease memory=9GiB ttl=60s {more}")
    assert refused(hive, CTL, f"lease memory=1 slots=5 ttl=60s {more}").startswith("QUOTA ")
    assert not hive.annex.waiters


def test_what_is_given_of_a_card_is_never_more_than_it_has(hive: Annexed) -> None:
    lease(hive, "5GiB")
    assert "memory have=5368709120 max=8589934592 want=4294967296" in refused(
        hive, CTL, "lease memory=4GiB ttl=60s"
    )
    lease(hive, "3GiB")
    assert "QUOTA quota exceeded: annex=g1 device=cuda:0 memory have=8589934592" in refused(
        hive, CTL, "lease memory=1 ttl=60s"
    )
    job = hive.held()
    assert refused(hive, f"/jobs/{job}/ctl", "start fence=1 device=cuda:0 memory=1", G1).startswith("BUSY ")


def test_slots_are_as_scarce_as_memory(hive: Annexed) -> None:
    lease(hive, "1", "slots=3")
    assert "slots have=3 max=4 want=2" in refused(hive, CTL, "lease memory=1 slots=2 ttl=60s")
    lease(hive, "1")
    assert "slots have=4 max=4 want=1" in refused(hive, CTL, "lease memory=1 ttl=60s")


@pytest.mark.parametrize("said", ["slots=0", "slots=1025", "device=tpu:0", "device=cuda:1", "device=cpu:0"])
def test_what_is_no_room_on_no_device_is_refused(hive: Annexed, said: str) -> None:
    assert refused(hive, CTL, f"lease memory=1 ttl=60s {said}").startswith("USAGE ")


def test_there_are_no_two_exclusive_leases_on_one_gpu(hive: Annexed) -> None:
    first = lease(hive, "1", "exclusive=true")
    for more in ("exclusive=true", "", "priority=9", "exclusive=true priority=9"):
        assert "QUOTA " in refused(hive, CTL, f"lease memory=1 ttl=60s {more}")
    job = hive.held()
    assert "exclusive" in refused(hive, f"/jobs/{job}/ctl", "start fence=1 device=cuda:0 memory=1", G1)
    hive.write(CTL, f"release {named(hive, first)}")
    hive.start(job, "memory=1")
    assert "QUOTA " in refused(hive, CTL, "lease memory=1 ttl=60s exclusive=true")
    hive.tell(job, "ack")
    assert lease(hive, "1", "exclusive=true") in hive.annex.grants


def test_of_several_devices_the_one_with_the_least_room_that_is_enough_is_given() -> None:
    hive = Annexed(CARD, CARD | {"id": "cuda:1", "memory": 4 * GIB}, {"id": "cpu:0", "memory": GIB})
    devices = [given(hive, memory).device for memory in ("1GiB", "2GiB", "2GiB")]
    assert ["cuda:1", "cuda:1", "cuda:0"] == devices
    assert "cpu:0" == given(hive, "1GiB", "device=cpu:0").device
    # Who says nothing wants a GPU where there is one.
    assert "max=8589934592 want=7516192768" in refused(hive, CTL, "lease memory=7GiB ttl=60s")


# time


@pytest.mark.parametrize("ttl", ["0s", "1ms", "25h", "8760h"])
def test_there_is_no_lease_that_never_ends(hive: Annexed, ttl: str) -> None:
    assert "expected 1s to 24h" in refused(hive, CTL, f"lease memory=1 ttl={ttl}")
    assert "ttl= is missing" in refused(hive, CTL, "lease memory=1")
    id = lease(hive)
    assert "expected 1s to 24h" in refused(hive, CTL, f"renew {named(hive, id)} ttl={ttl}")
    assert hive.annex.grants[id].until_ns <= hive.clock.now_ns() + 24 * HOUR


def test_a_lease_ends_at_its_time_and_not_before(hive: Annexed) -> None:
    id = lease(hive, "8GiB")
    assert hive.state.gpu.due == {"g1": hive.clock.now_ns() + 60 * SECOND}
    hive.clock.advance(60 * SECOND - 1)
    hive.expire()
    assert id in hive.annex.grants
    hive.clock.advance(1)
    hive.expire()
    assert ({}, {}) == (hive.annex.grants, hive.state.gpu.due)


def test_what_is_over_stands_in_nobodys_way_before_the_timer_has_said_so(hive: Annexed) -> None:
    line = named(hive, lease(hive, "8GiB", "exclusive=true"))
    hive.clock.advance(60 * SECOND)
    assert refused(hive, CTL, f"renew {line}").startswith("FENCED ")
    assert refused(hive, CTL, f"release {line}").startswith("FENCED ")
    lease(hive, "8GiB")
    assert 1 == len(hive.annex.grants)


def test_a_renewal_counts_from_when_it_is_said(hive: Annexed) -> None:
    id = lease(hive)
    hive.clock.advance(30 * SECOND)
    hive.write(CTL, f"renew {named(hive, id)}")
    assert hive.clock.now_ns() + 60 * SECOND == hive.annex.grants[id].until_ns
    hive.write(CTL, f"renew {named(hive, id)} ttl=2h")
    assert hive.clock.now_ns() + 2 * HOUR == hive.state.gpu.due["g1"]


def test_only_its_holder_renews_and_releases_a_lease(hive: Annexed) -> None:
    line = named(hive, lease(hive))
    for verb in ("renew", "release"):
        assert "rule=lease-holder" in refused(hive, CTL, f"{verb} {line}", EVE)
        assert "FENCED " in refused(hive, CTL, f"{verb} {line}0")
        assert "MISSING " in refused(hive, CTL, f"{verb} {line}", BOB)


def test_fences_only_go_on_also_when_the_clock_stands_still_and_the_node_was_removed(hive: Annexed) -> None:
    fences = []
    for _ in range(3):
        fences.append(given(hive).fence)
        release(hive, *hive.annex.grants)
    hive.write("/nodes/ctl", "remove node=g1")
    assert ({}, {}) == (hive.state.gpu.by_id, hive.state.gpu.due)
    hive.hive("/nodes/g1", "join principal=unix:work role=cuda-annex")
    hive.offer(CARD)
    fences.append(given(hive).fence)
    assert sorted(set(fences)) == fences


# who waits


def release(hive: Annexed, id: str) -> None:
    hive.write(CTL, f"release {named(hive, id)}")


def test_who_waits_comes_by_priority_then_by_age(hive: Annexed) -> None:
    first = lease(hive, "8GiB")
    for memory, priority in ((1, 3), (2, 5), (3, 9), (4, 5)):
        assert WAITING == lease(hive, f"{memory}GiB", f"priority={priority} wait=1h", EVE)
    release(hive, first)
    held = [grant.given.memory // GIB for grant in hive.annex.grants.values()]
    # There is no room for 4, and nobody passes it.
    assert ([3, 2], 2) == (held, len(hive.annex.waiters))
    assert "QUOTA " in refused(hive, CTL, "lease memory=1GiB ttl=60s priority=5")
    assert lease(hive, "1GiB", "priority=6") in hive.annex.grants


def test_who_waits_for_one_device_keeps_nobody_from_another() -> None:
    hive = Annexed(CARD, CARD | {"id": "cuda:1"})
    lease(hive, "8GiB", "device=cuda:0")
    assert WAITING == lease(hive, "8GiB", "device=cuda:0 wait=1h")
    assert "cuda:1" == given(hive).device
    assert "QUOTA " in refused(hive, CTL, "lease memory=1 ttl=60s device=cuda:0")


def test_jobs_do_not_overtake_who_waits_for_their_device(hive: Annexed) -> None:
    first, job = lease(hive, "1GiB"), hive.held("priority=5")
    assert WAITING == lease(hive, "8GiB", "exclusive=true wait=1h")
    assert refused(hive, f"/jobs/{job}/ctl", "start fence=1 device=cuda:0 memory=1", G1).startswith("BUSY ")
    hive.start(hive.held("priority=6"))
    release(hive, first)
    assert 1 == len(hive.annex.waiters)


def test_one_holder_does_not_fill_the_queue(hive: Annexed) -> None:
    given(hive, "8GiB")
    for _ in range(WAITERS_OF_ONE):
        assert WAITING == lease(hive, "8GiB", "wait=1h priority=9", EVE)
    said = refused(hive, CTL, "lease memory=8GiB ttl=60s wait=1h", EVE)
    assert f"QUOTA quota exceeded: waiters have={WAITERS_OF_ONE} max={WAITERS_OF_ONE} of one holder" in said
    assert WAITING == lease(hive, "8GiB", "wait=1h")


def test_all_that_can_end_at_once_fits_into_one_entry() -> None:
    hive = Annexed(CARD | {"slots": 1024})
    hive.hive("/nodes/g1", f"offer labels=annex:g1,gpu:h100 capacity={GRANTS_MAX}")
    outer = lease(hive, "1GiB", "slots=1023")
    jobs = [hive.held("fallback=refuse") for _ in range(GRANTS_MAX)]
    for job in jobs[1:]:
        hive.start(job, f"memory=0 lease={outer}")
    # Neither inside a lease nor beside it is there more, whatever the device has.
    for more in ("memory=0", f"memory=0 lease={outer}"):
        fence = hive.state.jobs.by_id[jobs[0]].fence
        said = refused(hive, f"/jobs/{jobs[0]}/ctl", f"start fence={fence} device=cuda:0 {more}", G1)
        assert f"leases have={GRANTS_MAX} max={GRANTS_MAX}" in said
    for number in range(WAITERS_MAX):
        who = Caller(f"spiffe://hive.example/operator/{'n' * 32}{number // WAITERS_OF_ONE}", "operator")
        assert WAITING == lease(hive, "0", "wait=1h", who)
    hive.clock.advance(60 * SECOND)
    line = Line("hive", "hive", "", "/gpu/g1", ("expire",), hive.clock.now_ns(), hive.clock.new_id())
    events = hive.rules.decide(hive.state, line, 0).events
    ended = [type(event) for event in events]
    assert (GRANTS_MAX, GRANTS_MAX - 1, WAITERS_MAX) == tuple(
        ended.count(each) for each in (Ended, Alerted, Leased)
    )
    assert len(canonical(events)) < 50_000  # names may be longer than these


def test_who_has_waited_enough_is_given_nothing(hive: Annexed) -> None:
    first = lease(hive, "8GiB")
    lease(hive, "8GiB", "wait=5s")
    hive.clock.advance(5 * SECOND)
    release(hive, first)
    assert ({}, {}) == (hive.annex.grants, hive.annex.waiters)


@pytest.mark.parametrize("verb", ["renew", "enable"])
def test_who_waits_is_given_what_is_over_whatever_is_asked(hive: Annexed, verb: str) -> None:
    over = lease(hive, "4GiB")
    hive.clock.advance(30 * SECOND)
    other = lease(hive, "4GiB")
    assert WAITING == lease(hive, "4GiB", "wait=1h")
    (waits,) = hive.annex.waiters
    hive.clock.advance(30 * SECOND)
    hive.write(CTL, f"renew {named(hive, other)}" if verb == "renew" else verb)
    assert over not in hive.annex.grants
    assert [other, waits] == list(hive.annex.grants)


def test_a_lease_that_waited_lasts_from_its_grant(hive: Annexed) -> None:
    lease(hive, "8GiB")
    assert WAITING == lease(hive, "8GiB", "wait=1h", EVE)
    hive.clock.advance(60 * SECOND)
    hive.expire()
    (grant,) = hive.annex.grants.values()
    assert ("unix:eve", hive.clock.now_ns() + 60 * SECOND) == (grant.given.holder, grant.until_ns)


def test_who_is_gone_waits_no_more_and_holds_nothing(hive: Annexed) -> None:
    first = lease(hive, "8GiB")
    lease(hive, "8GiB", "wait=1h")
    (waiter,) = hive.annex.waiters
    release(hive, first)
    hive.hive("/gpu/g1", f"withdraw lease={waiter}")
    assert ({}, {}) == (hive.annex.grants, hive.annex.waiters)
    lease(hive, "8GiB")
    lease(hive, "8GiB", "wait=1h")
    hive.hive("/gpu/g1", "restart")
    assert (1, {}) == (len(hive.annex.grants), hive.annex.waiters)


# jobs


def test_a_start_is_the_grant_and_ends_with_the_attempt(hive: Annexed) -> None:
    for end in ("ack", "nack error=x", "release", "fallback reason=oom"):
        job = hive.held("retries=3")
        hive.start(job, "memory=8589934592 slots=4")
        (grant,) = hive.annex.grants.values()
        assert (job, "g1", 0) == (grant.job, hive.state.gpu.of_job[job], grant.until_ns)
        hive.tell(job, end)
        assert ({}, {}) == (hive.annex.grants, hive.state.gpu.of_job)
        if end != "ack":
            hive.write("/jobs/ctl", f"cancel job={job}")


def test_a_grant_ends_with_the_lease_of_its_job_and_with_the_job(hive: Annexed) -> None:
    job = hive.held()
    hive.start(job)
    hive.clock.advance(30 * SECOND)
    hive.hive(f"/jobs/{job}", "expire fence=1")
    assert not hive.annex.grants
    again = hive.held()
    hive.start(again)
    hive.write("/jobs/ctl", f"cancel job={again}")
    assert not hive.annex.grants


def test_who_waits_is_given_what_a_job_had_in_the_entry_of_its_end(hive: Annexed) -> None:
    job = hive.held()
    hive.start(job, "memory=8589934592")
    assert WAITING == lease(hive, "8GiB", "wait=1h")
    hive.tell(job, "ack")
    assert [""] == [grant.job for grant in hive.annex.grants.values()]


def test_a_start_on_what_is_no_device_of_an_annex_is_refused(hive: Annexed) -> None:
    job = hive.held()
    path = f"/jobs/{job}/ctl"
    assert "QUOTA " in refused(hive, path, f"start fence=1 device=cuda:0 memory={9 * GIB}", G1)
    assert "USAGE " in refused(hive, path, "start fence=1 device=cuda:1 memory=1", G1)
    assert "USAGE " in refused(hive, path, "start fence=1 device=cuda:00 memory=1", G1)
    other = hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/default/next", "lease", W1)
    assert "is no annex" in refused(hive, f"/jobs/{other}/ctl", "start fence=1 device=cpu:0 memory=1", W1)
    hive.write(f"/jobs/{other}/ctl", "start fence=1 device=cpu", W1)
    assert ({}, "running") == (hive.state.gpu.of_job, hive.job_state(other))


def test_a_job_within_its_submitters_lease_takes_of_that_alone(hive: Annexed) -> None:
    outer = lease(hive, "6GiB", "slots=2")
    lease(hive, "2GiB", "slots=2")
    jobs = [hive.held() for _ in range(3)]
    for job in jobs[:2]:
        hive.start(job, f"memory={3 * GIB} lease={outer}")
    assert (8 * GIB, 4) == used(hive.annex.on("cuda:0"))[:2]
    assert "BUSY " in refused(
        hive, f"/jobs/{jobs[2]}/ctl", f"start fence=1 device=cuda:0 memory=0 lease={outer}", G1
    )
    hive.tell(jobs[0], "ack")
    hive.start(jobs[2], f"memory={3 * GIB} lease={outer}")


def test_a_job_goes_within_no_lease_but_its_submitters(hive: Annexed) -> None:
    outer, evil = lease(hive, "4GiB"), lease(hive, "1GiB", who=EVE)
    job = hive.held()
    path, start = f"/jobs/{job}/ctl", "start fence=1 device=cuda:0"
    assert "QUOTA " in refused(hive, path, f"{start} memory={5 * GIB} lease={outer}", G1)
    assert "rule=lease-holder" in refused(hive, path, f"{start} memory=1 lease={evil}", G1)
    assert "EXPIRED " in refused(hive, path, f"{start} memory=1 lease=nothing", G1)
    line = named(hive, outer)
    hive.clock.advance(20 * SECOND)
    hive.write(f"/jobs/{job}/ctl", "renew fence=1", G1)
    hive.write(CTL, f"release {line}")
    assert "EXPIRED " in refused(hive, path, f"{start} memory=1 lease={outer}", G1)


def test_what_is_within_a_lease_ends_with_it(hive: Annexed) -> None:
    outer, job = lease(hive), hive.held()
    hive.start(job, f"memory=1 lease={outer}")
    release(hive, outer)
    assert ({}, {}, "queued") == (hive.annex.grants, hive.state.gpu.of_job, hive.job_state(job))
    hive.tell(job, "fallback reason=lease_expired")
    assert ("queued", "spare") == (hive.job_state(job), hive.state.jobs.by_id[job].request.pool)
    assert [(job, 0)] == hive.state.gpu.fallen["g1"]


# what an annex has


def test_what_a_device_has_not_any_more_ends_the_newest_first(hive: Annexed) -> None:
    old, new = lease(hive, "4GiB"), lease(hive, "3GiB")
    hive.offer(CARD | {"memory": 6 * GIB})
    assert [old] == list(hive.annex.grants)
    assert new not in hive.annex.grants
    hive.offer({"id": "cuda:1", "memory": 8 * GIB})
    assert not hive.annex.grants


def test_who_waits_for_what_is_not_there_any_more_is_sent_away(hive: Annexed) -> None:
    lease(hive, "8GiB")
    lease(hive, "8GiB", "wait=1h")
    lease(hive, "2GiB", "wait=1h", EVE)
    hive.offer(CARD | {"memory": 4 * GIB})
    assert [2 * GIB] == [grant.given.memory for grant in hive.annex.grants.values()]
    assert not hive.annex.waiters


def test_what_is_held_of_an_annex_ends_when_its_node_is_removed(hive: Annexed) -> None:
    id = lease(hive, "8GiB")
    assert WAITING == lease(hive, "8GiB", "wait=1h")
    order = Order(
        "remove", {"node": "g1"}, "ctl", "", "unix:ann", "operator", HIVE_TENANT, hive.clock.now_ns(), "01"
    )
    ended, sent = gone(hive.state.gpu, order)
    assert isinstance(ended, Ended)
    assert isinstance(sent, Withdrawn)
    assert (id, "gone", "gone") == (ended.lease, ended.why, sent.why)
    hive.write("/nodes/ctl", "remove node=g1")
    assert {} == hive.state.gpu.by_id


def test_an_offer_that_is_none_other_changes_nothing(hive: Annexed) -> None:
    rev = hive.annex.rev
    hive.offer(CARD)
    assert rev == hive.annex.rev


@pytest.mark.parametrize("by_itself", [False, True])
def test_an_annex_that_is_disabled_gives_nothing_and_lets_end_what_runs(by_itself: bool) -> None:
    hive = Annexed()
    kept, job = lease(hive, "8GiB"), hive.held()
    lease(hive, "8GiB", "wait=1h")
    hive.offer(CARD, disabled="SKEP_NO_CUDA=1") if by_itself else hive.write(CTL, "disable reason=drill")
    why = "SKEP_NO_CUDA=1" if by_itself else "drill"
    assert ([kept], {}) == (list(hive.annex.grants), hive.annex.waiters)
    assert f"annex=g1 is disabled: {why}" in refused(hive, CTL, "lease memory=1 ttl=60s wait=1h")
    start = "start fence=1 device=cuda:0 memory=1"
    assert f"CONFLICT conflict: annex=g1 is disabled: {why}" in refused(hive, f"/jobs/{job}/ctl", start, G1)
    assert frozenset() == hive.state.offers("g1")
    assert ("disabled", "g1") == hive.state.why_no_annex("gpu", HIVE_TENANT)
    assert refused(hive, "/pools/gpu/next", "lease", G1).startswith("NODATA ")
    release(hive, kept)
    if by_itself:
        assert f"g1 is disabled still, by itself: {why}" in hive.write(CTL, "enable")
    hive.offer(CARD) if by_itself else hive.write(CTL, "enable")
    hive.start(job)
    assert ("", "") == hive.state.why_no_annex("gpu", HIVE_TENANT)


@pytest.mark.parametrize("state", ["suspect", "lost", "leave"])
def test_an_annex_that_is_not_heard_gives_no_leases(hive: Annexed, state: str) -> None:
    hive.hive("/nodes/g1", state)
    assert "CONFLICT conflict: annex=g1 is " in refused(hive, CTL, "lease memory=1 ttl=60s wait=1h")


def test_an_annex_does_jobs_of_devices_and_those_that_fell_back_alone(hive: Annexed) -> None:
    hive.write("/jobs/ctl", "submit topic=sum")
    assert "rule=annex-pools pool=default" in refused(hive, "/pools/default/next", "lease", G1)
    job = hive.held()
    hive.tell(job, "fallback reason=full")
    assert job == hive.write("/pools/spare/next", "lease", G1)


def test_an_annex_is_its_tenants_or_the_hives(hive: Annexed) -> None:
    assert "MISSING " in refused(hive, CTL, "lease memory=1 ttl=60s", BOB)
    hive.hive("/nodes/own", f"join principal=unix:bobs role=cuda-annex tenant={BOB.tenant}")
    hive.hive("/gpu/own", 'offer every=30s devices=\'[{"id":"cuda:0","memory":9}]\'')
    assert "device=cuda:0" in hive.write("/gpu/own/ctl", "lease memory=9 ttl=60s", BOB)
    assert "rule=hive-tenant" in refused(hive, "/gpu/own/ctl", "disable", BOB)


def test_only_the_hive_says_what_an_annex_has(hive: Annexed) -> None:
    for line in ("offer every=30s devices=[]", "expire", "restart", "withdraw lease=x"):
        assert "rule=own-verbs" in refused(hive, "/gpu/g1", line)
        assert "rule=own-verbs" in refused(hive, "/gpu/g1", line, G1)


# sources


def test_a_source_runs_by_its_hash_as_long_as_it_is_allowed(hive: Annexed) -> None:
    source = "0f" * 32
    hive.write("/gpu/sources/ctl", f"allow source=sha256:{source} reason='read by two'")
    rev = hive.state.gpu.sources[source].rev
    hive.write("/gpu/sources/ctl", f"allow source={source} reason=again")
    assert ("unix:ann", "read by two", rev) == tuple(
        getattr(hive.state.gpu.sources[source], name) for name in ("actor", "reason", "rev")
    )
    assert "rule=hive-tenant" in refused(hive, "/gpu/sources/ctl", f"allow source={source}", BOB)
    assert "rule=default-deny" in refused(hive, "/gpu/sources/ctl", f"allow source={source}", G1)
    hive.write("/gpu/sources/ctl", f"forbid source={source}")
    assert {} == hive.state.gpu.sources
