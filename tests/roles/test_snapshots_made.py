"""Snapshots of a hive that is served: who makes them, who signs them, what happens when that goes wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skep.namespaces.stored import head_of, newest, pack_state
from skep.roles.snapshots import LATE, Maker, own_keys
from skep.trace.digest import digest
from skep.trace.note import parse_note
from skep.trace.snapshot import FOLDER, SnapshotError, listed, parse_head, read_snapshot
from tests.daemons import ROOT, daemon, queen, run, wait_for
from tests.namespaces.hives import Living, living

Story = Callable[[Living, Maker], Awaitable[None]]


def program(directory: Path) -> list[str]:
    return [sys.executable, "-m", "skep", "snapshot", str(directory)]


def made(directory: Path, story: Story, command: list[str] | None = None) -> None:
    """Run a story on a hive in ``directory``, whose snapshots are made by that program."""

    async def lived() -> None:
        async with living(directory, str(directory / "ledger.db")) as alive:
            await story(alive, Maker(alive.hive, command or program(directory), 3))

    asyncio.run(lived())


def shell(script: str) -> list[str]:
    return ["sh", "-c", script, "sh"]


@pytest.mark.slow
def test_a_process_of_its_own_makes_one_and_the_hive_signs(tmp_path: Path) -> None:
    async def story(alive: Living, maker: Maker) -> None:
        assert await maker.make()
        await alive.submit()
        assert await maker.make()
        # Nothing has come: nothing is made.
        assert await maker.make()
        seq = alive.hive.turn.seq
        assert [seq, seq - 1] == [size for size, _ in listed(tmp_path)]
        begun = newest(tmp_path, alive.hive.turn.ledger, own_keys(tmp_path, ""))
        assert begun is not None
        assert (seq, digest(alive.state)) == (begun.seq, digest(begun.state))
        assert pack_state(alive.state) == read_snapshot(listed(tmp_path)[0][1]).packed

    made(tmp_path, story)


def test_one_is_due_when_enough_has_come_and_nobody_is_kept_waiting(tmp_path: Path) -> None:
    async def story(alive: Living, maker: Maker) -> None:
        # There is none yet.
        assert maker.is_due()
        maker = Maker(alive.hive, ["false"], 3)
        assert not await maker.make()
        for _ in range(3):
            assert not maker.is_due()
            await alive.submit()
        # It is busy; then it is idle.
        assert not maker.is_due()
        assert maker.is_due()
        for _ in range(3 * (LATE - 1)):
            assert await alive.submit()
        assert maker.is_due()

    made(tmp_path, story)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no space >&2; exit 1", "no space"),
        ("kill -9 $$", "ended with -9"),
        ("echo something else; echo; cat", "its note is not a snapshot's"),
    ],
)
def test_what_makes_none_is_told_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, why: str
) -> None:
    async def story(alive: Living, maker: Maker) -> None:
        assert not await maker.make()
        assert await alive.submit()

    made(tmp_path, story, shell(script))
    assert [f"no snapshot: {why}"] == [each.getMessage() for each in caplog.records]
    assert [] == listed(tmp_path)


def test_the_hive_signs_what_is_of_its_own_ledger_alone(tmp_path: Path) -> None:
    async def story(alive: Living, maker: Maker) -> None:
        head, _ = head_of(alive.state, alive.hive.turn.ledger)
        assert head == parse_head(parse_note(maker.signed(head.text())).text)
        for other in (
            head._replace(size=head.size - 1),
            head._replace(root=bytes(32)),
            head._replace(origin="h2/log/trace"),
        ):
            with pytest.raises(SnapshotError, match="is not this hive's"):
                maker.signed(other.text())
        with pytest.raises(SnapshotError, match="other code was installed"):
            maker.signed(head._replace(rules=head.state).text())

    made(tmp_path, story)


@pytest.mark.slow
def test_who_ends_its_maker_waits_for_nothing(tmp_path: Path) -> None:
    async def story(alive: Living, maker: Maker) -> None:
        making = asyncio.ensure_future(maker.make())
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    made(tmp_path, story, shell(f"touch {tmp_path}/begun; exec cat"))


# a queen


def filled(directory: Path) -> int:
    """Have a queen serve the hive and take some jobs, until she has a snapshot; its size."""
    with queen(directory, "--snapshot-every", "1") as hive:
        for _ in range(3):
            hive.submit("topic=sha256 input=a")
        wait_for(lambda: bool(listed(directory)), "a snapshot")
        (size, _), *_ = listed(directory)
        assert hive.ask("cat", "/log/trace/snapshot").splitlines()[2] == f"size {size}"
        assert str(size) in hive.ask("ls", "/log/trace/snapshots").split()
    return size


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A hive that has a snapshot, to be copied, and its size: a queen looks every few seconds whether one is
    due."""
    directory = tmp_path_factory.mktemp("once") / "hive"
    return directory, filled(directory)


