"""What exists for a role, and what it may do there: the rules of its manifest as a View.

What any rule denies is denied, wherever it stands. A place exists when the role has a right there, or on the
way to one that no ``deny … **`` over this place takes away; on the way its names can be listed, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from skep.fs.chan import ALL_RIGHTS, EVERYTHING, Right, View

NONE: Final = Right(0)

Names = Mapping[str, Callable[[str], bool]]
"""For each variable, whether a name is what it stands for now."""


class Rule(NamedTuple):
    """One allow or deny line."""

    allow: bool
    rights: Right
    path: tuple[str, ...]  # names, "*", "<variable>"; "**" at the end


def view(rules: Sequence[Rule], names: Names) -> View:
    """What exists from the root on; ``names`` must have all variables that the rules use."""
    root = _Step()
    for rule in rules:
        root.add(rule, rule.path)
    root.close()
    asked = {name[1:-1] for rule in rules for name in rule.path if name.startswith("<")}
    assert asked <= names.keys(), asked
    return _seen((root,), NONE, NONE, names) or Nothing()


class _Step:
    """One place in the tree of the rules' paths."""

    def __init__(self) -> None:
        self.allowed = self.denied = NONE  # here
        self.allowed_below = self.denied_below = NONE  # here and everywhere below
        self.ahead = NONE  # what is allowed anywhere strictly below
        self.names: dict[str, _Step] = {}  # the next name, as it is written

    def add(self, rule: Rule, path: tuple[str, ...]) -> None:
        if path and path[0] != "**":
            self.names.setdefault(path[0], _Step()).add(rule, path[1:])
            return
        field = ("allowed" if rule.allow else "denied") + ("_below" if path else "")
        setattr(self, field, getattr(self, field) | rule.rights)

    def close(self) -> None:
        """Every rule has been added."""
        for step in self.names.values():
            step.close()
            self.ahead |= step.allowed | step.allowed_below | step.ahead

    def next(self, name: str, names: Names) -> Iterator[_Step]:
        """The steps that ``name`` leads to. A file may well be called ``*`` or ``<node>``."""
        for pattern, step in self.names.items():
            if pattern == "*" or (names[pattern[1:-1]](name) if pattern[0] == "<" else pattern == name):
                yield step


class Nothing:
    """The view of one for whom not even the root has anything."""

    rights = NONE

    def child(self, name: str) -> View | None:
        return None


class _Seen:
    """A place that exists: the steps whose paths lead here, and what holds from above."""

    __slots__ = (
        "_allowed",
        "_denied",
        "_known",
        "_names",
        "_steps",
        "_variables",
        "_written",
        "rights",
    )

    def __init__(
        self, steps: tuple[_Step, ...], allowed: Right, denied: Right, names: Names, rights: Right
    ) -> None:
        self.rights = rights
        self._steps = steps
        self._allowed = allowed
        self._denied = denied
        self._names = names
        words = {name for step in steps for name in step.names}
        self._variables = tuple(sorted(word for word in words if word.startswith("<")))
        self._written = words.difference(self._variables, "*")
        # The views below: all names that are not written in a rule, and stand for the same, share one.
        self._known: dict[tuple[str, ...], View | None] = {}

    def child(self, name: str) -> View | None:
        if not self._steps:
            # Only what holds from above is left, and it is the same everywhere below.
            rights = self._allowed & ~self._denied
            if not rights or rights | Right.LIST == self.rights:
                return self if rights else None
            return _Seen((), self._allowed, self._denied, self._names, rights | Right.LIST)
        key: tuple[str, ...] = (name,) if name in self._written else ()
        if self._variables:
            key += tuple(word for word in self._variables if self._names[word[1:-1]](name))
        try:
            return self._known[key]
        except KeyError:
            steps = tuple(found for step in self._steps for found in step.next(name, self._names))
            found = self._known[key] = _seen(steps, self._allowed, self._denied, self._names)
            return found


def _seen(steps: tuple[_Step, ...], allowed: Right, denied: Right, names: Names) -> View | None:
    """The view from a place that ``steps`` lead to; None: it does not exist."""
    here_allowed, here_denied, ahead = allowed, denied, NONE
    for step in steps:
        allowed |= step.allowed_below
        denied |= step.denied_below
        here_allowed |= step.allowed
        here_denied |= step.denied
        ahead |= step.ahead
    rights = (here_allowed | allowed) & ~(here_denied | denied)
    left = tuple(step for step in steps if step.names)
    if not left and rights == allowed == ALL_RIGHTS and not denied:
        return EVERYTHING
    if (ahead | allowed) & ~denied:
        rights |= Right.LIST
    if not rights:
        return None
    return _Seen(left, allowed, denied, names, rights)
