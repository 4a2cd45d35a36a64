"""The difference of two traces: what was added, removed, changed and moved.

Aligned are the fingerprints of the entries; what is left between two that are the same is aligned once more,
by who wrote where and what verb: a pair of it is one thing that has changed. Ids are the same where they
stand in the same places all the way: the first aligned pair in which both are new binds them."""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from skep.native.myers import align
from skep.trace.checkpoint import parse_checkpoint
from skep.trace.entry import canonical
from skep.trace.note import Note
from skep.validator.diff_rules import KINDS, Rules
from skep.validator.diff_traces import ID, LEDGER, Prints, Shown, Trace, kind_of, prints
from skep.validator.replay import differing

SHOWN_MAX: Final = 10_000  # differences that a report holds; the rest is counted.
FIELDS_MAX: Final = 50  # of one of them
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
    at_least: int = 0
    note: str = ""
    status: int = SAME

    @property
    def beyond(self) -> int:
        """How many differences are counted and not here."""
        return sum(self.counts.values()) + self.excused - len(self.changes)

    def close(self) -> Report:
        """With its status."""
        if min(self.size_a, self.size_b) < self.at_least:
            self.status = TOO_FEW
        elif self.strays or any(self.counts.values()):
            self.status = DRIFT
        return self


def diff_traces(a: Trace, b: Trace, rules: Rules) -> Report:
    """Raises NotTold."""
    known: dict[bytes, int] = {}
    printed_a, printed_b = prints(a, known), prints(b, known)
    found = _Found(a, b, printed_a, printed_b, rules)
    found.compare()
    return found.report.close()


class _Found:
    """The comparison as it goes along both traces. Places count from 1."""

    def __init__(self, a: Trace, b: Trace, printed_a: Prints, printed_b: Prints, rules: Rules) -> None:
        self.a, self.b = a, b
        self.printed_a, self.printed_b = printed_a, printed_b
        self.bound = _Bound(printed_a, printed_b)
        self.rules = rules
        self.used = [0] * len(rules.may)
        self.last_b = 0  # that is aligned
        self.places: list[tuple[int, bool]] = []  # where each change stands in the second trace
        self.report = Report(a.noun, len(printed_a.items), len(printed_b.items), at_least=rules.at_least)

    def compare(self) -> None:
        aligned = align(self.printed_a.items, self.printed_b.items)
        self.report.minimal = aligned.minimal
        moved = self._moved(aligned.in_a, aligned.in_b)
        gone, come = set(moved), set(moved.values())
        last_a = 0
        ends = [(self.report.size_a, self.report.size_b)]
        for i, j in _chain(aligned.pairs(), ends):
            if i > last_a or j > self.last_b:
                self._gap(
                    [n for n in range(last_a + 1, i + 1) if n not in gone],
                    [n for n in range(self.last_b + 1, j + 1) if n not in come],
                )
            last_a, self.last_b = i + 1, j + 1
            if i < self.report.size_a:
                self._pair(last_a, self.last_b)
        for n, m in moved.items():
            self._add("moved", n, m)
        found = sorted(zip(self.places, self.report.changes, strict=True), key=lambda each: each[0])
        self.report.changes = [change for _, change in found]

    def _moved(self, in_a: bytearray, in_b: bytearray) -> dict[int, int]:
        """What is left on both sides and the same: the first of it with the first of it."""
        left: defaultdict[int, deque[int]] = defaultdict(deque)
        for j, item in enumerate(self.printed_b.items):
            if not in_b[j]:
                left[item].append(j + 1)
        found = {}
        for i, item in enumerate(self.printed_a.items):
            if not in_a[i] and left.get(item):
                found[i + 1] = left[item].popleft()
        return found

    def _gap(self, of_a: list[int], of_b: list[int]) -> None:
        """What stands between two that are the same."""
        pairs: list[tuple[int, int]] = []
        if of_a and of_b:
            known: dict[bytes, int] = {}
            keys_a = array("q", [known.setdefault(self.a.key(n), len(known)) for n in of_a])
            keys_b = array("q", [known.setdefault(self.b.key(n), len(known)) for n in of_b])
            pairs = [(of_a[i], of_b[j]) for i, j in align(keys_a, keys_b).pairs()]
        paired_a, paired_b = {n for n, _ in pairs}, {m for _, m in pairs}
        for n, m in pairs:
            self._pair(n, m, False)
        for n in of_a:
            if n not in paired_a:
                self._add("removed", n, None)
        for m in of_b:
            if m not in paired_b:
                self._add("added", None, m)

    def _pair(self, n: int, m: int, same: bool = True) -> None:
        """Two that are one thing. ``same``: but for their ids."""
        if self.bound.bind(n, m) and same:
            self.report.same += 1
            return
        fields = tuple(Field(*each) for each in self.bound.differing(self.a.value(n), self.b.value(m)))
        if fields:
            self._add("changed", n, m, fields[:FIELDS_MAX])
        else:
            self.report.same += 1

    def _add(self, kind: str, n: int | None, m: int | None, fields: tuple[Field, ...] = ()) -> None:
        if len(self.report.changes) >= SHOWN_MAX and not self.rules.may:
            self.report.counts[kind] += 1
            return
        shown_a = None if n is None else self.a.shown(n)
        change = Change(kind, shown_a, None if m is None else self.b.shown(m), fields)
        why = self._excuse(change)
        if why:
            self.report.excused += 1
            change = msgspec.structs.replace(change, excused=why)
        else:
            self.report.counts[change.kind] += 1
        if len(self.report.changes) < SHOWN_MAX:
            self.report.changes.append(change)
            self.places.append((self.last_b if m is None else m, m is not None))

    def _excuse(self, change: Change) -> str:
        """Why it may be so: each of its fields may, or all of it."""
        of = change.shown
        open_ = [
            (n, rule)
            for n, rule in enumerate(self.rules.may)
            if rule.about(change.kind, of.who, of.role, of.path)
            and (rule.at_most is None or self.used[n] < rule.at_most)
        ]
        lets = [next((n for n, rule in open_ if rule.lets(f.name, f.a, f.b)), None) for f in change.fields]
        if not change.fields:
            lets = [open_[0][0] if open_ else None]
        if None in lets:
            return ""
        used = sorted({n for n in lets if n is not None})
        for n in used:
            self.used[n] += 1
        return "; ".join(self.rules.may[n].why for n in used)


