"""A validator and a queen as processes: runs asked for, done, found out, and done again after a death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from skep.fs.dial import Client
from skep.namespaces.policy.bundle import shipped
from skep.trace.entry import leaf_hash
from skep.trace.merkle import Frontier
from tests.daemons import Daemon, Hive, daemon, queen, wait_for
from tests.networked import networked

LOG = "/log/net_trace_secure9p.log"
pytestmark = pytest.mark.slow  # processes begin and end


@contextlib.contextmanager
def validator(hive: Hive, node: str = "v1", *more: str) -> Iterator[Daemon]:
    place = ("--node", node, "--dir", str(hive.directory.parent / node))
    socket = f"unix:{hive.directory}/validator.sock"
    with daemon(f"ready {node}", "validator", "-H", socket, *place, *more) as began:
        yield began


@contextlib.contextmanager
def hive_in(directory: Path, *more: str, honest: bool = True) -> Iterator[Hive]:
    socket = f"unix:{directory}/validator.sock"
    with queen(directory, "--listen-validators", socket, *more, honest=honest) as hive:
        yield hive


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with hive_in(tmp_path_factory.mktemp("hive") / "hive") as hive:
        yield hive


def ask(hive: Hive, line: str) -> str:
    """The id of a run."""
    return hive.ask("write", "/validator/ctl", line).split()[0]


def verdict(hive: Hive, run: str) -> str:
    """Of a run that comes to its end."""
    assert "succeeded" == hive.ask("cat", f"/validator/{run}/wait")
    return hive.ask("cat", f"/validator/{run}/verdict")


def report(hive: Hive, run: str) -> Any:
    return json.loads(hive.ask("cat", f"/log/validator/{run}.json"))


def test_runs_are_done_and_their_reports_kept(hive: Hive) -> None:
    first = ask(hive, "verify")
    assert "queued" == hive.ask("cat", f"/validator/{first}/state")
    assert "" == hive.ask("cat", f"/validator/{first}/verdict")
    with validator(hive):
        said = verdict(hive, first)
        assert said.startswith("consistent: ")
        assert "" == hive.ask("cat", f"/validator/{first}/diff")
        found = report(hive, first)
        assert (first, "validator.verify", True, said, "") == (
            found["run"], found["what"], found["good"], found["verdict"], found["kept"]
        )  # fmt: skip
        second = ask(hive, "replay from=2 to=5")
        assert verdict(hive, second).startswith("same: entries 2 to 5: the same, state ")
        assert found["checkpoint"] == report(hive, second)["kept"]
    assert {f"{first}.json", f"{second}.json"} == set(hive.ask("ls", "/log/validator").split())
    assert {first, second, "ctl"} == set(hive.ask("ls", "/validator").split())
    asked = json.loads(hive.ask("cat", f"/validator/{second}/asked.json"))
    assert ("replay", 2, 5) == (asked["what"], asked["from"], asked["to"])


def test_another_policy_is_asked_besides(hive: Hive) -> None:
    hive.submit("topic=sha256 input=x")
    draft = "/policy/bundles/default/draft"
    for name, text in (shipped().files | {"tests.json": "[]"}).items():
        hive.ask("write", f"{draft}/{name}", stdin=text)
    rule = '@id("no-jobs") forbid (principal, action == Skep::Action::"jobs.submit", resource);'
    hive.ask("write", f"{draft}/mine.cedar", stdin=rule)
    with validator(hive):
        run = ask(hive, "replay policy=default")
        assert re.match(r"different: entries 1 to \d+: the same; [1-9]\d* escalated, 0 ", verdict(hive, run))
        lines = hive.ask("cat", f"/validator/{run}/diff").splitlines()
        assert all("escalated: " in line and "rule=default/no-jobs" in line for line in lines)
    assert '"policy":"default"' in hive.ask("cat", f"/validator/{run}/asked.json")
    done = hive.skep("write", "/validator/ctl", "replay policy=nothing")
    assert (1, True) == (done.returncode, "/policy/bundles/nothing/draft is empty" in done.stderr)


async def grow(hive: Hive, count: int) -> None:
    async with await Client.connect(hive.address) as client:
        for n in range(count):
            await client.write_file("/jobs/ctl", f"submit topic=sha256 input={n}\n".encode())


def test_a_log_that_was_rewound_is_found_by_what_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "hive"
    with hive_in(directory) as hive:
        hive.submit("topic=sha256 input=x")
    shutil.copytree(directory, tmp_path / "old")
    with hive_in(directory) as hive, validator(hive):
        asyncio.run(grow(hive, 20))
        assert verdict(hive, ask(hive, "verify")).startswith("consistent: ")
    # An old copy is put back.
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "old", directory)
    with hive_in(directory) as hive, validator(hive):
        assert verdict(hive, ask(hive, "verify")).endswith(" (rewound)")
        # It lives on, as if nothing had been.
        asyncio.run(grow(hive, 40))
        run = ask(hive, "replay")
        said = verdict(hive, run)
        assert said.startswith("integrity: the first ")
        assert said.endswith(" entries are not those that the older checkpoint was signed for (forked)")
        found = report(hive, run)
        assert (False, "forked") == (found["good"], found["finding"]["kind"])
        # Both are signed: the hive cannot deny either.
        assert found["kept"].split("\n")[0] == found["checkpoint"].split("\n")[0]
        assert said == hive.ask("cat", f"/validator/{run}/diff")
        # It is found again: what was kept is not given up.
        assert said == verdict(hive, ask(hive, "verify"))


def rewrite(ledger: Path, old: bytes, new: bytes) -> int:
    """Change the last entry that has ``old``, and all hashes, as who has the file can; its number."""
    with closing(sqlite3.connect(ledger)) as file, file:
        rows = file.execute("SELECT seq, body FROM entries ORDER BY seq").fetchall()
        seq: int = max(seq for seq, body in rows if old in body)
        bodies = [body.replace(old, new) if each == seq else body for each, body in rows]
        roots, frontier = {}, Frontier()
        for each, body in enumerate(bodies, 1):
            frontier.append(leaf_hash(body))
            roots[each] = frontier.root()
        file.execute("UPDATE entries SET body = ?, leaf = ? WHERE seq = ?",
                     (bodies[seq - 1], leaf_hash(bodies[seq - 1]), seq))  # fmt: skip
        for (size,) in file.execute("SELECT size FROM commits").fetchall():
            file.execute("UPDATE commits SET root = ? WHERE size = ?", (roots[size], size))
    return seq


def test_what_was_decided_otherwise_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "hive"
    with hive_in(directory, "--snapshot-every", "0") as hive:
        hive.submit("topic=sha256 input=x priority=4")
    seq = rewrite(directory / "ledger.db", b'"priority":4', b'"priority":9')
    with hive_in(directory, "--snapshot-every", "0", honest=False) as hive, validator(hive):
        run = ask(hive, "replay")
        assert verdict(hive, run).startswith("different: entries 1 to ")
        diff = hive.ask("cat", f"/validator/{run}/diff")
        assert diff.startswith(f"entry {seq}: unix:root /jobs/ctl submit topic=sha256 input=x priority=4: ")
        assert diff.endswith("events[0].priority: recorded 9, decided 4")
        found = report(hive, run)
        assert (False, 1, seq) == (
            found["good"], found["replay"]["differ"], found["replay"]["differences"][0]["seq"]
        )  # fmt: skip


def test_a_killed_validators_run_is_taken_by_another_and_ends_once(tmp_path: Path) -> None:
    with hive_in(tmp_path / "hive") as hive:
        hive.ask("write", "/pools/ctl", "create pool=validator lease=1s")
        with validator(hive, "v1") as began:
            # It is given the run, and never says that it has it.
            began.process.send_signal(signal.SIGSTOP)
            run = ask(hive, "replay")
            wait_for(lambda: hive.ask("cat", f"/validator/{run}/state") == "leased", "a lease of the run")
            began.process.kill()
            began.process.wait()
        with validator(hive, "v2"):
            assert verdict(hive, run).startswith("same: ")
        events = [json.loads(line) for line in hive.ask("cat", f"/jobs/{run}/events.jsonl").splitlines()]
        ends = [event["type"] for event in events if event["type"] in ("job.leased", "job.ended")]
        assert ["job.leased", "job.leased", "job.ended"] == ends


def test_who_is_no_validator_takes_no_run(hive: Hive) -> None:
    """A worker could say of the ledger what it likes."""
    run = ask(hive, "verify")
    (hive.directory / "handlers.toml").write_text('["validator.verify"]\nargv = ["echo", "consistent"]\n')
    said = ("worker", "-H", hive.workers, "--handlers", str(hive.directory / "handlers.toml"), "--node", "w1")
    with daemon("ready w1", *said, "--pools", "validator", "--dir", str(hive.directory / "w1")):
        wait_for(lambda: "runs-are-validators" in hive.ask("cat", LOG), "a refusal")
    assert "queued" == hive.ask("cat", f"/validator/{run}/state")
    hive.ask("write", "/jobs/ctl", f"cancel job={run}")
    assert "cancelled" == hive.ask("cat", f"/validator/{run}/verdict")


def test_two_conversations_of_the_log_are_compared(hive: Hive) -> None:
    said = [f"record principal={hive.ask('cat', '/whoami').split()[1]} {word}" for word in ("on", "off")]
    hive.ask("write", "/log/trace/ctl", said[0])
    for path in ("/state", "/state", "/version"):
        hive.ask("cat", path)
    hive.ask("write", "/log/trace/ctl", said[1])
    first, again, other = sorted(hive.ask("ls", "/log/trace/sessions").split())[:3]
    with validator(hive):
        run = ask(hive, f"diff a=sessions/{first} b=sessions/{again}")
        assert verdict(hive, run).startswith("same: ")
        assert "" == hive.ask("cat", f"/validator/{run}/diff")
        run = ask(hive, f"diff a=sessions/{first} b=sessions/{other}")
        assert verdict(hive, run).startswith("different: ")
        lines = hive.ask("cat", f"/validator/{run}/diff").splitlines()
        assert verdict(hive, run) == f"different: {lines[-1]}"
        assert (False, "messages") == (report(hive, run)["good"], report(hive, run)["diff"]["noun"])
        gone = ask(hive, f"diff a=sessions/{first} b=snapshots/1")
        assert "failed" == hive.ask("cat", f"/validator/{gone}/wait")
        why = hive.ask("cat", f"/validator/{gone}/verdict")
        assert "failed: snapshots/1: there is no such file in /log/trace" == why
    done = hive.skep("write", "/validator/ctl", "diff a=../../etc/passwd b=checkpoint")
    assert (1, True) == (done.returncode, "expected sessions/<id>.9pt or snapshots/<n>" in done.stderr)


def test_a_validator_comes_by_tls_with_a_certificate_of_the_role(tmp_path: Path) -> None:
    with networked(tmp_path) as hive:
        audit = hive.enroll("validator", "audit")
        place = ("--dir", str(tmp_path / "kept"))
        with daemon("ready audit", "validator", *place, env=audit.env):
            # Who does runs may ask for them, too.
            run = audit.ask("write", "/validator/ctl", "replay").split()[0]
            assert verdict(hive, run).startswith("same: entries 1 to ")
            assert audit.ask("cat", f"/validator/{run}/verdict").startswith("same: ")
            assert json.loads(audit.ask("cat", f"/log/validator/{run}.json"))["good"]
        assert (tmp_path / "kept" / "checkpoint").read_text().startswith("testhive/log/trace\n")
        # Other jobs are none of its business, nor is anything else that a worker may.
        other = hive.submit("topic=sha256 input=x")
        assert 1 == audit.skep("cat", f"/jobs/{other}/state").returncode
