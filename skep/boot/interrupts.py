"""What QEMU logs of exceptions with ``-d int``: the last fault of user space that nobody handled.

It is asked of a second boot, of a guest that says nothing. Interrupts and system calls are no faults, nor is
what is trapped to give a thread the floating point unit. Formats as of QEMU 7.2."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Final

from skep.boot.classes import Fault
from skep.boot.grammar import Lines

_X86: Final = re.compile(
    r"^ *\d+: v=(?P<vector>[0-9a-f]{2}) e=(?P<error>[0-9a-f]{4}) i=(?P<software>[01]) cpl=(?P<level>[0-3])"
    r" .*\bpc=(?P<pc>[0-9a-f]+)(?:.*\bCR2=(?P<address>[0-9a-f]+))?"
)
PAGE_FAULT: Final = 14
DOUBLE_FAULT: Final = 8  # an exception that cannot be taken; where it cannot be either, the machine is reset
LAST: Final = 3  # exceptions that lead to a reset
INTERRUPTS: Final = 0x20  # x86: vectors from here on are interrupts
NO_FAULTS: Final = (2, 7)  # x86: NMI, and no floating point unit

_ARM: Final = re.compile(
    r"^(?:Taking exception \d+ \[(?P<name>[^\]]*)\]|\.\.\.from EL(?P<level>\d)"
    r"|\.\.\.with ESR 0x[0-9a-f]+/0x(?P<status>[0-9a-f]+)|\.\.\.with FAR 0x(?P<address>[0-9a-f]+)"
    r"|\.\.\.with ELR 0x(?P<pc>[0-9a-f]+)|(?P<entered>\.\.\.to EL)"
    r"|Exception return from AArch64 EL\d to AArch64 EL0 PC 0x(?P<back>[0-9a-f]+))"
)
# The class of an exception, in the high bits of its ESR.
KINDS: Final = {0x20: "vm code", 0x24: "vm data"}
HANDLED: Final = (0x07, 0x15, 0x16, 0x17)  # floating point; system calls of three kinds


class Interrupts:
    """Takes the log in pieces. ``fault``: the last of user space, None: there is none; ``lines``: its own."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.lines: tuple[str, ...] = ()
        self.last: deque[tuple[int, int, str]] = deque(maxlen=LAST)  # x86's exceptions: vector, pc, as logged
        self.delivered: Counter[int] = Counter()  # interrupts, by x86's vector; aarch64 has one, 0
        self._split = Lines()
        self._said: dict[str, str] = {}  # of aarch64's exception that is being told
        self._told: list[str] = []

    def feed(self, data: bytes) -> None:
        for line in self._split.feed(data):
            # Most lines are registers.
            if ": v=" in line and (match := _X86.match(line)):
                self._x86(match, line)
            elif line[:3] in ("Tak", "...", "Exc") and (match := _ARM.match(line)):
                self._arm(match, line)

    @property
    def triple(self) -> int | None:
        """Where a triple fault has reset the machine; None: it was something else."""
        return self.last[-1][1] if self.last and self.last[-1][0] == DOUBLE_FAULT else None

    def _x86(self, match: re.Match[str], line: str) -> None:
        vector, error = int(match["vector"], 16), int(match["error"], 16)
        if vector >= INTERRUPTS and match["software"] == "0":
            self.delivered[vector] += 1
        if vector < INTERRUPTS:
            self.last.append((vector, int(match["pc"], 16), line.strip()))
        if match["level"] != "3" or match["software"] == "1" or vector >= INTERRUPTS or vector in NO_FAULTS:
            return
        pc = int(match["pc"], 16)
        if vector == PAGE_FAULT and match["address"]:
            self.fault = Fault("vm data", int(match["address"], 16), pc, status=error)
        else:
            self.fault = Fault("exception", error, pc, status=vector)
        self.lines = (line.strip(),)

    def _arm(self, match: re.Match[str], line: str) -> None:
        said = {name: value for name, value in match.groupdict().items() if value is not None}
        if "back" in said:
            # Where it goes on after a fault, or behind it, the fault was handled.
            if self.fault is not None and self.fault.pc in (int(said["back"], 16), int(said["back"], 16) - 4):
                self.fault, self.lines = None, ()
            return
        if "name" in said:
            self._said, self._told = {}, []
        if not self._said and "name" not in said:
            return
        self._said |= said
        self._told = [*self._told, line][-8:]
        if "entered" in said:
            self._entered()

    def _entered(self) -> None:
        said = self._said
        if said.get("name") in ("IRQ", "FIQ"):
            self.delivered[0] += 1
            return
        if said.get("level") != "0" or not {"status", "pc"} <= said.keys():
            return
        status, pc = int(said["status"], 16), int(said["pc"], 16)
        if status >> 26 in HANDLED:
            return
        kind = KINDS.get(status >> 26, "exception")
        address = int(said.get("address", "0"), 16)
        self.fault = Fault(kind, address, pc, status=status)
        self.lines = tuple(self._told)


def in_words(fault: Fault) -> str:
    """As a kernel that prints would have told it."""
    kind, _, on = fault.kind.partition(" ")
    if kind == "vm":
        return f"vm fault on {on} at address {fault.address:#x} with status {fault.status:#x}"
    return f"user exception {fault.status:#x} code {fault.address:#x}"
