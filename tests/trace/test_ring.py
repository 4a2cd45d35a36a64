from __future__ import annotations

from skep.trace.ring import Ring


def filled(length: int, count: int) -> Ring[int]:
    ring: Ring[int] = Ring(length)
    for n in range(1, count + 1):
        assert ring.append(n) == n
    return ring


def test_a_reader_gets_what_came_after_its_cursor() -> None:
    ring = filled(4, 3)
    assert ring.read(0) == (1, [1, 2, 3])
    assert ring.read(2) == (3, [3])
    assert ring.read(3) == (4, [])
    assert ring.last == 3


def test_a_slow_reader_sees_where_its_gap_ends() -> None:
    assert filled(4, 10).read(2) == (7, [7, 8, 9, 10])


def test_a_read_is_bounded() -> None:
    assert filled(8, 8).read(2, 3) == (3, [3, 4, 5])


def test_an_empty_ring_has_nothing_to_read() -> None:
    assert filled(8, 0).read(0) == (1, [])
