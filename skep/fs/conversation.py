"""A session joined to a tree: each call performed on its chan, at once where nothing needs waiting.

The same for every transport: bytes go in by ``receive``, frames come out through ``send``. Which tree, and
for whom, is the gate's to say. The table ``PERFORM`` has a row a message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from skep.fs import eager
from skep.fs import messages as m
from skep.fs.chan import Chan, Witness, settle
from skep.fs.errors import DENIALS, E, FsError, from_oserror
from skep.fs.hot import hot
from skep.fs.limits import Meter
from skep.fs.messages import DM, DONT_TOUCH, LO, QT, SA, Dialect, Message
from skep.fs.node import Attr, Caller, Change, How, Lock, Maybe
from skep.fs.session import FIDS_MAX, Call, Done, Session
from skep.fs.wire import stat_of

log = logging.getLogger("skep.fs")
SECOND: Final = 1_000_000_000


class Peer(NamedTuple):
    """The other end, as the transport knows it; uid, gid, pid -1 where it does not.

    With TLS the certificate tells who it is: ``spiffe``, spiffe://<hive>/<role>/<node>, is the principal."""

    kind: str  # "unix", "tcp", "tls", "local"
    address: str = ""
    uid: int = -1
    gid: int = -1
    pid: int = -1
    spiffe: str = ""  # these five are empty but for kind "tls"
    role: str = ""
    node: str = ""
    serial: str = ""  # of the certificate, in hex
    spki: str = ""  # SHA-256 of its public key, in hex
    enrolling: bool = False  # it has no certificate, and may do no more than ask for one


class Gate(Protocol):
    """Who may attach, and where. Raises FsError to refuse."""

    def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Maybe[Chan]:
        """The root chan for this user and tree. ``n_uname`` NONUNAME: not given.

        ``afid``: the chan that ``auth`` gave, by which the client means to have proved who it is; whether it
        has, for this user and tree, is asked here. None: it shows no proof."""

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Maybe[Chan]:
        """An open chan to prove who one is by. Refusing means that none is needed."""


