"""The ledger in one SQLite file, shared by the processes of one machine.

WAL with synchronous=FULL: COMMIT returns when the frames are fsync'ed, readers never wait, and a
torn end is dropped by SQLite when it next opens the file. A database in memory is the same engine
without the file, for tests.
Sources: sqlite.org/wal.html, sqlite.org/rescode.html."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from skep.native.trace import hashing
from skep.trace.entry import leaf_hash
from skep.trace.ledger import READ_MAX, LedgerBusy, LedgerError, LedgerFull, LedgerTampered
from skep.trace.merkle import EMPTY_ROOT, HASH_SIZE, Frontier
from skep.trace.rows import ROWS_MAX, SELECT, Edge, follow, skip
from skep.trace.whole import sync

APPLICATION_ID = 0x736B6570  # "skep"
SCHEMA_VERSION = 1
# ``since`` chains the commits: one that is missing or put in between shows.
SCHEMA = {
    "entries": "CREATE TABLE entries(seq INTEGER PRIMARY KEY, body BLOB NOT NULL, leaf BLOB NOT NULL)",
    "commits": "CREATE TABLE commits(size INTEGER PRIMARY KEY, since INTEGER NOT NULL, root BLOB NOT NULL)",
}
SEQ_MIN, SEQ_MAX = -(2**63), 2**63 - 1  # SQLite's row numbers.
SKIP_MIN = 4096  # entries that are known: for fewer no file is opened and no thread started.
OPEN_WAIT_S = 10.0  # for another process that recovers the WAL, or removes it as the last to close.

_FULL = {
    sqlite3.SQLITE_FULL,
    # The WAL's index is a file too, and its growth is not reported as SQLITE_FULL.
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """SQLite's errors as the ledger's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _FULL:
            raise LedgerFull(f"{where}: no space") from error
        if code & 0xFF in _BUSY:
            raise LedgerBusy(f"{where}: another process has its turn") from error
        if code & 0xFF in _BROKEN:
            raise LedgerTampered(f"{where}: {error}") from error
        raise LedgerError(f"{where}: {error}") from error


