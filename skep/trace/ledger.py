"""The ledger: entries in one order, on disk before anybody is told.

This is the protocol every engine keeps; ``check_ledger`` in the tests is its meaning. Whoever can
rewrite the whole file can also recompute its hashes: against that, and against an old copy put back,
only roots kept elsewhere help (the signed checkpoints)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

READ_MAX = 1024  # entries of one read: 64 MiB at the most.


class LedgerError(Exception):
    """The ledger cannot be used; the role stops and starts again from it."""


class LedgerFull(LedgerError):
    """No space: nothing of this turn was kept, what stood before stands."""


class LedgerBusy(LedgerError):
    """Another process has its turn."""


class LedgerTampered(LedgerError):
    """The ledger does not say what was once written to it; ``where`` is the first place found."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


class Ledger(Protocol):
    """An open ledger. Calls come one at a time, except ``read``, which may come during ``commit``.

    A turn is ``begin``, ``tail`` to its end, then ``append`` and ``commit``, or ``rollback``."""

    @property
    def size(self) -> int:
        """Number of the last entry that ``tail`` gave or ``commit`` wrote; 0 for none."""

    @property
    def root(self) -> bytes:
        """RFC 6962 tree hash of the first ``size`` entries."""

    def begin(self) -> None:
        """Take the exclusive right to append. Never waits: raises LedgerBusy instead, or LedgerFull."""

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        """(seq, body) of every committed entry after ``size``, verified; ``size`` moves with it, or ahead.

        Inside a turn or outside one. The first tail of a fresh Ledger is the whole ledger. Entries up to
        ``known`` are verified as the others and not given. Raises LedgerTampered."""

    def append(self, bodies: Sequence[bytes]) -> None:
        """Write the entries after ``size``, once a turn. Raises LedgerFull."""

    def commit(self) -> None:
        """Return when what was appended is on disk; may be called on another thread than the rest.

        Raises LedgerFull (nothing was kept); any other LedgerError leaves open whether it was."""

    def rollback(self) -> None:
        """Forget the turn, if one is open."""

    def changed(self) -> bool:
        """Whether another process may have appended since the last tail. Cheap."""

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, bytes]]:
        """(seq, body) of up to ``limit`` entries after ``after_seq``, none beyond ``size``."""

    def committed_root(self, size: int) -> bytes | None:
        """The root that was written by the commit that ended at entry ``size``; None: none ended there. What
        ``tail`` has not come to yet, is not verified."""

    def leaves(self, first: int, count: int) -> bytes:
        """Leaf hashes, 32 bytes each: of ``count`` entries after entry ``first``, none beyond ``size``."""

    def close(self) -> None:
        """Let the file go; a turn that is open is forgotten."""


def open_ledger(url: str) -> Ledger:
    """The ledger at ``sqlite:///absolute/path``, a bare path or ``:memory:``; created when missing.

    Nothing but its head is read yet: the first ``tail`` verifies everything."""
    # The engines import this module's errors.
    from skep.trace.sqlite import SqliteLedger

    scheme, separator, rest = url.partition("://")
    if not separator:
        return SqliteLedger(url)
    if scheme != "sqlite":
        raise LedgerError(f"ledger {url!r}: no engine for {scheme}")
    return SqliteLedger(rest)
