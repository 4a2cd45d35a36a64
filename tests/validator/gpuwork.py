"""Ledgers of GPU work, written by hand: what a hive would write, one entry after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

from skep.fs.ctl import line
from skep.trace.clock import SECOND
from skep.trace.entry import OK, Line, canonical, entry_of

Told = dict[str, Any]
GIB: Final = 1 << 30
TENANT: Final = "acme/vision/prod"


class Work:
    """Entries of a hive with the pools gpu and gpu-cpu and an annex of one device."""

    def __init__(self, memory: int = 8 * GIB, slots: int = 2) -> None:
        self.entries: list[tuple[str, str, int, list[Told]]] = []
        self.now_s = 0
        self.fence = 0  # of the annex
        self.jobs = 0
        self.fences: dict[str, int] = {}
        self.nodes: dict[str, str] = {}
        self.pools: dict[str, str] = {}
        self.write("/pools/ctl", "create pool=gpu-cpu", {"type": "pool.created", "pool": "gpu-cpu"})
        self.write(
            "/pools/ctl",
            "create pool=gpu requires=gpu fallback=gpu-cpu",
            {"type": "pool.created", "pool": "gpu", "requires": ["gpu"], "fallback": "gpu-cpu"},
        )
        self.offer(memory, slots)

    def write(self, path: str, line: str, *events: Told) -> None:
        self.now_s += 1
        self.entries.append((path, line, self.now_s * SECOND, list(events)))

    def offer(self, memory: int, slots: int, *more: Told) -> None:
        device = {"id": "cuda:0", "kind": "cuda", "name": "A card", "memory": memory, "slots": slots}
        event = {"type": "annex.offered", "annex": "a1", "devices": [device]}
        self.write("/gpu/a1", line("offer", {"devices": canonical([device]).decode()}), event, *more)

    def submit(self, job: str, **more: Any) -> None:
        self.fences[job], self.pools[job] = 0, "gpu"
        event = {"type": "job.submitted", "job": job, "tenant": TENANT, "actor": "unix:ann", "body": "",
                 "topic": "gpu.run", "pool": "gpu", "requires": ["gpu"], **more}  # fmt: skip
        self.write("/jobs/ctl", "submit topic=gpu.run", event)

    def lease(self, job: str, node: str = "a1") -> None:
        self.fences[job] += 1
        self.nodes[job] = node
        event = {"type": "job.leased", "job": job, "node": node, "fence": self.fences[job], "until_ns": 0}
        self.write(f"/pools/{self.pools[job]}/next", "lease", event)

    def given(self, job: str = "", memory: int = GIB, slots: int = 1, ttl_s: int = 0, **more: Any) -> Told:
        """A lease of the device, the next one."""
        self.fence += 1
        until_ns = (self.now_s + 1 + ttl_s) * SECOND if ttl_s else 0
        return {"type": "gpu.leased", "annex": "a1", "device": "cuda:0", "lease": f"T{len(self.entries) + 1}",
                "memory": memory, "slots": slots, "job": job, "fence": self.fence, "holder": "unix:ann",
                "tenant": TENANT, "priority": 5, "until_ns": until_ns, **more}  # fmt: skip

    def hold(self, memory: int = GIB, slots: int = 1, ttl_s: int = 9, **more: Any) -> str:
        """Somebody's own lease; its id."""
        event = self.given("", memory, slots, ttl_s, **more)
        self.write("/gpu/a1/ctl", f"lease memory={memory} ttl={ttl_s}s", event)
        return str(event["lease"])

    def start(self, job: str, device: str = "cuda:0", *events: Told) -> None:
        """``events``: what stands beside it; none, and on a device of the annex: its lease."""
        event = {"type": "job.started", "job": job, "fence": self.fences[job], "device": device}
        beside = [self.given(job)] if ":" in device and not events else [*events]
        self.write(f"/jobs/{job}/ctl", f"start fence={self.fences[job]}", event, *beside)

    def seal(self, job: str) -> None:
        event = {"type": "artifact.sealed", "sha256": output(job), "tenant": TENANT, "job": job, "size": 1}
        self.write("/artifacts/ctl", "seal name=c.npy", event)

    def ack(self, job: str, device: str = "cuda:0") -> None:
        result = canonical({"device": device, "out": {"c": {"sha256": f"sha256:{output(job)}"}}}).decode()
        self._end(job, "ack", "succeeded", text=result)

    def fail(self, job: str, code: str, text: str = "it is so", *alerts: Told) -> None:
        self._end(job, "nack", "failed", *alerts, code=code, text=text)

    def cancel(self, job: str) -> None:
        self._end(job, "cancel", "cancelled")

    def _end(self, job: str, verb: str, state: str, *beside: Told, **more: Any) -> None:
        event = {"type": "job.ended", "job": job, "state": state, "fence": self.fences[job], **more}
        self.write(f"/jobs/{job}/ctl", verb, event, *beside)

    def give_back(self, job: str) -> None:
        self.fences[job] += 1
        event = {"type": "job.returned", "job": job, "fence": self.fences[job], "why": "expired"}
        self.write(f"/jobs/{job}", "expire", event)

    def delay(self, job: str) -> None:
        event = {"type": "job.delayed", "job": job, "fence": self.fences[job], "until_ns": 0, "why": "nacked"}
        self.write(f"/jobs/{job}/ctl", "nack", event)
        self.write(f"/jobs/{job}", "wake", {"type": "job.woken", "job": job})

    def fall_back(self, job: str, reason: str) -> None:
        held = job in self.nodes
        event = {"type": "job.fellback", "job": job, "fence": self.fences[job], "reason": reason,
                 "pool": "gpu-cpu", "from_pool": "gpu", "annex": "a1"}  # fmt: skip
        path = f"/jobs/{job}/ctl" if held else f"/jobs/{job}"
        self.write(path, f"fallback reason={reason}", event)
        self.pools[job] = "gpu-cpu"

    def after(self, *fates: Callable[[Work, str], None]) -> Work:
        """This, after so many jobs more."""
        for fate in fates:
            fate(self, f"J{self.jobs}")
            self.jobs += 1
        return self

    def bodies(self) -> list[bytes]:
        return bodies(self.entries)


