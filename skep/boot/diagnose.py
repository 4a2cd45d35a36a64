"""From everything that was seen of a boot to one named cause."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from skep.boot.classes import AFTER, BEFORE, Class, Fault, Verdict
from skep.boot.grammar import Finding, Grammar, Lines
from skep.boot.symbols import Symbols

# Of x86's error code: bit, when it is set, when it is not.
PAGE_FAULT_BITS: Final = (
    (2, "by the user", "by the kernel"),
    (1, "write", "read"),
    (0, "not allowed", "not mapped"),
)
VECTORS: Final = {0: "divide error", 3: "breakpoint", 6: "undefined instruction", 13: "general protection"}
# EC of aarch64's ESR, and the fault status below it.
CLASSES_OF_ESR: Final = {
    0x00: "undefined instruction",
    0x15: "system call",
    0x20: "fetch",
    0x24: "access",
    0x25: "access by the kernel",
}
STATUS_OF_ESR: Final = {0b0001: "translation", 0b0010: "access flag", 0b0011: "permission"}


class Observed(msgspec.Struct):
    """What was seen. ``ended``: "reached", "told" (a line told enough), "reset", "exited" or "deadline";
    ``waiting``: for what milestone, "": the expected end."""

    serial: bytes
    ended: str
    waiting: str = ""
    milestone: str = ""  # the last that was reached
    exit_status: int | None = None
    stderr: str = ""
    started: bool = True  # QEMU answered
    registers: dict[str, str] = {}


Rule = Callable[[Observed, Grammar], tuple[Class, str] | None]


def diagnose(seen: Observed, arch: str, symbols: Sequence[Symbols] = ()) -> Verdict:
    """The cause, with what shows it. The first rule that holds names it."""
    lines, grammar = read(seen.serial)
    for finding in _by_weight(grammar.found):
        return _told(finding, seen, arch, lines, symbols)
    for rule in RULES:
        if found := rule(seen, grammar):
            cause, message = found
            return Verdict(cause, message, seen.milestone, tuple(lines[-BEFORE:]), seen.registers)
    return Verdict(
        Class.HARNESS_ERROR, f"it ended as {seen.ended!r}, of which nothing is known", seen.milestone
    )


def read(serial: bytes) -> tuple[list[str], Grammar]:
    """The lines, and what they tell."""
    split, grammar = Lines(), Grammar()
    lines = list(split.feed(serial))
    if split.rest:
        lines.append(split.rest)
    for line in lines:
        grammar.read(line)
    grammar.end()
    return lines, grammar


def _by_weight(found: Iterable[Finding]) -> list[Finding]:
    """What halted comes after what says why, whichever was printed first."""
    return sorted(found, key=lambda finding: (finding.cause is Class.KERNEL_HALTED, finding.line))


def _told(
    finding: Finding, seen: Observed, arch: str, lines: Sequence[str], symbols: Sequence[Symbols]
) -> Verdict:
    shown = tuple(lines[max(finding.line - BEFORE, 0) : finding.line + AFTER + 1])
    fault, message = finding.fault, finding.text
    if message.count('"') == 1:  # what the kernel says may have two lines
        message = " ".join([message, *lines[finding.line + 1 : finding.line + 2]])
    if fault is not None:
        fault = decoded(fault, arch, symbols)
        message = " ".join(
            filter(
                None,
                (finding.text, fault.where and f"in {fault.where}", fault.meaning and f"({fault.meaning})"),
            )
        )
    elif message.startswith("boot_sys failed") and finding.line:
        message = f"{lines[finding.line - 1]}: {message}"
    return Verdict(finding.cause, message, seen.milestone, shown, seen.registers, fault)


def decoded(fault: Fault, arch: str, symbols: Sequence[Symbols]) -> Fault:
    """With its status in words and its place by name."""
    where = next(filter(None, (each.place(fault.pc) for each in symbols)), "") if fault.pc is not None else ""
    return msgspec.structs.replace(fault, where=where, meaning=_meaning(fault, arch))


def _meaning(fault: Fault, arch: str) -> str:
    kind, status = fault.kind.partition(" ")[0], fault.status
    if status is None:
        return ""
    if arch == "aarch64" and kind in ("vm", "exception"):
        said = CLASSES_OF_ESR.get(status >> 26, "")
        if kind == "exception":
            return said
        write = "write" if status >> 6 & 1 and status >> 26 == 0x24 else "read"
        why = STATUS_OF_ESR.get(status >> 2 & 0xF, "")
        doing = "fetch" if said == "fetch" else write
        return f"{doing}, {why} fault, level {status & 3}" if why else doing
    if kind == "exception":
        return VECTORS.get(status, "")
    if kind != "vm":
        return ""
    # No NX bit: x86 calls a fetch data.
    if fault.address == fault.pc:
        return "fetch, " + ("not allowed" if status & 1 else "not mapped")
    return ", ".join(yes if status >> bit & 1 else no for bit, yes, no in PAGE_FAULT_BITS)


# what nobody printed


def _not_started(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    if seen.started:
        return None
    _, told = read(seen.stderr.encode() + b"\n")
    refused = next((each for each in told.found if each.cause is Class.KERNEL_REJECT), None)
    if refused is not None:
        return Class.KERNEL_REJECT, f"qemu: {refused.text}"
    return Class.QEMU_START_FAILED, seen.stderr.strip() or f"QEMU ended with status {seen.exit_status}"


def _reset(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    return (
        (Class.RESET, "the machine was reset, QEMU's status is 0 all the same")
        if seen.ended == "reset"
        else None
    )


def _died(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    if seen.ended != "exited":
        return None
    return Class.HARNESS_ERROR, f"QEMU ended with status {seen.exit_status}: {seen.stderr.strip()[-400:]}"


def _halted(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    if seen.ended == "deadline" and is_halted(seen.registers):
        return Class.KERNEL_HALTED, "the processor is halted with interrupts off"
    return None


def _silent(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    if seen.milestone or grammar.guest:
        return None
    if grammar.firmware:
        return Class.FIRMWARE_STUCK, f"{grammar.firmware} lines of firmware, none of the image"
    return Class.NO_OUTPUT, "nothing was printed"


def _late(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    spinning = " (a user thread runs)" if runs_user(seen.registers) else ""
    if seen.waiting:
        return Class.BOOT_TIMEOUT, f"{seen.waiting} was not reached{spinning}"
    return Class.TEST_TIMEOUT, f"all milestones were reached, the expected end was not{spinning}"


RULES: Final[tuple[Rule, ...]] = (_not_started, _reset, _died, _halted, _silent, _late)


# registers, as QEMU's monitor tells them


def registers(text: str) -> dict[str, str]:
    """Name and value of each, in hex."""
    found = dict(re.findall(r"\b([A-Z][A-Z0-9]{1,5})\s*=\s*([0-9a-f]{2,16})\b", text))
    for flag in ("CPL", "II", "HLT", "IF"):
        if match := re.search(rf"\b{flag}=(\d)", text):
            found[flag] = match[1]
    return found


def is_halted(said: dict[str, str]) -> bool:
    """x86: hlt with interrupts off; aarch64: at one instruction of the kernel, all exceptions masked."""
    if "PSTATE" in said:
        return "PC" in said and int(said["PSTATE"], 16) & 0x3CF == 0x3C5
    flags = int(said.get("RFL", said.get("EFL", "200")), 16)
    return said.get("HLT") == "1" and not flags & 0x200


def runs_user(said: dict[str, str]) -> bool:
    if "PSTATE" in said:
        return int(said["PSTATE"], 16) & 0xF == 0
    return said.get("CPL") == "3"
