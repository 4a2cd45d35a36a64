"""The server's half of a 9P conversation, without I/O: bytes in, calls to perform, bytes out.

Frames, tags, flushes, fids and their order are decided here; what a file does is not (chan.py). Each
message has two halves, as in Plan 9's lib9p: the first checks what must hold (the table ``RULES``), the
second, in ``respond``, commits the effect on the fid table or takes it back. ``respond`` is the only exit.

Calls on one fid are performed in the order they came, calls on different fids in any, and so are those that
only look (walks from it, stats). A read that waits for an event (``park``) is passed by everything but reads,
and ended by a clunk behind it.

Sources: Plan 9 manual, intro(5), version(5), flush(5), walk(5), open(5); diod's protocol.md.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from skep.fs import messages as m
from skep.fs.errors import E, FsError
from skep.fs.limits import ENDLESS, Meter
from skep.fs.messages import NOFID, NUMBERS, Dialect, Message
from skep.fs.node import How
from skep.fs.recorder import Recorder, hidden_of_reply, hidden_of_request
from skep.fs.wire import HEADER, WireError, negotiate, pack, unpack

MSIZE_MAX: Final = 1 << 20  # what Linux's tcp and unix transports cap at; 512 KiB reads need no more
MSIZE_MIN: Final = 64  # every error and every short reply fits
MSIZE_START: Final = 8192  # before Tversion: no first message is longer
FIDS_MAX: Final = 65536  # per session: a mount holds one per cached file
TAGS_MAX: Final = 4096  # outstanding calls per session: bounds what a peer can make us hold
OUT_MAX: Final = 4 << 20  # bytes of answers not yet sent, above which no further call is begun
XATTRS_MAX: Final = 256  # attributes being read or written at once: each may hold 64 KiB
TURN_MAX: Final = 256  # calls decoded before others get their turn: some 5 ms of the slower ones
ENAME_MAX: Final = 4096  # bytes of an error's text: what a client sent may be quoted in it


class Rule(NamedTuple):
    """What must hold before a message is performed. ``opened``: None either, False closed, else how."""

    fids: tuple[str, ...] = ("fid",)
    new: str | None = None
    opened: bool | str | None = None
    auth: bool = False  # legal on an afid
    xattr: bool = False  # legal on an attribute's fid


RULES: Final[dict[type[Message], Rule]] = {
    m.Tauth: Rule((), new="afid"),
    m.Tattach: Rule((), new="fid"),
    m.Twalk: Rule(new="newfid"),
    m.Topen: Rule(opened=False),
    m.Tlopen: Rule(opened=False),
    m.Tcreate: Rule(opened=False),
    m.Tlcreate: Rule(opened=False),
    m.Tread: Rule(opened="read", auth=True, xattr=True),
    m.Twrite: Rule(opened="write", auth=True, xattr=True),
    m.Tclunk: Rule(auth=True, xattr=True),
    m.Tremove: Rule(),
    m.Tstat: Rule(auth=True),
    m.Twstat: Rule(),
    m.Tstatfs: Rule(),
    m.Tsymlink: Rule(("dfid",)),
    m.Tmknod: Rule(("dfid",)),
    m.Trename: Rule(("fid", "dfid")),
    m.Treadlink: Rule(),
    m.Tgetattr: Rule(auth=True),
    m.Tsetattr: Rule(),
    m.Txattrwalk: Rule(new="newfid"),
    m.Txattrcreate: Rule(opened=False),
    m.Treaddir: Rule(opened="read"),
    m.Tfsync: Rule(opened=True),
    m.Tlock: Rule(opened=True),
    m.Tgetlock: Rule(opened=True),
    m.Tlink: Rule(("dfid", "fid")),
    m.Tmkdir: Rule(("dfid",)),
    m.Trenameat: Rule(("olddirfid", "newdirfid")),
    m.Tunlinkat: Rule(("dirfid",)),
}
_READS: Final = (m.Tread, m.Treaddir)
_LAST: Final = (m.Tclunk, m.Tremove)
_OPS: Final = {number: kind.__name__[1:].lower() for kind, number in NUMBERS.items()}
# Never refused for coming too often: whoever gives up a fid or a call must be rid of it.
_FREE: Final = frozenset(NUMBERS[kind] for kind in (m.Tflush, m.Tclunk, m.Tremove))
_LOOKS: Final = (m.Twalk, m.Tstat, m.Tgetattr, m.Tstatfs, m.Treadlink, m.Txattrwalk)


class Fid:
    """A number the client chose for a chan. ``chan`` is the performer's; ``how`` None: not open."""

    __slots__ = ("chan", "how", "kind")

    def __init__(self, chan: Any, how: How | None = None, kind: str = "file") -> None:
        self.chan = chan
        self.how = how
        self.kind = kind  # "file", "auth" or "xattr"


