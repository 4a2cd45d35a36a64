"""Conversations of any kind, checked by a model of fids and tags that knows nothing of the server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skep.fs import transcript
from skep.fs.errors import FsError
from skep.fs.messages import (
    NOFID,
    NOTAG,
    NUMBERS,
    Dialect,
    Message,
    Rattach,
    Rauth,
    Rcreate,
    Rerror,
    Rgetattr,
    Rlcreate,
    Rlerror,
    Rlopen,
    Ropen,
    Rread,
    Rstat,
    Rwalk,
    Rxattrcreate,
    Rxattrwalk,
    Tattach,
    Tauth,
    Tclunk,
    Tcreate,
    Tflush,
    Tlcreate,
    Tlopen,
    Topen,
    Tread,
    Tremove,
    Tversion,
    Twalk,
    Txattrwalk,
)
from skep.fs.server import OpenGate
from skep.fs.shapes import Text
from skep.fs.tree import as_node
from skep.fs.wire import pack, unpack_stat
from tests.fs.grounds import Grounds, Raw, calm, played, wait_until
from tests.fs.requesting import requests, tags

pytestmark = pytest.mark.slow

KERNELS = pytest.mark.parametrize("kernel", [False, True], ids=["python", "kernel"])
DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
HOSTS = pytest.mark.parametrize("host", [False, True], ids=["synthetic", "host"])
MSIZE = 8192
some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def furnish(grounds: Grounds) -> None:
    """Files to begin with, and no request that waits for ever."""
    (grounds.host / "file").write_bytes(b"text")
    (grounds.host / "dir").mkdir()
    (grounds.host / "dir" / "file").write_bytes(b"more")
    (grounds.host / "link").symlink_to("file")


async def met(grounds: Grounds, dialect: Dialect, host: bool, kernel: bool) -> Raw:
    raw = Raw(grounds, kernel=kernel)
    await raw.version(dialect, MSIZE)
    await raw.ask(0, Tattach(0, NOFID, "alice", "host" if host else ""))
    return raw


def answers_to(request: Message, answer: Message) -> bool:
    """Whether the answer is of the kind that the request may get."""
    if isinstance(answer, (Rerror, Rlerror)):
        return not isinstance(request, Tflush)
    return NUMBERS[type(answer)] == NUMBERS[type(request)] + 1


# One request at a time


class Fids:
    """What a client knows of its fids from the answers alone."""

    def __init__(self, root: Any) -> None:
        self.places: dict[int, Any] = {0: root}  # fid -> qid type and path; None: none is known
        self.open: set[int] = set()
        self.special: set[int] = set()  # proofs and attributes

    def heard(self, request: Message, answer: Message) -> None:
        """Check what must hold, and learn."""
        assert answers_to(request, answer), (request, answer)
        refused = isinstance(answer, (Rerror, Rlerror))
        for name in ("fid", "dfid", "olddirfid", "newdirfid", "dirfid"):
            number = getattr(request, name, None)
            if number is not None and not isinstance(request, Tattach) and number not in self.places:
                assert refused, f"{request} names no fid"
                return
        if isinstance(request, (Tclunk, Tremove)):
            self.lose(request.fid)
        elif not refused:
            self.learn(request, answer)

    def lose(self, fid: int) -> None:
        self.places.pop(fid, None)
        self.open.discard(fid)
        self.special.discard(fid)

    def learn(self, request: Any, answer: Message) -> None:
        match request, answer:
            case (Tattach(fid=new), Rattach(qid=qid)):
                self.bind(new, qid)
            case (Tauth(afid=new), Rauth(aqid=qid)):
                self.bind(new, qid)
                self.special.add(new)
                assert qid.type & 0x08
            case (Twalk(), Rwalk()):
                self.walked(request, answer.wqid)
            case (Txattrwalk(newfid=new), Rxattrwalk()):
                self.bind(new, None)
                self.special.add(new)
            case (_, Rxattrcreate()):
                assert request.fid not in self.open
                self.special.add(request.fid)
                self.places[request.fid] = None
            case (Topen() | Tlopen(), Ropen(qid=qid) | Rlopen(qid=qid)):
                assert request.fid not in self.open | self.special
                self.open.add(request.fid)
                self.agree(request.fid, qid)
            case (Tcreate() | Tlcreate(), Rcreate(qid=qid) | Rlcreate(qid=qid)):
                assert request.fid not in self.open | self.special
                self.open.add(request.fid)
                self.places[request.fid] = (qid.type, qid.path)
            case (_, Rgetattr(qid=qid)):
                self.agree(request.fid, qid)
            case (_, Rstat(stat=stat)):
                self.agree(request.fid, stat.qid)
            case (Tread(fid=fid), _):
                assert fid in self.open | self.special

    def bind(self, new: int, qid: Any) -> None:
        assert new != NOFID
        assert new not in self.places, f"{new} was in use"
        self.places[new] = qid and (qid.type, qid.path)

    def walked(self, request: Twalk, qids: tuple[Any, ...]) -> None:
        assert len(qids) <= len(request.wname)
        assert request.fid not in self.special
        if len(qids) < len(request.wname):
            assert qids, "a walk of nothing"
            return
        if request.newfid == request.fid:
            assert request.fid not in self.open
        else:
            self.bind(request.newfid, None)
            self.places[request.newfid] = self.places[request.fid]
        if qids:
            self.places[request.newfid] = (qids[-1].type, qids[-1].path)

    def agree(self, fid: int, qid: Any) -> None:
        assert self.places[fid] == (qid.type, qid.path), f"fid {fid} was another file"


@KERNELS
@HOSTS
@DIALECTS
@some
@given(data=st.data())
def test_each_answer_is_one_that_the_fids_allow(
    dialect: Dialect, host: bool, kernel: bool, data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(requests(dialect, host), max_size=40))

    async def play(grounds: Grounds) -> None:
        furnish(grounds)
        for let in grounds.lets.values():
            let.set()
        raw = await met(grounds, dialect, host, kernel)
        root = raw.answers[-1][1].qid  # type: ignore[attr-defined]
        fids = Fids((root.type, root.path))
        for request in wanted:
            before = len(raw.answers)
            raw.say((1, request))
            await calm()
            if len(raw.answers) == before and isinstance(request, Tread):
                grounds.events.feed(b"line\n")  # it waits for that
            await raw.heard(before + 1)
            assert [1] == [tag for tag, _ in raw.answers[before:]]
            fids.heard(request, raw.answers[before][1])
        assert max(raw.sizes) <= MSIZE

    played(play)


# Both kernels


@HOSTS
@DIALECTS
@some
@given(data=st.data())
def test_the_inner_loop_answers_as_the_session_does(
    dialect: Dialect, host: bool, data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(requests(dialect, host), max_size=30))
    told: list[list[str]] = []
    for kernel in (False, True):

        async def play(grounds: Grounds, kernel: bool = kernel) -> None:
            furnish(grounds)
            for let in grounds.lets.values():
                let.set()
            raw = await met(grounds, dialect, host, kernel)
            for request in wanted:
                raw.say((1, request))
                await calm()
                if raw.conversation.session.outstanding:
                    grounds.events.feed(b"line\n")
                await wait_until(lambda: raw.conversation.session.outstanding == 0)
            told.append(normal(raw))

        played(play)
    assert told[0] == told[1]


def _listed(data: bytes, dialect: Dialect) -> list[str]:
    """The names in the entries of a directory that ``data`` is made of; none: it is something else."""
    rest, names = memoryview(data), []
    while len(rest):
        try:
            stat, used = unpack_stat(rest, dialect)
        except FsError:
            return []
        names.append(stat.name)
        rest = rest[used:]
    return names


def normal(raw: Raw) -> list[str]:
    """The answers, qids told by the order in which they were first met, times and versions left out."""
    numbers: dict[str, int] = {}
    lines = []
    for tag, answer in raw.answers:
        if isinstance(answer, Rread) and (names := _listed(answer.data, raw.hearing)):
            lines.append(f"Rread {tag} of entries {names}")
            continue
        name, _, told = transcript.split(transcript.show(tag, answer, raw.hearing))
        lines.append(f"{name} {tag} {_normal(list(told.items()), numbers)}")
    return lines


_MOVING = ("blocks", "bfree", "bavail", "ffree")


def _normal(value: Any, numbers: dict[str, int]) -> str:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, str) for part in value):
        return f"({value[0]} {numbers.setdefault(value[2], len(numbers))})"  # a qid
    if isinstance(value, tuple) and (
        "time" in value[0] or value[0] in ("blocks", "bfree", "bavail", "ffree")
    ):
        return str(value[0])
    if isinstance(value, list) and all(isinstance(part, str) for part in value[::2]) and len(value) > 3:
        value = list(zip(value[::2], value[1::2], strict=False))
    if isinstance(value, (list, tuple)):
        return " ".join(_normal(part, numbers) for part in value)
    return str(value)


# Many at once


class Outstanding:
    """What a client may still hear. It uses a tag again as soon as that is free."""

    def __init__(self) -> None:
        self.asked: dict[int, tuple[int, Message]] = {}  # tag -> its place in the order, request
        self.count = 0
        self.heard = 0

    def say(self, request: Message) -> tuple[int, Message]:
        """A free tag, and the request; a flush's old tag is taken for the place of one outstanding."""
        tag = next(tag for tag in range(NOTAG) if tag not in self.asked)
        if isinstance(request, Tflush):
            request = Tflush([*self.asked, tag][request.oldtag % (len(self.asked) + 1)])
        self.asked[tag] = (self.count, request)
        self.count += 1
        return tag, request

    def hear(self, raw: Raw) -> None:
        """Check what has come since the last time."""
        for tag, answer in raw.answers[self.heard :]:
            assert tag in self.asked, f"{answer} to tag {tag}, which waits for nothing"
            place, request = self.asked.pop(tag)
            assert answers_to(request, answer), (request, answer)
            if isinstance(request, Tflush):
                self.flushed(place, request.oldtag)
        self.heard = len(raw.answers)

    def flushed(self, place: int, oldtag: int) -> None:
        """What was asked with the old tag before the flush is over, and is answered no more."""
        old = self.asked.get(oldtag)
        if old is not None and old[0] < place:
            assert not isinstance(old[1], Tflush), "a flush is answered before the one that flushes it"
            del self.asked[oldtag]


