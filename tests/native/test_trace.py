"""The tree's hashes: in C, with and without SHA instructions, and in Python, they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.native.trace import HASH, Compiled, hashing
from skep.native.trace_twin import Twin

TWIN = Twin()
# Where the padding goes over into another block, the byte before the entry counted or not.
BORDERS = [0, 1, 54, 55, 56, 62, 63, 64, 65, 118, 119, 120, 127, 128, 183, 65_535, 70_000]
SIZES = st.one_of(st.sampled_from(BORDERS), st.integers(0, 300), st.integers(0, 70_000))


@pytest.fixture(params=[True, False], ids=["sha", "plain"], scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[Compiled]:
    """All of it in C, however little there is to do. With SHA instructions or without, is for the process."""
    made = Compiled(sha=request.param, always=True)
    assert request.param or not made.sha
    yield made
    assert hashing.sha == Compiled().sha


def bodies(seed: int, sizes: list[int]) -> list[bytes]:
    chance = Random(seed)
    return [chance.randbytes(size) for size in sizes]


def hashes(seed: int, count: int) -> bytes:
    return Random(seed).randbytes(count * HASH)


def test_they_are_compiled_here() -> None:
    assert isinstance(hashing, Compiled)


@settings(deadline=None, max_examples=60)
@given(st.lists(SIZES, max_size=12), st.integers(0, 1 << 32), st.integers(1, 5))
def test_leaves_are_those_of_the_twin(compiled: Compiled, sizes: list[int], seed: int, threads: int) -> None:
    entries = bodies(seed, sizes)
    assert TWIN.leaves(entries) == compiled.leaves(entries, threads)


def test_a_leaf_of_every_length_up_to_five_blocks(compiled: Compiled) -> None:
    entries = bodies(1, list(range(5 * 64 + 1)))
    expected = b"".join(sha256(b"\x00" + entry).digest() for entry in entries)
    assert expected == compiled.leaves(entries)
    assert expected == compiled.leaves(entries, 3)


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 64, 1000])
def test_any_number_of_threads_comes_to_the_same(compiled: Compiled, threads: int) -> None:
    entries = bodies(2, [7, 500, 64, 0, 63] * 9)
    assert TWIN.leaves(entries) == compiled.leaves(entries, threads)


@given(st.integers(0, 8), st.integers(0, 5), st.integers(0, 1 << 32))
def test_nodes_are_those_of_the_twin(compiled: Compiled, levels: int, count: int, seed: int) -> None:
    data = hashes(seed, count << levels)
    assert TWIN.fold(data, levels) == compiled.fold(data, levels)


@st.composite
def growths(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """How many leaves come, and after how many of them a root is wanted."""
    counts = draw(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 600)), max_size=8))
    return [(n, sorted(draw(st.sets(st.integers(1, n), max_size=n))) if n else []) for n in counts]


@pytest.mark.slow
@settings(deadline=None)
@given(growths(), st.integers(0, 1 << 32))
def test_trees_grow_as_the_twins(compiled: Compiled, steps: list[tuple[int, list[int]]], seed: int) -> None:
    size, peaks = 0, list[bytes]()
    for count, wanted in steps:
        leaves, sizes = hashes(seed, count), [size + n for n in wanted]
        grown = compiled.grow(size, peaks, leaves, sizes)
        assert TWIN.grow(size, peaks, leaves, sizes) == grown
        size, peaks = size + count, grown[0]


def test_a_tree_of_half_of_all_there_can_be_grows(compiled: Compiled) -> None:
    size, peaks = (1 << 62) - 1, [hashes(level, 1) for level in range(62)]
    sizes = [size + 1, size + 2, size + 3]
    assert TWIN.grow(size, peaks, hashes(99, 3), sizes) == compiled.grow(size, peaks, hashes(99, 3), sizes)


def test_few_are_left_to_the_twin_and_many_are_not() -> None:
    for count in range(40):
        entries = bodies(3, [9] * count)
        leaves = TWIN.leaves(entries)
        assert leaves == hashing.leaves(entries)
        assert TWIN.grow(5, [b"a" * 32, b"b" * 32], leaves) == hashing.grow(5, [b"a" * 32, b"b" * 32], leaves)
