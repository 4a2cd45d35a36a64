"""A replay shared by processes: each folds what is before its share, which costs an eighth of deciding it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from skep.trace.ledger import LedgerTampered, open_ledger
from skep.validator.replay.policies import rules_under
from skep.validator.replay.replay import Replay
from skep.validator.replay.report import Report, report
from skep.validator.replay.snapshots import Beside
from skep.validator.verify.found import Finding

DECIDING: Final = 8  # times what folding costs
ROUNDS: Final = 60  # of halving an interval that no ledger's length is above


class Asked(NamedTuple):
    """What ``skep replay`` was asked, as far as a process is to know it."""

    ledger: Path
    policy: Path | None
    bundle: str | None
    to_end: bool
    every: int | None
    snapshots: bool


def replayed(asked: Asked, first: int, last: int, jobs: int) -> Report:
    """The report on the entries from ``first`` to ``last``, which are there, by so many processes.

    Raises LedgerError, Unfoldable, BundleError."""
    parts = shares(first, last, jobs)
    # Not by a fork: what is open here, is not theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(parts), mp_context=context) as processes:
        coming = [processes.submit(_share, asked, *part) for part in parts]
        found = coming[0].result()
        for each in coming[1:]:
            if found.differ and not asked.to_end:
                processes.shutdown(wait=False, cancel_futures=True)
                break
            found.join(each.result())
    return found


def shares(first: int, last: int, jobs: int) -> Sequence[tuple[int, int]]:
    """From and to of each part: the later it begins, the more is to be folded and the shorter it is."""
    least, most = 0, DECIDING * last
    for _ in range(ROUNDS):
        middle = (least + most) // 2
        ends = list(_ends(first, last, jobs, middle))
        least, most = (least, middle) if ends[-1] >= last else (middle, most)
    begin, parts = first, []
    for end in _ends(first, last, jobs, most):
        if begin <= min(end, last):
            parts.append((begin, min(end, last)))
            begin = end + 1
    return parts


def _ends(first: int, last: int, jobs: int, cost: int) -> Iterator[int]:
    """Where each of ``jobs`` parts ends that costs as much."""
    begin = first
    for _ in range(jobs):
        end = begin + max((cost - begin) // DECIDING, 0)
        yield min(end, last)
        begin = end + 1


def _share(asked: Asked, first: int, last: int) -> Report:
    with closing(open_ledger(str(asked.ledger))) as ledger:
        beside = Beside(asked.ledger, ledger)
        try:
            begun = beside.before(first) if asked.snapshots else None
        except Finding as error:  # which does not go from process to process
            raise LedgerTampered(str(error)) from error
        replay = Replay(rules_under(asked.policy, asked.bundle), begun)
        return report(ledger, replay, first, last, asked.to_end, asked.every)
