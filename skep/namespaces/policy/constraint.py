"""Constraints under which a command is allowed: bounds of the verb's arguments, ``priority<=5 timeout<=10m``.

An argument that has a bound must be given: what the command does without it is not the policy's to know.
Anything that cannot be enforced here is refused when the bundle is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from skep.trace.clock import parse_duration

_CONSTRAINT: Final = re.compile(r"([a-z][a-z0-9_-]*)(<=|=)(\S+)")


class Constraint(NamedTuple):
    """``<=``: ``bound`` is a whole number or a duration; ``=``: words parted by |."""

    name: str
    sign: str
    bound: str

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound}"


def parse_constraints(text: str) -> tuple[Constraint, ...]:
    """The constraints written in ``text``, at least one. Raises ValueError."""
    found = []
    for word in text.split():
        match = _CONSTRAINT.fullmatch(word)
        if match is None or (match[2] == "<=" and _size(match[3]) is None):
            raise ValueError(f"@constraints: {word}: expected name<=5, name<=10m or name=a|b")
        found.append(Constraint(match[1], match[2], match[3]))
    if not found:
        raise ValueError('expected @constraints("name<=5 …")')
    return tuple(found)


def broken(constraints: tuple[Constraint, ...], args: Mapping[str, object]) -> Constraint | None:
    """The first constraint that the arguments do not keep; None: they keep all."""
    return next((each for each in constraints if not _kept(each, args.get(each.name))), None)


def _kept(constraint: Constraint, value: object) -> bool:
    if value is None:
        return False
    if constraint.sign == "=":
        return str(value) in constraint.bound.split("|")
    have, most = _size(str(value)), _size(constraint.bound)
    # Never a number against a duration.
    return have is not None and most is not None and have[0] == most[0] and have[1] <= most[1]


def _size(text: str) -> tuple[str, int] | None:
    """A number or a duration in ns; None: it is neither."""
    if text.isascii() and text.isdigit():
        return "number", int(text)
    try:
        return "ns", parse_duration(text)
    except ValueError:
        return None
