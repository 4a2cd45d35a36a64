"""QEMU's command line for a manifest. Names are relative: on x86 they reach the guest."""

from __future__ import annotations

from typing import Final

from skep.boot.manifest import Manifest

BINARIES: Final = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
# Nothing that is not said: no devices, no configuration files, no network, no second attempt.
ALONE: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")


def command(manifest: Manifest, exact: bool) -> list[str]:
    """Without what the lab itself adds: serial port, monitor, stub. ``exact``: instructions are time."""
    said = [BINARIES[manifest.arch], "-accel", "tcg,thread=single" if exact else "tcg", *ALONE]
    said += ["-machine", manifest.machine, "-cpu", manifest.cpu, "-m", manifest.memory]
    if manifest.firmware:
        said += ["-bios", manifest.firmware]
    said += ["-kernel", manifest.kernel]
    if manifest.modules:
        said += ["-initrd", ",".join(manifest.modules)]
    if manifest.cmdline:
        said += ["-append", manifest.cmdline]
    said += ["-rtc", "base=2020-01-01,clock=vm"]
    if exact:
        said += ["-icount", f"shift={manifest.shift},sleep=off"]
    return said
