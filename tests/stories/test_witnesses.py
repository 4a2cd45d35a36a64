"""Three witnesses and a hive, each a process of its own: what is lost, who lies, and how it heals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.trace.note import parse_note, parse_vkey
from skep.trace.witness import Split, is_evidence
from tests.daemons import Daemon, Hive, daemon, queen, run, wait_for

pytestmark = pytest.mark.slow

HERE = "/log/trace/witness"
WITHIN = 'trace.agreed-within = "2s"'


class Witness:
    """``skep witness`` with a directory of its own, which can be killed and begun again."""

    def __init__(self, directory: Path, *args: str, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.name = directory.name
        self.args = ("--dir", str(directory), "--name", f"{self.name}.example", "--every", "100ms", *args)
        self.env = env
        self.socket = f"unix:{directory}/witness.sock"
        self.process: Daemon | None = None
        self.begin()

    def begin(self) -> None:
        self.process = Daemon("witness", *self.args, env=self.env)
        self.process.wait_ready("ready")
        self.key = self.process.lines[0].removeprefix("key ")
        self.served = self.process.lines[1].removeprefix("serving ")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.end(number)
        self.process = None

    def splits(self) -> list[Split]:
        """What it holds against anybody."""

        async def found() -> list[Split]:
            async with await Client.connect(self.socket) as client:
                places = [f"{HERE}/splits/{each.name}" for each in await client.listdir(f"{HERE}/splits")]
                return [msgspec.json.decode(await client.read_file(place), type=Split) for place in places]

        return asyncio.run(found())


def cat(hive: Hive, path: str) -> str:
    """What a file has; "": it is not there."""

    async def read() -> bytes:
        async with await Client.connect(hive.address) as client:
            return await client.read_file(path)

    try:
        return asyncio.run(read()).decode().rstrip("\n")
    except FsError as error:
        if error.kind is not E.MISSING:
            raise
        return ""


@contextlib.contextmanager
def witnesses(*made: Witness) -> Iterator[tuple[Witness, ...]]:
    try:
        yield made
    finally:
        for each in made:
            each.end()


def tell(hive: Hive, *found: Witness, need: int = 2) -> None:
    """Add them, and want a quorum soon."""
    for each in found:
        hive.ask("write", f"{HERE}/ctl", f"add name={each.name} key={each.key}")
    hive.ask("write", f"{HERE}/ctl", f"quorum need={need}")
    hive.ask("write", "/config/draft", WITHIN)
    digest = subprocess.run(["sha256sum"], input=f"{WITHIN}\n", capture_output=True, text=True, check=True)
    hive.ask("write", "/config/ctl", f"publish sha256={digest.stdout[:64]}")


def agreed(hive: Hive) -> int:
    """How many entries are agreed upon; 0: none."""
    found = cat(hive, "/log/trace/agreed")
    return int(found.split("\n")[1]) if found else 0


def size(hive: Hive) -> int:
    return int(cat(hive, "/log/trace/checkpoint").split("\n")[1])


def catches_up(hive: Hive) -> bool:
    return agreed(hive) == size(hive)


def standings(hive: Hive) -> dict[str, str]:
    lines = cat(hive, f"{HERE}/status").splitlines()[1:]
    return {name: word for name, word, *_ in (line.split(" ") for line in lines)}


def test_witnesses_are_lost_and_come_back(tmp_path: Path) -> None:
    with queen(tmp_path / "hive") as hive:
        first = ("--trust-first", hive.address)
        with witnesses(*(Witness(tmp_path / f"w{n}", *first) for n in (1, 2, 3))) as (w1, w2, w3):
            tell(hive, w1, w2, w3)
            wait_for(lambda: catches_up(hive), "it is agreed")
            # A minority is lost, killed in the midst of things.
            w3.end(signal.SIGKILL)
            hive.submit("topic=sha256 input=a")
            wait_for(lambda: catches_up(hive), "it is agreed by two")
            missed = {"w1": "agrees", "w2": "agrees", "w3": "missing"}
            wait_for(lambda: standings(hive) == missed, "w3 is missed")
            assert "online" == cat(hive, "/state")
            # The majority is.
            w2.end(signal.SIGKILL)
            says = "degraded: quorum 1/3, need 2: w2 missing"
            wait_for(lambda: cat(hive, "/state").startswith(says), "it says so")
            assert "w3 missing" in cat(hive, "/state")
            assert "ok" == cat(hive, "/health/ready")
            before = agreed(hive)
            hive.submit("topic=sha256 input=b")
            assert before == agreed(hive) < size(hive)
            assert "witness.lost" in cat(hive, "/events")
        with witnesses(*(Witness(tmp_path / f"w{n}", *first) for n in (2, 3))) as (w2, w3):
            wait_for(lambda: cat(hive, "/state") == "online", "it heals")
            wait_for(lambda: catches_up(hive), "it is agreed again")
            assert "witness.regained" in cat(hive, "/events")
            note = parse_note((cat(hive, "/log/trace/agreed") + "\n").encode())
            assert {"w2.example", "w3.example"} == {name for name, _ in note.signatures[1:]}
            keys = [word for each in (w1, w2, w3) for word in ("--witness", each.key)]
            done = run("verify", *keys, "--quorum", "2", hive.address)
            assert (0, "") == (done.returncode, done.stderr)
            assert f"cosigned by {w2.key}" in done.stdout
            done = run("verify", *keys, "--quorum", "3", hive.address)
            assert 19 == done.returncode
            assert "w1.example" in done.stderr


def test_a_hive_that_shows_two_views_is_caught_by_all(tmp_path: Path) -> None:
    """The same hive twice, from a copy of its directory: its key signs both, and each knows nothing of the
    other."""
    (tmp_path / "w").mkdir()
    with queen(tmp_path / "hive", "--name", "apiary") as hive:
        key = cat(hive, "/log/trace/keys").split(" ")[0]
        log = ("--log", key, hive.address)
        with witnesses(*(Witness(tmp_path / f"w{n}", *log) for n in (1, 2, 3))) as found:
            tell(hive, *found)
            wait_for(lambda: catches_up(hive), "it is agreed")
    shutil.copytree(tmp_path / "hive", tmp_path / "other", ignore=lambda *_: ["hive.sock", "worker.sock"])
    with queen(tmp_path / "hive") as hive, queen(tmp_path / "other") as other:
        sockets = [f"unix:{tmp_path}/w{n}/witness.sock" for n in (1, 2, 3)]
        begun = []
        for n, at in ((1, hive), (2, hive), (3, other)):
            peers = [word for socket in sockets for word in ("--peer", socket) if f"/w{n}/" not in socket]
            begun.append(Witness(tmp_path / f"w{n}", *peers, at.address))
        with witnesses(*begun) as found:
            hive.submit("topic=sha256 input=ours")
            other.submit("topic=sha256 input=theirs")
            hive.submit("topic=sha256 input=ours2")
            wait_for(lambda: all(each.splits() for each in found), "each has recorded it")
            assert all(is_evidence(split, [parse_vkey(key)]) for each in found for split in each.splits())
            wait_for(lambda: "disagrees" in standings(hive).values(), "the hive is told")
            wait_for(lambda: cat(hive, "/state").startswith("degraded: quorum"), "it says so")
            assert "disagrees: it" in cat(hive, "/state")
            # Two of three never agreed upon both.
            notes = [cat(at, "/log/trace/agreed") for at in (hive, other)]
            checkpoints = [note.split("\n\n")[0] for note in notes]
            common = agreed(other)
            assert common <= agreed(hive)
            assert common < size(other)
            if common == agreed(hive):
                assert checkpoints[0] == checkpoints[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; test_witness.py has a file that cannot be written")
    disk = tmp_path / "w1"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "skep-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_witness_on_a_full_disk_cosigns_nothing_until_there_is_space(
    small_disk: Path, tmp_path: Path
) -> None:
    with queen(tmp_path / "hive") as hive:
        socket = f"unix:{tmp_path}/w1.sock"
        with witnesses(Witness(small_disk, "--trust-first", "--listen", socket, hive.address)) as (w1,):
            tell(hive, w1, need=1)
            wait_for(lambda: catches_up(hive), "it is agreed")
            ballast = small_disk / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            before = agreed(hive)
            hive.submit("topic=sha256 input=a")
            wait_for(lambda: cat(hive, "/state").startswith("degraded: quorum 0/1"), "it says so")
            assert before == agreed(hive)
            ballast.unlink()
            wait_for(lambda: cat(hive, "/state") == "online", "it heals")
            wait_for(lambda: catches_up(hive), "it is agreed again")


def test_a_hive_that_was_killed_has_what_was_agreed_and_its_witness_finds_it_again(tmp_path: Path) -> None:
    hive = Hive(tmp_path / "hive")
    serve = ("ready", "serve", "--dir", str(hive.directory))
    with daemon(*serve) as first, witnesses(Witness(tmp_path / "w1", "--trust-first", hive.address)) as (w1,):
        tell(hive, w1, need=1)
        wait_for(lambda: catches_up(hive), "it is agreed")
        before = agreed(hive)
        first.end(signal.SIGKILL)
        with daemon(*serve):
            assert before <= agreed(hive)
            hive.submit("topic=sha256 input=a")
            wait_for(lambda: catches_up(hive), "it is agreed again")
            assert before < agreed(hive)
            assert "online" == cat(hive, "/state")
            assert not w1.splits()


def test_witnesses_of_other_machines_come_with_a_certificate_of_a_validator(tmp_path: Path) -> None:
    listens = ("--listen", f"unix:{tmp_path}/hive/hive.sock", "--listen", "tls:127.0.0.1:0")
    with daemon("ready", "serve", "--dir", str(tmp_path / "hive"), *listens) as served:
        hive = Hive(tmp_path / "hive")
        address = next(line.split(" ")[1] for line in served.lines if line.startswith("serving tls:"))
        made: list[Witness] = []
        with contextlib.ExitStack() as stack:
            for n in (1, 2):
                env = enrolled(hive, address, tmp_path / f"id{n}", f"v{n}")
                peers = [word for other in made for word in ("--peer", other.served)]
                args = ("--trust-first", "--listen", "tcp:127.0.0.1:0", *peers, address)
                made.append(Witness(tmp_path / f"w{n}", *args, env=env))
                stack.callback(made[-1].end)
            w1, w2 = made
            tell(hive, w1, w2)
            wait_for(lambda: catches_up(hive), "it is agreed")
            # Anybody on its machine may look at a witness, its own user alone tells it anything.
            there = run("cat", "-H", w1.served, f"{HERE}/key")
            assert (0, f"{w1.key}\n") == (there.returncode, there.stdout)
            assert 4 == run("write", "-H", w1.served, f"{HERE}/ctl", "clear split=0").returncode
            denied = run("write", "-H", address, f"{HERE}/ctl", "remove name=w1", env=env)
            assert 4 == denied.returncode
            said = ("write", "-H", address, f"{HERE}/ctl", f"disagree key={w2.key} why=tried")
            assert 0 == run(*said, env=env).returncode


def enrolled(hive: Hive, address: str, identity: Path, node: str) -> dict[str, str]:
    """The environment of a validator that was invited."""
    env = {"SKEP_IDENTITY": str(identity)}
    invite = hive.skep("invite", "--role", "validator", "--node", node).stdout
    done = run("enroll", address, "--invite", "-", stdin=invite, env=env)
    assert 0 == done.returncode, done.stderr
    return env
