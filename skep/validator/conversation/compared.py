"""Two answers compared, the recorded one and that of now: which fields are not the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from skep.fs import messages as m
from skep.fs.errors import FsError
from skep.fs.messages import Dialect, Message, Qid
from skep.fs.transcript import fields, quote, show
from skep.fs.wire import Dirent, unpack, unpack_dirents, unpack_stat
from skep.validator.conversation.talk import Said
from skep.validator.conversation.volatile import HIDDEN, NUMBERED, VERSIONS, place_of, why_volatile

_Part = tuple[str, Any, Any]  # a field's name, and what was and is in it


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """``record``: of the recording, from 1; 0: its header. ``entry``: of the ledger, when it is about one."""

    record: int
    message: str
    field: str
    recorded: str
    played: str
    path: str = ""
    entry: int = 0


class Comparison:
    """The answers of one conversation. ``volatile``: how often something was not compared, by why."""

    def __init__(self) -> None:
        self.volatile: Counter[str] = Counter()
        self._files: dict[int, int] = {}  # their numbers, recorded -> played
        self._directories: set[str] = set()  # that were opened, in a dialect that reads them as files

    def difference(self, said: Said, frame: bytes) -> Difference | None:
        """The first field in which ``frame`` is not what was answered then; None: there is none."""
        found = list(self._compare(said, frame))
        place = place_of(said.path)
        if place is not None and found:
            # Which file it is, is told by the ledger everywhere.
            found = [each for each in found if each.field.startswith(("qid", "wqid"))]
            self.volatile[place.why] += 1
        return found[0] if found else None

    def _compare(self, said: Said, frame: bytes) -> Iterator[Difference]:
        """What differs in an answer; what may, is counted."""
        was, now = said.message, unpacked(_masked(frame, said), said.dialect)
        if said.hidden:
            self.volatile[HIDDEN] += 1
        if was is None or now is None or type(was) is not type(now):
            texts = [_text(said, message, raw) for message, raw in ((was, said.frame), (now, frame))]
            if texts[0] != texts[1]:
                yield Difference(said.n, said.kind, "message", texts[0], texts[1], said.path)
            return
        if isinstance(was, m.Ropen) and was.qid.type & m.QT.DIR:
            self._directories.add(said.path)
        for field in fields(type(was), said.dialect):
            for name, a, b in self._parts(
                field.name, getattr(was, field.name), getattr(now, field.name), said
            ):
                why = why_volatile(said.kind, name.rpartition(".")[2], a, b)
                if why:
                    self.volatile[why] += 1
                else:
                    yield Difference(said.n, said.kind, name, _said(a), _said(b), said.path)

    def _parts(self, name: str, was: Any, now: Any, said: Said) -> Iterator[_Part]:
        """The parts of a field that are not the same, qids apart from what may differ in them."""
        if isinstance(was, Qid) and isinstance(now, Qid):
            yield from self._qid(name, was, now)
        elif said.kind == "Rreaddir" and name == "data":
            yield from self._entries(bytes(was), bytes(now))
        elif isinstance(was, memoryview):
            if was != now and said.path in self._directories:
                yield from self._stats(was, now, said)
            elif was != now:
                yield name, was, now
        elif isinstance(was, tuple) and name == "wqid":
            if len(was) != len(now):
                yield f"{name}.count", len(was), len(now)
            for i, (a, b) in enumerate(zip(was, now, strict=False)):
                yield from self._qid(f"{name}[{i}]", a, b)
        elif isinstance(was, m.Stat):
            for part in was.__struct_fields__:
                yield from self._parts(f"{name}.{part}", getattr(was, part), getattr(now, part), said)
        elif was != now:
            yield name, was, now

    def _qid(self, name: str, was: Qid, now: Qid) -> Iterator[_Part]:
        if was.type != now.type:
            yield f"{name}.type", was.type, now.type
        if was.vers != now.vers:
            self.volatile[VERSIONS] += 1
        if was.path != now.path:
            self.volatile[NUMBERED] += 1
        if self._files.setdefault(was.path, now.path) != now.path:
            yield f"{name}.path", f"the file that was {self._files[was.path]} here", now.path

    def _stats(self, was: memoryview, now: memoryview, said: Said) -> Iterator[_Part]:
        """A directory's entries where it is read as a file of stats."""
        try:
            old, new = (list(_unpacked_stats(data, said.dialect)) for data in (was, now))
        except FsError:
            yield "data", was, now
            return
        if [stat.name for stat in old] != [stat.name for stat in new]:
            yield "data.names", _names(old), _names(new)
            return
        for a, b in zip(old, new, strict=True):
            parts = list(self._parts(f"data.{a.name}", a, b, said))
            place = place_of(f"{said.path.rstrip('/')}/{a.name}")
            if place is not None and parts:
                self.volatile[place.why] += 1
                parts = [part for part in parts if ".qid." in part[0]]
            yield from parts

    def _entries(self, was: bytes, now: bytes) -> Iterator[_Part]:
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


def _masked(frame: bytes, said: Said) -> bytes:
    """The frame with hidden what the recording hides; as it is when it is not as long."""
    if not said.hidden or len(frame) != len(said.frame):
        return frame
    masked = bytearray(frame)
    for offset, length in said.redactions:
        masked[offset : offset + length] = said.frame[offset : offset + length]
    return bytes(masked)


def unpacked(frame: bytes, dialect: Dialect) -> Message | None:
    try:
        return unpack(memoryview(frame), dialect)
    except FsError:
        return None


def _unpacked_stats(data: memoryview, dialect: Dialect) -> Iterator[m.Stat]:
    while data:
        stat, size = unpack_stat(data, dialect)
        yield stat
        data = data[size:]


def _text(said: Said, message: Message | None, raw: bytes) -> str:
    return raw.hex(" ") if message is None else show(said.tag, message, said.dialect)


def _said(value: Any) -> str:
    if isinstance(value, (memoryview, bytes)):
        return quote(bytes(value))
    return quote(value) if isinstance(value, str) else str(value)


def _names(entries: Sequence[Dirent | m.Stat]) -> str:
    return " ".join(quote(entry.name) for entry in entries)
