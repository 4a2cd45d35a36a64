"""The cases of docs/PROTOCOL.md that no transcript tells: sizes, numbers of messages, orders of events."""

from __future__ import annotations

import asyncio
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import session
from skep.fs.chan import Chan
from skep.fs.conversation import Peer
from skep.fs.errors import E, FsError
from skep.fs.messages import (
    NOFID,
    Dialect,
    Qid,
    Rattach,
    Rclunk,
    Rerror,
    Rflush,
    Rfsync,
    Rlerror,
    Rlopen,
    Rmkdir,
    Rread,
    Rreaddir,
    Runlinkat,
    Rwalk,
    Stat,
    Tattach,
    Tauth,
    Tclunk,
    Tflush,
    Tfsync,
    Tlopen,
    Tmkdir,
    Topen,
    Tread,
    Treaddir,
    Tstat,
    Tunlinkat,
    Tversion,
    Twalk,
    Twrite,
    Txattrwalk,
)
from skep.fs.node import Attr, Caller
from skep.fs.server import OpenGate
from skep.fs.shapes import Text
from skep.fs.tree import Listing, as_node
from skep.fs.wire import unpack_dirents, unpack_stat
from skep.native.hot import OUT_SIZE
from tests.fs.grounds import Grounds, Raw, calm, played, wait_until

M = TypeVar("M")
KERNELS = pytest.mark.parametrize("kernel", [False, True], ids=["python", "kernel"])


async def attached(
    raw: Raw, dialect: Dialect = Dialect.L, msize: int = 8192, aname: str = "", uname: str = "alice"
) -> Raw:
    """``raw`` with fid 0 at the root."""
    await raw.version(dialect, msize)
    assert isinstance(await raw.ask(0, Tattach(0, NOFID, uname, aname)), Rattach)
    return raw


async def opened(raw: Raw, fid: int, *names: str, mode: int = 0) -> None:
    assert len(names) == len(_is(Rwalk, await raw.ask(0, Twalk(0, fid, names))).wqid)
    request = Tlopen(fid, mode) if raw.hearing is Dialect.L else Topen(fid, mode)
    assert not isinstance(await raw.ask(0, request), (Rerror, Rlerror))


def _is(kind: type[M], message: object) -> M:
    assert isinstance(message, kind), message
    return message


# case 30


@KERNELS
@pytest.mark.parametrize("name", ["zeros", "slowly"])
def test_case_030_a_burst_of_reads_is_never_held_in_answers(kernel: bool, name: str) -> None:
    msize, burst = 16384, 2800

    async def play(grounds: Grounds) -> None:
        grounds.slowly.content = bytes(msize)
        raw = await attached(Raw(grounds, kernel=kernel), msize=msize)
        await opened(raw, 1, name)
        conversation, heard = raw.conversation, 0
        most = 0

        def take(frames: Sequence[bytes | memoryview]) -> None:
            nonlocal heard, most
            size = sum(len(frame) for frame in frames)
            most = max(most, size)
            heard += size
            conversation.paused = True  # as a transport that nobody reads from

        conversation.send = take
        raw.send(b"".join(raw.frame(tag, Tread(1, 0, msize)) for tag in range(burst)))
        grounds.lets["slowly"].set()
        while heard < burst * msize:
            await calm(5)
            assert conversation.session.outgoing <= session.OUT_MAX + OUT_SIZE
            conversation.resume()
        assert (burst * msize, 0) == (heard, conversation.session.outstanding)
        assert most <= session.OUT_MAX + OUT_SIZE

    played(play)


@KERNELS
def test_case_030_more_requests_than_there_may_be_are_refused_one_by_one(kernel: bool) -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds, kernel=kernel))
        await opened(raw, 1, "events")
        before = len(raw.answers)
        raw.say(*((tag, Tread(1, 0, 100)) for tag in range(session.TAGS_MAX + 3)))
        await raw.heard(before + 3)
        assert [(session.TAGS_MAX + i, Rlerror(122)) for i in range(3)] == raw.answers[before:]
        raw.say((session.TAGS_MAX, Tflush(7)))
        await raw.heard(before + 4)
        assert (session.TAGS_MAX, Rflush()) == raw.answers[-1]

    played(play)