STEPS = ["calm", "feed", "let"]


@KERNELS
@HOSTS
@DIALECTS
@some
@given(data=st.data())
def test_every_request_is_answered_once_or_flushed(
    dialect: Dialect, host: bool, kernel: bool, data: st.DataObject
) -> None:
    one = st.one_of(
        *[requests(dialect, host)] * 4,
        st.builds(Tflush, st.integers(0, 20)),
        st.sampled_from(STEPS),
    )
    segments = data.draw(st.lists(st.lists(one, max_size=6), max_size=10))

    async def play(grounds: Grounds) -> None:
        furnish(grounds)
        raw = await met(grounds, dialect, host, kernel)
        outstanding = Outstanding()
        outstanding.heard = len(raw.answers)
        lets = iter([*grounds.lets.values(), *[asyncio.Event()] * 100])
        for segment in segments:
            raw.say(*(outstanding.say(step) for step in segment if not isinstance(step, str)))
            for step in segment:
                if step == "feed":
                    grounds.events.feed(b"line\n")
                elif step == "let":
                    next(lets).set()
                elif step == "calm":
                    await calm(3)
            outstanding.hear(raw)
        for let in grounds.lets.values():
            let.set()

        def done() -> bool:
            grounds.events.feed(b"line\n")
            return not raw.conversation.session.outstanding

        await wait_until(done)
        outstanding.hear(raw)
        assert {} == outstanding.asked
        assert max(raw.sizes) <= MSIZE

    played(play)