class Conversation:
    """One connection. Not thread-safe: everything happens on one event loop."""

    def __init__(
        self,
        gate: Gate,
        peer: Peer,
        send: Callable[[Sequence[bytes | memoryview]], None],
        msize: int = 1 << 20,
        kernel: bool = True,
    ) -> None:
        self.gate = gate
        self.peer = peer
        self.send = send
        self.session = Session(msize, kernel=hot(FIDS_MAX) if kernel else None)
        self.channel_binding: Callable[[], bytes] = bytes  # 32 bytes both ends know; empty: not encrypted
        self.witness: Witness | None = None  # the gate's, for what is refused; None: nobody records it
        self.paused = False  # the transport takes no more for now
        self._tasks: dict[Call, asyncio.Task[Done | FsError]] = {}
        self.caller: Caller | None = None  # of the last attach; None: nobody has attached
        self.session.refused = self._limited
        self._pumping = False
        self._flows = True
        self._braked: asyncio.TimerHandle | None = None  # not None: there were too many bytes
        self.hang_up: Callable[[], None] = lambda: None  # told to close: what came cannot be 9P
        self.flow: Callable[[bool], None] = lambda wanted: None  # told when no more bytes are wanted, or are

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes. Raises WireError when they cannot be 9P: then the caller closes the connection.

        What waits for earlier answers is looked at later: then ``hang_up`` is called for the same reason."""
        session = self.session
        session.receive(data)
        if session.meter is not None:
            self._carry(session.meter, len(data))
        if session.settled and not self.paused and not self._pumping:
            if session.meter is None:
                self.send(session.take())
            else:
                self._send()
        else:
            self.pump()
            if session.broken is not None:
                raise session.broken

    def _send(self) -> None:
        if self.session.meter is not None:
            self._carry(self.session.meter, self.session.outgoing)
        self.send(self.session.take())

    def _carry(self, meter: Meter, count: int) -> None:
        """So many bytes have come or go: read no more while there were too many."""
        wait_ns = meter.carry(count)
        if wait_ns and self._braked is None and not self.session.ended:
            self._braked = asyncio.get_running_loop().call_later(wait_ns / SECOND, self._unbraked)
            self._set_flow()

    def _unbraked(self) -> None:
        self._braked = None
        if self.session.meter is not None:
            self._carry(self.session.meter, 0)
        self._set_flow()

    def _next_turn(self) -> None:
        self.session.go_on()
        self.pump()

    def _set_flow(self) -> None:
        """Say when no more bytes are wanted, or are again."""
        wanted = not (self.session.stalled or self.session.resting or self._braked)
        if wanted is not self._flows:
            self._flows = wanted
            self.flow(wanted)

    def limit(self, fids_max: int, tags_max: int, meter: Meter | None) -> None:
        """Set what its client may do from now on."""
        self.session.limit(fids_max, tags_max, meter)

    def _limited(self, op: str, error: FsError) -> None:
        """The session has refused a call for its limits."""
        if self.witness is not None and not error.told:
            error.told = True
            error.trace = self.witness.refused(op, "", "", error, self.caller)

    def resume(self) -> None:
        """The transport takes bytes again."""
        self.paused = False
        self.pump()

    def lost(self) -> None:
        """The connection is gone: every call is given up, every fid clunked."""
        self.session.end()
        self.paused = True
        if self._braked is not None:
            self._braked.cancel()
            self._braked = None
        self.pump()

    @property
    def busy(self) -> int:
        """Calls being performed."""
        return len(self._tasks)

    def pump(self) -> None:
        """Perform what is ready, cancel what is given up, close what is dropped, send what is answered."""
        if self._pumping:
            return
        self._pumping = True
        session = self.session
        try:
            while True:
                while session.ready and not session.full:
                    self._perform(session.ready.popleft())
                while session.aborts:
                    self._abort(session.aborts.popleft())
                while session.dropped:
                    self._drop(session.dropped.popleft())
                session.resume()
                if (session.ready and not session.full) or session.aborts or session.dropped:
                    continue
                if not session.outgoing or self.paused:
                    break
                self._send()
        finally:
            self._pumping = False
        if session.tired and not session.resting:
            session.resting = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._set_flow()
        if session.broken is not None:
            self.hang_up()

    def _perform(self, call: Call) -> None:
        outcome = eager.start(self._run(call))
        if isinstance(outcome, eager.Finished):
            self.session.respond(call, outcome.value)
            return
        self._tasks[call] = outcome
        self.session.hold(call)
        outcome.add_done_callback(lambda task: self._performed(call, task))
        if isinstance(call.message, m.Tread) and call.fid is not None and call.fid.chan.waits:
            self.session.park(call)

    def _performed(self, call: Call, task: asyncio.Task[Done | FsError]) -> None:
        del self._tasks[call]
        self.session.respond(call, FsError(E.CANCELLED) if task.cancelled() else task.result())
        self.pump()

    async def _run(self, call: Call) -> Done | FsError:
        """The one boundary: whatever a node raises becomes an answer here."""
        try:
            return await PERFORM[type(call.message)](self, call, call.message)
        except FsError as error:
            return error
        except OSError as error:
            return from_oserror(error)
        except asyncio.CancelledError:
            return FsError(E.CANCELLED)
        except Exception:
            log.exception("%s failed", type(call.message).__name__)
            return FsError(E.IO, f"the server failed at {type(call.message).__name__}")

    def _abort(self, call: Call) -> None:
        task = self._tasks.get(call)
        if task is not None:
            eager.cancel(task)

    def _drop(self, chan: Chan) -> None:
        """Close a chan nobody asks about any more."""
        outcome = eager.start(_close(chan))
        if isinstance(outcome, asyncio.Task):
            _closing.add(outcome)
            outcome.add_done_callback(_closing.discard)

    @property
    def dialect(self) -> Dialect:
        assert self.session.dialect is not None
        return self.session.dialect


_closing: set[asyncio.Task[None]] = set()  # kept from being collected until they end


async def _close(chan: Chan) -> None:
    try:
        await chan.clunk()
    except (FsError, OSError) as error:
        log.info("closing %s: %s", chan.path, error)


# Each message's work, in the manual's order. The session has made its checks.


async def _auth(conversation: Conversation, call: Call, t: m.Tauth) -> Done:
    try:
        chan = await settle(conversation.gate.auth(conversation.peer, t.uname, t.aname, t.n_uname))
    except FsError as error:
        _tell(conversation, "auth", t.aname, error)
        raise
    if conversation.witness is not None:
        chan.witness = _Proving(conversation.witness, t.aname)
    qid = (await chan.attr()).qid
    return Done(m.Rauth(qid._replace(type=qid.type | QT.AUTH)), chan, How(read=True, write=True), "auth")


# A client that may not attach is refused by these too: what it asked for is not there, or another's now.
_NOT_LET_IN: Final = DENIALS | {E.MISSING, E.BUSY}


def _tell(conversation: Conversation, op: str, aname: str, error: FsError) -> None:
    """Have it recorded that the gate let nobody in."""
    if conversation.witness is not None and not error.told and error.kind in _NOT_LET_IN:
        error.told = True
        trace = conversation.witness.refused(op, aname, aname, error, None)
        error.trace = None if error.kind is E.MISSING else trace


class _Proving:
    """The witness of an afid: whatever is refused there is an auth refused."""

    def __init__(self, witness: Witness, aname: str) -> None:
        self.witness = witness
        self.aname = aname

    def refused(self, op: str, given: str, canonical: str, error: FsError, caller: Caller | None) -> str:
        return self.witness.refused("auth", self.aname, self.aname, error, None)

    def missed(self, op: str, given: str, canonical: str, caller: Caller, hidden: bool) -> None:
        self.witness.missed("auth", self.aname, self.aname, caller, hidden)


async def _attach(conversation: Conversation, call: Call, t: m.Tattach) -> Done:
    proof: tuple[Chan, ...] = ()
    if t.afid != m.NOFID:
        afid = conversation.session.fids.get(t.afid)
        if afid is None or afid.kind != "auth":
            raise FsError(E.BADF, f"afid {t.afid}")
        proof = (afid.chan,)
    try:
        chan = await settle(conversation.gate.attach(conversation.peer, t.uname, t.aname, t.n_uname, *proof))
    except FsError as error:
        _tell(conversation, "attach", t.aname, error)
        raise
    conversation.caller = chan.caller
    if conversation.witness is not None:
        chan.witness = conversation.witness
    return Done(m.Rattach((await chan.attr()).qid), chan)


async def _walk(conversation: Conversation, call: Call, t: m.Twalk) -> Done:
    qids, chan = await _chan(call).walk(t.wname)
    return Done(m.Rwalk(tuple(qids)), chan)


_PLAIN_MODES: Final = {
    m.OREAD: How(read=True),
    m.OWRITE: How(write=True),
    m.ORDWR: How(read=True, write=True),
    m.OEXEC: How(read=True, execute=True),
}
OCEXEC: Final = 0x20  # the client's business
OAPPEND: Final = 0x80  # 9P2000.u


def _plain_how(mode: int, dialect: Dialect) -> How:
    known = m.OTRUNC | m.ORCLOSE | OCEXEC | 3 | (OAPPEND if dialect is Dialect.U else 0)
    if mode & ~known:
        raise FsError(E.INVALID, f"open mode {mode:#x}")
    how = _PLAIN_MODES[mode & 3]
    return How(how.read, how.write, bool(mode & m.OTRUNC), bool(mode & OAPPEND), how.execute)


# An IntFlag's & is a function in Python.
_TRUNC, _APPEND, _CREATION = int(LO.TRUNC), int(LO.APPEND), int(LO.CREAT | LO.EXCL)


def _linux_how(flags: int) -> How:
    access = flags & 3
    if access == 3:
        raise FsError(E.INVALID, f"open flags {flags:#o}")
    return How(access != 1, access != 0, bool(flags & _TRUNC), bool(flags & _APPEND), False, flags)


async def _open(conversation: Conversation, call: Call, t: m.Topen) -> Done:
    how = _plain_how(t.mode, conversation.dialect)
    qid = await _chan(call).open(how, bool(t.mode & m.ORCLOSE))
    return Done(m.Ropen(qid, 0), how=how)


async def _lopen(conversation: Conversation, call: Call, t: m.Tlopen) -> Done:
    how = _linux_how(t.flags & ~_CREATION)
    return Done(m.Rlopen(await _chan(call).open(how), 0), how=how)


async def _create(conversation: Conversation, call: Call, t: m.Tcreate) -> Done:
    """A new file or directory, its permissions no more than the directory's, its fid open."""
    chan, how = _chan(call), _plain_how(t.mode, conversation.dialect)
    above = (await chan.attr()).mode
    if t.perm & (DM.APPEND | DM.EXCL | DM.AUTH | DM.TMP):
        raise FsError(E.NOTSUP, f"permissions {t.perm:#o}: no such file is made here")
    if t.perm & (DM.SYMLINK | DM.LINK | DM.DEVICE | DM.NAMEDPIPE | DM.SOCKET):
        return await _create_special(conversation, chan, t)
    if t.perm & DM.DIR:
        if how.write or how.trunc or t.mode & m.ORCLOSE:
            raise FsError(E.ISDIR)
        await chan.mkdir(t.name, t.perm & (~0o777 | above & 0o777) & 0o777, -1)
        made, _ = await chan.child(t.name)
        qid = await made.open(how)
    else:
        bits = (stat.S_ISUID if t.perm & DM.SETUID else 0) | (stat.S_ISGID if t.perm & DM.SETGID else 0)
        mode = t.perm & (~0o666 | above & 0o666) & 0o777 | bits
        made, qid = await chan.create(t.name, mode, how, -1, bool(t.mode & m.ORCLOSE))
    return Done(m.Rcreate(qid, 0), made, how)


