"""One conversation on its way into a recording: each message redacted, linked, and kept until it is written.

The session tells it of every frame (session.py); who takes what it has, writes it (namespaces/tapes.py).
What is secret is overwritten here, before it is kept. Before ``begin`` it keeps a client's first messages in
memory, until it is known whether they are to be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skep.fs.errors import FsError
from skep.fs.messages import NUMBERS, Dialect, Message, Rread, Tattach, Tauth, Tread, Twrite
from skep.fs.ninept import RECORD_SIZE, REDACTION_SIZE, End, Header, Redaction, Writer, starred

SIZE_MAX: Final = 64 << 20  # bytes of one recording: some hundred thousand messages, or 60 MiB that are read
PENDING_MAX: Final = 8 << 20  # bytes not written yet: what a disk that pauses for a second may cost in memory
EARLY_MAX: Final = 32  # messages before it is known who speaks: a version, proofs, an attach
EARLY_BYTES: Final = 256 << 10  # of them
_END_SIZE: Final = 256  # kept free for the end
_TWRITE: Final = NUMBERS[Twrite]
_READ_HEAD: Final = 11  # bytes of an Rread before its data
_WRITE_HEAD: Final = 23  # bytes of a Twrite before its data
_ERROR_HEAD: Final = 9  # bytes of an Rerror before its text
_FIDS: Final = {NUMBERS[Tauth]: 1, NUMBERS[Tattach]: 2}  # how many fid[4] before uname[s] aname[s]


class Taken(NamedTuple):
    """What is to be written: its bytes, how many messages are in it, the link before them."""

    data: bytes
    messages: int
    before: bytes


class Recorder:
    """Not begun until ``begin``; ``why`` says that it takes no more, in the words of End.why."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        seq: Callable[[], int],
        stir: Callable[[], None] = lambda: None,
        size_max: int = SIZE_MAX,
        pending_max: int = PENDING_MAX,
    ) -> None:
        self.now_ns = now_ns
        self.seq = seq
        self.stir = stir  # told when there is something to write
        self.size_max = size_max
        self.pending_max = pending_max
        self.header: Header | None = None  # None: not begun
        self.why = ""
        self.lost = 0  # messages not taken, since there was a reason not to
        self.count = 0  # messages taken
        self.size = 0  # bytes of them and of the two lines
        self._writer = Writer()
        self._head = b""  # the two lines, while they are not taken
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._before = b""  # the link before the first that is pending
        self._early: list[_Message] = []
        self._early_size = 0

    @property
    def link(self) -> bytes:
        """Of the last record."""
        return self._writer.link

    def begin(self, header: Header) -> None:
        """From now on it is known whose conversation it is."""
        assert self.header is None
        self.header = header
        self._head = self._writer.header(header)
        self.size = len(self._head)
        self._before = self._writer.link
        for message in self._early:
            self._take(message)
        self._early = []
        self.stir()

    def seen(self, kind: str, frame: bytes | memoryview, redactions: Sequence[Redaction] = ()) -> None:
        """A message came (T) or goes (R)."""
        if self.why:
            self.lost += 1
            return
        message = _Message(kind, self.now_ns(), self.seq(), starred(frame, redactions), redactions)
        if self.header is not None:
            self._take(message)
        elif len(self._early) < EARLY_MAX and self._early_size + len(frame) <= EARLY_BYTES:
            self._early.append(message)
            self._early_size += len(frame)
        else:
            self._early = []
            self.stop("early")

    def _take(self, message: _Message) -> None:
        why = self.why or self._why_not(message)
        if why:
            self.lost += 1
            self.stop(why)
            return
        data = self._writer.record(*message)
        self._pending.append(data)
        self._pending_size += len(data)
        self.size += len(data)
        self.count += 1
        self.stir()

    def _why_not(self, message: _Message) -> str:
        """Why it is not taken; "": it is."""
        room = len(message.frame) + RECORD_SIZE + len(message.redactions) * REDACTION_SIZE
        if message.kind == "T" and self._elsewhere(message.frame):
            return "elsewhere"
        if self.size + room + _END_SIZE > self.size_max:
            return "full"
        return "slow" if self._pending_size + room > self.pending_max else ""

    def _elsewhere(self, frame: bytes) -> bool:
        """Whether it asks for another tenant: what is said there is no part of this conversation."""
        fids = _FIDS.get(frame[4])
        if fids is None:
            return False
        assert self.header is not None
        names = frame[7 + 4 * fids :]
        at = 2 + int.from_bytes(names[:2], "little")
        aname = names[at + 2 : at + 2 + int.from_bytes(names[at : at + 2], "little")]
        return aname.removeprefix(b"/") != self.header.aname.encode().removeprefix(b"/")

    def stop(self, why: str) -> None:
        """Take no more messages, and say why; the first reason stands."""
        self.why = self.why or why
        self.stir()

    # writing

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        return bool(self._head or self._pending or (self.why and self.header is not None))

    def take(self) -> Taken:
        """What is to be written now, and after it, once there is a reason, the ``end``."""
        taken = Taken(self._head + b"".join(self._pending), len(self._pending), self._before)
        self._head, self._pending, self._pending_size = b"", [], 0
        self._before = self._writer.link
        return taken

    def failed(self, taken: Taken, why: str) -> None:
        """It was not written, nor will be what came since: the end is next."""
        since = self.take()
        for each in (taken, since):
            self.lost += each.messages
            self.count -= each.messages
            self.size -= len(each.data)
        self._writer.link = self._before = taken.before
        self.why = why

    def end(self) -> bytes:
        """The record that says why, behind what was taken."""
        return self._writer.end(self.now_ns(), self.seq(), End(why=self.why, lost=self.lost))


