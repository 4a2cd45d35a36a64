"""The shapes of files, by their opens: what is read, what is written, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs import ctl
from skep.fs.errors import E, FsError
from skep.fs.messages import QT
from skep.fs.node import Attr, Caller, Change, Handle, How, Maybe
from skep.fs.shapes import (
    CTL_MAX,
    TEXT_MAX,
    Append,
    Blob,
    Ctl,
    File,
    Memory,
    Source,
    Stream,
    Text,
    Transaction,
)

ME = Caller("unix:glenda", "operator", user="glenda")
READ, WRITE, BOTH = How(read=True), How(write=True), How(read=True, write=True)
T = TypeVar("T")


async def settled(value: Maybe[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def run(play: Callable[[], Awaitable[None]]) -> None:
    async def started() -> None:
        await play()

    asyncio.run(started())


async def opened(file: File, how: How = READ) -> Handle:
    return await settled(file.open(how, ME))


async def read(handle: Handle, offset: int = 0, count: int = 1000) -> bytes:
    return await settled(handle.read(offset, count))


async def write(handle: Handle, data: bytes, offset: int = 0) -> int:
    return await settled(handle.write(offset, memoryview(data)))


async def attr(file: File) -> Attr:
    return await settled(file.attr(ME))


def refused(kind: E, handle: Any) -> None:
    with pytest.raises(FsError) as error:
        asyncio.run(_awaited(handle))
    assert kind is error.value.kind


async def _awaited(call: Callable[[], Awaitable[object]]) -> None:
    await call()


# Text


async def _later() -> str:
    await asyncio.sleep(0)
    return "later\n"


class Saying:
    def __call__(self) -> str:
        return "an object\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plain\n", b"plain\n"),
        (b"\xff\0", b"\xff\0"),
        (lambda: "said\n", b"said\n"),
        (lambda caller: f"{caller.user}\n", b"glenda\n"),
        (lambda end="!\n": f"default{end}", b"default!\n"),
        (_later, b"later\n"),
        (Saying(), b"an object\n"),
        ("é".upper, "É".encode()),
        ("\udcff", b"\xff"),
    ],
)
def test_a_text_is_a_string_bytes_or_what_a_function_gives(content: Any, expected: bytes) -> None:
    async def play() -> None:
        assert expected == await read(await opened(Text(content)))

    run(play)


def test_a_text_is_of_the_moment_it_was_opened() -> None:
    moments = iter(["one\n", "two\n"])

    async def play() -> None:
        text = Text(lambda: next(moments))
        first, second = await opened(text), await opened(text)
        assert (b"one\n", b"two\n") == (await read(first), await read(second))
        assert (b"ne", b"") == (await read(first, 1, 2), await read(first, 4))

    run(play)


def test_a_text_has_no_more_than_can_be_held() -> None:
    async def call() -> None:
        await opened(Text(lambda: "x" * (TEXT_MAX + 1)))

    refused(E.TOOBIG, call)


def test_a_text_is_written_to_whoever_takes_it() -> None:
    took: list[tuple[str, bytes]] = []

    async def play() -> None:
        text = Text(lambda: "before\n", write=lambda caller, data: took.append((caller.user, data)))
        handle = await opened(text, BOTH)
        assert 6 == await write(handle, b"after\n", 99)
        assert b"before\n" == await read(handle)
        assert [("glenda", b"after\n")] == took
        assert 0o644 == (await attr(text)).mode & 0o777

    run(play)


@pytest.mark.parametrize(
    ("file", "how", "kind"),
    [
        (Text("x"), WRITE, E.READONLY),
        (Text("x"), How(read=True, trunc=True), E.READONLY),
        (Text("x", mode=0o666), WRITE, E.READONLY),
        (Text("x", mode=0o222, write=lambda caller, data: None), READ, E.READONLY),
        (Text("x"), How(read=True, execute=True), E.DENIED),
    ],
)
def test_a_file_is_opened_for_what_its_mode_says(file: File, how: How, kind: E) -> None:
    async def call() -> None:
        await opened(file, how)

    refused(kind, call)


# Ctl, Transaction

VERBS = ctl.verbs(ctl.Verb("add", (ctl.Arg("what", required=True),)), ctl.Verb("stop"))


def test_a_ctl_file_runs_a_write_as_one_and_tells_the_reply_to_the_next_read() -> None:
    ran: list[list[str]] = []

    def do(caller: Caller, commands: list[ctl.Command]) -> list[str]:
        ran.append([f"{command.verb} {command.args}" for command in commands])
        return [f"did {command.verb}" for command in commands]

    async def play() -> None:
        handle = await opened(Ctl(VERBS, do), BOTH)
        assert b"add" in await read(handle)  # the usage
        assert 16 == await write(handle, b"add what=1\nstop\n", 500)
        assert [["add {'what': '1'}", "stop {}"]] == ran
        # Readers may go on where they wrote, or begin again.
        assert b"did add\ndid " == await read(handle, 516, 12)
        assert b"stop\n" == await read(handle, 528)
        assert b"" == await read(handle, 533)
        assert b"did add\ndid stop\n" == await read(handle, 0)
        assert 10 == await write(handle, b"\n# nothing")
        assert 1 == len(ran)

    run(play)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"jump", E.USAGE),
        (b"add", E.USAGE),
        (b"add what=1\njump\n", E.USAGE),
        (b"x" * (CTL_MAX + 1), E.TOOBIG),
    ],
)
def test_a_ctl_file_refuses_a_write_of_which_one_line_is_wrong(data: bytes, kind: E) -> None:
    ran: list[object] = []

    def do(caller: Caller, commands: list[ctl.Command]) -> list[str]:
        ran.append(commands)
        return []

    async def call() -> None:
        await write(await opened(Ctl(VERBS, do), WRITE), data)

    refused(kind, call)
    assert [] == ran


def test_a_transaction_answers_on_the_open_that_asked() -> None:
    async def ask(caller: Caller, question: bytes) -> str:
        await asyncio.sleep(0)
        return question.decode().upper()

    async def play() -> None:
        file = Transaction(ask)
        one, two = await opened(file, BOTH), await opened(file, BOTH)
        await write(one, b"one")
        await write(two, b"two")
        assert (b"ONE", b"TWO") == (await read(one, 3), await read(two, 0))
        assert b"" == await read(await opened(file, BOTH))

    run(play)


# Stream


class Queue:
    """A source that ends with None."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.undelivered: bytes | None = b"not closed"
        for piece in pieces:
            self.queue.put_nowait(piece)

    async def next(self) -> bytes | None:
        return await self.queue.get()

    def close(self, undelivered: bytes | None) -> None:
        self.undelivered = undelivered