async def _create_special(conversation: Conversation, chan: Chan, t: m.Tcreate) -> Done:
    """9P2000.u: a link to, or what else ``extension`` names; its fid is open for nothing."""
    if conversation.dialect is not Dialect.U:
        raise FsError(E.INVALID, f"permissions {t.perm:#o}")
    if t.perm & DM.SYMLINK:
        await chan.symlink(t.name, t.extension, -1)
    elif t.perm & DM.LINK:
        await chan.link(t.name, _named_fid(conversation, t.extension))
    else:
        kind, rdev = _device(t.perm, t.extension)
        await chan.mknod(t.name, kind | t.perm & 0o777, rdev, -1)
    made, attr = await chan.child(t.name)
    return Done(m.Rcreate(attr.qid, 0), made, How())


_MAJOR_MAX: Final = (1 << 12) - 1  # of Linux's device numbers
_MINOR_MAX: Final = (1 << 20) - 1
_NUMBER: Final = re.compile(r"[0-9]{1,7}")


def _named_fid(conversation: Conversation, extension: str) -> Chan:
    """The chan of the fid whose number is the extension of a DMLINK, as Linux writes it."""
    number = extension.strip()
    fid = conversation.session.fids.get(int(number)) if number.isascii() and number.isdigit() else None
    if fid is None or fid.kind != "file":
        raise FsError(E.BADF, extension)
    assert isinstance(fid.chan, Chan)
    return fid.chan


