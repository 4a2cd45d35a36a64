from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gpuwork import (
    FATES,
    GIB,
    TENANT,
    Told,
    Work,
    annex_gone,
    bereft,
    bodies,
    cancelled,
    drilled,
    in_place,
    leased,
    lost,
    lost_and_well,
    out_of_memory,
    refused,
    well,
    wrong,
)
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.clock import SECOND
from skep.trace.entry import Line, Outcome, canonical, entry_of
from skep.trace.ledger import LedgerTampered
from skep.validator.gpu.claims import CLAIMS
from skep.validator.gpu.proof import Report, Times, prove

Fate = Callable[[Work, str], None]


def worked(*fates: Fate) -> Work:
    return Work().after(*fates)


def proved(work: Work) -> Report:
    return prove(enumerate(work.bodies(), 1))


def broken(work: Work) -> list[str]:
    """Which claims do not hold."""
    return [claim.name for claim in proved(work).claims if claim.broken]


def test_what_became_of_every_job_is_counted() -> None:
    found = proved(
        worked(well, lost_and_well, out_of_memory, annex_gone, in_place, refused, wrong, cancelled)
    )
    assert ([], True) == (found.broken, found.proven)
    assert (8, 5, 2, 1, 0, 0) == (
        found.jobs, found.right, found.error, found.cancelled, found.open, found.silent
    )  # fmt: skip
    assert (2, 3, 3) == (found.on_device, found.fell_back, found.right_after)
    assert {"annex_lost": 1, "no_device": 1, "oom": 1} == found.reasons
    assert {"argument": 1, "kernel_failed": 1} == found.codes
    # Three that fell back are right, of four that had no device or lost it.
    assert (0.75, 1, 1.0) == (found.ratio, found.refused, found.ratio_allowed)
    assert Times(3, 4 * SECOND, 4 * SECOND) == found.recovered


def test_jobs_that_go_on_are_open_and_break_nothing() -> None:
    work = worked(well)
    work.submit("J5")
    work.lease("J5")
    work.submit("J6")
    found = proved(work)
    assert (True, 2, ["J5", "J6"]) == (found.proven, found.open, found.waiting)


def test_what_asked_for_no_gpu_is_not_counted() -> None:
    work = worked(annex_gone)
    work.submit("J7", pool="gpu-cpu", requires=[])
    work.pools["J7"] = "gpu-cpu"
    work.lease("J7", "w1")
    work.start("J7", "cpu")
    work.ack("J7", "cpu")
    assert (1, True) == (proved(work).jobs, proved(work).proven)


def test_an_empty_ledger_proves_that_there_was_nothing() -> None:
    found = prove([])
    assert (True, 0, None, None) == (found.proven, found.jobs, found.ratio, found.recovered)


def of(work: Work, kind: str, number: int = 0) -> Told:
    """An event of the kind, to be changed."""
    return [event for *_, events in work.entries for event in events if event["type"] == kind][number]


def changed(fate: Fate, kind: str, number: int = 0, **fields: Any) -> Work:
    work = worked(fate)
    of(work, kind, number).update(fields)
    return work


