"""From everything that was seen of a boot to one named cause."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from skep.boot.classes import AFTER, BEFORE, Class, Fault, Verdict
from skep.boot.grammar import OPEN_LINES, PREFACE_LINES, Finding, Grammar, Lines
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
    0x21: "fetch",
    0x24: "access",
    0x25: "access",
}
ARCHES: Final = {"EM_X86_64": "x86_64", "EM_386": "x86_64", "EM_AARCH64": "aarch64"}
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


KEPT: Final = BEFORE + AFTER + OPEN_LINES + PREFACE_LINES  # lines of which the ones that are shown are taken


class Reading:
    """A log, read as it comes: what it tells, and the lines around what tells. Takes a bounded memory."""

    def __init__(self, expected: Sequence[str] = ()) -> None:
        self.grammar = Grammar()
        self.missing = list(expected)  # regular expressions of lines that have not come yet
        self.reached = ""  # the last of them that came
        self._lines = Lines()
        self._last: deque[str] = deque(maxlen=KEPT)
        self._shown: dict[int, tuple[str, ...]] = {}  # by the number of the line that tells

    def feed(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._take(line)

    def end(self) -> None:
        """No more comes."""
        if rest := self._lines.rest:
            self._take(rest)
        self.grammar.end()
        for finding in self.grammar.found:
            self._show(finding)

    def _take(self, line: str) -> None:
        self._last.append(line)
        self.grammar.read(line)
        if self.missing and re.search(self.missing[0], line):
            self.reached = self.missing.pop(0)
        if len(self._shown) < len(self.grammar.found):
            for finding in self.grammar.found:
                if self.grammar.lines > finding.line + AFTER:
                    self._show(finding)

    def _show(self, finding: Finding) -> None:
        if finding.line not in self._shown:
            first = self.grammar.lines - len(self._last)  # the number of the first that is kept
            begin = max(finding.line - BEFORE - first, 0)
            self._shown[finding.line] = tuple(self._last)[begin : finding.line - first + AFTER + 1]

    def around(self, finding: Finding) -> tuple[tuple[str, ...], int]:
        """The lines that show it, and which of them tells."""
        return self._shown[finding.line], min(finding.line, BEFORE)

    @property
    def last(self) -> tuple[str, ...]:
        """Its last lines."""
        return tuple(self._last)[-BEFORE:]


def read(data: Iterable[bytes], expected: Sequence[str] = ()) -> Reading:
    """A log in pieces, whole. ``expected``: lines that must come, in this order, as regular expressions."""
    reading = Reading(expected)
    for piece in data:
        reading.feed(piece)
    reading.end()
    return reading


def diagnose(seen: Observed, arch: str, symbols: Sequence[Symbols] = ()) -> Verdict:
    """The cause, with what shows it. The first rule that holds names it."""
    return judged(read([seen.serial]), seen, arch, symbols)


def judged(reading: Reading, seen: Observed, arch: str, symbols: Sequence[Symbols]) -> Verdict:
    """The same of a log that has been read."""
    for finding in _by_weight(reading.grammar.found):
        return _told(finding, seen, arch, reading, symbols)
    for rule in RULES:
        if found := rule(seen, reading.grammar):
            cause, message = found
            return Verdict(cause, message, seen.milestone, reading.last, seen.registers)
    return Verdict(
        Class.HARNESS_ERROR, f"it ended as {seen.ended!r}, of which nothing is known", seen.milestone
    )


def of_log(reading: Reading, arch: str, symbols: Sequence[Symbols]) -> Verdict | None:
    """The cause that a log tells, where nobody saw more than the log. None: nothing is wrong with it."""
    grammar, missing = reading.grammar, reading.missing
    if not grammar.found and grammar.guest and not missing:
        return None
    if missing and grammar.speaker == "user" and not grammar.found:
        said = f"it has booted, {missing[0]!r} was not printed"
        return Verdict(Class.TEST_TIMEOUT, said, reading.reached, reading.last)
    waiting = f"a line of {missing[0]!r}" if missing else ""
    return judged(reading, Observed(b"", "deadline", waiting, reading.reached), arch, symbols)


def arch_of(reading: Reading, symbols: Sequence[Symbols]) -> str:
    """That of the files, else the one whose statuses these are: aarch64's have a class in their high bits."""
    for each in symbols:
        if each.machine in ARCHES:
            return ARCHES[each.machine]
    told = [each.fault.status or 0 for each in reading.grammar.found if each.fault is not None]
    return "aarch64" if any(1 << 24 < status < 1 << 32 for status in told) else "x86_64"


def _by_weight(found: Iterable[Finding]) -> list[Finding]:
    """What halted or began again comes after what says why, whichever was printed first."""
    late = (Class.KERNEL_HALTED, Class.RESET)
    return sorted(found, key=lambda finding: (finding.cause in late, finding.line))


def _told(
    finding: Finding, seen: Observed, arch: str, reading: Reading, symbols: Sequence[Symbols]
) -> Verdict:
    shown, at = reading.around(finding)
    fault, message = finding.fault, finding.text
    if message.count('"') == 1:  # what the kernel says may have two lines
        message = " ".join([message, *shown[at + 1 : at + 2]])
    if fault is not None:
        fault = decoded(fault, arch, symbols)
        if finding.cause is Class.KERNEL_PANIC and fault.address is not None:
            message = f"{message} at address {fault.address:#x}"
        message = worded(message, fault)
    elif message.startswith("boot_sys failed") and at:
        message = f"{shown[at - 1]}: {message}"
    return Verdict(finding.cause, message, seen.milestone, shown, seen.registers, fault)


def worded(message: str, fault: Fault) -> str:
    """What is told of a fault, and what was found of it."""
    more = (fault.where and f"in {fault.where}", fault.meaning and f"({fault.meaning})")
    return " ".join(filter(None, (message, *more)))


def decoded(fault: Fault, arch: str, symbols: Sequence[Symbols]) -> Fault:
    """With its status in words and its place by name."""
    where = next(filter(None, (each.place(fault.pc) for each in symbols)), "") if fault.pc is not None else ""
    return msgspec.structs.replace(fault, where=where, meaning=_meaning(fault, arch))


def _meaning(fault: Fault, arch: str) -> str:
    kind, status = fault.kind.partition(" ")[0], fault.status
    if status is None:
        return ""
    if arch == "aarch64" and kind in ("vm", "exception", "kernel"):
        said = CLASSES_OF_ESR.get(status >> 26, "")
        if kind == "exception":
            return said
        write = "write" if status >> 6 & 1 and said == "access" else "read"
        why = STATUS_OF_ESR.get(status >> 2 & 0xF, "")
        doing = "fetch" if said == "fetch" else write
        return f"{doing}, {why} fault, level {status & 3}" if why else doing
    if kind == "exception":
        return VECTORS.get(status, "")
    if kind not in ("vm", "kernel"):
        return ""
    # No NX bit: x86 calls a fetch data.
    if fault.address == fault.pc:
        return "fetch, " + ("not allowed" if status & 1 else "not mapped")
    return ", ".join(yes if status >> bit & 1 else no for bit, yes, no in PAGE_FAULT_BITS)


# what nobody printed


def _not_started(seen: Observed, grammar: Grammar) -> tuple[Class, str] | None:
    if seen.started:
        return None
    told = read([seen.stderr.encode()])
    refused = next((each for each in told.grammar.found if each.cause is Class.KERNEL_REJECT), None)
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
