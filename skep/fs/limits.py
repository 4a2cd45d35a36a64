"""How much, how often: token buckets, and what a peer or a principal may do in a second.

Buckets are pure; times are given to them, ns of a clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

SECOND: Final = 1_000_000_000
MS: Final = 1_000_000
ENDLESS: Final = 1 << 62  # calls: nobody makes so many


class Bucket:
    """So many tokens a second, ``burst`` of them at most at hand; full at the beginning.

    It may be overdrawn: who took more than there was waits until that is paid back."""

    __slots__ = ("burst", "left", "rate", "time_ns")

    def __init__(self, rate: float, burst: float, now_ns: int) -> None:
        self.rate = rate  # tokens a second
        self.burst = burst
        self.left = burst
        self.time_ns = now_ns  # when ``left`` was true

    def fill(self, now_ns: int) -> None:
        """Add what has come since the last time."""
        if now_ns > self.time_ns:
            self.left = min(self.burst, self.left + (now_ns - self.time_ns) * self.rate / SECOND)
            self.time_ns = now_ns

    def take(self, count: float, now_ns: int) -> bool:
        """Take ``count`` tokens if so many are there."""
        self.fill(now_ns)
        if self.left < count:
            return False
        self.left -= count
        return True

    def draw(self, count: float, now_ns: int) -> None:
        """Take ``count`` tokens, there or not."""
        self.fill(now_ns)
        self.left -= count

    def wait_ns(self, count: float, now_ns: int) -> int:
        """How long until ``count`` tokens are there; 0: they are."""
        self.fill(now_ns)
        return max(0, int(-(-(count - self.left) * SECOND // self.rate)))


class Meter:
    """What one connection may still do: all of ``sources`` must have tokens for it. Each is the buckets of
    its peer, or of its principal, by what they count; other connections may draw from the same.

    Calls and walks are refused when there are none left; bytes are overdrawn, and then for a while no more
    are read."""

    def __init__(self, now: Callable[[], int], sources: Sequence[Mapping[str, Bucket]]) -> None:
        """``now``: ns of a clock that never goes back."""
        self.now = now
        self.throttled = 0  # calls refused
        self._calls = [source["calls"] for source in sources if "calls" in source]
        self._walks = [source["walks"] for source in sources if "walks" in source]
        self._bytes = [source["bytes"] for source in sources if "bytes" in source]

    def left(self) -> tuple[int, int]:
        """How many calls, and how many walks among them, may be made now."""
        now_ns = self.now()
        return _least(self._calls, now_ns), _least(self._walks, now_ns)

    def spend(self, calls: int, walks: int) -> None:
        """So many have been made."""
        now_ns = self.now()
        for bucket in self._calls:
            bucket.draw(calls, now_ns)
        for bucket in self._walks:
            bucket.draw(walks, now_ns)

    def call(self, walk: bool) -> int:
        """Make one call if that may be: 0, else the ms until it may."""
        now_ns = self.now()
        buckets = (*self._calls, *self._walks) if walk else self._calls
        wait_ns = max((bucket.wait_ns(1, now_ns) for bucket in buckets), default=0)
        if wait_ns:
            self.throttled += 1
            return -(-wait_ns // MS)
        for bucket in buckets:
            bucket.left -= 1
        return 0

    def carry(self, count: int) -> int:
        """So many bytes have come or gone; the ns until more may come."""
        now_ns = self.now()
        for bucket in self._bytes:
            bucket.draw(count, now_ns)
        return max((bucket.wait_ns(0, now_ns) for bucket in self._bytes), default=0)


def _least(buckets: Sequence[Bucket], now_ns: int) -> int:
    for bucket in buckets:
        bucket.fill(now_ns)
    return max(0, int(min((bucket.left for bucket in buckets), default=ENDLESS)))
