"""The proof: a ledger's entries, each taken once, and what they come to.

It believes the entries and nothing else; that they are what was written, ``verify`` shows, and that they were
decided by the rules, a replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from skep.validator.gpu import effects
from skep.validator.gpu.claims import Broken, Claim, Claims
from skep.validator.gpu.devices import Devices
from skep.validator.gpu.jobs import REASONS, REFUSED, Job, Jobs
from skep.validator.gpu.told import (
    Asked,
    Disabled,
    Enabled,
    Ended,
    Heard,
    Leased,
    Offered,
    Removed,
    Renewed,
    read,
)

OPEN_MAX: Final = 1000  # jobs that are listed, of those that have not ended; the rest is counted.
VERSION: Final = 1  # of the report's form

_DEVICES: Final = (Offered, Disabled, Enabled, Asked, Leased, Renewed, Ended, Heard, Removed)


class Times(msgspec.Struct):
    """How long it took from a job's first fallback until it ended right, in ns."""

    jobs: int
    median_ns: int
    p99_ns: int


class Report(msgspec.Struct):
    """What the entries come to. Every job that asked for a GPU is one of: ``right``, ``error`` (it failed,
    and says why), ``cancelled``, ``open``, and ``silent``: a claim about it does not hold.

    ``on_device``: of the right ones, those that never fell back; ``on_gpu``: of these, those that ran on one,
    and not on the CPU of an annex that they asked for. ``fell_back``: jobs;
    ``reasons``: their fallbacks, by reason. ``ratio``: of the jobs that ended by themselves, and had no
    device or lost it, the part that ended right after a fallback; None: there was none."""

    origin: str = ""  # of the log that was read, "": it was none
    root: str = ""  # in base64, of its entries
    entries: int = 0
    jobs: int = 0
    right: int = 0
    error: int = 0
    cancelled: int = 0
    open: int = 0
    silent: int = 0
    on_device: int = 0
    on_gpu: int = 0
    fell_back: int = 0
    right_after: int = 0  # a fallback
    reasons: dict[str, int] = {}
    codes: dict[str, int] = {}  # of those that failed
    refused: int = 0
    ratio: float | None = None
    ratio_allowed: float | None = None
    recovered: Times | None = None  # None: no job ended right after a fallback
    leases: int = 0  # that annexes gave
    claims: list[Claim] = []
    broken: list[Broken] = []
    waiting: list[str] = []  # jobs that are open
    v: int = VERSION

    @property
    def proven(self) -> bool:
        return not any(claim.broken for claim in self.claims)


class Proof:
    """A ledger on its way through the claims."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.devices = Devices(self.claims)
        self.jobs = Jobs(self.claims, self.devices)
        self.leases = 0

    def take(self, seq: int, body: bytes) -> None:
        """The entry at place ``seq``, which comes after those before. Raises LedgerTampered."""
        entry = read(seq, body)
        before, self.claims.entry = self.claims.entry, seq
        self.claims.check("order", "" if seq == before + 1 else f"it comes after entry {before}")
        if not entry.accepted:
            self.claims.check("effect", "it was refused, and has events" if entry.events else "")
            return
        for event in entry.events:
            if isinstance(event, _DEVICES):
                self.leases += isinstance(event, Leased)
                self.devices.take(event, entry.time_ns)
            else:
                self.jobs.take(event, entry.time_ns)
        effects.check(self.claims, entry, self.jobs, self.devices)
        self.jobs.settle()
        self.devices.settle(entry.time_ns)

    def report(self) -> Report:
        """What it comes to after the entries so far."""
        found = Report(
            entries=self.claims.entry,
            jobs=len(self.jobs.by_id),
            leases=self.leases,
            claims=[*self.claims.by_name.values()],
            broken=self.claims.found,
        )
        reasons: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        took: list[int] = []
        ended = 0  # by themselves, of those that had no device or lost it
        for id, job in self.jobs.by_id.items():
            reasons.update(job.reasons)
            what = self._what(id, job)
            setattr(found, what, getattr(found, what) + 1)
            found.fell_back += bool(job.reasons)
            if what == "open" and len(found.waiting) < OPEN_MAX:
                found.waiting.append(id)
            if job.state == "failed":
                codes[job.code] += 1
            if job.state in ("succeeded", "failed"):
                without = bool(job.reasons) or job.code in REASONS
                ended += without
                found.refused += without and job.request.fallback == REFUSED
            if what == "right":
                found.right_after += bool(job.reasons)
                found.on_device += not job.reasons
                found.on_gpu += not job.reasons and job.device.startswith("cuda")
                took += [job.took_ns] if job.reasons else []
        found.reasons, found.codes = dict(sorted(reasons.items())), dict(sorted(codes.items()))
        allowed = ended - found.refused
        found.ratio = found.right_after / ended if ended else None
        found.ratio_allowed = found.right_after / allowed if allowed else None
        found.recovered = _times(took)
        return found

    def _what(self, id: str, job: Job) -> str:
        if id in self.claims.jobs:
            return "silent"
        return _WHAT.get(job.state, "open")


_WHAT: Final = {"succeeded": "right", "failed": "error", "cancelled": "cancelled"}


def _times(took: list[int]) -> Times | None:
    if not took:
        return None
    took.sort()
    return Times(len(took), took[len(took) // 2], took[-(-len(took) * 99 // 100) - 1])


def prove(entries: Iterable[tuple[int, bytes]]) -> Report:
    """What a ledger's entries, from the first on, come to. Raises LedgerTampered."""
    proof = Proof()
    for seq, body in entries:
        proof.take(seq, body)
    return proof.report()
