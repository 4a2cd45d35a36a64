"""``skep manifest check`` and ``skep manifest sign``: what is to be a role's manifest, before it is one."""

from __future__ import annotations

from pathlib import Path

import click

from skep.cli.exits import Failed

_FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def manifest_command() -> None:
    """Check and sign manifests of roles. A manifest is what a role sees of the hive, and may do there.

    \b
    Examples:
      skep manifest check ./drone-worker.ns
      skep manifest sign --key ./key.pem ./drone-worker.ns
    """


@manifest_command.command("check")
@_FILE
@click.option(
    "--root",
    envvar="SKEP_MANIFEST_ROOT",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Ed25519 public key (PEM) that must have signed it: FILE.sig. Default: SKEP_MANIFEST_ROOT.",
)
def check_command(file: Path, root: Path | None) -> None:
    """Read ROLE.ns as a queen does, and say what it is.

    \b
    Examples:
      skep manifest check ./drone-worker.ns
      skep manifest check --root ./root.pem ./drone-worker.ns
    """
    from skep.roles.manifest import load
    from skep.roles.sealed import ManifestError, Source, public_key

    try:
        source = Source(file.parent, None if root is None else public_key(root))
        found = load(_role(file), source)
    except ManifestError as error:
        raise Failed(str(error)) from error
    signed = "unsigned" if root is None else "signed"
    click.echo(f"{found.role}: {len(found.rules)} rules, {len(found.lines)} binds, {signed}")


@manifest_command.command("sign")
@_FILE
@click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Ed25519 private key (PEM); `openssl genpkey -algorithm ed25519` makes one.",
)
def sign_command(file: Path, key: Path) -> None:
    """Sign ROLE.ns, once it is found to be right: the signature goes to ROLE.ns.sig beside it. Or a queen's
    configuration, serve.toml.

    \b
    Examples:
      skep manifest sign --key ./key.pem ./drone-worker.ns
      skep manifest sign --key ./key.pem ./var/hive/serve.toml
    """
    from skep.roles import configuration
    from skep.roles.manifest import parse
    from skep.roles.sealed import ManifestError, private_key, sign, sign_configuration

    text = file.read_bytes()
    try:
        if file.suffix == ".toml":
            configuration.parse(file.name, text)
            signature = sign_configuration(text, private_key(key))
        else:
            parse(_role(file), text)
            signature = sign(_role(file), text, private_key(key))
    except (ManifestError, configuration.ConfigurationError) as error:
        raise Failed(str(error)) from error
    beside = file.with_name(f"{file.name}.sig")
    beside.write_bytes(signature)
    click.echo(beside)


def _role(file: Path) -> str:
    if file.suffix != ".ns":
        raise Failed(
            f"{file}: expected ROLE.ns, as the manifest of a role is called, or a .toml to be signed"
        )
    return file.stem
