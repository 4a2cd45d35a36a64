"""Deciding as somebody could have changed it, by mistake or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from skep.namespaces.config.core import Published
from skep.namespaces.hive import OPERATOR, Event, HiveRules, HiveState
from skep.namespaces.jobs.record import Ended, Leased, Returned, Submitted
from skep.namespaces.locks.core import Queued
from skep.namespaces.order import HIVE, HIVE_TENANT
from skep.trace.clock import HOUR, ManualClock
from skep.trace.entry import Line
from skep.trace.rules import Decision, Refusal
from tests.simulation.mistakes import (
    EndsTwice,
    FenceNotAsked,
    LastComesFirst,
    NeverExpires,
    NoLimits,
)

replace = msgspec.structs.replace


class Reads(HiveRules):
    """Something else than the line that was written."""

    def __init__(self, change: Callable[[Line], Line]) -> None:
        self.change = change

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        return super().decide(state, self.change(line), k)


class Asks(HiveRules):
    """A state that answers a question otherwise, for as long as a line is decided."""

    def __init__(self, of: Callable[[HiveState], Any], name: str, answer: Any) -> None:
        self.of, self.name, self.answer = of, name, answer

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        asked = vars(self.of(state))
        asked[self.name] = self.answer
        try:
            return super().decide(state, line, k)
        finally:
            del asked[self.name]


class KeepsKeys(HiveRules):
    """The time for which a key is kept is never over."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        table = vars(state.jobs)
        table["keyed"] = lambda tenant, key, now_ns: state.jobs.by_key.get(tenant, {}).get(key)
        try:
            return super().decide(state, line, k)
        finally:
            del table["keyed"]


class Says(HiveRules):
    """Other events than those that follow."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        decision = super().decide(state, line, k)
        return Decision(tuple(map(self.change, decision.events)), decision.reply)


class GoesOn(HiveRules):
    """A line that is refused stops none of those before it in its write."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        try:
            return super().decide(state, line, k)
        except Refusal:
            if not k:
                raise
            return Decision((), "")


class Forgives(HiveRules):
    """What is refused for this reason was as good as done."""

    def __init__(self, code: str) -> None:
        self.code = code

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        try:
            return super().decide(state, line, k)
        except Refusal as refusal:
            if refusal.code != self.code:
                raise
            return Decision((), "")


class Raises(HiveRules):
    """What no rule raises."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        if line.lines[k].startswith("drain"):
            raise KeyError("mode")
        return super().decide(state, line, k)


class Remembers(HiveRules):
    """Deciding leaves something behind in the state."""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        state.log.counts["decided", "OK"] = state.log.counts.get(("decided", "OK"), 0) + 1
        return super().decide(state, line, k)


class AsksTheClock(HiveRules):
    """When it is decided, not when it was written."""

    def __init__(self) -> None:
        self.clock = ManualClock()

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        return super().decide(state, replace(line, time_ns=self.clock.now_ns()), k)


def _says(kind: type, **changes: Any) -> Callable[[], HiveRules]:
    """Events of the kind with other fields."""
    return lambda: Says(lambda event: replace(event, **changes) if isinstance(event, kind) else event)


def _overdue_early(line: Line) -> Line:
    return replace(line, time_ns=line.time_ns + HOUR) if line.lines == ("overdue",) else line


def _of_hive(line: Line) -> Line:
    return replace(line, role=HIVE) if line.path.startswith("/jobs/0") else line


CHANGED: Final[dict[str, Callable[[], HiveRules]]] = {
    "limits are not asked": NoLimits,
    "a fence is not asked": FenceNotAsked,
    "a lease never expires": NeverExpires,
    "what has succeeded is cancelled": EndsTwice,
    "the least urgent job goes first": LastComesFirst,
    "the policy is wider": lambda: Reads(lambda line: replace(line, role=OPERATOR)),
    "what is the hive's alone anybody writes": lambda: Reads(_of_hive),
    "whose tenant it is, is not asked": lambda: Reads(lambda line: replace(line, tenant=HIVE_TENANT)),
    "leases end early": lambda: Reads(lambda line: replace(line, time_ns=line.time_ns + HOUR)),
    "the back-off is by another chance": lambda: Reads(lambda line: replace(line, trace=line.trace[::-1])),
    "a key is kept for ever": KeepsKeys,
    "a queue has no end": lambda: Asks(lambda state: state, "queue_max", lambda pool, scope: 1_000_000),
    "a lease is longer": lambda: Says(
        lambda event: replace(event, until_ns=event.until_ns + 1) if isinstance(event, Leased) else event
    ),
    "a priority is dropped": lambda: Says(
        lambda event: replace(event, priority=0) if isinstance(event, Submitted) else event
    ),
    "a deadline comes early": lambda: Reads(_overdue_early),
    "a write that is refused is done up to there": GoesOn,
    "who is fenced off has his way": lambda: Forgives("FENCED"),
    "a lock that is held is given to another": lambda: Forgives("BUSY"),
    "a job has another try": _says(Submitted, retries=9),
    "a result is lost": _says(Ended, text=""),
    "what has ended is forgotten too early": _says(Ended, keep_ns=1),
    "a lease that is over counts as given back": _says(Returned, why="released"),
    "a lock is for ever": _says(Queued, ttl_ns=HOUR),
    "a document is another's": _says(Published, actor=HIVE),
    "a mistake of the rules": Raises,
    "deciding changes the state": Remembers,
    "deciding asks the clock": AsksTheClock,
}  # fmt: skip