class Call:
    """One request, from its frame to its answer. A tag names it only while it is outstanding."""

    __slots__ = (
        "aborted",
        "begun",
        "dead",
        "fid",
        "flushes",
        "held",
        "message",
        "new",
        "numbers",
        "parked",
        "second",
        "tag",
    )

    def __init__(self, tag: int, message: Message) -> None:
        self.tag = tag
        self.message = message
        self.numbers: tuple[int, ...] = ()  # the fids whose order it keeps
        self.new: int | None = None  # the fid it will bind
        self.fid: Fid | None = None  # set when begun
        self.second: Fid | None = None  # the other directory of a rename or link
        self.flushes: list[Call] = []
        self.begun = False
        self.parked = False
        self.aborted = False  # its performer was told to give up
        self.held = False  # the kernel was told that it is outstanding
        self.dead = False  # the session it belonged to was reset: no answer


class Done(NamedTuple):
    """A performed call's result: the reply and, where it makes or opens a fid, what the fid now is."""

    reply: Message
    chan: Any = None
    how: How | None = None
    kind: str = "file"


class Kernel(Protocol):
    """An inner loop that answers by itself what it has been told about (native/hot.c), as this session would.

    Calls outstanding are held: their tags and fids are left to the session. A fid that it bound itself is
    handed over (``spill``) before the session looks at a frame."""

    def reset(self, msize: int, dialect: Dialect | None) -> None: ...
    def run(self, data: Any, at: int) -> tuple[int, bytes]: ...
    def budget(self, calls: int, walks: int) -> None: ...
    def left(self) -> tuple[int, int]: ...
    def limit(self, fids_max: int) -> None: ...
    def hold(self, tag: int, fids: tuple[int, ...]) -> None: ...
    def release(self, tag: int, fids: tuple[int, ...], known: Mapping[int, Any]) -> None: ...
    def bound(self, fid: int, chan: Any) -> None: ...
    def taken(self, fid: int) -> None: ...
    def opened(self, fid: int, chan: Any) -> None: ...
    def walked(self, chan: Any, qid: m.Qid) -> None: ...
    def told(self, chan: Any, frame: bytes) -> None: ...
    def drop(self, fid: int) -> None: ...
    def spill(self, fids: Mapping[int, Any]) -> list[tuple[int, Any]]: ...


