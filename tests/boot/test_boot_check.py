"""``skep boot check``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import os
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skep.__main__ import run
from skep.boot.classes import Class
from skep.boot.guest.build import cpio as packed
from tests.boot.elves import CODE, arm_kernel, arm_root, build, image, sel4test_root, x86_kernel, x86_root

INVALID, OVER, USAGE = Class.LAYOUT_INVALID.row.status, Class.OVER_BUDGET.row.status, 2


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return written(tmp_path / "image", build(image()))


def test_a_good_image_and_what_is_inside_pass(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run(["boot", "check", good])
    said = capsys.readouterr().out
    for line in (
        f"{good}: image, aarch64, 64 bits, ",
        f"{good}:kernel.elf: kernel, aarch64, 64 bits, ",
        f"{good}:app: root, aarch64, 64 bits, ",
        "  W R8 segment 0 (LOAD): writable and executable, expected one of the two",
    ):
        assert line in said


def test_an_error_ends_it_as_an_invalid_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path / "root", build(x86_root()))
    assert INVALID == run(["boot", "check", root])
    said = capsys.readouterr()
    assert "  E R6 segment 4 (TLS): the loader clears 0x402010-0x402028 for it, 24 bytes of seg" in said.out
    assert "layout_invalid: 1 error (R6)" in said.err


def test_a_rule_may_be_allowed_to_be_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock root tasks for x86_64 break R6."""
    root = written(tmp_path / "root", build(x86_root()))
    assert 0 == run(["boot", "check", root, "--allow", "R6"])
    assert "  E R6 " in capsys.readouterr().out
    assert INVALID == run(["boot", "check", root, "--allow", "R1"])
    assert USAGE == run(["boot", "check", root, "--allow", "R66"])


def test_a_target_that_is_named_must_be_the_files(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert INVALID == run(["boot", "check", good, "--target", "x86_64"])
    assert (
        "E E1 header: EM_AARCH64, 64 bits, expected EM_X86_64, 64 bits, for x86_64" in capsys.readouterr().out
    )


def test_a_kind_that_is_named_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path / "root", build(sel4test_root()))
    assert 0 == run(["boot", "check", root])
    assert INVALID == run(["boot", "check", root, "--kind", "kernel"])
    assert INVALID == run(["boot", "check", root, "--kind", "pe"])
    assert "E P1 header: begins with 7f45, expected 4d5a, and a DOS header" in capsys.readouterr().out


def test_both_files_of_a_kernel_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = written(tmp_path / "kernel.elf", build(x86_kernel()))
    small = written(tmp_path / "kernel", build(x86_kernel(32)))
    assert 0 == run(["boot", "check", small, big])
    assert "K6" not in capsys.readouterr().out
    assert 0 == run(["boot", "check", small])
    assert "  ? K6: the ELF64 it was made from is not given" in capsys.readouterr().out


def test_growth_is_told_by_section_and_symbol(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, rest, bss = arm_kernel().sections
    smaller = arm_kernel().but(
        sections=(text, type(rest)(".text", 1, 6, rest.addr, rest.offset, 0x480), bss),
    )
    old = written(
        tmp_path / "old", build(image(packed([("kernel.elf", build(smaller)), ("app", build(arm_root()))])))
    )
    assert 0 == run(["boot", "check", good, "--against", old, "--json"])
    growth = json.loads(capsys.readouterr().out)["growth"]
    assert {"member": "kernel.elf", "kind": "size", "name": ".text", "was": 0x480, "now": 0x500} in growth
    assert 0 == run(["boot", "check", good, "--against", old])
    assert "  +128 kernel.elf:.text: 1152 to 1280" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budget", "status"),
    [
        ("memsz=1000000", 0),
        ("memsz=100", OVER),
        ("kernel.elf:.text=0x500", 0),
        ("kernel.elf:.text=0x4ff", OVER),
        ("kernel.elf:.gone=0", 0),
        ("app:file=+0", 0),
        ("file=+0", OVER),
        ("file=+100000", 0),
        ("file", USAGE),
        ("file=-1", USAGE),
        ("=5", USAGE),
    ],
)
def test_what_is_over_its_budget_ends_it(good: str, tmp_path: Path, budget: str, status: int) -> None:
    base = written(
        tmp_path / "base",
        build(image(packed([("kernel.elf", build(arm_kernel())), ("app", build(arm_root()))]))),
    )
    assert status == run(["boot", "check", good, "--against", base, "--budget", budget])


def test_a_budget_beside_an_error_is_an_invalid_layout(tmp_path: Path) -> None:
    root = written(tmp_path / "root", build(x86_root()))
    assert INVALID == run(["boot", "check", root, "--budget", "file=1"])


def test_a_report_is_named_after_its_file_and_signed(good: str, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    key, out = tmp_path / "key.pem", tmp_path / "reports"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert 0 == run(["boot", "check", good, "--sign", str(key), "--out", str(out)])
    name = sha256(Path(good).read_bytes()).hexdigest()
    assert {f"{name}.json", f"{name}.json.sig"} == {path.name for path in out.iterdir()}
    said = (out / f"{name}.json").read_bytes()
    private.public_key().verify(b64decode((out / f"{name}.json.sig").read_bytes()), said)
    report = json.loads(said)
    assert (name, "image", "skep boot check 1") == (report["sha256"], report["kind"], report["format"])
    assert 0 == run(["boot", "check", good, "--out", str(tmp_path / "again")])
    assert said == (tmp_path / "again" / f"{name}.json").read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ["--against", "FILE", "FILE"],
        ["--budget", "file=+5"],
        ["--ram", "5"],
        ["--ram", "9-5"],
        ["--explain", "Z9"],
        ["--sign", "FILE"],
        ["--kind", "cake"],
        ["no such file"],
    ],
)
def test_what_cannot_be_meant_is_a_mistake_of_usage(good: str, tmp_path: Path, args: list[str]) -> None:
    os.chdir(tmp_path)
    assert USAGE == run(["boot", "check", good, *(good if each == "FILE" else each for each in args)])


