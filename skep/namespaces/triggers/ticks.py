"""The times that a cron expression names in a zone: Debian's cron, as cronsim has it.

The hive itself asks here, and writes the tick down with its line: zones' rules change from release to release
of their data, and what was decided must not. Times are ns since 1970; no clock.
Sources: cron(8) and crontab(5) of Debian; the IANA time zone database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from skep.fs.errors import E, FsError
from skep.trace.clock import EPOCH, HOUR, SECOND

FIELDS: Final = (
    5  # minute hour day-of-month month day-of-week; cronsim has seconds too, Debian's cron has not.
)


def check(cron: str, zone: str, after_ns: int) -> None:
    """Raises FsError(E.USAGE) unless the expression names a time after ``after_ns`` and the zone is known."""
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise FsError(E.USAGE, f"zone={zone}: expected a time zone, like Europe/Berlin") from error
    if len(cron.split()) != FIELDS:
        raise FsError(E.USAGE, f"cron={cron!r}: expected {FIELDS} fields, like '30 2 * * *'")
    try:
        found = next_tick(cron, zone, after_ns)
    except CronSimError as error:
        raise FsError(E.USAGE, f"cron={cron!r}: {error}".lower()) from error
    if found is None:
        raise FsError(E.USAGE, f"cron={cron!r}: it names no time within 50 years")


def ticks(cron: str, zone: str, after_ns: int) -> Iterator[int]:
    """The ticks after ``after_ns``, rising, without end or as far as there are any within 50 years."""
    start = (EPOCH + timedelta(seconds=after_ns // SECOND)).astimezone(ZoneInfo(zone))
    last_ns = after_ns
    for tick in CronSim(cron, start):
        tick_ns = int((tick - EPOCH).total_seconds()) * SECOND
        # An hour that is there twice is begun again by who starts in its second half; and two times of a
        # skipped hour are one tick, when it ends.
        if tick_ns > last_ns:
            yield tick_ns
            last_ns = tick_ns


def next_tick(cron: str, zone: str, after_ns: int) -> int | None:
    """The first tick after ``after_ns``; None: there is none."""
    return next(ticks(cron, zone, after_ns), None)


def newest(cron: str, zone: str, after_ns: int, until_ns: int, most: int) -> list[int]:
    """The last ``most`` ticks after ``after_ns`` and not after ``until_ns``, rising.

    Looked for backwards, in spans that double: a minute's ticks of a year that was missed are not counted."""
    span_ns = HOUR
    while True:
        since_ns = max(after_ns, until_ns - span_ns)
        found: deque[int] = deque(maxlen=most)
        for tick_ns in ticks(cron, zone, since_ns):
            if tick_ns > until_ns:
                break
            found.append(tick_ns)
        if len(found) == most or since_ns <= after_ns:
            return list(found)
        span_ns *= 2
