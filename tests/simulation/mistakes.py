"""Mistakes planted into a hive, each of a kind that somebody could make, to see that they are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from skep.namespaces.alerts import Alerted
from skep.namespaces.gpu.record import Disabled
from skep.namespaces.gpu.record import Leased as Lent
from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.namespaces.jobs.record import Ended, Leased, Returned, Submitted
from skep.namespaces.locks.core import Granted
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.triggers.core import Fired
from skep.sim.disk import ANSWER_NS, COMMIT_NS, SimCommits
from skep.sim.queen import AGEING_NS, Made
from skep.trace.clock import MS
from skep.trace.entry import Line
from skep.trace.ledger import Ledger, LedgerFull
from skep.trace.rules import Decision, Meta, Refusal
from skep.trace.turn import Turn

SYNC_NS: Final = 20 * MS  # how long a disk that lies takes to do what it said it had done
FENCE: Final = re.compile(r"fence=\d+")
replace = msgspec.structs.replace


def decides(change: Callable[[HiveState, Line, Decision[Event, str]], Decision[Event, str]]) -> Made:
    """Rules that decide something else than they should."""

    class Mistaken(HiveRules):
        def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
            return change(state, line, super().decide(state, line, k))

    return Made(rules=Mistaken)


def applies(change: Callable[[HiveState, Any, Meta], None]) -> Made:
    """Rules that apply something more than they should."""

    class Mistaken(HiveRules):
        def apply(self, state: HiveState, event: Event, meta: Meta) -> None:
            super().apply(state, event, meta)
            change(state, event, meta)

    return Made(rules=Mistaken)


def _fence_stays(state: HiveState, line: Line, decision: Decision[Event, str]) -> Decision[Event, str]:
    events = [
        replace(event, fence=event.fence - 1) if isinstance(event, Returned) else event
        for event in decision.events
    ]
    return Decision(tuple(events), decision.reply)


class FenceNotAsked(HiveRules):
    """Whatever fence an ack names, it counts."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        job = state.jobs.by_id.get(line.path.split("/")[2]) if line.path.startswith("/jobs/0") else None
        if job is not None and line.lines[k].startswith("ack"):
            line = replace(line, lines=(FENCE.sub(f"fence={job.fence}", line.lines[k]),))
            return super().decide(state, line, 0)
        return super().decide(state, line, k)


class NeverExpires(HiveRules):
    """A lease is for ever."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        if line.lines[k].startswith("expire fence"):
            raise Refusal("CONFLICT", "conflict: later")
        return super().decide(state, line, k)


class EndsTwice(HiveRules):
    """What has succeeded can be cancelled."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        name = line.lines[k].removeprefix("cancel job=")
        job = state.jobs.by_id.get(name)
        if job is not None and job.state == "succeeded":
            return Decision((Ended(job.id, "cancelled", job.fence),), job.id)
        return super().decide(state, line, k)


class Counts(HiveRules):
    """A state that knows how often it was folded."""

    def __init__(self) -> None:
        self.copies = 0

    def copy(self, state: HiveState) -> HiveState:
        self.copies += 1
        return super().copy(state)

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        decision = super().decide(state, line, k)
        if not self.copies % 3:
            return decision
        events = [replace(e, priority=0) if isinstance(e, Submitted) else e for e in decision.events]
        return Decision(tuple(events), decision.reply)


class Generous(HiveRules):
    """No tenant has a limit, or what every node offers is not asked, for as long as something is decided."""

    answers: ClassVar[dict[str, Any]]

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        vars(state).update(self.answers)
        try:
            return super().decide(state, line, k)
        finally:
            for name in self.answers:
                del vars(state)[name]


class NoLimits(Generous):
    answers: ClassVar[dict[str, Any]] = {"limit": lambda tenant, key: None}


class AnyNode(Generous):
    answers: ClassVar[dict[str, Any]] = {
        "offers": lambda node: frozenset({"gpu", "gpu:1", "zone", "zone:eu"})
    }


class LastComesFirst(HiveRules):
    """The least urgent job of the tenant is leased."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        decision = super().decide(state, line, k)
        if not decision.events or not isinstance(event := decision.events[0], Leased):
            return decision
        of = state.jobs.by_id[event.job].request
        job = state.jobs.by_id[state.jobs.queues.waiting(of.pool, of.tenant, AGEING_NS)[-1]]
        return Decision((replace(event, job=job.id, fence=job.fence + 1),), job.id)


class OneTenantFirst(HiveRules):
    """The hive's own jobs are leased before any other tenant's."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        decision = super().decide(state, line, k)
        if not decision.events or not isinstance(event := decision.events[0], Leased):
            return decision
        pool = state.jobs.by_id[event.job].request.pool
        own = state.jobs.queues.waiting(pool, HIVE_TENANT, AGEING_NS)
        if not own:
            return decision
        job = state.jobs.by_id[own[0]]
        return Decision((replace(event, job=job.id, fence=job.fence + 1),), job.id)


