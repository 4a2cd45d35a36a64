"""Logs in the formats that kernels and loaders have: each has one cause, or none; and any bytes have one."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.__main__ import run
from skep.boot.classes import CLASSES, Class, Fault, Verdict
from skep.boot.diagnose import KEPT, arch_of, of_log, read
from skep.boot.grammar import LINE_MAX
from skep.boot.symbols import Symbols
from tests.test_docs import ROOT, generated

LOGS = Path(__file__).parent / "logs"
THREAD = "rootserver"
# name of the log: its cause, what is told, the fault as decoded
EXPECTED: dict[str, tuple[Class | None, str, Fault | None]] = {
    "ready-x86": (None, "", None),
    "ready-aarch64": (None, "", None),
    "users-errors": (None, "", None),
    "vm-read": (
        Class.USER_FAULT,
        "vm fault on data at address 0x10 with status 0x4 (by the user, read, not mapped)",
        Fault("vm data", 0x10, 0x401CF5, THREAD, 4, "by the user, read, not mapped"),
    ),
    "vm-write": (
        Class.USER_FAULT,
        "vm fault on data at address 0 with status 0x6",
        Fault("vm data", 0, 0x401CF5, THREAD, 6, "by the user, write, not mapped"),
    ),
    "vm-fetch": (
        Class.USER_FAULT,
        "status 0x14 (fetch, not mapped)",
        Fault("vm data", 0x10, 0x10, THREAD, 0x14, "fetch, not mapped"),
    ),
    "vm-read-aarch64": (
        Class.USER_FAULT,
        "status 0x92000006 (read, translation fault, level 2)",
        Fault("vm data", 0x10, 0x4010C0, THREAD, 0x92000006, "read, translation fault, level 2"),
    ),
    "vm-code-aarch64": (
        Class.USER_FAULT,
        "vm fault on code",
        Fault("vm code", 0x10, 0x10, THREAD, 0x82000006, "fetch, translation fault, level 2"),
    ),
    "vm-printing": (
        Class.USER_FAULT,
        "vm fault on data at address 0x10 with status 0x4 (by the user",
        Fault("vm data", 0x10, 0x401C41, "", 4, "by the user, read, not mapped"),
    ),
    "cap-mcs": (Class.USER_FAULT, "cap fault in send", Fault("cap send", 0, 0x401D20, THREAD)),
    "cap-receive": (Class.USER_FAULT, "cap fault in receive", Fault("cap receive", 0xA, 0x401D20, THREAD)),
    "unknown-syscall": (
        Class.USER_FAULT,
        "unknown syscall 0x4d",
        Fault("syscall", None, 0x401D20, THREAD, 0x4D),
    ),
    "exception": (
        Class.USER_FAULT,
        "user exception 0xd code 0 (general protection)",
        Fault("exception", 0, 0x401D44, THREAD, 13, "general protection"),
    ),
    "exception-aarch64": (
        Class.USER_FAULT,
        "user exception 0x2000000 code 0 (undefined instruction)",
        Fault("exception", 0, 0x4010C8, THREAD, 0x2000000, "undefined instruction"),
    ),
    "null-fault": (Class.USER_FAULT, "null fault", Fault("null", None, 0x401D20, THREAD)),
    "timeout-mcs": (
        Class.USER_FAULT,
        "Timeout fault for 0xffffff8040f400",
        Fault("timeout", None, 0x401D20, THREAD, 0xFFFFFF8040F400),
    ),
    "unknown-fault": (Class.USER_FAULT, "unknown fault", Fault("unknown", None, 0x401D20, THREAD)),
    "stamped": (
        Class.USER_FAULT,
        "vm fault on data",
        Fault("vm data", 0x10, 0x401CF5, THREAD, 4, "by the user, read, not mapped"),
    ),
    "noise-on-the-line": (
        Class.USER_FAULT,
        "vm fault on data",
        Fault("vm data", 0x10, 0x401CF5, THREAD, 4, "by the user, read, not mapped"),
    ),
    "fail": (Class.KERNEL_PANIC, 'in function init_freemem, saying "no memory left"', None),
    "assertion": (Class.KERNEL_PANIC, "seL4 failed assertion 'start <= end' at", None),
    "data-abort": (
        Class.KERNEL_PANIC,
        "KERNEL DATA ABORT! at address 0xffffff8088000000 (write, translation fault, level 1)",
        Fault(
            "kernel data",
            0xFFFFFF8088000000,
            0xFFFFFFFFC0008A10,
            "",
            0x96000045,
            "write, translation fault, level 1",
        ),
    ),
    "prefetch-abort": (
        Class.KERNEL_PANIC,
        "KERNEL PREFETCH ABORT! (fetch, translation fault, level 2)",
        Fault("kernel fetch", None, 0, "", 0x86000006, "fetch, translation fault, level 2"),
    ),
    "invalid-vector": (Class.KERNEL_PANIC, "KERNEL INVALID VECTOR ENTRY!", None),
    "entry-interrupt": (Class.KERNEL_PANIC, "Kernel entry via Interrupt, irq 33", None),
    "entry-unknown-syscall": (Class.KERNEL_PANIC, "Kernel entry via Unknown syscall, word: 77", None),
    "entry-vm-fault": (Class.KERNEL_PANIC, "Kernel entry via VM Fault, fault type: 0", None),
    "entry-user-fault": (Class.KERNEL_PANIC, "Kernel entry via User level fault, number: 6", None),
    "entry-syscall": (Class.KERNEL_PANIC, "Kernel entry via Syscall, number: 9, DebugPutChar", None),
    "entry-unknown": (Class.KERNEL_PANIC, "Kernel entry via Unknown (0)", None),
    "debug-halt": (Class.KERNEL_PANIC, "Debug halt syscall from user thread", None),
    "halting": (Class.KERNEL_HALTED, "halting...", None),
    "huge-page": (Class.KERNEL_REJECT, "Huge page not supported by the processor", None),
    "loader-hashes": (Class.KERNEL_REJECT, "ERROR: Hashes are different. Load failure.", None),
    "loader-abort": (Class.KERNEL_REJECT, "abort() called.", None),
    "boot-sys-failed": (Class.KERNEL_REJECT, "must be 4KB-aligned", None),
    "region-order": (Class.KERNEL_REJECT, "reserved region 2 in wrong order", None),
    "efi-exception": (Class.KERNEL_PANIC, "X64 Exception Type - 06(#UD - Invalid Opcode)", None),
    "efi-exception-aarch64": (Class.KERNEL_PANIC, "Synchronous Exception at 0x000000007C743000", None),
    "secure-boot": (Class.SIGNATURE_INVALID, "failed to load Boot0001", None),
    "firmware-alone": (Class.FIRMWARE_STUCK, "3 lines of firmware", None),
    "board-ready": (None, "", None),
    "board-stuck": (Class.FIRMWARE_STUCK, "12 lines of firmware, none of the image", None),
    "nothing": (Class.NO_OUTPUT, "nothing was printed", None),
    "began-again": (Class.RESET, "it began again: Kernel loaded to:", None),
    "no-bootstrap": (None, "", None),
    "suite": (None, "", None),
}
# With a line that must come.
AWAITED = {
    "users-errors": (None, ""),
    "suite": (Class.TEST_TIMEOUT, "it has booted, 'All is well' was not printed"),
    "no-bootstrap": (Class.BOOT_TIMEOUT, "a line of 'All is well' was not reached"),
    "vm-read": (Class.USER_FAULT, "vm fault on data"),
    "firmware-alone": (Class.FIRMWARE_STUCK, "3 lines of firmware"),
}


def verdict_of(name: str, *expected: str) -> Verdict | None:
    reading = read([(LOGS / f"{name}.log").read_bytes()], expected)
    return of_log(reading, arch_of(reading, []), [])


def test_every_log_has_its_row() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_has_its_cause(name: str) -> None:
    cause, told, fault = EXPECTED[name]
    verdict = verdict_of(name)
    assert (verdict.cause if verdict is not None else None) is cause
    if verdict is not None:
        assert told in verdict.message
        assert verdict.fault == fault
        assert len(verdict.evidence) <= 21


@pytest.mark.parametrize("name", AWAITED)
def test_a_line_that_does_not_come_is_waited_for_where_nothing_else_is_told(name: str) -> None:
    cause, told = AWAITED[name]
    verdict = verdict_of(name, "All is well")
    assert (verdict.cause if verdict is not None else None) is cause
    assert verdict is None or told in verdict.message


def test_evidence_is_fifteen_lines_before_and_five_after() -> None:
    before = "".join(f"line {n}\n" for n in range(100))
    after = "".join(f"rest {n}\n" for n in range(100))
    reading = read([f"{before}KERNEL INVALID VECTOR ENTRY!\n{after}".encode()])
    verdict = of_log(reading, "aarch64", [])
    assert verdict is not None
    assert verdict.evidence[0] == "line 85"
    assert verdict.evidence[15:] == ("KERNEL INVALID VECTOR ENTRY!", *(f"rest {n}" for n in range(5)))


PIECES = st.sampled_from([path.read_bytes() for path in sorted(LOGS.glob("*.log"))])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | PIECES | st.just(b"x" * (LINE_MAX + 1)), max_size=6), st.data())
def test_any_bytes_have_a_verdict_and_the_same_for_any_cut(parts: list[bytes], data: st.DataObject) -> None:
    log = b"".join(parts)
    cut = data.draw(st.integers(0, len(log)))
    verdicts = []
    for pieces in ([log], [log[:cut], log[cut:]]):
        reading = read(pieces)
        verdicts.append(of_log(reading, arch_of(reading, []), []))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] is None or len(verdicts[0].evidence) <= KEPT


def test_a_log_without_end_takes_no_memory() -> None:
    def endless(piece: bytes) -> bytes:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reading = read(piece for _ in range(16))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB
        assert sum(map(len, reading.last)) <= 15 * LINE_MAX
        return piece

    endless(b"x" * 65536)  # one line
    endless(b"Kernel loaded to: start=0 is printed again and again\r\n" * 1200)


def test_the_command_ends_with_the_status_of_the_cause(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["boot", "diagnose", str(LOGS / "vm-read.log")]) == Class.USER_FAULT.row.status
    out, err = capsys.readouterr()
    assert '  | in thread 0xffffff8040f400 "rootserver" at address 0x401cf5\n' in out
    assert "user_fault: vm fault on data at address 0x10" in err
    assert run(["boot", "diagnose", str(LOGS / "users-errors.log")]) == 0
    assert "3 errors of users passed over: nothing is wrong" in capsys.readouterr().out
    log = (LOGS / "halting.log").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(log)))
    assert run(["boot", "diagnose", "--json", "-"]) == Class.KERNEL_HALTED.row.status
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"]["cause"], said["arch"], said["boots"]) == ("kernel_halted", "x86_64", 1)
    assert run(["boot", "diagnose", "--expect", "(", str(LOGS / "nothing.log")]) == 2
    assert "--expect (" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_fault_is_placed_by_the_symbols_of_a_file(
    images: Path, arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elf = images / arch / "rootserver"
    place = Symbols(elf).by_name["root"] + 8
    log = tmp_path / "serial.log"
    log.write_bytes((LOGS / "vm-read.log").read_bytes().replace(b"0x401cf5", b"%#x" % place))
    assert run(["boot", "diagnose", "--json", "--elf", str(elf), str(log)]) == Class.USER_FAULT.row.status
    said = json.loads(capsys.readouterr().out)
    assert (said["arch"], said["verdict"]["fault"]["where"]) == (arch, "root+0x8")
    if arch == "aarch64":  # the same from the image that has the file
        assert run(["boot", "diagnose", "--elf", str(images / arch / "image"), str(log)]) == 45
        assert " in root+0x8 " in capsys.readouterr().err


# Of causes that no serial log tells: what skep boot says on stderr.
SAID = {
    Class.QEMU_START_FAILED: "qemu-system-x86_64: unsupported machine type",
    Class.BOOT_TIMEOUT: "ready was not reached (a user thread runs) (after root)",
    Class.TEST_TIMEOUT: "all milestones were reached, the expected end was not",
    Class.OVER_BUDGET: "ready: 171230 instructions, the baseline has 171059 (+0.100 %)",
    Class.LAYOUT_INVALID: "bootinfo: empty.end is 8192, expected 4096, which is 1 << initThreadCNodeSizeBits",
    Class.HARNESS_ERROR: "QEMU ended with status -9",
}


def test_the_page_has_an_example_of_each_cause() -> None:
    told = dict(SAID)
    for name in EXPECTED:
        verdict = verdict_of(name)
        if verdict is not None:
            told.setdefault(verdict.cause, verdict.message)
    rows = [f"| `{cause.value}` | `{told[cause].replace('|', '/')}` |\n" for cause in CLASSES]
    generated(ROOT / "docs" / "BOOT.md", "examples", "| cause | for example |\n|---|---|\n" + "".join(rows))
