"""What may differ between two traces, how many things they must hold, where traces may lie: a file of rules.

docs/DIFF.md is its page. A mistake in it is told with its line and with what was expected."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

KINDS: Final = ("added", "removed", "changed", "moved")
RULES_MAX: Final = 1000  # each is asked about each difference
_LINE: Final = re.compile(r"at line (\d+)")
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?")


class RuleError(Exception):
    """``line``: of the file, from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")
        self.line = line


class May(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may differ. Patterns have ``*`` and ``?``; "*" is any.

    ``field``: of what has changed, "events[*].fence"; without it all of them. ``within``: by how much two
    numbers may differ; None: by anything. ``at_most``: how many times; None: as often as they like."""

    why: str
    kind: tuple[str, ...] = ("changed",)
    actor: str = "*"
    role: str = "*"
    path: str = "*"
    field: str = "*"
    within: float | None = None
    at_most: int | None = None

    def about(self, kind: str, actor: str, role: str, path: str) -> bool:
        said = ((actor, self.actor), (role, self.role), (path, self.path))
        return kind in self.kind and all(fnmatchcase(value, pattern) for value, pattern in said)

    def lets(self, field: str, a: str, b: str) -> bool:
        """Whether a field may have these values, in JSON."""
        if not re.fullmatch(_field(self.field), field):
            return False
        if self.within is None:
            return True
        return bool(_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)) and abs(float(a) - float(b)) <= self.within


def _field(pattern: str) -> str:
    """A regular expression; what is below a field that may differ may differ too."""
    parts = (re.escape(part) for part in pattern.split("*"))
    return ".*".join(parts) + r"([.\[].*)?"


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Folders of a hive in which traces may lie."""

    where: tuple[str, ...] = ("/log/trace/",)


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``at_least``: entries that either trace must hold."""

    at_least: int = 0
    traces: Where = Where()
    may: tuple[May, ...] = ()


_EXPECTED: Final[Mapping[str, tuple[str, Any]]] = {
    "at_least": ("a number of entries, 0 or more", lambda v: _count(v) and v >= 0),
    "traces": ("a table, [traces]", lambda v: isinstance(v, dict)),
    "may": ("tables, [[may]]", lambda v: isinstance(v, list) and all(isinstance(each, dict) for each in v)),
    "traces.where": (
        'a list of folders of the hive, ["/log/trace/"]',
        lambda v: _texts(v) and all(re.fullmatch("/(.*/)?", folder) for folder in v),
    ),
    "may.why": ("a text that says why", lambda v: isinstance(v, str) and bool(v.strip())),
    "may.kind": (f"a list of {', '.join(KINDS)}", lambda v: _texts(v) and bool(v) and set(v) <= set(KINDS)),
    **{f"may.{name}": (f"a pattern, {example}", lambda v: isinstance(v, str) and bool(v))
       for name, example in {"actor": '"unix:*"', "role": '"drone-*"', "path": '"/jobs/*"',
                             "field": '"events[*].fence"'}.items()},
    "may.within": ("a number, 0 or more", lambda v: (_count(v) or isinstance(v, float)) and v >= 0),
    "may.at_most": ("a number of differences, 1 or more", lambda v: _count(v) and v >= 1),
}  # fmt: skip


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def parse_rules(text: str) -> Rules:
    """Raises RuleError."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _LINE.search(str(error))
        raise RuleError(int(line[1]) if line else text.count("\n") + 1, f"{error}, expected TOML") from error
    lines = text.splitlines()
    _check(value, "", lines, 0)
    _check(value.get("traces", {}), "traces.", lines, _header(lines, "[traces]", 0))
    headers = value.get("may", [])
    for n, may in enumerate(headers):
        at = _header(lines, "[[may]]", n)
        _check(may, "may.", lines, at)
        if "why" not in may:
            raise RuleError(at + 1, f"[[may]] has no why, expected {_EXPECTED['may.why'][0]}")
        if "within" in may and "field" not in may:
            raise RuleError(at + 1, "[[may]] has within and no field, expected both")
    if len(headers) > RULES_MAX:
        raise RuleError(_header(lines, "[[may]]", RULES_MAX) + 1, f"expected at most {RULES_MAX} of them")
    return msgspec.convert(value, Rules)


def _check(table: Mapping[str, Any], under: str, lines: Sequence[str], begin: int) -> None:
    """``begin``: the line of the table's header, from 0."""
    for name, value in table.items():
        expected, good = _EXPECTED.get(under + name, ("", None))
        line = _key(lines, name, begin)
        if good is None:
            names = ", ".join(key.removeprefix(under) for key in _EXPECTED if key.startswith(under) and
                              "." not in key.removeprefix(under))  # fmt: skip
            raise RuleError(line, f"{name}: expected one of {names}")
        if not good(value):
            raise RuleError(line, f"{name} = {value!r}: expected {expected}")


def _header(lines: Sequence[str], header: str, n: int) -> int:
    """The line, from 0, of the n-th such header; 0 where it is written otherwise."""
    at = [i for i, line in enumerate(lines) if line.partition("#")[0].replace(" ", "").strip() == header]
    return at[n] if n < len(at) else 0


def _key(lines: Sequence[str], name: str, begin: int) -> int:
    """The line, from 1, on which a name stands, from ``begin`` on."""
    found = re.compile(rf'\s*(\[+\s*)?"?{re.escape(name)}"?\s*[]=.]')
    return next((i + 1 for i in range(begin, len(lines)) if found.match(lines[i])), begin + 1)
