"""``skep boot efi``: UEFI images signed, checked, and the variables by which firmware starts no others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from skep.boot.classes import Class
from skep.cli.exits import Failed

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW: Final = click.Path(dir_okay=False, path_type=Path)


@click.group()
def efi_command() -> None:
    """Secure Boot: sign UEFI images, and enrol whose images firmware starts.

    It takes sbsigntool (Debian) and virt-firmware (PyPI). Keys are RSA, certificates X.509, both PEM.

    \b
    Examples:
      skep boot efi sign app.efi --key own.key --cert own.pem -o app.signed.efi
      skep boot efi enrol vars.fd --cert own.pem
    """


@efi_command.command("sign")
@click.option("--key", required=True, type=_FILE, help="The private key.")
@click.option("--cert", required=True, type=_FILE, help="Its certificate.")
@click.option("-o", "--output", required=True, type=_NEW, help="The signed image.")
@click.argument("image", type=_FILE)
def sign_command(key: Path, cert: Path, output: Path, image: Path) -> None:
    """Write IMAGE with an Authenticode signature.

    \b
    Example:
      skep boot efi sign app.efi --key own.key --cert own.pem -o app.signed.efi
    """
    from skep.boot.secureboot import EfiError, sign

    try:
        sign(image, key, cert, output)
    except EfiError as error:
        raise Failed(str(error)) from error
    click.echo(output)


class NotSigned(Failed):
    """The certificate's key has not signed it."""

    status = Class.SIGNATURE_INVALID.row.status


@efi_command.command("verify")
@click.option("--cert", required=True, type=_FILE, help="Whose signature it must have.")
@click.argument("image", type=_FILE)
def verify_command(cert: Path, image: Path) -> None:
    """Check IMAGE's Authenticode signature. Exit status: 0 it is good, 52 it is not.

    \b
    Example:
      skep boot efi verify app.signed.efi --cert own.pem
    """
    from skep.boot.secureboot import EfiError, NotVerified, verify

    try:
        verify(image, cert)
    except NotVerified as error:
        raise NotSigned(f"{Class.SIGNATURE_INVALID.value}: {error}") from error
    except EfiError as error:
        raise Failed(str(error)) from error
    click.echo(f"{image}: signed")


@efi_command.command("enrol")
@click.option(
    "--arch",
    type=click.Choice(["x86_64", "aarch64"]),
    default="x86_64",
    show_default=True,
    help="Whose firmware.",
)
@click.option("--cert", required=True, multiple=True, type=_FILE, help="Whose images start; repeatable.")
@click.option("--revoke", multiple=True, type=_FILE, help="A certificate whose images do not; repeatable.")
@click.option("--revoke-image", multiple=True, type=_FILE, help="An image that does not; repeatable.")
@click.argument("vars", type=_NEW)
def enrol_command(
    arch: str, cert: tuple[Path, ...], revoke: tuple[Path, ...], revoke_image: tuple[Path, ...], vars: Path
) -> None:
    """Write VARS, UEFI's variables with Secure Boot on: images of these certificates start, no others do.

    \b
    Examples:
      skep boot efi enrol vars.fd --cert own.pem
      skep boot efi enrol vars.fd --cert own.pem --revoke-image app-1.0.efi
    """
    from skep.boot.secureboot import EfiError, enrol

    try:
        enrol(arch, vars, cert, revoke, revoke_image)
    except (EfiError, OSError) as error:
        raise Failed(str(error)) from error
    click.echo(vars)
