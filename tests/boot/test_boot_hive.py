"""An image goes into a hive, a worker boots it, and what became of it is read there."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.boot.lab import manifest
from tests.daemons import ROOT, Hive, daemon, queen, run, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    """Those of the examples, with this installation's own program."""
    text = (ROOT / "examples" / "boot-lab.toml").read_text()
    path = tmp_path / "boot-lab.toml"
    path.write_text(text.replace('"skep"', f'"{sys.executable}", "-m", "skep"'))
    return path


def put(hive: Hive, images: Path, words: str) -> None:
    """The aarch64 guest with these words as the image worker."""
    said = manifest(images, "aarch64", words, seconds=10)
    archive = subprocess.run(
        [sys.executable, "-m", "skep", "boot", "pack", str(said), "-"], cwd=ROOT, capture_output=True
    )
    assert 0 == archive.returncode, archive.stderr
    done = subprocess.run(
        [sys.executable, "-m", "skep", "write", "-H", hive.address, "/artifacts/stage/worker.boot"],
        cwd=ROOT,
        input=archive.stdout,
        capture_output=True,
    )
    assert 0 == done.returncode, done.stderr
    hive.ask("write", "/boot/ctl", "put image=worker")


def booted(hive: Hive) -> str:
    """The id of a run that has ended."""
    id = hive.ask("write", "/boot/ctl", "run image=worker").split()[0]
    assert "succeeded" == hive.ask("cat", f"/boot/runs/{id}/wait"), hive.ask("cat", f"/jobs/{id}/error")
    return id


def test_a_run_is_done_by_a_worker_with_the_handler(tmp_path: Path, images: Path, handlers: Path) -> None:
    with queen(tmp_path / "hive") as hive:
        put(hive, images, "do=ready")
        asked = hive.ask("write", "/boot/ctl", "run image=worker shift=2 boots=2").split()[0]
        follower = subprocess.Popen(
            [sys.executable, "-m", "skep", "cat", "-H", hive.address, f"/boot/runs/{asked}/serial.log@0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        options = ("--pools", "boot-lab", "--dir", str(tmp_path / "worker"), "--node", "lab")
        with daemon("ready", "worker", "-H", hive.workers, "--handlers", str(handlers), *options):
            assert "succeeded" == hive.ask("cat", f"/boot/runs/{asked}/wait")
            assert hive.ask("cat", f"/boot/runs/{asked}/verdict").startswith("as expected: ready after ")
            timing = msgspec.json.decode(hive.ask("cat", f"/boot/runs/{asked}/timing.json"))
            assert (2, [2]) == (timing["shift"], [each["boots"] for each in timing["wall"]])
            assert "null" == hive.ask("cat", f"/boot/runs/{asked}/diagnostics.json")
            assert hive.ask("cat", f"/boot/runs/{asked}/stages.svg").startswith("<svg ")
            kernel = timing["files"]["kernel.elf"]
            layout = msgspec.json.decode(hive.ask("cat", f"/log/boot/elf_checks/{kernel}.json"))
            assert ("kernel", kernel) == (layout["kind"], layout["sha256"])
            # Three boots, one of them exact, and it was told as it was printed.
            followed, _ = follower.communicate(timeout=10)
            assert 3 == followed.count("ROOT: start")
            assert followed == hive.ask("cat", f"/boot/runs/{asked}/serial.log") + "\n"

            put(hive, images, "do=vm-read")
            faulted = booted(hive)
            assert hive.ask("cat", f"/boot/runs/{faulted}/verdict").startswith("user_fault: vm fault on data")
            told = msgspec.json.decode(hive.ask("cat", f"/boot/runs/{faulted}/diagnostics.json"))
            assert ("user_fault", 0x10) == (told["cause"], told["fault"]["address"])


def inside(directory: Path) -> list[str]:
    """The processes that work there, by the names of their programs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("cwd").readlink().is_relative_to(directory):
                found.append(process.joinpath("comm").read_text().strip())
    return found


def test_a_worker_that_is_killed_leaves_no_guest_running(
    tmp_path: Path, images: Path, handlers: Path
) -> None:
    with queen(tmp_path / "hive") as hive:
        put(hive, images, "do=spin")
        run = hive.ask("write", "/boot/ctl", "run image=worker").split()[0]
        place = tmp_path / "worker"
        options = ("--pools", "boot-lab", "--dir", str(place), "--node", "lab")
        with daemon("ready", "worker", "-H", hive.workers, "--handlers", str(handlers), *options) as began:
            printed = f"/boot/runs/{run}/serial.log"
            wait_for(lambda: "ROOT: start" in hive.ask("cat", printed), "the guest runs")
            assert any(name.startswith("qemu") for name in inside(place))
            began.end(signal.SIGKILL)
            wait_for(lambda: inside(place) == [], "all has ended")
        assert "" == hive.ask("cat", f"/boot/runs/{run}/verdict")


def test_the_same_files_are_the_same_archive(tmp_path: Path, images: Path) -> None:
    said = manifest(images, "aarch64")
    for name in ("one", "two"):
        assert 0 == run("boot", "pack", str(said), str(tmp_path / name)).returncode
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    listed = subprocess.run(["tar", "tf", str(tmp_path / "one")], capture_output=True, text=True)
    assert ["boot.toml", "image", "kernel.elf", "rootserver"] == listed.stdout.splitlines()[:4]


def test_a_lab_boots_what_its_key_has_signed(tmp_path: Path, images: Path) -> None:
    for name in ("ours", "theirs"):
        key, public = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.pub")
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    said, image = manifest(images, "aarch64"), tmp_path / "image"
    assert 0 == run("boot", "sign", str(said), "--key", str(tmp_path / "ours.pem")).returncode
    assert 0 == run("boot", "pack", str(said), str(image)).returncode
    for name, verdict in (("ours", "as expected: "), ("theirs", "signature_invalid: ")):
        work = tmp_path / f"job-{name}"
        work.mkdir()
        job = ["boot", "job", "--labels=boots:0", "--seen", str(tmp_path / "seen"), str(image)]
        done = subprocess.run(
            [sys.executable, "-m", "skep", *job, "--trust", str(tmp_path / f"{name}.pub")],
            cwd=work,
            capture_output=True,
            text=True,
        )
        assert 0 == done.returncode, done.stderr
        assert done.stdout.startswith(verdict)
        # It is told without having been booted.
        assert (name == "ours") == ("ROOT: start" in done.stderr or "Bootstrapping kernel" in done.stderr)
    said.with_name("boot.toml.sig").unlink()


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ("shift:x", "Expected `int | null`"),
        ("boots:101", "boots: expected 0 to 100"),
        ("max-ms", "expected k:v,k:v"),
    ],
)
def test_a_job_that_asks_for_nonsense_fails(tmp_path: Path, images: Path, labels: str, why: str) -> None:
    image = tmp_path / "image"
    assert 0 == run("boot", "pack", str(manifest(images, "aarch64")), str(image)).returncode
    done = run("boot", "job", "--labels", labels, str(image))
    assert 2 == done.returncode
    assert why in done.stderr
