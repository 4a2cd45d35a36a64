from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.clock import (
    CROCKFORD,
    ManualClock,
    SystemClock,
    duration,
    later_id,
    parse_duration,
    parse_rfc3339,
    rfc3339,
    ulid,
)


def test_ulid_of_the_specification() -> None:
    # The specification's example begins with the time 1469918176385 ms.
    assert ulid(1_469_918_176_385_000_000, 0) == "01ARYZ6S410000000000000000"
    assert ulid((2**48 - 1) * 1_000_000, 2**80 - 1) == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"


@given(
    st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1)
)
def test_ulids_sort_as_their_times(ms: int, low: int, other_ms: int, other_low: int) -> None:
    one, other = ulid(ms * 1_000_000, low), ulid(other_ms * 1_000_000, other_low)
    assert ((ms, low) < (other_ms, other_low)) == (one < other)


@given(st.integers(0, 2**47), st.integers(0, 2**80 - 1), st.integers(0, 2**47), st.integers(0, 2**80 - 1))
def test_an_id_is_moved_behind_another_and_no_further_than_it_must(
    ms: int, low: int, other_ms: int, other_low: int
) -> None:
    id, other = ulid(ms * 1_000_000, low), ulid(other_ms * 1_000_000, other_low)
    for than in (other, f"{other}-3"):
        later = later_id(id, than)
        assert later > than
        assert later == (id if id > than else ulid((other_ms + 1) * 1_000_000, low))
    assert id == later_id(id, "")


def test_the_system_clock_gives_new_ids_each_time() -> None:
    clock = SystemClock()
    ids = {clock.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(id) == 26 and set(id) <= set(CROCKFORD) for id in ids)
    assert clock.now_ns() <= clock.now_ns()


def test_a_manual_clock_moves_when_told_and_repeats_its_ids() -> None:
    one, other = ManualClock(5, seed=7), ManualClock(5, seed=7)
    assert one.new_id() == other.new_id()
    one.advance(10)
    assert one.now_ns() == 15
    assert one.new_id() != ManualClock(15, seed=8).new_id()


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (951_827_696_789_000_000, "2000-02-29T12:34:56.789000000Z"),
    ],
)
def test_times_as_text(time_ns: int, text: str) -> None:
    assert rfc3339(time_ns) == text
    assert parse_rfc3339(text) == time_ns


@given(st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9))
def test_a_time_survives_its_text(time_ns: int) -> None:
    assert parse_rfc3339(rfc3339(time_ns)) == time_ns


def test_times_of_others_are_read() -> None:
    assert parse_rfc3339("1985-04-12T23:20:50.52Z") == 482_196_050_520_000_000
    assert parse_rfc3339("1996-12-19T16:39:57-08:00") == parse_rfc3339("1996-12-20 00:39:57z")


@pytest.mark.parametrize(
    "text", ["", "now", "2025-01-01", "2025-01-01T00:00:00", "2025-13-01T00:00:00Z", "2025-01-01T00:00:00.Z"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|month"):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (30 * 10**9, "30s"),
        (600 * 10**9, "10m"),
        (24 * 3600 * 10**9, "24h"),
        (90 * 10**9, "90s"),
        (500 * 10**6, "500ms"),
        (1500, "1500ns"),
    ],
)
def test_durations_as_text(duration_ns: int, text: str) -> None:
    assert duration(duration_ns) == text
    assert parse_duration(text) == duration_ns


@given(st.integers(0, 10**18))
def test_a_duration_survives_its_text(duration_ns: int) -> None:
    assert parse_duration(duration(duration_ns)) == duration_ns


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1.5s", "1h30m", "30 s", "٣s", "3d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
