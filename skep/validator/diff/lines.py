"""What a comparison found, told in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from skep.validator.diff.page import notes, visible
from skep.validator.diff.report import Change, Report
from skep.validator.replay.lines import short

SIGNS: Final = {"added": "+", "removed": "-", "changed": "~", "moved": ">"}


def change_lines(found: Change) -> list[str]:
    """The line of a thing that is not the same, and one for each of its fields that is not."""
    of = found.shown
    places = " -> ".join(str(each.place) for each in (found.a, found.b) if each is not None)
    said = f"{SIGNS[found.kind]} {places}: {_seen(of.who)} {_seen(of.path)} {_seen(of.said)}"
    head = said if found.fields or not of.outcome else f"{said}: {_seen(of.outcome)}"
    return [head, *(f"    {_seen(f.name)}: {_seen(f.a)} -> {_seen(f.b)}" for f in found.fields)]


def stray_lines(found: Report) -> Iterator[str]:
    """A line for each trace that lies where none may."""
    return (f"! {visible(path)}: no trace may lie there" for path in found.strays)


def last_lines(found: Report) -> Iterator[str]:
    """What is to be said besides, and how it came out."""
    yield from map(visible, notes(found))
    said = [f"{found.same} the same", *(f"{n} {kind}" for kind, n in found.counts.items() if n)]
    said += [f"{found.excused} excused"] if found.excused else []
    yield f"{found.size_a} and {found.size_b} {found.noun}: {', '.join(said)}"


def _seen(text: str) -> str:
    return short(visible(" | ".join(text.split("\n"))))
