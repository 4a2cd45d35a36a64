"""The difference of two traces: what was added, removed, changed and moved.

Aligned are the fingerprints of the entries; what is left between two that are the same is aligned once more,
by who wrote where and what verb: a pair of it is one thing that has changed. Ids are the same where they
stand in the same places all the way: the first aligned pair in which both are new binds them."""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from skep.native.myers import align
from skep.trace.entry import canonical
from skep.trace.note import NoteError, parse_note
from skep.validator.diff.report import Change, Field, Report, Tally
from skep.validator.diff.rules import Rules
from skep.validator.diff.states import diff_checkpoints, diff_snapshots
from skep.validator.diff.traces import ID, LEDGER, NotTold, Prints, Trace, kind_of, opened, prints, strays
from skep.validator.replay.replay import differing


def diff(a: str, b: str, rules: Rules) -> Report:
    """The difference of what is at two paths: traces, checkpoints or snapshots. Raises NotTold."""
    first, second = opened(a), opened(b)
    if first is not None and second is not None and first.noun == second.noun:
        report = diff_traces(first, second, rules)
        for name in (a, b):
            if (Path(name) / LEDGER).is_file():
                report.strays += [f"{name}{path}" for path in strays(Path(name), rules.traces.where)]
        return report.close(rules)
    if first is not None or second is not None:
        raise NotTold(f"{a} and {b}: expected two of one kind")
    paths = Path(a), Path(b)
    if [kind_of(path) for path in paths] == ["snapshot", "snapshot"]:
        return diff_snapshots(*paths, rules)
    try:
        old, new = (parse_note(path.read_bytes()) for path in paths)
        return diff_checkpoints(old, new, rules)
    except NoteError as error:
        raise NotTold(f"{a} and {b}: neither traces nor two checkpoints or snapshots: {error}") from error


def diff_traces(a: Trace, b: Trace, rules: Rules) -> Report:
    """Raises NotTold."""
    known: dict[bytes, int] = {}
    printed_a, printed_b = prints(a, known), prints(b, known)
    found = _Found(a, b, printed_a, printed_b, rules)
    found.compare()
    if a.cut or b.cut:
        found.report.note = f"the {'first' if a.cut else 'second'} was cut short"
    return found.report.close(rules)


class _Found:
    """The comparison as it goes along both traces. Places count from 1."""

    def __init__(self, a: Trace, b: Trace, printed_a: Prints, printed_b: Prints, rules: Rules) -> None:
        self.a, self.b = a, b
        self.printed_a, self.printed_b = printed_a, printed_b
        self.bound = _Bound(printed_a, printed_b)
        self.last_b = 0  # that is aligned
        self.places: list[tuple[int, bool]] = []  # where each change stands in the second trace
        self.report = Report(a.noun, len(printed_a.items), len(printed_b.items))
        self.tally = Tally(self.report, rules)

    def compare(self) -> None:
        aligned = align(self.printed_a.items, self.printed_b.items)
        self.report.minimal = aligned.minimal
        moved = self._moved(aligned.in_a, aligned.in_b)
        gone, come = set(moved), set(moved.values())
        last_a = 0
        end = (self.report.size_a, self.report.size_b, 0)
        for i, j, count in chain(aligned.runs(), [end]):
            if i > last_a or j > self.last_b:
                self._gap(
                    [n for n in range(last_a + 1, i + 1) if n not in gone],
                    [n for n in range(self.last_b + 1, j + 1) if n not in come],
                )
            last_a, self.last_b = i + count, j + count
            if count:
                self._run(i + 1, j + 1, count)
        for n, m in moved.items():
            self._add("moved", n, m)
        found = sorted(zip(self.places, self.report.changes, strict=True), key=lambda each: each[0])
        self.report.changes = [change for _, change in found]

    def _moved(self, in_a: bytearray, in_b: bytearray) -> dict[int, int]:
        """What is left on both sides and the same: the first of it with the first of it."""
        left: defaultdict[int, deque[int]] = defaultdict(deque)
        for j in _zeros(in_b):
            left[self.printed_b.items[j]].append(j + 1)
        found = {}
        for i in _zeros(in_a):
            if places := left.get(self.printed_a.items[i]):
                found[i + 1] = places.popleft()
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

    def _run(self, n: int, m: int, count: int) -> None:
        """So many that are the same but for their ids, from two places on."""
        if self.bound.bind_all(n, m, count):
            self.report.same += count
        else:
            for k in range(count):
                self._pair(n + k, m + k)

    def _pair(self, n: int, m: int, same: bool = True) -> None:
        """Two that are one thing. ``same``: but for their ids."""
        if self.bound.bind(n, m) and same:
            self.report.same += 1
            return
        fields = tuple(Field(*each) for each in self.bound.differing(self.a.value(n), self.b.value(m)))
        if fields:
            self._add("changed", n, m, fields)
        else:
            self.report.same += 1

    def _add(self, kind: str, n: int | None, m: int | None, fields: tuple[Field, ...] = ()) -> None:
        if self.tally.full:
            self.tally.count(kind)
            return
        shown_a = None if n is None else self.a.shown(n)
        shown_b = None if m is None else self.b.shown(m)
        if self.tally.add(Change(kind, shown_a, shown_b, fields)):
            self.places.append((self.last_b if m is None else m, m is not None))


def _zeros(marks: bytearray) -> Iterator[int]:
    at = -1
    while (at := marks.find(0, at + 1)) >= 0:
        yield at


class _Bound:
    """Which id of one trace is which of the other."""

    def __init__(self, a: Prints, b: Prints) -> None:
        self._a, self._b = a, b
        self._to_b: dict[int, int] = {}
        self._to_a: dict[int, int] = {}
        self._names_a = list(a.numbers)

    def bind_all(self, n: int, m: int, count: int) -> bool:
        """Bind what is new in both, of so many from two places on, when all of their ids are the same; else
        nothing."""
        pairs = set(zip(self._a.of(n, count), self._b.of(m, count), strict=True))
        one_to_one = len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
        if not one_to_one or any(self._to_b.get(x, y) != y or self._to_a.get(y, x) != x for x, y in pairs):
            return False
        self._to_b.update(pairs)
        self._to_a.update((y, x) for x, y in pairs)
        return True

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