def _device(perm: int, extension: str) -> tuple[int, int]:
    """The st_mode type and the device of a special file; ``extension`` is like "b 1 2"."""
    if perm & DM.NAMEDPIPE:
        return stat.S_IFIFO, 0
    if perm & DM.SOCKET:
        return stat.S_IFSOCK, 0
    match extension.split():
        case ["b" | "c" as kind, major, minor] if _NUMBER.fullmatch(major) and _NUMBER.fullmatch(minor):
            if int(major) <= _MAJOR_MAX and int(minor) <= _MINOR_MAX:
                return (stat.S_IFBLK if kind == "b" else stat.S_IFCHR), os.makedev(int(major), int(minor))
    raise FsError(E.INVALID, f'device {extension!r}: "b 1 2" or "c 1 2" was expected')


async def _lcreate(conversation: Conversation, call: Call, t: m.Tlcreate) -> Done:
    how = _linux_how(t.flags | LO.CREAT)
    made, qid = await _chan(call).create(t.name, t.mode & 0o7777, how, t.gid)
    return Done(m.Rlcreate(qid, 0), made, how)


async def _read(conversation: Conversation, call: Call, t: m.Tread) -> Done:
    chan, count = _chan(call), min(t.count, conversation.session.msize - m.READ_OVERHEAD)
    if call.fid is not None and call.fid.kind == "file" and await _is_directory(chan):
        if conversation.dialect is Dialect.L:
            raise FsError(E.ISDIR)
        return Done(m.Rread(await chan.read_directory(t.offset, count, conversation.dialect)))
    return Done(m.Rread(await chan.read(t.offset, count)))


