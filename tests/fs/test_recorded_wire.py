"""What is recorded of a conversation is what went over the wire, byte for byte, and it went there as ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hot import answers, segments, tree
from test_ninept import HEADER

from skep.fs import messages as m
from skep.fs.conversation import Conversation, Peer
from skep.fs.messages import Dialect
from skep.fs.ninept import Record, read, starred
from skep.fs.recorder import Recorder
from skep.fs.server import OpenGate
from skep.fs.tree import Dir
from skep.fs.wire import WireError, pack

MSIZE = 8192


def frames(data: bytes) -> list[bytes]:
    """The whole frames at its beginning."""
    found, at = [], 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if not 7 <= size <= min(MSIZE, len(data) - at):
            break
        found.append(data[at : at + size])
        at += size
    return found


def recorded(
    root: Dir, dialect: Dialect, pieces: list[bytes], begin: int
) -> tuple[bytes, bytes, list[Record]]:
    """What was answered, of that what since the piece ``begin``, and what is recorded since then."""
    out = bytearray()
    recorder = Recorder(lambda: 1, lambda: 1)
    conversation = Conversation(OpenGate(root), Peer("local"), lambda b: out.extend(b"".join(b)))
    before = 0
    hello = [
        pack(m.NOTAG, m.Tversion(MSIZE, dialect.value), Dialect.PLAIN),
        pack(0, m.Tattach(0, m.NOFID, "", ""), dialect),
    ]
    try:
        for n, piece in enumerate([*hello, *pieces]):
            if n == begin + len(hello):
                conversation.session.record(recorder)
                recorder.begin(HEADER)
                before = len(out)
            conversation.receive(piece)
    except WireError:  # a frame longer than the msize: the server closes
        out += b"closed"
    conversation.lost()
    return bytes(out), bytes(out[before:]), list(read(recorder.take().data)[1]) if recorder.header else []


@pytest.mark.slow
@pytest.mark.parametrize("dialect", list(Dialect))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_recorded_went_over_the_wire(dialect: Dialect, data: st.DataObject) -> None:
    pieces, root = data.draw(segments(dialect)), tree()
    begin = data.draw(st.integers(0, len(pieces) - 1))
    out, since, records = recorded(root, dialect, pieces, begin)
    assert answers(root, dialect, pieces, True, MSIZE) == out
    assert since.removesuffix(b"closed") == b"".join(each.body for each in records if each.kind == "R")
    # A frame of which a part had come already is recorded whole.
    asked = frames(b"".join(pieces))[len(frames(b"".join(pieces[:begin]))) :]
    told = [each for each in records if each.kind == "T"]
    assert [starred(frame, each.redactions) for frame, each in zip(asked, told, strict=True)] == [
        each.body for each in told
    ]
