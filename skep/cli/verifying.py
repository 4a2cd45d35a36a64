"""``skep verify``: whether a log is what it was."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skep.cli.exits import Failed
from skep.cli.logs import TRACE, of_log
from skep.trace.clock import SECOND, rfc3339

if TYPE_CHECKING:  # cryptography takes a while to import
    from skep.trace.note import Note, Vkey
    from skep.validator.verify.sources import Source
    from skep.validator.verify.verify import Verified


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
@click.option(
    "--witness",
    "witnesses",
    multiple=True,
    help="A witness's key, as `skep witness` prints it; repeatable. What is agreed in the log, or the older "
    "checkpoint, must be cosigned.",
)
@click.option("--quorum", type=click.IntRange(1), help="By so many of them. Default: a majority.")
@click.option(
    "--copy",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also keep there what was read: a directory of tiles, to be verified again.",
)
@click.argument("target")
def verify_command(
    checkpoint: Path | None,
    keys: tuple[str, ...],
    witnesses: tuple[str, ...],
    quorum: int | None,
    copy: Path | None,
    target: str,
) -> None:
    """Verify that a log was not changed, cut, forked or rewound. Every entry and hash is looked at, and who
    signed.

    TARGET is a mounted hive, a directory of tiles, a ledger's file or a hive's address. The first place that
    is not consistent is told.

    \b
    Exit status: 0 consistent, 10 altered, 11 dropped, 12 swapped, 13 inserted, 14 forked, 15 rewound,
    16 truncated, 17 signed by another key, 18 damaged, 19 cosigned by too few witnesses.

    \b
    Examples:
      cp n/hive/log/trace/checkpoint ~/kept
      skep verify n/hive
      skep verify --checkpoint ~/kept var/hive/ledger.db
      skep verify --checkpoint ~/kept --copy ~/evidence tls:hive.example.org:5640
    """
    from skep.trace.note import COSIGNER, NoteError, parse_note, parse_vkey
    from skep.validator.verify.found import Finding
    from skep.validator.verify.witnessed import check_witnessed

    try:
        old = parse_note(checkpoint.read_bytes()) if checkpoint is not None else None
        pinned = [parse_vkey(key) for key in keys]
        known = [parse_vkey(key, COSIGNER) for key in dict.fromkeys(witnesses)]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    need = 0 if not known else quorum or len(known) // 2 + 1
    if (quorum or 0) > len(known):
        raise click.UsageError(f"--quorum {quorum}: of {len(known)} witnesses that are named")
    try:
        if known and old is None:
            old = parse_note(_agreed(target))
        cosigned = check_witnessed(old, known, need) if known and old is not None else []
        verified = _verified(target, old, pinned, copy)
    except NoteError as error:
        raise Failed(f"{target}: agreed: {error}") from error
    except Finding as error:
        raise Inconsistent(f"{target}: {error}", error.kind.value) from error
    head = verified.head
    click.echo(f"consistent: {head.size} entries of {head.origin}, root {b64encode(head.root).decode()}")
    for signer in verified.signers:
        click.echo(f"signed by {signer}")
    if verified.old is not None:
        click.echo(f"continues the checkpoint of {verified.old.size} entries")
    for each in cosigned:
        click.echo(f"cosigned by {each.vkey} at {rfc3339(each.time_s * SECOND)[:19]}Z")


def _agreed(target: str) -> bytes:
    """What is agreed, as the log says, or the file beside a ledger. Raises Failed, Finding."""
    from skep.validator.verify.sources import TileSource

    def read(source: Source) -> bytes:
        assert isinstance(source, TileSource)
        return source.agreed()

    path = Path(target)
    beside = path.parent / TRACE / "agreed"
    found = (beside.read_bytes() if beside.exists() else b"") if path.is_file() else of_log(target, read)
    if not found:
        raise Failed(f"{target}: nothing is agreed there: --checkpoint names what was kept elsewhere")
    return found


def _verified(target: str, old: Note | None, pinned: list[Vkey], copy: Path | None) -> Verified:
    from skep.validator.verify.sources import LedgerSource
    from skep.validator.verify.verify import verify

    path = Path(target)
    if path.is_file():
        if copy is not None:
            raise click.UsageError(f"--copy: {target} is a file, which cp copies")
        source = LedgerSource(path)
        if old is not None and not pinned and not source.keys():
            raise Failed(f"{target}: it names no key by which a checkpoint could be told: --key does")
        return verify(source, old, pinned)
    return of_log(target, lambda source: verify(source, old, pinned), copy)