@pytest.mark.parametrize(
    ("claim", "work"),
    [
        ("once", changed(well, "job.started", job="J9")),
        ("once", changed(lost_and_well, "job.returned", job="J9")),
        ("once", changed(wrong, "job.leased", job="J9")),
        ("device", changed(well, "gpu.leased", job="")),
        ("device", changed(well, "gpu.leased", device="cuda:1")),
        ("device", changed(well, "job.started", device="")),
        ("device", changed(well, "job.started", device="cuda:7")),
        ("device", changed(well, "job.started", device="cpu")),
        ("device", changed(annex_gone, "job.started", device="cpu:0")),
        ("device", changed(annex_gone, "job.started", device="tpu")),
        ("error", changed(wrong, "job.ended", text="")),
        ("error", changed(wrong, "job.ended", code="")),
        ("error", changed(wrong, "job.ended", state="gone")),
        ("alert", changed(wrong, "job.ended", code="oom")),
        ("alert", changed(refused, "alert.raised", id="J9")),
        ("alert", changed(refused, "alert.raised", reason="")),
        ("alert", changed(lost, "alert.raised", id="a9")),
        ("fallback", changed(annex_gone, "job.fellback", reason="")),
        ("fallback", changed(annex_gone, "job.fellback", reason="because")),
        ("fallback", changed(annex_gone, "job.fellback", from_pool="")),
        ("fallback", changed(annex_gone, "job.fellback", pool="gpu")),
        ("fallback", changed(annex_gone, "job.fellback", requires=["gpu:a100"])),
        ("fallback", changed(annex_gone, "job.submitted", fallback="refuse")),
        ("fallback", changed(in_place, "job.fellback", annex="a1")),
        ("capacity", changed(well, "gpu.leased", memory=9 * GIB)),
        ("capacity", changed(well, "gpu.leased", slots=3)),
        ("capacity", changed(well, "annex.offered", devices=[])),
        ("exclusive", changed(leased, "gpu.leased", exclusive=True)),
        ("time", changed(leased, "gpu.leased", until_ns=1)),
        ("time", changed(leased, "gpu.leased", until_ns=0)),
        ("time", changed(leased, "gpu.leased", 1, until_ns=1000 * SECOND)),
        ("fence", changed(leased, "gpu.leased", 1, fence=1)),
        ("fence", changed(lost_and_well, "job.leased", 1, fence=1)),
        ("fence", changed(well, "job.ended", fence=0)),
        ("output", changed(well, "artifact.sealed", sha256="cd" * 32)),
        ("output", changed(well, "artifact.sealed", tenant="other/one/prod")),
        ("output", changed(well, "job.ended", text="done")),
        ("output", changed(well, "job.ended", text='{"device":"cpu","out":{}}')),
        ("order", changed(well, "job.submitted", pool="nowhere")),
        ("order", changed(leased, "gpu.ended", lease="L9")),
        ("order", changed(well, "gpu.leased", holder="unix:bob")),
        ("time", changed(leased, "gpu.leased", 2, within="T99")),
        ("time", changed(leased, "gpu.leased", tenant="other/one/prod")),
        ("time", changed(leased, "gpu.leased", device="cuda:1")),
        ("capacity", changed(leased, "gpu.leased", 2, memory=2 * GIB)),
        ("capacity", changed(well, "annex.offered", disabled="SKEP_NO_CUDA=1")),
        ("effect", changed(leased, "gpu.leased", lease="L9")),
        ("effect", changed(drilled, "annex.enabled", annex="a9")),
    ],
)
def test_each_claim_is_broken_by_what_contradicts_it(claim: str, work: Work) -> None:
    assert claim in broken(work)


def test_a_job_about_which_a_claim_is_broken_is_silent() -> None:
    work = worked(well, wrong, annex_gone)
    of(work, "job.ended", 1)["text"] = ""
    found = proved(work)
    assert (False, 1, 2, 0) == (found.proven, found.silent, found.right, found.error)
    assert [("error", "J1", "it failed, and does not say why")] == [
        (each.claim, each.job, each.text) for each in found.broken
    ]


def test_what_is_given_together_must_fit() -> None:
    work = Work(memory=4 * GIB, slots=2)
    for job in ("J1", "J2"):
        work.submit(job)
        work.lease(job)
        work.start(job, "cuda:0", work.given(job, 2 * GIB))
    assert [] == broken(work)
    work.hold(memory=1)
    (found,) = proved(work).broken
    assert ("capacity", "a1", "cuda:0 of a1 gives 4294967297 bytes of 4294967296") == (
        found.claim, found.annex, found.text
    )  # fmt: skip


def test_what_a_job_had_is_free_when_its_attempt_is_over() -> None:
    assert [] == broken(Work(slots=1).after(well, lost_and_well, out_of_memory, refused, cancelled, well))


def test_a_lease_takes_nothing_once_its_time_is_over() -> None:
    work = Work(slots=1)
    work.hold(ttl_s=5)
    work.now_s += 5
    assert [] == broken(work.after(well))


