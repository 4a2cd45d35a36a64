"""What another policy would have made of a ledger: every line decided under it too, beside what was live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.namespaces.policy.bundle import Bundle, read
from skep.namespaces.policy.core import Policy, check_all, with_live
from skep.namespaces.policy.engine import Live
from skep.namespaces.triggers.core import Fired
from skep.trace.entry import OK, Entry, Line
from skep.trace.rules import Decision, Refusal

# How strict an outcome is; what got past the policies and was refused for another reason is as good as ok.
STRICTNESS: Final = {"THROTTLED": 1, "APPROVAL": 2, "DENIED": 3}
ESCALATED: Final = "escalated"
RELAXED: Final = "relaxed"


class Verdict(msgspec.Struct, frozen=True):
    """A line that would have been refused (escalated) or let through (relaxed): the outcome's codes."""

    seq: int
    actor: str
    role: str
    path: str
    line: str
    verdict: str
    recorded: str
    under: str
    text: str  # why it is refused under the other policy; "": it is not


class OtherPolicy(HiveRules):
    """The rules, which also try every line under ``bundle`` in the place of the live one called ``name``."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.live = Live(name, 0, bundle.sha256, bundle.pack())
        self.under = OK.code
        self.text = ""

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        if k == 0:
            self.under, self.text = OK.code, ""
        if self.under == OK.code:
            self._try(state, line, k)
        return super().decide(state, line, k)

    def _try(self, state: HiveState, line: Line, k: int) -> None:
        now = state.policy
        policy = Policy(now.bundles, now.keys, now.introduced, with_live(now, self.live))
        try:
            decision = super().decide(replace(state, policy=policy), line, k)
        except Refusal as refusal:
            self.under, self.text = refusal.code, refusal.text
        else:
            self.under, self.text = _fired(decision.events)

    def verdict(self, entry: Entry[Event]) -> Verdict | None:
        """On the entry whose lines were decided last; None: unchanged."""
        recorded = entry.outcome.code if entry.outcome != OK else _fired(entry.events)[0]
        was, now = STRICTNESS.get(recorded, 0), STRICTNESS.get(self.under, 0)
        if was == now:
            return None
        return Verdict(
            entry.seq,
            entry.actor,
            entry.role,
            entry.path,
            entry.line,
            ESCALATED if now > was else RELAXED,
            recorded,
            self.under,
            self.text,
        )


def rules_under(directory: Path | None, name: str | None) -> HiveRules:
    """The rules, which try each line under the bundle in ``directory`` too; ``name``: what it is called in
    the hive, None: as its directory. Raises BundleError, OSError."""
    if directory is None:
        return HiveRules()
    bundle = read(directory)
    check_all(bundle)
    return OtherPolicy(name or directory.resolve().name, bundle)


def _fired(events: Sequence[Event]) -> tuple[str, str]:
    """The outcome of what was taken: what a trigger submits may be refused all the same."""
    refused = [(event.code, event.text) for event in events if isinstance(event, Fired) and event.code]
    return refused[0] if refused else (OK.code, "")
