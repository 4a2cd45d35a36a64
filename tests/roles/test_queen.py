"""A queen as a process: what it says, how it ends, what it refuses to begin with."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from tests.daemons import daemon, queen, run, wait_for

pytestmark = pytest.mark.slow  # processes begin and end


def test_it_says_what_it_serves_to_whom(tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/h", "--listen", "tcp:127.0.0.1:0")
    with daemon("ready", "serve", "--dir", str(tmp_path / "hive"), *listen) as began:
        lines = began.lines
    assert f"serving unix:{tmp_path}/h as operator" == lines[0]
    assert lines[1].startswith("serving tcp:127.0.0.1:")
    assert lines[1].endswith(" as observer")
    assert f"serving unix:{tmp_path}/worker.sock as drone-worker" == lines[2]


def test_its_sockets_and_its_state_are_its_users_alone(tmp_path: Path) -> None:
    with queen(tmp_path / "hive"):
        assert 0o700 == stat.S_IMODE(os.stat(tmp_path / "hive").st_mode)
        for name in ("hive.sock", "worker.sock"):
            assert 0o600 == stat.S_IMODE(os.stat(tmp_path / "hive" / name).st_mode)
    assert not (tmp_path / "hive" / "hive.sock").exists()


def test_commanding_by_tcp_is_asked_for_and_warned_of(tmp_path: Path) -> None:
    options = ("--listen", "tcp:127.0.0.1:0", "--tcp-role", "operator")
    with daemon("ready", "serve", "--dir", str(tmp_path), *options) as began:
        tcp = next(line.split()[1] for line in began.lines if line.startswith("serving tcp:"))
        assert "--tcp-role operator" in began.lines[0]
        assert 0 == run("write", "-H", tcp, "/jobs/ctl", "submit topic=sha256").returncode


def test_a_new_hive_begins_with_the_pools_it_is_told_and_an_old_one_with_its_own(tmp_path: Path) -> None:
    with queen(tmp_path, "--pool", "fast=a,b", "--pool", "slow") as hive:
        assert ["ctl", "plan", "fast", "slow"] == hive.ask("ls", "/pools").splitlines()
        assert "a\nb" == hive.ask("cat", "/pools/fast/topics")
    with queen(tmp_path, "--pool", "other") as hive:
        assert ["ctl", "plan", "fast", "slow"] == hive.ask("ls", "/pools").splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_nothing_is_lost(tmp_path: Path, number: signal.Signals) -> None:
    with daemon("ready", "serve", "--dir", str(tmp_path)) as began:
        job = run("write", "-H", f"unix:{tmp_path}/hive.sock", "/jobs/ctl", "submit topic=sha256")
        assert 0 == began.end(number)
    with queen(tmp_path) as hive:
        assert job.stdout.split()[0] in hive.ask("ls", "/jobs").splitlines()
        assert "online" == hive.ask("cat", "/state")


def test_a_hangup_ends_nothing_and_has_it_take_its_limits_anew(tmp_path: Path) -> None:
    with daemon("ready", "serve", "--dir", str(tmp_path)) as began:
        (tmp_path / "limits.toml").write_text("[limits]\ncalls = 1\n")
        began.process.send_signal(signal.SIGHUP)
        assert began.process.stdout is not None
        said = next(line for line in began.process.stdout if "skep.limits" in line)
        assert "limits stay as they were: " in said
        assert "online\n" == run("cat", "-H", f"unix:{tmp_path}/hive.sock", "/state").stdout


def test_shutdown_written_to_ctl_ends_it(tmp_path: Path) -> None:
    with daemon("ready", "serve", "--dir", str(tmp_path)) as began:
        assert 0 == run("write", "-H", f"unix:{tmp_path}/hive.sock", "/ctl", "shutdown grace=5s").returncode
        assert 0 == began.process.wait(10)


def test_a_hive_that_was_drained_is_drained_when_it_comes_back(tmp_path: Path) -> None:
    with queen(tmp_path) as hive:
        hive.ask("write", "/ctl", "drain")
        assert "quiesced" == hive.ask("cat", "/state")
    with queen(tmp_path) as hive:
        assert "quiesced" == hive.ask("cat", "/state")


def test_a_directory_has_one_queen(tmp_path: Path) -> None:
    with queen(tmp_path):
        second = run("serve", "--dir", str(tmp_path), "--listen", f"unix:{tmp_path}/other.sock")
    assert 1 == second.returncode
    assert second.stderr.startswith(f"skep: {tmp_path}: another queen (pid ")
    with queen(tmp_path):
        pass


def test_a_killed_queen_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with daemon("ready", "serve", "--dir", str(tmp_path)) as began:
        assert -signal.SIGKILL == began.end(signal.SIGKILL)
    assert (tmp_path / "hive.sock").exists()
    with queen(tmp_path) as hive:
        assert "online" == hive.ask("cat", "/state")


def test_a_ledger_that_was_edited_is_not_served(tmp_path: Path) -> None:
    with queen(tmp_path) as hive:
        hive.submit("topic=sha256 input=original")
    with sqlite3.connect(tmp_path / "ledger.db") as edited:
        altered = "CAST(replace(CAST(body AS TEXT), 'original', 'altered!') AS BLOB)"
        edited.execute(f"UPDATE entries SET body = {altered}")
    edited.close()
    done = run("serve", "--dir", str(tmp_path))
    assert 1 == done.returncode
    assert done.stderr.startswith("skep: integrity: entry ")
    assert not (tmp_path / "hive.sock").exists()


def test_a_ledger_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all " * 100)
    done = run("serve", "--dir", str(tmp_path))
    assert 1 == done.returncode
    assert done.stderr.startswith(f"skep: integrity: {tmp_path}/ledger.db: file is not a database")
    other = run("serve", "--dir", str(tmp_path), "--ledger", "mysql://x")
    assert "skep: ledger mysql://x: " in other.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen", "tcp:0.0.0.0:0"), "TCP without TLS listens on loopback only"),
        (("--listen-workers", "tcp:127.0.0.1:0"), "workers come by a Unix socket"),
        (("--tcp-role", "queen"), "Invalid value for '--tcp-role'"),
        (("--role", "emperor"), "role 'emperor' serves no hive"),
    ],
)
def test_what_may_not_be_served_is_refused(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = run("serve", "--dir", str(tmp_path), *options)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_a_folder_that_others_write_to_holds_no_socket(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    done = run("serve", "--dir", str(tmp_path / "hive"), "--listen", f"unix:{tmp_path}/open/hive.sock")
    assert (1, "") == (done.returncode, done.stdout)
    assert f"skep: {tmp_path}/open is not yours alone" in done.stderr


def test_a_hives_keys_are_made_once_and_are_its_users_alone(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        with queen(tmp_path) as hive:
            made.append((hive.ask("cat", "/trust/keys"), hive.ask("cat", "/trust/spki")))
    assert made[0] == made[1]
    assert 4 == len(made[0][0].splitlines())
    keys = tmp_path / "keys"
    assert 0o700 == stat.S_IMODE(keys.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(key.stat().st_mode) for key in keys.iterdir()}


def test_a_hive_has_one_name_for_ever(tmp_path: Path) -> None:
    with queen(tmp_path, "--name", "first"):
        pass
    with queen(tmp_path):
        pass
    done = run("serve", "--dir", str(tmp_path), env={"SKEP_NAME": "second"})
    assert (1, "") == (done.returncode, done.stdout)
    assert "this hive is called first, not second" in done.stderr


@pytest.mark.parametrize("name", ["Second", "a/b", "a b", "-x"])
def test_a_name_that_no_certificate_can_have_is_refused(tmp_path: Path, name: str) -> None:
    done = run("serve", "--dir", str(tmp_path), f"--name={name}")
    assert (1, "") == (done.returncode, done.stdout)
    assert "skep: the hive does not begin: " in done.stderr


def test_encrypted_keys_need_what_they_are_encrypted_with(tmp_path: Path) -> None:
    kms = {"SKEP_KMS": f"file:{tmp_path}/kek"}
    serve = ("serve", "--dir", str(tmp_path / "hive"))
    with daemon("ready", *serve, env=kms):
        pass
    with daemon("ready", *serve, env=kms):
        pass
    done = run(*serve)
    assert (1, "") == (done.returncode, done.stdout)
    assert "skep: the hive's keys: " in done.stderr
    assert not any(b"PRIVATE KEY" in key.read_bytes() for key in (tmp_path / "hive" / "keys").iterdir())


def test_tls_may_listen_where_others_are(tmp_path: Path) -> None:
    with daemon("ready", "serve", "--dir", str(tmp_path), "--listen", "tls:0.0.0.0:0") as began:
        assert began.lines[0].startswith("serving tls:0.0.0.0:")
        assert began.lines[0].endswith(" as its certificate says")


def test_what_fails_later_stops_it_with_the_reason(tmp_path: Path) -> None:
    """The ledger is edited under a running hive: its next turn sees that, and the queen ends."""
    with daemon("ready", "serve", "--dir", str(tmp_path)) as began:
        address = f"unix:{tmp_path}/hive.sock"
        run("write", "-H", address, "/jobs/ctl", "submit topic=sha256")
        with sqlite3.connect(tmp_path / "ledger.db") as edited:
            edited.execute("UPDATE commits SET root = zeroblob(32)")
        edited.close()
        run("write", "-H", address, "/jobs/ctl", "submit topic=sha256")
        wait_for(lambda: began.process.poll() is not None, "the queen's end")
        assert began.process.stdout is not None
        assert "skep: integrity: " in began.process.stdout.read()
        assert 1 == began.process.returncode
