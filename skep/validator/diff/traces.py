"""What is compared: a ledger's entries or a conversation's messages, without what no two runs have the same.

That is an entry's number, time and trace, times that were decided, and ids: what an id is called here follows
from the entry it first appears in, so that it is the same in two runs of the same work, whatever else they
did."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from skep.fs.ninept import MAGIC, NineptError, read
from skep.fs.transcript import show, split
from skep.native.myers import Items
from skep.trace.entry import OK, VERSION, Entry, canonical, entry_decoder
from skep.trace.snapshot import MAGIC as SNAPSHOT
from skep.trace.sqlite import APPLICATION_ID
from skep.validator.conversation.talk import Said, talk
from skep.validator.verify.found import Finding
from skep.validator.verify.sources import LedgerSource, Source, TileSource, below

LEDGER: Final = "ledger.db"  # of a hive's directory
TRACES: Final = ("ledger", "conversation")  # the files that are traces
TRACE: Final = "log/trace"  # where a hive has its log, and all other traces
_MAGICS: Final = {MAGIC: "conversation", SNAPSHOT: "snapshot"}
SQLITE: Final = b"SQLite format 3\x00"
MARK_SIZE: Final = 72  # bytes of a file that tell what it is

# Looking back after the first character, not before it, lets re skip to it: 4 µs an entry, not 7.
ID: Final = re.compile(rb"[0-7](?<![0-9A-Za-z][0-7])[0-9A-HJKMNP-TV-Z]{25}(?![0-9A-Za-z])")
# Of a year from 2001 to 2286: durations are shorter.
_MOMENT: Final = re.compile(rb'_ns":\d{19}(?!\d)')
_MOMENT_MIN: Final = 10**18
_RFC3339: Final = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_OK: Final = msgspec.Raw(canonical(OK))
_QID: Final = re.compile(r"\(([0-9a-f]+) \d+ (\d+)\)")
_CLOCK: Final = re.compile("tag|[amcb]time.*")  # fields of a message that tell a time, and its tag


class NotTold(Exception):
    """It cannot be compared; the text says why."""


class Shown(msgspec.Struct, frozen=True):
    """An entry or a message for people. ``place``: its number, from 1."""

    place: int
    who: str
    role: str
    path: str
    said: str
    outcome: str


class Trace(Protocol):
    """Numbered things from 1 on."""

    noun: str  # what they are, "entries"
    cut: bool  # its end is missing

    def plain(self) -> Iterator[bytes]:
        """All of them, in order, without what is volatile but ids. Raises NotTold."""

    def value(self, place: int) -> dict[str, Any]:
        """The same of one, as JSON. Like those below it raises NotTold."""

    def shown(self, place: int) -> Shown: ...

    def key(self, place: int) -> bytes:
        """What makes two of them versions of one: who, where and the verb."""


class _Entry(msgspec.Struct):
    """As much as is compared."""

    v: int
    seq: int
    actor: str
    role: str
    tenant: str
    path: str
    line: str
    outcome: msgspec.Raw
    events: msgspec.Raw
    token: str = ""


_entry: Final = msgspec.json.Decoder(_Entry)
_whole: Final[msgspec.json.Decoder[Entry[dict[str, Any]]]] = entry_decoder(dict[str, Any])


class Entries:
    """Those of a ledger's file or of tiles. Their hashes are not verified here."""

    noun = "entries"
    cut = False

    def __init__(self, source: Source) -> None:
        self._source = source

    def plain(self) -> Iterator[bytes]:
        seq = 0
        try:
            for seq, row in enumerate(self._source.rows(), 1):
                if row.seq != seq:
                    raise NotTold(f"entry {seq} is missing: skep verify tells more")
                entry = _entry.decode(row.body)
                if entry.v != VERSION or entry.seq != seq:
                    raise NotTold(f"entry {seq}: says it is entry {entry.seq} of version {entry.v}")
                told = (entry.actor, entry.role, entry.tenant, entry.path, entry.line, entry.token)
                outcome = _OK if entry.outcome == _OK else _RFC3339.sub(b"T", entry.outcome)
                # No newline stands in JSON.
                yield b"%b\n%b\n%b" % (canonical(told), outcome, _MOMENT.sub(b"_ns", entry.events))
        except msgspec.DecodeError as error:
            raise NotTold(f"entry {seq}: {error}") from error
        except Finding as error:
            raise NotTold(str(error)) from error

    def value(self, place: int) -> dict[str, Any]:
        value: dict[str, Any] = msgspec.to_builtins(self._decoded(place))
        for name in ("seq", "time", "trace"):
            value.pop(name)
        outcome = value["outcome"]
        outcome["text"] = _RFC3339.sub(b"T", outcome["text"].encode()).decode()
        value["events"] = _without_moments(value["events"])
        return value

    def shown(self, place: int) -> Shown:
        entry = self._decoded(place)
        code, text = entry.outcome.code, entry.outcome.text
        return Shown(place, entry.actor, entry.role, entry.path, entry.line, f"{code} {text}".rstrip())

    def key(self, place: int) -> bytes:
        entry = self._decoded(place)
        verbs = [line.partition(" ")[0] for line in entry.line.split("\n")]
        path = ID.sub(b"@", entry.path.encode()).decode()
        return canonical([entry.actor, entry.role, path, verbs])

    def _decoded(self, place: int) -> Entry[dict[str, Any]]:
        row = self._source.row(place)
        assert row is not None, place
        try:
            return _whole.decode(row.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise NotTold(f"entry {place}: {error}") from error


def _without_moments(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _without_moments(of) for name, of in value.items()}
        moments = [name for name in kept if name.endswith("_ns") and _is_moment(kept[name])]
        return {name: of for name, of in kept.items() if name not in moments}
    return [_without_moments(of) for of in value] if isinstance(value, list | tuple) else value


def _is_moment(value: Any) -> bool:
    return isinstance(value, int) and value >= _MOMENT_MIN


class Messages:
    """Those of a recorded conversation, without tags, qid versions and times."""

    noun = "messages"

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                header, records = read(file)
                self._said: list[Said] = list(talk(header, records))
                # The end is a record too, which talk does not read beyond.
                self.cut = records.end is None
        except NineptError as error:
            raise NotTold(f"{path}: {error}") from error
        self._who, self._role = header.principal, header.role

    def plain(self) -> Iterator[bytes]:
        for place in range(1, len(self._said) + 1):
            yield canonical(self.value(place))

    def value(self, place: int) -> dict[str, Any]:
        said = self._said[place - 1]
        _, _, fields = split(_QID.sub(r"(\1 0 \2)", self._line(said)))
        told = {name: of for name, of in fields.items() if not _CLOCK.fullmatch(name)}
        return {"message": said.kind, "path": said.path, "fields": told}

    def shown(self, place: int) -> Shown:
        said = self._said[place - 1]
        return Shown(place, self._who, self._role, said.path, self._line(said), "")

    def key(self, place: int) -> bytes:
        said = self._said[place - 1]
        return canonical([said.kind, ID.sub(b"@", said.path.encode()).decode()])

    def _line(self, said: Said) -> str:
        if said.message is None:
            return f"? tag {said.tag}"
        return show(said.tag, said.message, said.dialect)


def opened(said: str) -> Trace | None:
    """The trace at a path; None: what is there is something else. Raises NotTold where there is nothing."""
    path = Path(said.removeprefix("sqlite://"))
    try:
        if path.is_dir():
            return Entries(LedgerSource(path / LEDGER) if (path / LEDGER).is_file() else _tiles(path))
        if not path.is_file():
            raise NotTold(f"{said}: there is no such file")
        kind = kind_of(path)
        if kind == "ledger":
            return Entries(LedgerSource(path))
        return Messages(path) if kind == "conversation" else None
    except Finding as error:
        raise NotTold(f"{said}: {error}") from error


def _tiles(path: Path) -> TileSource:
    return TileSource(below(path / TRACE if (path / TRACE).is_dir() else path))


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: ledger, conversation, snapshot or "" for none of them."""
    with path.open("rb") as file:
        mark = file.read(MARK_SIZE)
    for magic, kind in _MAGICS.items():
        if mark.startswith(magic):
            return kind
    # A SQLite file has its application's id at 68.
    mine = mark.startswith(SQLITE) and int.from_bytes(mark[68:72], "big") == APPLICATION_ID
    return "ledger" if mine else ""


class Prints(NamedTuple):
    """A trace as numbers. items: int64[*], equal for the same. Ids are numbers in the order in which they
    first appear; those of the n-th end before ends[n], ids: int64[*], ends: int64[*]."""

    items: Items
    ids: Items
    ends: Items
    numbers: dict[bytes, int]

    def of(self, place: int, count: int = 1) -> Items:
        """The ids of so many from ``place`` on, which counts from 1."""
        return self.ids[self.ends[place - 2] if place > 1 else 0 : self.ends[place + count - 2]]


def prints(trace: Trace, known: dict[bytes, int]) -> Prints:
    """``known``: the numbers of what has been met, in other traces too. Raises NotTold."""
    items, ids, ends = array("q"), array("q"), array("q")
    numbers: dict[bytes, int] = {}
    names: list[bytes] = []  # by number
    new: list[int] = []

    def named(found: re.Match[bytes]) -> bytes:
        number = numbers.setdefault(found[0], len(names))
        if number == len(names):
            names.append(b"\x1e%d" % len(new))
            new.append(number)
        ids.append(number)
        return names[number]

    for plain in trace.plain():
        print = blake2b(ID.sub(named, plain), digest_size=16).digest()
        for k, number in enumerate(new):
            names[number] = b"\x1e%b%d" % (print, k)
        new.clear()
        items.append(known.setdefault(print, len(known)))
        ends.append(len(ids))
    return Prints(items, ids, ends, numbers)


def strays(directory: Path, where: Sequence[str]) -> list[str]:
    """Ledgers, conversations and directories of tiles in a hive's directory, outside the folders in which
    they may lie; by their paths in it. The hive's own ledger lies at its top."""
    found = []
    for path in sorted(directory.rglob("*")):
        told = f"/{path.relative_to(directory).as_posix()}"
        if any(told.startswith(folder) for folder in where) or told == f"/{LEDGER}":
            continue
        if (path.is_file() and not path.is_symlink() and kind_of(path) in TRACES) or _is_tiles(path):
            found.append(told)
    return found


def _is_tiles(path: Path) -> bool:
    return path.name == "tile" and path.is_dir() and path.with_name("checkpoint").is_file()
