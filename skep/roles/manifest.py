"""A role's manifest: what exists for it in the hive's tree, what it may do there, and where it finds it.

Lines as in Plan 9's namespace(6), and two of our own; whole lines beginning with ``#`` are comments:

    mount hive /                      the hive's tree is the namespace's root: the first of these lines
    cd /jobs                          where paths without a leading slash begin, from here on
    allow read,write */ctl            rights at one place: read write create remove, or all
    deny all /secrets/**              rights taken away
    bind [-a|-b] [-c] new old         what is at new is found at old: in its place, after or before it
    mount [-a|-b] [-c] hive /place    the hive's tree once more, without the binds
    unmount [new] old                 what was bound on old, or new alone, is there no more

The path of a rule is the tree's own, whatever is bound where, and is matched name by name. ``*`` stands for
one name, whichever; ``<node>`` and the other VARIABLES for names that depend on who asks and when; ``**``, at
the end only, for a place and everything below it. The other paths are plain, and are looked up line by line
when a session attaches (fs/space.py says how): one that does not exist for the session ends the attach.

The default is nothing: view.py says what of it exists. What a manifest may come from, and who must have
signed it, says sealed.py.

Source: Plan 9 manual, namespace(6), bind(1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from skep.fs.chan import ALL_RIGHTS, Chan, Right, View
from skep.fs.space import Line, enter
from skep.roles.sealed import ManifestError, Source
from skep.roles.view import NONE, Names, Rule, view

RIGHTS: Final = {
    "read": Right.READ,
    "write": Right.WRITE,
    "create": Right.CREATE,
    "remove": Right.REMOVE,
    "all": ALL_RIGHTS,
}
VARIABLES: Final = ("node", "leased", "input", "own", "annex")
LINES_MAX: Final = 1024  # a manifest is read by people


class Manifest(NamedTuple):
    """A manifest that has been read. ``lines``: what is done, in order, when a session attaches."""

    role: str
    rules: tuple[Rule, ...]
    lines: tuple[Line, ...] = ()

    @property
    def ns(self) -> str:
        """The namespace as /ns tells it: lines that make the same one again."""
        return "".join(f"{line}\n" for line in ("mount hive /", *self.lines))

    def view(self, names: Names) -> View:
        """The rights from the tree's root on; ``names`` must have all VARIABLES that the rules use."""
        return view(self.rules, names)

    async def enter(self, root: Chan, whole: View | None = None) -> Chan:
        """The root of the namespace over the tree at ``root``, whose view must be this manifest's, or that
        narrowed: then ``whole`` is this manifest's. Raises FsError when a line cannot be done."""
        return await enter(root, self.lines, whole)


def load(role: str, source: Source | None = None) -> Manifest:
    """The manifest of a role, from ``source`` (None: as the environment says).

    Raises ManifestError; there is no other manifest and no other place to fall back to."""
    return parse(role, (source or Source.told()).text(role))


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
    if not reader.mounted:
        raise reader.wrong("no mount line: nothing would exist; expected mount hive /")
    return Manifest(role, tuple(reader.rules), _needed(reader.lines))


def _needed(lines: list[Line]) -> tuple[Line, ...]:
    """The lines without each cd that no later line goes on from: those of rules are in the rules."""
    last = max((i for i, line in enumerate(lines) if _is_relative(line)), default=-1)
    return tuple(line for i, line in enumerate(lines) if line.verb != "cd" or i < last)


def _is_relative(line: Line) -> bool:
    paths = (line.old,) if line.verb == "mount" else (line.new or "/", line.old)
    return line.verb != "cd" and any(not path.startswith("/") for path in paths)


class _Reader:
    """The lines read so far. A verb is a method."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.number = 0
        self.here: tuple[str, ...] = ()
        self.mounted = False
        self.lines: list[Line] = []
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
        flags, words = self.flags(verb, words) if row.flags else ("", words)
        if len(words) not in row.counts:
            raise self.wrong(f"{line}: expected {verb} {row.words}")
        row.act(self, flags, *words)

    def flags(self, verb: str, words: list[str]) -> tuple[str, list[str]]:
        """The letters of the words that begin with a dash, and the words after them."""
        found = ""
        while words and words[0].startswith("-"):
            found, words = found + words[0][1:], words[1:]
        if len(set(found)) != len(found) or not set(found) <= set("abc") or {"a", "b"} <= set(found):
            raise self.wrong(f"{verb} -{found}: expected at most one of -a -b, and -c")
        return found, words

    def mount(self, flags: str, source: str, place: str) -> None:
        root = not self.path(place) and place.startswith("/")
        if source != "hive":
            raise self.wrong(f"mount {source} {place}: expected mount hive path")
        if root and self.mounted and not flags:
            raise self.wrong(f"mount {source} {place}: {place} is mounted already")
        if not self.mounted and (flags or not root):
            raise self.wrong(f"mount {source} {place}: expected mount hive / before it")
        if self.mounted:
            self.line("mount", flags, source, place)
        self.mounted = True

    def bind(self, flags: str, new: str, old: str) -> None:
        self.plain("bind", new)
        self.line("bind", flags, new, old)

    def unmount(self, flags: str, *paths: str) -> None:
        *new, old = paths
        for path in new:
            self.plain("unmount", path)
        self.line("unmount", "", new[0] if new else None, old)

    def line(self, verb: str, flags: str, new: str | None, old: str) -> None:
        if not self.mounted:
            raise self.wrong(f"{verb}: expected mount hive / before it")
        self.plain(verb, old)
        where = f"{self.role}.ns:{self.number}"
        self.lines.append(Line(verb, new, old, flags.replace("c", ""), "c" in flags, where))

    def cd(self, flags: str, place: str) -> None:
        self.here = self.plain("cd", place)
        if self.mounted:
            self.line("cd", "", None, place)

    def allow(self, flags: str, rights: str, place: str) -> None:
        self.rules.append(Rule(True, self.rights(rights), self.path(place)))

    def deny(self, flags: str, rights: str, place: str) -> None:
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

    def plain(self, verb: str, text: str) -> tuple[str, ...]:
        path = self.path(text)
        if any(_is_pattern(name) for name in path):
            raise self.wrong(f"{verb} {text}: expected a plain path")
        return path

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
    words: str
    counts: tuple[int, ...]  # of words
    flags: bool = False


_VERBS: Final = {
    "mount": _Verb(_Reader.mount, "[-a|-b] [-c] hive path", (2,), flags=True),
    "bind": _Verb(_Reader.bind, "[-a|-b] [-c] new old", (2,), flags=True),
    "unmount": _Verb(_Reader.unmount, "[new] old", (1, 2)),
    "cd": _Verb(_Reader.cd, "path", (1,)),
    "allow": _Verb(_Reader.allow, "rights path", (2,)),
    "deny": _Verb(_Reader.deny, "rights path", (2,)),
}
