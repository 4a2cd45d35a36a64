"""QEMU's log of exceptions: the last fault of user space is found, what is none is passed over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.boot.classes import Fault
from skep.boot.interrupts import Interrupts, in_words

PC, SP = "IP=002b:00000000004000af pc=00000000004000af", "SP=0023:0000000000408fd0"
X86 = {
    "page fault": f"     0: v=0e e=0004 i=0 cpl=3 {PC} {SP} CR2=0000000000000010\n",
    "undefined": f"     1: v=06 e=0000 i=0 cpl=3 {PC} {SP} env->regs[R_EAX]=0000000000000001\n",
    "timer": f"Servicing hardware INT=0x9d\n     2: v=9d e=0000 i=0 cpl=3 {PC} {SP} env->regs[R_EAX]=01\n",
    "system call": f"     3: v=80 e=0000 i=1 cpl=3 {PC} {SP} env->regs[R_EAX]=01\n",
    "floating point": f"     4: v=07 e=0000 i=0 cpl=3 {PC} {SP} env->regs[R_EAX]=01\n",
    "kernel": f"     5: v=0e e=0000 i=0 cpl=0 {PC} {SP} CR2=0000000000000020\n",
    "registers": "RAX=0000000000000001 RBX=0000000000404000\nSMM: enter\n",
}


def arm(name: str, status: int, level: int = 0, far: str = "...with FAR 0x10\n", pc: int = 0x4010C0) -> str:
    return (
        f"Taking exception 4 [{name}] on CPU 0\n...from EL{level} to EL1\n"
        f"...with ESR {status >> 26:#x}/{status:#x}\n{far}...with ELR {pc:#x}\n"
        "...to EL1 PC 0xffffffffc0000c00 PSTATE 0x3c5\n"
    )


BACK = "Exception return from AArch64 EL1 to AArch64 EL0 PC {:#x}\n"
ARM = {
    "data": arm("Data Abort", 0x92000006),
    "code": arm("Prefetch Abort", 0x82000006),
    "undefined": arm("Undefined Instruction", 0x2000000, far=""),
    "interrupt": "Taking exception 5 [IRQ] on CPU 0\n...from EL0 to EL1\n...with ESR 0x0/0x0\n"
    "...with ELR 0x400014\n...to EL1 PC 0xffffffffc0000c80 PSTATE 0x3c5\n",
    "system call": arm("SVC", 0x56000000, far=""),
    "floating point": arm("Undefined Instruction", 0x1FE00000, far=""),
    "kernel": arm("Data Abort", 0x96000045, level=1),
    "elsewhere": BACK.format(0x400014),
}


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        ("", None),
        (X86["page fault"], Fault("vm data", 0x10, 0x4000AF, status=4)),
        (X86["undefined"], Fault("exception", 0, 0x4000AF, status=6)),
        (X86["page fault"] + X86["undefined"], Fault("exception", 0, 0x4000AF, status=6)),
        (X86["timer"] + X86["system call"] + X86["floating point"] + X86["kernel"] + X86["registers"], None),
        (X86["page fault"] + 3 * X86["timer"] + X86["registers"], Fault("vm data", 0x10, 0x4000AF, status=4)),
        (ARM["data"], Fault("vm data", 0x10, 0x4010C0, status=0x92000006)),
        (ARM["code"], Fault("vm code", 0x10, 0x4010C0, status=0x82000006)),
        (ARM["undefined"], Fault("exception", 0, 0x4010C0, status=0x2000000)),
        (ARM["system call"] + ARM["interrupt"] + ARM["floating point"] + ARM["kernel"], None),
        (ARM["code"] + 2 * ARM["elsewhere"], Fault("vm code", 0x10, 0x4010C0, status=0x82000006)),
        # A pager maps the page, and the thread goes on where it was.
        (ARM["data"] + BACK.format(0x4010C0), None),
        (ARM["data"] + BACK.format(0x4010C4), None),
    ],
)  # fmt: skip
def test_the_last_fault_of_user_space_is_found(log: str, fault: Fault | None) -> None:
    told = Interrupts()
    told.feed(log.encode())
    assert told.fault == fault
    assert bool(told.lines) == (fault is not None)


def test_a_fault_is_told_as_the_kernel_would_tell_it() -> None:
    assert in_words(Fault("vm data", 0x10, 0x4000AF, status=4)) == (
        "vm fault on data at address 0x10 with status 0x4"
    )
    assert in_words(Fault("exception", 0, 0x4000AF, status=6)) == "user exception 0x6 code 0x0"


PARTS = st.sampled_from([*X86.values(), *ARM.values()]).map(str.encode)


@settings(deadline=None)
@given(st.lists(PARTS | st.binary(max_size=40), max_size=8), st.data())
def test_any_bytes_are_read_the_same_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    log = b"".join(parts)
    cut = data.draw(st.integers(0, len(log)))
    whole, halves = Interrupts(), Interrupts()
    whole.feed(log)
    halves.feed(log[:cut])
    halves.feed(log[cut:])
    assert (whole.fault, whole.lines) == (halves.fault, halves.lines)
    assert len(whole.lines) <= 8
