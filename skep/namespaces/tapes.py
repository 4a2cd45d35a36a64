"""Recordings as they are made: who is recorded, files under <hive>/log/trace/sessions, and their end.

Who is to be, log/recordings.py says; what is kept of a message, fs/recorder.py. Messages are written some
tenths of a second after they were seen, and are on disk then; a hive that is killed loses those of that time,
and its files end without an end. A file has at most SIZE_MAX bytes; when all have TOTAL_MAX, or there are
FILES_MAX, those that ended first go.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from skep.fs import ctl
from skep.fs.conversation import Conversation
from skep.fs.errors import FsError
from skep.fs.ninept import FIDS_TOLD_MAX, Header, NineptError, read
from skep.fs.recorder import SIZE_MAX, Recorder
from skep.fs.session import Fid
from skep.namespaces.log.recordings import Ordered, Orders
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.sessions.core import Session, Sessions
from skep.trace.clock import Clock

log = logging.getLogger("skep.recordings")
PATH: Final = "/log/trace"  # where the hive says what became of a recording
SUFFIX: Final = ".9pt"
UNSAID_MAX: Final = 4096  # lines that wait while a disk is full; of what comes then, its file alone tells
FLUSH_S: Final = 0.2  # between two writes: what a crash loses, but for the disk's own time
TAPES_MAX: Final = 16  # at a time: they cost memory, and the disk
FILES_MAX: Final = 256
TOTAL_MAX: Final = 2 << 30  # bytes of all files: twice what those of a time can have
AGAIN_MAX: Final = 1000  # recordings of one session
_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Tape:
    """One recording that is being made."""

    def __init__(self, session: Session, conversation: Conversation, recorder: Recorder) -> None:
        self.session = session
        self.conversation = conversation
        self.recorder = recorder
        self.since_ns = recorder.now_ns()
        self.path: Path | None = None  # None: there is no file yet
        self._fd = -1
        self.size = 0  # bytes of the file that are good

    # Those below block.

    def write(self, data: bytes) -> None:
        """Have it on disk, or nothing of it. Raises OSError."""
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self._fd, data[at:], self.size + at)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def create(self, folder: Path) -> None:
        """Make the file: a new one each time. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for n in range(1, AGAIN_MAX):
            path = folder / f"{self.session.id}{f'.{n}' if n > 1 else ''}{SUFFIX}"
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            self.path = path
            return
        raise OSError(errno.EDQUOT, "recordings of one session", str(self.session.id))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.path is not None and not self.size:
            self.path.unlink(missing_ok=True)
            self.path = None


class Made(NamedTuple):
    """A recording's file."""

    path: Path
    tenant: str
    size: int
    mtime_ns: int