async def _is_directory(chan: Chan) -> bool:
    return bool((await chan.attr()).qid.type & QT.DIR)


async def _write(conversation: Conversation, call: Call, t: m.Twrite) -> Done:
    return Done(m.Rwrite(await _chan(call).write(t.offset, memoryview(t.data))))


async def _clunk(conversation: Conversation, call: Call, t: m.Tclunk) -> Done:
    await _chan(call).clunk()
    return Done(m.Rclunk())


async def _remove(conversation: Conversation, call: Call, t: m.Tremove) -> Done:
    await _chan(call).remove()
    return Done(m.Rremove())


async def _stat(conversation: Conversation, call: Call, t: m.Tstat) -> Done:
    chan = _chan(call)
    return Done(m.Rstat(stat_of(await chan.attr(), chan.name, conversation.dialect)))


_FIXED: Final = ("type", "dev", "qid", "uid")
_FIXED_PLAIN: Final = (*_FIXED, "muid", "atime")
_FIXED_UNIX: Final = (*_FIXED, "extension", "n_muid")  # Linux sends its user's name as muid with every rename


async def _wstat(conversation: Conversation, call: Call, t: m.Twstat) -> Done:
    """Change what the entry does not leave alone. Source: stat(5)."""
    chan, new, keep = _chan(call), t.stat, DONT_TOUCH
    extended = conversation.dialect is Dialect.U
    attr = await chan.attr()
    old = stat_of(attr, chan.name, conversation.dialect)
    for field in _FIXED_UNIX if extended else _FIXED_PLAIN:
        if getattr(new, field) not in (getattr(keep, field), getattr(old, field)):
            raise FsError(E.READONLY, f"wstat of {field}")
    if new.mode != keep.mode and (new.mode ^ old.mode) & ~(0o777 | DM.SETUID | DM.SETGID):
        raise FsError(E.READONLY, f"wstat of mode {old.mode:#o} to {new.mode:#o}")
    change = Change(
        mode=_permissions(new.mode) if new.mode not in (keep.mode, old.mode) else None,
        uid=new.n_uid if extended and new.n_uid not in (keep.n_uid, old.n_uid) else None,
        gid=new.n_gid if extended and new.n_gid not in (keep.n_gid, old.n_gid) else None,
        group=new.gid if new.gid not in (keep.gid, old.gid) else None,
        size=None if new.length == keep.length or (attr.qid.type & QT.DIR and not new.length) else new.length,
        atime_ns=new.atime * SECOND if new.atime not in (keep.atime, old.atime) else None,
        mtime_ns=new.mtime * SECOND if new.mtime not in (keep.mtime, old.mtime) else None,
        rename=new.name if new.name not in (keep.name, old.name) else None,
    )
    if change.size and attr.qid.type & QT.DIR:
        raise FsError(E.ISDIR)
    if change != Change():
        await chan.setattr(change)
    elif chan.handle is not None and not attr.qid.type & QT.DIR:
        await chan.fsync(False)  # "leave everything" asks for stable storage
    return Done(m.Rwstat())


