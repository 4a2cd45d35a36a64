"""UEFI Secure Boot: whose images firmware starts. The programs that sign and enrol, and where firmware is.

Sources: sbsign(1), sbverify(1) of sbsigntool; virt-fw-vars of virt-firmware; UEFI 2.10, 32 (Secure Boot)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from struct import error as struct_error
from struct import unpack_from
from typing import Final, NamedTuple

PROGRAM_S: Final = 60.0  # each takes some tenths of a second
OWNER: Final = "5b1e9f3a-4c0d-4b6e-9a37-6f0e2d8c7a41"  # of the keys that are enrolled here
LOADER: Final = {"x86_64": "EFI/BOOT/BOOTX64.EFI", "aarch64": "EFI/BOOT/BOOTAA64.EFI"}


DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}  # by magic, where data directories begin in the optional header
SECURITY: Final = 4  # the directory of signatures


class EfiError(Exception):
    """A program is missing, or does not do it; the text is its own."""


class NotVerified(EfiError):
    """The image is not signed, or not by that key, or not as it is."""


class Firmware(NamedTuple):
    """UEFI that enforces, ``vars`` to begin with, and the Debian package that has them."""

    code: Path
    vars: Path
    package: str


FIRMWARE: Final = {
    "x86_64": Firmware(
        Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), "ovmf"
    ),
    # AAVMF_VARS.fd is nothing but zeros, which virt-fw-vars does not take.
    "aarch64": Firmware(
        Path("/usr/share/AAVMF/AAVMF_CODE.fd"),
        Path("/usr/share/AAVMF/AAVMF_VARS.snakeoil.fd"),
        "qemu-efi-aarch64",
    ),
}


def sign(image: Path, key: Path, certificate: Path, signed: Path) -> None:
    """Write ``image`` with an Authenticode signature to ``signed``. Raises EfiError."""
    _run(["sbsign", "--key", key, "--cert", certificate, "--output", signed, image], "sbsigntool")


def verify(image: Path, certificate: Path) -> None:
    """Raises NotVerified unless the certificate's key has signed it; EfiError."""
    _run(["sbverify", "--cert", certificate, image], "sbsigntool", NotVerified)


def authenticode(image: bytes) -> str:
    """SHA-256 in hex of what an Authenticode signature is of: all but the checksum and the signatures.
    Raises EfiError.

    Source: PE Format, appendix A, for images whose sections stand in the order of the file and that have
    a directory of signatures, used or not."""
    try:
        (pe,) = unpack_from("<I", image, 0x3C)
        optional = pe + 24
        (magic,) = unpack_from("<H", image, optional)
        directories = optional + DIRECTORIES[magic]
        at = directories + 8 * SECURITY
        _, size = unpack_from("<II", image, at)
    except (struct_error, KeyError) as error:
        raise EfiError("expected a PE image") from error
    checksum = optional + 64
    signed = image[:checksum] + image[checksum + 4 : at] + image[at + 8 : len(image) - size]
    return sha256(signed).hexdigest()


def enrol(
    arch: str, vars: Path, certificates: Sequence[Path], revoked: Sequence[Path], images: Sequence[Path]
) -> None:
    """Write variables to ``vars`` by which images of ``certificates`` start and nothing else does: not those
    of ``revoked`` certificates, nor the ``images``, which are revoked however they are signed.

    Raises EfiError, OSError."""
    from_file = FIRMWARE[arch].vars
    if not from_file.exists():
        raise EfiError(f"{from_file} is not there: Debian has it in the package {FIRMWARE[arch].package}")
    said: list[str | Path] = [_virt_fw_vars(), "-i", from_file, "-o", vars]
    for name in ("PK", "KEK", "db", "dbx") if "snakeoil" in from_file.name else ():
        said += ["--delete", name]
    said += ["--set-pk", OWNER, certificates[0], "--add-kek", OWNER, certificates[0]]
    for each in certificates:
        said += ["--add-db", OWNER, each]
    for each in revoked:
        said += ["--add-dbx-cert", OWNER, each]
    for each in images:
        said += ["--add-dbx-hash", OWNER, authenticode(each.read_bytes())]
    _run([*said, "--sb"], "virt-firmware of PyPI")


def _virt_fw_vars() -> str:
    """The program, from where this Python's programs are, else from PATH."""
    own = Path(sys.executable).with_name("virt-fw-vars")
    return str(own) if own.exists() else own.name


def _run(command: Sequence[str | Path], package: str, refused: type[EfiError] = EfiError) -> None:
    if shutil.which(command[0]) is None:
        raise EfiError(f"{command[0]} is not there: it is in the package {package}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROGRAM_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EfiError(f"{command[0]}: {error}") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise refused(f"{Path(command[0]).name}: {told[0]}")