@KERNELS
def test_thousands_of_requests_behind_a_walk_that_fails_all_fail(kernel: bool) -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds, kernel=kernel))
        before = len(raw.answers)
        raw.say((0, Twalk(0, 1, ("slow", "x"))))
        raw.say(*((tag, Tread(1, 0, 100)) for tag in range(1, 4000)), (4000, Tflush(0)))
        await raw.heard(before + 4000)
        assert (4000, Rflush()) == raw.answers[before]
        assert [(tag, Rlerror(9)) for tag in range(1, 4000)] == raw.answers[before + 1 :]

    played(play)


# case 43


@KERNELS
def test_case_043_among_two_hundred_fsyncs_a_flushed_one_is_not_answered_late(kernel: bool) -> None:
    async def play(grounds: Grounds) -> None:
        (grounds.host / "file").write_bytes(b"text")
        raw = await attached(Raw(grounds, kernel=kernel), aname="host")
        await opened(raw, 1, "file", mode=2)
        for fid in range(2, 6):
            await opened(raw, fid, "file", mode=2)
        before = len(raw.answers)
        raw.say(
            *((tag, Tfsync(1 + tag % 5, 0)) for tag in range(100)),
            (500, Tflush(50)),
            *((tag, Tfsync(1 + tag % 5, 0)) for tag in range(100, 200)),
        )
        await wait_until(lambda: raw.conversation.session.outstanding == 0)
        answers = raw.answers[before:]
        flushed = answers.index((500, Rflush()))
        assert (50, Rfsync()) not in answers[flushed:]
        others = sorted(tag for tag, answer in answers if answer == Rfsync() and tag != 50)
        assert [tag for tag in range(200) if tag != 50] == others

    played(play)


# case 75


@pytest.mark.slow
@KERNELS
def test_case_075_a_tree_deeper_than_any_path_is_made_walked_and_removed(kernel: bool) -> None:
    name, depth = "n" * 255, 257

    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds, kernel=kernel), aname="host")
        await raw.ask(0, Twalk(0, 1, ()))
        for _ in range(depth):
            made = _is(Rmkdir, await raw.ask(0, Tmkdir(1, name, 0o755, 0)))
            walked = _is(Rwalk, await raw.ask(0, Twalk(1, 1, (name,))))
            assert (made.qid,) == walked.wqid
        assert 17 == len(await walk_all(raw, 2, [name] * depth))
        assert 257 == len(_is(Rwalk, await raw.ask(0, Twalk(1, 3, ("..",)))).wqid) + 256
        for level in reversed(range(depth)):
            await walk_all(raw, 4, [name] * level)
            assert Runlinkat() == await raw.ask(0, Tunlinkat(4, name, 0x200))
            await raw.ask(0, Tclunk(4))

    async def walk_all(raw: Raw, fid: int, names: list[str]) -> list[Rwalk]:
        walks = [_is(Rwalk, await raw.ask(0, Twalk(0, fid, ())))]
        for i in range(0, len(names), 16):
            some = tuple(names[i : i + 16])
            walks.append(_is(Rwalk, await raw.ask(0, Twalk(fid, fid, some))))
            assert len(some) == len(walks[-1].wqid)
        return walks[1:] if names else []

    played(play)


# cases 97, 99


@pytest.mark.parametrize("dialect", [Dialect.PLAIN, Dialect.U], ids=lambda dialect: dialect.value)
@pytest.mark.parametrize("msize", [256, 300, 512, 8192])
def test_case_097_099_a_directory_reads_as_whole_entries_again_and_again(
    dialect: Dialect, msize: int
) -> None:
    async def play(grounds: Grounds) -> None:
        names = {f"name{'x' * (i % 60)}{i}": "text" for i in range(200)}
        grounds.names = names
        raw = await attached(Raw(grounds), dialect, msize)
        await opened(raw, 1, "names")
        for _ in range(2):
            assert list(names) == [entry.name for entry in await listed(raw, 1, dialect, msize)]

    played(play)


async def listed(raw: Raw, fid: int, dialect: Dialect, count: int) -> list[Stat]:
    """The entries of a directory of 9P2000, each of whose reads is whole."""
    found: list[Stat] = []
    offset = 0
    while data := bytes(_is(Rread, await raw.ask(0, Tread(fid, offset, count))).data):
        offset += len(data)
        while data:
            entry, size = unpack_stat(memoryview(data), dialect)
            found.append(entry)
            data = data[size:]
    return found


# cases 102, 105


