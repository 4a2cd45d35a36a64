"""``skep bench``: what a live server does in a second."""

from __future__ import annotations

import asyncio
import getpass
from typing import Final

import click
import msgspec

from skep.bench import Row, run
from skep.cli.connect import dialled, hive_option, json_option
from skep.cli.exits import Failed
from skep.fs.address import Address
from skep.native.load import Place

_DIALECTS: Final = ("9P2000.L", "9P2000.u", "9P2000")


@click.command()
@hive_option
@json_option
@click.option("--seconds", default=1.0, show_default=True, help="How long each row is measured.")
@click.option("--dialect", type=click.Choice(_DIALECTS), default="9P2000.L", show_default=True)
@click.option("--aname", default="", help="The tree to attach, where a server has several.")
@click.argument("path", default="/version")
def bench_command(hive: Address, as_json: bool, seconds: float, dialect: str, aname: str, path: str) -> None:
    """Measure a live 9P server; nothing is written to it. PATH is the file that is read.

    \b
    Examples:
      skep bench
      skep bench -H tcp:127.0.0.1:5640 --seconds 3 /some/file
    """
    if hive.kind == "tls":
        raise click.UsageError(f"{hive}: what is measured here is 9P alone: unix:/path or tcp:host:port")
    asyncio.run(_reached(hive))
    place = Place(str(hive), path.strip("/"), dialect, aname, getpass.getuser())
    measured = 0
    for row in run(place, seconds=seconds):
        click.echo(msgspec.json.encode(_json(row)) if as_json else _line(row))
        measured += row.value is not None
    if not measured:
        raise Failed(f"{hive}: {row.error}")


async def _reached(hive: Address) -> None:
    """Raises Unreachable, rather than a table of errors."""
    async with dialled(hive):
        pass


def _line(row: Row) -> str:
    figure = row.error if row.value is None else f"{row.value:,.0f} {row.case.unit}"
    return f"{row.case.name:36} {figure:>20}"


def _json(row: Row) -> dict[str, object]:
    return {"case": row.case.name, "value": row.value, "unit": row.case.unit, "error": row.error}
