"""EFI programs: good ones, spoilt ones, and ones that are signed by the tool that signs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from skep.boot.guest.build import cpio
from skep.boot.layout.checking import STATED, Asked, check
from skep.boot.layout.rule import Kind
from tests.boot.elves import PeFile, archive, arm_kernel, arm_root, build
from tests.boot.test_layout_rules import broken

X86_PE = 0x8664


def told(data: bytes, target: str | None = None) -> set[str]:
    file = check("file", data, Asked(target=target))
    assert Kind.PE == file.report.kind
    return broken(file)


def test_a_good_one_passes() -> None:
    assert set() == told(PeFile().build())
    assert set() == told(PeFile(machine=X86_PE).build(), "x86_64")


KERNEL, ROOT = build(arm_kernel()), build(arm_root())
HASHED = cpio([("kernel.elf", KERNEL), ("app", ROOT), ("app.bin", bytes(32))])
SPOILT = {
    "no PE header": (PeFile(signature=b"NE\0\0"), "P1"),
    "PE32": (PeFile(magic=0x10B), "P1"),
    "too many sections": (PeFile(sections=1000), "P1"),
    "another target": (PeFile(machine=X86_PE), "P2"),
    "another machine": (PeFile(machine=0x14C), "P2"),
    "a console program": (PeFile(subsystem=3), "P3"),
    "a boot service driver": (PeFile(subsystem=11), "P3"),
    "a section behind the file": (PeFile(offset=0x800), "P4"),
    "a section beyond the image": (PeFile(size=0x1000), "P4"),
    "sections overlap": (PeFile(sections=2), "P4"),
    "entry in the headers": (PeFile(entry=0x40), "P5"),
    "entry behind the section": (PeFile(entry=0x9000), "P5"),
    "nothing is executable": (PeFile(flags=0xC0000040), "P5"),
    "a signature of something else": (PeFile(certificate=bytes(64)), "P6"),
    "no kernel": (PeFile(content=bytes(0x200) + cpio([("kernel.elf", b""), ("a", b"")])), "E1"),
    "no root task": (PeFile(content=bytes(0x200) + cpio([("kernel.elf", KERNEL)])), "P8"),
    "another hash": (PeFile(content=bytes(0x200) + HASHED), "P9"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_found(name: str) -> None:
    file, rule = SPOILT[name]
    assert rule in told(file.build(), "aarch64")


def test_every_rule_is_tried() -> None:
    tried = {rule for _, rule in SPOILT.values()}
    assert {rule for rule in STATED if rule.startswith("P")} - {"P7"} <= tried


def test_one_that_is_cut_off_anywhere_is_told_of() -> None:
    data = PeFile(certificate=bytes(256)).build()
    for end in range(2, len(data), 37):
        assert told(data[:end]) & {"P1", "P4", "P6"}, end


def test_what_it_carries_is_checked_as_of_an_image() -> None:
    report = check("file", PeFile(content=bytes(0x200) + archive()).build()).report
    assert ["file:kernel.elf", "file:app"] == [each.name for each in report.members]
    assert ["kernel", "root"] == [each.kind for each in report.members]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_signature_is_of_the_file_or_is_told_of(images: Path, tmp_path: Path, arch: str) -> None:
    key, certificate, signed = tmp_path / "key", tmp_path / "certificate", tmp_path / "signed.efi"
    request = "openssl req -new -x509 -newkey rsa:2048 -nodes -sha256 -days 2 -subj /CN=throwaway/"
    for command in (
        [*request.split(), "-keyout", str(key), "-out", str(certificate)],
        ["sbsign", "--key", str(key), "--cert", str(certificate), "--output", str(signed), "app.efi"],
    ):
        subprocess.run(command, cwd=images / arch, check=True, capture_output=True, timeout=60)
    data = signed.read_bytes()
    assert set() == told(data)
    assert set() == told((images / arch / "app.efi").read_bytes())
    # A byte of the code is another; and so for the flags of the header, which are signed too.
    for at in (1500, 0x80):
        other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert told(other) & {"P1", "P6"}