class Stubborn(Queue):
    """A source that gives its piece though it was cancelled."""

    async def next(self) -> bytes | None:
        try:
            return await self.queue.get()
        except asyncio.CancelledError:
            return b"all the same\n"


def stream_of(source: Source) -> Stream:
    return Stream(lambda caller: source)


def test_a_stream_gives_a_piece_a_read_and_ends() -> None:
    async def play() -> None:
        source = Queue(b"first\n", b"second\n", None)
        handle = await opened(stream_of(source))
        assert handle.waits
        assert [b"fir", b"st\n"] == [await read(handle, 0, 3), await read(handle, 0, 100)]
        assert [b"second\n", b"", b""] == [await read(handle, 77) for _ in range(3)]
        await settled(handle.close())
        assert source.undelivered is None

    run(play)


def test_a_read_given_up_takes_nothing() -> None:
    async def play() -> None:
        source = Queue()
        handle = await opened(stream_of(source))
        waiting = asyncio.ensure_future(read(handle))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        source.queue.put_nowait(b"line\n")
        assert b"line\n" == await read(handle)

    run(play)


def test_a_piece_that_came_with_the_cancellation_is_given() -> None:
    async def play() -> None:
        source = Queue()
        handle = await opened(stream_of(source))
        waiting = asyncio.ensure_future(read(handle))
        for _ in range(3):
            await asyncio.sleep(0)
        source.queue.put_nowait(b"line\n")
        waiting.cancel()
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        assert b"line\n" == (await read(handle) if isinstance(result, BaseException) else result)

    run(play)


def test_a_source_that_goes_on_when_cancelled_is_heard() -> None:
    async def play() -> None:
        handle = await opened(stream_of(Stubborn()))
        waiting = asyncio.ensure_future(read(handle))
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        assert b"all the same\n" == await waiting

    run(play)


