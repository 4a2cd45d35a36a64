"""The bytes of 9P: messages packed and unpacked from their declaration in messages.py.

Not the conversation (session.py). A message is size[4] type[1] tag[2] and its fields, little-endian; s is
a string: length[2] and its bytes. Names are ``str``: UTF-8 without NUL in 9P2000 and 9P2000.u; in 9P2000.L
any bytes but NUL, kept through surrogateescape.

Sources: Plan 9 manual, intro(5) and its pages; the 9P2000.u draft; diod's protocol.md for 9P2000.L.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from skep.fs.errors import E, FsError
from skep.fs.messages import DM, MESSAGES, NONUNAME, NUMBERS, WALK_MAX, Dialect, Message, Only, Qid, Stat
from skep.fs.node import Attr, dm_mode

HEADER: Final = struct.Struct("<IBH")  # size[4] type[1] tag[2]


class WireError(Exception):
    """Bytes that end the conversation: no frame can be made of them."""


Pack = Callable[[Any, bytearray], None]
Unpack = Callable[[memoryview, int, int], tuple[Any, int]]  # frame, offset, end -> value, next offset


def malformed(why: str) -> FsError:
    """The answer to a frame whose fields do not fit it; the conversation goes on."""
    return FsError(E.PROTO, why)


def _string(encoding_errors: str) -> tuple[Pack, Unpack]:
    """The codec of s: length[2] and that many bytes. What is not UTF-8 where it must be is sent as "?"."""
    sent = "replace" if encoding_errors == "strict" else encoding_errors

    def pack(value: str, out: bytearray) -> None:
        raw = value.encode("utf-8", sent)
        out += len(raw).to_bytes(2, "little")
        out += raw

    def unpack(frame: memoryview, at: int, end: int) -> tuple[str, int]:
        stop = at + 2 + (frame[at] | frame[at + 1] << 8) if at + 2 <= end else end + 1
        if stop > end:
            raise malformed("string runs past the end of the message")
        raw = bytes(frame[at + 2 : stop])
        if 0 in raw:
            raise malformed("NUL in a string")
        try:
            return raw.decode("utf-8", encoding_errors), stop
        except UnicodeDecodeError:
            raise malformed("string is not UTF-8") from None

    return pack, unpack


def _data() -> tuple[Pack, Unpack]:
    """The codec of count[4] data[count]; unpack gives a view into the frame."""

    def pack(value: bytes, out: bytearray) -> None:
        out += len(value).to_bytes(4, "little")
        out += value

    def unpack(frame: memoryview, at: int, end: int) -> tuple[memoryview, int]:
        stop = at + 4 + int.from_bytes(frame[at : at + 4], "little") if at + 4 <= end else end + 1
        if stop > end:
            raise malformed("data runs past the end of the message")
        return frame[at + 4 : stop], stop

    return pack, unpack


def _sequence(item: tuple[Pack, Unpack]) -> tuple[Pack, Unpack]:
    """The codec of n[2] and n items."""
    pack_item, unpack_item = item

    def pack(value: tuple[Any, ...], out: bytearray) -> None:
        out += len(value).to_bytes(2, "little")
        for one in value:
            pack_item(one, out)

    def unpack(frame: memoryview, at: int, end: int) -> tuple[tuple[Any, ...], int]:
        if at + 2 > end:
            raise malformed("message is too short")
        count = frame[at] | frame[at + 1] << 8
        if count > WALK_MAX:
            raise malformed(f"{count} names; at most {WALK_MAX} fit one walk")
        at += 2
        values = []
        for _ in range(count):
            value, at = unpack_item(frame, at, end)
            values.append(value)
        return tuple(values), at

    return pack, unpack


def _nested_stat(dialect: Dialect) -> tuple[Pack, Unpack]:
    """The codec of n[2] and a stat of n bytes, as in Rstat and Twstat."""

    def pack(value: Stat, out: bytearray) -> None:
        entry = pack_stat(value, dialect)
        out += len(entry).to_bytes(2, "little")
        out += entry

    def unpack(frame: memoryview, at: int, end: int) -> tuple[Stat, int]:
        stop = at + 2 + (frame[at] | frame[at + 1] << 8) if at + 2 <= end else end + 1
        if stop > end:
            raise malformed("stat runs past the end of the message")
        stat, used = unpack_stat(frame[at + 2 : stop], dialect)
        if used != stop - at - 2:
            raise malformed("stat is shorter than it says")
        return stat, stop

    return pack, unpack


class _Codec:
    """Packs and unpacks one record in one dialect: runs of numbers by one struct, the rest field by field."""

    def __init__(self, record: type[Any], dialect: Dialect) -> None:
        self.record = record
        self.steps: list[tuple[str | None, Any, list[tuple[str, int]]]] = []
        for name, hint in get_type_hints(record, include_extras=True).items():
            metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            if any(isinstance(m, Only) and dialect not in m.dialects for m in metadata):
                continue
            self._add(name, hint, next((m for m in metadata if isinstance(m, str)), None), dialect)
        for i, (step, codec, run) in enumerate(self.steps):
            if step is None:
                self.steps[i] = (None, struct.Struct("<" + "".join(codec)), run)

    def _add(self, name: str, hint: Any, code: str | None, dialect: Dialect) -> None:
        fixed = {Qid: "BIQ"}.get(hint, code if code != "data" else None)
        if fixed is not None:
            if not self.steps or self.steps[-1][0] is not None:
                self.steps.append((None, [], []))
            self.steps[-1][1].append(fixed)
            self.steps[-1][2].append((name, len(fixed)))
            return
        strings = _string("surrogateescape" if dialect is Dialect.L else "strict")
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        codecs: dict[Any, Callable[[], tuple[Pack, Unpack]]] = {
            str: lambda: strings,
            bytes: _data,
            Stat: lambda: _nested_stat(dialect),
            tuple[str, ...]: lambda: _sequence(strings),
            tuple[Qid, ...]: lambda: _sequence(_QID),
        }
        self.steps.append((name, codecs[plain](), []))

    def pack(self, value: Any, out: bytearray) -> None:
        for step, codec, run in self.steps:
            if step is not None:
                codec[0](getattr(value, step), out)
                continue
            numbers: list[int] = []
            for field, width in run:
                number = getattr(value, field)
                if width == 1:
                    numbers.append(number)
                else:
                    numbers.extend(number)
            out += codec.pack(*numbers)

    def unpack(self, frame: memoryview, at: int, end: int) -> tuple[Any, int]:
        values: list[Any] = []
        for field, codec, run in self.steps:
            if field is not None:
                value, at = codec[1](frame, at, end)
                values.append(value)
                continue
            if at + codec.size > end:
                raise malformed("message is too short")
            numbers = codec.unpack_from(frame, at)
            at += codec.size
            if len(numbers) == len(run):
                values.extend(numbers)
                continue
            i = 0
            for _, width in run:
                values.append(numbers[i] if width == 1 else Qid(*numbers[i : i + 3]))
                i += width
        return self.record(*values), at


def _pack_qid(value: Qid, out: bytearray) -> None:
    out += _QID_STRUCT.pack(*value)


def _unpack_qid(frame: memoryview, at: int, end: int) -> tuple[Qid, int]:
    if at + 13 > end:
        raise malformed("message is too short")
    return Qid(*_QID_STRUCT.unpack_from(frame, at)), at + 13


_QID_STRUCT: Final = struct.Struct("<BIQ")
_QID: Final[tuple[Pack, Unpack]] = (_pack_qid, _unpack_qid)
_STATS: Final = {dialect: _Codec(Stat, dialect) for dialect in Dialect}
_CODECS: Final = {
    dialect: {message: _Codec(message, dialect) for message in messages.values()}
    for dialect, messages in MESSAGES.items()
}


def pack_stat(stat: Stat, dialect: Dialect) -> bytes:
    """size[2] and the entry: an element of a directory read, or what follows n[2] in Rstat."""
    out = bytearray(2)
    _STATS[dialect].pack(stat, out)
    out[0:2] = (len(out) - 2).to_bytes(2, "little")
    return bytes(out)


def unpack_stat(data: memoryview, dialect: Dialect) -> tuple[Stat, int]:
    """The first entry in ``data`` and how many bytes it took.

    Raises FsError(E.PROTO) when its size does not agree with its fields."""
    if len(data) < 2:
        raise malformed("stat is too short")
    end = 2 + (data[0] | data[1] << 8)
    if end > len(data):
        raise malformed("stat runs past the end of the message")
    stat, at = _STATS[dialect].unpack(data, 2, end)
    if at != end:
        raise malformed("stat is longer than its fields")
    return stat, end


def pack(tag: int, message: Message, dialect: Dialect) -> bytes:
    """The whole frame of ``message``: size[4] type[1] tag[2] and its fields."""
    out = bytearray(7)
    kind = type(message)
    _CODECS[dialect][kind].pack(message, out)
    HEADER.pack_into(out, 0, len(out), NUMBERS[kind], tag)
    return bytes(out)


def unpack(frame: memoryview, dialect: Dialect) -> Message:
    """The message in one whole frame (its size agrees with ``len(frame)``, the caller has checked).

    Raises FsError(E.NOTSUP) on a type the dialect lacks, FsError(E.PROTO) on fields that do not fit."""
    kind = MESSAGES[dialect].get(frame[4])
    if kind is None:
        raise FsError(E.NOTSUP, f"message type {frame[4]} in {dialect.value}")
    message, at = _CODECS[dialect][kind].unpack(frame, 7, len(frame))
    if at != len(frame):
        raise malformed(f"{len(frame) - at} bytes after the last field")
    return message  # type: ignore[no-any-return]


class Dirent(NamedTuple):
    """An element of Rreaddir: qid[13] offset[8] type[1] name[s]; offset is the cookie after it."""

    qid: Qid
    offset: int
    type: int
    name: str


_DIRENT: Final = struct.Struct("<BIQQBH")


def pack_dirent(entry: Dirent) -> bytes:
    """One directory entry of 9P2000.L, as Rreaddir carries it."""
    raw = entry.name.encode("utf-8", "surrogateescape")
    return _DIRENT.pack(*entry.qid, entry.offset, entry.type, len(raw)) + raw


def unpack_dirents(data: memoryview) -> list[Dirent]:
    """All entries of one Rreaddir. Raises FsError(E.PROTO) when the last is not whole."""
    entries, at = [], 0
    while at < len(data):
        if at + _DIRENT.size > len(data):
            raise malformed("directory entry is too short")
        qtype, vers, path, offset, dtype, length = _DIRENT.unpack_from(data, at)
        at += _DIRENT.size
        if at + length > len(data):
            raise malformed("directory entry runs past the end of the message")
        name = bytes(data[at : at + length]).decode("utf-8", "surrogateescape")
        entries.append(Dirent(Qid(qtype, vers, path), offset, dtype, name))
        at += length
    return entries


def negotiate(version: str) -> Dialect | None:
    """The dialect a Tversion's string asks for; None: none that is known.

    What follows the first period may be ignored, so ``9P2000.zzz`` is 9P2000; a number after 9P above
    2000 asks for a later protocol and gets this one. Source: version(5)."""
    head, *extensions = version.split(".")
    if not (head.startswith("9P") and len(head) == 6 and head[2:].isascii() and head[2:].isdigit()):
        return None
    if int(head[2:]) < 2000:
        return None
    extension = extensions[0] if extensions and head == "9P2000" else ""
    return {"u": Dialect.U, "L": Dialect.L}.get(extension, Dialect.PLAIN)


def _told(text: str, dialect: Dialect) -> str:
    """A name as this dialect can tell it: bytes of the host that are not UTF-8 only in 9P2000.L."""
    if dialect is Dialect.L or text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stat_of(attr: Attr, name: str, dialect: Dialect) -> Stat:
    """The 9P2000 entry that tells ``attr``; directories have length 0 there. Linux reads the number of a
    file's links from the extension of 9P2000.u."""
    mode = dm_mode(attr, dialect is Dialect.U)
    name, target = _told(name, dialect), _told(attr.target, dialect)
    if attr.nlink > 1 and not mode & DM.DIR and not target:
        target = f"HARDLINKCOUNT {attr.nlink}"
    seconds = 1_000_000_000
    return Stat(
        0, 0, attr.qid, mode, attr.atime_ns // seconds & 0xFFFFFFFF, attr.mtime_ns // seconds & 0xFFFFFFFF,
        0 if mode & DM.DIR else attr.size, name, attr.user, attr.group, attr.muser,
        target, attr.uid, attr.gid, NONUNAME,
    )  # fmt: skip