def _key_freed(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Ended):
        request = state.jobs.by_id[event.job].request
        state.jobs.by_key.get(request.tenant, {}).pop(request.key, None)


def _from_one_again(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Leased):
        job = state.jobs.by_id[event.job]
        state.jobs.by_id[event.job] = replace(job, attempts=job.attempts[-1:])


def _fires_again(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Fired) and event.why == "event" and event.seq % 2:
        names = state.triggers.by_tenant[event.tenant]
        names[event.trigger] = replace(names[event.trigger], cursor=(event.seq - 1, 0))


def _forgets_holders(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Granted):
        locks = state.locks.by_tenant[event.tenant]
        locks[event.lock] = replace(locks[event.lock], holders=())


def _forgets_grants(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Lent):
        state.gpu.by_id[event.annex] = replace(state.gpu.by_id[event.annex], grants={})


def _not_disabled(state: HiveState, event: Any, meta: Meta) -> None:
    if isinstance(event, Disabled):
        state.gpu.by_id[event.annex] = replace(state.gpu.by_id[event.annex], off="")


def _no_alert(state: HiveState, line: Line, decision: Decision[Event, str]) -> Decision[Event, str]:
    return Decision(tuple(e for e in decision.events if not isinstance(e, Alerted)), decision.reply)


def _not_promoted(state: HiveState, line: Line, decision: Decision[Event, str]) -> Decision[Event, str]:
    if line.lines[0].startswith(("lease", "start")):
        return decision
    return Decision(tuple(e for e in decision.events if not isinstance(e, Lent)), decision.reply)


def _same_fence(state: HiveState, line: Line, decision: Decision[Event, str]) -> Decision[Event, str]:
    events = [replace(e, fence=7) if isinstance(e, Lent) else e for e in decision.events]
    return Decision(tuple(events), decision.reply)


class NeverFallsBack(HiveRules):
    """Who waits for what is not there, waits."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        if line.lines[k].startswith("fallback reason"):
            raise Refusal("CONFLICT", "conflict: later")
        return super().decide(state, line, k)


class LyingDisk(SimCommits):
    """Says that entries are on the disk when they soon will be."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.disk = ledger.disk  # type: ignore[attr-defined]
        self.synced = len(self.disk.bodies)
        self.process.on_end.append(lambda: self.disk.bodies.__delitem__(slice(self.synced, None)))

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        def commit() -> None:
            failure: Exception | None = None
            try:
                self.ledger.commit()
            except Exception as error:
                failure = error
            size = len(self.disk.bodies)
            self._later(SYNC_NS, lambda: setattr(self, "synced", size))
            self._later(ANSWER_NS, lambda: done(failure))

        self._later(COMMIT_NS, commit)


class KeepsWhatFailed(Turn[Any, Any, Any]):
    """A disk that was full has happened all the same, for those who ask next."""

    def _full(self, error: LedgerFull) -> None:
        self.ledger.rollback()
        self._answer_all("NOSPACE", "no space left on device")


class ShowsTooEarly(Turn[Any, Any, Any]):
    """Readers see what is not on the disk yet."""

    def _append(self, bodies: list[bytes]) -> None:
        super()._append(bodies)
        self.state = self._working

    def _committed(self, failure: Exception | None) -> None:
        if failure is None:
            self._moved([waiting.entry for waiting in self._batch if waiting.entry is not None])
            self._leave()
            self._idle.set()
        else:
            super()._committed(failure)


MISTAKES: Final[dict[str, Made]] = {
    "a lease that expires leaves the fence": decides(_fence_stays),
    "an ack is not asked for its fence": Made(rules=FenceNotAsked),
    "a lease never expires": Made(rules=NeverExpires),
    "what has succeeded is cancelled": Made(rules=EndsTwice),
    "deciding depends on what was not written down": Made(rules=Counts),
    "a key is free when its job has ended": applies(_key_freed),
    "attempts start again from one": applies(_from_one_again),
    "a trigger fires again after a restart": applies(_fires_again),
    "a lock forgets who holds it": applies(_forgets_holders),
    "limits are not asked": Made(rules=NoLimits),
    "what a job requires is not asked": Made(rules=AnyNode),
    "the last of a tenant's jobs goes first": Made(rules=LastComesFirst),
    "a tenant is served before its turn": Made(rules=OneTenantFirst),
    "an answer leaves before the entry is on the disk": Made(commits=LyingDisk),
    "what a full disk refused was done": Made(turn=KeepsWhatFailed),
    "readers see what is not on the disk": Made(turn=ShowsTooEarly),
}
# Those of a hive that lends devices.
LENDING: Final[dict[str, Made]] = {
    "a device is given twice": applies(_forgets_grants),
    "a disabled annex gives": applies(_not_disabled),
    "a fence of an annex stays": decides(_same_fence),
    "who waits for a device is forgotten": decides(_not_promoted),
    "a job that may not fall back ends without an alert": decides(_no_alert),
    "nobody falls back by itself": Made(rules=NeverFallsBack),
}
