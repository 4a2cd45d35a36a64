"""A role's manifest: what exists for it in the hive's tree, and what it may do there.

Lines as in Plan 9's namespace(6), and two of our own; whole lines beginning with ``#`` are comments:

    mount hive /                      the hive's tree is the namespace's root
    cd /jobs                          where paths without a leading slash begin, from here on
    allow read,write */ctl            rights at one place: read write create remove, or all
    deny all /secrets/**              rights taken away

A path is matched name by name. ``*`` stands for one name, whichever; ``<node>`` and the other VARIABLES for
names that depend on who asks and when; ``**``, at the end only, for a place and everything below it.

The default is nothing. What any line denies is denied, wherever the line stands. A place exists for the role
when it has a right there, or on the way to one that no ``deny … **`` over this place takes away; on the way
its names can be listed (those that exist), no more. ``bind`` and ``unmount`` come with the first role that
needs them: like every verb that is not above, they are refused.

Source: Plan 9 manual, namespace(6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Final, NamedTuple

from skep.fs.chan import ALL_RIGHTS, EVERYTHING, Right, View

RIGHTS: Final = {
    "read": Right.READ,
    "write": Right.WRITE,
    "create": Right.CREATE,
    "remove": Right.REMOVE,
    "all": ALL_RIGHTS,
}
VARIABLES: Final = ("node", "leased", "input", "own", "annex")
ENROLLING: Final = "enrolling"  # the manifest of those who have no certificate yet; nobody can be given it
LINES_MAX: Final = 1024  # a manifest is read by people
NONE: Final = Right(0)

Names = Mapping[str, Callable[[str], bool]]
"""For each of VARIABLES, whether a name is what it stands for now."""


class ManifestError(Exception):
    """The manifest cannot be used; the text names it, the line, and what was expected."""


class Rule(NamedTuple):
    """One allow or deny line."""

    allow: bool
    rights: Right
    path: tuple[str, ...]  # names, "*", "<variable>"; "**" at the end


class Manifest(NamedTuple):
    """``ns``: its mount lines, as /ns tells them."""

    role: str
    ns: str
    rules: tuple[Rule, ...]

    def view(self, names: Names) -> View:
        """The namespace from its root; ``names`` must have all VARIABLES that the rules use."""
        root = _Step()
        for rule in self.rules:
            root.add(rule, rule.path)
        root.close()
        asked = {name[1:-1] for rule in self.rules for name in rule.path if name.startswith("<")}
        assert asked <= names.keys(), asked
        return _seen((root,), NONE, NONE, names) or Nothing()


# reading


def load(role: str) -> Manifest:
    """The manifest of a role of this release. Raises ManifestError; there is no other to fall back to."""
    name = f"{role}.ns"
    if not role.replace("-", "").isalnum():
        raise ManifestError(f"role {role!r}: expected one of {' '.join(roles())}")
    try:
        text = resources.files("skep.roles").joinpath(name).read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"role {role!r} has no manifest: expected one of {' '.join(roles())}") from None
    return parse(role, text)


def roles() -> list[str]:
    """The roles that have a manifest and that somebody may be given: all but ENROLLING."""
    return sorted(
        file.name.removesuffix(".ns")
        for file in resources.files("skep.roles").iterdir()
        if file.name.endswith(".ns") and file.name != f"{ENROLLING}.ns"
    )


def parse(role: str, text: bytes) -> Manifest:
    """The manifest written in ``text``. Raises ManifestError at the first line that is not understood."""
    reader = _Reader(role)
    raw_lines = text.split(b"\n")
    if len(raw_lines) > LINES_MAX:
        raise ManifestError(f"{role}.ns: {len(raw_lines)} lines, at most {LINES_MAX} were expected")
    for number, raw in enumerate(raw_lines, 1):
        reader.number = number
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise reader.wrong(f"byte {error.start} is not UTF-8") from error
        reader.read(line.strip())
    if not reader.mounts:
        raise reader.wrong("no mount line: nothing would exist; expected mount hive /")
    return Manifest(role, "".join(f"{mount}\n" for mount in reader.mounts), tuple(reader.rules))


class _Reader:
    """The lines read so far. A verb is a method."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.number = 0
        self.here: tuple[str, ...] = ()
        self.mounts: list[str] = []
        self.rules: list[Rule] = []

    def wrong(self, why: str) -> ManifestError:
        return ManifestError(f"{self.role}.ns:{self.number}: {why}")

    def read(self, line: str) -> None:
        if not line or line.startswith("#"):
            return
        verb, *words = line.split()
        row = _VERBS.get(verb)
        if row is None:
            raise self.wrong(f"{verb}: unknown verb, expected one of {' '.join(_VERBS)}")
        if len(words) != len(row.words):
            raise self.wrong(f"{line}: expected {verb} {' '.join(row.words)}")
        row.act(self, *words)

    def mount(self, source: str, place: str) -> None:
        if source != "hive" or self.path(place) != ():
            raise self.wrong(f"mount {source} {place}: expected mount hive /")
        if self.mounts:
            raise self.wrong(f"mount {source} {place}: {place} is mounted already")
        self.mounts.append(f"mount {source} {place}")

    def cd(self, place: str) -> None:
        path = self.path(place)
        if any(_is_pattern(name) for name in path):
            raise self.wrong(f"cd {place}: expected a plain path")
        self.here = path

    def allow(self, rights: str, place: str) -> None:
        self.rules.append(Rule(True, self.rights(rights), self.path(place)))

    def deny(self, rights: str, place: str) -> None:
        self.rules.append(Rule(False, self.rights(rights), self.path(place)))

    def rights(self, text: str) -> Right:
        words = text.split(",")
        for word in words:
            if word not in RIGHTS:
                raise self.wrong(f"{word!r}: unknown right, expected some of {','.join(RIGHTS)}")
        if len(set(words)) != len(words) or ("all" in words and len(words) > 1):
            raise self.wrong(f"{text}: a right is there twice")
        found = NONE
        for word in words:
            found |= RIGHTS[word]
        return found

    def path(self, text: str) -> tuple[str, ...]:
        start = () if text.startswith("/") else self.here
        names = text.removeprefix("/").split("/") if text != "/" else []
        for i, name in enumerate(names):
            if name in ("", ".", ".."):
                raise self.wrong(f"{text}: {name!r} in a path, expected names parted by single slashes")
            if name == "**" and i + 1 < len(names):
                raise self.wrong(f"{text}: ** ends a path")
            if _is_pattern(name) and not (name in ("*", "**") or name[1:-1] in VARIABLES):
                known = " ".join(f"<{variable}>" for variable in VARIABLES)
                raise self.wrong(f"{text}: {name}: expected a whole name, * or ** alone, or one of {known}")
        return (*start, *names)


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*<>")


class _Verb(NamedTuple):
    act: Callable[..., None]
    words: tuple[str, ...]


_VERBS: Final = {
    "mount": _Verb(_Reader.mount, ("hive", "/")),
    "cd": _Verb(_Reader.cd, ("path",)),
    "allow": _Verb(_Reader.allow, ("rights", "path")),
    "deny": _Verb(_Reader.deny, ("rights", "path")),
}


# what exists


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

    __slots__ = ("_allowed", "_denied", "_names", "_steps", "rights")

    def __init__(
        self, steps: tuple[_Step, ...], allowed: Right, denied: Right, names: Names, rights: Right
    ) -> None:
        self.rights = rights
        self._steps = steps
        self._allowed = allowed
        self._denied = denied
        self._names = names

    def child(self, name: str) -> View | None:
        if not self._steps:
            # Only what holds from above is left, and it is the same everywhere below.
            rights = self._allowed & ~self._denied
            if not rights or rights | Right.LIST == self.rights:
                return self if rights else None
            return _Seen((), self._allowed, self._denied, self._names, rights | Right.LIST)
        steps = tuple(found for step in self._steps for found in step.next(name, self._names))
        return _seen(steps, self._allowed, self._denied, self._names)


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
