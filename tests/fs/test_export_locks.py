"""Byte-range locks of an exported file: against a byte-by-byte model, and against the host's processes."""

import fcntl
import gc
import os
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.export import Export, HostHandle, HostNode
from skep.fs.locks import END, RANGES_MAX
from skep.fs.messages import LockStatus, LockType
from skep.fs.node import Caller, How, Lock

RD, WR, UN = LockType.RDLCK, LockType.WRLCK, LockType.UNLCK
OK, BLOCKED = LockStatus.SUCCESS, LockStatus.BLOCKED
BOTH = How(read=True, write=True)
ONE, TWO = Caller("unix:root", "operator", session="1"), Caller("unix:root", "operator", session="2")


@pytest.fixture
def file(tmp_path: Path) -> HostNode:
    node, handle = Export(tmp_path).root.create("file", 0o644, BOTH, 0, ONE)
    handle.close()
    return node


def lock(
    handle: HostHandle, kind: LockType, start: int, length: int, proc: int = 1, client: str = "c"
) -> LockStatus:
    return handle.lock(Lock(kind, start, length, proc, client), wait=True)


def test_a_writer_excludes_and_readers_share(file: HostNode) -> None:
    a, b = file.open(BOTH, ONE), file.open(BOTH, TWO)
    assert OK == lock(a, RD, 0, 10)
    assert OK == lock(b, RD, 5, 10)
    assert BLOCKED == lock(b, WR, 5, 10)
    assert OK == lock(b, WR, 10, 5)
    assert BLOCKED == lock(a, RD, 0, 0)
    assert OK == lock(a, UN, 0, 0)
    assert OK == lock(b, WR, 0, 0)
    a.close()
    b.close()


def test_an_owner_is_a_session_a_client_and_a_process(file: HostNode) -> None:
    a, b, c = file.open(BOTH, ONE), file.open(BOTH, ONE), file.open(BOTH, TWO)
    assert OK == lock(a, WR, 0, 0, proc=7, client="host")
    assert OK == lock(b, WR, 0, 0, proc=7, client="host")  # the same owner by another handle
    assert BLOCKED == lock(a, WR, 0, 0, proc=8, client="host")
    assert BLOCKED == lock(a, WR, 0, 0, proc=7, client="other")
    assert BLOCKED == lock(c, WR, 0, 0, proc=7, client="host")
    for handle in (a, b, c):
        handle.close()


def test_an_unlock_in_the_middle_splits(file: HostNode) -> None:
    a, b = file.open(BOTH, ONE), file.open(BOTH, TWO)
    assert OK == lock(a, WR, 0, 100)
    assert OK == lock(a, UN, 40, 20)
    assert [BLOCKED, OK, BLOCKED] == [lock(b, WR, at, 20) for at in (20, 40, 60)]
    assert Lock(WR, 0, 40, 1, "c") == b.getlock(Lock(WR, 0, 0, 2, "c2"))
    assert Lock(WR, 60, 40, 1, "c") == b.getlock(Lock(RD, 41, 0, 1, "c"))
    a.close()
    b.close()


def test_ranges_side_by_side_become_one(file: HostNode) -> None:
    a, b = file.open(BOTH, ONE), file.open(BOTH, TWO)
    for start in (20, 0, 10):
        assert OK == lock(a, RD, start, 10)
    assert Lock(RD, 0, 30, 1, "c") == b.getlock(Lock(WR, 15, 1, 2, "c2"))
    assert OK == lock(a, RD, 30, 0)
    assert Lock(RD, 0, 0, 1, "c") == b.getlock(Lock(WR, 15, 1, 2, "c2"))
    a.close()
    b.close()


def test_getlock_echoes_what_is_free(file: HostNode) -> None:
    a = file.open(BOTH, ONE)
    assert OK == lock(a, WR, 0, 0)
    asked = Lock(WR, 5, 7, 1, "c")
    assert asked._replace(type=UN) == a.getlock(asked)  # its own lock is not in its way
    a.close()
    b = file.open(BOTH, TWO)
    assert asked._replace(type=UN) == b.getlock(asked)
    b.close()


def test_closing_the_handle_frees_what_was_locked_through_it(file: HostNode) -> None:
    a, a2, b = file.open(BOTH, ONE), file.open(BOTH, ONE), file.open(BOTH, TWO)
    assert OK == lock(a, WR, 0, 10)
    assert OK == lock(a2, WR, 10, 10)
    a.close()
    assert [OK, BLOCKED] == [lock(b, WR, 0, 10), lock(b, WR, 10, 10)]
    a2.close()
    assert OK == lock(b, WR, 10, 10)
    b.close()


def test_an_unlock_always_succeeds_and_a_wrong_lock_is_an_error(file: HostNode) -> None:
    a = file.open(BOTH, ONE)
    assert OK == lock(a, UN, 0, 0)
    assert OK == lock(a, UN, 17, 3)
    assert LockStatus.ERROR == a.lock(Lock(3, 0, 0, 1, "c"), False)
    assert LockStatus.ERROR == lock(a, WR, END, 1)
    assert OK == lock(a, WR, END - 1, (1 << 64) - 1)
    a.close()


