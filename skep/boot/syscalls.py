"""Numbers of seL4's system calls, by kind of kernel; and whether a generated header has the same.

Every kernel numbers them from -1 down in one order; which are there is a matter of its configuration. Source:
libsel4's api/syscall.xml, and the headers generated from it for x86_64 and aarch64, debug and release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

HEADER_MAX: Final = 1 << 20  # characters; a generated header has some thousand
# The calls of the interface, in order.
CALLS: Final = {
    "master": ("Call", "ReplyRecv", "Send", "NBSend", "Recv", "Reply", "Yield", "NBRecv"),
    "mcs": (
        "Call", "ReplyRecv", "NBSendRecv", "NBSendWait", "Send", "NBSend", "Recv", "NBRecv", "Wait", "NBWait",
        "Yield",
    ),
}  # fmt: skip
# Those that follow them in every kind.
OTHERS: Final = (
    "DebugPutChar", "DebugDumpScheduler", "DebugHalt", "DebugCapIdentify", "DebugSnapshot", "DebugNameThread",
    "DebugSendIPI", "DebugGetThreadAffinity", "DebugRun",
    "BenchmarkFlushCaches", "BenchmarkResetLog", "BenchmarkFinalizeLog", "BenchmarkSetLogBuffer",
    "BenchmarkNullSyscall", "BenchmarkGetThreadUtilisation", "BenchmarkResetThreadUtilisation",
    "BenchmarkDumpAllThreadsUtilisation", "BenchmarkResetAllThreadsUtilisation",
    "X86DangerousWRMSR", "X86DangerousRDMSR", "VMEnter", "SetTLSBase",
)  # fmt: skip

# As libsel4 and as the kernel write it: in an enum, or as a macro.
_NUMBERED: Final = re.compile(
    r"\b(?:seL4_)?Sys(?P<name>[A-Z]\w*)\s*=\s*\(?\s*(?P<value>-?\s*\d+)"
    r"|^[ \t]*#[ \t]*define[ \t]+(?:seL4_)?Sys(?P<macro>[A-Z]\w*)[ \t]+\(?[ \t]*(?P<of>-?[ \t]*\d+)",
    re.MULTILINE,
)
_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call whose number is another; ``expected`` None: no kernel of this kind has it."""

    name: str
    found: int
    expected: int | None = None

    @property
    def text(self) -> str:
        if self.expected is None:
            return f"{self.name} is {self.found}, a call that is not known"
        return f"{self.name} is {self.found}, expected {self.expected}"


def numbers(kind: str) -> dict[str, int]:
    """By name, from -1 down."""
    return {name: -number for number, name in enumerate(CALLS[kind] + OTHERS, 1)}


def read_header(text: str) -> dict[str, int]:
    """The calls that a C header numbers."""
    found = {}
    for match in _NUMBERED.finditer(_COMMENT.sub(" ", text[:HEADER_MAX])):
        name, value = match["name"] or match["macro"], match["value"] or match["of"]
        found[name] = int(re.sub(r"\s", "", value))
    return found


def kind_of(found: Mapping[str, int]) -> str:
    """The kind whose calls these are: MCS alone has some of them."""
    return "mcs" if found.keys() & (set(CALLS["mcs"]) - set(CALLS["master"])) else "master"


def differences(found: Mapping[str, int], kind: str) -> list[Difference]:
    """Calls that are not numbered as kernels of ``kind`` do. One that is missing is configured out."""
    known = numbers(kind)
    return [
        Difference(name, value, known.get(name)) for name, value in found.items() if known.get(name) != value
    ]