@pytest.mark.parametrize("msize", [128, 256, 512])
def test_case_102_a_listing_in_pieces_has_every_entry_once(msize: int) -> None:
    async def play(grounds: Grounds) -> None:
        for i in range(300):
            (grounds.host / f"file{i:03}").touch()
        raw = await attached(Raw(grounds), msize=msize, aname="host")
        await opened(raw, 1)
        found: list[str] = []
        offset = 0
        while True:
            data = _is(Rreaddir, await raw.ask(0, Treaddir(1, offset, msize))).data
            if not data:
                break
            entries = unpack_dirents(memoryview(data))
            found += [entry.name for entry in entries]
            offset = entries[-1].offset
            # What comes and goes meanwhile is of no consequence.
            (grounds.host / found[-1]).unlink(missing_ok=True) if len(found) > 2 else None
            (grounds.host / f"new{len(found)}").touch()
        assert [".", "..", *(f"file{i:03}" for i in range(300))] == sorted(found)

    played(play)


@pytest.mark.parametrize("dialect", [Dialect.PLAIN, Dialect.L], ids=lambda dialect: dialect.value)
def test_case_105_a_listing_of_ten_thousand_asks_for_each_entry_a_fixed_number_of_times(
    dialect: Dialect,
) -> None:
    count = 10_000
    walks = 0

    def walk(name: str, caller: Caller) -> str:
        nonlocal walks
        walks += 1
        return "text"

    tree = Listing(lambda caller: [f"name{i}" for i in range(count)], walk)

    async def play(grounds: Grounds) -> None:
        raw = Raw(OpenGate(tree))
        await attached(raw, dialect)
        await opened(raw, 1)
        if dialect is Dialect.L:
            found, offset = 0, 0
            while data := _is(Rreaddir, await raw.ask(0, Treaddir(1, offset, 8192))).data:
                entries = unpack_dirents(memoryview(data))
                found, offset = found + len(entries), entries[-1].offset
            assert count + 2 == found
        else:
            assert count == len(await listed(raw, 1, dialect, 8192))
        # Once when listed, once when told, and once more where a message ended.
        assert walks <= 2 * count + count // 10

    played(play)


# case 120


def test_case_120_a_stat_says_its_length_twice() -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds), Dialect.PLAIN)
        frames: list[bytes] = []
        raw.conversation.send = lambda buffers: frames.append(b"".join(buffers))
        raw.say((1, Tstat(0)))
        (frame,) = frames
        outer, inner = struct.unpack_from("<HH", frame, 7)
        assert (len(frame) - 9, len(frame) - 11) == (outer, inner)

    played(play)


class Talker(Text):
    """A file whose owner has a name that no message holds."""

    def attr(self, caller: Caller) -> Attr:
        return Attr(Qid(0, 0, 7), 0o100444, user="u" * 70_000)


def test_case_120_what_fits_no_stat_is_an_error() -> None:
    async def play(grounds: Grounds) -> None:
        raw = Raw(OpenGate(as_node({"talker": Talker("text")})))
        await attached(raw, Dialect.PLAIN, msize=1 << 20)
        await raw.ask(0, Twalk(0, 1, ("talker",)))
        assert "i/o error" in _is(Rerror, await raw.ask(0, Tstat(1))).ename
        assert Rclunk() == await raw.ask(0, Tclunk(1))

    played(play)


# case 147


@KERNELS
@pytest.mark.parametrize("aname", ["", "host"])
def test_case_147_an_attribute_that_is_not_there_is_told_without_waiting(kernel: bool, aname: str) -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds, kernel=kernel), aname=aname)
        before = len(raw.answers)
        for name in ("system.posix_acl_access", "system.posix_acl_default", "security.capability"):
            raw.say((1, Txattrwalk(0, 9, name)))
        # Not one turn of the loop has passed.
        expected = Rlerror(95) if aname == "" else Rlerror(61)
        assert [(1, expected)] * 3 == raw.answers[before:]

    played(play)


# case 150


@KERNELS
@settings(max_examples=30, deadline=None)
@given(st.permutations(range(16)))
def test_case_150_answers_come_in_any_order_each_once_and_whole(kernel: bool, order: list[int]) -> None:
    async def play(grounds: Grounds) -> None:
        lets = [asyncio.Event() for _ in range(16)]

        def tell(number: int) -> Text:
            async def content() -> str:
                await lets[number].wait()
                return f"{number}\n"

            return Text(content)

        tree = as_node({str(number): tell(number) for number in range(16)})
        raw = await attached(Raw(OpenGate(tree), kernel=kernel))
        for number in range(16):
            assert isinstance(await raw.ask(0, Twalk(0, number + 1, (str(number),))), Rwalk)
        before = len(raw.answers)
        raw.say(*((number, Tlopen(number + 1, 0)) for number in range(16)))
        for number in order:
            lets[number].set()
            await calm(10)
        assert order == [tag for tag, answer in raw.answers[before:] if isinstance(answer, Rlopen)]
        for number in range(16):
            answer = _is(Rread, await raw.ask(0, Tread(number + 1, 0, 10)))
            assert f"{number}\n".encode() == answer.data

    played(play)


