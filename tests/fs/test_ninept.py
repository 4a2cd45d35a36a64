from __future__ import annotations

import contextlib
from hashlib import sha256
from io import BytesIO
from typing import Any

import construct_ninept
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.messages import Dialect, Rread, Tclunk
from skep.fs.ninept import End, Header, NineptError, Reading, Record, Writer, read
from skep.fs.wire import pack

HEADER = Header(
    release="0.5.0",
    dialect="9P2000.L",
    msize=8192,
    session="01JD",
    principal="unix:ann",
    role="operator",
    node="",
    tenant="default/default/default",
    aname="",
    tree="00" * 32,
    seq=41,
    time=1_700_000_000_000_000_000,
)
CLUNK = pack(7, Tclunk(3), Dialect.L)

whole = st.integers(0, 2**64 - 1)


@st.composite
def messages(draw: Any) -> tuple[str, int, int, bytes, tuple[tuple[int, int], ...]]:
    """Arguments of Writer.record."""
    data = draw(st.binary(max_size=200))
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=6)))
    ranges = tuple((11 + a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
    return draw(st.sampled_from("TR")), draw(whole), draw(whole), pack(1, Rread(data), Dialect.L), ranges


def starred(frame: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    for at, length in ranges:
        frame = frame[:at] + b"*" * length + frame[at + length :]
    return frame


def recorded(*said: Any, end: End | None = None) -> bytes:
    writer = Writer()
    data = writer.header(HEADER) + b"".join(writer.record(*each) for each in said)
    return data + (writer.end(9, 9, end) if end is not None else b"")


@given(st.lists(messages(), max_size=5), st.sampled_from(["closed", "full", "space"]), st.integers(0, 9))
def test_what_is_written_is_read(said: list[Any], why: str, lost: int) -> None:
    header, records = read(recorded(*said, end=End(why=why, lost=lost)))
    expected = [
        Record(kind, at, seq, ranges, starred(frame, ranges)) for kind, at, seq, frame, ranges in said
    ]
    assert HEADER == header
    assert expected == list(records)[:-1]
    assert (End(why=why, lost=lost), False) == (records.end, records.cut)


@given(st.lists(messages(), max_size=5))
def test_it_is_the_format_of_the_page(said: list[Any]) -> None:
    found = construct_ninept.recording.parse(recorded(*said, end=End(why="closed")))
    assert HEADER == msgspec.json.decode(found.lines.value[1], type=Header)
    link = sha256(found.lines.data).digest()
    for (kind, at, seq, frame, ranges), each in zip(said, found.records, strict=False):
        assert (kind.encode(), at, seq) == (each.value.kind, each.value.time, each.value.seq)
        message = construct_ninept.message.parse(each.value.body)
        assert ranges == tuple((one.offset, one.length) for one in message.redactions)
        assert starred(frame, ranges) == message.frame
        link = sha256(link + each.data[:-32]).digest()
        assert link == each.value.link
    assert b"E" == found.records[-1].value.kind
    assert b'{"lost":0,"why":"closed"}' == found.records[-1].value.body


@given(st.data())
def test_a_recording_cut_anywhere_is_read_to_its_last_whole_record(data: Any) -> None:
    said = [("T", n, n, CLUNK, ()) for n in range(4)]
    start = len(recorded())
    full = recorded(*said, end=End(why="closed"))
    at = data.draw(st.integers(start, len(full) - 1))
    header, records = read(full[:at])
    size = len(recorded(said[0])) - start
    assert min((at - start) // size, 4) == len(list(records))
    assert HEADER == header
    assert (None, True) == (records.end, records.cut)


@given(st.data())
def test_no_byte_is_changed_without_being_found(data: Any) -> None:
    full = bytearray(recorded(("T", 1, 1, CLUNK, ()), ("R", 2, 2, CLUNK, ((8, 2),)), end=End(why="off")))
    full[data.draw(st.integers(0, len(full) - 1))] ^= data.draw(st.integers(1, 255))

    def all_of_it() -> Reading:
        _, records = read(bytes(full))
        list(records)
        return records

    with contextlib.suppress(NineptError):
        # A length that grew beyond the file's end cannot be told from a file cut short: that is said.
        assert all_of_it().cut


def test_the_record_whose_link_is_broken_is_named() -> None:
    full = bytearray(recorded(*[("T", n, n, CLUNK, ()) for n in range(3)]))
    full[-40] ^= 1
    _, records = read(BytesIO(bytes(full)))
    assert [0, 1] == [next(records).time_ns for _ in range(2)]
    with pytest.raises(NineptError, match="record 3: its link is not that of what comes before it"):
        next(records)


def test_records_cannot_change_places() -> None:
    writer = Writer()
    head, one, two = writer.header(HEADER), *(writer.record("T", n, n, CLUNK) for n in (1, 2))
    _, records = read(head + two + one)
    with pytest.raises(NineptError, match="record 1: its link"):
        next(records)


def test_nothing_stands_after_the_end() -> None:
    _, records = read(recorded(end=End(why="off")) + b"\0")
    next(records)
    with pytest.raises(NineptError, match="record 2: it stands after the end"):
        next(records)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "b'': expected b'skep-9pt/1"),
        (b"skep-9pt/2\n{}\n", "expected b'skep-9pt/1"),
        (b"skep-9pt/1\n{}", "its header is cut short"),
        (b"skep-9pt/1\n{}\n", "header: Object missing required field"),
        (b"skep-9pt/1\n" + msgspec.json.encode(HEADER) + b"\n", "canonical JSON"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(NineptError, match=text):
        read(data)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "requires a buffer of at least 2 bytes"),
        (b"\0\2" + CLUNK, "2 redactions do not fit"),
        (b"\0\0" + CLUNK[:-1], "10 bytes are no 9P frame"),
        (b"\0\1" + b"\0\0\0\7\0\0\0\4" + CLUNK, "redaction 7.4 shows what it hides"),
        (b"\0\1" + b"\0\0\0\7\0\0\0\5" + CLUNK, "redaction 7.5 is not within the frame, in order"),
    ],
)
def test_a_message_that_is_none_is_refused(body: bytes, text: str) -> None:
    head = Writer().header(HEADER)
    data = (17 + len(body) + 32).to_bytes(4, "big") + b"T" + bytes(16) + body
    link = sha256(sha256(head).digest() + data).digest()
    _, records = read(head + data + link)
    with pytest.raises(NineptError, match=text):
        next(records)
