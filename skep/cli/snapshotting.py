"""``skep snapshot``: the state that a hive's ledger means, written down for the next start."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from skep.cli.exits import Failed

if TYPE_CHECKING:  # the rules take a while to import
    from skep.roles.snapshots import Sign

NICE: Final = 19  # beside a hive that is served, nobody waits for it


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--ledger", default="", help="Its URL, sqlite:///path. Default: ledger.db in DIRECTORY.")
@click.option(
    "--ask",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Believe what this public key, in hex, has signed, and have who started this sign: the text goes to "
    "the standard output, its note is read from the standard input. Again for more keys.",
)
def snapshot_command(directory: Path, ledger: str, keys: tuple[str, ...]) -> None:
    """Write down the state that a ledger means, for the next start. A replay may begin there as well.

    DIRECTORY is that of a hive that nobody serves now; a queen makes her own. Only the newest two are kept.
    They may be deleted at any time: the ledger alone counts.

    \b
    Exit status: 0 there is one of the ledger's end, 1 failed, 2 usage.
    Example:
      skep snapshot ~/.local/state/skep/hive
    """
    from skep.roles.alone import Held, alone
    from skep.roles.queen import LOCK as QUEEN
    from skep.roles.snapshots import LOCK

    url = ledger or f"sqlite://{directory.resolve()}/ledger.db"
    if not Path(url.removeprefix("sqlite://")).is_file():
        raise click.UsageError(f"{url}: there is no ledger")
    try:
        if keys:
            os.nice(NICE)
            with alone(directory / LOCK):
                _asking(directory, url, keys)
        else:
            with alone(directory / QUEEN), alone(directory / LOCK):
                click.echo(_signed(directory, url))
    except Held as error:
        raise Failed(f"{directory}: process {error} serves this hive, or makes a snapshot of it") from error


def _asking(directory: Path, url: str, keys: tuple[str, ...]) -> None:
    from skep.roles.snapshots import asked

    try:
        believed = [bytes.fromhex(key) for key in keys]
    except ValueError as error:
        raise click.UsageError(f"--ask: expected a public key in hex: {error}") from error
    _made(directory, url, believed, asked)


def _signed(directory: Path, url: str) -> str:
    from skep.namespaces.policy.keys import BadKey
    from skep.namespaces.trust.keys import KeyStoreError
    from skep.roles.snapshots import own_keys, signing_by

    try:
        own = own_keys(directory, os.environ.get("SKEP_KMS", ""))
    except (KeyStoreError, BadKey) as error:
        raise Failed(f"the hive's keys: {error}") from error
    return _made(directory, url, list(own), signing_by(own))


def _made(directory: Path, url: str, keys: list[bytes], sign: Sign) -> str:
    from skep.roles.snapshots import make
    from skep.trace.ledger import LedgerError, LedgerTampered, open_ledger
    from skep.trace.snapshot import SnapshotError

    try:
        with closing(open_ledger(url)) as opened:
            made = make(directory, opened, keys, sign)
    except LedgerTampered as error:
        raise Failed(f"integrity: {error.where} (ledger {url})") from error
    except (LedgerError, SnapshotError) as error:
        raise Failed(f"{directory}: {error}") from error
    return str(made or "nothing has come since the newest snapshot")
