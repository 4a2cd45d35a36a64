"""A host directory as a tree: large directories, and directories that change under the reader."""

import asyncio
import os
import threading
import time
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.export import Export, HostHandle
from skep.fs.node import Caller, Entry, How
from skep.native.host import Compiled
from skep.native.host_twin import Twin

ME = Caller("unix:root", "operator")
READ = How(read=True)


def listed(handle: HostHandle) -> list[Entry]:
    """All entries, awaited where the directory is large."""
    found = handle.entries()
    if isinstance(found, list):
        return found

    async def wait() -> list[Entry]:
        return await found

    return asyncio.run(wait())


def fill(top: Path, numbers: range) -> None:
    for i in numbers:
        (top / f"a-name-of-some-length-{i}").touch()


@pytest.mark.slow
def test_ten_thousand_names_are_listed_once_each_and_again(tmp_path: Path) -> None:
    fill(tmp_path, range(10_000))
    handle = Export(tmp_path).root.open(READ, ME)
    expected = {f"a-name-of-some-length-{i}" for i in range(10_000)}
    for _ in range(2):
        entries = listed(handle)
        assert 10_000 == len(entries) == len({e.qid.path for e in entries})
        assert expected == {e.name for e in entries}
    handle.close()


@pytest.mark.slow
def test_the_time_of_a_listing_grows_with_its_length_alone(tmp_path: Path) -> None:
    def fastest(count: int) -> float:
        top = tmp_path / str(count)
        top.mkdir()
        fill(top, range(count))
        handle = Export(top).root.open(READ, ME)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            listed(handle)
            times.append(time.perf_counter() - start)
        handle.close()
        return min(times)

    # Ten times the names: quadratic work would take a hundred times as long.
    assert fastest(10_000) < 40 * fastest(1_000)


@pytest.mark.slow
def test_names_that_stay_are_listed_while_others_come_and_go(tmp_path: Path) -> None:
    fill(tmp_path, range(2_000))
    handle = Export(tmp_path).root.open(READ, ME)
    expected = {f"a-name-of-some-length-{i}" for i in range(2_000)}
    over = threading.Event()

    def disturb() -> None:
        i = 0
        while not over.is_set():
            i += 1
            passing = tmp_path / f"passing-{i}"
            passing.touch()
            passing.unlink()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(20):
            found = [e.name for e in listed(handle) if not e.name.startswith("passing-")]
            assert len(expected) == len(found)
            assert expected == set(found)
    finally:
        over.set()
        disturber.join()
    handle.close()


def test_a_directory_removed_under_its_reader_is_empty(tmp_path: Path) -> None:
    root = Export(tmp_path).root
    node = root.mkdir("dir", 0o755, 0, ME)
    handle = node.open(READ, ME)
    root.unlink("dir", True, ME)
    assert [] == listed(handle)
    handle.close()


@pytest.mark.slow
def test_a_long_listing_lets_others_have_their_turn(tmp_path: Path) -> None:
    fill(tmp_path, range(5_000))
    handle = Export(tmp_path).root.open(READ, ME)

    async def story() -> int:
        turns = 0
        listing = asyncio.ensure_future(handle.entries())  # type: ignore[arg-type]
        while not listing.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert 3 < asyncio.run(story())
    handle.close()


# The compiled calls and their twin tell the same.


@settings(max_examples=40, deadline=None)
@given(
    files=st.dictionaries(
        st.binary(min_size=1, max_size=255).filter(
            lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
        ),
        st.tuples(st.sampled_from(["file", "dir", "link", "pipe"]), st.integers(0, 1 << 33)),
        max_size=12,
    )
)
def test_the_twin_tells_what_the_compiled_calls_tell(files: dict[bytes, tuple[str, int]]) -> None:
    with TemporaryDirectory() as made:
        top = os.fsencode(made)
        for name, (kind, number) in files.items():
            path = top + b"/" + name
            if kind == "file":
                with open(path, "wb") as file:
                    file.truncate(number)
            elif kind == "dir":
                os.mkdir(path)
            elif kind == "link":
                os.symlink(b"x", path)
            else:
                os.mkfifo(path)
            os.utime(path, ns=(number * 1_000_000_007, -number * 7), follow_symlinks=False)
        compiled, twin = Compiled(), Twin()
        fd = os.open(made, os.O_RDONLY)
        assert compiled.stat(fd) == twin.stat(fd)
        assert compiled.stat(fd, 5) == twin.stat(fd, 5)
        assert sorted(chain(*compiled.listing(fd))) == sorted(chain(*twin.listing(fd)))
        assert sorted(files) == sorted(one.name for one in chain(*compiled.listing(fd)))
        for one in chain(*compiled.listing(fd)):
            ours, told = compiled.open_child(fd, one.name)
            theirs, twins = twin.open_child(fd, one.name)
            assert told == twins
            assert (one.path, one.vers, one.mode) == (told.path, told.vers, told.mode)
            compiled.utime(ours, (1, 2), (3, (1 << 30) - 2))
            assert (1_000_000_002, told.mtime_ns) == (twin.stat(ours).atime_ns, twin.stat(ours).mtime_ns)
            twin.utime(theirs, (4, 5), (6, 7))
            assert (4_000_000_005, 6_000_000_007) == compiled.stat(ours)[8:10]
            os.close(ours)
            os.close(theirs)
        os.close(fd)


def test_both_refuse_alike(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    for calls in (Compiled(), Twin()):
        told = []
        for call, args in (
            (calls.open_child, (fd, b"missing")),
            (calls.open_child, (fd, b"n" * 256)),
            (calls.open_child, (fd, b"..")),
            (calls.open_child, (file, b"x")),
            (calls.stat, (1_000_000,)),
            (lambda fd, calls=calls: list(calls.listing(fd)), (file,)),
            (calls.rename_new, (fd, b"file", fd, b"other")),
            (calls.rename_new, (fd, b"missing", fd, b"x")),
            (calls.utime, (fd, (0, -1), (0, 0))),
        ):
            try:
                call(*args)
            except OSError as error:
                told.append(error.errno)
        assert [2, 36, 18, 20, 9, 20, 17, 2, 22] == told
    os.close(file)
    os.close(fd)
