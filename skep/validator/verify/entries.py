"""The entries of a log that was verified, read once more to be replayed: who serves them could serve others
the second time."""

from __future__ import annotations

from collections.abc import Iterator

from skep.trace.checkpoint import Checkpoint
from skep.trace.entry import leaf_hash
from skep.trace.merkle import Frontier
from skep.validator.verify.found import Finding, Kind
from skep.validator.verify.sources import Source


class Entries:
    """The entries under the head of a source. Who reads them calls ``finish`` before he believes them."""

    def __init__(self, source: Source) -> None:
        self.head = source.head
        self._rows = source.rows()
        self._frontier = Frontier()

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        """(seq, body) of each after ``known``. Raises Finding."""
        for row in self._rows:
            self._frontier.append(leaf_hash(row.body))
            if row.seq > known:
                yield row.seq, row.body

    def finish(self) -> None:
        """Read what was not; raises Finding when they are not those that were verified."""
        for _ in self.tail():
            pass
        if Checkpoint(self.head.origin, self._frontier.size, self._frontier.root()) != self.head:
            raise Finding(Kind.FORKED, 0, "the entries are others than those that were verified just now")
