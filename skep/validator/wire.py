"""Replay of conversations: what a client said is said again, what it was answered is compared.

What is volatile is declared here, each with its reason; everything else must be the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from skep.fs import messages as m
from skep.fs.errors import E, FsError
from skep.fs.messages import NOTAG, Dialect, Message, Qid
from skep.fs.ninept import Header
from skep.fs.transcript import fields, quote, show
from skep.fs.wire import Dirent, pack, unpack, unpack_dirents
from skep.validator.past import Strange
from skep.validator.talk import Said

SHOWN_MAX: Final = 1000  # differences that are kept; the rest is counted
ROOT_FID: Final = 0xFFFFFFF0  # ours, while fids are bound that there were at the begin
OUR_TAG: Final = NOTAG - 1  # of what we say ourselves


class Place(NamedTuple):
    """Files whose contents are not told by the ledger. ``*`` stands for a name, ``**`` at the end for what is
    below."""

    pattern: str
    why: str


PLACES: Final = (
    Place("/artifacts/**", "an artifact's bytes are not in the ledger"),
    Place("/jobs/*/log", "what a job printed is not in the ledger"),
    Place("/jobs/*/out", "what a job printed is not in the ledger"),
    Place("/jobs/*/progress", "progress is not in the ledger"),
    Place("/nodes/*/**", "heartbeats are not in the ledger"),
    Place("/sessions/**", "who else was attached is not in the ledger"),
    Place("/trust/**", "keys are not in the ledger"),
    Place("/log/trace/**", "it is signed when it is read, by a key that is not in the ledger"),
    Place("/log/validator/**", "reports are not in the ledger"),
    Place("/validator/**", "progress is not in the ledger"),
    Place("/version", "it names the release that serves"),
    Place("/policy/keys", "keys are not in the ledger"),
)


class Field(NamedTuple):
    """A field of messages that says nothing about what happened."""

    messages: tuple[str, ...]
    fields: tuple[str, ...]
    why: str


FIELDS: Final = (
    Field(("Rgetattr",), ("atime_sec", "atime_nsec", "mtime_sec", "mtime_nsec", "ctime_sec", "ctime_nsec",
                          "btime_sec", "btime_nsec"), "times are those of the process that serves"),
    Field(("Rgetattr",), ("uid", "gid"), "files belong to the user who serves"),
    Field(("Rgetattr",), ("data_version", "gen"), "versions count from the start of the process"),
    Field(("Rstat",), ("atime", "mtime"), "times are those of the process that serves"),
    Field(("Rstat",), ("uid", "gid", "muid", "n_uid", "n_gid", "n_muid"),
          "files belong to the user who serves"),
    Field(("Rstatfs",), ("type", "bsize", "blocks", "bfree", "bavail", "files", "ffree", "fsid"),
          "it is the disk's"),
)  # fmt: skip
VERSIONS: Final = "versions count from the start of the process"
NUMBERED: Final = "numbers of files are given as they are first looked at"
BOOKMARKS: Final = "bookmarks come by the clock"
LIMITED: Final = "how often one may ask is not in the ledger"
TRACES: Final = "the id of a refusal at the door is made there"
HIDDEN: Final = "it is hidden in the recording"
_BOOKMARK: Final = re.compile(rb'(?:\{"seq":\d+\}\n)+')
_TRACE: Final = re.compile(r" ?trace=[0-9A-Z]{26}$")
_ULID: Final = re.compile(rb"\b[0-9A-HJKMNP-TV-Z]{26}\b")


class Wire(Protocol):
    """The other end of a conversation that is played."""

    async def at(self, time_ns: int, seq: int) -> None:
        """It is as late as that."""

    def expect(self, seq: int) -> None:
        """What is said next was answered when the ledger had ``seq`` entries."""

    def send(self, frame: bytes) -> None: ...

    async def answer(self, tag: int) -> bytes | None:
        """The next answer to the tag; None: there is none."""

    def unasked(self) -> list[bytes]:
        """Answers that nobody has taken, which are forgotten."""

    def draft(self, id: str) -> None:
        """The next draft that is made had this id."""

    def strange(self) -> list[Strange]:
        """What was decided otherwise since it was asked last."""


def first_seq(header: Header, said: Sequence[Said]) -> int:
    """How many entries the ledger had when the first message was said: a client speaks before it attaches,
    and only then there is a header."""
    return min([header.seq, *(each.seq for each in said[:1])])


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """``record``: of the recording, from 1; 0: its header. ``entry``: of the ledger, when it is about one."""

    record: int
    message: str
    field: str
    recorded: str
    played: str
    path: str = ""
    entry: int = 0


class Played(msgspec.Struct):
    """What a conversation came to. ``said``: what was sent; ``compared``: answers; ``volatile``: how many of
    them were not compared, or not wholly, and why; ``notes``: what else is to be known."""

    session: str
    principal: str
    said: int = 0
    compared: int = 0
    differ: int = 0
    differences: list[Difference] = []
    volatile: dict[str, int] = {}
    notes: list[str] = []


class Player:
    """Plays one conversation on a wire."""

    def __init__(
        self, header: Header, said: Sequence[Said], wire: Wire, to_end: bool = False, tree: str = ""
    ) -> None:
        """``tree``: the fingerprint of what is served at the other end; "": it is not known."""
        self.header = header
        self.wire = wire
        self.to_end = to_end
        self.tree = tree
        self.found = Played(header.session, header.principal)
        self._said = said
        self._answers = {each.to.n: each for each in said if each.to is not None}
        self._skipped: set[int] = set()  # records that are not played
        self._places: dict[int, int] = {}  # numbers of files, recorded -> played
        self._last = 0  # the record that is looked at
        self._volatile: Counter[str] = Counter()

    async def play(self) -> Played:
        """Say everything; what came back."""
        await self._begin()
        for each in self._said:
            if self.found.differ and not self.to_end:
                break
            self._last = each.n
            await self.wire.at(each.time_ns, each.seq)
            if each.asks:
                await self._say(each)
            else:
                await self._hear(each)
        self.found.volatile = dict(sorted(self._volatile.items()))
        return self.found

    def _strange(self) -> None:
        for what in self.wire.strange():
            fields = "entry", what.field, what.recorded, what.decided
            self._differs(Difference(self._last, *fields, entry=what.entry))

    # before the first message

    async def _begin(self) -> None:
        """Bring about what there was before the recording: an agreed version, and fids."""
        header = self.header
        if self.tree and self.tree != header.tree:
            self._differs(Difference(0, "header", "tree", header.tree, self.tree))
        first = self._said[0].message if self._said else None
        if not header.dialect or isinstance(first, m.Tversion):
            return
        await self._own(m.Tversion(header.msize, header.dialect), Dialect.PLAIN, NOTAG)
        if not header.fids:
            return
        dialect = Dialect(header.dialect)
        await self._own(m.Tattach(ROOT_FID, m.NOFID, "", header.aname), dialect)
        for number, path, mode in header.fids:
            await self._bind(number, path, mode, dialect)
        await self._own(m.Tclunk(ROOT_FID), dialect)

    async def _bind(self, number: int, path: str, mode: int, dialect: Dialect) -> None:
        names = [name for name in path.split("/") if name]
        at = ROOT_FID
        for first in range(0, max(len(names), 1), m.WALK_MAX):
            part = tuple(names[first : first + m.WALK_MAX])
            reply = await self._own(m.Twalk(at, number, part), dialect)
            if not isinstance(reply, m.Rwalk) or len(reply.wqid) != len(part):
                self.found.notes.append(f"fid {number}, {path}: it cannot be had again")
                return
            at = number
        if mode >= 0:
            opening: Message = m.Tlopen(number, mode) if dialect is Dialect.L else m.Topen(number, mode)
            if not isinstance(await self._own(opening, dialect), m.Rlopen | m.Ropen):
                self.found.notes.append(f"fid {number}, {path}: it cannot be opened again")

    async def _own(self, message: Message, dialect: Dialect, tag: int = OUR_TAG) -> Message | None:
        """Say something that the recording has not."""
        self.wire.send(pack(tag, message, dialect))
        frame = await self.wire.answer(tag)
        return None if frame is None else _unpacked(frame, dialect)

    # message by message

    async def _say(self, said: Said) -> None:
        answer = self._answers.get(said.n)
        why = self._why_not(said, answer)
        if why:
            self._skipped.add(said.n)
            self._volatile[why] += 1
            return
        self._draft(said)
        self.wire.expect(answer.seq if answer is not None else said.seq)
        self.found.said += 1
        self.wire.send(said.frame)
        self._strange()

    def _why_not(self, said: Said, answer: Said | None) -> str:
        """Why it cannot be said again; "": it can."""
        if answer is not None and isinstance(answer.message, m.Rlerror | m.Rerror):
            error = answer.message
            throttled = E.THROTTLED.value
            code = error.ecode if isinstance(error, m.Rlerror) else error.errno
            if code == throttled.errno or (
                isinstance(error, m.Rerror) and error.ename.startswith(throttled.text)
            ):
                return LIMITED
        if said.hidden and said.path:
            return HIDDEN
        return ""

    def _draft(self, said: Said) -> None:
        """Opening a clone makes something, whose name is read from it later."""
        if not isinstance(said.message, m.Tlopen | m.Topen) or not said.path.endswith("/clone"):
            return
        fid = said.message.fid
        for each in self._said[said.n :]:
            asked = each.to.message if each.to is not None else None
            if isinstance(asked, m.Tread) and asked.fid == fid and isinstance(each.message, m.Rread):
                found = _ULID.search(bytes(each.message.data))
                if found is not None:
                    self.wire.draft(found[0].decode())
                return

    async def _hear(self, said: Said) -> None:
        if said.to is not None and said.to.n in self._skipped:
            return
        if said.to is None:
            return  # it answers what was said before the recording
        if isinstance(said.message, m.Rread) and _BOOKMARK.fullmatch(said.message.data):
            self._volatile[BOOKMARKS] += 1
            await self._give_up(said)
            return
        frame = await self.wire.answer(said.tag)
        self._strange()
        self.found.compared += 1
        if frame is None:
            text = (
                show(said.tag, said.message, said.dialect) if said.message is not None else said.frame.hex()
            )
            self._differs(Difference(said.n, said.kind, "message", text, "no answer", said.path))
            await self._give_up(said)
            return
        place = next((place for place in PLACES if _lies(said.path, place.pattern)), None)
        differences = list(self._compare(said, frame))
        if differences and place is not None:
            self._volatile[place.why] += 1
        elif differences:
            self._differs(differences[0])

    async def _give_up(self, said: Said) -> None:
        """The call is not answered here: its tag must be free for the next."""
        await self._own(m.Tflush(said.tag), said.dialect)
        self.wire.unasked()

    # comparing

    def _differs(self, found: Difference) -> None:
        self.found.differ += 1
        if len(self.found.differences) < SHOWN_MAX:
            self.found.differences.append(found)

    def _compare(self, said: Said, frame: bytes) -> Iterator[Difference]:
        """What differs in an answer; what may, is counted."""
        was, now = said.message, _unpacked(_masked(frame, said), said.dialect)
        if said.hidden:
            self._volatile[HIDDEN] += 1
        if was is None or now is None or type(was) is not type(now):
            texts = [_text(said, message, raw) for message, raw in ((was, said.frame), (now, frame))]
            if texts[0] != texts[1]:
                yield Difference(said.n, said.kind, "message", texts[0], texts[1], said.path)
            return
        for field in fields(type(was), said.dialect):
            for name, a, b in self._parts(
                field.name, getattr(was, field.name), getattr(now, field.name), was
            ):
                why = _volatile(said.kind, name.rpartition(".")[2], a, b)
                if why:
                    self._volatile[why] += 1
                else:
                    yield Difference(said.n, said.kind, name, _said(a), _said(b), said.path)

    def _parts(self, name: str, was: Any, now: Any, message: Message) -> Iterator[tuple[str, Any, Any]]:
        """The parts of a field that are not the same, qids apart from what may differ in them."""
        if isinstance(was, Qid) and isinstance(now, Qid):
            yield from self._qid(name, was, now)
        elif isinstance(message, m.Rreaddir) and name == "data":
            yield from self._entries(bytes(was), bytes(now))
        elif isinstance(was, tuple) and name == "wqid":
            if len(was) != len(now):
                yield f"{name}.count", len(was), len(now)
            for i, (a, b) in enumerate(zip(was, now, strict=False)):
                yield from self._qid(f"{name}[{i}]", a, b)
        elif isinstance(was, m.Stat):
            for part in was.__struct_fields__:
                yield from self._parts(f"{name}.{part}", getattr(was, part), getattr(now, part), message)
        elif bytes(was) != bytes(now) if isinstance(was, memoryview) else was != now:
            yield name, was, now

    def _qid(self, name: str, was: Qid, now: Qid) -> Iterator[tuple[str, Any, Any]]:
        if was.type != now.type:
            yield f"{name}.type", was.type, now.type
        if was.vers != now.vers:
            self._volatile[VERSIONS] += 1
        if was.path != now.path:
            self._volatile[NUMBERED] += 1
        if self._places.setdefault(was.path, now.path) != now.path:
            yield f"{name}.path", f"the file that was {self._places[was.path]} here", now.path

    def _entries(self, was: bytes, now: bytes) -> Iterator[tuple[str, Any, Any]]:
        try:
            old, new = list(unpack_dirents(memoryview(was))), list(unpack_dirents(memoryview(now)))
        except FsError:
            if was != now:
                yield "data", was, now
            return
        if [entry.name for entry in old] != [entry.name for entry in new]:
            yield "data.names", _names(old), _names(new)
            return
        for a, b in zip(old, new, strict=True):
            yield from self._qid(f"data.{a.name}.qid", a.qid, b.qid)
            if a.type != b.type:
                yield f"data.{a.name}.type", a.type, b.type


def _volatile(kind: str, field: str, was: Any, now: Any) -> str:
    """Why a field of a message may differ so; "": it may not."""
    for row in FIELDS:
        if kind in row.messages and field in row.fields:
            return row.why
    if field == "ename" and _TRACE.sub("", str(was)) == _TRACE.sub("", str(now)):
        return TRACES
    return ""


def _lies(path: str, pattern: str) -> bool:
    if pattern.endswith("/**"):
        base = pattern.removesuffix("/**")
        depth = base.count("/")
        head = "/".join(path.split("/")[: depth + 1])
        return path.count("/") > depth and fnmatchcase(head, base)
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def _masked(frame: bytes, said: Said) -> bytes:
    """The frame with hidden what the recording hides; as it is when it is not as long."""
    if not said.hidden or len(frame) != len(said.frame):
        return frame
    masked = bytearray(frame)
    for offset, length in said.redactions:
        masked[offset : offset + length] = said.frame[offset : offset + length]
    return bytes(masked)


def _unpacked(frame: bytes, dialect: Dialect) -> Message | None:
    try:
        return unpack(memoryview(frame), dialect)
    except FsError:
        return None


def _text(said: Said, message: Message | None, raw: bytes) -> str:
    return raw.hex(" ") if message is None else show(said.tag, message, said.dialect)


def _said(value: Any) -> str:
    if isinstance(value, (memoryview, bytes)):
        return quote(bytes(value))
    return quote(value) if isinstance(value, str) else str(value)


def _names(entries: Sequence[Dirent]) -> str:
    return " ".join(quote(entry.name) for entry in entries)
