"""Alignments: as long as any, and the same whether compiled or not."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.native.myers import FEW, PURE, Alignment, Engine, Items, align, compiled

letters = st.lists(st.integers(0, 3), max_size=24).map(lambda items: array("q", items))
often = settings(max_examples=150, deadline=None)


def longest(a: Items, b: Items) -> int:
    """The length of a longest common subsequence, by the table of all prefixes."""
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def same(a: Items, b: Items, found: Alignment) -> int:
    """How many are the same in an alignment, which is one."""
    pairs = list(found.pairs())
    assert all(a[i] == b[j] for i, j in pairs)
    return len(pairs)


def long(of: list[int]) -> Items:
    return array("q", of)


@pytest.fixture(scope="module")
def kernel() -> Engine:
    engine = compiled()
    assert engine is not None, "numba is not installed: pip install 'skep[test]' brings it"
    return engine


@often
@given(letters, letters)
def test_no_alignment_has_more_than_the_one_that_is_found(a: Items, b: Items) -> None:
    found = align(a, b)
    assert found.minimal
    assert longest(a, b) == same(a, b, found)


@pytest.mark.slow
@often
@given(letters, letters, st.integers(1, 30))
def test_the_compiled_search_finds_the_middle_that_the_other_finds(a: Items, b: Items, d_max: int) -> None:
    engine = compiled()
    assert engine is not None
    alo, blo, ahi, bhi = 0, 0, len(a), len(b)
    while alo < ahi and blo < bhi and a[alo] == b[blo]:
        alo, blo = alo + 1, blo + 1
    while alo < ahi and blo < bhi and a[ahi - 1] == b[bhi - 1]:
        ahi, bhi = ahi - 1, bhi - 1
    if alo == ahi or blo == bhi:
        return
    found = [
        each.middle(each.items(a), each.items(b), alo, ahi, blo, bhi,
                    each.scratch(2 * d_max + 3), each.scratch(2 * d_max + 3), d_max)
        for each in (PURE, engine)
    ]  # fmt: skip
    assert found[0] == found[1]
    x, y, _ = found[0]
    assert alo <= x <= ahi
    assert blo <= y <= bhi
    assert (x, y) not in ((alo, blo), (ahi, bhi))


@often
@given(letters, letters, st.integers(1, 4))
def test_bounded_it_is_still_an_alignment(a: Items, b: Items, d_max: int) -> None:
    found = align(a, b, many=PURE, bounds=(d_max, d_max))
    if found.minimal:
        assert longest(a, b) == same(a, b, found)
    else:
        assert same(a, b, found) <= longest(a, b)


def test_what_was_put_in_is_found_in_a_long_sequence() -> None:
    a = long(list(range(100_000)))
    b = long([*range(50_000), -1, -2, *range(50_000, 99_000), *range(99_010, 100_000)])
    found = align(a, b)
    assert found.minimal
    assert (10, 2) == (found.in_a.count(0), found.in_b.count(0))
    assert [50_000, 50_001] == [j for j in range(len(b)) if not found.in_b[j]]


def test_of_equal_items_the_last_is_the_new_one() -> None:
    found = align(long([1, 5, 5, 2]), long([1, 5, 5, 5, 5, 2]))
    assert [0, 0] == list(found.in_b[3:5])


@pytest.mark.slow
def test_more_edits_than_are_looked_for_at_once_are_found_by_the_compiled_search(kernel: Engine) -> None:
    a = long([n // 3 % 1000 for n in range(6000)])
    b = long([*a[3 * FEW :], *a[: 3 * FEW]])
    found = align(a, b, many=kernel)
    assert found.minimal
    assert len(a) - 3 * FEW == same(a, b, found)


@pytest.mark.slow
def test_beyond_the_bound_what_is_there_once_anchors_it(kernel: Engine) -> None:
    once = list(range(1000, 1200))
    a = long([n for k, item in enumerate(once) for n in (item, *(k * j % 7 for j in range(20)))])
    b = long([n for k, item in enumerate(once) for n in (item, *(k * j % 5 for j in range(20)))])
    found = align(a, b, many=kernel, bounds=(FEW, 300))
    assert not found.minimal
    assert same(a, b, found) > 0.7 * longest(a, b)
    assert all(found.in_a[i] for i in range(0, len(a), 21))
