"""When a job goes on in another pool than the one it was submitted to, and when it may not. Pure.

A pool names the pool that its jobs fall back to. Its annex is lost, disabled or has no device; or it had the
job and failed; or the job has waited longer than its patience: then it goes on in the other pool, by one
event. Where the job or its pool does not allow that, the same line ends it, with an alert. What was wrong
with the job itself is no reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from skep.fs.errors import E
from skep.namespaces.alerts import Alerted
from skep.namespaces.jobs.due import patience_end_ns
from skep.namespaces.jobs.record import Ended, Fellback, Job, Jobs, Submitted
from skep.namespaces.order import refusal
from skep.trace.clock import duration
from skep.trace.rules import Refusal

ALLOW: Final = "allow"
REFUSE: Final = "refuse"
ANNEX_LOST: Final = "annex_lost"
NO_DEVICE: Final = "no_device"
LEASE_EXPIRED: Final = "lease_expired"
FULL: Final = "full"
DEVICES: Final = frozenset({"annex", "gpu"})  # labels that a node has for what runs on its devices.
CPU: Final = "cpu"  # of the node, none of an annex's devices
DEVICE: Final = re.compile(r"cpu|(cpu|cuda):[0-9]{1,3}")  # as an annex calls its own
LOOKED_MAX: Final = 16_384  # jobs that wait, of one tenant and kind, looked at in one tick.

Way = tuple[str, int]  # the pool that is fallen back to ("": none) and the patience that jobs have


class World(Protocol):
    def fallback_of(self, pool: str) -> Way:
        """Where the pool's jobs fall back to; no pool when it has none, or is not there."""

    def needs(self, pool: str, scope: str) -> frozenset[str]:
        """What a node must have for jobs of the scope in the pool. Raises Refusal when that is not known."""

    def why_no_annex(self, pool: str, tenant: str, requires: tuple[str, ...] = ()) -> tuple[str, str]:
        """Why no node can have the tenant's jobs of the pool now that require these too, one of REASONS, and
        which node could before; ("", ""): there is one."""


def is_device(word: str) -> bool:
    """Whether the label is one of devices: ``gpu``, ``gpu:h100``, ``annex``."""
    return word.partition(":")[0] in DEVICES


def without_devices(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not is_device(word))


def terms(args: Mapping[str, str], patience_ns: int, pool: str, world: World) -> dict[str, Any]:
    """What of a submission says how it falls back, in the pool where it is to wait."""
    way, pool_ns = world.fallback_of(pool)
    said = args.get("fallback", ALLOW if way else "")
    return {"fallback": said, "patience_ns": (patience_ns or pool_ns) if way else 0}


# why

_WHY: Final[Mapping[str, str]] = {
    "annex_lost": "the annex is not heard", "no_device": "there is no such device",
    "oom": "the device had not enough memory", "kernel_failed": "the kernel failed",
    "lease_expired": "the lease that it ran inside of has ended", "disabled": "the annex is disabled",
    "full": "the device was not free within its patience",
}  # fmt: skip


def told(job: Job, reason: str, annex: str, error: str = "") -> str:
    """The reason for people. ``error``: what the device said."""
    at = f" (annex={annex})" if annex else ""
    more = f": {error}" if error else ""
    waited = f" of {duration(job.request.patience_ns)}" if reason == FULL and job.request.patience_ns else ""
    return f"{_WHY[reason]}{waited}{at}{more}"


def why_waits(job: Job, reason: str, now_ns: int, world: World) -> str:
    """Why a job that waits goes on waiting where it is, whatever the reason to go; "": it goes."""
    end_ns, request = patience_end_ns(job), job.request
    if job.state != "queued":
        return f"it is {job.state}"
    if not end_ns:
        return f"it waits in {request.pool}, and has nowhere to fall back to"
    if now_ns >= end_ns:
        return ""
    if reason == FULL:
        return "its patience is not over"
    if request.fallback == REFUSE:
        return "it does not fall back, and its patience is not over"
    if world.why_no_annex(request.pool, request.tenant, request.requires)[0] != reason:
        return f"{reason} is not so"
    return ""


class Due(NamedTuple):
    """A job that falls back now, or ends because it may not."""

    job: Job
    reason: str
    annex: str


def reason_now(job: Job, world: World) -> Due:
    """Why a job falls back whose patience is over."""
    request = job.request
    reason, annex = world.why_no_annex(request.pool, request.tenant, request.requires)
    return Due(job, reason or FULL, annex)


def stranded(jobs: Jobs, pool: str, world: World) -> Iterator[Due]:
    """The pool's jobs that wait for what is not there, and may fall back; the pool is one that does."""
    for tenant, requires, waiting in jobs.queues.kinds(pool):
        reason, annex = world.why_no_annex(pool, tenant, requires)
        if not reason:
            continue
        for id, _ in zip(waiting, range(LOOKED_MAX), strict=False):
            job = jobs.by_id[id]
            if job.request.fallback != REFUSE and patience_end_ns(job):
                yield Due(job, reason, annex)


# what follows

Fallen = tuple[Fellback] | tuple[Ended, Alerted]


def fallen(job: Job, fence: int, reason: str, annex: str, text: str, world: World) -> Fallen:
    """The job goes on in the other pool; where it may not, it has failed. ``fence``: from then on."""
    request = job.request
    way, _ = world.fallback_of(request.pool)
    if way and request.fallback != REFUSE:
        requires = without_devices(request.requires)
        return (Fellback(job.id, fence, reason, way, annex, request.pool, requires, text),)
    why = "fallback=refuse" if way else f"pool={request.pool} has no fallback"
    error = f"{reason}: {text}; {why}"
    alert = Alerted("job", job.id, request.tenant, reason, error)
    return Ended(job.id, "failed", fence, error, reason), alert


def check_device(device: str) -> None:
    if device and not DEVICE.fullmatch(device):
        raise refusal(E.USAGE, f"start: device={device}: expected cuda:<n>, cpu:<n> or cpu")


def in_place(job: Job, device: str, node: str, world: World) -> tuple[Fellback, ...]:
    """What precedes the start of a job on that device: that it was to be another. Raises Refusal."""
    request = job.request
    if not device.startswith("cpu") or job.fallbacks or not wants_other(request, device, world):
        return ()
    if request.fallback == REFUSE:
        raise refusal(E.CONFLICT, f"start: device={device}: fallback=refuse, and that is no GPU")
    text = told(job, NO_DEVICE, node)
    return (
        Fellback(
            job.id, job.fence, NO_DEVICE, request.pool, node, request.pool, request.requires, text,
            in_place=True,
        ),
    )  # fmt: skip


def is_unsaid(job: Job, world: World) -> bool:
    """Whether the job needs an annex, falls back where there is none, and its holder has not said on which
    device it runs: by that alone can be told that it was given one."""
    request = job.request
    if job.attempts[-1].device or not world.fallback_of(request.pool)[0]:
        return False
    try:
        needs = (*request.requires, *world.needs(request.pool, request.tenant))
    except Refusal:
        return False  # what has been done is not undone for want of a setting
    return any(word.partition(":")[0] == "annex" for word in needs)


def wants_other(request: Submitted, device: str, world: World) -> bool:
    """Whether the job is to run on something else than that CPU. Who asks for an annex and for no GPU, for a
    drill, is given what the annex has."""
    needs = (*request.requires, *world.needs(request.pool, request.tenant))
    asked = {word.partition(":")[0] for word in needs} & DEVICES
    way, _ = world.fallback_of(request.pool)
    return "gpu" in asked or (device == CPU if asked else bool(way))
