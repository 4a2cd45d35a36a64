"""``skep csv``: nodes, configuration and jobs as sheets, out of a hive and into one."""

from __future__ import annotations

import sys
from hashlib import sha256
from typing import BinaryIO, Final

import click

from skep.cli.connect import coroutine, dialled, hive_option
from skep.cli.exits import told
from skep.fs.address import Address

KINDS: Final = ("nodes", "config", "jobs")


@click.group()
def csv_command() -> None:
    """Export and import nodes, configuration and jobs as CSV.

    What is exported, imported into a fresh hive and exported again is the same bytes. Texts are what they
    are, also those that a spreadsheet program takes for formulas: have it import the columns as text.

    \b
    Examples:
      skep csv export nodes -o nodes.csv
      skep csv import nodes nodes.csv
    """


@csv_command.command("export")
@hive_option
@click.option(
    "-o", "--out", type=click.File("wb", atomic=True), default="-", help="A file for it; else stdout."
)
@click.argument("kind", type=click.Choice(KINDS))
@coroutine
async def export_command(hive: Address, out: BinaryIO, kind: str) -> None:
    """Print the hive's records of a kind.

    \b
    Example:
      skep csv export config -o config.csv
    """
    path = f"/{kind}/export.csv"
    async with dialled(hive) as client:
        with told(path):
            async with await client.open(path) as fid:
                async for piece in fid.pieces():
                    out.write(piece)
    out.flush()


@csv_command.command("import")
@hive_option
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("file", type=click.File("rb"))
@coroutine
async def import_command(hive: Address, kind: str, file: BinaryIO) -> None:
    """Import FILE, or stdin for "-", into the hive. All of it is checked before anything is written.

    \b
    Example:
      skep csv import config config.csv
    """
    data, path, ctl = file.read(), f"/{kind}/import.csv", f"/{kind}/ctl"
    async with dialled(hive) as client:
        with told(path):
            async with await client.open(path, "w", trunc=True) as fid:
                await fid.write_all(data)
        with told(ctl):
            async with await client.open(ctl, "rw") as fid:
                await fid.write_all(f"import sha256={sha256(data).hexdigest()}\n".encode())
                reply = b"".join([piece async for piece in fid.pieces()]).decode()
    click.echo(f"{reply.partition(' ')[0].strip()} records", file=sys.stderr)
