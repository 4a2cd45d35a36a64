"""What becomes of the jobs that asked for a GPU: those of pools that require one or have a fallback.

Of each entry the events are taken, and then it is settled: what belongs together stands in one entry, in
whatever order."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from skep.validator.gpu.claims import Claims
from skep.validator.gpu.devices import Devices
from skep.validator.gpu.told import (
    Alerted,
    ArtifactEnded,
    FellBack,
    JobDelayed,
    JobEnded,
    JobLeased,
    JobRenewed,
    JobReturned,
    JobStarted,
    JobWoken,
    Leased,
    PoolCreated,
    Sealed,
    Submitted,
)

REASONS: Final = frozenset(
    {"annex_lost", "no_device", "oom", "kernel_failed", "lease_expired", "disabled", "full"}
)
RUN: Final = "gpu.run"  # the topic of jobs whose results are JSON that names artifacts
CPU: Final = "cpu"  # of its node, none of an annex's devices
UNSAID: Final = "?"  # where a job runs of which nobody said it
REFUSED: Final = "refuse"  # a job's fallback
HELD: Final = frozenset({"leased", "running"})
_UNSAID: Final = {"": "it never ran", UNSAID: "nobody said on what it ran"}
_LABEL: Final = re.compile(r"(gpu|annex)(:.*)?")
_GIVEN: Final = re.compile(r"(cuda|cpu):\d+")  # a device of which an annex gives something


@dataclass
class Pool:
    requires: tuple[str, ...]
    fallback: str

    @property
    def asks(self) -> bool:
        """Whether its jobs ask for a GPU."""
        return bool(self.fallback) or asks(self.requires)


@dataclass(slots=True)
class Job:
    """A job that asked for a GPU. ``state`` is one of the hive's, as this reading finds it."""

    request: Submitted
    first: int  # the entry that submitted it
    pool: str
    state: str = "queued"
    fence: int = 0
    node: str = ""  # who holds it, "" nobody
    device: str = ""  # on which it runs or ran last, "" it did not
    reasons: list[str] = field(default_factory=list)  # of its fallbacks
    fell_ns: int = 0  # when it first fell back
    took_ns: int = 0  # from then to its end
    code: str = ""

    @property
    def unsaid(self) -> str:
        """On what it runs when its holder does not say. In the pool that it fell back to nobody has devices
        for it."""
        return CPU if self.pool != self.request.pool else UNSAID


