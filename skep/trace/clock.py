"""Time, and names that sort by it: clocks, ULIDs, RFC 3339 times and durations as text.

Times and durations are int nanoseconds everywhere; times count from 1970-01-01T00:00:00Z (UTC).
Sources: RFC 3339; the ULID specification (github.com/ulid/spec)."""

from __future__ import annotations

import random
import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# A ULID is thirteen pairs of Crockford digits, ten bits a pair.
PAIRS = tuple(a + b for a in CROCKFORD for b in CROCKFORD)
ULID_SHIFTS = tuple(range(120, -1, -10))

# Largest first: a duration is written in the largest unit that divides it.
UNITS = {"h": HOUR, "m": MINUTE, "s": SECOND, "ms": MS, "us": US, "ns": 1}
DURATION = re.compile(r"(\d{1,19})(h|ms|m|s|us|ns)", re.ASCII)
RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Where times and names come from: asked at the door, never while deciding."""

    def now_ns(self) -> int:
        """The time."""

    def monotonic_ns(self) -> int:
        """Time that only goes on, from wherever it began: for durations, not for records."""

    def new_id(self) -> str:
        """A fresh ULID: 48 bits of milliseconds, 80 random bits, 26 characters that sort by time."""


class SystemClock:
    """The machine's clock; ids from the system's randomness."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def new_id(self) -> str:
        return ulid(time.time_ns(), secrets.randbits(80))


class ManualClock:
    """A clock that moves when told; ids repeat for equal seed and times. For what is played, and tests."""

    def __init__(self, time_ns: int = 1_700_000_000 * SECOND, seed: int = 0) -> None:
        self.time_ns = time_ns
        self._random = random.Random(seed)

    def now_ns(self) -> int:
        return self.time_ns

    def monotonic_ns(self) -> int:
        return self.time_ns

    def new_id(self) -> str:
        return ulid(self.time_ns, self._random.getrandbits(80))

    def advance(self, duration_ns: int) -> None:
        self.time_ns += duration_ns


def ulid(time_ns: int, entropy: int) -> str:
    """The ULID of a time (before the year 10889) and 80 bits."""
    n = (time_ns // MS) << 80 | entropy
    return "".join([PAIRS[n >> shift & 1023] for shift in ULID_SHIFTS])


def later_id(id: str, than: str) -> str:
    """The ULID, when it sorts behind ``than`` (another, or ""); else it is moved to the millisecond after."""
    if id > than:
        return id
    ms = 0
    for digit in than[:10]:
        ms = ms << 5 | CROCKFORD.index(digit)
    return ulid((ms + 1) * MS, 0)[:10] + id[10:]


def rfc3339(time_ns: int) -> str:
    """``2025-11-21T08:00:00.000000001Z``: always UTC, always nine decimals, so text sorts by time."""
    seconds, ns = divmod(time_ns, SECOND)
    return f"{(EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}.{ns:09d}Z"


def parse_rfc3339(text: str) -> int:
    """The time that ``text`` names, to the nanosecond; raises ValueError."""
    match = RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"time {text!r}: expected RFC 3339, like 2025-11-21T08:00:00Z")
    date, clock, fraction, sign, hours, minutes = match.groups()
    span = datetime.fromisoformat(f"{date}T{clock}+00:00") - EPOCH
    ns = (span.days * 86_400 + span.seconds) * SECOND + int((fraction or "").ljust(9, "0"))
    if sign is None:
        return ns
    offset = int(hours) * HOUR + int(minutes) * MINUTE
    return ns - offset if sign == "+" else ns + offset


def duration(duration_ns: int) -> str:
    """``30s``, ``10m``, ``24h``, ``1500ms``: one number in the largest unit that divides it."""
    assert duration_ns >= 0, duration_ns
    if duration_ns == 0:
        return "0s"
    unit = next(unit for unit, ns in UNITS.items() if duration_ns % ns == 0)
    return f"{duration_ns // UNITS[unit]}{unit}"


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration; raises ValueError."""
    match = DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"duration {text!r}: expected a number and one of {' '.join(UNITS)}, like 30s")
    return int(match[1]) * UNITS[match[2]]