class Session:
    """One connection's conversation.

    Feed it with ``receive``; perform what is in ``ready`` (each with one ``respond``); cancel what is in
    ``aborts``; close the chans in ``dropped``; send what ``take`` gives. When the bytes cannot be a
    conversation ``broken`` says why: then send what there is and close.
    """

    def __init__(
        self, msize_max: int = MSIZE_MAX, fids_max: int = FIDS_MAX, kernel: Kernel | None = None
    ) -> None:
        self.kernel = kernel
        self.msize_max = msize_max
        self.fids_max = fids_max
        self.tags_max = TAGS_MAX
        self.meter: Meter | None = None  # None: as many calls as may be
        self.turn = TURN_MAX  # frames that may still be decoded before others get their turn
        self.resting = False  # the next turn has been asked for: what comes waits for it
        self.refused: Callable[[str, FsError], None] = lambda op, error: None  # told what limits refuse
        self.msize = MSIZE_START
        self.dialect: Dialect | None = None  # None: no version agreed on
        self.fids: dict[int, Fid] = {}
        self.ready: deque[Call] = deque()
        self.aborts: deque[Call] = deque()
        self.dropped: deque[Any] = deque()
        self.outgoing = 0  # bytes waiting in take()
        self._out: list[bytes | memoryview] = []
        self._in = bytearray()
        self._calls: dict[int, Call] = {}
        self._queues: dict[int, deque[Call]] = {}
        self._stir: deque[int] = deque()  # fids whose queue has moved
        self._version: Call | None = None  # a Tversion waiting for the last call to end
        self._stopped = False  # the kernel has looked at the next frame: it is ours
        self._settling = False
        self._ended = False  # the connection is gone
        self._xattrs = 0  # fids of kind "xattr"
        self.recorder: Recorder | None = None  # told of every frame; None: nobody is
        self.broken: WireError | None = None  # not None: no frame can be made of what came

    # Bytes in.

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes as they came."""
        self._stopped = False
        if self.kernel is not None and not self._in and not self.stalled:
            used = self._kernel_answers(data, 0)
            if used == len(data):
                return
            data = data[used:]
        if not self.resting:
            self.turn = TURN_MAX
        self._in += data
        self._frames()

    def resume(self) -> None:
        """Go on after ``take`` has made room, or after a reset."""
        if self._in:
            self._frames()

    def limit(self, fids_max: int, tags_max: int, meter: Meter | None) -> None:
        """Set what it may do from now on. Fids that it has already it keeps."""
        self.fids_max, self.tags_max, self.meter = min(fids_max, FIDS_MAX), min(tags_max, TAGS_MAX), meter
        if self.kernel is not None:
            self.kernel.limit(self.fids_max)
            self.kernel.budget(ENDLESS, ENDLESS)

    def go_on(self) -> None:
        """The next turn has come."""
        self.resting = False
        self.turn = TURN_MAX

    @property
    def tired(self) -> bool:
        """Whether frames that came wait for the next turn."""
        return self.turn <= 0 and len(self._in) >= 4 and not self.stalled

    @property
    def outstanding(self) -> int:
        """Calls not yet answered."""
        return len(self._calls)

    @property
    def stalled(self) -> bool:
        """Whether bytes received wait for answers to be sent first: read no more until then."""
        return self.full or self._version is not None or self.broken is not None or self._ended

    @property
    def ended(self) -> bool:
        """Whether the connection is gone."""
        return self._ended

    @property
    def full(self) -> bool:
        """Whether enough answers wait to be sent: perform no more calls until then."""
        return self.outgoing > OUT_MAX

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do but to send."""
        return bool(self.outgoing) and not (self.ready or self.aborts or self.dropped or self._in)

    def _frames(self) -> None:
        """Decode frames until the bytes end, a call is ready, or answers pile up.

        One call at a time is made ready, so that a burst of requests never holds more than one burst's
        answers: the caller performs it and resumes."""
        at, data = 0, self._in
        while len(data) - at >= 4 and self.turn > 0 and not self.ready and not self.stalled:
            if self.kernel is not None and not self._stopped:
                at += self._kernel_answers(data, at)
                continue
            size = int.from_bytes(data[at : at + 4], "little")
            if size < 7 or size > self.msize:
                self.broken = WireError(f"frame of {size} bytes; between 7 and {self.msize} were expected")
                break
            if len(data) - at < size:
                break
            # A copy, so that a Twrite's payload outlives the buffer it came in.
            self._frame(memoryview(bytes(data[at : at + size])))
            at += size
            self.turn -= 1
            self._stopped = False
        if at:
            del data[:at]

    def _kernel_answers(self, data: bytes | bytearray | memoryview, at: int) -> int:
        """Let the kernel answer what it can from ``at`` on; how many bytes that were."""
        assert self.kernel is not None
        if self.meter is None:
            used, answers = self.kernel.run(data, at)
        else:
            before = self.meter.left()
            self.kernel.budget(*before)
            used, answers = self.kernel.run(data, at)
            left = self.kernel.left()
            self.meter.spend(before[0] - left[0], before[1] - left[1])
        # What stopped it may have been the room for answers: then it is asked again.
        self._stopped = not used
        if answers:
            self._out.append(answers)
            self.outgoing += len(answers)
        return used

    @property
    def partial(self) -> int:
        """Bytes received and not yet decoded."""
        return len(self._in)

    def _frame(self, frame: memoryview) -> None:
        if self.kernel is not None:
            for number, chan in self.kernel.spill(self.fids):
                self.fids[number] = Fid(chan)
        _, kind, tag = HEADER.unpack_from(frame, 0)
        if self.recorder is not None:
            self.recorder.seen("T", frame, hidden_of_request(frame, self.fids, self._queues))
        if kind == 100:
            self._tversion(tag, frame)
            return
        if tag in self._calls:
            self._send(tag, FsError(E.PROTO, f"duplicate tag {tag}"))
            return
        if self.dialect is None:
            self._send(tag, FsError(E.PROTO, "Tversion was expected first"))
            return
        if self.meter is not None:
            if kind in _FREE:
                self.meter.spend(1, 0)
            elif wait_ms := self.meter.call(kind == NUMBERS[m.Twalk]):
                self._refuse(tag, kind, FsError(E.THROTTLED, f"retry-ms={wait_ms}"))
                return
        try:
            if kind & 1 or kind == 6:
                raise FsError(E.NOTSUP, f"message type {kind} is not a request")
            message = unpack(frame, self.dialect)
        except FsError as error:
            self._send(tag, error)
            return
        if len(self._calls) >= self.tags_max and not isinstance(message, m.Tflush):
            have = f"outstanding requests have={len(self._calls)} max={self.tags_max}"
            self._refuse(tag, kind, FsError(E.QUOTA, have))
            return
        call = Call(tag, message)
        self._calls[tag] = call
        if isinstance(message, m.Tflush):
            self._tflush(call, message.oldtag)
        else:
            self._enqueue(call)
        if not call.begun or isinstance(message, m.Tflush):
            self.hold(call)

    def _refuse(self, tag: int, kind: int, error: FsError) -> None:
        """Answer a frame with what a limit says."""
        self.refused(_OPS.get(kind, "call"), error)
        self._send(tag, error)

    def record(self, recorder: Recorder) -> None:
        """Have ``recorder`` told of every frame from now on. The kernel tells nobody: it is asked no more."""
        if self.kernel is not None:
            for number, chan in self.kernel.spill(self.fids):
                self.fids[number] = Fid(chan)
            self.kernel = None
        self.recorder = recorder

    # Version and flush: the two messages about other messages.

    def _tversion(self, tag: int, frame: memoryview) -> None:
        try:
            message = unpack(frame, Dialect.PLAIN)
        except FsError as error:
            self._send(tag, error)
            return
        self.abandon()
        self._version = Call(tag, message)
        self._settle()

    def abandon(self) -> None:
        """Give up every outstanding call: none is answered. For a reset, and when the connection ends."""
        for call in self.ready:
            call.begun = False
        for call in self._calls.values():
            call.dead = True
            if call.begun:
                self._give_up(call)
        for call in [c for c in self._calls.values() if not c.begun]:
            self._forget(call)
        self.ready.clear()

    def _give_up(self, call: Call) -> None:
        """Have its performer told to stop. A clunk or remove goes on: its fid is gone whatever happens."""
        if not call.aborted and not isinstance(call.message, _LAST):
            call.aborted = True
            self.aborts.append(call)

    def end(self) -> None:
        """The connection is gone: no call is answered, each fid is dropped when its last call has ended."""
        self._ended = True
        self._version = None
        self._in.clear()
        self.abandon()
        self._drop([number for number in self.fids if number not in self._queues])
        if self.kernel is not None:
            self.kernel.reset(0, None)

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            self.dropped.append(self.fids[number].chan)
            self._lose(number)

    def _lose(self, number: int) -> None:
        """A fid is no more."""
        fid = self.fids.pop(number, None)
        if fid is not None and fid.kind == "xattr":
            self._xattrs -= 1
        if self.kernel is not None:
            self.kernel.drop(number)

    def drop_fids(self) -> None:
        """Clunk every fid: their chans are in ``dropped``."""
        self._drop(list(self.fids))
        if self.kernel is not None:
            self.kernel.reset(0, None)

    def _rversion(self, call: Call) -> None:
        """Answer a Tversion, now that nothing of the former session is left."""
        assert isinstance(call.message, m.Tversion)
        self.drop_fids()
        self._version = None
        self.dialect = negotiate(call.message.version)
        if call.message.msize < MSIZE_MIN:
            self.dialect = None
        self.msize = min(call.message.msize, self.msize_max) if self.dialect else MSIZE_START
        text = self.dialect.value if self.dialect else "unknown"
        msize = min(call.message.msize, self.msize_max)
        if self.kernel is not None and self.dialect is not None:
            self.kernel.reset(msize, self.dialect)
        self._out.append(pack(call.tag, m.Rversion(msize, text), Dialect.PLAIN))
        self.outgoing += len(self._out[-1])
        if self.recorder is not None:
            self.recorder.seen("R", self._out[-1])

    def _tflush(self, call: Call, oldtag: int) -> None:
        call.begun = True
        old = self._calls.get(oldtag)
        if old is None or old is call:
            self._finish(call, m.Rflush())
            return
        old.flushes.append(call)
        if isinstance(old.message, m.Tflush):
            return
        if not old.begun:
            self._finish(old, None)
        else:
            self._give_up(old)

    # The order of calls.

    def _enqueue(self, call: Call) -> None:
        rule = RULES[type(call.message)]
        numbers = [getattr(call.message, name) for name in rule.fids]
        if rule.new is not None:
            call.new = getattr(call.message, rule.new)
            numbers.append(call.new)
        if isinstance(call.message, m.Tattach) and call.message.afid != NOFID:
            numbers.append(call.message.afid)  # what proves the user may still be on its way
        call.numbers = tuple(dict.fromkeys(numbers))
        for number in call.numbers:
            self._queues.setdefault(number, deque()).append(call)
        if self._runnable(call):
            self._begin(call)
        elif isinstance(call.message, _LAST):
            self._interrupt(call.numbers[0])
        self._settle()

    def _runnable(self, call: Call) -> bool:
        """Whether every call that stands before it, on each of its fids, may be passed."""
        for number in call.numbers:
            if self._queues[number][0] is not call and not self._passable(call, number):
                return False
        return True

    def _passable(self, call: Call, number: int) -> bool:
        parked = False
        looks = _looks(call, number)
        waits = isinstance(call.message, (*_READS, *_LAST))
        for other in self._queues[number]:
            if other is call:
                return True
            if looks and _looks(other, number):
                continue
            if waits or not (other.parked or (parked and isinstance(other.message, _READS))):
                return False
            parked = True
        return False

    def hold(self, call: Call) -> None:
        """Say that ``call`` is not answered at once."""
        if self.kernel is not None and not call.held and self._calls.get(call.tag) is call:
            call.held = True
            self.kernel.hold(call.tag, call.numbers)

    def park(self, call: Call) -> None:
        """Say that ``call``, a read, waits for an event: what came after it need not."""
        if call.tag in self._calls and not call.dead:
            call.parked = True
            self._stir.extend(call.numbers)
            self._interrupt(call.numbers[0])
            self._settle()

    def _interrupt(self, number: int) -> None:
        """End the waiting reads of a fid that is to be clunked."""
        queue = self._queues[number]
        if any(isinstance(call.message, _LAST) for call in queue):
            for call in queue:
                if call.parked and not call.aborted:
                    call.aborted = True
                    self.aborts.append(call)

    def _settle(self) -> None:
        """Begin what the last change made runnable."""
        if self._settling:  # a call that fails its checks ends within this loop: a queue of them would nest
            return
        self._settling = True
        while self._stir:
            number = self._stir.popleft()
            parked = False
            for call in list(self._queues.get(number, ())):
                if not call.begun and self._runnable(call):
                    self._begin(call)
                # Go on only to what may stand behind this one and still be performed.
                parked = parked or call.parked
                if not (call.parked or (parked and isinstance(call.message, _READS)) or _looks(call, number)):
                    break
        self._settling = False
        if self._version is not None and not self._calls:
            self._rversion(self._version)

    # The first half of each message.

    def _begin(self, call: Call) -> None:
        call.begun = True
        try:
            self._check(call, RULES[type(call.message)])
        except FsError as error:
            if isinstance(call.message, m.Tremove) and call.numbers[0] in self.fids:
                self._drop([call.numbers[0]])  # it clunks even when it fails
            if error.kind is E.QUOTA:
                self.refused(_OPS[NUMBERS[type(call.message)]], error)
            self._finish(call, error)
            return
        self.ready.append(call)

    def _check(self, call: Call, rule: Rule) -> None:
        for name in rule.fids:
            number = getattr(call.message, name)
            fid = self.fids.get(number)
            if fid is None:
                raise FsError(E.BADF, str(number))
            if (fid.kind == "auth" and not rule.auth) or (fid.kind == "xattr" and not rule.xattr):
                raise FsError(E.READONLY, f"{type(call.message).__name__} on an {fid.kind} fid")
            if call.fid is None:
                call.fid = fid
            else:
                call.second = fid
        if rule.opened is not None and call.fid is not None:
            _check_open(call.fid, rule.opened)
        if rule.new is not None:
            self._check_new(call)
        if isinstance(call.message, (m.Txattrwalk, m.Txattrcreate)) and self._xattrs >= XATTRS_MAX:
            raise FsError(E.QUOTA, f"attributes have={self._xattrs} max={XATTRS_MAX}")
        if isinstance(call.message, m.Twalk) and len(call.message.wname) * 13 + 9 > self.msize:
            raise FsError(E.TOOBIG, f"max={self.msize}")

    def _check_new(self, call: Call) -> None:
        new = call.new
        if new == NOFID or new is None:
            raise FsError(E.BADF, "NOFID is not a fid")
        same = isinstance(call.message, (m.Twalk, m.Txattrwalk)) and call.message.fid == new
        if same:
            if isinstance(call.message, m.Txattrwalk) or (call.fid is not None and call.fid.how is not None):
                raise FsError(E.BADF, f"fid {new} is open")
        elif new in self.fids:
            raise FsError(E.BADF, f"fid {new} is in use")
        elif len(self.fids) >= self.fids_max:
            raise FsError(E.QUOTA, f"fids have={len(self.fids)} max={self.fids_max}")

    # The second half.

    def respond(self, call: Call, result: Done | FsError) -> None:
        """Answer ``call``: commit what it did to the fid table, or take it back, and send.

        A call that was given up and ends with CANCELLED is not answered when a flush or a reset asked for
        it; any other result stands, and its reply goes out before Rflush."""
        if call.dead:
            if isinstance(result, Done) and result.chan is not None:
                self.dropped.append(result.chan)
            if isinstance(call.message, _LAST):
                self._unbind(call)
            self._finish(call, None)
            return
        if isinstance(call.message, _LAST):
            self._unbind(call)
        if isinstance(result, FsError):
            silent = result.kind is E.CANCELLED and call.flushes
            self._finish(call, None if silent else result)
            return
        self._commit(call, result)
        self._finish(call, result.reply)
        if self.kernel is not None:
            self._teach(call, result)

    def _teach(self, call: Call, done: Done) -> None:
        """Tell the kernel what this answer says of the fids."""
        assert self.kernel is not None
        if call.new is not None and done.chan is not None:
            if done.kind == "file":
                self.kernel.bound(call.new, done.chan)
            else:
                self.kernel.taken(call.new)
            if isinstance(done.reply, m.Rwalk) and done.reply.wqid:
                self.kernel.walked(done.chan, done.reply.wqid[-1])
        elif call.fid is not None and done.how is not None:
            if done.kind == "file":
                self.kernel.bound(call.numbers[0], call.fid.chan)
                self.kernel.opened(call.numbers[0], call.fid.chan)
            else:
                self.kernel.taken(call.numbers[0])
        elif call.fid is not None and isinstance(done.reply, (m.Rgetattr, m.Rstat)):
            frame = self._reply(call.tag, done.reply, self.dialect or Dialect.PLAIN)
            if frame[4] == NUMBERS[type(done.reply)]:  # and not an error
                self.kernel.told(call.fid.chan, frame)

    def _commit(self, call: Call, done: Done) -> None:
        if call.new is not None:
            if done.chan is not None:
                before = self.fids.get(call.new)
                if before is not None:  # a walk in place: only the chan moves on
                    self.dropped.append(before.chan)
                self.fids[call.new] = Fid(done.chan, done.how, done.kind)
                self._xattrs += done.kind == "xattr"
            return
        if call.fid is not None and done.how is not None:
            call.fid.how = done.how
            call.fid.kind = done.kind
            self._xattrs += done.kind == "xattr"
            if done.chan is not None and done.chan is not call.fid.chan:
                self.dropped.append(call.fid.chan)
                call.fid.chan = done.chan

    def _unbind(self, call: Call) -> None:
        """Tclunk and Tremove free the fid even when they fail. The performer has closed its chan."""
        self._lose(call.numbers[0])

    def _finish(self, call: Call, reply: Message | FsError | None) -> None:
        """Send ``reply`` (None: say nothing), free the tag, then answer the flushes parked on the call."""
        if reply is not None and not call.dead:
            self._send(call.tag, reply, call)
        self._forget(call)
        pending = deque(call.flushes)
        while pending:
            flush = pending.popleft()
            if not flush.dead:
                self._send(flush.tag, m.Rflush())
            self._forget(flush)
            pending.extend(flush.flushes)
        if not call.dead or self._version is not None:
            self._settle()

    def _forget(self, call: Call) -> None:
        if self._calls.get(call.tag) is call:
            del self._calls[call.tag]
        if call.held and self.kernel is not None:
            call.held = False
            self.kernel.release(call.tag, call.numbers, self.fids)
        for number in call.numbers:
            queue = self._queues.get(number)
            if queue is not None and call in queue:
                queue.remove(call)
                if queue:
                    self._stir.append(number)
                else:
                    del self._queues[number]
                    if self._ended and number in self.fids:
                        self._drop([number])

    # Bytes out.

    def _send(self, tag: int, reply: Message | FsError, call: Call | None = None) -> None:
        """Answer the tag; ``call``: what was asked, where that is known."""
        dialect = self.dialect or Dialect.PLAIN
        if isinstance(reply, FsError):
            frame = self._error(tag, reply, dialect)
        elif isinstance(reply, (m.Rread, m.Rreaddir)) and len(reply.data) > 4096:
            header = pack(tag, type(reply)(b""), dialect)[:7] + len(reply.data).to_bytes(4, "little")
            size = len(header) + len(reply.data)
            self._out.append(size.to_bytes(4, "little") + header[4:])
            self._out.append(reply.data)
            self.outgoing += size
            if self.recorder is not None:
                self.recorder.seen("R", b"".join(self._out[-2:]), hidden_of_reply(call, reply, size, dialect))
            return
        else:
            frame = self._reply(tag, reply, dialect)
        self._out.append(frame)
        self.outgoing += len(frame)
        if self.recorder is not None:
            self.recorder.seen("R", frame, hidden_of_reply(call, reply, len(frame), dialect))

    def _reply(self, tag: int, reply: Message, dialect: Dialect) -> bytes:
        """A reply's frame; an error's where it does not fit, or a node told what no message can carry."""
        try:
            frame = pack(tag, reply, dialect)
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            return self._error(tag, FsError(E.IO, f"{type(reply).__name__} cannot be told: {error}"), dialect)
        if len(frame) > self.msize:
            return self._error(tag, FsError(E.TOOBIG, f"max={self.msize}"), dialect)
        return frame

    def _error(self, tag: int, error: FsError, dialect: Dialect) -> bytes:
        """Rlerror with a Linux errno, or Rerror with a text cut to the msize."""
        if dialect is Dialect.L:
            return pack(tag, m.Rlerror(error.errno), dialect)
        room = min(self.msize - 9 - (4 if dialect is Dialect.U else 0), ENAME_MAX)
        text = error.text.replace("\0", "?").encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
        return pack(tag, m.Rerror(text, error.errno), dialect)

    def take(self) -> list[bytes | memoryview]:
        """The frames to send, in order, and forget them."""
        out, self._out = self._out, []
        self.outgoing = 0
        return out


def _looks(call: Call, number: int) -> bool:
    """Whether the fid stays what it is: such calls need not wait for each other. A walk from the root that
    takes its time would hold up everybody."""
    return isinstance(call.message, _LOOKS) and number != call.new


def _check_open(fid: Fid, opened: bool | str) -> None:
    if fid.kind == "auth":
        return
    if opened is False:
        if fid.how is not None:
            raise FsError(E.BADF, "fid is open")
        return
    if fid.how is None:
        raise FsError(E.BADF, "fid is not open")
    if opened is not True and not getattr(fid.how, opened):
        raise FsError(E.BADF, f"fid is not open for {'reading' if opened == 'read' else 'writing'}")
