"""The client's session against servers played here: every order of answers that the protocol allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.client import CALLS_MAX, Call, ClientSession
from skep.fs.errors import E, FsError
from skep.fs.messages import (
    NOFID,
    NOTAG,
    Dialect,
    Message,
    Qid,
    Rattach,
    Rclunk,
    Rerror,
    Rflush,
    Rlerror,
    Rread,
    Rversion,
    Rwalk,
    Tattach,
    Tclunk,
    Tflush,
    Tread,
    Tremove,
    Tversion,
    Twalk,
)
from skep.fs.wire import HEADER, pack, unpack

QID = Qid(0, 0, 7)


def agreed(dialect: Dialect = Dialect.L, msize: int = 8192) -> ClientSession:
    session = ClientSession(dialect, msize)
    session.start_version()
    session.take_output()
    session.receive(pack(NOTAG, Rversion(msize, dialect.value), dialect))
    assert session.agreed
    return session


def sent(session: ClientSession) -> list[tuple[int, Message]]:
    """The frames that went out since the last time: (tag, message)."""
    frames = session.take_output()
    return [(HEADER.unpack_from(f)[2], unpack(memoryview(f), session.dialect)) for f in frames]


def answer(session: ClientSession, tag: int, reply: Message) -> list[Call]:
    return session.receive(pack(tag, reply, session.dialect))


# Versions


@pytest.mark.parametrize(
    ("asked", "said", "dialect"),
    [
        (Dialect.L, "9P2000.L", Dialect.L),
        (Dialect.L, "9P2000", Dialect.PLAIN),
        (Dialect.L, "9P2000.u", Dialect.U),
        (Dialect.U, "9P2000.u", Dialect.U),
        (Dialect.U, "9P2000", Dialect.PLAIN),
    ],
)
def test_the_server_chooses_the_dialect_asked_for_or_a_lower_one(
    asked: Dialect, said: str, dialect: Dialect
) -> None:
    session = ClientSession(asked, 8192)
    call = session.start_version()
    assert [(NOTAG, Tversion(8192, asked.value))] == sent(session)
    assert [call] == answer(session, NOTAG, Rversion(4096, said))
    assert (dialect, 4096, None) == (session.dialect, session.msize, session.error)


@pytest.mark.parametrize(
    ("asked", "msize", "said"),
    [
        (Dialect.PLAIN, 8192, "9P2000.L"),
        (Dialect.U, 8192, "9P2000.L"),
        (Dialect.L, 8192, "unknown"),
        (Dialect.L, 8193, "9P2000.L"),
        (Dialect.L, 128, "9P2000.L"),
    ],
)
def test_a_version_nobody_asked_for_ends_the_connection(asked: Dialect, msize: int, said: str) -> None:
    session = ClientSession(asked, 8192)
    call = session.start_version()
    assert [call] == answer(session, NOTAG, Rversion(msize, said))
    assert call.error is not None
    assert (E.VERSION, session.error) == (call.error.kind, call.error)
    with pytest.raises(FsError, match="unsupported version"):
        session.start(Tclunk(0))


# Errors and bytes


def test_refusals_are_told_by_their_text_and_by_their_errno() -> None:
    session = agreed(Dialect.U)
    calls = [session.start(Tclunk(fid)) for fid in (1, 2)]
    answer(session, calls[0].tag, Rerror("file does not exist", 2))
    answer(session, calls[1].tag, Rerror("no such luck", 13))
    assert [(E.MISSING, ""), (E.DENIED, "no such luck")] == [
        (c.error.kind, c.error.detail) for c in calls if c.error
    ]
    session = agreed(Dialect.L)
    call = session.start(Tclunk(1))
    answer(session, call.tag, Rlerror(117))
    assert call.error is not None
    assert (E.IO, 117) == (call.error.kind, call.error.errno)


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (b"\x06\0\0\0\0\0\0", "a frame of 6 bytes"),
        (b"\x01\x20\0\0", "a frame of 8193 bytes"),
        (pack(9, Rclunk(), Dialect.L), "tag 9, which asks nothing"),
        (pack(0, Rflush(), Dialect.L), "Rflush in answer to Tclunk"),
        (b"\x07\0\0\0\xff\0\0", "cannot be read"),
        (b"\x08\0\0\0\x79\0\0\0", "cannot be read"),
    ],
)
def test_a_server_that_does_not_speak_9p_is_left_and_every_call_ends(bytes_: bytes, said: str) -> None:
    session = agreed()
    good, other = session.start(Tclunk(3)), session.start(Tclunk(4))
    assert (0, 1) == (good.tag, other.tag)
    assert {good, other} == set(session.receive(bytes_))
    assert session.error is not None
    assert said in str(session.error)
    assert E.PROTO is session.error.kind


def test_what_was_answered_before_the_bad_frame_keeps_its_answer() -> None:
    session = agreed()
    good, lost = session.start(Tclunk(3)), session.start(Tclunk(4))
    ended = session.receive(pack(good.tag, Rclunk(), Dialect.L) + bytes(7))
    assert [good, lost] == ended
    assert (Rclunk(), None) == (good.reply, good.error)
    assert lost.error is session.error


@pytest.mark.slow
@given(st.data())
def test_any_cut_of_the_bytes_ends_the_same_calls(data: st.DataObject) -> None:
    session = agreed()
    replies = data.draw(
        st.lists(st.binary(max_size=600).map(Rread) | st.just(Rlerror(5)), min_size=1, max_size=12)
    )
    calls = [session.start(Tread(1, 0, 600)) for _ in replies]
    stream = b"".join(pack(c.tag, r, Dialect.L) for c, r in zip(calls, replies, strict=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    ended = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        ended += session.receive(stream[start:end])
    assert calls == ended
    assert replies == [call.reply or Rlerror(5) for call in calls]


# Tags, fids and flushes


def test_a_message_over_msize_is_refused_and_costs_nothing() -> None:
    session = agreed(msize=256)
    fid = session.take_fid()
    with pytest.raises(FsError, match="too large: a message of"):
        session.start(Twalk(9, fid, ("x" * 255,)))
    assert fid == session.take_fid()
    assert [] == session.take_output()
    assert 0 == session.start(Tclunk(0)).tag


def test_calls_are_bounded_and_each_can_still_be_flushed() -> None:
    session = agreed()
    calls = [session.start(Tread(1, 0, 1)) for _ in range(CALLS_MAX)]
    with pytest.raises(FsError, match="pool_overloaded"):
        session.start(Tread(1, 0, 1))
    for call in calls:
        session.flush(call)
    assert 2 * CALLS_MAX == len({tag for tag, _ in sent(session)} - {NOTAG})


@pytest.mark.parametrize(
    ("request_", "reply", "free"),
    [
        (Twalk(9, 0, ("a",)), Rwalk((QID,)), False),
        (Twalk(9, 0, ("a", "b")), Rwalk((QID,)), True),
        (Twalk(9, 0, ("a",)), Rlerror(2), True),
        (Twalk(0, 0, ("a", "b")), Rwalk((QID,)), False),
        (Tattach(0, NOFID, "u", ""), Rattach(QID), False),
        (Tattach(0, NOFID, "u", ""), Rlerror(1), True),
        (Tclunk(0), Rlerror(5), True),
        (Tremove(0), Rlerror(5), True),
        (Tread(0, 0, 1), Rlerror(5), False),
    ],
)
def test_a_fid_is_free_when_the_server_has_forgotten_it(
    request_: Message, reply: Message, free: bool
) -> None:
    session = agreed()
    fid = session.take_fid()
    assert fid == 0
    call = session.start(request_)
    assert 1 == session.take_fid()
    answer(session, call.tag, reply)
    assert (0 if free else 2) == session.take_fid()


def test_a_flushed_call_without_an_answer_had_no_effect() -> None:
    session = agreed()
    fid = session.take_fid()
    call = session.start(Twalk(9, fid, ("a",)))
    session.flush(call)
    assert [(0, call.request), (1, Tflush(0))] == sent(session)
    assert [call] == answer(session, 1, Rflush())
    assert call.error is not None
    assert E.INTR is call.error.kind
    assert session.undo(call) is None
    assert fid == session.take_fid()


# The answer overtakes the flush: it is honoured, but its tag stays taken until Rflush.
def test_an_answer_before_rflush_is_kept_and_can_be_undone() -> None:
    session = agreed()
    fid = session.take_fid()
    call = session.start(Twalk(9, fid, ("a",)))
    session.flush(call)
    assert [] == answer(session, 0, Rwalk((QID,)))
    assert 2 == session.start(Tread(9, 0, 1)).tag
    assert [call] == answer(session, 1, Rflush())
    assert Rwalk((QID,)) == call.reply
    assert session.undo(call) is not None
    assert Tclunk(fid) == sent(session)[-1][1]


def test_clunks_and_finished_calls_are_not_flushed() -> None:
    session = agreed()
    clunk, read = session.start(Tclunk(3)), session.start(Tread(1, 0, 1))
    answer(session, read.tag, Rlerror(5))
    sent(session)
    session.flush(clunk)
    session.flush(read)
    again = session.start(Tread(1, 0, 1))
    session.flush(read)
    assert [(again.tag, again.request)] == sent(session)


@pytest.mark.slow
@given(st.data())
def test_in_every_order_of_answers_each_call_ends_once_and_no_tag_serves_two(data: st.DataObject) -> None:
    """The server played here answers in any order, leaves out what was flushed or answers it first, and
    refuses a tag that is still taken."""
    session = agreed()
    calls: list[Call] = []
    ended: list[Call] = []
    server: dict[int, Message] = {}  # requests taken and not answered, by tag
    answered: set[Call] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["start", "flush", "answer"]))
        open_calls = [c for c in calls if c not in ended]
        if step == "start" or not calls:
            calls.append(session.start(Twalk(0, session.take_fid(), ("x",))))
        elif step == "flush" and open_calls:
            session.flush(data.draw(st.sampled_from(open_calls)))
        for tag, message in sent(session):
            assert tag not in server
            assert tag not in {m.oldtag for m in server.values() if isinstance(m, Tflush)}
            server[tag] = message
        ready = list(server)
        if step == "answer" and ready:
            tag = data.draw(st.sampled_from(ready))
            message = server.pop(tag)
            if isinstance(message, Tflush):
                server.pop(message.oldtag, None)
                ended += answer(session, tag, Rflush())
            else:
                answered.add(next(c for c in calls if c.tag == tag and c not in ended))
                ended += answer(session, tag, Rwalk((QID,)))
    # Everything still open is answered in the end.
    for tag in sorted(server, key=lambda t: isinstance(server[t], Tflush)):
        if isinstance(server[tag], Tflush):
            ended += answer(session, tag, Rflush())
        else:
            answered.add(next(c for c in calls if c.tag == tag and c not in ended))
            ended += answer(session, tag, Rwalk((QID,)))
    assert len(calls) == len(ended) == len(set(ended))
    for call in calls:
        assert (call in answered) == (call.reply is not None)
        assert call in answered or (call.error is not None and call.error.kind is E.INTR)