def test_an_annex_that_offers_less_must_take_back_what_fits_no_more() -> None:
    work, kept = Work(), Work()
    for each in (work, kept):
        lease = each.hold(6 * GIB)
    work.offer(4 * GIB, 2, {"type": "gpu.ended", "annex": "a1", "lease": lease, "why": "gone"})
    kept.offer(4 * GIB, 2)
    assert ([], ["capacity"]) == (broken(work), broken(kept))


def test_a_forgotten_annex_gives_nothing_and_its_fences_go_on() -> None:
    work = Work()
    work.hold()
    work.write("/nodes/a1", "remove", {"type": "node.removed", "node": "a1"})
    work.fence = 0
    work.hold()
    assert ["capacity", "fence"] == sorted(broken(work))


def test_a_disabled_annex_gives_nothing() -> None:
    work = worked(drilled)
    del work.entries[-1]
    work.submit("J1")
    work.lease("J1")
    work.start("J1")
    assert ["capacity"] == broken(work)


def test_a_lease_is_not_renewed_after_its_time() -> None:
    work = Work()
    lease = work.hold(ttl_s=2)
    work.now_s += 2
    renewed = {"type": "gpu.renewed", "annex": "a1", "lease": lease, "until_ns": 99 * SECOND}
    work.write("/gpu/a1/ctl", f"renew lease={lease}", renewed)
    assert ["time"] == broken(work)


def test_an_attempt_does_not_go_on_with_what_was_taken_from_it() -> None:
    work = worked(bereft)
    assert [] == broken(work)
    del work.entries[-2][3][2], work.entries[-1:]
    assert ["time"] == broken(work)


def test_a_job_runs_within_no_lease_that_is_over() -> None:
    work = Work()
    lease = work.hold(ttl_s=2)
    work.submit("J1")
    work.lease("J1")
    work.start("J1", "cuda:0", work.given("J1", 1, within=lease))
    assert ["time"] == broken(work)


def test_the_jobs_within_a_lease_share_what_it_has() -> None:
    work = Work(slots=2)
    lease = work.hold(memory=GIB, slots=1, exclusive=True)
    work.submit("J1")
    work.lease("J1")
    work.start("J1", "cuda:0", work.given("J1", GIB, within=lease))
    assert [] == broken(work)
    work.submit("J2")
    work.lease("J2")
    work.start("J2", "cuda:0", work.given("J2", 0, within=lease))
    assert ["capacity"] == broken(work)


def test_a_job_falls_back_only_where_its_pool_does() -> None:
    work = worked()
    work.submit("J1", pool="gpu-cpu", requires=[])
    work.fall_back("J1", "oom")
    assert "fallback" in broken(work)


def test_what_was_refused_has_no_events() -> None:
    line = Line("unix:x", "hive", TENANT, "/jobs/ctl", ("submit",), 1, "T")
    events = ({"type": "pool.created", "pool": "p"},)
    found = prove([(1, canonical(entry_of(line, 1, Outcome("DENIED", "no"), events)))])
    assert ["effect"] == [each.claim for each in found.broken]


def test_an_entry_that_is_left_out_is_told() -> None:
    entries = [*enumerate(worked(well).bodies(), 1)]
    assert "it comes after entry 1" in {each.text for each in prove(entries[:1] + entries[2:]).broken}


def test_what_is_no_entry_ends_the_proof() -> None:
    with pytest.raises(LedgerTampered, match=r"^entry 1: "):
        prove([(1, b"{}")])
    with pytest.raises(LedgerTampered, match=r"^entry 2: says it is entry 1$"):
        prove([(2, Work().bodies()[0])])
    work = Work()
    work.write("/x", "x", {"type": "job.returned", "job": "J"})
    with pytest.raises(LedgerTampered, match=r"^entry 4: .*`fence`"):
        proved(work)


# any ledger, and what somebody left out or did twice

Entries = list[tuple[str, str, int, list[Told]]]
FATED = st.lists(st.sampled_from(FATES), min_size=1, max_size=6)


def copied(entries: Entries) -> Entries:
    return [(path, line, time_ns, [*events]) for path, line, time_ns, events in entries]


