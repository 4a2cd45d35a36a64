"""How much, how often: token buckets, and what a peer or a principal may do in a second.

Buckets are pure; times are given to them, ns of a clock that never goes back.
"""

from __future__ import annotations

from typing import Final

SECOND: Final = 1_000_000_000


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