@pytest.fixture
def hive(once: tuple[Path, int], tmp_path: Path) -> tuple[Path, int]:
    """A hive of a test's own that has a snapshot, and its size."""
    return shutil.copytree(once[0], tmp_path / "hive"), once[1]


def begun(directory: Path) -> str:
    """What a queen says of the snapshots when she begins, and that her jobs are there."""
    with daemon("ready", "serve", "--dir", str(directory), "--snapshot-every", "0") as began:
        jobs = run("ls", "-H", f"unix:{directory}/hive.sock", "/jobs").stdout.split()
        assert 3 + len(["ctl"]) <= len(jobs)
    return "\n".join(line for line in began.lines if "snapshot" in line)


@pytest.mark.slow
def test_a_queen_begins_from_the_newest_good_one(hive: tuple[Path, int]) -> None:
    directory, size = hive
    (found, path), *_ = listed(directory)
    assert found >= size
    assert begun(directory).endswith(f"what is before entry {found + 1} is in a snapshot")
    assert 0 == run("replay", str(directory), "--check-snapshots").returncode
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is passed over: its state is not the one that was signed" in begun(directory)
    for _, each in listed(directory):
        each.unlink()
    assert "" == begun(directory)


@pytest.mark.slow
def test_keys_that_take_over_and_are_sealed_sign_and_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEP_KMS", f"file:{tmp_path}/kek")
    directory = tmp_path / "hive"
    with queen(directory, "--snapshot-every", "1") as hive:
        hive.submit("topic=sha256 input=a")
        hive.ask("write", "/trust/ctl", "rotate what=merkle")
        wait_for(lambda: bool(listed(directory)) and len(signers(directory)) == 2, "a snapshot by both keys")
        assert 2 == len(hive.ask("cat", "/log/trace/keys").splitlines())
    assert "skep: " not in run("snapshot", str(directory)).stderr
    assert 0 == run("replay", str(directory), "--check-snapshots").returncode
    monkeypatch.delenv("SKEP_KMS")
    assert "was kept under another SKEP_KMS" in run("snapshot", str(directory)).stderr


def signers(directory: Path) -> tuple[tuple[str, bytes], ...]:
    return read_snapshot(listed(directory)[0][1]).note.signatures


@pytest.mark.slow
def test_a_ledger_that_was_edited_is_not_served_with_a_snapshot_either(hive: tuple[Path, int]) -> None:
    directory, _ = hive
    code = "import sqlite3,sys; d = sqlite3.connect(sys.argv[1]); d.execute(sys.argv[2]); d.commit()"
    edit = "UPDATE entries SET body = replace(body, 'a', 'b') WHERE seq = 2"
    subprocess.run([sys.executable, "-c", code, str(directory / "ledger.db"), edit], check=True)
    done = run("serve", "--dir", str(directory))
    assert (1, True) == (
        done.returncode,
        done.stderr.splitlines()[-1].startswith("skep: integrity: entry 2: "),
    )


@pytest.mark.slow
def test_it_may_be_killed_while_it_writes(hive: tuple[Path, int]) -> None:
    """Its process is stopped where it has been signed and is about to write, and killed there."""
    directory, _ = hive
    keys = [word for key in own_keys(directory, "") for word in ("--ask", key.hex())]
    for _, each in listed(directory):
        each.unlink()
    process = subprocess.Popen(
        [*program(directory), *keys], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (directory / FOLDER / ".7.snapshot.new").write_bytes(b"half of it")
    assert "" == begun(directory)
    done = run("snapshot", str(directory))
    assert 0 == done.returncode
    assert [f"{size}.snapshot" for size, _ in listed(directory)] == os.listdir(directory / FOLDER)


@pytest.mark.slow
def test_it_writes_nothing_that_nobody_signs(tmp_path: Path) -> None:
    with queen(tmp_path):
        done = subprocess.run([*program(tmp_path), "--ask", bytes(32).hex()], cwd=ROOT, input="", text=True)
    assert 1 == done.returncode
    assert [] == listed(tmp_path)


@pytest.mark.slow
def test_by_hand_it_is_made_of_a_hive_that_nobody_serves(tmp_path: Path) -> None:
    with queen(tmp_path):
        done = run("snapshot", str(tmp_path))
    assert (1, "") == (done.returncode, done.stdout)
    assert "serves this hive" in done.stderr
    assert run("snapshot", str(tmp_path)).stdout.startswith(f"{tmp_path}/{FOLDER}/")
    assert "nothing has come since the newest snapshot\n" == run("snapshot", str(tmp_path)).stdout
    assert 2 == run("snapshot", str(tmp_path / FOLDER)).returncode


def test_a_directory_without_keys_has_none_to_sign_with(tmp_path: Path) -> None:
    assert {} == own_keys(tmp_path, "")
    assert [] == list(tmp_path.iterdir())
