"""``skep verify``, on everything it can be given: an address, a directory, a ledger's file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from skep.fs.dial import Client
from tests.daemons import Hive, queen, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with queen(tmp_path_factory.mktemp("verify")) as found:
        yield found


@pytest.fixture(scope="module")
def copy(hive: Hive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the hive's log as a mount shows it, and beside it an older checkpoint."""
    directory: Path = tmp_path_factory.mktemp("copy")
    (directory / "old").write_text(hive.ask("cat", "/log/trace/checkpoint") + "\n")
    hive.ask("write", "/pools/ctl", "create pool=other")
    asyncio.run(fetch(hive, directory / "log" / "trace"))
    return directory


async def fetch(hive: Hive, trace: Path) -> None:
    async with await Client.connect(hive.address) as client:
        checkpoint = await client.read_file("/log/trace/checkpoint")
        part = f"000.p/{checkpoint.split()[1].decode()}"
        for name in ("keys", "handovers", f"tile/0/{part}", f"tile/entries/{part}"):
            (trace / name).parent.mkdir(parents=True, exist_ok=True)
            (trace / name).write_bytes(await client.read_file(f"/log/trace/{name}"))
        (trace / "checkpoint").write_bytes(checkpoint)


def verified(*args: str | Path) -> CompletedProcess[str]:
    return run("verify", *map(str, args))


def test_a_hive_its_ledger_and_a_copy_of_its_log_are_consistent(hive: Hive, copy: Path) -> None:
    old = (copy / "old").read_text().split("\n")[1]
    for target in (hive.address, copy, copy / "log" / "trace", hive.directory / "ledger.db"):
        done = verified("--checkpoint", copy / "old", target)
        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout.startswith("consistent: ")
        assert done.stdout.endswith(f"continues the checkpoint of {old} entries\n")
    key = hive.ask("cat", "/log/trace/keys").split(" ")[0]
    assert f"signed by {key}\n" in verified("--key", key, copy).stdout


def test_the_first_place_that_is_not_consistent_is_told(copy: Path, tmp_path: Path) -> None:
    trace = copy / "log" / "trace"
    bundle = next((trace / "tile" / "entries").glob("000.p/*"))
    data = bundle.read_bytes()
    at = data.index(b'"seq":3')
    bundle.write_bytes(data[: at + 7] + b" " + data[at + 8 :])
    try:
        done = verified(copy)
    finally:
        bundle.write_bytes(data)
    assert 10 == done.returncode
    assert done.stderr.startswith(f"skep: {copy}: integrity: entry 3: leaf hash ")
    assert "" == done.stdout


def test_an_older_checkpoint_that_is_not_continued_is_told(copy: Path) -> None:
    # The older one as the head, of which the later one speaks: as if the head was rewound.
    trace = copy / "log" / "trace"
    head = (trace / "checkpoint").read_text()
    (copy / "newer").write_text(head)
    (trace / "checkpoint").write_text((copy / "old").read_text())
    try:
        done = verified("--checkpoint", copy / "newer", trace)
    finally:
        (trace / "checkpoint").write_text(head)
    assert 15 == done.returncode
    assert "missing: the older checkpoint has" in done.stderr


def test_what_cannot_be_verified_says_what_was_expected(tmp_path: Path, copy: Path) -> None:
    done = verified(tmp_path / "nothing")
    assert (2, True) == (done.returncode, "there is no log: expected a mount" in done.stderr)
    assert 18 == verified(tmp_path).returncode
    assert 18 == verified(copy / "old").returncode
    assert 2 == verified("--key", "no key", copy).returncode
    (tmp_path / "bad").write_text("no note")
    assert 2 == verified("--checkpoint", tmp_path / "bad", copy).returncode
    assert 3 == verified(f"unix:{tmp_path}/nobody").returncode
