"""Recorded conversations, ``.9pt``: bytes of records and records of bytes. What records them is recorder.py.

    skep-9pt/1 LF
    header LF                                          canonical JSON, see Header
    size[4] kind[1] time[8] seq[8] body[..] link[32]   each record; all numbers big-endian

``size`` counts what comes after it. ``kind`` is T or R, whose body is n[2] n*(offset[4] length[4]) and then
the 9P frame as on the wire, the n ranges of it overwritten with ``*``; or E, the end, whose body is the
canonical JSON of End. ``link`` is SHA-256 of the link before and all bytes of the record before its own; the
first link before is SHA-256 of the two lines. A file without E was cut short: it is good to its last whole
record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import IO, Final, NamedTuple

import msgspec

from skep.trace.entry import canonical

MAGIC: Final = b"skep-9pt/1\n"
FIDS_TOLD_MAX: Final = 1024  # fids in a header, of a mount that holds one for each file it has seen
HEADER_MAX: Final = 8 << 20  # bytes of the header's line: as many paths
REDACTIONS_MAX: Final = 256  # ranges of one frame
FRAME_MAX: Final = 16 << 20  # bytes of a frame: no msize is larger
STAR: Final = 0x2A
LINK_SIZE: Final = 32
_SIZE: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">cQQ")  # kind, time, seq
_COUNT: Final = struct.Struct(">H")
_RANGE: Final = struct.Struct(">II")
RECORD_SIZE: Final = _SIZE.size + _HEAD.size + _COUNT.size + LINK_SIZE  # bytes of a message, but its frame
REDACTION_SIZE: Final = _RANGE.size
_RECORD_MIN: Final = _HEAD.size + LINK_SIZE
_RECORD_MAX: Final = RECORD_SIZE + REDACTIONS_MAX * REDACTION_SIZE + FRAME_MAX

Redaction = tuple[int, int]  # offset in the frame and length, in bytes


class NineptError(Exception):
    """It is no recording, or not what was recorded. ``record``: which one, from 1; 0: the two lines."""

    def __init__(self, record: int, text: str) -> None:
        super().__init__(f"record {record}: {text}" if record else text)
        self.record = record
        self.text = text


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Whose conversation it is. ``tree``: SHA-256, in hex, of what is served there (recordings.py). ``seq``:
    the ledger's size at the begin; ``time`` in ns. ``dialect``: 9P2000.L, or "" before the Tversion.
    ``fids``: those that there were at the begin, each its number, path and mode of open, -1: not open."""

    v: int = 1
    release: str
    dialect: str
    msize: int
    session: str
    principal: str
    role: str
    node: str
    tenant: str
    aname: str
    tree: str
    seq: int
    time: int
    fids: tuple[tuple[int, str, int], ...] = ()


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Why it ends: closed (the session has), off (by command), elsewhere (its client went on in another
    tenant), full (the file's limit), space (the disk has none), disk (it failed), slow (it did not keep up).
    ``lost``: messages seen after the last one that is here."""

    why: str
    lost: int = 0


class Record(NamedTuple):
    """One message, kind T or R, its ``body`` the frame; or the end, kind E. ``time_ns``: when it was seen;
    ``seq``: the ledger's size then."""

    kind: str
    time_ns: int
    seq: int
    redactions: tuple[Redaction, ...]
    body: bytes


class Writer:
    """The bytes of one recording, in order: those of the header, of each record, of the end."""

    def __init__(self) -> None:
        self.link = b""  # of what was written last

    def header(self, header: Header) -> bytes:
        data = MAGIC + canonical(header) + b"\n"
        self.link = hashlib.sha256(data).digest()
        return data

    def record(
        self,
        kind: str,
        time_ns: int,
        seq: int,
        frame: bytes | memoryview,
        redactions: Sequence[Redaction] = (),
    ) -> bytes:
        """A message, T or R. ``redactions``: ascending, in the frame, at most REDACTIONS_MAX."""
        ranges = b"".join(_RANGE.pack(*each) for each in redactions)
        told = starred(frame, redactions)
        return self._linked(kind, time_ns, seq, _COUNT.pack(len(redactions)) + ranges + told)

    def end(self, time_ns: int, seq: int, end: End) -> bytes:
        return self._linked("E", time_ns, seq, canonical(end))

    def _linked(self, kind: str, time_ns: int, seq: int, body: bytes) -> bytes:
        size = _RECORD_MIN + len(body)
        data = _SIZE.pack(size) + _HEAD.pack(kind.encode(), time_ns, seq) + body
        self.link = hashlib.sha256(self.link + data).digest()
        return data + self.link


def starred(frame: bytes | memoryview, redactions: Sequence[Redaction]) -> bytes:
    """The frame without what is redacted."""
    told = bytearray(frame)
    for offset, length in redactions:
        told[offset : offset + length] = bytes((STAR,)) * length
    return bytes(told)


class Reading(Iterator[Record]):
    """The records of a recording; at their end, ``end`` and ``cut``. Raises NineptError where they are not
    linked as they were recorded."""

    def __init__(self, file: IO[bytes]) -> None:
        self.count = 0  # records read
        self.end: End | None = None  # not None: the E record has been read
        self.cut = False  # it ended without one: it was cut short
        self._file = file
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise NineptError(0, f"{magic[:16]!r}: expected {MAGIC!r}")
        line = file.readline(HEADER_MAX)
        if not line.endswith(b"\n"):
            raise NineptError(0, "its header is cut short")
        try:
            self.header = msgspec.json.decode(line, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NineptError(0, f"header: {error}") from error
        if self.header.v != 1 or canonical(self.header) + b"\n" != line:
            raise NineptError(0, "header: expected version 1, in canonical JSON")
        self.link = hashlib.sha256(magic + line).digest()

    def __next__(self) -> Record:
        if self.end is not None:
            if self._file.read(1):
                raise NineptError(self.count + 1, "it stands after the end")
            raise StopIteration
        data = self._whole()
        if data is None:
            self.cut = True
            raise StopIteration
        self.count += 1
        link = hashlib.sha256(self.link + data[:-LINK_SIZE]).digest()
        if link != data[-LINK_SIZE:]:
            raise NineptError(self.count, "its link is not that of what comes before it")
        self.link = link
        return self._record(memoryview(data)[_SIZE.size : -LINK_SIZE])

    def _whole(self) -> bytes | None:
        """The next record's bytes; None: there is no whole one."""
        head = self._file.read(_SIZE.size)
        if len(head) < _SIZE.size:
            return None
        (size,) = _SIZE.unpack(head)
        if not _RECORD_MIN <= size <= _RECORD_MAX:
            raise NineptError(self.count + 1, f"{size} bytes: expected {_RECORD_MIN} to {_RECORD_MAX}")
        rest = self._file.read(size)
        return head + rest if len(rest) == size else None

    def _record(self, data: memoryview) -> Record:
        raw, time_ns, seq = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        kind = raw.decode("latin-1")
        if kind == "E":
            try:
                self.end = msgspec.json.decode(body, type=End)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise NineptError(self.count, f"end: {error}") from error
            return Record(kind, time_ns, seq, (), bytes(body))
        if kind not in ("T", "R"):
            raise NineptError(self.count, f"kind {kind!r}: expected T, R or E")
        try:
            redactions, frame = _message(body)
        except (struct.error, ValueError) as error:
            raise NineptError(self.count, f"{kind}: {error}") from error
        return Record(kind, time_ns, seq, redactions, frame)


def _message(body: memoryview) -> tuple[tuple[Redaction, ...], bytes]:
    """Redactions and frame. Raises ValueError."""
    (count,) = _COUNT.unpack_from(body)
    begin = _COUNT.size + count * _RANGE.size
    if begin > len(body):
        raise ValueError(f"{count} redactions do not fit")
    redactions = tuple(_RANGE.iter_unpack(body[_COUNT.size : begin]))
    frame = bytes(body[begin:])
    if len(frame) < 7 or int.from_bytes(frame[:4], "little") != len(frame):
        raise ValueError(f"{len(frame)} bytes are no 9P frame")
    at = 0
    for offset, length in redactions:
        if offset < at or offset + length > len(frame):
            raise ValueError(f"redaction {offset}+{length} is not within the frame, in order")
        at = offset + length
        if frame[offset:at].count(STAR) != length:
            raise ValueError(f"redaction {offset}+{length} shows what it hides")
    return redactions, frame


def read(source: bytes | IO[bytes]) -> tuple[Header, Reading]:
    """The header, and the records as they are read. Raises NineptError."""
    reading = Reading(BytesIO(source) if isinstance(source, bytes) else source)
    return reading.header, reading
