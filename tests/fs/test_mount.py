"""A mounted hive as the shell sees it: each idiom, its output and its status."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.mounted import Mounted, mounted, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("mount")) as made:
        yield made


@pytest.mark.parametrize(
    ("script", "prints"),
    [
        ("cat hello", "hello, world\n"),
        ("cat long | wc -l", "100000\n"),
        ("dd if=long bs=1M status=none | tail -n 1", "line 99999\n"),
        ("head -n 1 long", "line 0\n"),
        ("cp hello host/copy && cat host/copy", "hello, world\n"),
        ("cp long host/long && cmp long host/long", ""),
        ("stat -c '%F %a %s' ctl", "regular empty file 666 0\n"),
        ("echo say what=hi > ctl", ""),
        ("echo say what=hi >> ctl", ""),
        ("printf 'say what=a\\nsay what=b\\n' > ctl", ""),
        ("printf 'say what=hi\\n' | tee ctl", "say what=hi\n"),
        ("exec 3<>ask; printf stop >&3; cat <&3", "pots"),
        ("echo new > memory; cat memory; echo more >> memory; cat memory", "new\nnew\nmore\n"),
        ("echo one >> journal; tail -n 1 journal", "one\n"),
        ("ls", "ask\nctl\nevents\ngiven-up\nhello\nhost\njournal\nlong\nmemory\nrefusing\nwaiting\n"),
        ("ls -d h*; echo *rnal", "hello\nhost\njournal\n"),
        ("test -e nope || echo no", "no\n"),
        ("df . | tail -n 1 | cut -c 1-5", "unix:\n"),
        ("find . -name hello", "./hello\n"),
        ("grep -c line long", "100000\n"),
        ("wc -c < hello", "13\n"),
    ],
)
def test_a_shell_command_on_the_mount_does_what_it_says(hive: Mounted, script: str, prints: str) -> None:
    assert prints == hive.sh(script)


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("cat nope", 1, "cat: nope: No such file or directory\n"),
        ("/bin/echo dance > ctl", 1, "/bin/echo: write error: Invalid argument\n"),
        ("/bin/echo fail errno=5 > ctl", 1, "/bin/echo: write error: Input/output error\n"),
        ("/bin/echo fail errno=16 > ctl", 1, "/bin/echo: write error: Device or resource busy\n"),
        ("/bin/echo fail errno=122 > ctl", 1, "/bin/echo: write error: Disk quota exceeded\n"),
        ("/bin/echo fail errno=130 > ctl", 1, "/bin/echo: write error: Owner died\n"),
        ("echo dance > ctl", 1, "sh: 1: echo: echo: I/O error\n"),
        ("bash -c 'echo dance > ctl'", 1, "bash: line 1: echo: write error: Invalid argument\n"),
        ("cat refusing", 1, "cat: refusing: No data available\n"),
        ("cp hello refusing", 1, "cp: error writing 'refusing': No space left on device\n"),
        ("cat hello > refusing", 1, "cat: write error: No space left on device\n"),
        ("echo x > hello", 2, "sh: 1: cannot create hello: Operation not permitted\n"),
        ("rm hello", 1, "rm: cannot remove 'hello': Operation not permitted\n"),
        ("mkdir d", 1, "mkdir: cannot create directory 'd': Operation not permitted\n"),
        ("ls hello/x", 2, "ls: cannot access 'hello/x': Not a directory\n"),
        ("rmdir host", 1, "rmdir: failed to remove 'host': Operation not permitted\n"),
    ],
)
def test_a_refusal_reaches_the_shell_with_its_own_errno(
    hive: Mounted, script: str, status: int, says: str
) -> None:
    assert says == hive.sh(script, status=status)


# The same commands in a directory of the host and in its mount: whatever they print must be the same.
STORY = r"""
umask 022
mkdir a a/b; echo one > a/f; cat a/f; ls -la a | wc -l
echo two >> a/f; cat a/f; wc -c a/f
dd if=/dev/zero of=a/zeros bs=1000 count=5000 status=none; stat -c '%s %b' a/zeros
truncate -s 10 a/zeros; stat -c %s a/zeros; truncate -s 20 a/zeros; od -c a/zeros
ln -s f a/sym; readlink a/sym; cat a/sym; ls -l a/sym | cut -d ' ' -f 1
ln a/f a/hard; stat -c '%h' a/f a/hard; test a/f -ef a/hard; echo $?
mv a/f a/g; cat a/g; mv a/g a/b; ls -R a; mv a/b/g a/hard; ls a
mv -n a/zeros a/hard; ls a; mv -f a/zeros a/hard; ls a
chmod 640 a/hard; stat -c %a a/hard; chmod u+s a/hard; stat -c %a a/hard
touch -d @1000000000.5 a/hard; stat -c '%Y %y' a/hard; touch a/new; stat -c %s a/new
mkfifo a/pipe; stat -c %F a/pipe; rm a/pipe
rmdir a; rm a/b; rmdir a/nope; mkdir a; rmdir a/hard
cp -a a c; diff -r a c; cp -r a c; ls -R c; find . | sort
cd a; mv ../a ../moved; ls; echo x > here; cat here; cd ..; cat moved/here
( cd moved; rm here; exec 3> gone; rm gone; echo kept >&3; ls )
exec 4<> moved/rw; echo hello >&4; cat moved/rw; exec 4>&-
i=0; while [ $i -lt 300 ]; do : > moved/n$i; i=$((i+1)); done; ls moved | wc -l
rm moved/n1*; ls moved | wc -l; rm -r moved/n*; ls moved
(umask 077; echo secret > s; mkdir p); stat -c %a s p
printf 'a\nb\nc\n' > sed; sed -i s/b/B/ sed; cat sed; sort -o sed -r sed; cat sed
tar cf t.tar moved c; tar tf t.tar | sort; mkdir x; tar xf t.tar -C x; diff -r moved x/moved
rm -rf a c moved s p sed t.tar x; ls -a
"""


def test_a_mounted_directory_of_the_host_behaves_like_the_directory(hive: Mounted, tmp_path: Path) -> None:
    said = []
    for place in (tmp_path, hive.place / "host" / "story"):
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["sh", "-c", STORY], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=60, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
        said.append(done.stdout)
    assert said[0] == said[1]


def test_extended_attributes_pass(hive: Mounted) -> None:
    (hive.host / "attributed").touch()
    path = hive.place / "host/attributed"
    os.setxattr(path, "user.colour", b"green")
    os.setxattr(path, "user.long", bytes(3000))
    assert (
        b"green" == os.getxattr(hive.host / "attributed", "user.colour") == os.getxattr(path, "user.colour")
    )
    assert ["user.colour", "user.long"] == sorted(os.listxattr(path))
    os.removexattr(path, "user.long")
    assert ["user.colour"] == os.listxattr(path)
    for name, number in (("user.none", errno.ENODATA), ("user.colour", errno.EEXIST)):
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.getxattr(path, name) if number == errno.ENODATA else os.setxattr(
                path, name, b"x", os.XATTR_CREATE
            )
        assert number == raised.value.errno


def test_byte_range_locks_hold_between_the_mount_and_others_and_end_with_a_close(hive: Mounted) -> None:
    (hive.host / "locked").write_bytes(bytes(100))
    path = hive.place / "host/locked"
    with path.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX, 10, 20)
        script = f"import fcntl as f; f.lockf(open({str(path)!r}, 'r+b'), f.LOCK_EX | f.LOCK_NB, 5, %d)"
        hive.sh(f'python3 -c "{script % 0}"')
        assert "Resource temporarily unavailable" in hive.sh(f'python3 -c "{script % 25}"', status=1)
        waiting = script.replace(" | f.LOCK_NB", "") % 25
        with hive.running("python3", "-c", waiting) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            held.close()
            assert 0 == process.wait(30)


def test_a_memory_map_of_a_mounted_file_reads_it(hive: Mounted) -> None:
    (hive.host / "mapped").write_bytes(b"x" * 10_000)
    with (
        (hive.place / "host/mapped").open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped,
    ):
        assert b"x" * 10_000 == mapped[:]


# Blocked reads


def test_a_blocked_cat_ends_at_once_by_an_interrupt_and_the_server_sees_the_flush(hive: Mounted) -> None:
    given_up = int(hive.read("given-up"))
    with hive.running("cat", "events") as cat:
        wait_until(lambda: hive.read("waiting") == "1\n")
        began = time.monotonic()
        cat.send_signal(signal.SIGINT)
        assert -signal.SIGINT == cat.wait(30)
        assert time.monotonic() - began < 1.0
    wait_until(lambda: hive.read("waiting") == "0\n")
    assert given_up + 1 == int(hive.read("given-up"))


def test_a_blocked_cat_is_killed(hive: Mounted) -> None:
    with hive.running("cat", "events") as cat:
        wait_until(lambda: hive.read("waiting") == "1\n")
        cat.kill()
        assert -signal.SIGKILL == cat.wait(30)
    wait_until(lambda: hive.read("waiting") == "0\n")


def test_blocked_reads_keep_nobody_waiting_and_each_gets_every_line(hive: Mounted) -> None:
    cats = [
        subprocess.Popen(["head", "-n", "1", "events"], cwd=hive.place, stdout=subprocess.PIPE)
        for _ in range(30)
    ]
    try:
        wait_until(lambda: hive.read("waiting") == "30\n")
        assert "hello, world\n" == hive.sh("ls -l > /dev/null; cat hello")
        hive.sh("echo say what=news > ctl")
        assert {b"news\n"} == {cat.communicate(timeout=30)[0] for cat in cats}
    finally:
        for cat in cats:
            cat.kill()
            cat.wait()


def test_a_followed_stream_shows_each_line_and_ends_with_the_stream(hive: Mounted) -> None:
    with hive.running("cat", "events") as cat:
        assert cat.stdout is not None
        wait_until(lambda: hive.read("waiting") == "1\n")
        for word in ("one", "two"):
            hive.sh(f"echo say what={word} > ctl")
            assert f"{word}\n".encode() == cat.stdout.readline()
        hive.sh("echo drop > ctl")
        assert 0 == cat.wait(30)


def test_tail_follows_a_growing_file(hive: Mounted) -> None:
    with hive.running("tail", "-n", "1", "-s", "0.05", "-f", "journal") as tail:
        assert tail.stdout is not None
        tail.stdout.readline()
        for word in ("three", "four"):
            hive.sh(f"echo {word} >> journal")
            assert f"{word}\n".encode() == tail.stdout.readline()
