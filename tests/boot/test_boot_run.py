"""skep boot run, on the guests: exact counts, a gate that sees a thousandth, one cause for each failure."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lab import burning, manifest

from skep.__main__ import run
from skep.boot.baseline import SUFFIX
from skep.boot.classes import Class
from skep.boot.manifest import read
from skep.boot.run import Boot, exact
from skep.boot.symbols import Symbols, archived
from tests.daemons import wait_for

pytestmark = pytest.mark.slow
BOTH = ("x86_64", "aarch64")
SHORT_S = 2.0  # until what says nothing is given up


def qemus() -> list[str]:
    """QEMUs that this process has started and that are still there."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-x", "qemu-system-.*"], capture_output=True, text=True
    )
    return found.stdout.split()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert qemus() == []


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Path:
    """The images, to be changed."""
    shutil.copytree(images, tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.parametrize("arch", BOTH)
def test_counts_are_the_same_in_every_boot_on_a_busy_machine_too(own: Path, arch: str) -> None:
    said = read(
        path := manifest(own, arch, "do=ready wait=1" if arch == "x86_64" else "do=ready", seconds=60)
    )

    async def beside_each_other() -> list[Boot]:
        return await asyncio.gather(*(exact(said, path.parent) for _ in range(3)))

    boots = [asyncio.run(exact(said, path.parent)) for _ in range(3)]
    with burning():
        boots += asyncio.run(beside_each_other())
    assert [boot.verdict for boot in boots] == [None] * 6
    counts = {tuple(each.instructions for each in boot.reached) for boot in boots}
    assert len(counts) == 1
    (found,) = counts
    assert len(found) == 5
    assert list(found) == sorted(found)  # type: ignore[type-var]


def slowed(images: Path, arch: str, turns: int) -> None:
    """Let the root task take so many turns of its loop before it is ready: in the file, not by a word."""
    for name in ("rootserver", "image"):
        path = images / arch / name
        if not path.exists():
            continue
        # Where the variable is in the file: the one segment that has data begins there.
        data = path.read_bytes()
        mark = b"\x73\x6b\x65\x70\x73\x6c\x6f\x77"
        assert data.count(mark) == 1, name
        at = data.index(mark) + len(mark)
        path.write_bytes(data[:at] + turns.to_bytes(8, "little") + data[at + 8 :])


@pytest.mark.parametrize("arch", BOTH)
def test_the_gate_catches_a_slow_down_of_a_thousandth(
    own: Path, arch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, arch)
    assert run(["boot", "run", "--boots", "0", "--accept", str(path)]) == 0
    assert run(["boot", "run", "--boots", "0", str(path)]) == 0
    assert "baseline: same" in capsys.readouterr().out
    slowed(own, arch, 2000 if arch == "x86_64" else 100)
    assert run(["boot", "run", "--boots", "0", str(path)]) == Class.OVER_BUDGET.row.status
    out, err = capsys.readouterr()
    assert "baseline: slower" in out
    more = float(err.partition("(+")[2].partition(" %")[0])
    assert 0 < more < 1
    # Accepted, it is the baseline; with a wider tolerance it never was a failure.
    assert run(["boot", "run", "--boots", "0", "--accept", str(path)]) == 0
    assert run(["boot", "run", "--boots", "0", str(path)]) == 0


def test_what_fails_is_not_accepted_however_slow_it_is(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(own, "aarch64")
    kept = path.with_suffix(SUFFIX)
    assert run(["boot", "run", "--boots", "0", "--accept", str(path)]) == 0
    before = kept.read_bytes()
    slowed(own, "aarch64", 100)
    path = manifest(own, "aarch64", more='forbid = ["^ROOT: ready"]')
    assert run(["boot", "run", "--accept", str(path)]) == Class.KERNEL_PANIC.row.status
    assert "baseline: slower" in capsys.readouterr().out
    assert kept.read_bytes() == before


def test_a_budget_says_nothing_of_the_baseline(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(own, "aarch64")
    over = Class.OVER_BUDGET.row.status
    late = ["boot", "run", "--boots", "0", "--max-ms", "1", str(path)]
    assert run([*late, "--accept"]) == over
    assert "baseline: accepted" in capsys.readouterr().out
    assert run(late) == over
    out, err = capsys.readouterr()
    assert "baseline: same" in out
    assert "budget 1" in err


def test_a_baseline_that_is_needed_is_a_case_that_failed(own: Path, tmp_path: Path) -> None:
    args = ["boot", "run", "--boots", "0", "--out", str(tmp_path), str(manifest(own, "aarch64"))]
    for more, status, failed in (([], 0, []), (["--need-baseline"], 1, ["baseline"])):
        assert run([*args, *more]) == status
        suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
        assert [case.get("name") for case in suite if len(case)] == failed


def test_another_command_line_has_no_baseline(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["boot", "run", "--boots", "0", "--accept", str(manifest(own, "aarch64"))]) == 0
    assert run(["boot", "run", "--boots", "0", str(manifest(own, "aarch64", "do=ready slow=99"))]) == 0
    assert "baseline: none" in capsys.readouterr().out


def test_a_declared_wait_is_a_stage_of_its_own_and_no_part_of_the_budget(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, "x86_64", "do=ready wait=4")
    out = tmp_path / "out"
    assert run(["boot", "run", "--max-ms", "200", "--out", str(out), "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    wait = next(stage for stage in found["stages"] if stage["name"] == "calibrated")
    assert wait["wait"]
    assert 199 < wait["virtual_ms"] < 202
    ready = found["stages"][-1]
    assert ready["from_reset_ms"] > 200 > ready["less_waits_ms"]
    assert found["wall"][0]["boots"] == 1
    assert json.loads((out / "boot.json").read_bytes())["gate"] == "none"
    assert ElementTree.parse(out / "junit.xml").getroot().get("failures") == "0"
    assert ElementTree.parse(out / "stages.svg").getroot().tag.endswith("svg")
    assert b"ROOT: ready" in (out / "serial-wall-1.log").read_bytes()
    assert run(["boot", "run", "--max-ms", "1", "--out", str(out), str(path)]) == Class.OVER_BUDGET.row.status
    assert ElementTree.parse(out / "junit.xml").getroot().get("failures") == "2"


CAUSES = {
    "do=vm-read": (Class.USER_FAULT, "in root+0x"),
    "do=vm-read form=print": (Class.USER_FAULT, "status 0x"),
    "do=cap form=mcs": (Class.USER_FAULT, "cap fault in send phase"),
    "do=undefined": (Class.USER_FAULT, "in undefined+0x0 (undefined instruction)"),
    "do=fail": (Class.KERNEL_PANIC, 'saying "no memory left"'),
    "do=abort": (Class.KERNEL_PANIC, "KERNEL DATA ABORT!"),
    "do=debug-halt": (Class.KERNEL_PANIC, "Debug halt syscall"),
    "do=halt": (Class.KERNEL_HALTED, "halting..."),
    "do=reject": (Class.KERNEL_REJECT, "Invalid ELF"),
    "do=reset": (Class.RESET, "reset"),
}
WAITED = {
    "do=vm-read form=silent": (Class.USER_FAULT, "in root+0x"),
    "do=vm-code form=silent": (Class.USER_FAULT, "vm fault on"),
    "do=undefined form=silent": (
        Class.USER_FAULT,
        "in undefined+0x0 (undefined instruction), as QEMU saw it",
    ),
    "do=halt form=silent": (Class.KERNEL_HALTED, "halted with interrupts off"),
    "do=silence": (Class.NO_OUTPUT, "nothing was printed"),
    "do=spin": (Class.BOOT_TIMEOUT, "ready was not reached (a user thread runs)"),
    "do=kernel-spin": (Class.BOOT_TIMEOUT, "root was not reached"),
    "do=flood": (Class.BOOT_TIMEOUT, "ready was not reached"),
}


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("words", [*CAUSES, *WAITED])
def test_every_way_to_fail_has_one_cause(
    own: Path, arch: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cause, told = (CAUSES | WAITED)[words]
    path = manifest(own, arch, words, seconds=SHORT_S if words in WAITED else 30)
    assert run(["boot", "run", str(path)]) == cause.row.status
    err = capsys.readouterr().err
    assert cause.value in err
    assert told in err


def test_a_triple_fault_is_placed_in_the_kernel(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["boot", "run", str(manifest(own, "x86_64", "do=reset"))]) == Class.RESET.row.status
    out, err = capsys.readouterr()
    assert "reset: a triple fault at 0xffffffff802" in err
    assert " in reset+0x" in err
    assert "v=08" in out


def test_tests_that_do_not_end_are_another_cause_than_a_boot_that_does_not(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, "aarch64", "do=suite", more='expect = "user_fault"', seconds=SHORT_S)
    assert run(["boot", "run", str(path)]) == Class.TEST_TIMEOUT.row.status


@pytest.mark.parametrize(
    ("words", "status"),
    [("do=vm-read", 0), ("do=vm-read form=silent", 0), ("do=ready", Class.TEST_TIMEOUT.row.status)],
)
def test_a_scenario_may_demand_a_fault(own: Path, words: str, status: int) -> None:
    path = manifest(own, "aarch64", words, more='expect = "user_fault"', seconds=SHORT_S)
    assert run(["boot", "run", str(path)]) == status


def test_a_line_may_be_forbidden(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(own, "aarch64", "do=null-cap", more='forbid = ["null cap"]')
    assert run(["boot", "run", str(path)]) == Class.KERNEL_PANIC.row.status
    assert "forbidden: <<seL4" in capsys.readouterr().err
    assert run(["boot", "run", str(manifest(own, "aarch64", "do=null-cap"))]) == 0


def test_what_qemu_refuses_is_told_in_its_words(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(own, "x86_64", more='machine = "toaster"')
    assert run(["boot", "run", str(path)]) == Class.QEMU_START_FAILED.row.status
    assert "unsupported machine type" in capsys.readouterr().err
    shutil.copy(own / "x86_64" / "kernel.elf", own / "x86_64" / "kernel")
    assert run(["boot", "run", str(manifest(own, "x86_64"))]) == Class.KERNEL_REJECT.row.status
    assert "give a 32bit one" in capsys.readouterr().err


def test_without_qemu_its_start_failed(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["boot", "run", str(manifest(own, "aarch64"))]) == Class.QEMU_START_FAILED.row.status


def test_a_symbol_that_is_not_there_is_told_before_anything_boots(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, "aarch64")
    path.write_text(path.read_text().replace('symbol = "ready"', 'symbol = "steady"'))
    assert run(["boot", "run", str(path)]) == 2
    assert "rootserver has no steady" in capsys.readouterr().err


@pytest.mark.parametrize("victim", ["lab", "qemu"])
def test_whoever_is_killed_nothing_is_left_and_nothing_hangs(own: Path, victim: str) -> None:
    path = manifest(own, "aarch64", "do=spin", seconds=5)
    lab = subprocess.Popen(
        [sys.executable, "-m", "skep", "boot", "run", str(path)], stderr=subprocess.PIPE, text=True
    )
    try:

        def started() -> str:
            command = ["pgrep", "-P", str(lab.pid), "-f", "^[^ ]*qemu-system"]
            return subprocess.run(command, capture_output=True, text=True).stdout

        wait_for(lambda: started() != "" or lab.poll() is not None, "QEMU is started")
        assert lab.poll() is None, lab.communicate()
        qemu = int(started().split()[0])
        os.kill(lab.pid if victim == "lab" else qemu, signal.SIGKILL)
        _, err = lab.communicate(timeout=60)
        if victim == "qemu":
            # Killed once, it is tried again: that it spins is what is found.
            lab_status = lab.returncode
            assert lab_status in (Class.HARNESS_ERROR.row.status, Class.BOOT_TIMEOUT.row.status), err
        wait_for(lambda: not Path(f"/proc/{qemu}").exists(), "QEMU is gone")
    finally:
        lab.kill()
        lab.communicate()


def test_functions_are_named_by_the_files_symbols(images: Path) -> None:
    symbols = Symbols(images / "x86_64" / "rootserver")
    assert symbols.place(symbols.by_name["root"] + 5) == "root+0x5"
    assert symbols.place(0) == ""
    assert symbols.entry == 0x400000


def test_the_archive_of_an_image_is_read_as_far_as_it_goes(images: Path, tmp_path: Path) -> None:
    image = images / "aarch64" / "image"
    assert [each.entry != 0 for each in archived(image)] == [True, True]
    data = image.read_bytes()
    second = data.index(b"rootserver\0", data.index(b"070701"))
    path = tmp_path / "cut"
    for end in (second + 400, second - 200, 100):
        path.write_bytes(data[:end])
        assert len(archived(path)) <= 1
    assert archived(images / "x86_64" / "kernel") == []


@pytest.mark.parametrize("cut", [0, 3, 16, 63, 64, 1000])
def test_a_file_that_is_cut_has_no_symbols_and_raises_nothing(images: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes((images / "x86_64" / "rootserver").read_bytes()[:cut])
    assert Symbols(path).by_name == {}