# Beyond the cases


def test_an_attach_waits_for_what_is_written_to_its_proof() -> None:
    async def play(grounds: Grounds) -> None:
        raw = Raw(grounds)
        await raw.version()
        raw.say(
            (1, Tauth(9, "carol", "")),
            (2, Twrite(9, 0, b"swordfish")),
            (3, Tattach(0, 9, "carol", "")),
        )
        await raw.heard(4)
        assert [1, 2, 3] == [tag for tag, _ in raw.answers[1:]]
        assert isinstance(raw.answers[-1][1], Rattach)

    played(play)


def test_an_error_that_quotes_a_long_name_is_cut() -> None:
    class Quoting(OpenGate):
        def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
            raise FsError(E.DENIED, repr(uname))

    async def play(grounds: Grounds) -> None:
        raw = Raw(Quoting(as_node({})))
        await raw.version(Dialect.PLAIN, 1 << 20)
        refused = _is(Rerror, await raw.ask(1, Tattach(0, NOFID, "\x01" * 65000, "")))
        assert session.ENAME_MAX == len(refused.ename)

    played(play)


def test_requests_behind_a_reset_are_not_performed_when_the_client_is_gone() -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds))
        await opened(raw, 1, "journal", mode=1)
        raw.say((1, Twrite(1, 0, b"entry\n")))
        raw.say((0xFFFF, Tversion(8192, "9P2000.L")), (2, Tattach(0, NOFID, "alice", "host")))
        raw.say((3, Tmkdir(0, "made", 0o755, 0)))
        raw.leave()
        grounds.lets["journal"].set()
        await wait_until(lambda: raw.conversation.busy == 0)
        await calm()
        assert [] == [path.name for path in grounds.host.iterdir()]
        assert b"entry\n" == grounds.journal.data

    played(play)


def test_what_a_broken_file_raises_is_an_error_of_that_request_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play(grounds: Grounds) -> None:
        raw = await attached(Raw(grounds))
        await raw.ask(0, Twalk(0, 1, ("broken",)))
        assert Rlerror(5) == await raw.ask(0, Tlopen(1, 0))
        assert Rclunk() == await raw.ask(0, Tclunk(1))

    played(play)
    assert "ZeroDivisionError" in caplog.text


# Every case is tested, and the page says where.

PAGE = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"
HERE = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.*) \|$", re.MULTILINE)


def covered() -> dict[int, set[str]]:
    """The tests of each case, by their files' names."""
    found: dict[int, set[str]] = {number: set() for number in range(1, 151)}
    for path in sorted((HERE / "transcripts").glob("*.txt")):
        for head in re.findall(r"^# cases? ((?:\d+(?:, )?)+):", path.read_text(), re.MULTILINE):
            for number in head.split(", "):
                found[int(number)].add(path.name)
    for path in sorted(HERE.glob("test_*.py")):
        for head in re.findall(r"^def test_case_(\d{3}(?:_\d{3})*)_", path.read_text(), re.MULTILINE):
            for number in head.split("_"):
                found[int(number)].add(path.name)
    return found


def test_every_case_is_tested_where_the_page_says() -> None:
    found = covered()
    page = PAGE.read_text()
    if os.environ.get("UPDATE"):
        PAGE.write_text(page := ROW.sub(lambda row: updated(row, found), page))
    told = {int(number): set(where.split(", ")) for number, _, where in ROW.findall(page)}
    assert list(range(1, 151)) == sorted(told)
    assert [] == [number for number in told if not found[number]]
    assert {} == {number: found[number] - told[number] for number in told if found[number] - told[number]}
    files = {path.name for path in HERE.parent.glob("**/*") if path.suffix in (".py", ".txt")}
    assert set() == set().union(*told.values()) - files


def updated(row: re.Match[str], found: dict[int, set[str]]) -> str:
    number, rule, where = row.groups()
    kept = set(where.split(", ")) - set().union(*found.values())  # tests of the guest and of exports
    return f"| {number} | {rule} | {', '.join(sorted(found[int(number)] | kept))} |"