def test_a_pipe_that_nobody_writes_to_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert USAGE == run(["boot", "check", str(tmp_path / "pipe")])
    assert USAGE == run(["boot", "check", "/dev/zero"])


def test_a_file_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"\xff\x1b[2J\n")
    assert 0 == run(["boot", "check", written(path, build(sel4test_root()))])
    assert "/\\xff\\x1b[2J\\n: root, x86_64" in capsys.readouterr().out
    assert 0 == run(["boot", "check", str(path), "--json"])
    assert "\\xff\\x1b[2J\\n" == json.loads(capsys.readouterr().out)["name"]


def test_a_rule_is_explained_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run(["boot", "check", "--explain", "k5"])
    said = capsys.readouterr().out
    assert said.startswith("K5 (E) for kernel\n  rule: pc99: a multiboot header")
    assert "Error loading uncompressed kernel without PVH ELF Note" in said


X86_LOG = b"""\
Boot config: parsing cmdline ''\r
Kernel loaded to: start=0x100000 end=0x808000 size=0x708000 entry=0x100010\r
ELF-loading userland images from boot modules:\r
size=0x3200 v_entry=0x401000 v_start=0x400000 v_end=0x404000 p_start=0x809000 p_end=0x80d000\r
"""
ARM_LOG = b"""\
ELF-loader started on CPU: ARM Ltd. Cortex-A53 r0p4\r
  paddr=[40281000..%x]\r
ELF-loading image 'kernel' to 40000000\r
  paddr=[40000000..40007fff]\r
  vaddr=[ffffffffc0000000..ffffffffc0007fff]\r
  virt_entry=ffffffffc0000000\r
ELF-loading image 'sel4test-driver' to 40009000\r
  paddr=[40009000..4000cfff]\r
  vaddr=[400000..403fff]\r
  virt_entry=401000\r
"""


def arm_log() -> bytes:
    return ARM_LOG % (image().symbols[-1].value - 1)


def test_the_log_of_x86_has_the_addresses_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = written(tmp_path / "kernel", build(x86_kernel(32)))
    root = written(tmp_path / "root", build(sel4test_root()))
    log = written(tmp_path / "log", X86_LOG)
    assert 0 == run(["boot", "check", kernel, root, "--log", log])
    for old, new, rule in (
        (b"start=0x100000", b"start=0x200000", "X1"),
        (b"end=0x808000", b"end=0x809000", "X1"),
        (b"entry=0x100010", b"entry=0x100014", "X1"),
        (b"v_entry=0x401000", b"v_entry=0x401004", "X2"),
        (b"v_start=0x400000", b"v_start=0x500000", "X2"),
        (b"v_end=0x404000", b"v_end=0x405000", "X2"),
    ):
        written(tmp_path / "log", X86_LOG.replace(old, new))
        assert INVALID == run(["boot", "check", kernel, root, "--log", log])
        assert f"({rule})" in capsys.readouterr().err


def test_the_log_of_arm_has_the_addresses_of_what_is_inside(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path / "log", arm_log())
    assert 0 == run(["boot", "check", good, "--log", log])
    for old, new, rule in (
        (b"paddr=[40281000", b"paddr=[40282000", "X3"),
        (b"paddr=[40000000..40007fff]", b"paddr=[40000000..40008fff]", "X1"),
        (b"vaddr=[ffffffffc0000000", b"vaddr=[ffffffffc0001000", "X1"),
        (b"virt_entry=ffffffffc0000000", b"virt_entry=ffffffffc0000040", "X1"),
        (b"vaddr=[400000..403fff]", b"vaddr=[400000..404fff]", "X2"),
        (b"virt_entry=401000", b"virt_entry=401004", "X2"),
    ):
        written(tmp_path / "log", arm_log().replace(old, new))
        assert INVALID == run(["boot", "check", good, "--log", log])
        said = capsys.readouterr()
        assert f"({rule})" in said.err
        assert f"E {rule} log line " in said.out


def test_a_log_without_addresses_cannot_be_compared(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path / "log", b"\xff\0hello" * 5000)
    assert 0 == run(["boot", "check", good, "--log", log])
    assert "? X3: the log has none of its addresses" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_guests_pass(images: Path, arch: str) -> None:
    names = {
        "x86_64": ("kernel", "kernel.elf", "rootserver"),
        "aarch64": ("image", "kernel.elf", "rootserver"),
    }
    assert 0 == run(["boot", "check", *(str(images / arch / name) for name in names[arch]), "--target", arch])


def test_an_endless_pattern_is_no_elf(tmp_path: Path) -> None:
    assert INVALID == run(["boot", "check", written(tmp_path / "noise", CODE * 1000)])


def test_a_budget_of_what_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path / "root", build(arm_root()))
    assert 0 == run(["boot", "check", root, "--budget", "text=4096"])
    assert "  ? S1: there is no text\n" in capsys.readouterr().out
