"""The client's half of a 9P conversation, without I/O: tags, fids, versions, flushes.

Fed with bytes, it gives the calls those bytes ended; what it has to say waits in ``take_output``. The
asyncio face is dial.py.

Sources: Plan 9 manual, intro(5), version(5), flush(5); Linux net/9p for what clients rely on.
"""

from __future__ import annotations

from typing import Final

from skep.fs.errors import E, FsError, from_reply
from skep.fs.messages import (
    NOFID,
    NOTAG,
    NUMBERS,
    Dialect,
    Message,
    Rerror,
    Rlerror,
    Rversion,
    Rwalk,
    Tattach,
    Tauth,
    Tclunk,
    Tflush,
    Tremove,
    Tversion,
    Twalk,
    Txattrwalk,
)
from skep.fs.wire import HEADER, WireError, negotiate, pack, unpack

CALLS_MAX: Final = 0x7FFF  # half of all tags, so that each call in flight finds one to be flushed with
MSIZE_DEFAULT: Final = 1 << 20  # what Linux asks for at most over tcp and unix
MSIZE_MIN: Final = 256  # every reply but data fits; smaller ones hold no file name of 255 bytes
_UNFLUSHABLE: Final = (Tversion, Tflush, Tclunk, Tremove)  # the fate of their fid would be unknown
_ALLOWED: Final = {
    Dialect.L: (Dialect.L, Dialect.U, Dialect.PLAIN),
    Dialect.U: (Dialect.U, Dialect.PLAIN),
    Dialect.PLAIN: (Dialect.PLAIN,),
}


class Call:
    """One request in flight. It is not its tag: the same tag is another call later.

    Once ended, ``reply`` is the answer, or ``error`` says why there is none. A flushed call ends when its
    Rflush came (its tag is free then): with the answer that came before, which must be honoured, or
    with FsError(E.INTR), and then it had no effect.
    """

    __slots__ = ("error", "flush", "reply", "request", "tag")

    def __init__(self, tag: int, request: Message) -> None:
        self.tag = tag
        self.request = request
        self.reply: Message | None = None
        self.error: FsError | None = None
        self.flush: Call | None = None  # the Tflush under way for it


def newfid_of(request: Message) -> int | None:
    """The fid that ``request`` binds when it succeeds; None: it binds none."""
    if isinstance(request, Twalk | Txattrwalk):
        return request.newfid if request.newfid != request.fid else None
    if isinstance(request, Tattach):
        return request.fid
    return request.afid if isinstance(request, Tauth) else None


