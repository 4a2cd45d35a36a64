"""The beginning, the troubles and the end of a mount."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs import v9fs
from skep.fs.address import parse
from skep.fs.errors import E, FsError
from skep.fs.mount import Options, mount, take_down_dead, unmount
from tests.fs.mounted import ROOT, Mounted, is_mounted, mounted, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def hive(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path, way="fuse") as made:
        yield made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Mounted]:
    """A server, and nothing mounted yet."""
    made = Mounted(tmp_path)
    try:
        made.serve()
        yield made
    finally:
        made.stop()
    assert not is_mounted(made.place)


def helpers(place: Path) -> list[int]:
    """The processes of fusermount3 that watch over the mount at ``place``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fusermount3" in command[0] and os.fsencode(place) in command:
            found.append(int(process.name))
    return found


# The beginning


def test_it_says_what_is_mounted_and_how(hive: Mounted) -> None:
    assert f"skep: {hive.address} is mounted at {hive.place} by FUSE\n" == hive.said.decode()
    options = next(
        line for line in Path("/proc/self/mounts").read_text().splitlines() if str(hive.place) in line
    )
    assert options.startswith(f"{hive.address} {hive.place} fuse.skep rw,nosuid,nodev,")


def test_nothing_is_mounted_when_nobody_listens(tmp_path: Path) -> None:
    made = Mounted(tmp_path)
    with pytest.raises(EOFError, match=r"refused: \[Errno 2\] No such file or directory"):
        made.start()
    assert not is_mounted(made.place)
    made.stop()


def test_a_place_that_is_no_directory_is_refused(served: Mounted) -> None:
    served.place.rmdir()
    with pytest.raises(EOFError, match="No such file or directory"):
        served.start()
    served.place.touch()
    with pytest.raises(EOFError, match="not a directory"):
        served.start()


def test_a_server_without_the_linux_dialect_is_refused(tmp_path: Path) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(21)
        writer.write(b"\x13\0\0\0\x65\xff\xff\0\x20\0\0\x06\x009P2000")
        await reader.readexactly(4)
        writer.write(b"\x14\0\0\0\x69\0\0\x80" + bytes(12))
        await reader.read()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(plain, tmp_path / "s")
        async with server:
            with pytest.raises(FsError, match=r"speaks 9P2000, not 9P2000\.L"):
                await mount(parse(f"unix:{tmp_path}/s"), str(tmp_path))

    asyncio.run(run())