@dataclass
class Jobs:
    """All such jobs, and what else is asked about them."""

    claims: Claims
    devices: Devices
    pools: dict[str, Pool] = field(default_factory=dict)
    by_id: dict[str, Job] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # that ask for no GPU, and have not ended
    sealed: set[tuple[str, str]] = field(default_factory=set)  # tenant, sha256
    # Of the entry that is being looked at:
    leased: list[str] = field(default_factory=list)
    started: list[tuple[Job, str]] = field(default_factory=list)  # and its node
    left: list[Job] = field(default_factory=list)  # whose attempts are over
    failed: list[Job] = field(default_factory=list)
    right: list[tuple[Job, str]] = field(default_factory=list)  # and the result
    alerts: set[str] = field(default_factory=set)  # jobs and annexes

    def take(self, event: Any, time_ns: int) -> None:
        """An event of a job, of a pool, or of an artifact."""
        match event:
            case PoolCreated():
                self.pools[event.pool] = Pool(event.requires, event.fallback)
            case Sealed():
                self.sealed.add((event.tenant, event.sha256))
            case ArtifactEnded():
                self.sealed.discard((event.tenant, event.sha256))
            case Alerted():
                self._alert(event)
            case Submitted():
                self._submit(event)
            case _ if event.job in self.by_id:
                self._move(self.by_id[event.job], event, time_ns)
            case _:
                self._other(event)

    def settle(self) -> None:
        """The entry is over; its devices are not settled yet."""
        for job, node in self.started:
            if job.device != UNSAID:
                self.claims.check("device", self._not_given(job, node), job.request.job)
        for lease in self.devices.given:
            if lease.job:
                self.claims.check("order", self._not_begun(lease), lease.job, lease.annex)
        for id in sorted(self.devices.bereft):
            held = id in self.by_id and self.by_id[id].state in HELD
            wrong = "what it runs on was taken from it, and it goes on"
            self.claims.check("time", wrong if held else "", id)
        for job in self.left:
            self.devices.leave(job.request.job)
        for job, result in self.right:
            id = job.request.job
            self.claims.check("device", _UNSAID.get(job.device, ""), id)
            if job.request.topic == RUN:
                self.claims.check("output", self._missing(job, result), id)
        for job in self.failed:
            if job.code in REASONS and not job.reasons:
                raised = job.request.job in self.alerts
                wrong = f"it failed, {job.code}, and no alert says so"
                self.claims.check("alert", "" if raised else wrong, job.request.job)
        for annex in sorted(self.devices.lost):
            wrong = "it is lost, and no alert says so"
            self.claims.check("alert", "" if annex in self.alerts else wrong, annex=annex)
        for each in (self.leased, self.started, self.left, self.failed, self.right, self.alerts):
            each.clear()

    # what comes

    def _submit(self, event: Submitted) -> None:
        pool = self.pools.get(event.pool)
        known = event.job in self.by_id or event.job in self.others
        self.claims.check("order", "it is submitted twice" if known else "", event.job)
        self.claims.check(
            "order", f"it waits in {event.pool}, which is no pool" if pool is None else "", event.job
        )
        asked = asks(event.requires) or (pool is not None and pool.asks)
        elsewhere = event.imported is not None and event.imported.ended
        if asked and not elsewhere:
            self.by_id[event.job] = Job(event, self.claims.entry, event.pool)
        else:
            self.others.add(event.job)

    def _other(self, event: Any) -> None:
        """Of a job that asks for no GPU, it is enough that it is there."""
        known = event.job in self.others
        self.claims.check("order", "" if known else "it was not submitted, or has ended", event.job)
        if isinstance(event, JobEnded):
            self.others.discard(event.job)
        if isinstance(event, FellBack):
            self.claims.check("fallback", "its pool has no fallback", event.job)

    def _alert(self, event: Alerted) -> None:
        self.alerts.add(event.id)
        wrong = "" if event.reason else "an alert does not say why"
        self.claims.check("alert", wrong, event.id if event.about == "job" else "")

    # what may follow on what

    def _move(self, job: Job, event: Any, time_ns: int) -> None:
        id, kind = job.request.job, type(event)
        states, follows = _MAY[kind]
        if kind is JobEnded and event.state == "succeeded":
            states = frozenset({"running"})
        wrong = f"{kind.__name__}, and it is {job.state}"
        self.claims.check("once", "" if job.state in states else wrong, id)
        if follows is not None:
            wrong = f"{kind.__name__} with fence {event.fence} after {job.fence}"
            self.claims.check("fence", "" if follows(event.fence, job.fence) else wrong, id)
            job.fence = max(job.fence, event.fence)
        match event:
            case JobLeased():
                self.leased.append(id)
                job.state, job.node, job.device = "leased", event.node, ""
            case JobStarted():
                job.state, job.device = "running", event.device or job.unsaid
                self.started.append((job, job.node))
            case JobReturned():
                self._leave(job, "queued")
            case JobDelayed():
                self._leave(job, "delayed")
            case JobWoken():
                job.state = "queued"
            case FellBack():
                self._fall_back(job, event, time_ns)
            case JobEnded():
                self._end(job, event, time_ns)

    def _leave(self, job: Job, state: str) -> None:
        if job.state in HELD:
            self.left.append(job)
        job.state = state
        if state != "succeeded":
            job.node = ""

    def _fall_back(self, job: Job, event: FellBack, time_ns: int) -> None:
        self.claims.check("fallback", self._not_allowed(job, event), job.request.job)
        job.reasons.append(event.reason)
        job.fell_ns = job.fell_ns or time_ns
        if not event.in_place:
            self._leave(job, "queued")
            job.pool = event.pool

    def _not_allowed(self, job: Job, event: FellBack) -> str:
        pool = self.pools.get(job.pool)
        to = pool.fallback if pool is not None else ""
        if event.reason not in REASONS:
            return f"it falls back for {event.reason!r}"
        if job.request.fallback == REFUSED:
            return "it falls back, and was to refuse that"
        if event.in_place:
            if job.reasons:
                return "it falls back in place, and had fallen back"
            held = job.state in HELD and event.annex == job.node
            return "" if held else f"it falls back in place on {event.annex}, which does not hold it"
        if event.from_pool != job.pool:
            return f"it falls back from {event.from_pool!r}, and is in {job.pool}"
        if event.pool != to:
            return f"it falls back to {event.pool!r}: that of {job.pool} is {to!r}"
        return f"it goes on requiring {' '.join(event.requires)}" if asks(event.requires) else ""

    def _end(self, job: Job, event: JobEnded, time_ns: int) -> None:
        self._leave(job, event.state)
        job.code = event.code
        if job.fell_ns:
            job.took_ns = time_ns - job.fell_ns
        match event.state:
            case "succeeded":
                self.right.append((job, event.text))
            case "failed":
                self.failed.append(job)
                wrong = "" if event.code and event.text else "it failed, and does not say why"
                self.claims.check("error", wrong, job.request.job)
            case "cancelled":
                pass
            case _:
                self.claims.check("error", f"it ended as {event.state!r}", job.request.job)

    # what must be true together

    def _not_begun(self, lease: Leased) -> str:
        """Why what is given to a job is not given to one that starts; "": it is."""
        begun = ((job.request.job, node, job.device) for job, node in self.started)
        if (lease.job, lease.annex, lease.device) not in begun:
            return f"{lease.device} of {lease.annex} is given to it, and it does not start there"
        request = self.by_id[lease.job].request
        if (request.tenant, request.actor) != (lease.tenant, lease.holder):
            return f"{lease.device} of {lease.annex} is given for {lease.holder}, who did not submit it"
        return ""

    def _not_given(self, job: Job, node: str) -> str:
        """Why a job may not run where it starts; "": it may."""
        if _GIVEN.fullmatch(job.device):
            given = ((each.job, each.annex, each.device) for each in self.devices.given)
            if (job.request.job, node, job.device) not in given:
                return f"it runs on {job.device} of {node}, which was not given to it"
        elif job.device != CPU:
            return f"it runs on {job.device!r}: expected cuda:<n>, cpu:<n> or cpu"
        if job.device.startswith("cpu") and not job.reasons and self._wants_other(job):
            return f"it runs on {job.device}, and did not fall back"
        return ""

    def _wants_other(self, job: Job) -> bool:
        """Whether a CPU on which it runs is not what it asked for. Who asks for an annex and no GPU, as for a
        drill, is content with what the annex has."""
        pool = self.pools.get(job.request.pool)
        labels = (*job.request.requires, *(pool.requires if pool is not None else ()))
        asked = {found[1] for label in labels if (found := _LABEL.fullmatch(label))}
        return asked != {"annex"} or job.device == CPU

    def _missing(self, job: Job, result: str) -> str:
        """What the result names and nobody sealed; "": all is there."""
        try:
            named = msgspec.json.decode(result, type=_Result)
        except msgspec.DecodeError as error:
            return f"its result is none: {error}"
        ran = job.device.partition(":")[0]
        if named.device.partition(":")[0] != ran:
            return f"its result is of {named.device!r}, and it ran on {job.device}"
        tenant = job.request.tenant
        missing = [
            f"{name}={out.sha256}"
            for name, out in named.out.items()
            if (tenant, out.sha256.removeprefix("sha256:")) not in self.sealed
        ]
        return f"nobody sealed {' '.join(missing)}" if missing else ""


class _Out(msgspec.Struct):
    sha256: str


class _Result(msgspec.Struct):
    device: str
    out: dict[str, _Out]


def asks(requires: Iterable[str]) -> bool:
    """Whether one of the labels is a GPU, or an annex."""
    return any(_LABEL.fullmatch(label) for label in requires)


_OPEN: Final = frozenset({"queued", "delayed", *HELD})
# By event: in which states it may come, and how its fence follows on the one before (None: it has none).
_MAY: Final[Mapping[type, tuple[frozenset[str], Callable[[int, int], bool] | None]]] = {
    JobLeased: (frozenset({"queued"}), operator.gt),
    JobStarted: (frozenset({"leased"}), operator.eq),
    JobRenewed: (HELD, operator.eq),
    JobReturned: (HELD, operator.gt),
    JobDelayed: (HELD, operator.ge),
    JobWoken: (frozenset({"delayed"}), None),
    FellBack: (_OPEN, operator.ge),
    JobEnded: (_OPEN, operator.ge),
}
