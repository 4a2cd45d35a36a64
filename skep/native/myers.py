"""Which items of two sequences are the same: an alignment by Myers' algorithm, bounded.

Exact while the edits are few, however long the sequences; beyond that anchored on what is there once, and
said to be so. The inner loop is compiled by numba, where it is installed and there is enough to do."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from skep.native import myers_twin

FEW: Final = 256  # edits from either end that are looked for at once: about 0.1 s in Python
MANY: Final = 8192  # and at most: some 0.3 s compiled, minutes in Python

Items: TypeAlias = "array[int]"  # int64: equal items have equal numbers


class Middle(Protocol):
    """``myers_twin.middle``, or that compiled."""

    def __call__(
        self, a: Any, b: Any, alo: int, ahi: int, blo: int, bhi: int, vf: Any, vb: Any, d_max: int, /
    ) -> tuple[int, int, bool]: ...


class Alignment(NamedTuple):
    """Which items are in both: in_a: uint8[len(a)], in_b: uint8[len(b)], as many ones in either, the n-th of
    one being the n-th of the other. ``minimal``: no alignment has more of them."""

    in_a: bytearray
    in_b: bytearray
    minimal: bool

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """The places, from 0, at which so many of the same stand one after the other in both."""
        i = j = 0
        while (i := self.in_a.find(1, i)) >= 0:
            j = self.in_b.find(1, j)
            ends = ((marks.find(0, at), len(marks), at) for marks, at in ((self.in_a, i), (self.in_b, j)))
            count = min((size if end < 0 else end) - at for end, size, at in ends)
            yield i, j, count
            i, j = i + count, j + count

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The places of the same, from 0."""
        return ((i + k, j + k) for i, j, count in self.runs() for k in range(count))


class Engine(NamedTuple):
    """``make``: the sequence, or so much scratch, as ``middle`` wants it."""

    name: str
    middle: Middle
    items: Any
    scratch: Any


PURE: Final = Engine("python", myers_twin.middle, lambda items: items, lambda size: [0] * size)


@cache
def compiled() -> Engine | None:
    """Compiled for this machine at the first use, and kept beside the module; None: numba is not there."""
    if find_spec("numba") is None:
        return None
    import numba
    import numpy as np

    try:
        kernel = numba.njit(cache=True)(myers_twin.middle)
    except RuntimeError:
        # There is no place where it could be kept: neither beside the module nor in a home.
        kernel = numba.njit(myers_twin.middle)
    as_array = lambda items: np.frombuffer(items, dtype=np.int64)  # noqa: E731
    return Engine("numba", kernel, as_array, lambda size: np.zeros(size, dtype=np.int64))


def align(
    a: Items, b: Items, few: Engine = PURE, many: Engine | None = None, bounds: tuple[int, int] = (FEW, MANY)
) -> Alignment:
    """Align two sequences. ``few`` looks for so many edits as ``bounds`` says first, ``many`` (None: the
    compiled one, else that in Python) for as many as it says then; what they find is the same."""
    # What is in one alone is in no alignment: leaving it out makes most differences none.
    common = set(a) & set(b)
    at_a = array("q", [i for i, item in enumerate(a) if item in common])
    at_b = array("q", [i for i, item in enumerate(b) if item in common])
    left, right = array("q", [a[i] for i in at_a]), array("q", [b[i] for i in at_b])
    kept = _Marked(left, right)
    minimal = kept.mark(few, bounds[0])
    if not minimal:
        many = many or compiled() or PURE
        minimal = kept.mark(many, bounds[1])
        if not minimal:
            kept.guess(many, bounds[0])
    found = Alignment(bytearray(len(a)), bytearray(len(b)), minimal)
    for places, there, marks in ((at_a, found.in_a, kept.in_a), (at_b, found.in_b, kept.in_b)):
        for i in _ones(marks):
            there[places[i]] = 1
    _slide(a, found.in_a)
    _slide(b, found.in_b)
    return found


class _Marked:
    """Two sequences and what was found to be in both of them."""

    def __init__(self, a: Items, b: Items) -> None:
        self.a, self.b = a, b
        self.in_a, self.in_b = bytearray(len(a)), bytearray(len(b))

    def mark(self, engine: Engine, d_max: int) -> bool:
        """Mark a longest common subsequence; False, and nothing is marked, when it takes too many edits."""
        if self._mark(engine, [(0, len(self.a), 0, len(self.b))], d_max, False):
            return True
        self.in_a, self.in_b = bytearray(len(self.a)), bytearray(len(self.b))
        return False

    def guess(self, engine: Engine, d_max: int) -> None:
        """Mark a common subsequence: a longest one of what is once in either, and between those what Myers
        finds where it goes on from the furthest place it came to within so many edits."""
        boxes, alo, blo = [], 0, 0
        for i, j in [*_anchors(self.a, self.b), (len(self.a), len(self.b))]:
            boxes.append((alo, i, blo, j))
            if i < len(self.a):
                self.in_a[i] = self.in_b[j] = 1
            alo, blo = i + 1, j + 1
        self._mark(engine, boxes, d_max, True)

    def _mark(self, engine: Engine, boxes: list[tuple[int, int, int, int]], d_max: int, guess: bool) -> bool:
        a, b, in_a, in_b = self.a, self.b, self.in_a, self.in_b
        items_a, items_b = engine.items(a), engine.items(b)
        vf, vb = engine.scratch(2 * d_max + 3), engine.scratch(2 * d_max + 3)
        while boxes:
            alo, ahi, blo, bhi = boxes.pop()
            while alo < ahi and blo < bhi and a[alo] == b[blo]:
                in_a[alo] = in_b[blo] = 1
                alo += 1
                blo += 1
            while alo < ahi and blo < bhi and a[ahi - 1] == b[bhi - 1]:
                ahi -= 1
                bhi -= 1
                in_a[ahi] = in_b[bhi] = 1
            if alo == ahi or blo == bhi:
                continue
            x, y, found = engine.middle(items_a, items_b, alo, ahi, blo, bhi, vf, vb, d_max)
            if not found and not guess:
                return False
            boxes += [(alo, x, blo, y), (x, ahi, y, bhi)]
        return True


def _anchors(a: Items, b: Items) -> list[tuple[int, int]]:
    """The longest run of rising pairs of places of what is once in either. Source: patience sorting."""
    once_a, once_b = ({item for item, n in Counter(of).items() if n == 1} for of in (a, b))
    place = {item: j for j, item in enumerate(b) if item in once_b and item in once_a}
    tops: list[int] = []  # the least j that ends a run of each length
    ends: list[int] = []  # the i of that
    before: dict[int, int] = {}
    for i, item in enumerate(a):
        j = place.get(item)
        if j is None:
            continue
        at = bisect_left(tops, j)
        if at:
            before[i] = ends[at - 1]
        tops[at : at + 1], ends[at : at + 1] = [j], [i]
    found = []
    i = ends[-1] if ends else -1
    while i >= 0:
        found.append((i, place[a[i]]))
        i = before.get(i, -1)
    return found[::-1]


def _slide(items: Items, marks: bytearray) -> None:
    """Move each group of others as far to the end as the same items let it: of equal ones the last is new."""
    begin = 0
    while (begin := marks.find(0, begin)) >= 0:
        end = begin
        while end < len(marks) and (not marks[end] or items[end] == items[begin]):
            if marks[end]:
                marks[begin], marks[end] = 1, 0
                begin += 1
            end += 1
        begin = end


def _ones(marks: bytearray) -> Iterator[int]:
    at = -1
    while (at := marks.find(1, at + 1)) >= 0:
        yield at
