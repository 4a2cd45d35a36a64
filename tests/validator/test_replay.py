"""Replay: what is recorded is decided again as it was, and a change of the deciding code is found."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from changed import CHANGED
from recorded import (
    Recorder,
    bundle,
    entry_with,
    fired_again,
    forged,
    ledger,
    replayed,
    simulated,
    story,
    tampered,
)

from skep.__main__ import run
from skep.fs import ctl
from skep.fs.errors import FsError
from skep.namespaces.hive import HiveRules
from skep.namespaces.jobs.record import Leased
from skep.namespaces.policy.bundle import Bundle, read, shipped, signed
from skep.namespaces.policy.core import Policy, first_lines
from skep.trace.digest import digest
from skep.trace.sqlite import SqliteLedger
from skep.validator.replay.changes import CHANGES, Change
from skep.validator.replay.policies import OtherPolicy
from skep.validator.replay.replay import Difference, Replay, Unfoldable, differing
from skep.validator.replay.report import report
from tests.namespaces.hives import SIGNER, W1, Living, living
from tests.simulation.mistakes import MISTAKES, LastComesFirst

ROOT = Path(__file__).parent.parent.parent
SEEDS = ("m0", "m1", "m2", "m3", "m5", "7")
UNWRITTEN = "deciding depends on what was not written down"
# These show only while a hive lives, and in what it writes down then.
AGAIN = "a trigger fires again after a restart"
LIVE = {UNWRITTEN, AGAIN}
BY_RULES = [name for name, made in MISTAKES.items() if made.rules is not HiveRules and name not in LIVE]


def test_what_was_recorded_is_decided_again() -> None:
    assert [] == replayed(story())


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_simulated_hive_recorded_is_decided_again(seed: str) -> None:
    assert [] == replayed(simulated(seed, 150))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_a_change_of_the_deciding_code_is_found(name: str) -> None:
    assert replayed(story(), CHANGED[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_RULES)
def test_a_mistake_that_the_simulation_knows_is_found_in_a_ledger(name: str) -> None:
    made = MISTAKES[name]
    assert any(replayed(simulated(seed, 150), made.rules()) for seed in SEEDS)


@pytest.mark.slow
def test_what_was_decided_by_more_than_is_written_down_is_found() -> None:
    found = replayed(simulated("m0", 100, MISTAKES[UNWRITTEN]))
    assert {"events[0].priority"} == {each.field for each in found}


def test_a_trigger_that_fired_again_is_found_in_the_ledger_of_the_hive_it_did_so_in() -> None:
    """No ledger of a hive that is right can show it: what has fired is refused, and that is not recorded."""
    found = replayed(fired_again(MISTAKES[AGAIN].rules()))
    assert [("outcome.code", '"ok"', '"NODATA"')] == [told(each)[1:] for each in found]
    assert [] == replayed(fired_again(HiveRules()))


@pytest.mark.slow
def test_a_trigger_that_fired_again_is_found_in_the_ledger_of_a_simulated_hive() -> None:
    found = replayed(simulated("m1", 150, MISTAKES[AGAIN]))
    assert {'"NODATA"'} == {each.decided for each in found if each.line.startswith("fire seq=")}


def told(found: Difference) -> tuple[int, str, str, str]:
    return found.seq, found.field, found.recorded, found.decided


def test_the_first_difference_is_told_with_its_field_and_both_values() -> None:
    n = entry_with('"type":"job.leased"')
    assert (n, "events[0].fence", "5", "1") == told(replayed(forged())[0])
    n = entry_with("OVERLOAD")
    found = replayed(tampered(n, "OVERLOAD", "CONFLICT"))
    assert [(n, "outcome.code", '"CONFLICT"', '"OVERLOAD"')] == list(map(told, found))
    # The same said in another way is not what a hive writes down.
    n = len(story())
    found = replayed(tampered(n, '"actor":', '"actor": '))
    assert [(n, "bytes")] == [(each.seq, each.field) for each in found]


def test_fields_are_compared_outcome_first() -> None:
    was = {"a": 1, "events": [{"x": [1, 2]}, {"y": 3}], "outcome": {"code": "ok"}}
    now = {"events": [{"x": [1, 4]}], "outcome": {"code": "DENIED", "text": "no"}}
    assert [
        ("outcome.code", '"ok"', '"DENIED"'),
        ("outcome.text", "absent", '"no"'),
        ("events[0].x[1]", "2", "4"),
        ("events[1]", '{"y":3}', "absent"),
        ("a", "1", "absent"),
    ] == list(differing(was, now))


def test_what_cannot_be_folded_is_told() -> None:
    replay, bodies = Replay(), story()
    at = entry_with('"type":"job.leased"')
    leased = replay.decode(at, bodies[at - 1])
    (event,) = leased.events
    assert isinstance(event, Leased)
    unknown = msgspec.structs.replace(leased, events=(msgspec.structs.replace(event, job="nobody"),))
    with pytest.raises(Unfoldable, match=f"^entry {at}: its events cannot be applied: KeyError"):
        replay.fold(unknown)


async def live_story(path: Path) -> None:
    """A hive of a file's: people, a worker, and what is too large to be written down."""

    async def lived(alive: Living) -> None:
        job = await alive.submit("input=x key=k")
        lease = await alive.hive.command(W1, "/pools/default/next", ["lease"])
        assert lease[0].startswith(job)
        fence = alive.state.jobs.by_id[job].fence
        await alive.write(f"/jobs/{job}/ctl", f"start fence={fence}", f"ack fence={fence} result=1", who=W1)
        with pytest.raises(FsError, match="too large"):
            await alive.write("/jobs/ctl", *3 * ["submit topic=sum input=" + 15_000 * "x"])

    async with living(path.parent, str(path)) as alive:
        await lived(alive)


