"""Workers and a queen as processes: jobs done, failed, cancelled, lost and found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, Hive, daemon, queen, wait_for

pytestmark = pytest.mark.slow  # processes begin and end

HANDLERS = """
[sha256]
argv = ["sha256sum", "{input}"]
result = "first-word"

[say]
argv = ["printf", "%s", "{text}"]

[args]
argv = ["printf", "%s|", "{job}", "{topic}", "{attempt}", "{text}"]

[copy]
argv = ["cp", "{input}", "out/copy.txt"]

[join]
argv = ["cat", "{input:b}", "inputs/a"]

[big]
argv = ["truncate", "-s", "5000001", "out/big"]

[link]
argv = ["ln", "-s", "/etc/passwd", "out/passwd"]

[fail]
argv = ["ls", "/nowhere"]

[slow]
argv = ["sleep", "{text}"]
timeout = "300ms"

[sleep]
argv = ["sleep", "{text}"]

[leave]
argv = ["python3", "-c", "import subprocess; subprocess.Popen(['sleep', '{text}']); print('left')"]

[where]
argv = ["pwd"]

[environment]
argv = ["env"]

[missing]
argv = ["no-such-program"]

[wait]
argv = ["tail", "-n", "+1", "-f", "{text}"]
"""
TOPICS = [line[1:-1] for line in HANDLERS.splitlines() if line.startswith("[")]


@contextlib.contextmanager
def worker(hive: Hive, node: str = "w1", slots: int = 1, pools: str = "default") -> Iterator[Daemon]:
    handlers = hive.directory / "handlers.toml"
    handlers.write_text(HANDLERS)
    arguments = ("worker", "-H", hive.workers, "--handlers", str(handlers), "--node", node, "--pools", pools)
    place = ("--dir", str(hive.directory / node), "--slots", str(slots))
    with daemon(
        f"ready {node}", *arguments, *place, env={"SECRET": "of the worker", "LANG": "C.UTF-8"}
    ) as began:
        yield began


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    """A hive with one worker, for jobs that leave no trace in others."""
    directory: Path = tmp_path_factory.mktemp("worker")
    with queen(directory, "--pool", f"default={','.join(TOPICS)},unknown") as found, worker(found):
        yield found


def ended(hive: Hive, job: str) -> tuple[str, str, str]:
    """State, result and error of a job, once it has ended."""
    state = hive.ask("cat", f"/jobs/{job}/wait")
    return state, hive.ask("cat", f"/jobs/{job}/result"), hive.ask("cat", f"/jobs/{job}/error")


# one job


def test_an_artifact_is_worked_on_and_the_result_is_the_last_line(hive: Hive) -> None:
    hive.ask("write", "/artifacts/stage/notes", stdin="some notes\n" * 1000)
    hive.ask("write", "/artifacts/ctl", "seal name=notes")
    job = hive.submit("topic=sha256 input=artifact:notes")
    expected = hashlib.sha256(b"some notes\n" * 1000).hexdigest()
    assert ("succeeded", expected, "") == ended(hive, job)
    assert hive.ask("cat", f"/jobs/{job}/log").startswith(expected)


def test_inputs_that_have_names_are_files(hive: Hive) -> None:
    for name in ("one", "two"):
        hive.ask("write", f"/artifacts/stage/{name}", stdin=f"{name}\n")
        hive.ask("write", "/artifacts/ctl", f"seal name={name}")
    job = hive.submit("topic=join inputs=a:one,b:two")
    assert ("succeeded", "one", "") == ended(hive, job)
    assert "two\none" == hive.ask("cat", f"/jobs/{job}/log")
    job = hive.submit("topic=join inputs=a:one retries=3")
    assert ("failed", "", "the job has no input named b") == ended(hive, job)


def test_a_text_is_one_word_of_the_command(hive: Hive) -> None:
    text = "a b; $(id) {job} 'quoted'"
    job = hive.submit("topic=args input='a b; $(id) {job} ''quoted'''")
    assert ("succeeded", f"{job}|args|1|{text}|", "") == ended(hive, job)


def test_files_left_in_out_are_artifacts(hive: Hive) -> None:
    job = hive.submit("topic=copy input=kept")
    assert ("succeeded", "", "") == ended(hive, job)
    digest = hashlib.sha256(b"kept").hexdigest()
    assert f"copy.txt sha256:{digest}" == hive.ask("cat", f"/jobs/{job}/artifacts")
    assert "kept" == hive.ask("cat", f"/artifacts/{digest}/data")


def test_a_big_output_is_kept_whole(hive: Hive) -> None:
    job = hive.submit("topic=big")
    assert "succeeded" == ended(hive, job)[0]
    expected = hashlib.sha256(bytes(5_000_001)).hexdigest()
    assert f"big sha256:{expected}" == hive.ask("cat", f"/jobs/{job}/artifacts")


def test_a_link_left_in_out_is_not_followed(hive: Hive) -> None:
    job = hive.submit("topic=link")
    state, _, error = ended(hive, job)
    assert "failed" == state
    assert error.startswith("out/passwd: ")
    assert "" == hive.ask("cat", f"/jobs/{job}/artifacts")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("topic=fail", "exit status 2: ls: cannot access '/nowhere': No such file or directory"),
        ("topic=slow input=60", "timeout: it ran longer than 0.3 s"),
        ("topic=sleep input=60 timeout=1s", "timeout: it ran longer than 1 s"),
        ("topic=missing", "no-such-program: no such program on this node"),
        ("topic=unknown", f"this worker has no handler for topic unknown, only for {' '.join(TOPICS)}"),
    ],
)
def test_a_job_that_fails_says_why(hive: Hive, what: str, error: str) -> None:
    assert ("failed", "", error) == ended(hive, hive.submit(what))


def test_what_a_job_says_on_stderr_is_in_its_log(hive: Hive) -> None:
    job = hive.submit("topic=fail")
    ended(hive, job)
    assert "/nowhere" in hive.ask("cat", f"/jobs/{job}/log")


def test_what_a_job_leaves_running_is_ended_with_it(hive: Hive) -> None:
    job = hive.submit("topic=leave input=61.5")
    assert ("succeeded", "left", "") == ended(hive, job)
    assert not processes("sleep 61.5")


def test_a_job_has_a_directory_of_its_own_and_little_else(hive: Hive) -> None:
    where = ended(hive, hive.submit("topic=where"))[1]
    assert where.startswith(f"{hive.directory}/w1/jobs/")
    wait_for(lambda: not Path(where).exists(), f"{where} removed")
    job = hive.submit("topic=environment")
    ended(hive, job)
    names = {line.partition("=")[0] for line in hive.ask("cat", f"/jobs/{job}/log").splitlines()}
    assert {"PATH", "HOME", "TMPDIR", "LANG"} == names


def test_the_trace_is_handed_on_to_the_process(hive: Hive) -> None:
    parent, state = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "rojo=1,congo=2"
    job = hive.submit(f"topic=environment traceparent={parent} tracestate={state}")
    ended(hive, job)
    log = hive.ask("cat", f"/jobs/{job}/log").splitlines()
    assert {f"TRACEPARENT={parent}", f"TRACESTATE={state}"} <= {*log}


def test_the_log_is_there_while_the_job_runs(hive: Hive, tmp_path: Path) -> None:
    file = tmp_path / "growing"
    file.write_text("first\n")
    job = hive.submit(f"topic=wait input={file}")
    wait_for(lambda: hive.ask("cat", f"/jobs/{job}/log") == "first", "the first line in the log")
    with file.open("a") as more:
        more.write("second\n")
    wait_for(lambda: hive.ask("cat", f"/jobs/{job}/log") == "first\nsecond", "the second line in the log")
    assert "running" == hive.ask("cat", f"/jobs/{job}/state")
    hive.ask("write", f"/jobs/{job}/ctl", "cancel")


def test_a_cancelled_job_is_killed_at_once(hive: Hive) -> None:
    job = hive.submit("topic=sleep input=62.5")
    wait_for(lambda: bool(processes("sleep 62.5")), "the job's process")
    hive.ask("write", "/jobs/ctl", f"cancel job={job} reason='not needed'")
    wait_for(lambda: not processes("sleep 62.5"), "the job's process killed")
    assert ("cancelled", "", "not needed") == ended(hive, job)
    # The worker goes on.
    assert "succeeded" == ended(hive, hive.submit("topic=say input=next"))[0]


def test_a_node_tells_how_it_is(hive: Hive) -> None:
    said = json.loads(hive.ask("cat", "/nodes/w1/heartbeat"))
    assert 1 == said["capacity"]
    assert said["memory_free"] > 0
    assert "online" == hive.ask("cat", "/nodes/w1/state")


# a worker's life


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    """A hive whose leases last two seconds, of a pool called brief. Who has just begun lets leases be for ten
    seconds: one hive for all that wait for their end."""
    with queen(tmp_path_factory.mktemp("brief") / "hive") as found:
        found.ask("write", "/pools/ctl", "create pool=brief lease=2s")
        for topic in ("sleep", "say"):
            found.ask("write", "/pools/ctl", f"map topic={topic} pool=brief")
        yield found


def test_a_job_outlives_its_leases_while_its_worker_renews_them(brief: Hive) -> None:
    with worker(brief, pools="brief"):
        job = brief.submit("topic=sleep input=5")
        assert "succeeded" == ended(brief, job)[0]
    assert 1 == len(brief.ask("cat", f"/jobs/{job}/attempts").splitlines())


def test_a_killed_workers_job_is_done_by_another(brief: Hive) -> None:
    with worker(brief, "w1", pools="brief") as first:
        job = brief.submit("topic=sleep input=3.25")
        wait_for(lambda: bool(processes("sleep 3.25")), "the job's process")
        first.end(signal.SIGKILL)
        wait_for(lambda: not processes("sleep 3.25"), "the job's process gone with its worker")
    with worker(brief, "w2", pools="brief"):
        assert "succeeded" == ended(brief, job)[0]
    attempts = brief.ask("cat", f"/jobs/{job}/attempts").splitlines()
    assert ["node=w1", "node=w2"] == [line.split()[1] for line in attempts]
    assert attempts[0].endswith("end=expired")


def test_a_killed_worker_that_begins_again_gives_back_what_it_held(tmp_path: Path) -> None:
    with queen(tmp_path / "hive", "--pool", "default=wait") as hive:
        file = tmp_path / "file"
        file.write_text("x\n")
        with worker(hive) as first:
            job = hive.submit(f"topic=wait input={file}")
            wait_for(lambda: hive.ask("cat", f"/jobs/{job}/state") == "running", "the job runs")
            first.end(signal.SIGKILL)
        with worker(hive):
            # Its lease would last half a minute, and the worker can have one.
            wait_for(lambda: len(attempts(hive, job)) == 2, "the next attempt")
            assert ["released", ""] == [each.partition(" end=")[2] for each in attempts(hive, job)]
            hive.ask("write", f"/jobs/{job}/ctl", "cancel")


def attempts(hive: Hive, job: str) -> list[str]:
    return hive.ask("cat", f"/jobs/{job}/attempts").splitlines()


def test_a_worker_told_to_stop_ends_its_job_and_takes_no_other(brief: Hive) -> None:
    with worker(brief, pools="brief") as first:
        job = brief.submit("topic=sleep input=1.75")
        after = brief.submit("topic=say input=later")
        wait_for(lambda: bool(processes("sleep 1.75")), "the job's process")
        assert 0 == first.end(signal.SIGTERM)
    assert "succeeded" == brief.ask("cat", f"/jobs/{job}/state")
    assert "queued" == brief.ask("cat", f"/jobs/{after}/state")
    brief.ask("write", f"/jobs/{after}/ctl", "cancel")
    wait_for(lambda: brief.ask("cat", "/nodes/w1/state") == "left", "the node has left")


def test_a_job_goes_on_while_the_queen_is_away(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first:
        hive = first.enter_context(queen(tmp_path / "hive", "--pool", "default=sleep"))
        with worker(hive):
            job = hive.submit("topic=sleep input=2.25")
            wait_for(lambda: bool(processes("sleep 2.25")), "the job's process")
            first.close()
            with queen(tmp_path / "hive"):
                assert "succeeded" == ended(hive, job)[0]
                assert 1 == len(hive.ask("cat", f"/jobs/{job}/attempts").splitlines())


def test_two_workers_do_not_share_a_directory(hive: Hive) -> None:
    done = hive.skep(
        *("worker", "-H", hive.workers, "--handlers", str(hive.directory / "handlers.toml")),
        *("--node", "w1", "--dir", str(hive.directory / "w1")),
    )
    assert 1 == done.returncode
    assert f"{hive.directory}/w1: another worker (pid " in done.stderr


def processes(command: str) -> list[int]:
    """The processes that run ``command``."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[:-1]
                if b" ".join(words).decode(errors="replace") == command:
                    found.append(int(entry))
    return found