def test_the_ranges_of_a_file_are_bounded(file: HostNode) -> None:
    a = file.open(BOTH, ONE)
    assert {OK} == {lock(a, RD, 2 * i, 1) for i in range(RANGES_MAX)}
    assert LockStatus.ERROR == lock(a, RD, 2 * RANGES_MAX, 1)
    assert OK == lock(a, UN, 0, 0)
    assert OK == lock(a, RD, 2 * RANGES_MAX, 1)
    a.close()


def test_locks_of_a_removed_file_go_on(tmp_path: Path) -> None:
    root = Export(tmp_path).root
    node, a = root.create("file", 0o644, BOTH, 0, ONE)
    b = node.open(BOTH, TWO)
    assert OK == lock(a, WR, 0, 0)
    root.unlink("file", False, ONE)
    assert BLOCKED == lock(b, WR, 0, 0)
    a.close()
    assert OK == lock(b, WR, 0, 0)
    b.close()


# Against the naive model: what each byte is locked by.

SIZE = 12
STEP = st.tuples(
    st.integers(0, 3),  # which handle
    st.integers(1, 2),  # which process
    st.sampled_from([RD, WR, UN]),
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE),
    st.booleans(),  # whether the handle is closed and opened again instead
)


class Bytes:
    """For each byte (the last stands for all beyond): owner -> (type, handle)."""

    def __init__(self) -> None:
        self.locks: list[dict[object, tuple[LockType, int]]] = [{} for _ in range(SIZE + 1)]

    def lock(self, owner: object, handle: int, kind: LockType, touched: range) -> LockStatus:
        others = [
            t for at in touched for o, (t, _) in self.locks[at].items() if o != owner and WR in (t, kind)
        ]
        if kind is not UN and others:
            return BLOCKED
        for at in touched:
            self.locks[at].pop(owner, None)
            if kind is not UN:
                self.locks[at][owner] = (kind, handle)
        return OK

    def close(self, handle: int) -> None:
        for at in self.locks:
            for owner in [o for o, (_, h) in at.items() if h == handle]:
                del at[owner]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_locks_are_what_a_byte_by_byte_table_says(
    steps: list[tuple[int, int, LockType, int, int, bool]],
) -> None:
    with TemporaryDirectory() as top:
        node, first = Export(top).root.create("file", 0o644, BOTH, 0, ONE)
        first.close()
        callers = (ONE, ONE, TWO, TWO)
        handles = [node.open(BOTH, caller) for caller in callers]
        probe = node.open(BOTH, Caller("unix:root", "operator", session="probe"))
        model = Bytes()
        for which, proc, kind, start, length, close in steps:
            if close:
                handles[which].close()
                handles[which] = node.open(BOTH, callers[which])
                model.close(which)
                continue
            end = min(start + length, SIZE) if length else SIZE + 1
            owner = (callers[which].session, proc)
            expected = model.lock(owner, which, kind, range(start, end))
            length = end - start if length else 0
            assert expected == lock(handles[which], kind, start, length, proc)
            for at in range(SIZE):
                seen = probe.getlock(Lock(WR, at, 1, 99, "probe"))
                assert (seen.type != UN) == bool(model.locks[at])
                seen = probe.getlock(Lock(RD, at, 1, 99, "probe"))
                assert (seen.type != UN) == any(t is WR for t, _ in model.locks[at].values())
            free = host_sees(Path(top) / "file")
            assert [bool(at) for at in model.locks] == [not one for one in free]
        for handle in handles:
            handle.close()
        assert [True] * (SIZE + 1) == host_sees(Path(top) / "file")
        probe.close()


def host_sees(path: Path) -> list[bool]:
    """For each byte whether another open file description could lock it for writing."""
    with open(path, "r+b") as own:
        free = []
        for at in range(SIZE + 1):
            asked = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
            told = fcntl.fcntl(own, fcntl.F_OFD_GETLK, asked)
            free.append(struct.unpack("hhqqi0q", told)[0] == fcntl.F_UNLCK)
        return free


HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_process_of_the_host_is_respected_and_kept_out(file: HostNode, tmp_path: Path) -> None:
    a = file.open(BOTH, ONE)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdin
        pid = int(holder.stdout.readline())
        assert [OK, BLOCKED, OK] == [lock(a, WR, at, 5) for at in (0, 5, 20)]
        assert BLOCKED == lock(a, RD, 0, 0)
        assert Lock(WR, 5, 10, pid, "") == a.getlock(Lock(RD, 0, 0, 1, "c"))
        # The refused lock has changed nothing.
        other = file.open(BOTH, TWO)
        assert Lock(WR, 0, 5, 1, "c") == other.getlock(Lock(WR, 0, 0, 1, "c"))
        other.close()
        holder.stdin.close()
    assert OK == lock(a, WR, 5, 10)
    again = subprocess.run(command, input="", capture_output=True, text=True)
    assert "BlockingIOError" in again.stderr
    a.close()
    assert 0 == subprocess.run(command, input="", capture_output=True, text=True).returncode


def test_locks_leave_no_descriptor_behind(file: HostNode) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    a, b = file.open(BOTH, ONE), file.open(BOTH, TWO)
    for _ in range(10):
        assert OK == lock(a, WR, 0, 10)
        assert BLOCKED == lock(b, WR, 0, 10)
        assert OK == lock(a, UN, 0, 10)
        assert OK == lock(b, RD, 0, 10)
        assert OK == lock(b, UN, 0, 0)
    assert before + 2 == len(os.listdir("/proc/self/fd"))
    a.close()
    b.close()
    assert before == len(os.listdir("/proc/self/fd"))
