"""Counts that were accepted once. They hold for the same firmware, QEMU and command line: any other has no
baseline, which is no regression. The images are what is judged, so they are named in it and not compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from skep.boot.argv import command
from skep.boot.manifest import Manifest

SUFFIX: Final = ".baseline.json"
ROM: Final = "the machine's own"


class Key(msgspec.Struct, frozen=True):
    """``firmware``: SHA-256 by name; what x86_64 starts with when the manifest names none, is ROM.

    ``stops``: the milestones that are counted to. A stop lets the guest's next timer come, so that another
    stop may make another count."""

    qemu: str
    argv: tuple[str, ...]
    firmware: dict[str, str]
    stops: tuple[str, ...] = ()


class Baseline(msgspec.Struct, frozen=True):
    """``counts``: instructions by milestone, of the images ``files`` (SHA-256 by name)."""

    key: Key
    counts: dict[str, int]
    files: dict[str, str]


class BaselineError(Exception):
    """The file is no baseline."""


def key_of(manifest: Manifest, files: Mapping[str, str], qemu: str, rom: str) -> Key:
    """What a count depends on beside the images, which are what is judged. ``rom``: "": there is none."""
    fixed = {name: files[name] for name in (manifest.firmware, manifest.vars) if name}
    fixed |= {ROM: rom} if rom else {}
    return Key(
        qemu, tuple(command(manifest, exact=True)), fixed, tuple(each.name for each in manifest.counted)
    )


def unlike(accepted: Key, now: Key) -> tuple[str, ...]:
    """In what they differ."""
    return tuple(name for name in Key.__struct_fields__ if getattr(accepted, name) != getattr(now, name))


def load(path: Path) -> Baseline | None:
    """None when there is none yet. Raises BaselineError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise BaselineError(f"{path}: {error}") from error


def save(path: Path, baseline: Baseline) -> None:
    made = msgspec.json.format(msgspec.json.encode(baseline, order="sorted"), indent=2)
    path.write_bytes(made + b"\n")


def slower(
    accepted: Mapping[str, int], counts: Sequence[tuple[str, int]], tolerance: float
) -> list[tuple[str, int, int]]:
    """(milestone, accepted, now) where now is above accepted by more than ``tolerance`` per cent."""
    return [
        (name, accepted[name], now)
        for name, now in counts
        if name in accepted and now > accepted[name] * (1 + tolerance / 100)
    ]