class ClientSession:
    """Calls come one at a time; nothing here waits.

    ``start_version`` must be answered before anything else is started. ``dialect`` and ``msize`` are what
    was asked for until then, and what was agreed afterwards."""

    def __init__(self, dialect: Dialect = Dialect.L, msize: int = MSIZE_DEFAULT) -> None:
        self.dialect = dialect
        self.msize = msize
        self.agreed = False
        self.error: FsError | None = None  # None: the connection is good; else nothing more can be asked
        self._output: list[bytes] = []
        self._calls: dict[int, Call] = {}  # by tag; a flushed call stays until its Rflush
        self._free_tags: list[int] = []
        self._next_tag = 0
        self._in_flight = 0  # calls that are not Tflush
        self._free_fids: list[int] = []
        self._next_fid = 0
        self._chunks: list[bytes] = []  # an incomplete frame
        self._buffered = 0

    # Asking

    def start_version(self) -> Call:
        """Ask for the dialect and msize this session was made with."""
        call = Call(NOTAG, Tversion(self.msize, self.dialect.value))
        self._send(call)
        return call

    def start(self, request: Message) -> Call:
        """Send ``request``. Raises FsError(E.TOOBIG) when it does not fit msize, FsError(E.OVERLOAD) when
        CALLS_MAX are in flight, and what ended the connection when it has ended."""
        if self.error is not None:
            raise self.error
        assert self.agreed, "the version is not agreed yet"
        if self._in_flight >= CALLS_MAX:
            raise FsError(E.OVERLOAD, f"{CALLS_MAX} requests wait for their answers")
        call = Call(self._take_tag(), request)
        try:
            self._send(call)
        except FsError:
            self._free_tags.append(call.tag)
            fid = newfid_of(request)
            self._free_fids += [] if fid is None else [fid]
            raise
        self._in_flight += 1
        return call

    def flush(self, call: Call) -> None:
        """Tell the server that the answer to ``call`` is no longer wanted; ``call`` ends with its Rflush.

        Nothing happens when it has ended, is being flushed, or is one that must be waited for (Tclunk,
        Tremove)."""
        if self._calls.get(call.tag) is not call or call.flush or isinstance(call.request, _UNFLUSHABLE):
            return
        call.flush = Call(self._take_tag(), Tflush(call.tag))
        self._send(call.flush)

    def undo(self, call: Call) -> Call | None:
        """Take back what a flushed call did all the same: clunk the fid it bound. None: nothing to do."""
        fid = newfid_of(call.request)
        if fid is None or self._unbound(call) is not None or self.error is not None:
            return None
        return self.start(Tclunk(fid))

    def take_fid(self) -> int:
        """A fid that no one uses. It is free again when a Tclunk or Tremove of it, or the failure of the
        request that was to bind it, has been answered."""
        if self._free_fids:
            return self._free_fids.pop()
        if self._next_fid == NOFID:
            raise FsError(E.OVERLOAD, "every fid is in use")
        self._next_fid += 1
        return self._next_fid - 1

    def take_output(self) -> list[bytes]:
        """The frames to send, in order; they are handed out once."""
        output, self._output = self._output, []
        return output

    def _take_tag(self) -> int:
        if self._free_tags:
            return self._free_tags.pop()
        self._next_tag += 1
        return self._next_tag - 1

    def _send(self, call: Call) -> None:
        try:
            frame = pack(call.tag, call.request, self.dialect)
        except (UnicodeEncodeError, OverflowError):
            raise FsError(E.INVALID, f"a name cannot be sent in {self.dialect.value}") from None
        if len(frame) > self.msize:
            raise FsError(E.TOOBIG, f"a message of {len(frame)} bytes; at most {self.msize} were agreed")
        self._output.append(frame)
        self._calls[call.tag] = call

    # Hearing

    def receive(self, data: bytes) -> list[Call]:
        """The calls that ``data`` ended, in the order of their answers.

        When the server does not speak 9P, or refuses our version, all calls have ended, ``error`` tells
        why, and the connection should be closed."""
        self._chunks.append(data)
        self._buffered += len(data)
        ended: list[Call] = []
        try:
            if self._buffered >= self._wanted():
                self._hear_all(ended)
        except WireError as error:
            ended += self.fail(FsError(E.PROTO, str(error)))
        return ended

    def fail(self, error: FsError) -> list[Call]:
        """The connection is gone: end every call with ``error``, and refuse further ones with it."""
        self.error = self.error or error
        ended = [call for call in self._calls.values() if not isinstance(call.request, Tflush)]
        self._calls.clear()
        for call in ended:
            if call.reply is None and call.error is None:
                call.error = self.error
        return ended

    def _hear_all(self, ended: list[Call]) -> None:
        """Take the whole frames out of the buffer, and add the calls they end to ``ended``."""
        whole = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        view = memoryview(whole)
        at = 0
        while len(whole) - at >= 4:
            size = self._size(whole, at)
            if len(whole) - at < size:
                break
            call = self._hear(view[at : at + size])
            if call is not None:
                ended.append(call)
            at += size
        rest = whole[at:]
        self._chunks, self._buffered = ([rest] if rest else []), len(rest)

    def _wanted(self) -> int:
        """How many buffered bytes make it worth looking: a whole frame, or its size field."""
        first = self._chunks[0]
        if len(first) < 4:
            self._chunks = [first := b"".join(self._chunks)]
        return self._size(first, 0) if len(first) >= 4 else 4

    def _size(self, data: bytes, at: int) -> int:
        size = int.from_bytes(data[at : at + 4], "little")
        if not HEADER.size <= size <= self.msize:
            raise WireError(f"a frame of {size} bytes; expected {HEADER.size} to {self.msize}")
        return size

    def _hear(self, frame: memoryview) -> Call | None:
        """The call that ended with ``frame``; None: none did."""
        _, number, tag = HEADER.unpack_from(frame)
        call = self._calls.get(tag)
        if call is None:
            raise WireError(f"an answer (type {number}) to tag {tag}, which asks nothing")
        try:
            reply = unpack(frame, self.dialect)
        except FsError as error:
            raise WireError(f"an answer that cannot be read: {error}") from None
        refused = isinstance(reply, Rerror | Rlerror)
        if not refused and number != NUMBERS[type(call.request)] + 1:
            raise WireError(f"{type(reply).__name__} in answer to {type(call.request).__name__}")
        if isinstance(call.request, Tflush):
            return self._flushed(call)
        if call.reply is not None or call.error is not None:
            raise WireError(f"a second answer to tag {tag}")
        if isinstance(reply, Rerror):
            call.error = from_reply(reply.ename, reply.errno or None)
        elif isinstance(reply, Rlerror):
            call.error = from_reply("", reply.ecode)
        else:
            call.reply = reply
        # A call being flushed ends with its Rflush only: until then its tag must not be used again.
        return self._end(call) if call.flush is None else None

    def _flushed(self, flush: Call) -> Call:
        """The call that ``flush`` named ends. An error in place of Rflush tells the same."""
        self._release(flush.tag)
        assert isinstance(flush.request, Tflush)
        call = self._calls[flush.request.oldtag]
        if call.reply is None and call.error is None:
            call.error = FsError(E.INTR)
        return self._end(call)

    def _end(self, call: Call) -> Call:
        """``call`` has its answer: free its tag, and the fid that is now unbound."""
        self._release(call.tag)
        if call.tag == NOTAG:
            return self._agree(call)
        self._in_flight -= 1
        fid = self._unbound(call)
        if fid is not None:
            self._free_fids.append(fid)
        return call

    def _release(self, tag: int) -> None:
        self._calls.pop(tag, None)
        if tag != NOTAG:
            self._free_tags.append(tag)

    @staticmethod
    def _unbound(call: Call) -> int | None:
        """The fid that is free since ``call`` ended; None: none is."""
        if isinstance(call.request, Tclunk | Tremove):
            return call.request.fid
        partial = (
            isinstance(call.reply, Rwalk)
            and isinstance(call.request, Twalk)
            and len(call.reply.wqid) < len(call.request.wname)
        )
        return newfid_of(call.request) if call.error is not None or partial else None

    def _agree(self, call: Call) -> Call:
        """Take what Rversion says, or end with the reason why not."""
        if isinstance(call.reply, Rversion):
            dialect = negotiate(call.reply.version)
            if dialect is None or dialect not in _ALLOWED[self.dialect]:
                why = f"asked for {self.dialect.value}, the server says {call.reply.version!r}"
                call.error = FsError(E.VERSION, why)
            elif not MSIZE_MIN <= call.reply.msize <= self.msize:
                why = f"asked for messages of {self.msize} bytes, was given {call.reply.msize}"
                call.error = FsError(E.VERSION, why)
            else:
                self.dialect, self.msize, self.agreed = dialect, call.reply.msize, True
        self.error = call.error
        return call