class SqliteLedger:
    """A ledger in the file at ``path``, created with mode 0600; ``:memory:`` for none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._frontier = Frontier()
        self._next: Frontier | None = None  # the tree after this turn's append; None: nothing appended.
        self._root = self._frontier.root()
        self._next_root = b""
        self._data_version = -1
        with _translated(path):
            self._writer = _connect(path)
            # Reads come while the writer's COMMIT runs on another thread. A database in memory is seen
            # by one connection only; its COMMIT takes no time.
            self._reader = self._writer if path == ":memory:" else _connect(path)

    @property
    def size(self) -> int:
        return self._frontier.size

    @property
    def root(self) -> bytes:
        return self._root

    def begin(self) -> None:
        with _translated("begin"):
            self._writer.execute("BEGIN IMMEDIATE")

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        alone = not self._writer.in_transaction
        try:
            with _translated(f"after entry {self.size}"):
                if alone:
                    self._writer.execute("BEGIN")
                (self._data_version,) = self._writer.execute("PRAGMA data_version").fetchone()
                last = self._writer.execute("SELECT size, root FROM commits ORDER BY size DESC LIMIT 1")
                size, root = last.fetchone() or (0, EMPTY_ROOT)
                if size < self.size:
                    raise LedgerTampered(f"entry {size + 1}: taken away while the ledger was open")
                if size == self.size and root != self._root:
                    raise LedgerTampered(f"entry {size}: tree root changed while the ledger was open")
                if size > self.size or size == 0:
                    yield from self._verified(size, known)
        finally:
            if alone and self._writer.in_transaction:
                self._writer.execute("COMMIT")

    def _verified(self, size_last: int, known: int) -> Iterator[tuple[int, bytes]]:
        """Every entry after ``size``, those up to ``known`` are not given; the last commit ends at
        ``size_last``."""
        edge = Edge(self._frontier, self.size, self._root)
        # Rows before the first are somebody else's too.
        for (size,) in self._writer.execute("SELECT size FROM commits WHERE size < 1"):
            raise LedgerTampered(f"entry {size}: a commit ends there, before entry 1")
        if known - self.size >= SKIP_MIN and self.path != ":memory:" and not self._before_first():
            edge = skip(Path(self.path), edge, min(known, size_last))
            self._frontier, self._root = edge.frontier, edge.root
        found = self._writer.execute(SELECT, (self.size or SEQ_MIN, SEQ_MAX))
        while rows := found.fetchmany(ROWS_MAX):
            edge = follow(edge, rows) or _follow_each(edge, rows)
            self._frontier, self._root = edge.frontier, edge.root
            yield from ((row[0], row[1]) for row in rows if row[0] > known)
        if edge.frontier.size != edge.committed:
            raise LedgerTampered(f"entry {edge.committed + 1}: no commit covers it")
        if size_last != edge.committed:
            first = min(size_last, edge.committed) + 1
            raise LedgerTampered(f"entry {first}: missing, its commit ends at {size_last}")

    def _before_first(self) -> bool:
        return bool(self._writer.execute("SELECT 1 FROM entries WHERE seq < 1").fetchone())

    def append(self, bodies: Sequence[bytes]) -> None:
        assert self._next is None
        assert bodies
        frontier = self._frontier.copy()
        leaves = hashing.leaves(bodies)
        frontier.extend(leaves)
        root = frontier.root()
        each = (leaves[i : i + HASH_SIZE] for i in range(0, len(leaves), HASH_SIZE))
        rows = zip(range(self.size + 1, frontier.size + 1), bodies, each, strict=True)
        with _translated(f"entry {self.size + 1}"):
            self._writer.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
            self._writer.execute("INSERT INTO commits VALUES (?, ?, ?)", (frontier.size, self.size, root))
        self._next, self._next_root = frontier, root

    def commit(self) -> None:
        assert self._next is not None
        with _translated(f"entry {self.size + 1}"):
            self._writer.execute("COMMIT")
        self._frontier, self._next, self._root = self._next, None, self._next_root

    def rollback(self) -> None:
        self._next = None
        # After some errors SQLite has rolled back by itself.
        if self._writer.in_transaction:
            with _translated("rollback"):
                self._writer.execute("ROLLBACK")

    def changed(self) -> bool:
        with _translated("data_version"):
            (version,) = self._writer.execute("PRAGMA data_version").fetchone()
        return bool(version != self._data_version)

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, bytes]]:
        with _translated(f"after entry {after_seq}"):
            return self._reader.execute(
                "SELECT seq, body FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after_seq, self.size, limit),
            ).fetchall()

    def committed_root(self, size: int) -> bytes | None:
        with _translated(f"entry {size}"):
            found = self._reader.execute("SELECT root FROM commits WHERE size = ?", (size,)).fetchone()
        return found[0] if found else None

    def leaves(self, first: int, count: int) -> bytes:
        with _translated(f"after entry {first}"):
            rows = self._reader.execute(
                "SELECT leaf FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq",
                (first, min(first + count, self.size)),
            )
            return b"".join(leaf for (leaf,) in rows)

    def close(self) -> None:
        self.rollback()
        self._reader.close()
        self._writer.close()


def _follow_each(edge: Edge, rows: Sequence[tuple[Any, ...]]) -> Edge:
    """As ``follow``, one by one; raises LedgerTampered at the first row that does not."""
    frontier, committed, tree = edge.frontier.copy(), edge.committed, edge.root
    for seq, body, leaf, since, root in rows:
        expected = frontier.size + 1
        if seq != expected:
            raise LedgerTampered(f"entry {expected}: missing, entry {seq} is in its place")
        if type(body) is not bytes or leaf != leaf_hash(body):
            raise LedgerTampered(f"entry {seq}: leaf hash is not that of its body")
        frontier.append(leaf)
        if root is not None:
            if since != committed:
                raise LedgerTampered(f"entry {seq}: its commit begins after {since}, expected {committed}")
            tree = frontier.root()
            if root != tree:
                raise LedgerTampered(f"entry {seq}: tree root is not that of its commit")
            committed = seq
    return Edge(frontier, committed, tree)


def _connect(path: str) -> sqlite3.Connection:
    """A connection to the ledger at ``path``, set up and checked; makes the ledger where there is none."""
    if path != ":memory:" and not os.path.lexists(path):
        _create(Path(path))
    connection = sqlite3.connect(path, timeout=OPEN_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        if path == ":memory:":
            _lay_out(connection)
        else:
            _check(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        # From here on nobody waits inside SQLite: the turn waits, on the event loop.
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make an empty ledger that survives a crash of the machine, for its owner only.

    It is made under another name: processes that do this at once end with one ledger, and nobody
    ever sees half of one."""
    try:
        fd, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    os.close(fd)
    try:
        with closing(sqlite3.connect(made, isolation_level=None)) as connection:
            _lay_out(connection)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.unlink(made)
    sync(path.parent)


def _lay_out(connection: sqlite3.Connection) -> None:
    """The tables, in an empty database."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for sql in SCHEMA.values():
        connection.execute(sql)
    # Last, because a database in WAL mode is not fsync'ed at each commit unless told so.
    connection.execute("PRAGMA journal_mode = WAL")


def _check(connection: sqlite3.Connection, path: str) -> None:
    """It is a ledger of ours: exactly our tables and nothing beside them, where WAL works."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    found = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    if application_id != APPLICATION_ID:
        raise LedgerError(f"{path}: not a ledger")
    if version != SCHEMA_VERSION:
        raise LedgerError(f"{path}: a ledger of version {version}, expected {SCHEMA_VERSION}")
    if found != SCHEMA:
        raise LedgerTampered("schema: its tables are not a ledger's")
    if mode != "wal":
        raise LedgerError(f"{path}: not in WAL mode (on a file system that cannot share memory it never is)")
