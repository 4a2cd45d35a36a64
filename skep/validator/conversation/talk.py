"""What was said in a recorded conversation: each message by its fields, with the file it is about.

A fid means nothing without what came before; here it is a path again. What a recording hides (redactions) is
not guessed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from skep.fs import messages as m
from skep.fs.errors import FsError
from skep.fs.messages import Dialect, Message
from skep.fs.ninept import Header, Record, Redaction
from skep.fs.wire import HEADER, unpack

_FIDS = ("fid", "afid", "dfid", "dirfid", "olddirfid")  # what a message is about stands in the first it has


class Said(NamedTuple):
    """One message. ``n``: its record, from 1; ``path``: of the file it is about, what is walked to or made
    included, "" where that is not known; ``to``: what it answers."""

    n: int
    time_ns: int
    seq: int
    tag: int
    message: Message | None  # None: it is no message of the dialect
    path: str
    redactions: tuple[Redaction, ...]
    frame: bytes
    dialect: Dialect
    to: Said | None = None  # None: it asks, or answers what is not in the recording

    @property
    def hidden(self) -> int:
        """Bytes of it that the recording does not show."""
        return sum(length for _, length in self.redactions)

    @property
    def kind(self) -> str:
        return type(self.message).__name__ if self.message is not None else "?"

    @property
    def asks(self) -> bool:
        return not self.frame[4] & 1


def talk(header: Header, records: Iterable[Record]) -> Iterator[Said]:
    """The messages of a recording, in order. Raises NineptError as ``records`` does."""
    dialect = _dialect(header.dialect) or Dialect.PLAIN
    fids = Fids({number: path for number, path, _ in header.fids})
    open_: dict[int, Said] = {}
    for n, record in enumerate(records, 1):
        if record.kind == "E":
            return
        _, kind, tag = HEADER.unpack_from(record.body)
        message = _message(record.body, Dialect.PLAIN if kind in (100, 101) else dialect)
        about = Said(n, record.time_ns, record.seq, tag, message, "", record.redactions, record.body, dialect)
        if about.asks:
            said = about._replace(path=fids.path_of(message))
            open_[tag] = said
        else:
            asked = open_.pop(tag, None)
            said = about._replace(path=asked.path if asked else "", to=asked)
            if isinstance(message, m.Rversion):
                dialect = _dialect(message.version) or dialect
                said = said._replace(dialect=dialect)
                fids.paths.clear()
                open_.clear()
            elif asked is not None:
                fids.answered(asked, message)
        yield said


def _dialect(version: str) -> Dialect | None:
    return Dialect(version) if version in (each.value for each in Dialect) else None


def _message(frame: bytes, dialect: Dialect) -> Message | None:
    try:
        return unpack(memoryview(frame), dialect)
    except FsError:
        return None


class Fids:
    """The path of each fid."""

    def __init__(self, paths: dict[int, str]) -> None:
        self.paths = paths  # "": not known

    def path_of(self, asked: Message | None) -> str:
        """The file that a request is about; "" where that is not known."""
        number = next((getattr(asked, name) for name in _FIDS if hasattr(asked, name)), None)
        base = (
            "/" if isinstance(asked, m.Tattach) else self.paths.get(number, "") if number is not None else ""
        )
        if not base:
            return ""
        match asked:
            case m.Twalk():
                return _walked(base, asked.wname)
            case m.Tlcreate() | m.Tcreate() | m.Tmkdir() | m.Tsymlink() | m.Tunlinkat() | m.Tmknod():
                return _walked(base, (asked.name,))
            case m.Trenameat():
                return _walked(base, (asked.oldname,))
        return base

    def answered(self, said: Said, answer: Message | None) -> None:
        """Take what a request has done to the fids."""
        if isinstance(said.message, m.Tclunk | m.Tremove):
            self.paths.pop(said.message.fid, None)
        if isinstance(answer, m.Rlerror | m.Rerror | None):
            return
        match said.message:
            case m.Tattach(fid=fid) | m.Tlcreate(fid=fid) | m.Tcreate(fid=fid):
                self.paths[fid] = said.path
            case m.Tauth(afid=afid):
                self.paths[afid] = ""
            case m.Txattrwalk(newfid=newfid):
                self.paths[newfid] = said.path
            case m.Twalk(newfid=newfid, wname=names):
                if isinstance(answer, m.Rwalk) and len(answer.wqid) == len(names) and said.path:
                    self.paths[newfid] = said.path


def _walked(base: str, names: Iterable[str]) -> str:
    path = [part for part in base.split("/") if part]
    for name in names:
        if name == "..":
            path = path[:-1]
        elif name != ".":
            path.append(name)
    return f"/{'/'.join(path)}"
