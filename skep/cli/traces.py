"""What a command is told to look at: a ledger, or a recorded conversation and the ledger beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import click

from skep.cli.exits import Failed

if TYPE_CHECKING:
    from skep.fs.ninept import Reading
    from skep.trace.ledger import Ledger

LEDGER: Final = "ledger.db"  # of a hive's directory
SESSIONS: Final = Path("log", "trace", "sessions")  # where a hive's directory has its recordings
SUFFIX: Final = ".9pt"


class Target(NamedTuple):
    """What is looked at: a ledger's file, or a conversation's, "-" for stdin; the other is None."""

    ledger: Path | None
    talk: Path | None


def target_of(said: str, session: str | None) -> Target:
    """Raises UsageError when there is nothing."""
    path = Path(said)
    if said == "-":
        return Target(None, path)
    if session is not None and path.is_dir():
        found = path / SESSIONS / f"{session}{SUFFIX}"
        if not found.is_file():
            raise click.UsageError(
                f"{said}: session {session} was not recorded, expected {SESSIONS}/{session}{SUFFIX}"
            )
        return Target(None, found)
    path = Path(said.removeprefix("sqlite://"))
    path = path / LEDGER if path.is_dir() else path
    if not path.is_file():
        raise click.UsageError(f"{said}: expected a hive's directory, its {LEDGER}, or a {SUFFIX} file")
    with path.open("rb") as file:
        is_talk = file.read(9) == b"skep-9pt/"
    return Target(None, path) if is_talk or path.suffix == SUFFIX else Target(path, None)


@contextlib.contextmanager
def ledger_at(path: Path) -> Iterator[Ledger]:
    """The ledger; what is wrong with it ends the command."""
    from skep.trace.ledger import LedgerError, open_ledger

    try:
        with contextlib.closing(open_ledger(str(path))) as ledger:
            yield ledger
    except LedgerError as error:
        raise Failed(f"{path}: {error}") from error


@contextlib.contextmanager
def recording_at(path: Path) -> Iterator[Reading]:
    """The conversation; what is wrong with it ends the command, with the record's number."""
    from skep.fs.ninept import NineptError, Reading

    with contextlib.ExitStack() as stack:
        if str(path) == "-":
            file: IO[bytes] = BytesIO(sys.stdin.buffer.read())
        else:
            file = stack.enter_context(path.open("rb"))
        try:
            yield Reading(file)
        except NineptError as error:
            raise Failed(f"{path}: {error}") from error


def ledger_beside(talk: Path | None, said: str | None) -> Path | None:
    """The ledger beside a conversation; None: there is none."""
    if said is not None:
        found = target_of(said, None).ledger
        if found is None:
            raise click.UsageError(f"--ledger {said}: expected a hive's directory or its {LEDGER}")
        return found
    if talk is None or str(talk) == "-":
        return None
    place = talk.resolve().parent
    hive = (
        place.parents[len(SESSIONS.parts) - 1]
        if place.parts[-len(SESSIONS.parts) :] == SESSIONS.parts
        else place
    )
    return hive / LEDGER if (hive / LEDGER).is_file() else None
