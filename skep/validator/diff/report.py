"""What a comparison found: the differences, counted, and those that the rules excuse."""

from __future__ import annotations

from typing import Final

import msgspec

from skep.validator.diff.rules import KINDS, Rules
from skep.validator.diff.traces import Shown

SHOWN_MAX: Final = 10_000  # differences that a report holds; the rest is counted.
FIELDS_MAX: Final = 50  # of one of them
TEXT_MAX: Final = 64 << 20  # characters of all of them: entries of 64 KiB each would be ten times as many.
SAME, DRIFT, TOO_FEW = 0, 30, 31  # how it ends, and the exit status


class Field(msgspec.Struct, frozen=True):
    """A field that is not the same, and both values in JSON."""

    name: str
    a: str
    b: str


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """``a``, ``b``: None where it is not in that trace. ``excused``: why it may be so; "": it may not."""

    kind: str
    a: Shown | None
    b: Shown | None
    fields: tuple[Field, ...] = ()
    excused: str = ""

    @property
    def shown(self) -> Shown:
        shown = self.b or self.a
        assert shown is not None
        return shown


class Report(msgspec.Struct):
    """``size_a``, ``size_b``: of the traces, in ``noun``. ``counts`` by kind, what is excused apart.

    ``minimal``: no other alignment leaves less. ``strays``: trace files where none may lie."""

    noun: str
    size_a: int
    size_b: int
    same: int = 0
    minimal: bool = True
    counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    excused: int = 0
    changes: list[Change] = []
    strays: list[str] = []
    note: str = ""
    status: int = SAME

    @property
    def beyond(self) -> int:
        """How many differences are counted and not here."""
        return sum(self.counts.values()) + self.excused - len(self.changes)

    def close(self, rules: Rules) -> Report:
        """With its status."""
        if min(self.size_a, self.size_b) < rules.at_least:
            self.status = TOO_FEW
            self.note = f"expected at least {rules.at_least} {self.noun}"
        elif self.strays or any(self.counts.values()):
            self.status = DRIFT
        return self


class Tally:
    """Takes the differences into a report, one after the other."""

    def __init__(self, report: Report, rules: Rules) -> None:
        self.report = report
        self._may = rules.may
        self._used = [0] * len(rules.may)
        self._room = TEXT_MAX

    @property
    def full(self) -> bool:
        """Whether what comes is only counted."""
        return self._is_over and not self._may

    @property
    def _is_over(self) -> bool:
        return len(self.report.changes) >= SHOWN_MAX or self._room <= 0

    def count(self, kind: str) -> None:
        self.report.counts[kind] += 1

    def add(self, change: Change) -> bool:
        """Whether the report holds it."""
        why = self._excuse(change)
        if why:
            self.report.excused += 1
        else:
            self.count(change.kind)
        if self._is_over:
            return False
        told = msgspec.structs.replace(change, fields=change.fields[:FIELDS_MAX], excused=why)
        self.report.changes.append(told)
        self._room -= sum(len(each.said) + len(each.outcome) for each in (told.a, told.b) if each is not None)
        self._room -= sum(len(field.a) + len(field.b) for field in told.fields)
        return True

    def _excuse(self, change: Change) -> str:
        """Why it may be so: each of its fields may, or all of it."""
        of = change.shown
        open_ = [
            (n, rule)
            for n, rule in enumerate(self._may)
            if rule.about(change.kind, of.who, of.role, of.path)
            and (rule.at_most is None or self._used[n] < rule.at_most)
        ]
        lets = [next((n for n, rule in open_ if rule.lets(f.name, f.a, f.b)), None) for f in change.fields]
        if not change.fields:
            lets = [open_[0][0] if open_ else None]
        if None in lets:
            return ""
        used = sorted({n for n in lets if n is not None})
        for n in used:
            self._used[n] += 1
        return "; ".join(self._may[n].why for n in used)
