"""What an annex says of itself with each heartbeat: its devices and how they are now.

What of it stays the same, the hive writes down (record.py); the rest is in memory only. A machine without a
GPU has one device, ``cpu:0``, and calls it that everywhere."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from skep.trace.clock import HOUR, SECOND, duration, parse_duration

DEVICES_MAX: Final = 16  # of an annex: a heartbeat is kept a hundred times and more.
SLOTS_MAX: Final = 1024  # of a device: each may be a lease, and those of an annex are one record.
TEXT_MAX: Final = 128  # characters of a name, of a driver, of a reason.
CELSIUS_MAX: Final = 1000  # no thermometer of a card shows more.
EVERY_MIN_NS: Final = SECOND
EVERY_MAX_NS: Final = HOUR
EVERY_NS: Final = 30 * SECOND  # between two heartbeats, when an annex says nothing
DEVICE: Final = re.compile(r"(cuda|cpu):(0|[1-9][0-9]{0,2})", re.ASCII)

Size = Annotated[int, Meta(ge=0, lt=1 << 53)]  # bytes, or how many
Short = Annotated[str, Meta(max_length=TEXT_MAX)]


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """``id``: cuda:0 or cpu:0. ``memory`` and ``slots``: what its leases may have together, bytes and how
    many of them at a time; the rest is measured. ``temperature``: °C."""

    id: str
    name: Short = ""
    uuid: Short = ""
    memory: Size = 0
    slots: Annotated[int, Meta(ge=1, le=SLOTS_MAX)] = 1
    memory_total: Size = 0
    memory_free: Size = 0
    utilisation: Annotated[float, Meta(ge=0, le=1)] | None = None  # of its time; None: it is not known
    temperature: Annotated[float, Meta(ge=-CELSIUS_MAX, le=CELSIUS_MAX)] | None = None  # None: the same

    def __post_init__(self) -> None:
        if DEVICE.fullmatch(self.id) is None:
            raise ValueError(f"device {self.id!r}: expected cuda:<n> or cpu:<n>")
        _check_line(name=self.name, uuid=self.uuid)

    @property
    def kind(self) -> str:
        """cuda or cpu."""
        return kind_of(self.id)


class Beat(msgspec.Struct, frozen=True, omit_defaults=True):
    """``every``: when it is heard again, a duration; ``queue``: runs that wait on the machine itself;
    ``disabled``: why nothing is to be given to it, "": something is."""

    state: Short = "ready"
    driver: Short = ""
    every: str = duration(EVERY_NS)
    queue: Size = 0
    devices: Annotated[tuple[Device, ...], Meta(max_length=DEVICES_MAX)] = ()
    disabled: Short = ""

    def __post_init__(self) -> None:
        if not EVERY_MIN_NS <= parse_duration(self.every) <= EVERY_MAX_NS:
            between = f"{duration(EVERY_MIN_NS)} to {duration(EVERY_MAX_NS)}"
            raise ValueError(f"every {self.every!r}: expected {between}")
        _check_line(state=self.state, driver=self.driver, disabled=self.disabled)
        ids = [device.id for device in self.devices]
        if len(set(ids)) < len(ids):
            raise ValueError(f"devices {' '.join(ids)}: expected each once")

    @property
    def every_ns(self) -> int:
        return parse_duration(self.every)


def _check_line(**texts: str) -> None:
    """Raise ValueError unless they can stand in a line as they are."""
    for name, text in texts.items():
        if not text.isprintable():
            raise ValueError(f"{name} {text!r}: expected a line that can be printed")


def kind_of(device: str) -> str:
    """cuda or cpu, of a device's id."""
    return device.partition(":")[0]


def suspect_ns(every_ns: int) -> int:
    """How long an annex may be silent: one heartbeat that is late is missed."""
    return every_ns * 11 // 10 + SECOND


def lost_ns(every_ns: int) -> int:
    """How long it may be silent before it is lost: two heartbeats are missed."""
    return every_ns * 21 // 10 + SECOND
