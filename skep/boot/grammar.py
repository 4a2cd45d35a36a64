"""What seL4 and its loaders print when something is wrong, as tables over lines; and what only looks like it.

A line may lack its end where a kernel prints without debug: ``status 0x4at address 0x401c41``. ``%p`` of zero
is 0. Lines end in CRLF, and errors of users are coloured."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from msgspec.structs import replace

from skep.boot.classes import Class, Fault

LINE_MAX: Final = 4096  # bytes; a longer line is several
PREFACE_LINES: Final = 2  # a fault is told within so many lines of what announces it
OPEN_LINES: Final = 8  # and its thread, or the registers of an abort, within so many of it

_ESCAPE: Final = re.compile(rb"\x1b\[[0-?]*[@-~]")
# Whoever keeps a log of hardware likes to put the time before each line.
_STAMP: Final = re.compile(
    r"^(?:\[[ 0-9.:,T/+-]{4,40}Z?\]|\d{4}-\d\d-\d\d[ T][\d:.,+Z-]+"
    r"|(?:\w{3} [ \d]\d )?\d\d:\d\d:\d\d[.,\d]*)\s+"
)
_AT: Final = r"(?:at address (?P<pc>0x[0-9a-f]+|0))?$"
_N: Final = r"(?:0x[0-9a-f]+?|\d+?)"

# What a terminal would obey, is shown and not obeyed.
_SHOWN: Final = bytes(ord("?") if (code < 32 and code != 9) or code == 127 else code for code in range(256))
_C1: Final = re.compile("[\x80-\x9f\u2028-\u202e]")

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

ABORT: Final = re.compile(r"KERNEL (DATA|PREFETCH) ABORT!")
# Of what follows it; the names are those of Fault.
_ABORT_SAYS: Final = tuple(
    (name, re.compile(pattern + r": (0x[0-9a-f]+|0)\b"))
    for name, pattern in (
        ("pc", r"Faulting instruction"),
        ("address", r"\bFAR"),
        ("status", r"\b(?:ESR \([DI]FSR\)|ESR|[DI]FSR)"),
    )
)

TOLD: Final = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        (Class.KERNEL_PANIC, r"seL4 called fail at \S+ in function \w+, saying .*"),
        (Class.KERNEL_PANIC, r"seL4 failed assertion '.*' at \S+ in function \w+"),
        (Class.KERNEL_PANIC, r"KERNEL INVALID VECTOR ENTRY!"),
        # Said after halting: how the kernel was entered when it failed.
        (Class.KERNEL_PANIC, r"Kernel entry via .*"),
        (Class.KERNEL_PANIC, r"Debug halt syscall from user thread.*"),
        # UEFI's own handlers, of an image that has none yet.
        (Class.KERNEL_PANIC, r"X64 Exception Type - .*?\)"),
        (Class.KERNEL_PANIC, r"^Synchronous Exception at 0x[0-9A-F]+"),
        (Class.SIGNATURE_INVALID, r"BdsDxe: failed to load .*: (?:Access Denied|Security Violation)"),
        (Class.KERNEL_REJECT, r"Huge page not supported by the processor"),
        (Class.KERNEL_REJECT, r"reserved region \d+ in wrong order.*"),
        (Class.KERNEL_REJECT, r"^ERROR: .*"),
        (Class.KERNEL_REJECT, r"abort\(\) called\."),
        (Class.KERNEL_REJECT, r"boot_sys failed.*"),
        (Class.KERNEL_REJECT, r"Cannot load x86-64 image.*"),
        (Class.KERNEL_REJECT, r"Error loading uncompressed kernel.*"),
        (Class.KERNEL_REJECT, r"Invalid ELF.*|.*must be 4KB-aligned.*"),
        (Class.KERNEL_HALTED, r"^halting\.\.\."),
    )
)  # fmt: skip
# Words of loaders and starting kernels: whoever says the same later, is somebody else.
EARLY: Final = re.compile(r"^ERROR: |abort\(\) called\.")
# Who speaks next. A release kernel says nothing of itself, so that user space comes after the jump.
SPEAKERS: Final = (
    # Of boards: all is firmware from its banner until it starts what it has loaded.
    ("board", re.compile(r"^U-Boot (?:SPL )?\d|^NOTICE: +BL\d")),
    ("early", re.compile(r"^Bootstrapping kernel|^## Starting application|^Starting kernel")),
    ("user", re.compile(r"dropped to user space")),
    ("jumped", re.compile(r"[Jj]umping to (?:kernel-image )?entry")),
)
# The first words of an image, of which a boot has one.
START: Final = re.compile(r"^ELF-loader started|^Kernel loaded to: start=")
FIRMWARE: Final = re.compile(
    r"SeaBIOS|iPXE|^Booting from|BdsDxe|UEFI|EDK II|qboot|^## Starting application|^Starting kernel"
)
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

    def feed(self, data: bytes) -> list[str]:
        data = self._rest + data
        found: list[str] = []
        at = 0
        while True:
            end = data.find(b"\n", at, at + LINE_MAX + 1)
            if end < 0 and len(data) - at <= LINE_MAX:
                self._rest = data[at:]
                return found
            found.append(plain(data[at : end if end >= 0 else at + LINE_MAX]))
            at = end + 1 if end >= 0 else at + LINE_MAX

    @property
    def rest(self) -> str:
        """What has no end yet."""
        return plain(self._rest)


def plain(line: bytes) -> str:
    """As text. Some ends of lines are turned round, and a port that is switched on says NUL."""
    if b"\x1b" in line:
        line = _ESCAPE.sub(b"", line)
    text = line.strip(b"\r\0").translate(_SHOWN).decode("utf-8", "replace")
    return text if text.isascii() else _C1.sub("\ufffd", text)


# A line without any of these tells nothing: most lines of a long log are asked this alone.
_CUE: Final = re.compile(
    "fault|syscall|xception|handle:|seL4|KERNEL|Kernel |halt|Huge|ERROR|abort|boot_sys|Cannot|loading|ELF"
    "|4KB|region|Bds|Boot|Starting|NOTICE|SeaBIOS|iPXE|UEFI|EDK|qboot|null cap|umping|dropped"
)
_WORD: Final = re.compile(r"\w")


class Grammar:
    """Reads lines in order and keeps what they tell: of each cause the first."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.firmware = 0  # lines of it
        self.guest = 0  # lines of anything else
        self.noise = 0  # lines that look like a failure and are none
        self.boots = 0  # images that began, where they say so
        self.lines = 0
        self._announced = -PREFACE_LINES - 1
        self.speaker = "early"  # or "board", "jumped" to the kernel, "user" for sure
        self._open: Finding | None = None  # that the next lines may continue

    def read(self, line: str) -> None:
        self.lines += 1
        if self._open is None and not _CUE.search(line):
            self._count(line, self.speaker == "board")
            return
        line = _STAMP.sub("", line)
        if START.search(line):
            self._start(line)
        self.speaker = next((name for name, each in SPEAKERS if each.search(line)), self.speaker)
        self._count(line, self.speaker == "board" or bool(FIRMWARE.search(line)))
        if NOISE.search(line):
            self.noise += 1
        elif self._open is None or not self._continues(line):
            self._tell(line)

    def end(self) -> None:
        """No more lines come."""
        self._close()

    def _count(self, line: str, firmware: bool) -> None:
        if firmware:
            self.firmware += 1
        elif _WORD.search(line):
            self.guest += 1

    def _start(self, line: str) -> None:
        self.boots += 1
        self.speaker = "early"
        if self.boots == 2:
            self._keep(Finding(Class.RESET, self.lines - 1, f"it began again: {line}"))

    def _tell(self, line: str) -> None:
        number = self.lines - 1
        if any(preface.search(line) for preface in PREFACES):
            self._announced = number
        elif number - self._announced <= PREFACE_LINES and self._is_fault(line):
            pass
        elif match := ABORT.search(line):
            kind = "kernel data" if match[1] == "DATA" else "kernel fetch"
            self._open = Finding(Class.KERNEL_PANIC, number, match[0], Fault(kind))
        else:
            late = self.speaker != "early"
            for cause, pattern in TOLD:
                if (match := pattern.search(line)) and not (late and EARLY.search(match[0])):
                    self._keep(Finding(cause, number, match[0]))
                    return

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
                # Where the thread's own place follows without a space, it is told apart.
                text = match[0] if fault.pc is None else match[0].rpartition("at address ")[0].rstrip()
                self._open = Finding(Class.USER_FAULT, self.lines - 1, text, fault)
                if fault.pc is not None:
                    self._close()
                return True
        return False

    def _continues(self, line: str) -> bool:
        """Whether the line has more of what is open: the thread of a fault, the registers of an abort."""
        assert self._open is not None
        finding, fault = self._open, self._open.fault
        assert fault is not None
        if self.lines - finding.line > OPEN_LINES:
            self._close()
            return False
        if not line:
            return True
        if finding.cause is Class.KERNEL_PANIC:
            said = {name: int(match[1], 0) for name, each in _ABORT_SAYS if (match := each.search(line))}
            if said:
                self._open = finding._replace(fault=replace(fault, **said))
                return True
        elif match := THREAD.match(line):
            thread = match["name"] or match["thread"] or ""
            self._open = finding._replace(fault=replace(fault, pc=_number(match["pc"]), thread=thread))
            self._close()
            return True
        self._close()
        return False

    def _close(self) -> None:
        if self._open is not None:
            self._keep(self._open)
            self._open = None

    def _keep(self, finding: Finding) -> None:
        if all(each.cause is not finding.cause for each in self.found):
            self.found.append(finding)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text, 0)
