"""``skep serve``, ``skep worker`` and ``skep export``: what runs until it is told to stop."""

from __future__ import annotations

import asyncio
import signal

import click

from skep.cli.connect import ADDRESS
from skep.fs.address import Address


@click.command()
@click.option(
    "--listen", type=ADDRESS, required=True, help="unix:/path, or tcp:127.0.0.1:port (0: any free)."
)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def export_command(listen: Address, read_only: bool, directory: str) -> None:
    """Serve a directory of this machine over 9P, with your rights, until interrupted.

    Prints `serving ADDRESS` when it does.

    \b
    Examples:
      skep export --listen tcp:127.0.0.1:0 --read-only /usr/share/doc
      skep export --listen unix:/tmp/src.sock ~/src &
      skep ls -H unix:/tmp/src.sock
    """
    import uvloop

    uvloop.run(_export(directory, listen, read_only))


async def _export(directory: str, address: Address, read_only: bool) -> None:
    from skep.fs.export import Export
    from skep.fs.server import listen

    try:
        async with listen(Export(directory, read_only).root, address) as listener:
            print(f"serving {listener.address}", flush=True)
            await _told()
    except ValueError as error:
        raise click.UsageError(str(error)) from error


async def _told() -> None:
    """Return at SIGTERM or SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
