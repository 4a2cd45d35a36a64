"""The kernel's way to mount, with a mount command played here: what it is told, what is pumped, how it ends.

A kernel with 9p is mounted in tests/guest. The command played here talks 9P on the descriptor it is given,
as the system call would, and holds it until umount is called.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs.messages import NOTAG, Dialect, Rversion, Tversion
from skep.fs.wire import pack
from tests.fs.mounted import Mounted, wait_until

MOUNT = f"""#!{sys.executable}
import os, pathlib, sys
folder = pathlib.Path(__file__).parent
options = dict(option.partition("=")[::2] for option in sys.argv[5].split(","))
folder.joinpath("told").write_text(" ".join(sys.argv[1:]))
fd = int(options["rfdno"])
os.write(fd, {pack(NOTAG, Tversion(8192, "9P2000.L"), Dialect.L)!r})
folder.joinpath("answer").write_bytes(os.read(fd, 8192))
os.mkfifo(folder / "mounted")
if os.fork() == 0:
    for other in set(range(256)) - {{fd}}:  # the kernel holds nothing else
        try:
            os.close(other)
        except OSError:
            pass
    open(folder / "mounted").read()
"""
UMOUNT = """#!/bin/sh
mv "${0%/*}/mounted" "${0%/*}/unmounted" 2>/dev/null || { echo "umount: not mounted" >&2; exit 32; }
echo "$@" > "${0%/*}/unmounted"
"""


@pytest.fixture
def hive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("mount", MOUNT), ("umount", UMOUNT)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    made = Mounted(tmp_path)
    made.serve()
    try:
        made.start(way="kernel", uname="alice")
        yield made
    finally:
        made.stop()
    assert (folder / "unmounted").exists()


def test_the_kernel_is_told_of_a_descriptor_that_leads_to_the_server(hive: Mounted, tmp_path: Path) -> None:
    assert f"skep: {hive.address} is mounted at {hive.place} by the kernel's 9p\n" == hive.said.decode()
    told = (tmp_path / "bin/told").read_text()
    assert told.startswith("-i -t 9p -o trans=fd,rfdno=")
    assert told.endswith(
        f",version=9p2000.L,cache=none,access=any,uname=alice,msize=1048576,nosuid,nodev skep {hive.place}"
    )
    assert pack(NOTAG, Rversion(8192, "9P2000.L"), Dialect.L) == (tmp_path / "bin/answer").read_bytes()


@pytest.mark.slow
def test_a_signal_unmounts(hive: Mounted) -> None:
    assert hive.mount is not None
    hive.mount.send_signal(signal.SIGTERM)
    assert 0 == hive.ended()
    assert hive.said.decode().endswith(f"skep: {hive.place} is unmounted\n")


@pytest.mark.slow
def test_a_lost_connection_ends_the_mount_and_says_so(hive: Mounted) -> None:
    hive.stop_serving()
    assert 0 == hive.ended()
    assert f"skep: the connection to {hive.address} has ended\n" in hive.said.decode()


@pytest.mark.slow
def test_unmounting_from_outside_ends_the_process(hive: Mounted, tmp_path: Path) -> None:
    os.system(f"umount {hive.place}")
    assert 0 == hive.ended()


@pytest.mark.slow
def test_a_killed_mount_is_unmounted_by_its_watchdog(hive: Mounted, tmp_path: Path) -> None:
    assert hive.mount is not None
    hive.mount.kill()
    hive.ended()
    wait_until((tmp_path / "bin/unmounted").exists)
