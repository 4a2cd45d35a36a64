"""An index of the ledger by job: what happened to the jobs that have left memory.

It is made from committed entries alone, behind the commit, on its own thread, and goes on where it ended;
missing or damaged it is made anew. Nothing is decided by it. A process has one for itself, beside what else
it keeps. Leases that were only renewed are not in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec

from skep.fs.errors import E, FsError
from skep.namespaces.jobs import record
from skep.namespaces.jobs.record import Job, Jobs, number_after
from skep.trace.entry import Entry, entry_decoder, leaf_hash
from skep.trace.rules import Meta

log = logging.getLogger("skep.history")

FILE: Final = "history.sqlite"
VERSION: Final = 1  # of the tables; another is made anew.
BATCH: Final = 1024  # entries of one transaction, and of one read from the ledger.
PENDING_MAX: Final = 4 * BATCH  # entries told and not written yet; beyond it they are read from the ledger.
STOPPED: Final = "the hive has stopped"
FOUND_MAX: Final = 1024  # records made lately and kept, some 2 KiB each.
BUSY_S: Final = 10.0  # for another process that was given the same file.
AGAIN_S: Final = 1.0  # after a write that failed, unless somebody waits for the next.

SCHEMA: Final = """
CREATE TABLE jobs(place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    state TEXT NOT NULL, rev INTEGER NOT NULL, key TEXT);
CREATE INDEX jobs_tenant ON jobs(tenant, place);
CREATE INDEX jobs_state ON jobs(tenant, state, place);
CREATE INDEX jobs_key ON jobs(tenant, key, place) WHERE key IS NOT NULL;
CREATE TABLE entries(place INTEGER, seq INTEGER, PRIMARY KEY(place, seq)) WITHOUT ROWID;
CREATE TABLE reached(one INTEGER PRIMARY KEY CHECK(one = 1), seq INTEGER, leaf BLOB);
"""
# A batch is one JSON array a statement: a statement a row would wait for the interpreter at each.
ADD_JOBS: Final = """INSERT OR IGNORE INTO jobs(place, id, tenant, key, state, rev)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]'), 'queued', 0 FROM json_each(?)"""
ADD_ENTRIES: Final = """INSERT OR IGNORE INTO entries SELECT jobs.place, json_extract(named.value, '$[1]')
    FROM json_each(?) AS named CROSS JOIN jobs ON jobs.id = json_extract(named.value, '$[0]')"""
MOVE_JOBS: Final = """UPDATE jobs SET rev = json_extract(moved.value, '$[1]'),
    state = json_extract(moved.value, '$[2]') FROM json_each(?) AS moved
    WHERE jobs.id = json_extract(moved.value, '$[0]') AND jobs.rev < json_extract(moved.value, '$[1]')"""
REACH: Final = "INSERT OR REPLACE INTO reached VALUES (1, ?, ?)"

FIND: Final = "SELECT place, tenant, state, rev FROM jobs WHERE id = ?"
SEQS: Final = "SELECT seq FROM entries WHERE place = ? ORDER BY seq"
BY_KEY: Final = "SELECT id FROM jobs WHERE tenant = ? AND key = ? ORDER BY place DESC LIMIT 1"
LIST: Final = "SELECT place, id FROM jobs WHERE tenant = ? AND place > ? ORDER BY place LIMIT ?"
LIST_STATE: Final = (
    "SELECT place, id FROM jobs WHERE tenant = ? AND place > ? AND state = ? ORDER BY place LIMIT ?"
)
# A key stands where it was used last.
LIST_KEYS: Final = """SELECT place, key FROM jobs AS this WHERE tenant = ? AND key IS NOT NULL AND place > ?
    AND NOT EXISTS (SELECT 1 FROM jobs AS later
        WHERE later.tenant = this.tenant AND later.key = this.key AND later.place > this.place)
    ORDER BY place LIMIT ?"""

