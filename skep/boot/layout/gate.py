"""Whether the files of a manifest have layouts that boot: asked before anything is booted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from skep.boot.classes import AFTER, BEFORE, Class, Verdict
from skep.boot.layout.checking import FILE_MAX, STATED, Asked, Checked, check, pairs
from skep.boot.layout.rule import Kind
from skep.boot.manifest import Manifest, ManifestError

SHOWN: Final = BEFORE + 1 + AFTER  # findings, as many as lines of a log


def invalid(manifest: Manifest, base: Path) -> Verdict | None:
    """What is wrong with the kernel, the root task and the files that milestones name; None: nothing, or
    the manifest does not ask. Raises ManifestError, OSError."""
    if manifest.layout is None:
        return None
    unknown = [rule for rule in manifest.layout.allow if rule not in STATED]
    if unknown:
        raise ManifestError(f"layout: allow {unknown[0]!r}: expected one of {' '.join(STATED)}")
    checked = [_checked(manifest, base, name) for name in _names(manifest)]
    pairs(checked)
    errors = [f"{name}: {found}" for each in checked for name, found in each.report.errors()]
    if not errors:
        return None
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return Verdict(Class.LAYOUT_INVALID, f"{errors[0]}{more}", evidence=tuple(errors[:SHOWN]))


def _names(manifest: Manifest) -> list[str]:
    """Each once, the kernel first. What other modules are, the root task alone knows."""
    named = [name for each in manifest.milestones for name in (each.elf, each.entry)]
    return list(dict.fromkeys(filter(None, (manifest.kernel, *manifest.modules[:1], *named))))


def _checked(manifest: Manifest, base: Path, name: str) -> Checked:
    assert manifest.layout is not None
    path = base / name
    if path.stat().st_size > FILE_MAX:
        raise ManifestError(f"layout: {name}: expected at most {FILE_MAX} bytes")
    kind = Kind.ROOT if name in manifest.modules[:1] else None
    return check(name, path.read_bytes(), Asked(kind, manifest.arch, allowed=manifest.layout.allow))
