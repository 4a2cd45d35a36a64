"""``skep verify``: whether a log is what it was."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skep.cli.exits import Failed
from skep.cli.logs import of_log

if TYPE_CHECKING:  # cryptography takes a while to import
    from skep.trace.note import Note, Vkey
    from skep.validator.verify import Verified


class Inconsistent(Failed):
    """The log is not what it was; the status says in which way."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@click.command()
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An older checkpoint of the same log, kept elsewhere: it must be continued.",
)
@click.option(
    "--key", "keys", multiple=True, help="A key that is trusted, as /log/trace/keys writes it; repeatable."
)
@click.argument("target")
def verify_command(checkpoint: Path | None, keys: tuple[str, ...], target: str) -> None:
    """Verify that a log was not changed, cut, forked or rewound. Every entry and hash is looked at, and who
    signed.

    TARGET is a mounted hive, a directory of tiles, a ledger's file or a hive's address. The first place that
    is not consistent is told.

    \b
    Exit status: 0 consistent, 10 altered, 11 dropped, 12 swapped, 13 inserted, 14 forked, 15 rewound,
    16 truncated, 17 signed by another key, 18 damaged.

    \b
    Examples:
      cp n/hive/log/trace/checkpoint ~/kept
      skep verify n/hive
      skep verify --checkpoint ~/kept var/hive/ledger.db
      skep verify --checkpoint ~/kept tls:hive.example.org:5640
    """
    from skep.trace.note import NoteError, parse_note, parse_vkey
    from skep.validator.found import Finding

    try:
        old = parse_note(checkpoint.read_bytes()) if checkpoint is not None else None
        pinned = [parse_vkey(key) for key in keys]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    try:
        verified = _verified(target, old, pinned)
    except Finding as error:
        raise Inconsistent(f"{target}: {error}", error.kind.value) from error
    head = verified.head
    click.echo(f"consistent: {head.size} entries of {head.origin}, root {b64encode(head.root).decode()}")
    for signer in verified.signers:
        click.echo(f"signed by {signer}")
    if verified.old is not None:
        click.echo(f"continues the checkpoint of {verified.old.size} entries")


def _verified(target: str, old: Note | None, pinned: list[Vkey]) -> Verified:
    from skep.validator.sources import LedgerSource
    from skep.validator.verify import verify

    path = Path(target)
    if path.is_file():
        source = LedgerSource(path)
        if old is not None and not pinned and not source.keys():
            raise Failed(f"{target}: it names no key by which a checkpoint could be told: --key does")
        return verify(source, old, pinned)
    return of_log(target, lambda source: verify(source, old, pinned))