class _Message(NamedTuple):
    kind: str
    time_ns: int
    seq: int
    frame: bytes  # with nothing in it that is redacted
    redactions: Sequence[Redaction]


# what is secret


def hidden_of_request(
    frame: memoryview, fids: Mapping[int, Any], queues: Mapping[int, Iterable[Any]]
) -> tuple[Redaction, ...]:
    """What of a request is a secret: what is written to a file that takes such, or that is not known yet.

    ``fids``, ``queues``: the session's, by number."""
    if frame[4] != _TWRITE or len(frame) <= _WRITE_HEAD:
        return ()
    number = int.from_bytes(frame[7:11], "little")
    fid = fids.get(number)
    moving = any(not isinstance(call.message, (Tread, Twrite)) for call in queues.get(number, ()))
    if fid is not None and not moving and not _secret(fid, "takes_secrets"):
        return ()
    return ((_WRITE_HEAD, len(frame) - _WRITE_HEAD),)


def hidden_of_reply(
    call: Any, reply: Message | FsError, size: int, dialect: Dialect
) -> tuple[Redaction, ...]:
    """What of a reply of ``size`` bytes is a secret: what was read from a file that tells such, and the text
    of an error there, which may quote what was written. ``call`` None: there was none."""
    if call is None or call.fid is None or not isinstance(call.message, (Tread, Twrite)):
        return ()
    if call.fid.how is None:  # no more was said than that
        return ()
    tells = _secret(call.fid, "tells_secrets")
    if isinstance(reply, Rread) and tells:
        begin, end = _READ_HEAD, size
    elif isinstance(reply, FsError) and (tells or _secret(call.fid, "takes_secrets")):
        # 9P2000.L has a number alone.
        begin, end = _ERROR_HEAD, {Dialect.PLAIN: size, Dialect.U: size - 4}.get(dialect, 0)
    else:
        return ()
    return ((begin, end - begin),) if end > begin else ()


def _secret(fid: Any, which: str) -> bool:
    """Whether what is written to the fid, or read from it, is: of a proof always, of an attribute never."""
    return fid.kind == "auth" or (fid.kind == "file" and bool(getattr(fid.chan, which)))
