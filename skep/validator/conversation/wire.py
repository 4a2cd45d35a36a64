"""Replay of conversations: what a client said is said again, what it was answered is compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from skep.fs import messages as m
from skep.fs.errors import E
from skep.fs.messages import NOTAG, Dialect, Message
from skep.fs.ninept import Header
from skep.fs.transcript import show
from skep.fs.wire import pack
from skep.validator.conversation.compared import Comparison, Difference, unpacked
from skep.validator.conversation.past import Strange
from skep.validator.conversation.talk import Said
from skep.validator.conversation.volatile import BOOKMARKS, HIDDEN, LIMITED

SHOWN_MAX: Final = 1000  # differences that are kept; the rest is counted
ROOT_FID: Final = 0xFFFFFFF0  # ours, while fids are bound that there were at the begin
OUR_TAG: Final = NOTAG - 1  # of what we say ourselves
_BOOKMARK: Final = re.compile(rb'(?:\{"seq":\d+\}\n)+')
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
        self._is_other_tree = tree not in ("", header.tree)
        self.found = Played(header.session, header.principal)
        self._said = said
        self._answers = {each.to.n: each for each in said if each.to is not None}
        self._skipped: set[int] = set()  # records that are not played
        self._last = 0  # the record that is looked at
        self._comparison = Comparison()

    async def play(self) -> Played:
        """Say everything; what came back."""
        await self._begin()
        for each in self._said:
            # That another release serves another tree, says nothing yet about what was asked here.
            if self.found.differ > self._is_other_tree and not self.to_end:
                break
            self._last = each.n
            await self.wire.at(each.time_ns, each.seq)
            if each.asks:
                await self._say(each)
            else:
                await self._hear(each)
        else:
            self._more()
        self.found.volatile = dict(sorted(self._comparison.volatile.items()))
        return self.found

    def _strange(self) -> None:
        for what in self.wire.strange():
            fields = "entry", what.field, what.recorded, what.decided
            self._differs(Difference(self._last, *fields, entry=what.entry))

    # before the first message

    async def _begin(self) -> None:
        """Bring about what there was before the recording: an agreed version, and fids."""
        header = self.header
        if self._is_other_tree:
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
        return None if frame is None else unpacked(frame, dialect)

    # message by message

    async def _say(self, said: Said) -> None:
        answer = self._answers.get(said.n)
        why = self._why_not(said, answer)
        if why:
            self._skipped.add(said.n)
            self._comparison.volatile[why] += 1
            return
        if isinstance(said.message, m.Tauth):
            note = f"the proof is hidden: it is played as {self.header.principal}, whom no token narrows"
            self.found.notes += [note] if note not in self.found.notes else []
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
            self._comparison.volatile[BOOKMARKS] += 1
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
        found = self._comparison.difference(said, frame)
        if found is not None:
            self._differs(found)

    def _more(self) -> None:
        """What was answered here and was not then, while other answers still came."""
        heard = max((each.n for each in self._said if not each.asks), default=0)
        asked = {
            each.tag: each
            for each in self._said
            if each.asks and each.n not in self._answers and each.n < heard
        }
        for frame in self.wire.unasked():
            said = asked.get(int.from_bytes(frame[5:7], "little"))
            if said is not None:
                message = unpacked(frame, said.dialect)
                text = show(said.tag, message, said.dialect) if message is not None else frame.hex(" ")
                self._differs(Difference(said.n, said.kind, "answer", "none", text, said.path))

    async def _give_up(self, said: Said) -> None:
        """The call is not answered here: its tag must be free for the next."""
        await self._own(m.Tflush(said.tag), said.dialect)
        self.wire.unasked()

    def _differs(self, found: Difference) -> None:
        self.found.differ += 1
        if len(self.found.differences) < SHOWN_MAX:
            self.found.differences.append(found)
