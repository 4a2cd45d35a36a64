"""A scenario: a boot that must end in one way and no other. A manifest names those that it requires.

scenarios/null-read.toml, beside the manifest that says scenario = ["null-read"]:

about = "reading address 0x10 is a fault, and the kernel tells it"
cmdline = "do=vm-read"              # in place of the manifest's
expect = "user_fault"               # the cause that must be its end; else all milestones are reached
demand = ["^ROOT: start"]           # lines that must be printed, in any order: they are waited for
forbid = ["KERNEL DATA ABORT"]      # and such as must not

[fault]                             # what the fault must be; what is not said may be anything
kind = "vm data"
address = 0x10
function = "root"

[[interrupt]]                       # how often the processor is interrupted
vector = 0x20                       # x86_64's; none said: by anything
least = 5
most = 50
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from skep.boot.classes import Class, Fault, Verdict
from skep.boot.grammar import Lines
from skep.boot.manifest import Manifest, ManifestError

FOLDER: Final = "scenarios"


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the fault. None and "": may be anything."""

    kind: str = ""
    address: int | None = None
    function: str = ""

    def unmet(self, fault: Fault) -> Iterator[str]:
        if self.kind and self.kind != fault.kind:
            yield f"the fault is {fault.kind}, expected {self.kind}"
        if self.address is not None and self.address != fault.address:
            at = "at no address" if fault.address is None else f"at {fault.address:#x}"
            yield f"the fault is {at}, expected {self.address:#x}"
        if self.function and self.function != fault.where.partition("+")[0]:
            yield f"the fault is in {fault.where or 'no function'}, expected {self.function}"


class Interrupt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``vector`` None: all of them together."""

    vector: Annotated[int, Meta(ge=0x20, le=0xFF)] | None = None
    least: Annotated[int, Meta(ge=0)] = 1
    most: Annotated[int, Meta(ge=0)] | None = None

    def unmet(self, delivered: Mapping[int, int]) -> Iterator[str]:
        count = sum(delivered.values()) if self.vector is None else delivered.get(self.vector, 0)
        what = "interrupts" if self.vector is None else f"interrupts of vector {self.vector:#x}"
        if count < self.least:
            yield f"{count} {what}, expected at least {self.least}"
        if self.most is not None and count > self.most:
            yield f"{count} {what}, expected at most {self.most}"


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"interrupts": "interrupt"}):
    """See the head of this file. None: as the manifest has it."""

    about: str
    cmdline: str | None = None
    expect: str = "reached"
    demand: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    fault: Expected | None = None
    interrupts: tuple[Interrupt, ...] = ()


def read(base: Path, name: str, arch: str) -> Scenario:
    """Raises ManifestError."""
    where = f"{FOLDER}/{name}.toml"
    try:
        scenario = msgspec.convert(tomllib.loads((base / where).read_text()), Scenario)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ManifestError(f"{where}: {error}") from error
    causes = ("reached", *(each.value for each in Class))
    if scenario.expect not in causes:
        raise ManifestError(f"{where}: expect = {scenario.expect!r}: expected one of {', '.join(causes)}")
    if scenario.fault is not None and scenario.expect != Class.USER_FAULT.value:
        raise ManifestError(f"{where}: fault: expected expect = {Class.USER_FAULT.value!r} with it")
    if arch == "aarch64" and any(each.vector is not None for each in scenario.interrupts):
        raise ManifestError(f"{where}: interrupt: vector: aarch64 has one for all, expected none")
    for pattern in scenario.demand + scenario.forbid:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ManifestError(f"{where}: {pattern!r}: {error}") from error
    return scenario


def manifest_of(manifest: Manifest, scenario: Scenario) -> Manifest:
    """The manifest as the scenario changes it."""
    return msgspec.structs.replace(
        manifest,
        cmdline=manifest.cmdline if scenario.cmdline is None else scenario.cmdline,
        expect=scenario.expect,
        forbid=manifest.forbid + scenario.forbid,
        bootinfo=None,
    )


def unmet(
    scenario: Scenario, serial: bytes, ended: Verdict | None, delivered: Mapping[int, int]
) -> list[str]:
    """What was demanded and did not come, of a boot that ended as expected: as ``ended``, None: well."""
    lines = Lines()
    printed = [*lines.feed(serial), lines.rest]
    found = [
        f"no line of {pattern!r} was printed"
        for pattern in scenario.demand
        if not any(re.search(pattern, line) for line in printed)
    ]
    if scenario.fault is not None and ended is not None:
        found += scenario.fault.unmet(ended.fault or Fault(""))
    for each in scenario.interrupts:
        found += each.unmet(delivered)
    return found
