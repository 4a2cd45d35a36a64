"""What is to boot, how, and what is expected of it: a TOML file beside the images.

name = "worker"
arch = "x86_64"                     # or aarch64
kernel = "kernel"                   # names are relative to the file's directory, where QEMU runs
modules = ["rootserver"]
cmdline = "do=ready"
shift = 4                           # exact runs: an instruction takes 2**shift virtual ns

[[milestone]]                       # in the order in which they are reached
name = "root"
entry = "rootserver"                # the file's entry; or symbol = "main" of elf = "rootserver"
max_ms = 200                        # virtual ms from reset, less the waits before it
[[milestone]]
name = "ready"
line = "^ROOT: ready"               # what is printed; read in wall runs, exact runs count to symbols

[[wait]]                            # declared: shown as a stage of its own
name = "calibration"
from = "kernel"
to = "calibrated"

[bootinfo]                          # the page that the root task is given: read at the last count, checked
symbol = "bootinfo"                 # a pointer to it; or address = its own, or physical = that of the machine
elf = "rootserver"

[layout]                            # checked before it boots
allow = ["R6"]                      # rules that may be broken, see skep boot check

[signature]
trust = "release.pub"               # NAME.sig must be by this key (PEM), beside the manifest

An EFI image is booted by UEFI firmware, which has its keys in ``vars``: kernel = "app.efi", vars = "vars.fd".
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

NAME_MAX: Final = 64
MILESTONES_MAX: Final = 64
MANIFEST_MAX: Final = 1 << 20  # bytes
OVMF: Final = "ovmf"  # firmware: the machine's own UEFI, rather than a file
OWN: Final = ".skep"  # the folder that the lab adds where QEMU runs
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=NAME_MAX)]
Positive = Annotated[float, Meta(gt=0)]

MACHINES: Final = {"x86_64": "pc", "aarch64": "virt"}
# What asks for Secure Boot keeps its variables where system management mode alone writes.
EFI_MACHINES: Final = {"x86_64": "q35,smm=on", "aarch64": "virt"}
PROCESSORS: Final = {"x86_64": "qemu64,+pdpe1gb", "aarch64": "cortex-a53"}


class ManifestError(Exception):
    """The manifest cannot be used: where, what it says, what was expected."""


class Milestone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place on the way. One of ``line``, ``symbol`` (of ``elf``) and ``entry`` says which."""

    name: Name
    line: str = ""
    symbol: str = ""
    elf: str = ""
    entry: str = ""
    max_ms: Positive | None = None
    max_instructions: Annotated[int, Meta(gt=0)] | None = None

    @property
    def exact(self) -> bool:
        """Whether its instructions can be counted."""
        return not self.line


class Wait(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"begin": "from", "end": "to"}):
    """Time between two milestones that the guest spends waiting on purpose."""

    name: Name
    begin: Name
    end: Name


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where BootInfo is: one of ``symbol`` (a pointer, of ``elf``), ``address`` and ``physical``.

    ``elf``, where it is said, is the root task."""

    symbol: str = ""
    elf: str = ""
    address: Annotated[int, Meta(ge=0)] | None = None
    physical: Annotated[int, Meta(ge=0)] | None = None
    mcs: bool = False


class Ceiling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What not even the fastest boot by the clock may be above, ms; wide: it is no gate."""

    max_ms: Positive


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``allow``: ids of rules that may be broken."""

    allow: tuple[str, ...] = ()


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``trust``: the public key, a PEM file; a relative path is from the manifest's directory."""

    trust: str


