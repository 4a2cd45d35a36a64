"""The load generator against the floor, and against servers that refuse, fall silent or hang up."""

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack_from

import pytest

from skep.bench import Case, row
from skep.native.load import Place, idle, measure
from tests.bench.servers import FLOOR, Grounds, grounds, running

SECONDS = 0.05
LIMIT = 5.0  # seconds that a thread of a test may take to end

Answer = Callable[[int, bytes], tuple[int, bytes] | None]  # type, body -> type, body; None: hang up


@pytest.fixture(scope="module")
def floor() -> Iterator[Grounds]:
    with grounds(None) as where, running(FLOOR, where):
        yield where


@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.L"])
@pytest.mark.parametrize("op", ["read", "write", "stat", "walk"])
@pytest.mark.parametrize(("connections", "depth"), [(1, 1), (1, 32), (3, 1), (3, 32)])
def test_every_operation_counts_and_none_fails(
    floor: Grounds, dialect: str, op: str, connections: int, depth: int
) -> None:
    place = Place(floor.place(FLOOR, "read").address, "f64", dialect)
    seconds, load = SECONDS, measure(place, op, seconds=SECONDS, connections=connections, depth=depth)
    while load.ops <= 100 and seconds < LIMIT:
        # Others have the processors: of a longer while some is ours.
        seconds *= 4
        load = measure(place, op, seconds=seconds, connections=connections, depth=depth)
    assert (0, "", False) == (load.errors, load.error, load.stalled)
    assert load.ops > 100
    assert load.bytes == (load.ops * 64 if op in ("read", "write") else 0)
    assert seconds <= load.seconds < seconds * 10
    assert 0 < load.p50_ns <= load.p99_ns < load.seconds * 1e9


@pytest.mark.parametrize("op", ["read", "write"])
def test_big_messages_arrive_whole(floor: Grounds, op: str) -> None:
    load = measure(
        floor.place(FLOOR, "read"), op, seconds=SECONDS, depth=4, msize=1 << 20, count=(1 << 19) - 24
    )
    assert (524288, 524264) == (load.msize, load.count)
    assert load.sound
    assert load.bytes == load.ops * load.count > 0


def test_idle_connections_are_held_and_let_go(floor: Grounds) -> None:
    gc.collect()  # what earlier tests left to be closed must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    with idle(floor.place(FLOOR, "idle"), 100):
        assert before + 100 == len(os.listdir("/proc/self/fd"))
    assert before == len(os.listdir("/proc/self/fd"))


class Scripted:
    """A server of one connection that says what `answer` tells it; it ends with the connection."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.address = f"unix:{directory}/s"
        self.lines: list[bytes] = []
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{directory}/s")
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self) -> "Scripted":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(LIMIT)
        self.listener.close()
        assert not self.thread.is_alive()

    def serve(self) -> None:
        conn, _ = self.listener.accept()
        with conn, conn.makefile("rwb") as stream:
            while head := stream.read(7):
                size, kind, tag = unpack_from("<IBH", head)
                body = stream.read(size - 7)
                if kind == 118:
                    self.lines.append(body[16:])
                said = opening(kind, body) or self.answer(kind, body)
                if said is None:
                    return
                stream.write(pack("<IBH", 7 + len(said[1]), said[0], tag) + said[1])
                stream.flush()


def opening(kind: int, body: bytes) -> tuple[int, bytes] | None:
    """What every conversation begins with; None: this is not of it."""
    names = unpack_from("<H", body, 8)[0] if kind == 110 else 0
    replies = {
        100: (101, body),
        104: (105, bytes(13)),
        110: (111, pack("<H", names) + bytes(13 * names)),
        12: (13, bytes(17)),
        112: (113, bytes(17)),
    }
    return replies.get(kind)


def test_refusals_in_9p2000_l_are_errors_and_no_operations(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: (7, pack("<I", 13))) as server:
        load = measure(Place(server.address, "f"), "write", seconds=SECONDS, depth=4)
    assert (0, 13, "Rlerror 13: Permission denied") == (load.ops, load.error_errno, load.error)
    assert load.errors > 0
    assert not load.sound


def test_refusals_in_9p2000_are_told_in_the_servers_words(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: (107, pack("<H", 7) + b"no, no!")) as server:
        load = measure(Place(server.address, "f", "9P2000"), "stat", seconds=SECONDS)
    assert (0, "Rerror: no, no!") == (load.ops, load.error)


def test_one_refusal_among_many_answers_spoils_the_row(tmp_path: Path) -> None:
    answers = iter([(25, bytes(153))] * 3 + [(7, pack("<I", 5))])

    def answer(kind: int, body: bytes) -> tuple[int, bytes]:
        return next(answers, (25, bytes(153)))

    with Scripted(tmp_path, answer) as server:
        got = row(Place(server.address, "f"), Case("stat", "stat"), SECONDS)
    assert got.load is not None
    assert (1, "error: Rlerror 5: Input/output error", None) == (got.load.errors, got.error, got.value)


def test_a_write_half_taken_is_an_error(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: (119, pack("<I", 63))) as server:
        load = measure(Place(server.address, "f"), "write", seconds=SECONDS)
    assert (0, "short or foreign reply: type 119, size 11, to type 118") == (load.ops, load.error)


def test_a_server_that_hangs_up_ends_the_run(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: None) as server:
        load = measure(Place(server.address, "f"), "stat", seconds=60)
    assert (0, "the server closed the connection") == (load.ops, load.error)


@pytest.mark.parametrize("op", ["stat", "write"])
def test_a_server_that_falls_silent_has_stalled(tmp_path: Path, op: str) -> None:
    measured = threading.Event()

    def answer(kind: int, body: bytes) -> None:
        measured.wait(LIMIT)

    with Scripted(tmp_path, answer) as server:
        # Big enough that the writes do not fit into the socket either.
        load = measure(
            Place(server.address, "f"), op, seconds=SECONDS, depth=8, count=60_000, stall_s=SECONDS
        )
        measured.set()
    assert (0, True, False) == (load.ops, load.stalled, load.sound)


def test_a_refusal_before_the_asking_is_the_rows_error(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: (7, pack("<I", 21))) as server:
        got = row(Place(server.address, "f"), Case("read", "read"), SECONDS)
    assert ("error: Is a directory", None) == (got.error, got.value)


@pytest.mark.slow
def test_every_ctl_line_is_another(tmp_path: Path) -> None:
    with Scripted(tmp_path, lambda kind, body: (119, body[12:16])) as server:
        load = measure(
            Place(server.address, "ctl"), "ctl", seconds=SECONDS, depth=2, line="submit key=b%d\n", serial=41
        )
    assert load.sound
    assert [b"submit key=b%d\n" % n for n in range(41, load.serial)] == server.lines
    assert len(server.lines) >= load.ops > 0