class Tapes:
    """The recordings of one hive. ``say`` writes one of the hive's own lines for a tenant; raises FsError."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        release: str,
        sessions: Sessions,
        seq: Callable[[], int],
        orders: Callable[[], Orders],
        say: Callable[[str, str, str], Awaitable[None]],
        size_max: int = SIZE_MAX,
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.release = release
        self.sessions = sessions
        self.seq = seq
        self.orders = orders
        self.size_max = size_max
        self.tree = ""  # what is served, as the header has it
        self.tapes: dict[str, Tape] = {}  # by session
        self._say = say
        self._unsaid: list[tuple[str, str]] = []  # lines and their tenants that are to be written down
        self._delayed = ""  # the line that could not be, and that was logged
        self._tenants: dict[str, str] = {}  # of the files that were looked at, by name
        self._timer: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        sessions.on_begin.append(self._begun)
        sessions.on_end.append(self._ended)

    # who is recorded

    def greet(self, conversation: Conversation) -> None:
        """A connection has been made: whose it is, is not known yet."""
        if self.orders().principals:
            conversation.session.recorder = self._recorder()

    def _recorder(self) -> Recorder:
        return Recorder(self.clock.now_ns, self.seq, self._stir, self.size_max)

    def _begun(self, session: Session) -> None:
        """The session has attached."""
        conversation = session.conversation
        if conversation is None:
            return
        early = conversation.session.recorder
        caller = session.caller
        if early is not None and early.header is not None:
            # What is said in another tenant is no part of a recording.
            if early.header.tenant != caller.tenant:
                early.stop("elsewhere")
        elif self.orders().reach(caller.principal, caller.tenant):
            self._begin(session, conversation, early)
        elif early is not None:
            conversation.session.recorder = None

    def _ended(self, session: Session) -> None:
        tape = self.tapes.get(session.id)
        if tape is not None:
            tape.recorder.stop("closed")
        elif session.id in self.orders().sessions:
            self._tell(session.id, session.caller.tenant, "closed")

    def moved(self, event: Ordered) -> None:
        """An order has been written down."""
        if not event.session:
            return
        session = self.sessions.by_id.get(event.session)
        if session is None or not event.reaches(session.caller.tenant):
            self._tell(event.session, event.tenant, "missing")
        elif not event.on:
            tape = self.tapes.get(session.id)
            if tape is not None:
                tape.recorder.stop("off")
        elif session.id not in self.tapes:
            self._order(session, event.tenant)

    def _order(self, session: Session, tenant: str) -> None:
        conversation = session.conversation
        if conversation is None or self._is_shared(session, conversation):
            self._tell(session.id, tenant, "elsewhere")
        elif conversation.session.recorder is not None and conversation.session.recorder.header is not None:
            self._tell(session.id, tenant, "shared")
        else:
            self._begin(session, conversation, None)

    def _is_shared(self, session: Session, conversation: Conversation) -> bool:
        """Whether what is said in another tenant comes the same way."""
        tenants = {s.caller.tenant for s in self.sessions.by_id.values() if s.conversation is conversation}
        return tenants != {session.caller.tenant}

    def _begin(self, session: Session, conversation: Conversation, early: Recorder | None) -> None:
        if len(self.tapes) >= TAPES_MAX:
            conversation.session.recorder = None
            self._tell(session.id, session.caller.tenant, "many")
            return
        recorder = early if early is not None and not early.why else self._recorder()
        conversation.session.record(recorder)
        self.tapes[session.id] = Tape(session, conversation, recorder)
        recorder.begin(self._header(session, conversation))

    def _header(self, session: Session, conversation: Conversation) -> Header:
        caller, nine_p = session.caller, conversation.session
        known = list(nine_p.fids.items())[:FIDS_TOLD_MAX]
        return Header(
            release=self.release,
            dialect="" if nine_p.dialect is None else nine_p.dialect.value,
            msize=nine_p.msize,
            session=session.id,
            principal=caller.principal,
            role=caller.role,
            node=caller.node,
            tenant=caller.tenant,
            aname=session.aname,
            tree=sha256(f"{self.tree}{session.ns}".encode()).hexdigest(),
            seq=self.seq(),
            time=self.clock.now_ns(),
            fids=tuple((number, fid.chan.path, _mode(fid)) for number, fid in known if fid.kind == "file"),
        )

    # writing

    def _stir(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self.flush())
        else:
            self._stir()

    async def flush(self) -> None:
        """Have on disk what was seen, and say which recordings have ended. What cannot be said stays for the
        next time."""
        async with self._writing:
            for id, tape in list(self.tapes.items()):
                if tape.recorder.pending and await self._write(tape):
                    self._finish(id, tape)
            await self._tell_all()

    async def _write(self, tape: Tape) -> bool:
        """Whether that was all."""
        recorder = tape.recorder
        ends = bool(recorder.why)
        if ends:
            tape.conversation.session.recorder = None
        taken = recorder.take()
        try:
            if tape.path is None:
                await asyncio.to_thread(self._create, tape)
            await asyncio.to_thread(tape.write, taken.data + (recorder.end() if ends else b""))
        except OSError as error:
            log.warning("recording of %s: %s", tape.session.id, error)
            tape.conversation.session.recorder = None
            recorder.failed(taken, "space" if error.errno in _SPACE else "disk")
            await self._write_end(tape)
            return True
        return ends

    async def _write_end(self, tape: Tape) -> None:
        """The end of a recording whose messages could not be written, where there is room for that."""
        if tape.path is None:
            return
        try:
            await asyncio.to_thread(tape.write, tape.recorder.end())
        except OSError as error:
            log.warning("recording of %s: it has no end: %s", tape.session.id, error)

    def _create(self, tape: Tape) -> None:
        self._make_room()
        tape.create(self.folder)

    def _make_room(self) -> None:
        """Remove the recordings that ended first, until there is room for one more."""
        busy = {tape.path for tape in self.tapes.values()}
        files = sorted(self.made(), key=lambda made: made.mtime_ns)
        size, count = sum(made.size for made in files), len(files)
        for made in files:
            if size + self.size_max <= TOTAL_MAX and count < FILES_MAX:
                break
            if made.path not in busy:
                made.path.unlink(missing_ok=True)
                size, count = size - made.size, count - 1

    def _finish(self, id: str, tape: Tape) -> None:
        del self.tapes[id]
        recorder = tape.recorder
        tape.close()
        counts = {"messages": recorder.count, "lost": recorder.lost}
        made = {} if tape.path is None else {
            "file": tape.path.name, "size": str(tape.size), "link": recorder.link.hex(),
        }  # fmt: skip
        said = {name: str(count) for name, count in counts.items()} | made
        self._tell(id, tape.session.caller.tenant, recorder.why, said)

    # saying

    def _tell(self, session: str, tenant: str, why: str, said: dict[str, str] | None = None) -> None:
        line = ctl.line("recorded", {"session": session, "why": why} | (said or {}))
        if len(self._unsaid) < UNSAID_MAX:
            self._unsaid.append((line, tenant))
        self._stir()

    async def _tell_all(self) -> None:
        while self._unsaid:
            line, tenant = self._unsaid[0]
            try:
                await self._say(PATH, line, tenant)
            except FsError as error:
                # It is tried at every tick for as long as a disk is full.
                log.log(logging.INFO if line != self._delayed else logging.DEBUG, "%s: %s", line, error)
                self._delayed = line
                return
            del self._unsaid[0]

    def tick(self) -> None:
        """Try again to say what could not be said."""
        if self._unsaid:
            self._stir()

    async def start(self) -> None:
        """Whoever was recorded before this process began is so no more. Raises FsError."""
        if self.orders():
            await self._say(PATH, "unordered", "")

    async def close(self) -> None:
        """End every recording; call it when the connections are closed, before the turn's close."""
        for tape in self.tapes.values():
            tape.recorder.stop("closed")
        if self._timer is not None:
            self._timer.cancel()
        await self.flush()

    # files

    def made(self) -> list[Made]:
        """The recordings that there are, also those that are being made."""
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.name.endswith(SUFFIX))
        except FileNotFoundError:
            return []
        found = []
        for path in paths:
            tenant = self._tenants.get(path.name) or _tenant_of(path)
            try:
                told = path.stat()
            except FileNotFoundError:
                continue
            if tenant:
                self._tenants[path.name] = tenant
            found.append(Made(path, tenant or HIVE_TENANT, told.st_size, told.st_mtime_ns))
        return found


def _tenant_of(path: Path) -> str:
    """Whose conversation it is; "": that cannot be read."""
    try:
        with path.open("rb") as file:
            return read(file)[0].tenant
    except (OSError, NineptError):
        return ""


def _mode(fid: Fid) -> int:
    """How the fid is open, as Topen has it; -1: it is not."""
    if fid.how is None:
        return -1
    return (2 if fid.how.read else 1) if fid.how.write else 0