# The state that an event leaves its job in; None: the event says so itself.
STATES: Final[Mapping[str, str | None]] = {
    "job.submitted": "queued", "job.leased": "leased", "job.started": "running", "job.returned": "queued",
    "job.delayed": "delayed", "job.woken": "queued", "job.ended": None,
    "job.fellback": "queued",
}  # fmt: skip
UNNAMED: Final = "job.renewed"  # as often as a job runs long, and nothing of it is left at its end.


class Named(msgspec.Struct, frozen=True):
    """As much of an event as the index needs; which of these an event has, is its type's to say."""

    type: str
    job: Any = ""
    tenant: Any = ""
    key: Any = ""
    state: Any = ""


class Row(NamedTuple):
    """A job as the index has it. ``place``: the job's number; ``rev``: the last entry that names it."""

    place: int
    tenant: str
    state: str
    rev: int


class Found(NamedTuple):
    """A job that was made from its entries again; its outputs by name."""

    job: Job
    outputs: Mapping[str, str]


@dataclass
class _Batch:
    """What some entries, up to ``last``, say of jobs."""

    jobs: list[tuple[int, str, str, str | None]] = field(default_factory=list)  # place, id, tenant, key
    named: list[tuple[str, int]] = field(default_factory=list)  # id, seq
    moved: dict[str, tuple[str, int, str]] = field(default_factory=dict)  # id -> id, rev, state
    place: int = 0
    last: int = 0
    leaf: bytes = b""

    def add(self, seq: int, kind: str, event: Any) -> None:
        job = getattr(event, "job", "")
        if not job or kind == UNNAMED or not isinstance(job, str):
            return
        if kind == "job.submitted":
            self.place = number_after(self.place, seq)
            self.jobs.append((self.place, job, event.tenant, event.key or None))
        self.named.append((job, seq))
        if kind in STATES:
            self.moved[job] = (job, seq, STATES[kind] or event.state)


class _Entry(msgspec.Struct, frozen=True):
    seq: int
    events: list[Named]


_MOVES: Final = {cls.__struct_config__.tag: cls for cls in get_args(record.Event)}
_entries = msgspec.json.Decoder(_Entry)
_plain = entry_decoder(dict)


