"""What a replay of a whole ledger, or of a part of it, found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from skep.validator.replay.policies import ESCALATED, OtherPolicy, Verdict
from skep.validator.replay.replay import Difference, Replay
from skep.validator.replay.snapshots import Checked, Checks

SHOWN_MAX: Final = 1000  # of what was found; the rest is counted.


class Report(msgspec.Struct):
    """``first`` and ``last``: the entries that were decided; ``digest`` is the state's after the last.

    ``declared``: how many differ by each declared change, which are no part of ``differ``. The numbers of
    lines that another policy would have escalated and relaxed are None where none was asked about."""

    first: int
    last: int = 0
    digest: str = ""
    differ: int = 0
    declared: dict[str, int] = {}
    differences: list[Difference] = []
    digests: dict[int, str] = {}  # by entry
    begun: int = 0  # the last entry of the snapshot that it began from; 0: it began at the first entry
    snapshots: list[Checked] = []  # that were held against the state
    escalated: int | None = None
    relaxed: int | None = None
    verdicts: list[Verdict] = []

    @property
    def same(self) -> bool:
        wrong = any(each.wrong for each in self.snapshots)
        return not (self.differ or self.escalated or self.relaxed or wrong)

    def add(self, found: Difference) -> None:
        if found.declared:
            self.declared[found.declared] = self.declared.get(found.declared, 0) + 1
        else:
            self.differ += 1
        if len(self.differences) < SHOWN_MAX:
            self.differences.append(found)

    def join(self, after: Report) -> None:
        """Take in what was found of the entries behind these."""
        self.last, self.digest = after.last, after.digest
        self.differ += after.differ
        for name, count in after.declared.items():
            self.declared[name] = self.declared.get(name, 0) + count
        self.differences = (self.differences + after.differences)[:SHOWN_MAX]
        self.verdicts = (self.verdicts + after.verdicts)[:SHOWN_MAX]
        self.digests |= after.digests
        if self.escalated is not None and self.relaxed is not None:
            self.escalated += after.escalated or 0
            self.relaxed += after.relaxed or 0

    def judge(self, verdict: Verdict) -> None:
        if verdict.verdict == ESCALATED:
            self.escalated = (self.escalated or 0) + 1
        else:
            self.relaxed = (self.relaxed or 0) + 1
        if len(self.verdicts) < SHOWN_MAX:
            self.verdicts.append(verdict)


class Tail(Protocol):
    """A ledger, as much as is asked of it here; or what was read of one elsewhere."""

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        """(seq, body) of every entry after ``known``."""


def report(
    ledger: Tail,
    replay: Replay,
    first: int = 1,
    last: int | None = None,
    to_end: bool = False,
    every: int | None = None,
    checks: Checks | None = None,
) -> Report:
    """Decide the entries from ``first`` to ``last`` (None: the ledger's) again. Unless it goes ``to_end``, it
    ends at the first that differs by no declared change. ``every``: so often the state's digest is taken.
    ``checks``: the snapshots that are held against it on the way.

    Raises LedgerError and Unfoldable."""
    found = Report(first, begun=replay.seq)
    other = replay.rules if isinstance(replay.rules, OtherPolicy) else None
    if other is not None:
        found.escalated = found.relaxed = 0
    for seq, body in ledger.tail(replay.seq):
        entry = replay.decode(seq, body)
        if seq < first:
            replay.fold(entry)
            if checks is not None:
                checks.hold(seq, replay.state)
            continue
        difference = replay.judge(entry, body)
        if checks is not None:
            checks.hold(seq, replay.state)
        if difference is not None:
            found.add(difference)
        if other is not None and (verdict := other.verdict(entry)) is not None:
            found.judge(verdict)
        if every is not None and seq % every == 0:
            found.digests[seq] = replay.digest()
        if seq == last or (found.differ and not to_end):
            break
    found.last, found.digest = replay.seq, replay.digest()
    if checks is not None:
        found.snapshots = checks.found
    touched = replay.touched(found.digest)
    if touched is not None:
        found.add(touched)
    return found
