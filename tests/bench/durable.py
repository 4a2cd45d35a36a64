"""The floor of a durable command: what SQLite alone commits, WAL, synchronous=FULL."""

import sqlite3
import time
from pathlib import Path

from skep.native.load import Load

PAYLOAD = b"x" * 200  # about what a ledger entry holds
# Enough to fill the WAL once. A commit that overwrites it takes half the time of one that extends it, and a
# ledger that has run for a second overwrites.
WARM_UP = 1000


def commits(directory: Path, seconds: float, rows: int) -> Load:
    """Commit `rows` rows at a time for `seconds`: an op is a row, the latency a commit's."""
    db = sqlite3.connect(directory / "floor.sqlite", isolation_level=None)
    try:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute("create table if not exists entry (seq integer primary key, line blob)")
        for _ in range(WARM_UP):
            _commit(db, 1)
        return _measured(db, seconds, rows)
    finally:
        db.close()


def _commit(db: sqlite3.Connection, rows: int) -> None:
    db.execute("begin immediate")
    db.executemany("insert into entry (line) values (?)", [(PAYLOAD,)] * rows)
    db.execute("commit")


def _measured(db: sqlite3.Connection, seconds: float, rows: int) -> Load:
    took: list[int] = []
    start = last = time.perf_counter_ns()
    while last - start < seconds * 1e9:
        _commit(db, rows)
        now = time.perf_counter_ns()
        took.append(now - last)
        last = now
    took.sort()
    return Load(
        ops=len(took) * rows,
        bytes=0,
        seconds=(last - start) / 1e9,
        msize=0,
        count=0,
        p50_ns=took[len(took) // 2],
        p99_ns=took[len(took) * 99 // 100],
        errors=0,
        error="",
        error_errno=0,
        stalled=False,
        serial=0,
    )
