"""The guests, in QEMU alone: the same bytes wherever they are built, and each does what its words say."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from skep.__main__ import run
from skep.boot.guest.build import ARCHES, MANIFEST, cpio

BOOT_S = 60.0  # of a machine that is busy
QUIET_S = 1.0
QEMU = {
    "x86_64": "qemu-system-x86_64 -cpu qemu64,+pdpe1gb -m 512 -kernel kernel -initrd rootserver",
    "aarch64": "qemu-system-aarch64 -M virt -cpu cortex-a53 -m 1024 -kernel image",
}
BOTH = tuple(QEMU)
THREAD = r'\nin thread 0x\w+ "rootserver" at address '

SAID = {
    "do=ready": "ROOT: ready",
    "do=suite": "<testsuite>\nStarting test 1",
    "do=cap": f"cap fault in send phase at address 0{THREAD}0x4000",
    "do=cap-receive": f"cap fault in receive phase at address 0{THREAD}0x4000",
    "do=syscall": f"unknown syscall 0x4d{THREAD}0x4000",
    "do=null-fault": f"null fault{THREAD}",
    "do=timeout-fault form=mcs": f"no fault handler .* handle:\nTimeout fault for 0x\\w+\n{THREAD}",
    "do=unknown-fault": f"unknown fault{THREAD}",
    "do=debug-halt": "Debug halt syscall from user thread 0x\\w+ \"rootserver\"\nhalting...",
    "do=spin": "ROOT: start",
    "do=flood": "ROOT: line 999 ",
    "do=fail": 'seL4 called fail at /src/\\S+:210 in function init, saying "no memory\nleft"\nhalting...',
    "do=assert": "seL4 failed assertion 'start <= end' at \\S+:97 in function retype\nhalting...",
    "do=abort": "KERNEL DATA ABORT!\nFaulting instruction: 0xffffffff\\w+\nFAR: 0xffffffff40000018 ESR",
    "do=prefetch": "KERNEL PREFETCH ABORT!\n",
    "do=vector": "KERNEL INVALID VECTOR ENTRY!\nhalting...",
    "do=entry": "Kernel entry via Interrupt, irq 33\nhalting...",
    "do=halt": "halting...",
    "do=reject": "Invalid ELF: .*\nboot_sys failed for BSP\nhalting...",
    "do=ready ticks=3": "\n3 interrupts of the timer\nBooting all finished",
    "do=vm-read form=silent slow=3": "",
    "do=kernel-spin": "",
    "do=silence": "",
}  # fmt: skip
SAID_BY = {
    ("x86_64", "do=vm-read"): f"vm fault on data at address 0x10 with status 0x4{THREAD}0x4000",
    ("x86_64", "do=vm-write"): f"vm fault on data at address 0x10 with status 0x6{THREAD}0x4000",
    ("x86_64", "do=vm-code"): f"vm fault on data at address 0x10 with status 0x4{THREAD}0x10\n",
    ("x86_64", "do=vm-read form=print"): "handle:\nvm fault on data .* with status 0x4at address 0x4000",
    ("x86_64", "do=undefined"): f"user exception 0x6 code 0{THREAD}0x4000",
    ("x86_64", "do=privileged"): f"user exception 0xd code 0{THREAD}0x4000",
    ("x86_64", "wait=2"): "ROOT: ready",
    ("aarch64", "do=vm-read"): f"vm fault on data at address 0x10 with status 0x92000006{THREAD}0x4000",
    ("aarch64", "do=vm-write"): f"vm fault on data at address 0x10 with status 0x92000046{THREAD}0x4000",
    ("aarch64", "do=vm-code"): f"vm fault on code at address 0x10 with status 0x82000006{THREAD}0x10\n",
    ("aarch64", "do=undefined"): f"user exception 0x2000000 code 0{THREAD}0x4000",
    ("aarch64", "do=privileged"): f"user exception 0x2000000 code 0{THREAD}0x4000",
    ("aarch64", "do=loader"): "ERROR: Hashes are different\nabort\\(\\) called.",
}  # fmt: skip
CASES = [(arch, words, said) for words, said in SAID.items() for arch in BOTH] + [
    (arch, words, said) for (arch, words), said in SAID_BY.items()
]


@contextmanager
def booted(
    images: Path, arch: str, words: str, more: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    said = [*QEMU[arch].split(), "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"]
    qemu = subprocess.Popen(
        [*said, "-serial", "stdio", "-append", words, *more],
        cwd=images / arch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.communicate()


def read_until(qemu: subprocess.Popen[bytes], said: str, seconds: float) -> str:
    """What is printed until ``said`` is; "": whatever comes until the time is over or QEMU has ended."""
    assert qemu.stdout is not None
    pattern, read, end = re.compile(said or "$never"), b"", time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0 and not pattern.search(_plain(read)):
        if select.select([qemu.stdout], [], [], rest)[0]:
            piece = os.read(qemu.stdout.fileno(), 65536)
            if not piece:
                break
            read += piece
    return _plain(read)


def _plain(read: bytes) -> str:
    return read.decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "words", "said"), CASES)
def test_a_guest_does_what_its_words_say(images: Path, arch: str, words: str, said: str) -> None:
    with booted(images, arch, words) as qemu:
        text = read_until(qemu, said, BOOT_S if said else QUIET_S)
    assert re.search(said, text), text
    silent = "form=silent" in words or words == "do=silence"
    assert not (silent and arch == "x86_64" and text), text
    assert not (silent and "fault" in text)


@pytest.mark.slow
@pytest.mark.parametrize("arch", BOTH)
def test_null_capabilities_are_told_of_919_times_and_are_no_failure(images: Path, arch: str) -> None:
    with booted(images, arch, "do=null-cap") as qemu:
        text = read_until(qemu, "ROOT: ready", BOOT_S)
    assert text.count("Attempted to invoke a null cap #8191.>>") == 919
    assert "\033[32mseL4(CPU 0)" in text


@pytest.mark.slow
@pytest.mark.parametrize("arch", BOTH)
def test_a_reset_ends_qemu_as_if_all_were_well(images: Path, arch: str) -> None:
    with booted(images, arch, "do=reset") as qemu:
        read_until(qemu, "", BOOT_S)
        assert qemu.wait(BOOT_S) == 0


@pytest.mark.slow
def test_a_processor_without_huge_pages_is_refused(images: Path) -> None:
    with booted(images, "x86_64", "", ["-cpu", "qemu64,-pdpe1gb"]) as qemu:
        assert "Huge page" in read_until(qemu, "Huge page not supported by the processor", BOOT_S)


@pytest.mark.slow
def test_guests_are_the_same_bytes_wherever_they_are_built(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "a longer name" / "elsewhere"
    own = other / "x86_64" / "boot.toml"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\n")
    assert run(["boot", "guest", str(other)]) == 0
    for arch in ARCHES:
        ours, theirs = (
            {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
            for made in (images / arch, other / arch)
        )
        assert [name for name in theirs if ours[name] != theirs[name] and name.name != MANIFEST] == []
    assert own.read_text() == "# mine\n"
    assert "do=vm-read" in (other / "README.md").read_text()


@pytest.mark.slow
def test_the_archive_is_read_by_cpio(tmp_path: Path) -> None:
    made = cpio([("kernel.elf", b"abc"), ("rootserver", b"")])
    subprocess.run(["cpio", "-i"], input=made, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "kernel.elf").read_bytes() == b"abc"
    assert (tmp_path / "rootserver").read_bytes() == b""


@pytest.mark.slow
def test_without_a_compiler_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["boot", "guest", "--arch", "aarch64", str(tmp_path / "out")]) == 1
    assert "gcc-aarch64-linux-gnu" in capsys.readouterr().err
