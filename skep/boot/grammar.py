"""What seL4 and its loaders print when something is wrong, as tables over lines; and what only looks like it.

A line may lack its end where a kernel prints without debug: ``status 0x4at address 0x401c41``. ``%p`` of zero
is 0. Lines end in CRLF, and errors of users are coloured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from skep.boot.classes import Class, Fault

LINE_MAX: Final = 4096  # bytes; a longer line is several
PREFACE_LINES: Final = 2  # a fault is told within so many lines of what announces it

_ESCAPE: Final = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_AT: Final = r"(?:at address (?P<pc>0x[0-9a-f]+|0))?$"
_N: Final = r"(?:0x[0-9a-f]+?|\d+?)"

PREFACES: Final = (
    re.compile(r"while trying to handle:$"),
    re.compile(r"Caught (?:cap|vm|null|user|unknown|Timeout).*fault"),
)
# The group names are those of Fault. Lazy numbers: what follows without a space may begin with a hex digit.
FAULTS: Final = tuple(
    (kind, re.compile(pattern + _AT))
    for kind, pattern in (
        ("vm", rf"vm fault on (?P<on>code|data) at address (?P<address>{_N}) with status (?P<status>{_N})"),
        ("cap", rf"cap fault in (?P<on>send|receive) phase at address (?P<address>{_N})"),
        ("syscall", rf"unknown syscall (?P<status>{_N})"),
        ("exception", rf"user exception (?P<status>{_N}) code (?P<address>{_N})"),
        ("null", r"null fault"),
        ("timeout", rf"Timeout fault for (?P<status>{_N})"),
        ("unknown", r"unknown fault"),
    )
)
THREAD: Final = re.compile(
    r'^(?:in thread (?P<thread>0x[0-9a-f]+|0)(?: "(?P<name>[^"]*)")? )?at address (?P<pc>0x[0-9a-f]+|0)$'
)

TOLD: Final = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        (Class.KERNEL_PANIC, r"seL4 called fail at \S+ in function \w+, saying .*"),
        (Class.KERNEL_PANIC, r"seL4 failed assertion '.*' at \S+ in function \w+"),
        (Class.KERNEL_PANIC, r"KERNEL (?:DATA ABORT|PREFETCH ABORT|INVALID VECTOR ENTRY)!"),
        (Class.KERNEL_PANIC, r"Kernel entry via .*"),
        (Class.KERNEL_PANIC, r"Debug halt syscall from user thread.*"),
        (Class.SIGNATURE_INVALID, r"BdsDxe: failed to load .*: (?:Access Denied|Security Violation)"),
        (Class.KERNEL_REJECT, r"Huge page not supported by the processor"),
        (Class.KERNEL_REJECT, r"^ERROR: .*"),
        (Class.KERNEL_REJECT, r"abort\(\) called\."),
        (Class.KERNEL_REJECT, r"boot_sys failed.*"),
        (Class.KERNEL_REJECT, r"Cannot load x86-64 image.*"),
        (Class.KERNEL_REJECT, r"Error loading uncompressed kernel.*"),
        (Class.KERNEL_REJECT, r"Invalid ELF.*|.*must be 4KB-aligned.*"),
        (Class.KERNEL_REJECT, r".*reserved region \d+ in wrong order.*"),
        (Class.KERNEL_HALTED, r"^halting\.\.\.$"),
    )
)  # fmt: skip
FIRMWARE: Final = re.compile(r"SeaBIOS|iPXE|^Booting from|BdsDxe|UEFI|EDK II|qboot")
# 919 of them in a run of sel4test that passes.
NOISE: Final = re.compile(r"Attempted to invoke a null cap|^<<seL4\(CPU \d+\)")


class Finding(NamedTuple):
    """``line``: the number of the line that tells, from 0."""

    cause: Class
    line: int
    text: str
    fault: Fault | None = None


class Lines:
    """Takes bytes cut anywhere and gives whole lines, without ends and colours. The same for any cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        self._rest += data
        while True:
            end = self._rest.find(b"\n", 0, LINE_MAX + 1)
            if end < 0:
                if len(self._rest) <= LINE_MAX:
                    return
                end = LINE_MAX
                line, self._rest = self._rest[:end], self._rest[end:]
            else:
                line, self._rest = self._rest[:end], self._rest[end + 1 :]
            yield plain(line)

    @property
    def rest(self) -> str:
        """What has no end yet."""
        return plain(self._rest)


def plain(line: bytes) -> str:
    return _ESCAPE.sub(b"", line).rstrip(b"\r").decode("utf-8", "replace")


class Grammar:
    """Reads lines in order and keeps what they tell: of each cause the first."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.firmware = 0  # lines of it
        self.guest = 0  # lines of anything else
        self._line = -1
        self._announced = -PREFACE_LINES - 1
        self._fault: Finding | None = None  # that may be continued

    def read(self, line: str) -> None:
        self._line += 1
        if FIRMWARE.search(line):
            self.firmware += 1
        elif line.strip() and any(ch.isalnum() for ch in line):
            self.guest += 1
        if NOISE.search(line):
            return
        if self._fault is not None and self._continues(line):
            return
        if any(preface.search(line) for preface in PREFACES):
            self._announced = self._line
            return
        if self._line - self._announced <= PREFACE_LINES and self._is_fault(line):
            return
        for cause, pattern in TOLD:
            if match := pattern.search(line):
                self._keep(Finding(cause, self._line, match[0]))
                return

    def end(self) -> None:
        """No more lines come."""
        if self._fault is not None:
            self._keep(self._fault)
            self._fault = None

    def _is_fault(self, line: str) -> bool:
        for kind, pattern in FAULTS:
            if match := pattern.search(line):
                said = match.groupdict()
                fault = Fault(
                    f"{kind} {said['on']}" if said.get("on") else kind,
                    _number(said.get("address")),
                    _number(said.get("pc")),
                    status=_number(said.get("status")),
                )
                finding = Finding(Class.USER_FAULT, self._line, match[0], fault)
                if fault.pc is None:
                    self._fault = finding
                else:
                    self._keep(finding)
                return True
        return False

    def _continues(self, line: str) -> bool:
        """Whether the line has the thread of the fault before it."""
        assert self._fault is not None
        finding, fault = self._fault, self._fault.fault
        assert fault is not None
        if match := THREAD.match(line):
            told = Fault(
                fault.kind,
                fault.address,
                _number(match["pc"]),
                match["name"] or match["thread"] or "",
                fault.status,
            )
            self._keep(finding._replace(fault=told))
        elif not line:
            return True
        else:
            self._keep(finding)
        self._fault = None
        return bool(match)

    def _keep(self, finding: Finding) -> None:
        if all(each.cause is not finding.cause for each in self.found):
            self.found.append(finding)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text, 0)