def _permissions(mode: int) -> int:
    return (
        mode & 0o777 | (stat.S_ISUID if mode & DM.SETUID else 0) | (stat.S_ISGID if mode & DM.SETGID else 0)
    )


# 9P2000.L


async def _statfs(conversation: Conversation, call: Call, t: m.Tstatfs) -> Done:
    return Done(m.Rstatfs(*await _chan(call).statfs()))


async def _symlink(conversation: Conversation, call: Call, t: m.Tsymlink) -> Done:
    return Done(m.Rsymlink(await _chan(call).symlink(t.name, t.target, t.gid)))


async def _mknod(conversation: Conversation, call: Call, t: m.Tmknod) -> Done:
    if t.major > _MAJOR_MAX or t.minor > _MINOR_MAX:
        raise FsError(E.INVALID, f"device {t.major} {t.minor}")
    rdev = os.makedev(t.major, t.minor) if stat.S_IFMT(t.mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return Done(m.Rmknod(await _chan(call).mknod(t.name, t.mode, rdev, t.gid)))


async def _rename(conversation: Conversation, call: Call, t: m.Trename) -> Done:
    assert call.second is not None or t.fid == t.dfid
    to = call.second or call.fid
    assert to is not None
    await _chan(call).rename(to.chan, t.name)
    return Done(m.Rrename())


async def _readlink(conversation: Conversation, call: Call, t: m.Treadlink) -> Done:
    return Done(m.Rreadlink(await _chan(call).readlink()))


async def _getattr(conversation: Conversation, call: Call, t: m.Tgetattr) -> Done:
    return Done(rgetattr(await _chan(call).attr()))


def rgetattr(attr: Attr) -> m.Rgetattr:
    """The 9P2000.L answer that tells ``attr``."""
    return m.Rgetattr(
        m.GETATTR_BASIC, attr.qid, attr.mode, attr.uid, attr.gid, attr.nlink, _kernel_dev(attr.rdev),
        attr.size, attr.blksize, attr.blocks, *divmod(attr.atime_ns, SECOND), *divmod(attr.mtime_ns, SECOND),
        *divmod(attr.ctime_ns, SECOND), *divmod(attr.btime_ns, SECOND), 0, 0,
    )  # fmt: skip


def _kernel_dev(rdev: int) -> int:
    """A device number as Linux's new_decode_dev takes it: minor[7:0] major minor[19:8]."""
    major, minor = os.major(rdev), os.minor(rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


async def _setattr(conversation: Conversation, call: Call, t: m.Tsetattr) -> Done:
    valid = SA(t.valid & 0x1FF)
    await _chan(call).setattr(
        Change(
            mode=t.mode & 0o7777 if valid & SA.MODE else None,
            uid=t.uid if valid & SA.UID else None,
            gid=t.gid if valid & SA.GID else None,
            size=t.size if valid & SA.SIZE else None,
            atime_ns=t.atime_sec * SECOND + t.atime_nsec if valid & SA.ATIME_SET else None,
            mtime_ns=t.mtime_sec * SECOND + t.mtime_nsec if valid & SA.MTIME_SET else None,
            atime_now=valid & (SA.ATIME | SA.ATIME_SET) == SA.ATIME,
            mtime_now=valid & (SA.MTIME | SA.MTIME_SET) == SA.MTIME,
            ctime_now=bool(valid & SA.CTIME),
        )
    )
    return Done(m.Rsetattr())


async def _xattrwalk(conversation: Conversation, call: Call, t: m.Txattrwalk) -> Done:
    chan, size = await _chan(call).xattr_chan(t.name)
    return Done(m.Rxattrwalk(size), chan, How(read=True), "xattr")


async def _xattrcreate(conversation: Conversation, call: Call, t: m.Txattrcreate) -> Done:
    chan = _chan(call).xattr_writer(t.name, t.attr_size, t.flags)
    return Done(m.Rxattrcreate(), chan, How(write=True), "xattr")


async def _readdir(conversation: Conversation, call: Call, t: m.Treaddir) -> Done:
    chan = _chan(call)
    if not await _is_directory(chan):
        raise FsError(E.NOTDIR)
    count = min(t.count, conversation.session.msize - m.READ_OVERHEAD)
    return Done(m.Rreaddir(await chan.readdir(t.offset, count)))


async def _fsync(conversation: Conversation, call: Call, t: m.Tfsync) -> Done:
    await _chan(call).fsync(bool(t.datasync))
    return Done(m.Rfsync())


async def _lock(conversation: Conversation, call: Call, t: m.Tlock) -> Done:
    lock = Lock(t.type, t.start, t.length, t.proc_id, t.client_id)
    return Done(m.Rlock(await _chan(call).lock(lock, bool(t.flags & 1))))


async def _getlock(conversation: Conversation, call: Call, t: m.Tgetlock) -> Done:
    return Done(
        m.Rgetlock(*await _chan(call).getlock(Lock(t.type, t.start, t.length, t.proc_id, t.client_id)))
    )


async def _link(conversation: Conversation, call: Call, t: m.Tlink) -> Done:
    other = call.second or call.fid
    assert other is not None
    await _chan(call).link(t.name, other.chan)
    return Done(m.Rlink())


async def _mkdir(conversation: Conversation, call: Call, t: m.Tmkdir) -> Done:
    return Done(m.Rmkdir(await _chan(call).mkdir(t.name, t.mode & 0o7777, t.gid)))


async def _renameat(conversation: Conversation, call: Call, t: m.Trenameat) -> Done:
    to = call.second or call.fid
    assert to is not None
    await _chan(call).renameat(t.oldname, to.chan, t.newname)
    return Done(m.Rrenameat())


async def _unlinkat(conversation: Conversation, call: Call, t: m.Tunlinkat) -> Done:
    if t.flags & ~m.AT_REMOVEDIR:
        raise FsError(E.INVALID, f"unlink flags {t.flags:#x}")
    await _chan(call).unlinkat(t.name, bool(t.flags & m.AT_REMOVEDIR))
    return Done(m.Runlinkat())


def _chan(call: Call) -> Chan:
    assert call.fid is not None
    chan = call.fid.chan
    assert isinstance(chan, Chan)
    return chan


PERFORM: Final[dict[type[Message], Callable[[Conversation, Call, Any], Awaitable[Done]]]] = {
    m.Tauth: _auth, m.Tattach: _attach, m.Twalk: _walk, m.Topen: _open, m.Tlopen: _lopen, m.Tcreate: _create,
    m.Tlcreate: _lcreate, m.Tread: _read, m.Twrite: _write, m.Tclunk: _clunk, m.Tremove: _remove,
    m.Tstat: _stat, m.Twstat: _wstat, m.Tstatfs: _statfs, m.Tsymlink: _symlink, m.Tmknod: _mknod,
    m.Trename: _rename, m.Treadlink: _readlink, m.Tgetattr: _getattr, m.Tsetattr: _setattr,
    m.Txattrwalk: _xattrwalk, m.Txattrcreate: _xattrcreate, m.Treaddir: _readdir, m.Tfsync: _fsync,
    m.Tlock: _lock, m.Tgetlock: _getlock, m.Tlink: _link, m.Tmkdir: _mkdir, m.Trenameat: _renameat,
    m.Tunlinkat: _unlinkat,
}  # fmt: skip