@pytest.fixture
def lived(tmp_path: Path) -> Path:
    """The directory of a hive that was alive."""
    asyncio.run(live_story(tmp_path / "ledger.db"))
    return tmp_path


@pytest.mark.slow
def test_a_hives_directory_is_replayed_and_found_the_same(
    lived: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == run(["replay", str(lived)])
    out = capsys.readouterr().out
    assert re.fullmatch(r"entries 1 to (\d+): the same\nstate [0-9a-f]{64}\n", out)
    with closing(SqliteLedger(str(lived / "ledger.db"))) as opened:
        bodies = [body for _, body in opened.tail()]
    # What was refused when an entry had a byte more.
    before = [body.replace(b"large: max=65535", b"large: max=65536") for body in bodies]
    assert ["entry-size"] == [found.declared for found in replayed(before)]


@pytest.mark.slow
def test_a_part_is_replayed_on_what_is_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = entry_with('"type":"job.leased"')
    path = ledger(tmp_path / "ledger.db", forged())
    assert 0 == run(["replay", str(path), "--to", str(n - 1), "--every", "10"])
    assert "entry 10: state " in capsys.readouterr().out
    assert 1 == run(["replay", f"sqlite://{path}"])
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith(
        f"entry {n}: unix:work#w1 /pools/default/next lease: events[0].fence: recorded 5"
    )
    assert first[1].startswith(f"entries 1 to {n}: 1 differ")
    assert 1 == run(["replay", str(path), "--from", str(n + 1), "--all", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (n + 1, len(story())) == (found["first"], found["last"])
    assert 1 == found["differ"] == len(found["differences"])
    assert ("outcome.code", '"ok"') == (found["differences"][0]["field"], found["differences"][0]["recorded"])


@pytest.mark.parametrize("more", [["--from", "0"], ["--from", "9", "--to", "3"], ["--from", "1000"]])
def test_what_cannot_be_replayed_is_a_mistake_of_usage(tmp_path: Path, more: list[str]) -> None:
    assert 2 == run(["replay", str(ledger(tmp_path / "ledger.db", story())), *more])
    assert 2 == run(["replay", str(tmp_path / "none.db")])
    assert not (tmp_path / "none.db").exists()


def test_a_changed_ledger_is_not_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ledger(tmp_path / "ledger.db", story())
    with closing(sqlite3.connect(path)) as found, found:
        found.execute("UPDATE entries SET body = replace(body, 'a', 'b') WHERE seq = 4")
    assert 1 == run(["replay", str(path), "--from", "4"])
    assert "entry 4: leaf hash is not that of its body" in capsys.readouterr().err


# another policy


@pytest.mark.slow
def test_another_policy_escalates_and_relaxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ledger(tmp_path / "ledger.db", story()))
    policies = """
        @id("no-locks") forbid (principal, action in Skep::Action::"locks", resource);
        @id("watchers-submit") permit (principal, action == Skep::Action::"jobs.submit", resource);
    """
    folder = str(bundle(tmp_path, "operator", policies))
    assert 1 == run(["replay", path, "--policy", folder, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (0, 3, 1) == (found["differ"], found["escalated"], found["relaxed"])
    relaxed, *escalated = found["verdicts"]
    assert ("DENIED", "ok", "observer") == (relaxed["recorded"], relaxed["under"], relaxed["role"])
    assert ["ok", "BUSY", "FENCED"] == [each["recorded"] for each in escalated]
    assert {"DENIED"} == {each["under"] for each in escalated}
    assert 1 == run(["replay", path, "--policy", folder])
    out = capsys.readouterr().out
    assert "escalated: unix:ann (operator) /locks/ctl acquire name=door mode=x ttl=30s: ok -> DENIED: " in out
    assert f"the same; 3 escalated, 1 relaxed, {len(story()) - 4} unchanged" in out


@pytest.mark.slow
def test_what_a_trigger_would_not_submit_is_escalated(tmp_path: Path) -> None:
    policies = '@id("no-jobs") forbid (principal, action == Skep::Action::"jobs.submit", resource);'
    rules = OtherPolicy("operator", read(bundle(tmp_path, "operator", policies)))
    with closing(SqliteLedger(str(ledger(tmp_path / "ledger.db", simulated("m1", 150))))) as opened:
        found = report(opened, Replay(rules))
    fired = [each for each in found.verdicts if each.line.startswith("fire ")]
    assert (0, 0) == (found.differ, found.relaxed)
    assert len(fired) > 10
    found_full = ("escalated", "OVERLOAD", "DENIED")
    verdicts = {(each.verdict, each.recorded, each.under) for each in fired}
    assert {("escalated", "ok", "DENIED")} == verdicts - {found_full}


@pytest.mark.slow
def test_the_same_policy_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ledger(tmp_path / "ledger.db", story()))
    folder = tmp_path / "same"
    folder.mkdir()
    for name, text in shipped().files.items():
        (folder / name).write_text(text)
    assert 0 == run(["replay", path, "--policy", str(folder), "--bundle", "default"])
    assert f"0 escalated, 0 relaxed, {len(story())} unchanged" in capsys.readouterr().out
    (folder / "operator.cedar").write_text("permit (")
    assert 2 == run(["replay", path, "--policy", str(folder)])


# declared changes


def of_before(word: str) -> list[str]:
    """The lines by which a hive published the default bundle of a release without the word."""
    now = shipped()
    schema = now.files[now.schema_file]
    without = re.sub(re.escape(word) + r": \w+, ", "", schema)
    assert word in schema
    assert word not in without
    before = Bundle({**now.files, now.schema_file: without})
    said = {
        "bundle": "default",
        "sha256": before.sha256,
        "sig": SIGNER.sign(signed("default", before.sha256)),
    }
    trust = first_lines(Policy(), SIGNER.public, SIGNER.sign)[0]
    return [trust, ctl.line("publish", said | {"content": before.pack()})]


def leased_last_first(policy: list[str]) -> list[bytes]:
    """The ledger of a hive that leases the least urgent job first."""
    hive = Recorder(LastComesFirst(), policy)
    hive.submit("priority=9")
    last = hive.submit()
    assert last == hive.lease()
    return hive.bodies


@pytest.mark.slow
def test_a_declared_change_of_rules_is_no_difference_in_what_is_older(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = next(change for change in CHANGES if change.name == "lease-order")
    bodies = leased_last_first(of_before(change.word))
    assert [change.name] == [found.declared for found in replayed(bodies)]
    assert 0 == run(["replay", str(ledger(tmp_path / "ledger.db", bodies))])
    out = capsys.readouterr().out
    assert f"entry {len(bodies)}: declared: lease-order: unix:work#w1 /pools/default/next lease: " in out
    assert "the same; 1 by the declared change lease-order" in out
    assert [""] == [found.declared for found in replayed(leased_last_first([]))]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_declared_change_names_its_page_and_a_word_of_todays_schema(change: Change) -> None:
    assert (ROOT / change.page).is_file()
    assert change.word in shipped().files["skep.cedarschema"]


# the state's digest


@pytest.mark.slow
def test_the_digest_is_the_same_in_any_process(tmp_path: Path) -> None:
    path = ledger(tmp_path / "ledger.db", simulated("7", 150))

    def said(hash_seed: str) -> str:
        command = [sys.executable, "-m", "skep", "replay", str(path)]
        environ = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environ, capture_output=True, check=True, text=True).stdout

    assert said("1") == said("2")


def test_the_digest_is_of_what_is_meant_and_not_of_its_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({("a", "b"): 1}) != digest({("ab", ""): 1})
    assert digest([["a"], "b"]) != digest([["a", "b"]])
    assert digest({1: frozenset({"x", "y"})}) == digest({1: frozenset({"y", "x"})})
    values: tuple[object, ...] = (None, 0, "", b"x", [], {}, "0")
    assert len(values) == len(set(map(digest, values)))


@pytest.mark.slow
def test_the_digest_is_the_live_hives(tmp_path: Path) -> None:
    async def lived() -> tuple[str, str]:
        async with living(tmp_path, str(tmp_path / "ledger.db")) as alive:
            await alive.submit()
            with closing(SqliteLedger(str(tmp_path / "ledger.db"))) as opened:
                return digest(alive.state), report(opened, Replay()).digest

    assert 1 == len(set(asyncio.run(lived())))
