"""``skep replay --wire``: a recorded conversation played again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.traces import LEDGER, ledger_at, ledger_beside, recording_at
from skep.fs.address import parse

if TYPE_CHECKING:  # the namespaces take a while to import
    from skep.fs.ninept import Header
    from skep.validator.conversation.talk import Said
    from skep.validator.conversation.wire import Played


def play(
    file: Path, address: str | None, fresh: bool, beside: str | None, to_end: bool, as_json: bool
) -> None:
    """Play ``file``, to the hive at ``address`` (None: to one in memory), and print what came back. Raises
    UsageError, Failed."""
    from skep.validator.conversation.talk import talk

    if address is not None and (fresh or beside is not None):
        raise click.UsageError(
            "--fresh and --ledger are about a hive in memory: expected no ADDRESS beside them"
        )
    with recording_at(file) as reading:
        said = list(talk(reading.header, reading))
        header, is_cut = reading.header, reading.end is None
    if address is not None:
        found = asyncio.run(_played_at(address, header, said, to_end))
    else:
        ledger = ledger_beside(file, beside)
        if ledger is None:
            raise click.UsageError(f"{file}: there is no {LEDGER} beside it: expected --ledger DIR")
        found = _played_again(ledger, header, said, to_end)
    if is_cut:
        found.notes.append("the recording was cut short")
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _tell(found)
    if found.differ:
        raise Failed(f"{file}: it is answered otherwise")


def _played_again(path: Path, header: Header, said: list[Said], to_end: bool) -> Played:
    from skep.roles.again import past_wire
    from skep.roles.sealed import ManifestError
    from skep.validator.conversation.wire import Player, first_seq
    from skep.validator.replay.snapshots import Beside
    from skep.validator.verify.found import Finding

    with ledger_at(path) as ledger:
        seq = first_seq(header, said)

        async def run() -> Played:
            begun = Beside(path, ledger).before(seq + 1)
            async with past_wire(header, ledger, seq, begun) as wire:
                return await Player(header, said, wire, to_end, wire.tree).play()

        try:
            return asyncio.run(run())
        except ManifestError as error:
            raise Failed(f"role {header.role!r}: {error}") from error
        except Finding as error:
            raise Failed(f"{path}: {error}") from error


async def _played_at(address: str, header: Header, said: list[Said], to_end: bool) -> Played:
    from skep.cli.connect import reaching, standing_for
    from skep.validator.conversation.dialed import dialed
    from skep.validator.conversation.wire import Player

    try:
        place = parse(address)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    standing = standing_for(place)
    with reaching(place):
        async with dialed(place, None if standing is None else standing().identity) as wire:
            return await Player(header, said, wire, to_end).play()


def _tell(found: Played) -> None:
    for each in found.differences:
        place = f" {each.path}" if each.path else ""
        where = f"record {each.record}" if each.record else "header"
        what = f"entry {each.entry}" if each.entry else f"{each.message}{place}"
        click.echo(
            f"{where}: {what}: {each.field}: recorded {_short(each.recorded)}, played {_short(each.played)}"
        )
    for note in found.notes:
        click.echo(f"note: {note}")
    for why, count in found.volatile.items():
        click.echo(f"not compared: {why} ({count})")
    said = f"{found.differ} differ" if found.differ else "the same"
    counts = f"{found.said} requests, {found.compared} answers"
    click.echo(f"session {found.session} of {found.principal}: {counts}: {said}")


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
