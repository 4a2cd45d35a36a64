"""``skep verify`` and ``skep replay`` of one log, wherever it is: on a mount, in a directory of tiles, at an
address, in the ledger's file."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.trace.tiles import tiles_of
from tests.daemons import Hive, daemon, queen, run
from tests.fetching import fetched

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with queen(tmp_path_factory.mktemp("places")) as found:
        found.submit("topic=sha256 input=x")
        yield found


@pytest.fixture(scope="module")
def mount(hive: Hive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place: Path = tmp_path_factory.mktemp("mount") / "n"
    place.mkdir()
    with daemon("mounted", "mount", hive.address, str(place)):
        yield place


def test_a_mounted_log_is_verified_and_replayed(hive: Hive, mount: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes((mount / "log" / "trace" / "checkpoint").read_bytes())
    size = kept.read_text().split("\n")[1]
    for target in (mount, mount / "log" / "trace"):
        done = run("verify", "--checkpoint", str(kept), str(target))
        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout.startswith(f"consistent: {size} entries of ")
    done = run("replay", str(mount))
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"entries 1 to {size}: the same\nstate ")


def test_one_log_is_replayed_to_the_same_state_wherever_it_is(
    hive: Hive, mount: Path, tmp_path: Path
) -> None:
    trace = asyncio.run(fetched(hive.address, tmp_path / "log" / "trace"))
    places = (hive.address, mount, tmp_path, trace, hive.directory, hive.directory / "ledger.db")
    said = {run("replay", "--to", "5", "--all", str(place)).stdout for place in places}
    assert 1 == len(said)
    assert re.fullmatch(r"entries 1 to 5: the same\nstate [0-9a-f]{64}\n", said.pop())


def test_a_log_that_is_not_consistent_is_not_replayed(hive: Hive, tmp_path: Path) -> None:
    trace = asyncio.run(fetched(hive.address, tmp_path / "tiles"))
    size = int((trace / "checkpoint").read_text().split("\n")[1])
    (tile,) = (tile for tile in tiles_of(size) if tile.level == 0)
    path = trace / "tile" / tile.path()
    path.write_bytes(bytes(32) + path.read_bytes()[32:])
    done = run("replay", "--to", "3", str(trace))
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"skep: {trace}: integrity: entry 1: leaf hash ")
    assert 2 == run("replay", str(tmp_path / "nothing")).returncode
    assert 3 == run("replay", f"unix:{tmp_path}/nobody").returncode


def test_a_hives_directory_and_the_url_of_its_ledger_are_verified(hive: Hive) -> None:
    said = {
        run("verify", target).stdout
        for target in (str(hive.directory), f"sqlite://{hive.directory}/ledger.db")
    }
    assert 1 == len(said)
    assert said.pop().startswith("consistent: ")


def test_what_is_no_log_is_a_mistake_in_what_was_typed(hive: Hive, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "more").mkdir(parents=True)
    (tmp_path / "kept").write_text("no note")
    ledger = str(hive.directory / "ledger.db")
    mistakes = (
        (("verify", str(tmp_path / "nothing")), "there is no log: expected a mount"),
        (
            ("verify", "--checkpoint", str(tmp_path / "kept"), ledger),
            f"--checkpoint {tmp_path}/kept: expected",
        ),
        (("replay", "--check-snapshots", hive.address), "--check-snapshots: expected a hive's directory"),
        (("replay", "--fresh", ledger), "expected --wire FILE"),
        (("replay", "--wire", ledger, "--from", "2"), "--wire: expected none"),
        (
            ("replay", "--policy", str(tmp_path / "bundle"), ledger),
            "Is a directory: expected a file of a bundle",
        ),
    )
    for command, said in mistakes:
        done = run(*command)
        assert (2, "") == (done.returncode, done.stdout), command
        assert said in done.stderr


def test_programs_are_told_what_was_found(hive: Hive, tmp_path: Path) -> None:
    trace = asyncio.run(fetched(hive.address, tmp_path / "tiles"))
    told = json.loads(run("verify", "--json", str(trace)).stdout)
    key = hive.ask("cat", "/log/trace/keys").split(" ")[0]
    assert [key] == told["signers"]
    assert f"{told['origin']}\n{told['size']}\n{told['root']}\n\n" in (trace / "checkpoint").read_text()
    (bundle,) = (trace / "tile" / "entries").glob("*/*")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    done = run("verify", "--json", str(trace))
    found = json.loads(done.stdout)
    assert (16, "truncated", told["size"]) == (done.returncode, found["kind"], found["entry"])
    assert f"skep: {trace}: {found['text']}\n" == done.stderr
