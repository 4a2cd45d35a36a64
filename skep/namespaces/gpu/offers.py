"""How often what annexes offer is written down: some changes at once, then one in ten seconds, and always the
last.

A heartbeat is no command, and each change is an entry of the ledger: who says something else all the time
must not fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from skep.fs.limits import Bucket
from skep.namespaces.gpu.beat import Beat
from skep.namespaces.gpu.record import Annexes
from skep.namespaces.gpu.said import Said, offer, path_of

BURST: Final = 16  # changes at once: each device of an annex may fail by itself
RATE: Final = 0.1  # changes a second after that: 16 KiB each, if it has very much to say


class Offers:
    """``annexes``: what is recorded; ``now``: ns of a clock that only goes on."""

    def __init__(self, annexes: Callable[[], Annexes], now: Callable[[], int]) -> None:
        self._annexes = annexes
        self._now = now
        self._buckets: dict[str, Bucket] = {}
        self._late: dict[str, Beat] = {}  # what is to be written down yet

    def heard(self, annex: str, beat: Beat) -> str:
        """The line to say of it now; "": nothing is new, or it is said later."""
        self._late.pop(annex, None)
        line = offer(self._annexes().by_id.get(annex), beat)
        now_ns = self._now()
        if line and not self._buckets.setdefault(annex, Bucket(RATE, BURST, now_ns)).take(1, now_ns):
            self._late[annex] = beat
            return ""
        return line

    def due(self) -> Iterator[Said]:
        """What is said now that was heard earlier."""
        for annex, beat in list(self._late.items()):
            if line := self.heard(annex, beat):
                yield path_of(annex), line, ""

    def forget(self, annex: str) -> None:
        """The node is no more."""
        self._buckets.pop(annex, None)
        self._late.pop(annex, None)