class Deadlines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of wall time, wide: they end what hangs, they judge nothing."""

    start: Positive = 20.0  # until QEMU answers
    reply: Positive = 10.0  # to what its monitor is asked
    milestone: Positive = 60.0  # from one to the next
    end: Positive = 60.0  # from the last to the expected end
    total: Positive = 180.0


class Manifest(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"milestones": "milestone", "waits": "wait"},
):
    """See the head of this file. ``expect``: "reached", or the class that must be its end."""

    name: Name
    arch: Literal["x86_64", "aarch64"]
    kernel: str
    milestones: Annotated[tuple[Milestone, ...], Meta(min_length=1, max_length=MILESTONES_MAX)]
    waits: tuple[Wait, ...] = ()
    modules: tuple[str, ...] = ()
    cmdline: str = ""
    machine: str = ""
    cpu: str = ""
    memory: str = "1024M"
    firmware: str = ""  # a file, or OVMF, the default where there are vars
    vars: str = ""  # UEFI's variables, of which each boot has a copy; "": no UEFI
    shift: Annotated[int, Meta(ge=0, le=10)] = 4
    tolerance: Annotated[float, Meta(ge=0)] = 0.0  # per cent by which a count may be above its baseline
    deadline: Deadlines = Deadlines()
    wall: Ceiling | None = None  # None: times by the clock judge nothing
    expect: str = "reached"
    forbid: tuple[str, ...] = ()  # lines that must not be printed
    bootinfo: Page | None = None  # None: it is not read
    symbols: tuple[str, ...] = ()  # further ELF files whose functions are named in what is told
    scenario: tuple[Name, ...] = ()  # further boots, each of which must end as its file says
    layout: Layout | None = None  # None: what the files are like is not asked
    signature: Signature | None = None  # None: nobody need have signed it

    @property
    def elves(self) -> tuple[str, ...]:
        """The files whose functions are named."""
        named = [name for each in self.milestones for name in (each.elf, each.entry)]
        named += [*self.symbols, *self.modules]
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def counted(self) -> tuple[Milestone, ...]:
        return tuple(each for each in self.milestones if each.exact)


def parse(text: str, where: str = "manifest") -> Manifest:
    """Raises ManifestError."""
    try:
        said = tomllib.loads(text)
        manifest = msgspec.convert(said, Manifest)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{where}: {error}") from error
    except msgspec.ValidationError as error:
        raise ManifestError(f"{where}: {_plain(str(error))}") from error
    _check(manifest, where)
    machines = EFI_MACHINES if manifest.vars else MACHINES
    return msgspec.structs.replace(
        manifest,
        machine=manifest.machine or machines[manifest.arch],
        firmware=manifest.firmware or (OVMF if manifest.vars else ""),
        cpu=manifest.cpu or PROCESSORS[manifest.arch],
    )


def load(data: bytes, where: str) -> Manifest:
    """Raises ManifestError."""
    try:
        return parse(data.decode(), where)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: not UTF-8") from error


def read(path: Path) -> Manifest:
    """Raises ManifestError, also for files that it names and that are not there."""
    manifest = load(path.read_bytes(), str(path))
    for name in files_of(manifest):
        if not (path.parent / name).is_file():
            raise ManifestError(f"{path}: {name}: there is no such file beside it")
    return manifest


def files_of(manifest: Manifest) -> tuple[str, ...]:
    """The files that it boots or reads, each once."""
    return tuple(kinds_of(manifest))


def kinds_of(manifest: Manifest) -> dict[str, str]:
    """The kind of each file; of one that is several things, the first."""
    named = [(manifest.kernel, "kernel"), *((name, "module") for name in manifest.modules)]
    named += [(manifest.firmware if manifest.firmware != OVMF else "", "firmware"), (manifest.vars, "vars")]
    named += [(name, "symbols") for each in manifest.milestones for name in (each.elf, each.entry)]
    named += [(manifest.bootinfo.elf if manifest.bootinfo is not None else "", "symbols")]
    named += [(name, "symbols") for name in manifest.symbols]
    named += [(f"scenarios/{name}.toml", "scenario") for name in manifest.scenario]
    found: dict[str, str] = {}
    for name, kind in named:
        if name:
            found.setdefault(name, kind)
    return found


def _check(manifest: Manifest, where: str) -> None:
    names = [each.name for each in manifest.milestones]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"{where}: milestone {name}: there are two")
    for each in manifest.milestones:
        said = [key for key in ("line", "symbol", "entry") if getattr(each, key)]
        if len(said) != 1:
            raise ManifestError(
                f"{where}: milestone {each.name}: {said or 'nothing'}: expected one of line, symbol, entry"
            )
        if each.symbol and not each.elf:
            raise ManifestError(f"{where}: milestone {each.name}: symbol without elf, the file that has it")
        if each.line and (each.max_ms or each.max_instructions):
            raise ManifestError(
                f"{where}: milestone {each.name}: a budget takes symbol or entry: a line is not exact"
            )
        _pattern(each.line, f"{where}: milestone {each.name}: line")
    for pattern in manifest.forbid:
        _pattern(pattern, f"{where}: forbid")
    if manifest.bootinfo is not None:
        _check_page(manifest, manifest.bootinfo, f"{where}: bootinfo")
    counted = [each.name for each in manifest.counted]
    for wait in manifest.waits:
        for end in (wait.begin, wait.end):
            if end not in counted:
                raise ManifestError(
                    f"{where}: wait {wait.name}: {end}: expected a milestone with symbol or entry"
                )
        if counted.index(wait.begin) >= counted.index(wait.end):
            raise ManifestError(f"{where}: wait {wait.name}: {wait.end} comes before {wait.begin}")
    if manifest.vars and (manifest.modules or manifest.cmdline):
        raise ManifestError(f"{where}: vars: UEFI firmware starts an image without modules and cmdline")
    if manifest.firmware == OVMF and not manifest.vars:
        raise ManifestError(f"{where}: firmware = {OVMF!r}: expected vars, the file with its variables")
    for name in files_of(manifest):
        if name.split("/")[0] == OWN or "\n" in name:
            raise ManifestError(f"{where}: {name!r}: expected another name: this one is the lab's own")
        if name.startswith("/") or ".." in name.split("/") or "," in name:
            raise ManifestError(
                f"{where}: {name}: expected a name below the manifest's directory, without a comma"
            )


def _check_page(manifest: Manifest, page: Page, where: str) -> None:
    said = [key for key in ("symbol", "address", "physical") if getattr(page, key) not in ("", None)]
    if len(said) != 1:
        raise ManifestError(f"{where}: {said or 'nothing'}: expected one of symbol, address, physical")
    if page.symbol and not page.elf:
        raise ManifestError(f"{where}: symbol without elf, the file that has it")
    if not manifest.counted:
        raise ManifestError(f"{where}: expected a milestone with symbol or entry, at which it is read")


def _pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ManifestError(f"{where} = {pattern!r}: {error}") from error


def _plain(text: str) -> str:
    """msgspec's words for where: ``$.milestone[0].name`` is milestone[0].name."""
    said, at, place = text.partition(" - at `$")
    return f"{place.strip('.`')}: {said}" if at else said


def canonical(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain values."""
    found = msgspec.to_builtins(manifest)
    assert isinstance(found, dict)
    return found
