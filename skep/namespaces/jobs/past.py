"""What is remembered of jobs that have ended: for how long their records and keys stay in memory. Pure.

The rest is read from the ledger, found by its index (history.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, NamedTuple

import msgspec

from skep.trace.clock import HOUR

HISTORY_NS: Final = HOUR  # how long an ended job stays, where the ledger does not say.
KEY_NS: Final = 24 * HOUR  # how long a key is kept, where the ledger does not say.
ENDED_MAX: Final = 16_384  # ended jobs in memory, every tenant's, some 2 KiB each; more leave earlier.
LEAVE_MAX: Final = 4  # that one event sends away: each event ends one job at most, so they never pile up.


class Keyed(NamedTuple):
    """A key in use: whose it is, the hash of that request, and from when on it is free.

    ``yields``: to another job that is imported; a sheet may have several that had it one after another."""

    job: str
    body: str
    until_ns: int
    yields: bool = False


class Letter(msgspec.Struct, frozen=True):
    """A dead letter whose record has left memory. ``request``: the SHA-256 of its request, by which one is
    known that comes from the index; ``artifact``: its input, "": none; ``inputs``: the hashes of those that
    have names."""

    rev: int
    request: str
    artifact: str = ""
    inputs: tuple[str, ...] = ()

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The hashes of all that went into it."""
        return (*((self.artifact,) if self.artifact else ()), *self.inputs)


@dataclass
class Past:
    """The jobs that have ended and are in memory, and the keys, by when they leave.

    ``horizon``: the greatest id of those that have left; ``rev``: the last entry of any of them."""

    ended: list[tuple[int, str]] = field(default_factory=list)  # a heap: when it leaves, job
    keys: list[tuple[int, str, str]] = field(default_factory=list)  # a heap: when it is free, tenant, key
    horizon: str = ""
    rev: int = 0

    def copy(self) -> Past:
        return Past(self.ended.copy(), self.keys.copy(), self.horizon, self.rev)

    def end(self, job: str, at_ns: int) -> None:
        """The job has ended, and leaves at ``at_ns``."""
        heappush(self.ended, (at_ns, job))

    def keep(self, tenant: str, key: str, until_ns: int) -> None:
        heappush(self.keys, (until_ns, tenant, key))

    def leaving(self, now_ns: int) -> list[str]:
        """The jobs that leave now: those whose time is over, and of too many those that would leave first."""
        found: list[str] = []
        while len(found) < LEAVE_MAX and self.ended:
            if self.ended[0][0] > now_ns and len(self.ended) <= ENDED_MAX:
                break
            found.append(heappop(self.ended)[1])
        return found

    def free(self, now_ns: int) -> list[tuple[int, str, str]]:
        """What ``keep`` was told of keys that are free now."""
        found: list[tuple[int, str, str]] = []
        while len(found) < LEAVE_MAX and self.keys and self.keys[0][0] <= now_ns:
            found.append(heappop(self.keys))
        return found

    def left(self, id: str, rev: int) -> None:
        """The job's record is not in memory any more."""
        self.horizon = max(self.horizon, id)
        self.rev = max(self.rev, rev)