class History:
    """The index in the file at ``path``. ``read``: the ledger's; ``seq``: its last entry now.

    Made, asked and closed on one event loop, which has its writing done on a thread, a batch at a time."""

    def __init__(self, path: Path, read: Callable[[int, int], list[tuple[int, bytes]]], seq: int) -> None:
        self.path = path
        self.seq = 0  # the last entry that is in it
        self._read = read
        self._last = seq  # the ledger's last
        self._told: list[Entry[Any]] = []  # the entries up to ``_last`` that are not written yet, the latest
        self._closing = False
        self._damaged = False  # it is made anew; ``seq`` is 0 until it has something
        self._doubted = False  # it was made anew for what it said: it is not for the same again
        self._trouble = ""  # why nothing can be written, as far as that was logged
        self._again_s = 0.0  # before this time of the loop nothing is tried, unless somebody waits
        self._writer: sqlite3.Connection | None = None  # the thread's; None: not open
        self._reader: sqlite3.Connection | None = None
        self._writing: asyncio.Task[None] | None = None
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self._found: OrderedDict[str, Found] = OrderedDict()

    # writing

    def moved(self, entries: list[Entry[Any]]) -> None:
        """The ledger has these too."""
        self._last = entries[-1].seq
        if len(self._told) > PENDING_MAX:
            self._told = []
        self._told += entries
        if len(self._told) >= BATCH:
            self.write()

    def write(self) -> None:
        """Have it written what the ledger has, soon; a little later when that has just failed."""
        if asyncio.get_running_loop().time() >= self._again_s:
            self._begin()

    def _begin(self) -> None:
        writes = self._writing is not None and not self._writing.done()
        if self.seq < self._last and not writes and not self._closing:
            self._writing = asyncio.ensure_future(self._write())

    async def wait_reached(self, seq: int) -> None:
        """Return when the entry ``seq`` is in it. Raises FsError(E.IO) when it cannot be written."""
        while self.seq < seq:
            if self._closing:
                raise FsError(E.IO, STOPPED)
            waiting = (seq, asyncio.get_running_loop().create_future())
            self._waiting.add(waiting)
            self._begin()
            try:
                await waiting[1]
            finally:
                self._waiting.discard(waiting)

    async def close(self) -> None:
        """Let the batch that is being written end; the next start goes on there."""
        self._closing = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._tell(FsError(E.IO, STOPPED))
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()

    async def _write(self) -> None:
        while self.seq < self._last and not self._closing:
            try:
                seq = await asyncio.to_thread(self._step())
            except Exception as error:
                # Whatever it was, it is tried again later: what was told is in the ledger.
                self._failed(error)
                return
            if self._damaged:
                continue  # found meanwhile
            if seq and self._trouble:
                self._trouble = ""
                log.warning("%s is written again", self.path)
            self.seq = seq
            self._tell()

    def _failed(self, error: Exception) -> None:
        if _is_damage(error):
            self._spoil(error)
        elif str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("%s: %s", self.path, error)
        self._again_s = asyncio.get_running_loop().time() + AGAIN_S
        self._tell(FsError(E.IO, f"the history of jobs: {error}"))

    def _spoil(self, error: Exception) -> None:
        """Have it made anew."""
        log.warning("%s is made anew: %s", self.path, error)
        self._damaged, self.seq = True, 0

    def _tell(self, failure: FsError | None = None) -> None:
        """Wake those who wait for an entry that is in it, or all when there is a failure."""
        for seq, future in self._waiting:
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            elif seq <= self.seq:
                future.set_result(None)

    def _step(self) -> Callable[[], int]:
        """What the thread does next; it gives the last entry that is in the index then."""
        if self._writer is None or self._damaged:
            return self._open
        if self._told and (done := self.seq + 1 - self._told[0].seq) > 0:
            del self._told[:done]
        if self._told and self._told[0].seq == self.seq + 1:
            return partial(self._write_told, self._told[:BATCH])
        # After a start, and when more was told than is kept.
        until = self._told[0].seq - 1 if self._told else self._last
        return partial(self._write_read, self.seq, min(BATCH, until - self.seq))

    # on the thread

    def _open(self) -> int:
        """Have the file open, laid out and of this ledger; another is taken away first."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
        if self._damaged:
            self._remove()
        try:
            connection, seq = self._checked()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._remove()
            connection, seq = self._checked()
        if seq is None:
            connection.close()
            self._remove()
            connection, seq = self._checked()
        self._damaged = False
        self._writer = connection
        return seq or 0

    def _checked(self) -> tuple[sqlite3.Connection, int | None]:
        """The file and the last entry that it has; None: it is of another ledger or release."""
        connection = _connect(self.path)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and not _tables(connection):
            _lay_out(connection)
        elif version != VERSION or _tables(connection) != _laid_out():
            return connection, None
        reached = connection.execute("SELECT seq, leaf FROM reached").fetchone()
        if reached is None:
            return connection, 0
        there = self._read(reached[0] - 1, 1) if reached[0] <= self._last else []
        return connection, reached[0] if there and leaf_hash(there[0][1]) == reached[1] else None

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)

    def _write_told(self, entries: list[Entry[Any]]) -> int:
        batch = _Batch(last=entries[-1].seq)
        for entry in entries:
            for event in entry.events:
                batch.add(entry.seq, type(event).__struct_config__.tag, event)
        batch.leaf = leaf_hash(self._read(batch.last - 1, 1)[0][1])
        return self._put(batch)

    def _write_read(self, after: int, limit: int) -> int:
        batch = _Batch()
        for seq, body in self._read(after, limit):
            for event in _entries.decode(body).events:
                batch.add(seq, event.type, event)
            batch.last, batch.leaf = seq, leaf_hash(body)
        assert batch.last, "the ledger has entries up to ``_last``"
        return self._put(batch)

    def _put(self, batch: _Batch) -> int:
        assert self._writer is not None, "it is opened first"
        _write(self._writer, batch)
        return batch.last

    # reading

    def find(self, id: str) -> Row | None:
        """The job, when it is in the index."""
        rows = self._ask(FIND, id)
        return Row(*rows[0]) if rows else None

    def job(self, id: str) -> Found | None:
        """The job as its entries make it, when the index has it."""
        if id in self._found:
            self._found.move_to_end(id)
            return self._found[id]
        row = self.find(id)
        if row is None:
            return None
        try:
            found = self._fold(id, row)
        except (LookupError, ValueError) as error:
            raise self._doubt(f"{id}: its entries do not make a job: {error!r}") from error
        if found.job.rev < row.rev or found.job.state != row.state:
            raise self._doubt(f"{id}: it is {found.job.state} by its entries, and {row.state} by the index")
        # One that has ended stays as it is.
        if found.job.state in record.TERMINAL:
            self._found[id] = found
            if len(self._found) > FOUND_MAX:
                self._found.popitem(last=False)
        return found

    def _fold(self, id: str, row: Row) -> Found:
        jobs, outputs = Jobs(), {}
        for (seq,) in self._ask(SEQS, row.place):
            ((_, body),) = self._read(seq - 1, 1)
            entry = _plain.decode(body)
            for event in entry.events:
                if event.get("job") != id:
                    continue
                if event["type"] in STATES:
                    moved = msgspec.convert(event, type=_MOVES[event["type"]])
                    record.fold(jobs, moved, Meta(seq, entry.time, entry.trace))
                elif event["type"] == "artifact.sealed":
                    outputs[event["name"]] = event["sha256"]
        return Found(msgspec.structs.replace(jobs.by_id[id], number=row.place), outputs)

    def _doubt(self, why: str) -> FsError:
        """What it says of a job is not what the ledger does: it was damaged unnoticed."""
        if not self._doubted:
            self._doubted = True
            self._spoil(ValueError(why))
            self.write()
        return FsError(E.IO, f"the history of jobs: {why}")

    def keyed(self, tenant: str, key: str) -> str | None:
        """The tenant's last job under the key."""
        rows = self._ask(BY_KEY, tenant, key)
        return rows[0][0] if rows else None

    def listed(self, tenant: str, after: int, limit: int, state: str = "") -> list[tuple[int, str]]:
        """Place and id of the tenant's next jobs after the place; given ``state``, of those in it."""
        if state:
            return self._ask(LIST_STATE, tenant, after, state, limit)
        return self._ask(LIST, tenant, after, limit)

    def listed_keys(self, tenant: str, after: int, limit: int) -> list[tuple[int, str]]:
        """Place and key of the tenant's next keys after the place: that of the last job under it."""
        return self._ask(LIST_KEYS, tenant, after, limit)

    def _ask(self, sql: str, *args: object) -> list[Any]:
        if not self.seq or self._damaged:
            return []  # there is no file yet
        try:
            if self._reader is None:
                self._reader = _connect(self.path)
            return self._reader.execute(sql, args).fetchall()
        except (sqlite3.Error, OSError) as error:
            if not _is_damage(error):
                raise FsError(E.IO, f"the history of jobs: {error}") from error
            self._spoil(error)
            self.write()
            raise FsError(E.IO, "the history of jobs is made anew") from error


def _write(connection: sqlite3.Connection, batch: _Batch) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, rows in (
            (ADD_JOBS, batch.jobs), (ADD_ENTRIES, batch.named), (MOVE_JOBS, [*batch.moved.values()]),
        ):  # fmt: skip
            if rows:
                connection.execute(sql, (msgspec.json.encode(rows).decode(),))
        connection.execute(REACH, (batch.last, batch.leaf))
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path) -> sqlite3.Connection:
    # As private as the ledger; what SQLite puts beside it is so too.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    # A crash of the machine may cost the last batches, never the order of the file.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _lay_out(connection: sqlite3.Connection) -> None:
    """The tables, in an empty file; all of them or none."""
    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")


def _tables(connection: sqlite3.Connection) -> dict[str, str | None]:
    return dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())


@cache
def _laid_out() -> dict[str, str | None]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _lay_out(connection)
        return _tables(connection)


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