def test_a_stream_that_is_closed_tells_what_nobody_read() -> None:
    async def play() -> None:
        source = Queue(b"line\n")
        handle = await opened(stream_of(source))
        await read(handle, 0, 2)
        await settled(handle.close())
        assert b"ne\n" == source.undelivered

    run(play)


# Memory, Append, Blob


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 300), st.binary(max_size=50)),
            st.tuples(st.just("append"), st.just(0), st.binary(max_size=50)),
            st.tuples(st.just("resize"), st.integers(0, 250), st.just(b"")),
        ),
        max_size=20,
    )
)
def test_a_memory_file_is_an_array_of_bytes(steps: list[tuple[str, int, bytes]]) -> None:
    async def play() -> None:
        size_max, model = 300, bytearray()
        file = Memory(size_max=size_max)
        plain, appending = await opened(file, BOTH), await opened(file, How(write=True, append=True))
        for what, at, data in steps:
            before = (await attr(file)).qid.vers
            try:
                if what == "resize":
                    file.setattr(Change(size=at), ME)
                else:
                    handle = plain if what == "write" else appending
                    assert len(data) == await write(handle, data, at)
            except FsError as error:
                assert E.TOOBIG is error.kind  # noqa: PT017
                start = len(model) if what == "append" else at
                assert start + len(data) > size_max
                continue
            if what == "resize":
                model = model[:at] + bytes(max(0, at - len(model)))
            elif data:
                start = len(model) if what == "append" else at
                model += bytes(max(0, start + len(data) - len(model)))
                model[start : start + len(data)] = data
            if data:
                assert before != (await attr(file)).qid.vers
        assert bytes(model) == await read(plain, 0, 1000)
        assert len(model) == (await attr(file)).size
        assert b"" == await read(plain, 1 << 63)

    run(play)


def test_a_memory_file_opened_with_truncation_is_empty() -> None:
    async def play() -> None:
        file = Memory(b"0123456789")
        await opened(file, How(write=True, trunc=True))
        assert 0 == (await attr(file)).size

    run(play)


def test_an_append_file_takes_each_write_whatever_its_offset() -> None:
    log = bytearray(b"begin\n")

    async def take(caller: Caller, data: bytes) -> None:
        await asyncio.sleep(0)
        log.extend(data)

    async def play() -> None:
        file = Append(take, lambda offset, count: bytes(log[offset : offset + count]), lambda: len(log))
        handle = await opened(file, How(read=True, write=True, trunc=True))
        before = (await attr(file)).qid
        assert 5 == await write(handle, b"more\n", 0)
        assert b"begin\nmore\n" == await read(handle)
        told = await attr(file)
        assert (11, 0o666, QT.APPEND) == (told.size, told.mode & 0o777, told.qid.type)
        assert before.vers != told.qid.vers

    run(play)


@pytest.mark.parametrize(("take", "read_at", "mode"), [(None, lambda o, n: b"", 0o444), (print, None, 0o222)])
def test_an_append_file_is_for_what_it_has(take: Any, read_at: Any, mode: int) -> None:
    async def play() -> None:
        assert mode == (await attr(Append(take, read_at))).mode & 0o777

    run(play)


def test_a_blob_is_read_and_written_at_offsets() -> None:
    content = bytearray(b"0123456789")

    async def size() -> int:
        return len(content)

    def put(caller: Caller, offset: int, data: memoryview) -> int:
        content[offset : offset + len(data)] = data
        return len(data)

    async def play() -> None:
        blob = Blob(lambda offset, count: bytes(content[offset : offset + count]), size, write_at=put)
        handle = await opened(blob, BOTH)
        assert 2 == await write(handle, b"xy", 3)
        assert b"012xy5" == await read(handle, 0, 6)
        assert (10, 0o644) == ((await attr(blob)).size, (await attr(blob)).mode & 0o777)

    run(play)


def test_every_file_has_a_number_of_its_own_and_keeps_it() -> None:
    files = [Text("x") for _ in range(100)]
    assert 100 == len({file.path for file in files})
    assert [file.path for file in files] == [file.path for file in files]


def test_a_truncation_of_what_has_no_length_passes_and_nothing_else_does() -> None:
    assert None is Text("x").setattr(Change(size=0), ME)
    with pytest.raises(FsError, match="not permitted"):
        Text("x").setattr(Change(mode=0o777), ME)
