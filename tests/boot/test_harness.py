"""The lab when QEMU, or the lab itself, does not do its part: it comes to an end, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from lab import manifest
from qemus import written

from skep.__main__ import run
from skep.boot.classes import Class
from skep.boot.manifest import Manifest, parse
from skep.boot.qemu import SERIAL_MAX, Serial
from skep.boot.run import Boot, exact, wall

SOON_S = 30.0  # what does not hang ends long before that

FAKE = """
name = "fake"
arch = "x86_64"
kernel = "kernel"
[[milestone]]
name = "ready"
line = "ready"
[deadline]
start = {start}
reply = {reply}
milestone = 1
end = 1
"""


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_there(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(what: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + SOON_S
    while not what():
        assert time.monotonic() < end, why
        os.sched_yield()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert children(os.getpid()) == []
    assert len(os.listdir("/proc/self/fd")) == before


# What it does, and what is then told of it.
FAKES = {
    "ends": (Class.QEMU_START_FAILED, "QEMU ended with status 3"),
    "complains": (Class.QEMU_START_FAILED, "toaster: there is no bread"),
    "silent": (Class.QEMU_START_FAILED, "did not answer within 0.3 s"),
    "unfriendly": (Class.QEMU_START_FAILED, "did not answer within 0.3 s"),
    "garbage": (Class.QEMU_START_FAILED, "its monitor is none"),
    "endless": (Class.QEMU_START_FAILED, ""),
    "mute": (Class.HARNESS_ERROR, "query-version: QEMU did not answer within 0.3 s"),
    "odd": (Class.HARNESS_ERROR, "query-version: Expected `object`, got `int` - at `$.qemu`"),
    "mad": (Class.HARNESS_ERROR, "cont: "),
    "gone": (Class.HARNESS_ERROR, "query-version: "),
    "chatty": (Class.HARNESS_ERROR, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", FAKES)
def test_a_qemu_that_answers_nothing_or_nonsense_is_told_as_that(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKEP_QEMU_X86_64", str(written(tmp_path, way)))
    cause, told = FAKES[way]
    # Short is only the one that is waited for in vain: the machine may be busy.
    hangs = "did not answer" in told
    start = 0.3 if hangs and cause is Class.QEMU_START_FAILED else 20
    said = parse(FAKE.format(start=start, reply=0.3 if way == "mute" else 10))
    begun = time.monotonic()
    boot = asyncio.run(wall(said, tmp_path))
    assert time.monotonic() - begun < SOON_S
    assert boot.verdict is not None
    assert (boot.verdict.cause, len(boot.tried)) == (cause, 1), boot.verdict
    assert told in boot.verdict.message
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_monitor_that_closes_as_soon_as_it_is_open_is_one_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEP_QEMU_X86_64", str(written(tmp_path, "hasty")))
    boot = asyncio.run(wall(parse(FAKE.format(start=20, reply=10)), tmp_path))
    assert boot.verdict is not None
    assert boot.verdict.cause in (Class.QEMU_START_FAILED, Class.HARNESS_ERROR)


def test_a_command_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEP_QEMU_X86_64", str(tmp_path / "qemu"))
    boot = asyncio.run(wall(parse(FAKE.format(start=20, reply=10)), tmp_path))
    assert boot.verdict is not None
    assert boot.verdict.message == f"{tmp_path}/qemu: there is no such command"


def test_what_prints_without_end_is_read_to_its_limit_and_drained_beyond() -> None:
    async def story() -> int:
        end, fd = os.pipe()
        serial = Serial(end)

        def flood() -> None:
            with os.fdopen(fd, "wb", buffering=0) as pipe:
                for _ in range((SERIAL_MAX >> 20) + 2):
                    pipe.write(b"x" * (1 << 20))

        writer = threading.Thread(target=flood)
        writer.start()
        await serial.full.wait()
        while writer.is_alive():
            await asyncio.sleep(0)
        serial.close()
        return len(serial.data)

    assert SERIAL_MAX <= asyncio.run(story()) < SERIAL_MAX + (1 << 20)


class Boots(Protocol):
    def __call__(
        self, manifest: Manifest, base: Path, printed: Callable[[bytes], None] = ...
    ) -> Coroutine[None, None, Boot]: ...


def short(path: Path) -> Manifest:
    """With a monitor that must answer soon."""
    return parse(path.read_text().replace("[deadline]\n", "[deadline]\nreply = 2\n"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "boots"), [("x86_64", exact), ("aarch64", wall)])
def test_a_qemu_that_is_stopped_is_an_error_of_the_lab_and_is_ended(
    images: Path, arch: str, boots: Boots
) -> None:
    path = manifest(images, arch, "do=flood", seconds=3)

    def stop(data: bytes) -> None:
        for each in children(os.getpid()):
            os.kill(each, signal.SIGSTOP)

    begun = time.monotonic()
    boot = asyncio.run(boots(short(path), path.parent, stop))
    assert time.monotonic() - begun < SOON_S
    assert boot.verdict is not None
    assert boot.verdict.cause is Class.HARNESS_ERROR, boot.verdict
    assert "did not answer within 2 s" in boot.verdict.message
    assert len(boot.tried) == 1
    assert boot.serial != b""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_flood_holds_up_neither_the_monitor_nor_the_end(images: Path, arch: str) -> None:
    path = manifest(images, arch, "do=flood", seconds=3)
    boot = asyncio.run(wall(short(path), path.parent))
    assert boot.verdict is not None
    # Registers are there: the monitor has answered while the guest printed.
    assert (boot.verdict.cause, "RIP" in boot.verdict.registers or "SP" in boot.verdict.registers) == (
        Class.BOOT_TIMEOUT,
        True,
    )
    # It is what it is: nothing is gained by another attempt.
    assert boot.tried == []


@pytest.mark.slow
def test_the_total_is_an_end_of_every_wait_with_the_cause_that_was_seen(images: Path) -> None:
    path = manifest(images, "aarch64", "do=spin", seconds=60)
    path.write_text(path.read_text().replace("[deadline]\n", "[deadline]\ntotal = 4\n"))
    begun = time.monotonic()
    boot = asyncio.run(exact(parse(path.read_text()), path.parent))
    assert time.monotonic() - begun < SOON_S
    assert boot.verdict is not None
    assert (boot.verdict.cause, boot.verdict.milestone) == (Class.BOOT_TIMEOUT, "root")


@pytest.mark.slow
@pytest.mark.parametrize("boots", [exact, wall])
def test_an_expected_failure_is_looked_for_by_both_kinds_of_boot(images: Path, boots: Boots) -> None:
    text = manifest(images, "aarch64", "do=vm-read", more='expect = "user_fault"').read_text()
    # Without the milestones that it does not come to.
    text = text.replace('[[milestone]]\nname = "ready"\nsymbol = "ready"\nelf = "rootserver"\n', "")
    boot = asyncio.run(boots(parse(text), images / "aarch64"))
    assert boot.verdict is None
    text = text.replace('expect = "user_fault"', 'expect = "user_fault"\nforbid = ["vm fault"]')
    boot = asyncio.run(boots(parse(text), images / "aarch64"))
    assert boot.verdict is not None
    assert boot.verdict.message.startswith("forbidden: vm fault")


@pytest.mark.slow
def test_the_ceiling_of_the_wall_is_for_the_fastest_boot(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(images, "aarch64", tail="[wall]\nmax_ms = 60000\n")
    assert run(["boot", "run", "--boots", "2", str(path)]) == 0
    path = manifest(images, "aarch64", tail="[wall]\nmax_ms = 0.001\n")
    assert run(["boot", "run", "--boots", "2", str(path)]) == Class.OVER_BUDGET.row.status
    assert "by the clock in the fastest boot, ceiling 0.001 (after said)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_baseline_is_of_the_firmware_and_the_milestones_too(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(images, "x86_64")
    kept = tmp_path / "kept.json"
    asked = ["boot", "run", "--boots", "0", "--baseline", str(kept), "--out", str(tmp_path)]
    assert run([*asked, "--accept", str(path)]) == 0
    accepted = kept.read_text()

    def gate() -> str:
        assert run([*asked, str(path)]) == 0
        return str(json.loads((tmp_path / "boot.json").read_bytes())["gate"])

    assert gate() == "same"
    key = json.loads(accepted)["key"]
    (rom,) = key["firmware"].values()
    kept.write_text(accepted.replace(rom, "0" * 64))
    assert gate() == "none"
    assert run([*asked, "--need-baseline", str(path)]) == 1
    assert f"{kept}: none for this firmware: --accept writes one" in capsys.readouterr().err
    kept.write_text(accepted)
    path.write_text(path.read_text().replace('name = "ready"', 'name = "prepared"'))
    assert gate() == "none"


def test_what_was_tried_again_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKEP_QEMU_X86_64", str(tmp_path / "qemu"))
    (tmp_path / "kernel").write_bytes(b"")
    path = tmp_path / "boot.toml"
    path.write_text(FAKE.format(start=20, reply=10))
    assert run(["boot", "run", str(path)]) == Class.QEMU_START_FAILED.row.status
    assert f"tried again after qemu_start_failed: {tmp_path}/qemu: there is no" in capsys.readouterr().out


PHASES = ("start", "exact", "wall")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("by", list(STATUS), ids=lambda by: by.name)
def test_whenever_the_lab_is_ended_nothing_is_left(
    images: Path, tmp_path: Path, phase: str, by: signal.Signals
) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    path = manifest(images, "x86_64", "do=spin", seconds=60)
    if phase == "start":
        environment["SKEP_QEMU_X86_64"] = str(written(tmp_path, "mute"))
    if phase == "wall":
        head, _, _ = path.read_text().partition("[[milestone]]")
        path.write_text(head + '[[milestone]]\nname = "said"\nline = "^ROOT: ready"\n')
    lab = subprocess.Popen(
        [sys.executable, "-m", "skep", "boot", "run", str(path)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        begins = "qemu-system" if phase != "start" else "python"
        name = ""

        def begun() -> bool:
            nonlocal name
            for each in children(lab.pid):
                name = Path(f"/proc/{each}/comm").read_text()
                if name.startswith(begins):
                    return True
            return False

        wait_until(begun, f"no QEMU: {name}")
        (qemu,) = children(lab.pid)
        at = time.monotonic()
        os.killpg(lab.pid, by)
        _, err = lab.communicate(timeout=SOON_S)
        assert time.monotonic() - at < 10
        assert (lab.returncode, b"Traceback" in err) == (STATUS[by], False), err
        wait_until(lambda: not is_there(qemu), "QEMU is left")
        if by is not signal.SIGKILL:
            assert list(temporary.iterdir()) == []
    finally:
        lab.kill()
        lab.communicate()


@pytest.mark.slow
def test_labs_beside_each_other_do_not_meet(images: Path) -> None:
    path = manifest(images, "aarch64")
    said = parse(path.read_text())

    async def story() -> list[Boot]:
        return await asyncio.gather(*(exact(said, path.parent) for _ in range(6)))

    boots = asyncio.run(story())
    assert [boot.verdict for boot in boots] == [None] * 6
    assert len({tuple(each.instructions for each in boot.reached) for boot in boots}) == 1