def _chain(pairs: Iterable[tuple[int, int]], ends: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    yield from pairs
    yield from ends


class _Bound:
    """Which id of one trace is which of the other."""

    def __init__(self, a: Prints, b: Prints) -> None:
        self._a, self._b = a, b
        self._to_b: dict[int, int] = {}
        self._to_a: dict[int, int] = {}
        self._names_a = list(a.numbers)

    def bind(self, n: int, m: int) -> bool:
        """Bind what is new in both; whether all ids of the two are the same."""
        ids_a, ids_b = self._a.of(n), self._b.of(m)
        same = len(ids_a) == len(ids_b)
        for x, y in zip(ids_a, ids_b, strict=False):
            if x not in self._to_b and y not in self._to_a:
                self._to_b[x], self._to_a[y] = y, x
            elif self._to_b.get(x) != y:
                same = False
        return same

    def differing(self, a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        """The fields that are not the same; an id that is bound has its name in the first trace."""
        told = ID.sub(lambda found: self._name(found[0]), canonical(b))
        return differing(msgspec.json.decode(canonical(a)), msgspec.json.decode(told))

    def _name(self, id: bytes) -> bytes:
        number = self._to_a.get(self._b.numbers.get(id, -1))
        return id if number is None else self._names_a[number]


def diff_checkpoints(a: Note, b: Note) -> Report:
    """What two signed heads say, as far as they tell it alone. Raises NoteError."""
    heads = [parse_checkpoint(note.text) for note in (a, b)]
    old, new = heads
    values: list[dict[str, Any]] = [
        {"origin": head.origin, "size": head.size, "root": head.root.hex()} for head in heads
    ]
    fields = tuple(Field(*each) for each in differing(values[0], values[1]))
    report = Report("entries", old.size, new.size, same=int(not fields))
    if fields:
        shown = [Shown(head.size, head.origin, "", "", "checkpoint", "") for head in heads]
        report.counts["changed"] = 1
        report.changes.append(Change("changed", shown[0], shown[1], fields))
        report.note = _told(old.origin == new.origin, old.size, new.size)
    return report.close()


def _told(one_log: bool, old: int, new: int) -> str:
    if not one_log:
        return "they are of two logs"
    if old == new:
        return f"forked: two roots of {old} entries"
    older = "first" if old < new else "second"
    return f"the {older} is older: whether the other continues it, skep verify tells from the log"


def strays(directory: Path, rules: Rules) -> list[str]:
    """Trace files in a hive's directory where none may lie, by their paths in it: ledgers, conversations and
    directories of tiles. The hive's own ledger lies at its top."""
    found = []
    for path in sorted(directory.rglob("*")):
        told = f"/{path.relative_to(directory).as_posix()}"
        if any(told.startswith(folder) for folder in rules.traces.where) or told == f"/{LEDGER}":
            continue
        if (path.is_file() and not path.is_symlink() and kind_of(path)) or _is_tiles(path):
            found.append(told)
    return found


def _is_tiles(path: Path) -> bool:
    return path.name == "tile" and path.is_dir() and path.with_name("checkpoint").is_file()
