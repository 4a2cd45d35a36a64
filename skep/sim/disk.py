"""A disk that a ledger is kept on: what is on it stays, whoever dies; what is not, is gone.

It can be full, and it can fail in the middle of a commit, which leaves open whether the entries are on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from skep.sim.loop import PROCESS, Process
from skep.trace.clock import MS, US
from skep.trace.entry import leaf_hash
from skep.trace.ledger import READ_MAX, Ledger, LedgerBusy, LedgerError, LedgerFull
from skep.trace.merkle import Frontier

COMMIT_NS: Final = 100 * US  # from a commit's beginning to the entries being on the disk, at least
ANSWER_NS: Final = 50 * US  # from there to its caller hearing of it, at least
JITTER_NS: Final = 2 * MS


class Disk:
    """The entries that are on it, and what will go wrong."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.snapshot: tuple[bytes, int] | None = None  # the state of so many of them; None: there is none
        self.full = False
        self.failing: str = ""  # the next commit raises: "lost" or "kept" says what becomes of its entries
        self.user: SimLedger | None = None  # whose turn it is


class SimLedger:
    """A Ledger on ``disk``, of the process that opens it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._frontier = Frontier()
        self._appended: list[bytes] | None = None
        PROCESS.get().on_end.append(self.rollback)

    @property
    def size(self) -> int:
        return self._frontier.size

    @property
    def root(self) -> bytes:
        return self._frontier.root()

    def begin(self) -> None:
        if self.disk.user is not None:
            raise LedgerBusy("begin: another process has its turn")
        self.disk.user = self

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        while self.size < len(self.disk.bodies):
            body = self.disk.bodies[self.size]
            self._frontier.append(leaf_hash(body))
            if self.size > known:
                yield self.size, body

    def append(self, bodies: Sequence[bytes]) -> None:
        if self.disk.full:
            raise LedgerFull(f"entry {self.size + 1}: no space")
        self._appended = list(bodies)

    def commit(self) -> None:
        assert self._appended is not None
        assert self.disk.user is self
        failing, self.disk.failing = self.disk.failing, ""
        if self.disk.full:
            raise LedgerFull(f"entry {self.size + 1}: no space")
        if failing != "lost":
            self.disk.bodies += self._appended
        if failing:
            raise LedgerError(f"entry {self.size + 1}: disk I/O error")
        for body in self._appended:
            self._frontier.append(leaf_hash(body))
        self._appended, self.disk.user = None, None

    def rollback(self) -> None:
        self._appended = None
        if self.disk.user is self:
            self.disk.user = None

    def changed(self) -> bool:
        return self.size < len(self.disk.bodies)

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, bytes]]:
        last = min(after_seq + limit, self.size)
        return [(seq, self.disk.bodies[seq - 1]) for seq in range(after_seq + 1, last + 1)]

    def committed_root(self, size: int) -> bytes | None:
        if not 0 < size <= len(self.disk.bodies):
            return None
        frontier = Frontier()
        for body in self.disk.bodies[:size]:
            frontier.append(leaf_hash(body))
        return frontier.root()

    def leaves(self, first: int, count: int) -> bytes:
        last = min(first + count, self.size)
        return b"".join(map(leaf_hash, self.disk.bodies[first:last]))

    def close(self) -> None:
        self.rollback()


class SimCommits:
    """A turn's commits, each in two moments: on the disk, and known to be."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.process: Process = PROCESS.get()

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        self._later(COMMIT_NS, lambda: self._commit(done))

    def _commit(self, done: Callable[[Exception | None], None]) -> None:
        failure: Exception | None = None
        try:
            self.ledger.commit()
        except LedgerError as error:
            failure = error
        self._later(ANSWER_NS, lambda: done(failure))

    def _later(self, least_ns: int, act: Callable[[], None]) -> None:
        wait_ns = least_ns + int(self.process.chance.random() * JITTER_NS)
        self.process.loop.call_in(wait_ns, act, context=self.process.context)

    def end(self) -> None:
        """Nothing to let go of."""

    def wait_ended(self) -> None:
        """The loop cannot be waited for here; ``close`` has waited for the commit."""