def test_without_the_compiled_module_it_says_what_to_install(served: Mounted) -> None:
    code = (
        "import asyncio, sys; sys.modules['skep.native._fuse'] = None\n"
        "from skep.fs.address import parse; from skep.fs.mount import Options, mount\n"
        "asyncio.run(mount(parse(sys.argv[1]), sys.argv[2], options=Options(way='fuse')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, served.address, str(served.place)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert 1 == done.returncode
    assert "install libfuse3-dev, pkg-config and a C compiler" in done.stderr


@pytest.mark.skipif(v9fs.present(), reason="this kernel has 9p: tests/guest mounts by it")
def test_the_kernels_refusal_is_told_where_it_has_no_9p(served: Mounted) -> None:
    with pytest.raises(EOFError, match=r"refused: i/o error: mount: .*unknown filesystem type '9p'"):
        served.start(way="kernel")


def test_a_read_only_mount_takes_no_writes(served: Mounted) -> None:
    served.start(read_only=True)
    assert "hello, world\n" == served.read("hello")
    assert "Read-only file system" in served.sh("echo say what=hi > ctl", status=2)


def test_with_cache_files_with_a_length_are_mapped_shared_and_programs_run(served: Mounted) -> None:
    served.start(cache=True)
    served.sh("cp /bin/true host/true && host/true")
    assert "hello, world\n" == served.sh("cat hello")
    script = (
        "import mmap as m; f = open('host/true'); print(len(m.mmap(f.fileno(), 0, access=m.ACCESS_READ)))"
    )
    assert f"{os.stat('/bin/true').st_size}\n" == served.sh(f'{sys.executable} -c "{script}"')


# A connection that is lost


def test_while_the_server_is_gone_operations_fail_at_once_and_go_on_when_it_is_back(hive: Mounted) -> None:
    (hive.host / "deep/er").mkdir(parents=True)
    (hive.host / "deep/er/file").write_text("before\n")
    with (hive.place / "host/deep/er/file").open() as before:
        assert "before\n" == before.read()
        cat = subprocess.Popen(["cat", "events"], cwd=hive.place, stderr=subprocess.PIPE)
        wait_until(lambda: hive.read("waiting") == "1\n")
        hive.stop_serving()
        assert b"cat: events: Input/output error\n" == cat.communicate(timeout=30)[1]
        hive.heard("lost; trying again")
        assert "Input/output error" in hive.sh("cat hello", status=1)
        assert "Input/output error" in hive.sh("ls host/deep", status=2)
        hive.serve()
        hive.heard(f"connected to {hive.address} again")
        assert "hello, world\n" == hive.read("hello")
        assert "before\n" == hive.sh("cd host/deep/er; cat file")
        before.seek(0)
        with pytest.raises(OSError, match="Stale file handle"):
            before.read()


def test_a_working_directory_outlives_the_connection(hive: Mounted) -> None:
    (hive.host / "d").mkdir()
    (hive.host / "d/file").write_text("here\n")
    shell = subprocess.Popen(
        ["sh"], cwd=hive.place / "host/d", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    try:
        shell.stdin.write(b"cat file\n")
        assert b"here\n" == shell.stdout.readline()
        hive.stop_serving()
        hive.heard("lost; trying again")
        hive.serve()
        hive.heard("again\nskep: connected")
        shell.stdin.write(b"cat file\n")
        assert b"here\n" == shell.stdout.readline()
    finally:
        shell.kill()
        shell.communicate()


def test_a_name_that_means_another_file_after_the_loss_is_not_taken_for_the_old_one(hive: Mounted) -> None:
    (hive.host / "d").mkdir()
    handle = os.open(hive.place / "host/d", os.O_PATH)
    try:
        hive.stop_serving()
        hive.heard("lost; trying again")
        (hive.host / "d").rename(hive.host / "old")
        (hive.host / "d").mkdir()
        hive.serve()
        hive.heard("again\nskep: connected")
        with pytest.raises(OSError, match="Stale file handle"):
            os.stat(f"/proc/self/fd/{handle}")
        assert [] == os.listdir(hive.place / "host/d")
    finally:
        os.close(handle)


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_even_while_somebody_reads_in_there(hive: Mounted, number: signal.Signals) -> None:
    assert hive.mount is not None
    with hive.running("cat", "events") as cat:
        wait_until(lambda: hive.read("waiting") == "1\n")
        hive.mount.send_signal(number)
        assert 0 == hive.ended()
        assert 1 == cat.wait(30)
    assert f"skep: {hive.place} is unmounted" in hive.said.decode()
    assert not is_mounted(hive.place)
    wait_until(lambda: not helpers(hive.place))


def test_unmounting_from_outside_ends_the_process(hive: Mounted) -> None:
    unmount(str(hive.place))
    assert 0 == hive.ended()
    assert not is_mounted(hive.place)


def test_unmounting_what_somebody_uses_is_refused_unless_it_is_lazy(hive: Mounted) -> None:
    with hive.running("sleep", "60"):
        with pytest.raises(FsError, match="busy"):
            unmount(str(hive.place))
        assert "hello, world\n" == hive.read("hello")
        unmount(str(hive.place), lazy=True)
        assert not is_mounted(hive.place)
    assert 0 == hive.ended()


def test_a_killed_mount_leaves_nothing_mounted(hive: Mounted) -> None:
    assert hive.mount is not None
    hive.mount.kill()
    hive.ended()
    wait_until(lambda: not is_mounted(hive.place))
    wait_until(lambda: not helpers(hive.place))


def test_a_dead_mount_is_taken_down_with_a_word_and_mounted_again(hive: Mounted) -> None:
    assert hive.mount is not None
    for helper in helpers(hive.place):
        os.kill(helper, signal.SIGKILL)
    hive.mount.kill()
    hive.ended()
    assert is_mounted(hive.place)
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.stat(hive.place)
    hive.said = b""
    hive.start()
    assert f"skep: a dead mount at {hive.place} is taken down first" in hive.said.decode()
    assert "hello, world\n" == hive.read("hello")


def test_a_live_mount_and_a_plain_directory_are_not_taken_down(hive: Mounted, tmp_path: Path) -> None:
    said: list[str] = []
    take_down_dead(str(tmp_path), said.append)
    take_down_dead(str(hive.place), said.append)
    assert [] == said
    assert is_mounted(hive.place)
    with pytest.raises(FileNotFoundError):
        take_down_dead(str(tmp_path / "none"), said.append)


def test_unmounting_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(FsError, match="not mounted") as raised:
        unmount(str(tmp_path))
    assert E.IO is raised.value.kind


def test_the_way_is_chosen_by_what_the_kernel_has() -> None:
    assert v9fs.present() == (os.geteuid() == 0 and "\t9p\n" in Path("/proc/filesystems").read_text())
    assert Options().way is None
