"""QEMU's command line for a manifest. Names are relative: on x86 they reach the guest."""

from __future__ import annotations

from typing import Final

from skep.boot.manifest import OVMF, OWN, Manifest

BINARIES: Final = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
CODE: Final = f"{OWN}/code.fd"  # what firmware OVMF is, where QEMU runs
ESP: Final = f"{OWN}/esp"  # the folder that UEFI firmware sees as a disk
# Firmware of x86_64 writes its variables in system management mode, and nobody else does.
GUARDED: Final = {"x86_64": ("-global", "driver=cfi.pflash01,property=secure,value=on"), "aarch64": ()}
# Nothing that is not said: no devices, no configuration files, no network, no second attempt.
ALONE: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")


def command(manifest: Manifest, exact: bool) -> list[str]:
    """Without what the lab itself adds: serial port, monitor, stub. ``exact``: instructions are time."""
    said = [BINARIES[manifest.arch], "-accel", "tcg,thread=single" if exact else "tcg", *ALONE]
    said += ["-machine", manifest.machine, "-cpu", manifest.cpu, "-m", manifest.memory]
    if manifest.vars:
        return [*said, *_efi(manifest), *_time(manifest, exact)]
    if manifest.firmware:
        said += ["-bios", manifest.firmware]
    said += ["-kernel", manifest.kernel]
    if manifest.modules:
        said += ["-initrd", ",".join(manifest.modules)]
    if manifest.cmdline:
        said += ["-append", manifest.cmdline]
    return [*said, *_time(manifest, exact)]


def _efi(manifest: Manifest) -> list[str]:
    """Firmware in flash, and the image where firmware looks for one on a disk that it does not know.

    Not -kernel: OVMF starts what that names through another loader when its signature is not good."""
    code = CODE if manifest.firmware == OVMF else manifest.firmware
    return [
        *GUARDED[manifest.arch],
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        # Every boot begins with the variables of the file.
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={manifest.vars}"),
        *("-drive", f"if=none,id=esp,format=raw,readonly=on,file=fat:{ESP}"),
        *("-device", "virtio-blk-pci,drive=esp"),
    ]


def _time(manifest: Manifest, exact: bool) -> list[str]:
    said = ["-rtc", "base=2020-01-01,clock=vm"]
    if exact:
        said += ["-icount", f"shift={manifest.shift},sleep=off"]
    return said
