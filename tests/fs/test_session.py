"""The server's session without I/O: what it gives to perform, in what order, and what an answer does."""

from __future__ import annotations

from typing import Any

from skep.fs import session as s
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
    Rlopen,
    Rread,
    Rstat,
    Rversion,
    Rwalk,
    Rxattrwalk,
    Stat,
    Tattach,
    Tclunk,
    Tflush,
    Tgetattr,
    Tlopen,
    Tread,
    Tstat,
    Tversion,
    Twalk,
    Twrite,
    Txattrwalk,
)
from skep.fs.node import How
from skep.fs.session import Call, Done, Session
from skep.fs.wire import HEADER, pack, unpack

QID = Qid(0, 0, 7)


class Talk:
    """A session, and the client's side of it."""

    def __init__(self, dialect: Dialect = Dialect.L, msize: int = 8192, fids_max: int = s.FIDS_MAX) -> None:
        self.session = Session(fids_max=fids_max)
        self.dialect = dialect
        self.say(NOTAG, Tversion(msize, dialect.value))
        assert [(NOTAG, Rversion(msize, dialect.value))] == self.heard()
        self.done(self.say(1, Tattach(0, NOFID, "glenda", ""))[0], Rattach(QID), "root")
        self.heard()

    def say(self, tag: int, message: Message) -> list[Call]:
        """Send a request; the calls that are ready after it, in order."""
        self.session.receive(pack(tag, message, self.dialect))
        return self.ready()

    def ready(self) -> list[Call]:
        ready = list(self.session.ready)
        self.session.ready.clear()
        return ready

    def done(self, call: Call, reply: Message, chan: Any = None, how: How | None = None) -> list[Call]:
        """Perform a call; those that are ready then."""
        self.session.respond(call, Done(reply, chan, how))
        return self.ready()

    def failed(self, call: Call, kind: E = E.MISSING) -> list[Call]:
        self.session.respond(call, FsError(kind))
        return self.ready()

    def heard(self) -> list[tuple[int, Message]]:
        data = b"".join(self.session.take())
        found, at = [], 0
        while at < len(data):
            size, _, tag = HEADER.unpack_from(data, at)
            found.append((tag, unpack(memoryview(data)[at : at + size], self.dialect)))
            at += size
        return found

    def opened(self, fid: int, how: How) -> None:
        """Bind ``fid`` to a chan of that number, open."""
        (walk,) = self.say(9, Twalk(0, fid, ("name",)))
        self.done(walk, Rwalk((QID,)), fid)
        (opened,) = self.say(9, Tlopen(fid, 0))
        self.done(opened, Rlopen(QID, 0), how=how)
        self.heard()


def test_calls_on_one_fid_come_one_after_the_other_on_different_fids_together() -> None:
    talk = Talk()
    talk.opened(1, How(read=True))
    talk.opened(2, How(read=True))
    (first,) = talk.say(1, Tread(1, 0, 10))
    assert [] == talk.say(2, Tread(1, 10, 10))
    (other,) = talk.say(3, Tread(2, 0, 10))
    (second,) = talk.done(first, Rread(b"a"))
    assert (2, 3) == (second.tag, other.tag)


def test_calls_that_only_look_do_not_wait_for_each_other() -> None:
    talk = Talk()
    (walk,) = talk.say(1, Twalk(0, 1, ("slow",)))
    (look,) = talk.say(2, Tgetattr(0, 0))
    assert [] == talk.say(3, Tclunk(0))
    assert [] == talk.say(4, Tgetattr(0, 0))
    assert [] == talk.failed(walk)
    (clunk,) = talk.failed(look)
    assert [] == talk.done(clunk, Rclunk())
    assert [(1, Rlerror(2)), (2, Rlerror(2)), (3, Rclunk()), (4, Rlerror(9))] == talk.heard()


def test_a_walk_binds_its_new_fid_with_its_answer_and_not_before() -> None:
    talk = Talk()
    (walk,) = talk.say(1, Twalk(0, 1, ("name",)))
    assert [] == talk.say(2, Tlopen(1, 0))
    (opened,) = talk.done(walk, Rwalk((QID,)), "chan")
    assert opened.fid is not None
    assert "chan" == opened.fid.chan


def test_a_walk_in_place_gives_back_the_chan_before() -> None:
    talk = Talk()
    (walk,) = talk.say(1, Twalk(0, 0, ("name",)))
    talk.done(walk, Rwalk((QID,)), "further")
    assert (["root"], "further") == (list(talk.session.dropped), talk.session.fids[0].chan)


def test_a_late_flush_comes_after_the_answer() -> None:
    talk = Talk()
    talk.opened(1, How(write=True))
    (write,) = talk.say(1, Twrite(1, 0, b"x"))
    assert [] == talk.say(2, Tflush(1))
    assert [write] == list(talk.session.aborts)
    talk.failed(write, E.IO)
    assert [(1, Rlerror(5)), (2, Rflush())] == talk.heard()


def test_a_call_given_up_for_a_flush_has_no_answer() -> None:
    talk = Talk()
    (walk,) = talk.say(1, Twalk(0, 1, ("slow",)))
    talk.say(2, Tflush(1))
    talk.failed(walk, E.CANCELLED)
    assert [(2, Rflush())] == talk.heard()
    assert 1 not in talk.session.fids


