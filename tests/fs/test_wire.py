"""The bytes of messages: against a second reading of the manuals, and against bytes that are no message."""

from __future__ import annotations

from typing import Any

import pytest
from construct import ConstructError  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.errors import E, FsError
from skep.fs.messages import DM, MESSAGES, NUMBERS, Dialect, Message, Qid, Stat
from skep.fs.node import Attr
from skep.fs.wire import (
    HEADER,
    Dirent,
    negotiate,
    pack,
    pack_dirent,
    pack_stat,
    stat_of,
    unpack,
    unpack_dirents,
    unpack_stat,
)
from tests.fs import construct_wire
from tests.fs.strategies import anything, dialects, of, qids, raw_text, tags, values

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)


def plainly(value: Any) -> Any:
    """A message, or a part of one, in construct's terms."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, Qid):
        return value._asdict()
    if isinstance(value, tuple):
        return [plainly(item) for item in value]
    if isinstance(value, (Message, Stat)):
        return {name: plainly(getattr(value, name)) for name in value.__struct_fields__}
    return bytes(value) if isinstance(value, memoryview) else value


@DIALECTS
def test_both_readings_have_the_same_messages(dialect: Dialect) -> None:
    ours = {number: message.__name__ for number, message in MESSAGES[dialect].items()}
    assert ours == {number: name for number, (name, _) in construct_wire.DIALECTS[dialect.value].items()}


@pytest.mark.slow
@given(anything, tags)
@settings(max_examples=400)
def test_both_readings_agree_on_the_bytes(told: tuple[Dialect, Message], tag: int) -> None:
    dialect, message = told
    number = NUMBERS[type(message)]
    frame = construct_wire.build(dialect.value, number, tag, plainly(message))
    assert frame == pack(tag, message, dialect)
    assert plainly(message) == plainly(unpack(memoryview(frame), dialect))
    assert (len(frame), number, tag) == HEADER.unpack_from(frame)


@pytest.mark.slow
@given(anything, tags, st.data())
@settings(max_examples=300)
def test_both_readings_refuse_the_same_spoilt_frames(
    told: tuple[Dialect, Message], tag: int, data: st.DataObject
) -> None:
    dialect, message = told
    body = bytearray(pack(tag, message, dialect)[7:])
    if body:
        at = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["cut", "grow", "byte"]))
        if change == "cut":
            del body[at:]
        elif change == "grow":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            body[at] = data.draw(st.integers(0, 255))
    frame = HEADER.pack(7 + len(body), NUMBERS[type(message)], tag) + body
    message_or_error = unpacked(frame, dialect)
    if isinstance(message_or_error, FsError):
        assert E.PROTO is message_or_error.kind
        # construct minds none of these.
        if not any(word in message_or_error.detail for word in ("UTF-8", "NUL", "names")):
            with pytest.raises(ConstructError):
                construct_wire.read(dialect.value, frame)
        return
    ours = plainly(message_or_error)
    _, _, theirs = construct_wire.read(dialect.value, frame)
    only_unix = {"extension", "n_uid", "n_gid", "n_muid", "n_uname", "errno"}
    for name, value in ours.items():
        if name in theirs:
            assert same(value, theirs[name])
        else:
            assert name in only_unix


def unpacked(frame: bytes, dialect: Dialect) -> Message | FsError:
    try:
        return unpack(memoryview(frame), dialect)
    except FsError as error:
        return error


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return all(same(value, theirs[name]) for name, value in ours.items() if name in theirs)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(same(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


@given(dialects, st.binary(max_size=80), st.integers(0, 255))
@settings(max_examples=500)
def test_any_bytes_are_an_error_or_the_message_that_packs_to_them(
    dialect: Dialect, body: bytes, number: int
) -> None:
    frame = HEADER.pack(7 + len(body), number, 1) + body
    message = unpacked(frame, dialect)
    if isinstance(message, FsError):
        assert message.kind in (E.PROTO, E.NOTSUP)
    else:
        assert frame == pack(1, message, dialect)


@pytest.mark.slow
@DIALECTS
@given(data=st.data())
def test_a_frame_without_its_end_is_an_error(dialect: Dialect, data: st.DataObject) -> None:
    frame = pack(1, data.draw(of(dialect)), dialect)
    for end in range(7, len(frame)):
        short = HEADER.pack(end, frame[4], 1) + frame[7:end]
        with pytest.raises(FsError, match="protocol error"):
            unpack(memoryview(short), dialect)


@pytest.mark.slow
@DIALECTS
@given(data=st.data())
def test_entries_of_a_directory_follow_each_other(dialect: Dialect, data: st.DataObject) -> None:
    stats = data.draw(st.lists(values(Stat, dialect), max_size=5))
    packed = memoryview(b"".join(pack_stat(stat, dialect) for stat in stats))
    found = []
    while packed:
        stat, size = unpack_stat(packed, dialect)
        found.append(stat)
        packed = packed[size:]
    assert stats == found


@pytest.mark.slow
@given(st.lists(st.builds(Dirent, qids, st.integers(0, (1 << 64) - 1), st.integers(0, 255), raw_text)))
def test_entries_of_a_listing_follow_each_other(entries: list[Dirent]) -> None:
    packed = b"".join(pack_dirent(entry) for entry in entries)
    assert entries == unpack_dirents(memoryview(packed))
    assert packed == b"".join(construct_wire.dirent.build(plainly_entry(entry)) for entry in entries)
    ends = {len(b"".join(pack_dirent(entry) for entry in entries[:i])) for i in range(len(entries))}
    for end in set(range(len(packed))) - ends:
        with pytest.raises(FsError, match="protocol error"):
            unpack_dirents(memoryview(packed[:end]))


def plainly_entry(entry: Dirent) -> dict[str, Any]:
    return {name: plainly(value) for name, value in entry._asdict().items()}


@pytest.mark.parametrize(
    ("version", "dialect"),
    [
        ("9P2000", Dialect.PLAIN),
        ("9P2000.u", Dialect.U),
        ("9P2000.L", Dialect.L),
        ("9P2000.L.Google.7", Dialect.L),
        ("9P2000.l", Dialect.PLAIN),
        ("9P2000.", Dialect.PLAIN),
        ("9P2001.L", Dialect.PLAIN),
        ("9P9999", Dialect.PLAIN),
        ("9P1999", None),
        ("9P20000", None),
        ("9P２０００", None),
        ("9p2000", None),
        ("", None),
        ("unknown", None),
    ],
)
def test_a_version_asks_for_a_dialect_or_for_none(version: str, dialect: Dialect | None) -> None:
    assert dialect is negotiate(version)


def test_a_name_that_is_not_utf8_is_told_with_a_mark_except_in_linuxs_dialect() -> None:
    attr = Attr(Qid(0, 0, 1), 0o100644, target="\udcff")
    assert ("a\ufffd", "\ufffd") == told(stat_of(attr, "a\udcff", Dialect.U))
    assert ("a\udcff", "\udcff") == told(stat_of(attr, "a\udcff", Dialect.L))


def told(stat: Stat) -> tuple[str, str]:
    return stat.name, stat.extension


def test_the_modes_of_unix_are_told_in_its_dialect_alone() -> None:
    pipe = Attr(Qid(0, 0, 1), 0o014644)
    assert DM.NAMEDPIPE | DM.SETUID | 0o644 == stat_of(pipe, "p", Dialect.U).mode
    assert 0o644 == stat_of(pipe, "p", Dialect.PLAIN).mode
    assert (0, DM.DIR | 0o755) == length_and_mode(
        stat_of(Attr(Qid(0x80, 0, 1), 0o040755, 4096), "d", Dialect.U)
    )


def length_and_mode(stat: Stat) -> tuple[int, int]:
    return stat.length, stat.mode