def places(entries: Entries) -> list[tuple[int, int]]:
    """Where each event stands."""
    return [(at, k) for at, (*_, events) in enumerate(entries) for k in range(len(events))]


def is_proven(entries: Sequence[tuple[str, str, int, list[Told]]]) -> bool:
    return prove(enumerate(bodies(entries), 1)).proven


@given(FATED)
def test_whatever_becomes_of_jobs_is_proven_when_it_is_told(fates: list[Fate]) -> None:
    found = proved(worked(*fates))
    assert [] == found.broken
    assert found.jobs == found.right + found.error + found.cancelled
    assert {*CLAIMS} == {claim.name for claim in found.claims}


# Without these, a ledger tells of less, and contradicts itself only where that was used.
HARMLESS = {"gpu.renewed", "node.heard"}


def is_harmless(event: Told) -> bool:
    """What a job has ends with its attempt, too."""
    return event["type"] in HARMLESS or (event["type"] == "gpu.ended" and "job" in event)


@given(FATED, st.data())
def test_an_event_that_is_left_out_is_found(fates: list[Fate], data: st.DataObject) -> None:
    entries = copied(worked(well, *fates).entries)
    # The pool that is fallen back to is asked about only where something is submitted to it.
    at, k = data.draw(st.sampled_from(places(entries)[1:]))
    gone = entries[at][3].pop(k)
    assert is_harmless(gone) or not is_proven(entries), gone


@given(FATED, st.data())
def test_an_event_that_is_there_twice_is_found(fates: list[Fate], data: st.DataObject) -> None:
    entries = copied(worked(well, *fates).entries)
    kinds = {"job.submitted", "job.leased", "job.started", "job.returned", "job.delayed", "job.ended",
             "job.fellback", "gpu.leased", "gpu.ended"}  # fmt: skip
    twice = [(at, k) for at, k in places(entries) if entries[at][3][k]["type"] in kinds]
    at, k = data.draw(st.sampled_from(twice))
    entries[at][3].insert(k, entries[at][3][k])
    assert not is_proven(entries), entries[at]


# By event: fields, and what none of them can be.
LIES: dict[str, list[tuple[str, Any]]] = {
    "job.submitted": [("job", "J99"), ("pool", "nowhere")],
    "job.leased": [("job", "J99"), ("fence", 0)],
    "job.started": [("job", "J99"), ("device", "cuda:9"), ("device", "tpu"), ("fence", 99)],
    "job.returned": [("job", "J99"), ("fence", 0)],
    "job.delayed": [("job", "J99"), ("fence", 0)],
    "job.woken": [("job", "J99")],
    "job.fellback": [
        ("job", "J99"),
        ("reason", ""),
        ("reason", "because"),
        ("from_pool", "a"),
        ("fence", -1),
    ],
    "job.ended": [("job", "J99"), ("state", "gone"), ("fence", -1)],
    "alert.raised": [("id", "J99"), ("reason", "")],
    "annex.offered": [("annex", "a9"), ("devices", []), ("disabled", "by itself")],
    "annex.disabled": [("annex", "a9")],
    "annex.enabled": [("annex", "a9")],
    "gpu.leased": [("annex", "a9"), ("device", "cuda:9"), ("memory", 1 << 60), ("slots", 99), ("fence", 0)],
    "gpu.ended": [("annex", "a9"), ("lease", "T99")],
    "artifact.sealed": [("sha256", "cd" * 32), ("tenant", "other/one/prod")],
}


@given(FATED, st.data())
def test_an_event_that_says_what_cannot_be_is_found(fates: list[Fate], data: st.DataObject) -> None:
    entries = copied(worked(well, *fates).entries)
    told = [(at, k) for at, k in places(entries) if entries[at][3][k]["type"] in LIES]
    at, k = data.draw(st.sampled_from(told))
    event = entries[at][3][k]
    field, lie = data.draw(st.sampled_from(LIES[event["type"]]))
    in_place = event.get("in_place") and field == "from_pool"
    entries[at][3][k] = event | {field: lie}
    assert in_place or not is_proven(entries), (event, field)
