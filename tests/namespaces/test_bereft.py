"""What becomes of jobs that run when their device, or the lease they run within, has no more for them."""

from __future__ import annotations

from typing import Final

import pytest
from hives import Folded

from skep.fs import ctl
from skep.fs.node import Caller
from skep.trace.clock import SECOND
from skep.trace.entry import canonical
from skep.trace.rules import Refusal

GIB: Final = 1 << 30
G1: Final = Caller("unix:gpu", "cuda-annex", node="g1")


@pytest.fixture
def hive() -> Folded:
    """A hive with an annex of one card."""
    hive = Folded()
    for line in ("create pool=gpu-cpu", "create pool=gpu requires=gpu fallback=gpu-cpu"):
        hive.write("/pools/ctl", line)
    hive.write("/pools/ctl", "map topic=fast pool=gpu")
    hive.hive("/nodes/g1", "join principal=unix:gpu role=cuda-annex")
    hive.hive("/nodes/g1", 'offer labels=\'{"gpu":"h100"}\' capacity=8')
    offer(hive, 4 * GIB)
    return hive


def offer(hive: Folded, memory: int) -> None:
    devices = canonical([{"id": "cuda:0", "memory": memory, "slots": 4}]).decode()
    hive.hive("/gpu/g1", ctl.line("offer", {"devices": devices, "every": "30s"}))


def leased(hive: Folded, more: str = "") -> str:
    """A lease of two GiB; its id."""
    return hive.write("/gpu/g1/ctl", f"lease memory=2GiB slots=2 ttl=10s {more}").split()[0]


def running(hive: Folded, memory: int, lease: str = "", more: str = "") -> str:
    job = hive.write("/jobs/ctl", f"submit topic=fast {more}")
    assert job == hive.write("/pools/gpu/next", "lease", G1)
    within = f"lease={lease}" if lease else ""
    hive.write(f"/jobs/{job}/ctl", f"start fence=1 device=cuda:0 memory={memory} slots=1 {within}", G1)
    return job


def fallen(hive: Folded, job: str) -> tuple[str, str, list[str], int]:
    of = hive.state.jobs.by_id[job]
    return of.state, of.request.pool, [each.reason for each in of.fallbacks], of.fence


@pytest.mark.parametrize("how", ["release", "expire"])
def test_a_job_falls_back_with_the_lease_that_it_runs_within(hive: Folded, how: str) -> None:
    lease = leased(hive)
    within, beside = running(hive, GIB, lease), running(hive, GIB)
    if how == "release":
        fence = hive.state.gpu.by_id["g1"].grants[lease].given.fence
        hive.write("/gpu/g1/ctl", f"release lease={lease} fence={fence}")
    else:
        hive.clock.advance(10 * SECOND)
        hive.hive("/gpu/g1", "expire")
    assert ("queued", "gpu-cpu", ["lease_expired"], 2) == fallen(hive, within)
    assert ("running", "gpu", [], 1) == fallen(hive, beside)
    # Its holder is told so, whatever it says.
    with pytest.raises(Refusal, match="token=1 newest=2"):
        hive.write(f"/jobs/{within}/ctl", "ack fence=1 result=3", G1)


def test_what_it_had_is_anothers_in_the_same_entry(hive: Folded) -> None:
    lease = leased(hive)
    within = running(hive, GIB, lease)
    hive.clock.advance(10 * SECOND)
    other = running(hive, 4 * GIB)
    assert ("queued", "gpu-cpu", ["lease_expired"], 2) == fallen(hive, within)
    assert [other] == [grant.job for grant in hive.state.gpu.by_id["g1"].grants.values()]


def test_a_job_falls_back_from_a_device_that_has_not_so_much_any_more(hive: Folded) -> None:
    first, second = running(hive, 2 * GIB), running(hive, 2 * GIB)
    offer(hive, 3 * GIB)
    assert ("running", "gpu", [], 1) == fallen(hive, first)
    assert ("queued", "gpu-cpu", ["no_device"], 2) == fallen(hive, second)


def test_one_that_refuses_to_fall_back_has_failed(hive: Folded) -> None:
    lease = leased(hive)
    job = running(hive, GIB, lease, "fallback=refuse")
    hive.clock.advance(10 * SECOND)
    hive.hive("/gpu/g1", "expire")
    of = hive.state.jobs.by_id[job]
    assert ("failed", "lease_expired") == (of.state, of.code)
    assert of.text.startswith("lease_expired: the lease that it ran inside of has ended (annex=g1)")


def test_who_waited_is_given_what_they_had_once(hive: Folded) -> None:
    lease = leased(hive)
    running(hive, GIB, lease)
    running(hive, 2 * GIB)
    waiter = hive.write("/gpu/g1/ctl", "lease memory=2GiB ttl=60s wait=1m")
    assert "waiting" == waiter
    hive.clock.advance(10 * SECOND)
    hive.hive("/gpu/g1", "expire")
    annex = hive.state.gpu.by_id["g1"]
    assert ({}, [2 * GIB, 2 * GIB]) == (
        annex.waiters, [grant.given.memory for grant in annex.grants.values()],
    )  # fmt: skip
