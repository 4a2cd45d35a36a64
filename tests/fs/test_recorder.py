"""What is kept of a conversation: in which order, how much, and nothing that is secret."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from test_ninept import CLUNK, HEADER

from skep.fs.chan import EVERYTHING, Chan, settle
from skep.fs.ctl import Verb, verbs
from skep.fs.errors import E, FsError
from skep.fs.messages import NOFID, NONUNAME, Dialect, Rerror, Rread, Tattach, Tauth, Tread, Twrite
from skep.fs.ninept import End, Reading, Record, read
from skep.fs.node import Caller, Handle, How
from skep.fs.recorder import EARLY_MAX, PENDING_MAX, SIZE_MAX, Recorder, hidden_of_reply, hidden_of_request
from skep.fs.session import Call, Fid
from skep.fs.shapes import Ctl, Transaction
from skep.fs.tree import Exclusive
from skep.fs.wire import pack

ANN = Caller("unix:ann", "operator")


def recorder(begun: bool = True, size_max: int = SIZE_MAX, pending_max: int = PENDING_MAX) -> Recorder:
    times = itertools.count(100)
    made = Recorder(lambda: next(times), lambda: 7, lambda: None, size_max, pending_max)
    if begun:
        made.begin(HEADER)
    return made


def written(*pieces: bytes) -> tuple[list[Record], Reading]:
    _, records = read(b"".join(pieces))
    return list(records), records


def test_what_is_seen_is_taken_once_and_ends_with_the_reason() -> None:
    made = recorder()
    made.seen("T", CLUNK)
    first = made.take()
    made.seen("R", CLUNK)
    made.stop("off")
    made.seen("T", CLUNK)
    second = made.take()
    records, reading = written(first.data, second.data, made.end())
    assert [("T", 100, 7), ("R", 101, 7)] == [record[:3] for record in records[:2]]
    assert End(why="off", lost=1) == reading.end
    assert (2, 1) == (made.count, second.messages)
    assert made.link == reading.link


def test_the_first_messages_are_kept_until_it_is_known_whose_they_are() -> None:
    made = recorder(begun=False)
    made.seen("T", CLUNK)
    assert not made.pending
    made.begin(HEADER)
    made.seen("R", CLUNK)
    assert ["T", "R"] == [record.kind for record in written(made.take().data)[0]]


def test_of_who_never_says_who_it_is_little_is_kept() -> None:
    made = recorder(begun=False)
    for _ in range(EARLY_MAX + 1):
        made.seen("T", CLUNK)
    assert ("early", False) == (made.why, made.pending)


@pytest.mark.parametrize(
    ("made", "why"), [(recorder(size_max=4000), "full"), (recorder(pending_max=4000), "slow")]
)
def test_a_limit_ends_it_with_what_is_lost(made: Recorder, why: str) -> None:
    for _ in range(100):
        made.seen("T", CLUNK)
    taken = made.take()
    records, reading = written(taken.data, made.end())
    assert End(why=why, lost=100 - made.count) == reading.end
    assert made.count == len(records) - 1 > 20
    if why == "full":
        assert len(taken.data) + 200 < 4000


def test_what_could_not_be_written_is_counted_and_the_end_is_linked_to_what_was() -> None:
    made = recorder()
    made.seen("T", CLUNK)
    first = made.take()
    made.seen("R", CLUNK)
    second = made.take()
    made.seen("T", CLUNK)
    made.failed(second, "space")
    records, reading = written(first.data, made.end())
    assert ["T", "E"] == [record.kind for record in records]
    assert End(why="space", lost=2) == reading.end
    assert (1, made.link) == (made.count, reading.link)


@pytest.mark.parametrize(
    "request_", [Tattach(1, NOFID, "ann", "b/b/b", NONUNAME), Tauth(1, "ann", "b/b/b", NONUNAME)]
)
@pytest.mark.parametrize("dialect", Dialect)
def test_an_attach_elsewhere_ends_it_untold(request_: Any, dialect: Dialect) -> None:
    made = recorder()
    made.seen("T", pack(1, type(request_)(**fields_of(request_, aname="/")), dialect))
    assert made.pending
    assert "" == made.why
    made.seen("T", pack(1, request_, dialect))
    assert made.why.startswith("elsewhere")
    assert b"b/b/b" not in made.take().data


def fields_of(message: Any, **other: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__} | other


# what is secret


def fid(handle: Handle | None, kind: str = "file") -> Fid:
    chan = Chan(Ctl({}, lambda caller, commands: ()), ANN, EVERYTHING)
    chan.handle = handle
    return Fid(chan, How(read=True, write=True), kind)


WRITE = memoryview(pack(5, Twrite(3, 0, b"secret"), Dialect.L))
SECRET = Transaction(lambda caller, said: b"", secret=True).opened(How(), ANN)
PLAIN = Transaction(lambda caller, said: b"").opened(How(), ANN)


@pytest.mark.parametrize(
    ("fids", "before", "hidden"),
    [
        ({}, [], True),  # a walk to it may be under way
        ({3: fid(None)}, [], True),  # so may an open
        ({3: fid(SECRET)}, [], True),
        ({3: fid(None, "auth")}, [], True),
        ({3: fid(PLAIN)}, [], False),
        ({3: fid(PLAIN)}, [Tread(3, 0, 1), Twrite(3, 0, b"")], False),
        ({3: fid(PLAIN)}, [Tauth(3, "", "", NONUNAME)], True),  # it will be another file's
        ({3: fid(None, "xattr")}, [], False),
    ],
)
def test_what_is_written_is_hidden_unless_it_is_known_to_be_no_secret(
    fids: dict[int, Fid], before: list[Any], hidden: bool
) -> None:
    queues = {3: [Call(n, message) for n, message in enumerate(before)]}
    assert (((23, 6),) if hidden else ()) == hidden_of_request(WRITE, fids, queues)


@pytest.mark.parametrize("dialect", Dialect)
def test_what_is_read_is_hidden_and_what_an_error_quotes(dialect: Dialect) -> None:
    call = Call(5, Tread(3, 0, 99))
    call.fid = fid(SECRET)
    reply = pack(5, Rread(b"secret"), dialect)
    assert ((11, 6),) == hidden_of_reply(call, Rread(b"secret"), len(reply), dialect)
    error = FsError(E.USAGE, "secret")
    if dialect is not Dialect.L:
        frame = pack(5, Rerror("secret", 22), dialect)
        assert ((9, 6),) == hidden_of_reply(call, error, len(frame), dialect)
    else:
        assert () == hidden_of_reply(call, error, 11, dialect)
    call.fid = fid(PLAIN)
    assert () == hidden_of_reply(call, Rread(b"public"), len(reply), dialect)
    assert () == hidden_of_reply(None, Rread(b"public"), len(reply), dialect)


@pytest.mark.parametrize("wrapped", [lambda file: file, Exclusive])
def test_a_reply_is_a_secret_when_its_verb_says_so(wrapped: Callable[[Any], Any]) -> None:
    table = verbs(Verb("tell", secret=True), Verb("say"))

    async def told(line: bytes) -> bool:
        node = wrapped(Ctl(table, lambda caller, commands: ["told"] * len(commands)))
        handle = await settle(node.open(How(read=True, write=True), ANN))
        await settle(handle.write(0, memoryview(line)))
        return bool(handle.tells_secrets)

    assert [True, False, True] == [asyncio.run(told(line)) for line in (b"tell", b"say", b"say\ntell\n")]
