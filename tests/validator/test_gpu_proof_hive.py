"""GPU work that a hive decided, by its own rules: what it wrote down is proven."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from gpuwork import GIB, output
from recorded import HIVE, Recorder

from skep.fs import ctl
from skep.fs.node import Caller
from skep.roles.outside import outside_of
from skep.trace.clock import SECOND
from skep.trace.entry import canonical
from skep.validator.assertions import assertions
from skep.validator.assertions.assertions import check
from skep.validator.assertions.facts import LedgerFacts
from skep.validator.assertions.rules import read
from skep.validator.gpu.proof import Report, prove
from skep.validator.gpu.told import TOLD
from tests.namespaces.hives import W1

G1: Final = Caller("unix:gpu", "cuda-annex", node="g1")
G2: Final = Caller("unix:gpu", "cuda-annex", node="g2")


class GpuHive(Recorder):
    """A hive with an annex of one card, g1, and g2, whose card is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.write("/pools/ctl", "create pool=gpu-cpu")
        for pool, label in (("gpu", "gpu"), ("drill", "annex")):
            create = f"create pool={pool} requires={label} fallback=gpu-cpu"
            self.write("/pools/ctl", create, f"map topic={pool}.run pool={pool}")
        for annex, device in (("g1", "cuda:0"), ("g2", "cpu:0")):
            self.write(f"/nodes/{annex}", "join principal=unix:gpu role=cuda-annex", who=HIVE)
            labels = canonical({"annex": annex, "gpu": "h100"}).decode()
            self.write(f"/nodes/{annex}", ctl.line("offer", {"labels": labels, "capacity": "8"}), who=HIVE)
            self.offer(annex, [{"id": device, "memory": 4 * GIB, "slots": 4}])

    def offer(self, annex: str, devices: object) -> str:
        args = {"devices": canonical(devices).decode(), "every": "30s"}
        return self.write(f"/gpu/{annex}", ctl.line("offer", args), who=HIVE)

    def run(self, more: str = "", who: Caller = G1, pool: str = "gpu") -> str:
        """A job of the pool, leased to a node."""
        job = self.write("/jobs/ctl", f"submit topic={pool}.run {more}")
        assert job == self.write(f"/pools/{pool}/next", "lease", who=who)
        return job

    def say(self, job: str, line: str, who: Caller = G1) -> str:
        return self.write(f"/jobs/{job}/ctl", f"{line} fence={self.state.jobs.by_id[job].fence}", who=who)

    def ack(self, job: str, device: str, who: Caller = G1) -> None:
        sha256 = output(job)
        seal = {"name": "out.npy", "sha256": sha256, "size": "8", "job": job}
        assert f"sha256:{sha256}" == self.write("/artifacts/ctl", ctl.line("seal", seal), who=who)
        out = {"artifact": "out.npy", "sha256": sha256}
        result = {"device": device, "nanoseconds": 1, "out": {"out": out}}
        assert job == self.say(job, ctl.line("ack", {"result": canonical(result).decode()}), who)