def test_a_clunk_is_never_given_up() -> None:
    talk = Talk()
    (clunk,) = talk.say(1, Tclunk(0))
    talk.say(2, Tflush(1))
    talk.say(NOTAG, Tversion(8192, "9P2000.L"))
    assert clunk not in talk.session.aborts
    talk.done(clunk, Rclunk())
    # The reset forgot the flush too: its answer is that of the reset.
    assert [(NOTAG, Rversion(8192, "9P2000.L"))] == talk.heard()


def test_a_waiting_read_is_passed_by_all_but_reads_and_ended_by_a_clunk() -> None:
    talk = Talk()
    talk.opened(1, How(read=True, write=True))
    (waiting,) = talk.say(1, Tread(1, 0, 10))
    talk.session.park(waiting)
    (write,) = talk.say(2, Twrite(1, 0, b"x"))
    assert [] == talk.say(3, Tread(1, 0, 10))
    assert [] == talk.say(4, Tgetattr(1, 0))
    (look,) = talk.failed(write)
    talk.failed(look)
    assert [] == list(talk.session.aborts)
    assert [] == talk.say(5, Tclunk(1))
    assert [waiting] == list(talk.session.aborts)
    (second,) = talk.failed(waiting, E.CANCELLED)
    (clunk,) = talk.done(second, Rread(b"data"))
    talk.done(clunk, Rclunk())
    assert [2, 4, 1, 3, 5] == [tag for tag, _ in talk.heard()]


def test_a_reset_waits_for_what_cannot_be_given_up() -> None:
    talk = Talk()
    talk.opened(1, How(write=True))
    (write,) = talk.say(1, Twrite(1, 0, b"x"))
    talk.say(NOTAG, Tversion(4096, "9P2000"))
    assert talk.session.stalled
    assert [] == talk.heard()
    talk.done(write, Rread(b""))
    talk.dialect = Dialect.PLAIN
    assert [(NOTAG, Rversion(4096, "9P2000"))] == talk.heard()
    assert ({}, {"root", 1}, 4096) == (talk.session.fids, set(talk.session.dropped), talk.session.msize)


def test_a_fid_is_dropped_when_its_last_call_has_ended_after_the_client_left() -> None:
    talk = Talk()
    talk.opened(1, How(read=True))
    (read,) = talk.say(1, Tread(1, 0, 10))
    talk.session.end()
    assert (["root"], [read]) == (list(talk.session.dropped), list(talk.session.aborts))
    talk.failed(read, E.CANCELLED)
    assert (["root", 1], [], {}) == (list(talk.session.dropped), talk.heard(), talk.session.fids)


def test_what_a_dead_call_opened_is_dropped() -> None:
    talk = Talk()
    (walk,) = talk.say(1, Twalk(0, 1, ("slow",)))
    talk.session.end()
    talk.done(walk, Rwalk((QID,)), "late")
    assert "late" in talk.session.dropped


def test_fids_have_a_limit() -> None:
    talk = Talk(fids_max=2)
    talk.opened(1, How(read=True))
    assert [] == talk.say(1, Twalk(0, 2, ()))
    assert [(1, Rlerror(122))] == talk.heard()


def test_attributes_have_a_limit_and_give_their_places_back() -> None:
    talk = Talk()
    for fid in range(1, s.XATTRS_MAX + 1):
        (call,) = talk.say(1, Txattrwalk(0, fid, "user.x"))
        talk.session.respond(call, Done(Rxattrwalk(0), fid, How(read=True), "xattr"))
    assert [] == talk.say(1, Txattrwalk(0, 999, "user.x"))
    assert (1, Rlerror(122)) == talk.heard()[-1]
    (clunk,) = talk.say(1, Tclunk(5))
    talk.done(clunk, Rclunk())
    assert 1 == len(talk.say(1, Txattrwalk(0, 999, "user.x")))


def test_what_is_broken_is_told_after_what_was_not() -> None:
    talk = Talk()
    talk.session.receive(pack(1, Tclunk(7), Dialect.L) + b"\3\0\0\0")
    assert [(1, Rlerror(9))] == talk.heard()
    assert "frame of 3 bytes" in str(talk.session.broken)
    assert talk.session.stalled


def test_no_more_is_decoded_than_can_be_answered() -> None:
    talk = Talk(msize=1 << 20)
    talk.opened(1, How(read=True))
    (read,) = talk.say(1, Tread(1, 0, s.OUT_MAX))
    talk.session.receive(b"".join(pack(tag, Tread(1, 0, 10), Dialect.L) for tag in range(2, 5)))
    assert [] == talk.ready()
    talk.session.respond(read, Done(Rread(bytes(s.OUT_MAX))))
    assert talk.session.full
    before = talk.session.outstanding
    talk.session.receive(pack(9, Tread(1, 0, 10), Dialect.L))
    assert (before, 23) == (talk.session.outstanding, talk.session.partial)


def test_an_answer_too_long_for_the_client_is_an_error() -> None:
    talk = Talk(Dialect.PLAIN, msize=64)
    (call,) = talk.say(1, Tstat(0))
    stat = Stat(0, 0, QID, 0, 0, 0, 0, "x" * 100, "", "", "")
    talk.done(call, Rstat(stat))
    assert [(1, Rerror("too large: max=64"))] == talk.heard()
