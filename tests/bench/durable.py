"""The floor of a durable command: what SQLite alone commits, WAL, synchronous=FULL."""

import sqlite3
import time
from pathlib import Path

PAYLOAD = b"x" * 200  # about what a ledger entry holds
COMMITS_MAX = 1_000_000


def commits(directory: Path, seconds: float, rows: int) -> list[int]:
    """Commit `rows` rows at a time for `seconds`; how long each commit took, in ns."""
    path = directory / "floor.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute("create table if not exists entry (seq integer primary key, line blob)")
        return _commit_for(db, seconds, rows)
    finally:
        db.close()


def _commit_for(db: sqlite3.Connection, seconds: float, rows: int) -> list[int]:
    took: list[int] = []
    batch = [(PAYLOAD,)] * rows
    start = last = time.perf_counter_ns()
    while last - start < seconds * 1e9 and len(took) < COMMITS_MAX:
        db.execute("begin immediate")
        db.executemany("insert into entry (line) values (?)", batch)
        db.execute("commit")
        now = time.perf_counter_ns()
        took.append(now - last)
        last = now
    return took
