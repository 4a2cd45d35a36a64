"""How a boot can end, other than well: one named cause, with what shows it. Each has an exit status."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

import msgspec

BEFORE: Final = 15  # lines of the serial log that are shown before the one that tells
AFTER: Final = 5


class Row(NamedTuple):
    """``status``: the exit status. ``retried``: another attempt may end otherwise."""

    status: int
    meaning: str
    retried: bool = False


class Class(Enum):
    """The causes. The value is the word that reports have."""

    QEMU_START_FAILED = "qemu_start_failed"
    FIRMWARE_STUCK = "firmware_stuck"
    NO_OUTPUT = "no_output"
    KERNEL_REJECT = "kernel_reject"
    KERNEL_PANIC = "kernel_panic"
    USER_FAULT = "user_fault"
    RESET = "reset"
    KERNEL_HALTED = "kernel_halted"
    BOOT_TIMEOUT = "boot_timeout"
    TEST_TIMEOUT = "test_timeout"
    OVER_BUDGET = "over_budget"
    LAYOUT_INVALID = "layout_invalid"
    SIGNATURE_INVALID = "signature_invalid"
    HARNESS_ERROR = "harness_error"

    @property
    def row(self) -> Row:
        return CLASSES[self]


CLASSES: Final = {
    Class.QEMU_START_FAILED: Row(40, "QEMU ended, or did not answer, before the guest ran", retried=True),
    Class.FIRMWARE_STUCK: Row(41, "the firmware spoke, and nothing of the image was heard"),
    Class.NO_OUTPUT: Row(42, "nothing was printed and no milestone was reached"),
    Class.KERNEL_REJECT: Row(43, "the loader or the kernel refused what it was given, and said why"),
    Class.KERNEL_PANIC: Row(44, "the kernel failed: an assertion, an abort, a way in that must not be"),
    Class.USER_FAULT: Row(45, "a thread faulted and nobody handles its faults"),
    Class.RESET: Row(46, "the machine was reset: a triple fault, or on purpose"),
    Class.KERNEL_HALTED: Row(47, "the kernel halted without having said why"),
    Class.BOOT_TIMEOUT: Row(48, "a milestone was not reached in time"),
    Class.TEST_TIMEOUT: Row(49, "it has booted, and did not come to its expected end in time"),
    Class.OVER_BUDGET: Row(50, "it has booted, later or larger than its budget"),
    Class.LAYOUT_INVALID: Row(51, "the layout of a file breaks a rule of its kind"),
    Class.SIGNATURE_INVALID: Row(52, "what was to boot is not what was signed"),
    Class.HARNESS_ERROR: Row(53, "the lab itself failed", retried=True),
}


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user fault as the kernel told it, decoded. Addresses are as printed; ``where``: function+offset."""

    kind: str
    address: int | None = None
    pc: int | None = None
    thread: str = ""
    status: int | None = None
    meaning: str = ""  # of the status
    where: str = ""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """One cause. ``milestone``: the last that was reached. ``evidence``: lines around the one that tells."""

    cause: Class
    message: str
    milestone: str = ""
    evidence: tuple[str, ...] = ()
    registers: dict[str, str] = {}
    fault: Fault | None = None