@cache
def worked() -> tuple[bytes, ...]:
    hive = GpuHive()
    well = hive.run()
    assert well == hive.say(well, f"start device=cuda:0 memory={1 * GIB} slots=1")
    big = hive.run()
    assert "BUSY" == hive.say(big, f"start device=cuda:0 memory={4 * GIB} slots=1")
    hive.ack(well, "cuda:0")
    assert big == hive.say(big, f"start device=cuda:0 memory={4 * GIB} slots=1 exclusive=true")
    assert big == hive.say(big, "fallback reason=oom error='4 GiB'")
    assert big == hive.write("/pools/gpu-cpu/next", "lease", who=W1)
    assert big == hive.say(big, "start device=cpu", W1)
    hive.clock.advance(SECOND)
    hive.ack(big, "cpu", W1)
    here = hive.run(who=G2)
    assert here == hive.say(here, f"start device=cpu:0 memory={1 * GIB} slots=1", G2)
    hive.ack(here, "cpu:0", G2)
    drill = hive.run(who=G2, pool="drill")
    assert drill == hive.say(drill, f"start device=cpu:0 memory={4 * GIB} slots=1", G2)
    assert drill == hive.say(drill, "ack result=done", G2)
    never = hive.run("fallback=refuse")
    assert never == hive.say(never, f"start device=cuda:0 memory={1 * GIB} slots=1")
    assert never == hive.say(never, "fallback reason=kernel_failed error='it faulted'")
    lost = hive.run("retries=1")
    assert lost == hive.say(lost, f"start device=cuda:0 memory={1 * GIB} slots=4")
    assert lost == hive.say(lost, "release")
    assert lost == hive.write("/pools/gpu/next", "lease", who=G1)
    assert lost == hive.say(lost, f"start device=cuda:0 memory={1 * GIB} slots=4")
    hive.ack(lost, "cuda:0")
    shrunk = hive.run()
    assert shrunk == hive.say(shrunk, f"start device=cuda:0 memory={3 * GIB} slots=1")
    hive.offer("g1", [{"id": "cuda:0", "memory": 2 * GIB, "slots": 4}])
    assert "FENCED" == hive.write(f"/jobs/{shrunk}/ctl", "nack error=gone fence=1", who=G1)
    assert shrunk == hive.write("/jobs/ctl", f"cancel job={shrunk}")
    hive.run()
    hive.write("/nodes/g1", "lost", who=HIVE)
    hive.write("/gpu/g2/ctl", "enable", "disable reason=drill")
    hive.write("/gpu/g2/ctl", "enable")
    lease = hive.write("/gpu/g2/ctl", "lease memory=1GiB ttl=5s").split()[0]
    hive.clock.advance(5 * SECOND)
    assert "ok" == hive.write("/gpu/g2", "expire", who=HIVE), lease
    return tuple(hive.bodies)


def proved(bodies: tuple[bytes, ...]) -> Report:
    return prove(enumerate(bodies, 1))


def test_what_a_hive_decided_about_gpu_work_is_proven() -> None:
    found = proved(worked())
    assert [] == found.broken
    assert (8, 5, 1, 1, 1, 0) == (
        found.jobs, found.right, found.error, found.cancelled, found.open, found.silent
    )  # fmt: skip
    assert ({"no_device": 2, "oom": 1}, 3) == (found.reasons, found.fell_back)
    assert (3, 2, 9) == (found.on_device, found.on_gpu, found.leases)
    assert 2 / 3 == found.ratio


def test_who_does_what_fell_back_need_not_say_that_it_does_so_on_a_cpu() -> None:
    """A worker with handlers of its own knows of no devices: nothing of one was given to it."""
    hive = GpuHive()
    job = hive.run(pool="drill")
    assert job == hive.say(job, "fallback reason=oom")
    assert job == hive.write("/pools/gpu-cpu/next", "lease", who=W1)
    assert job == hive.say(job, "start", W1)
    assert job == hive.say(job, "ack result=done", W1)
    found = proved(tuple(hive.bodies))
    assert ([], 1, 0) == (found.broken, found.right_after, found.silent)


def is_harmless(event: dict[str, Any]) -> bool:
    """Whether without it less is told, and nothing that contradicts itself."""
    match event["type"]:
        case "pool.created":
            return event["pool"] in ("default", "gpu-cpu")  # nothing is submitted to these
        case "gpu.ended":
            return "job" in event  # what a job has ends with its attempt, too
        case kind:
            return kind in ("job.renewed", "gpu.renewed", "node.heard")


def test_whatever_is_left_out_of_what_a_hive_wrote_is_found() -> None:
    entries = [msgspec.json.decode(body) for body in worked()]
    for at, entry in enumerate(entries):
        for k, event in enumerate(entry["events"]):
            if event["type"] in TOLD and not is_harmless(event):
                without = {**entry, "events": entry["events"][:k] + entry["events"][k + 1 :]}
                bodies = (*worked()[:at], canonical(without), *worked()[at + 1 :])
                assert not proved(bodies).proven, event


def test_the_rules_for_every_hive_hold_of_gpu_work() -> None:
    rules = read((Path(assertions.__file__).parent / "default.rules").read_text())
    entries = LedgerFacts(outside_of())
    facts = (fact for seq, body in enumerate(worked(), 1) for fact in entries.of(seq, body))
    found = check(rules, facts, talk=False)
    assert [] == [each for each in found if each.broken]
    asked = [each.asked for each in found if each.title.startswith(("a job falls", "what ends of"))]
    assert [3, 1, 2] == asked
