"""What kernels print is told apart: faults in each form, panics, refusals; and what is no failure."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.boot.classes import CLASSES, Class, Fault
from skep.boot.diagnose import Observed, decoded, diagnose, read, registers
from skep.boot.grammar import LINE_MAX, Lines

MASTER = b"""Caught cap fault in send phase at address 0\r
while trying to handle:\r
%s\r
in thread 0xffffff8040f400 "rootserver" at address 0x401cf5\r
With stack:\r
0x405fb8: 0x0\r
"""
MCS = MASTER.replace(
    b"Caught cap fault in send phase at address 0\r\nwhile", b"Found thread has no fault handler while"
)
PRINTING = (
    b"Caught cap fault in send phase at address 0\r\nwhile trying to handle:\r\n%sat address 0x401c41\r\n"
)
FORMS = ((MASTER, 0x401CF5, "rootserver"), (MCS, 0x401CF5, "rootserver"), (PRINTING, 0x401C41, ""))
FAULTS = {
    b"vm fault on data at address 0x10 with status 0x4": ("vm data", 0x10, 0x4),
    b"vm fault on data at address 0 with status 0x6": ("vm data", 0, 0x6),
    b"vm fault on code at address 0x10 with status 0x82000006": ("vm code", 0x10, 0x82000006),
    b"vm fault on data at address 0xabcdef with status 0x9200004a": ("vm data", 0xABCDEF, 0x9200004A),
    b"cap fault in send phase at address 0": ("cap send", 0, None),
    b"cap fault in receive phase at address 0xa": ("cap receive", 0xA, None),
    b"unknown syscall 0x4d": ("syscall", None, 0x4D),
    b"user exception 0x6 code 0": ("exception", 0, 6),
    b"user exception 0xd code 0xa": ("exception", 0xA, 0xD),
    b"null fault": ("null", None, None),
    b"Timeout fault for 0xffffff8040f400": ("timeout", None, 0xFFFFFF8040F400),
    b"unknown fault": ("unknown", None, None),
}


@pytest.mark.parametrize(("said", "expected"), FAULTS.items())
def test_a_fault_is_read_in_every_form(said: bytes, expected: tuple[str, int | None, int | None]) -> None:
    kind, address, status = expected
    for form, pc, thread in (
        (MASTER, 0x401CF5, "rootserver"),
        (MCS, 0x401CF5, "rootserver"),
        (PRINTING, 0x401C41, ""),
    ):
        grammar = read([form % said]).grammar
        assert [each.cause for each in grammar.found] == [Class.USER_FAULT]
        assert grammar.found[0].fault == Fault(kind, address, pc, thread, status)


def test_a_timeout_fault_ends_its_own_line() -> None:
    grammar = read([MCS % b"Timeout fault for 0xffffff8040f400\r\n"]).grammar
    assert grammar.found[0].fault == Fault("timeout", None, 0x401CF5, "rootserver", 0xFFFFFF8040F400)


def test_the_end_of_a_status_is_not_the_beginning_of_what_follows() -> None:
    grammar = read([PRINTING % b"vm fault on data at address 0x10 with status 0x4"]).grammar
    assert grammar.found[0].fault == Fault("vm data", 0x10, 0x401C41, "", 0x4)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'seL4 called fail at /k/boot.c:1 in function init, saying "no memory', Class.KERNEL_PANIC),
        (b"seL4 failed assertion 'a <= b' at /k/x.c:97 in function retype", Class.KERNEL_PANIC),
        (b"KERNEL DATA ABORT!", Class.KERNEL_PANIC),
        (b"KERNEL PREFETCH ABORT!", Class.KERNEL_PANIC),
        (b"KERNEL INVALID VECTOR ENTRY!", Class.KERNEL_PANIC),
        (b"Kernel entry via Interrupt, irq 33", Class.KERNEL_PANIC),
        (b'Debug halt syscall from user thread 0x8 "a"', Class.KERNEL_PANIC),
        (b"Huge page not supported by the processor", Class.KERNEL_REJECT),
        (b"ERROR: Hashes are different", Class.KERNEL_REJECT),
        (b"halting...", Class.KERNEL_HALTED),
        (
            b'BdsDxe: failed to load Boot0001 "UEFI QEMU" from X: Access Denied',
            Class.SIGNATURE_INVALID,
        ),
    ],
)
def test_what_a_kernel_says_has_its_cause(line: bytes, cause: Class) -> None:
    verdict = diagnose(Observed(b"Booting\n" + line + b"\nhalting...\n", "told"), "x86_64")
    assert verdict.cause is cause


def test_what_is_no_failure_is_known() -> None:
    noise = (
        b'\x1b[0m\x1b[30;1m<<\x1b[32mseL4(CPU 0)\x1b[0m [decodeInvocation/643 T0xff8 "t" @401f12]: '
        b"Attempted to invoke a null cap #8191.>>\x1b[0m\r\n"
    )
    told = b"vm fault on data at address 0x10 with status 0x4 is a text of a test\r\n"
    grammar = read([noise * 919, told]).grammar
    assert grammar.found == []
    assert grammar.noise == 919


SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=5)
SOME = st.sampled_from(
    [
        MASTER % b"null fault",
        PRINTING % b"unknown syscall 0x4d",
        b"halting...\r\n",
        b"x" * 5000,
        b"\r\n",
        b"\xff\x1b[",
    ]
)


@given(st.lists(SOME | st.binary(max_size=20), max_size=5), SIZES)
def test_however_the_bytes_are_cut_the_same_is_read(parts: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(parts)
    whole = list(Lines().feed(stream))
    lines, found, rest = Lines(), [], stream
    for size in cycle(sizes):
        if not rest:
            break
        found += lines.feed(rest[:size])
        rest = rest[size:]
    assert found == whole
    assert all(len(line) <= LINE_MAX for line in whole)


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (Observed(b"", "exited", started=False, stderr="qemu: no such machine"), Class.QEMU_START_FAILED),
        (
            Observed(b"", "exited", started=False, stderr="Cannot load x86-64 image, give a 32bit one."),
            Class.KERNEL_REJECT,
        ),
        (Observed(b"", "reset"), Class.RESET),
        (Observed(b"", "deadline"), Class.NO_OUTPUT),
        (Observed(b"SeaBIOS (1.16)\r\nBooting from ROM..\r\n", "deadline", "root"), Class.FIRMWARE_STUCK),
        (Observed(b"Booting all\r\n", "deadline", "root"), Class.BOOT_TIMEOUT),
        (Observed(b"Booting all\r\n", "deadline", "", "ready"), Class.TEST_TIMEOUT),
        (Observed(b"x", "deadline", "a", registers={"HLT": "1", "RFL": "00000092"}), Class.KERNEL_HALTED),
        (Observed(b"x", "deadline", "a", registers={"PSTATE": "600003c5", "PC": "0a"}), Class.KERNEL_HALTED),
        (Observed(b"x\n", "exited", "root", exit_status=-9), Class.HARNESS_ERROR),
    ],
)  # fmt: skip
def test_what_nobody_printed_has_a_cause_too(seen: Observed, cause: Class) -> None:
    assert diagnose(seen, "x86_64").cause is cause


@pytest.mark.parametrize(
    ("fault", "arch", "meaning"),
    [
        (Fault("vm data", 0x10, 0x401C41, status=4), "x86_64", "by the user, read, not mapped"),
        (Fault("vm data", 0x10, 0x401C41, status=7), "x86_64", "by the user, write, not allowed"),
        (Fault("vm data", 0x10, 0x10, status=4), "x86_64", "fetch, not mapped"),
        (Fault("vm data", 0x10, 0x4010C0, status=0x92000006), "aarch64", "read, translation fault, level 2"),
        (Fault("vm data", 0x10, 0x4010C0, status=0x9200004F), "aarch64", "write, permission fault, level 3"),
        (Fault("vm code", 0x10, 0x10, status=0x82000006), "aarch64", "fetch, translation fault, level 2"),
        (Fault("exception", 0, 0x400010, status=6), "x86_64", "undefined instruction"),
        (Fault("exception", 0, 0x400010, status=0x2000000), "aarch64", "undefined instruction"),
    ],
)
def test_a_status_is_told_in_words(fault: Fault, arch: str, meaning: str) -> None:
    assert decoded(fault, arch, []).meaning == meaning


def test_registers_are_read_from_the_monitors_text() -> None:
    said = registers(
        "RAX=0000000000000000\nRIP=ffffffff80200123 RFL=00000092 [--S-A--] CPL=0 II=0 A20=1 HLT=1\n"
    )
    assert (said["RFL"], said["CPL"], said["HLT"]) == ("00000092", "0", "1")


def test_each_class_has_a_status_of_its_own() -> None:
    assert len({row.status for row in CLASSES.values()}) == len(Class) == len(CLASSES)
    assert {each for each in Class if each.row.retried} == {Class.QEMU_START_FAILED, Class.HARNESS_ERROR}
