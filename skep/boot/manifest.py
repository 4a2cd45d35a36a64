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
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=NAME_MAX)]
Positive = Annotated[float, Meta(gt=0)]

MACHINES: Final = {"x86_64": "pc", "aarch64": "virt"}
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


class Deadlines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of wall time, wide: they end what hangs, they judge nothing."""

    start: Positive = 20.0  # until QEMU answers
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
    firmware: str = ""
    shift: Annotated[int, Meta(ge=0, le=10)] = 4
    tolerance: Annotated[float, Meta(ge=0)] = 0.0  # per cent by which a count may be above its baseline
    deadline: Deadlines = Deadlines()
    expect: str = "reached"
    forbid: tuple[str, ...] = ()  # lines that must not be printed

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
    return msgspec.structs.replace(
        manifest,
        machine=manifest.machine or MACHINES[manifest.arch],
        cpu=manifest.cpu or PROCESSORS[manifest.arch],
    )


def read(path: Path) -> Manifest:
    """Raises ManifestError, also for files that it names and that are not there."""
    try:
        manifest = parse(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8") from error
    for name in files_of(manifest):
        if not (path.parent / name).is_file():
            raise ManifestError(f"{path}: {name}: there is no such file beside it")
    return manifest


def files_of(manifest: Manifest) -> tuple[str, ...]:
    """The files that it boots or reads, each once."""
    named = [manifest.kernel, *manifest.modules, manifest.firmware]
    named += [name for each in manifest.milestones for name in (each.elf, each.entry)]
    return tuple(dict.fromkeys(name for name in named if name))


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
    counted = [each.name for each in manifest.counted]
    for wait in manifest.waits:
        for end in (wait.begin, wait.end):
            if end not in counted:
                raise ManifestError(
                    f"{where}: wait {wait.name}: {end}: expected a milestone with symbol or entry"
                )
        if counted.index(wait.begin) >= counted.index(wait.end):
            raise ManifestError(f"{where}: wait {wait.name}: {wait.end} comes before {wait.begin}")
    for name in files_of(manifest):
        if name.startswith("/") or ".." in name.split("/") or "," in name:
            raise ManifestError(
                f"{where}: {name}: expected a name below the manifest's directory, without a comma"
            )


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