@KERNELS
@DIALECTS
@some
@given(data=st.data())
def test_however_the_bytes_are_cut_the_answers_are_the_same(
    dialect: Dialect, kernel: bool, data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.tuples(tags, requests(dialect, host=True)), max_size=12))
    stream = b"".join(pack(tag, request, dialect) for tag, request in wanted)
    stream += data.draw(st.sampled_from([b"", b"", b"\0\0\0\0", b"\xff\xff\xff\xffxyz", b"\x09\0\0\0"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    told: list[tuple[list[str], bool]] = []
    for pieces in ([stream], [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]):

        async def play(grounds: Grounds, pieces: list[bytes] = pieces) -> None:
            furnish(grounds)
            raw = await met(grounds, dialect, True, kernel)
            for piece in pieces:
                if not raw.closed:
                    raw.send(piece)
            await calm()
            await wait_until(lambda: not raw.conversation.session.outstanding)
            told.append((normal(raw), raw.closed))

        played(play)
    assert told[0] == told[1]


@KERNELS
@HOSTS
@DIALECTS
@some
@given(data=st.data())
def test_no_bytes_do_worse_than_be_refused(
    dialect: Dialect, host: bool, kernel: bool, data: st.DataObject
) -> None:
    frame = requests(dialect, host).map(lambda request: pack(1, request, dialect))

    def spoilt(raw: bytes, at: int, byte: int) -> bytes:
        return raw[: at % len(raw)] + bytes([byte]) + raw[at % len(raw) + 1 :]

    pieces = data.draw(
        st.lists(
            st.one_of(
                frame,
                st.builds(spoilt, frame, st.integers(4, 100), st.integers(0, 255)),
                st.builds(spoilt, frame, st.integers(0, 100), st.integers(0, 255)),
                st.binary(max_size=40),
            ),
            max_size=12,
        )
    )

    async def play(grounds: Grounds) -> None:
        furnish(grounds)
        raw = await met(grounds, dialect, host, kernel)
        for piece in pieces:
            if not raw.closed:
                raw.send(piece)
        await calm()
        if not raw.closed:
            assert raw.conversation.session.partial < MSIZE
        other = await met(grounds, dialect, host, kernel)
        assert isinstance(await other.ask(1, Twalk(0, 1, ())), Rwalk)

    played(play)


# Order


@KERNELS
@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_requests_on_one_fid_are_answered_in_their_order_whoever_is_slow(
    kernel: bool, order: list[int], depth: int
) -> None:
    async def play(grounds: Grounds) -> None:
        lets = [asyncio.Event() for _ in range(6)]

        def slow(number: int) -> Text:
            async def content() -> str:
                await lets[number].wait()
                return "text"

            return Text(content)

        raw = Raw(OpenGate(as_node({str(number): slow(number) for number in range(6)})), kernel=kernel)
        await raw.version()
        await raw.ask(0, Tattach(0, NOFID, "", ""))
        said: list[tuple[int, Message]] = []
        for number in range(6):
            fid = number + 1
            chain = [Twalk(0, fid, (str(number),)), Tlopen(fid, 0), *[Tread(fid, 0, 2)] * depth, Tclunk(fid)]
            said += [(100 * number + i, request) for i, request in enumerate(chain)]
        before = len(raw.answers)
        raw.say(*said)
        for number in order:
            lets[number].set()
            await calm(5)
        await raw.heard(before + len(said))
        answers = raw.answers[before:]
        for number in range(6):
            mine = [(tag, answer) for tag, answer in answers if tag // 100 == number]
            assert [100 * number + i for i in range(depth + 3)] == [tag for tag, _ in mine]
            assert not any(isinstance(answer, Rlerror) for _, answer in mine)

    played(play)


def test_a_reset_in_any_place_leaves_a_session_as_new() -> None:
    async def play(grounds: Grounds) -> None:
        for length in range(6):
            raw = await met(grounds, Dialect.L, False, True)
            chain: list[tuple[int, Message]] = [
                (1, Twalk(0, 1, ("events",))),
                (2, Tlopen(1, 0)),
                (3, Tread(1, 0, 100)),
                (4, Twalk(0, 2, ("slow", "x"))),
                (5, Tflush(3)),
            ]
            raw.say(*chain[:length], (NOTAG, Tversion(MSIZE, "9P2000")))
            await wait_until(lambda raw=raw: NOTAG == raw.answers[-1][0] and len(raw.answers) > 2)  # type: ignore[misc]
            count = len(raw.answers)
            await calm()
            assert (count, {}) == (len(raw.answers), raw.conversation.session.fids)
            assert isinstance(await raw.ask(1, Tattach(0, NOFID, "alice", "")), Rattach)

    played(play)