def output(job: str) -> str:
    """The hash of what the job makes."""
    return sha256(job.encode()).hexdigest()


def alert(job: str, reason: str) -> Told:
    return {"type": "alert.raised", "about": "job", "id": job, "tenant": TENANT, "reason": reason,
            "text": "it may not fall back"}  # fmt: skip


def bodies(entries: Iterable[tuple[str, str, int, Sequence[Told]]]) -> list[bytes]:
    """Entries of (path, line, time in ns, events)."""
    return [
        canonical(
            entry_of(
                Line("unix:x", "hive", TENANT, path, (line,), time_ns, f"T{seq}"), seq, OK, tuple(events)
            )
        )
        for seq, (path, line, time_ns, events) in enumerate(entries, 1)
    ]


# what becomes of a job, each from its submission to its end


def well(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job)
    work.start(job)
    work.seal(job)
    work.ack(job)


def lost_and_well(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job)
    work.start(job)
    work.give_back(job)
    work.lease(job)
    work.start(job)
    work.delay(job)
    work.lease(job)
    work.start(job)
    work.seal(job)
    work.ack(job)


def out_of_memory(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job)
    work.start(job)
    work.fall_back(job, "oom")
    work.lease(job, "w1")
    work.start(job, "cpu")
    work.seal(job)
    work.ack(job, "cpu")


def annex_gone(work: Work, job: str) -> None:
    work.submit(job)
    work.fall_back(job, "annex_lost")
    work.lease(job, "w1")
    work.start(job, "cpu")
    work.seal(job)
    work.ack(job, "cpu")


def in_place(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job, "a2")
    event = {"type": "job.fellback", "job": job, "fence": work.fences[job], "reason": "no_device",
             "pool": "gpu", "from_pool": "gpu", "annex": "a2", "in_place": True}  # fmt: skip
    work.start(job, "cpu", event)
    work.seal(job)
    work.ack(job, "cpu")


def refused(work: Work, job: str) -> None:
    work.submit(job, fallback="refuse")
    work.lease(job)
    work.start(job)
    work.fail(job, "kernel_failed", "the kernel faulted", alert(job, "kernel_failed"))


def wrong(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job)
    work.start(job)
    work.fail(job, "argument", "x has three axes")


def cancelled(work: Work, job: str) -> None:
    work.submit(job)
    work.lease(job)
    work.start(job)
    work.cancel(job)


def leased(work: Work, job: str) -> None:
    """Somebody holds some of the device, runs a job within, renews it and gives it back; another's ends."""
    first = work.hold(ttl_s=10)
    second = work.hold(ttl_s=3)
    work.submit(job)
    work.lease(job)
    work.start(job, "cuda:0", work.given(job, memory=1, within=first))
    work.fail(job, "argument", "x has three axes")
    renewed = {"type": "gpu.renewed", "annex": "a1", "lease": first,
               "until_ns": (work.now_s + 30) * SECOND}  # fmt: skip
    work.write("/gpu/a1/ctl", f"renew lease={first} fence=1", renewed)
    work.now_s += 5
    gone = {"type": "gpu.ended", "annex": "a1", "lease": second, "why": "expired"}
    work.write("/gpu/a1", "expire", gone)
    gone = {"type": "gpu.ended", "annex": "a1", "lease": first, "why": "released"}
    work.write("/gpu/a1/ctl", f"release lease={first} fence=1", gone)


def drilled(work: Work, job: str) -> None:
    work.write("/gpu/a1/ctl", "disable reason=drill", {"type": "annex.disabled", "annex": "a1"})
    annex_gone(work, job)
    work.write("/gpu/a1/ctl", "enable", {"type": "annex.enabled", "annex": "a1"})


def bereft(work: Work, job: str) -> None:
    """The lease that it runs within is given back meanwhile."""
    lease = work.hold()
    work.submit(job)
    work.lease(job)
    inner = work.given(job, 1, within=lease)
    work.start(job, "cuda:0", inner)
    work.fences[job] += 1
    gone = {"type": "gpu.ended", "annex": "a1", "lease": lease, "why": "released"}
    within = gone | {"lease": inner["lease"], "why": "lease", "job": job}
    fell = {"type": "job.fellback", "job": job, "fence": work.fences[job], "reason": "lease_expired",
            "pool": "gpu-cpu", "from_pool": "gpu", "annex": "a1"}  # fmt: skip
    work.write("/gpu/a1/ctl", f"release lease={lease} fence=1", gone, within, fell)
    work.cancel(job)


def lost(work: Work, job: str) -> None:
    alert = {"type": "alert.raised", "about": "annex", "id": "a1", "tenant": "", "reason": "annex_lost",
             "text": "two heartbeats are missing"}  # fmt: skip
    work.write("/nodes/a1", "lost", {"type": "node.heard", "node": "a1", "link": "lost"}, alert)
    annex_gone(work, job)
    work.write("/nodes/a1", "online", {"type": "node.heard", "node": "a1", "link": "online"})


FATES: Final = (
    lost, bereft, well, lost_and_well, out_of_memory, annex_gone, in_place, refused, wrong, cancelled,
    leased, drilled,
)  # fmt: skip
