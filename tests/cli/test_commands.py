"""The commands of skep as a person or a script runs them: what they print, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from skep.__main__ import COMMANDS
from skep.__main__ import skep as group
from tests.daemons import ROOT, Daemon, Hive, daemon, queen, run, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    directory: Path = tmp_path_factory.mktemp("cli")
    with queen(directory) as found:
        yield found


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[Hive, Path]]:
    """A served directory, and its place on the host."""
    host = tmp_path / "host"
    host.mkdir()
    found = Hive(tmp_path)
    with daemon("serving", "export", str(host), "--listen", found.address):
        yield found, host


@contextlib.contextmanager
def following(hive: Hive, *args: str) -> Iterator[Iterator[str]]:
    """The lines that ``skep args`` prints, as they come."""
    began = Daemon(*args, env={"SKEP_HIVE": hive.address})
    assert began.process.stdout is not None
    try:
        yield iter(began.process.stdout)
    finally:
        began.end(signal.SIGINT)


# help


def test_the_help_lists_every_command_by_the_first_sentence_of_its_own() -> None:
    done = run("--help")
    assert (0, "") == (done.returncode, done.stderr)
    for name, row in COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert row.help == command.get_short_help_str(200)
        assert name in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_examples(name: str) -> None:
    done = run(name, "--help")
    assert 0 == done.returncode
    assert f"  skep {name}" in done.stdout or f"(skep {name}" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell: str) -> None:
    done = run("completion", shell)
    assert 0 == done.returncode
    assert "_SKEP_COMPLETE" in done.stdout


def test_paths_of_the_hive_are_completed(hive: Hive) -> None:
    asked = {"_SKEP_COMPLETE": "bash_complete", "COMP_WORDS": "skep cat /poo", "COMP_CWORD": "2"}
    done = run(env=asked | {"SKEP_HIVE": hive.address})
    assert "plain,/pools/\n" == done.stdout
    assert "" == run(env=asked | {"SKEP_HIVE": "unix:/nowhere"}).stdout.strip()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kernel show so", "softmax"),
        ("kernel run sa", "saxpy"),
        ("serve --role cuda-annex --device cu", "cuda"),
        ("serve --role cu", "cuda-annex"),
    ],
)
def test_kernels_and_roles_are_completed(words: str, found: str) -> None:
    count = str(len(words.split()))
    asked = {"_SKEP_COMPLETE": "bash_complete", "COMP_WORDS": f"skep {words}", "COMP_CWORD": count}
    assert f"plain,{found}\n" == run(env=asked).stdout


# how it ends


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("ls", "/nothing"), 1, "skep: /nothing: file does not exist\n"),
        (("write", "/jobs/ctl", "jump"), 1, "skep: /jobs/ctl: usage: line 1: jump: unknown verb, expected"),
        (("write", "/pools", "x"), 1, "skep: /pools: is a directory\n"),
        (("write", "/nothing", "x"), 1, "skep: /nothing: file does not exist\n"),
        (
            ("ls", "-H", "here"),
            2,
            "'here' is no address: expected unix:/path, tcp:host:port or tls:host:port",
        ),
        (("ls", "-H", "unix:/nowhere"), 3, "skep: unix:/nowhere: No such file or directory; is the hive up?"),
        (("ls", "-H", "tcp:127.0.0.1:1"), 3, "skep: tcp:127.0.0.1:1: Connect call failed"),
        (("write", "/version", "x"), 4, "skep: /version: operation not permitted"),
        (("rm", "/version"), 4, "skep: /version: operation not permitted"),
        (("jump",), 2, "No such command 'jump'"),
        (("cat",), 2, "Missing argument 'PATHS...'"),
        (("cat", "-f", "/a", "/b"), 2, "--follow takes one path"),
        (("export", "/", "--listen", "tcp:0.0.0.0:0"), 2, "listens on loopback only"),
        (("export", "/nowhere", "--listen", "tcp:127.0.0.1:0"), 2, "'/nowhere' does not exist"),
        (("umount", "/nowhere"), 1, "skep: /nowhere: "),
        (("serve", "--role", "drone-worker"), 1, "skep: role 'drone-worker' serves no hive: expected one of"),
        (("worker", "--handlers", "/dev/null"), 1, "skep: /dev/null: no topic in it: expected tables like"),
    ],
)
def test_a_failure_is_one_line_and_a_status(
    hive: Hive, args: tuple[str, ...], status: int, said: str
) -> None:
    done = hive.skep(*args)
    assert (status, "") == (done.returncode, done.stdout), done
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hive_may_be_named_before_the_command(hive: Hive) -> None:
    assert "online\n" == run("-H", hive.address, "cat", "/state").stdout
    done = run("-H", "here", "cat", "/state")
    assert 2 == done.returncode
    assert "'here' is no address" in done.stderr


def test_a_default_that_is_no_address_is_a_mistake_of_usage() -> None:
    done = run("ls", env={"SKEP_HIVE": "nonsense"})
    assert 2 == done.returncode
    assert "SKEP_HIVE: 'nonsense' is no address" in done.stderr


# reading


def test_ls_lists_names_and_more_when_asked(hive: Hive) -> None:
    assert ["ctl", "plan", "default"] == hive.ask("ls", "/pools").splitlines()
    long = hive.ask("ls", "-l", "/pools").splitlines()
    assert long[2].startswith("dr-xr-xr-x")
    assert "/health:" in hive.ask("ls", "-R").splitlines()
    records = [json.loads(line) for line in hive.ask("ls", "--json", "/pools").splitlines()]
    assert [("/pools/ctl", "file"), ("/pools/plan", "file"), ("/pools/default", "directory")] == [
        (r["path"], r["type"]) for r in records
    ]


def test_stat_tells_what_the_hive_tells(hive: Hive) -> None:
    found = json.loads(hive.ask("stat", "--json", "/jobs/ctl"))
    assert ("file", "-rw-rw-rw-", 0) == (found["type"], found["mode"], found["size"])
    assert found["qid"].endswith(".APPEND")


def test_whoami_is_lines_or_an_object(hive: Hive) -> None:
    assert "role operator" in hive.ask("whoami").splitlines()
    assert "operator" == json.loads(hive.ask("whoami", "--json"))["role"]


def test_cat_prints_files_one_after_another(hive: Hive) -> None:
    assert "online\nok" == hive.ask("cat", "/state", "/health/live")


def test_cat_of_a_directory_says_how_it_is_listed(hive: Hive) -> None:
    done = run("-H", hive.address, "cat", "/jobs")
    assert (1, "") == (done.returncode, done.stdout)
    assert "skep: /jobs: is a directory: skep ls /jobs\n" == done.stderr


def test_tail_prints_the_last_lines(exported: tuple[Hive, Path]) -> None:
    hive, host = exported
    (host / "nums").write_text("".join(f"{n}\n" for n in range(100)))
    assert "98\n99" == hive.ask("tail", "-n", "2", "/nums")
    assert "" == hive.ask("tail", "-n", "0", "/nums")
    assert 10 == len(hive.ask("tail", "/nums").splitlines())


def test_tail_follows_a_file_of_the_host_as_it_grows(exported: tuple[Hive, Path]) -> None:
    hive, host = exported
    (host / "log").write_text("one\ntwo\n")
    with following(hive, "tail", "-f", "-n", "1", "/log") as lines:
        assert "two\n" == next(lines)
        with (host / "log").open("a") as more:
            more.write("three\n")
        assert "three\n" == next(lines)


def test_tail_follows_a_text_by_the_lines_that_are_new_in_it(hive: Hive) -> None:
    job = hive.submit("topic=sha256 input=watched")
    with following(hive, "tail", "-f", f"/jobs/{job}/state") as lines:
        assert "queued\n" == next(lines)
        hive.ask("write", f"/jobs/{job}/ctl", "cancel")
        assert "cancelled\n" == next(lines)


def test_tail_follows_events_without_gap_and_without_bookmarks(hive: Hive) -> None:
    job = hive.submit("topic=sha256 input=before")
    with following(hive, "tail", "-f", "-n", "1", "/events") as lines:
        assert job == json.loads(next(lines))["job"]
        later = hive.submit("topic=sha256 input=after")
        assert later == json.loads(next(lines))["job"]


def test_tail_begins_where_the_name_says(hive: Hive) -> None:
    hive.submit("topic=sha256 input=x")
    last = json.loads(hive.ask("tail", "-n", "1", "/events"))
    with following(hive, "tail", f"/events@{last['seq'] - 1}") as lines:
        assert last == json.loads(next(lines))


def test_a_waiting_cat_ends_at_an_interrupt(hive: Hive) -> None:
    job = hive.submit("topic=sha256 input=x")
    reading = Daemon("cat", "-H", hive.address, f"/jobs/{job}/wait")
    wait_for(lambda: len(hive.ask("ls", "/sessions").splitlines()) == 2, "the reader's session")
    assert 130 == reading.end(signal.SIGINT)


def test_a_reader_that_has_seen_enough_is_no_error(exported: tuple[Hive, Path]) -> None:
    hive, host = exported
    (host / "big").write_bytes(bytes(8 << 20))
    command = f"{sys.executable} -m skep cat -H {hive.address} /big | head -c 1 >/dev/null"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "" == done.stderr


# writing


def test_write_tells_what_a_ctl_answers(hive: Hive) -> None:
    said = hive.ask("write", "/jobs/ctl", "submit topic=sha256 input=x key=k1")
    assert hive.ask("cat", "/jobs/by-key/k1") == said.split()[0]
    assert said.split()[1].startswith("rev=")


def test_lines_of_one_write_are_one_transaction(hive: Hive) -> None:
    before = hive.ask("ls", "/jobs/by-key")
    done = hive.skep("write", "/jobs/ctl", stdin="submit topic=sha256 key=t1\nsubmit topic=unmapped key=t2\n")
    assert 1 == done.returncode
    assert "no_pool_mapping: topic=unmapped (line 2)" in done.stderr
    assert before == hive.ask("ls", "/jobs/by-key")
    said = hive.ask(
        "write", "/jobs/ctl", "-", stdin="submit topic=sha256 key=t1\nsubmit topic=sha256 key=t3\n"
    )
    assert 2 == len(said.splitlines())


def test_write_makes_replaces_and_appends(exported: tuple[Hive, Path]) -> None:
    hive, host = exported
    assert "" == hive.ask("write", "/new", "hello")
    assert "" == hive.ask("write", "/new", "hi")
    assert "hi\n" == (host / "new").read_text()
    assert "" == hive.ask("write", "-a", "/new", "ho")
    assert "hi\nho\n" == (host / "new").read_text()
    assert "" == hive.ask("write", "/new", stdin="")
    assert "" == (host / "new").read_text()


def test_a_big_file_goes_in_pieces_and_comes_back(exported: tuple[Hive, Path], tmp_path: Path) -> None:
    hive, host = exported
    data = os.urandom(5_000_001)
    (tmp_path / "big").write_bytes(data)
    for command in (f"write /big < {tmp_path}/big", f"cat /big > {tmp_path}/back"):
        full = f"{sys.executable} -m skep {command}"
        subprocess.run(["sh", "-c", full], cwd=ROOT, env=os.environ | {"SKEP_HIVE": hive.address}, check=True)
    assert data == (host / "big").read_bytes() == (tmp_path / "back").read_bytes()


def test_rm_removes(exported: tuple[Hive, Path]) -> None:
    hive, host = exported
    (host / "file").write_text("")
    (host / "folder").mkdir()
    assert "" == hive.ask("rm", "/file", "/folder")
    assert [] == list(host.iterdir())


def test_a_read_only_export_refuses(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    with daemon("serving", "export", str(tmp_path), "--read-only", "--listen", hive.address):
        done = hive.skep("write", "/new", "x")
    assert (1, False) == (done.returncode, (tmp_path / "new").exists())


def test_bench_measures_what_is_there(hive: Hive) -> None:
    lines = hive.ask("bench", "--seconds", "0.02", "--json").splitlines()
    rows = {row["case"]: row for row in map(json.loads, lines)}
    assert rows["read 64 B, d1, 1 conn"]["value"] > 0
    assert 3 == run("bench", "-H", "unix:/nowhere").returncode


# on a terminal


def test_colours_are_for_terminals(hive: Hive) -> None:
    assert "\x1b[" not in hive.ask("ls", "/")
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "skep", "ls", "-H", hive.address, "/"],
        cwd=ROOT, stdout=theirs, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    os.close(theirs)
    assert b"\x1b[34m\x1b[1mjobs\x1b[0m" in os.read(ours, 65536)
    os.close(ours)
