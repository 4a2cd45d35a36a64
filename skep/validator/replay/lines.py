"""What a replay found, told in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from skep.validator.replay.policies import Verdict
from skep.validator.replay.replay import Difference
from skep.validator.replay.report import Report

WIDTH: Final = 100  # of a value that is shown; all of it is in the report.


def differences(found: Report) -> Iterator[str]:
    """A line for each thing that was found."""
    yield from map(_difference, found.differences)
    yield from map(_verdict, found.verdicts)


def summary(found: Report) -> str:
    """How it came out."""
    said = [f"{found.differ} differ" if found.differ else "the same"]
    said += [f"{n} by the declared change {name}" for name, n in found.declared.items()]
    if found.escalated is not None and found.relaxed is not None:
        unchanged = found.last - found.first + 1 - found.escalated - found.relaxed
        said.append(f"{found.escalated} escalated, {found.relaxed} relaxed, {unchanged} unchanged")
    return f"entries {found.first} to {found.last}: {'; '.join(said)}"


def _difference(found: Difference) -> str:
    declared = f"declared: {found.declared}: " if found.declared else ""
    line = f"{found.actor} {found.path} {short(found.line)}: " if found.line else ""
    values = f"recorded {short(found.recorded)}, decided {short(found.decided)}"
    return f"entry {found.seq}: {declared}{line}{found.field}: {values}"


def _verdict(found: Verdict) -> str:
    who = f"{found.actor} ({found.role}) {found.path} {short(found.line)}"
    why = f": {found.text}" if found.text else ""
    return f"entry {found.seq}: {found.verdict}: {who}: {found.recorded} -> {found.under}{why}"


def short(value: Any) -> str:
    """In one line, its end left out when it is long."""
    text = " | ".join(str(value).split("\n"))
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
