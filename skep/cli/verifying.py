"""``skep verify``: whether a log is what it was."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.logs import TRACE, NoLog, of_log
from skep.cli.traces import LEDGER
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


class Told(msgspec.Struct, omit_defaults=True):
    """What ``--json`` prints. ``kind`` "": it is consistent; else what was found, and at which entry, 0: at
    none."""

    kind: str = ""
    entry: int = 0
    text: str = ""
    origin: str = ""
    size: int = 0
    root: str = ""  # base64
    signers: list[str] = []
    continues: int | None = None  # entries of the older checkpoint; None: there was none
    cosigned: dict[str, str] = {}  # when, by the witness's key


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
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.argument("target")
def verify_command(
    checkpoint: Path | None,
    keys: tuple[str, ...],
    witnesses: tuple[str, ...],
    quorum: int | None,
    copy: Path | None,
    as_json: bool,
    target: str,
) -> None:
    """Verify that a log was not changed, cut, forked or rewound. Every entry and hash is looked at, and who
    signed.

    TARGET is a mounted hive, a directory of tiles, a hive's directory or its ledger.db, or a hive's address.
    The first place that is not consistent is told.

    \b
    Exit status: 0 consistent, 1 failed, 2 usage, 3 cannot reach the hive, 4 refused;
    10 altered, 11 dropped, 12 swapped, 13 inserted, 14 forked, 15 rewound, 16 truncated,
    17 signed by another key, 18 damaged, 19 cosigned by too few witnesses.

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
    except NoteError as error:
        raise click.UsageError(f"--checkpoint {checkpoint}: {error}") from error
    try:
        pinned = [parse_vkey(key) for key in keys]
        known = [parse_vkey(key, COSIGNER) for key in dict.fromkeys(witnesses)]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    need = 0 if not known else quorum or len(known) // 2 + 1
    if (quorum or 0) > len(known):
        raise click.UsageError(f"--quorum {quorum}: of {len(known)} witnesses that are named")
    file = file_of(target)
    try:
        if known and old is None:
            old = parse_note(_agreed(target, file))
        cosigned = check_witnessed(old, known, need) if known and old is not None else []
        told = _told(_verified(target, file, old, pinned, copy))
    except NoLog as error:
        expected = f"a mount, a directory of tiles, a hive's directory, its {LEDGER} or an address"
        raise click.UsageError(f"{target}: there is no log: expected {expected}") from error
    except NoteError as error:
        raise Failed(f"{target}: agreed: {error}") from error
    except Finding as error:
        if as_json:
            found = Told(error.kind.name.lower(), error.entry, str(error))
            click.echo(msgspec.json.encode(found))
        raise Inconsistent(f"{target}: {error}", error.kind.value) from error
    told.cosigned = {str(each.vkey): f"{rfc3339(each.time_s * SECOND)[:19]}Z" for each in cosigned}
    if as_json:
        click.echo(msgspec.json.encode(told))
    else:
        _tell(told)


def file_of(target: str) -> Path | None:
    """The ledger's file that is meant; None: it is a log in tiles, or at an address."""
    path = Path(target.removeprefix("sqlite://"))
    path = path / LEDGER if (path / LEDGER).is_file() else path
    return path if path.is_file() else None


def _told(verified: Verified) -> Told:
    head, old = verified.head, verified.old
    return Told(
        origin=head.origin,
        size=head.size,
        root=b64encode(head.root).decode(),
        signers=[str(signer) for signer in verified.signers],
        continues=None if old is None else old.size,
    )


def _tell(told: Told) -> None:
    click.echo(f"consistent: {told.size} entries of {told.origin}, root {told.root}")
    for signer in told.signers:
        click.echo(f"signed by {signer}")
    if told.continues is not None:
        click.echo(f"continues the checkpoint of {told.continues} entries")
    for witness, time in told.cosigned.items():
        click.echo(f"cosigned by {witness} at {time}")


def _agreed(target: str, file: Path | None) -> bytes:
    """What is agreed, as the log says, or the file beside a ledger. Raises Failed, Finding."""
    from skep.validator.verify.sources import TileSource

    def read(source: Source) -> bytes:
        assert isinstance(source, TileSource)
        return source.agreed()

    if file is None:
        found = of_log(target, read)
    else:
        beside = file.parent / TRACE / "agreed"
        found = beside.read_bytes() if beside.exists() else b""
    if not found:
        raise Failed(f"{target}: nothing is agreed there: --checkpoint names what was kept elsewhere")
    return found


def _verified(
    target: str, file: Path | None, old: Note | None, pinned: list[Vkey], copy: Path | None
) -> Verified:
    from skep.validator.verify.sources import LedgerSource
    from skep.validator.verify.verify import verify

    if file is None:
        return of_log(target, lambda source: verify(source, old, pinned), copy)
    if copy is not None:
        raise click.UsageError(f"--copy: {file} is a file, which cp copies")
    source = LedgerSource(file)
    if old is not None and not pinned and not source.keys():
        verify(source)  # what is wrong with it may be why
        raise Failed(f"{target}: it names no key by which a checkpoint could be told: --key does")
    return verify(source, old, pinned)
