"""``skep boot bootinfo``: a BootInfo page in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from skep.cli.boot_run import NotAsExpected
from skep.cli.connect import json_option

if TYPE_CHECKING:  # construct takes a while to import
    from skep.boot.bootinfo import BootInfo


def address(text: str) -> int:
    """0x409000, or in decimal."""
    return int(text, 0)


@click.command()
@click.option("--bits", type=click.Choice(["32", "64"]), default="64", show_default=True, help="Of a word.")
@click.option("--mcs", is_flag=True, help="The kernel is of the MCS kind.")
@click.option("--at", type=address, metavar="ADDRESS", help="Where it is in the root task: checked.")
@click.option(
    "--elf",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The root task: checked against it.",
)
@json_option
@click.argument("dump", type=click.File("rb"))
def bootinfo_command(
    bits: str, mcs: bool, at: int | None, elf: Path | None, as_json: bool, dump: BinaryIO
) -> None:
    """Read the BootInfo page in DUMP (-: stdin), with what follows it, and check what must hold of it.

    A dump is memory as it is: of QEMU's monitor, memsave or pmemsave; or what [bootinfo] in the manifest of
    skep boot run leaves in its --out directory.

    \b
    Exit status: 0 all holds, 2 no BootInfo, 51 something does not hold (layout_invalid).

    \b
    Examples:
      skep boot bootinfo build/boot/bootinfo.bin --elf rootserver
      skep boot bootinfo --bits 32 --mcs --at 0x409000 page.bin
    """
    from skep.boot.bootinfo import EXTRA_MAX, PAGE, BootInfoError, decode, misplaced
    from skep.boot.classes import Class
    from skep.boot.symbols import Symbols

    try:
        info = decode(dump.read(PAGE + EXTRA_MAX), int(bits), mcs)
    except BootInfoError as error:
        raise click.UsageError(f"{dump.name}: {error}") from error
    info.broken += misplaced(info, at, Symbols(elf).span if elf is not None else None)
    if as_json:
        click.echo(msgspec.json.encode(info))
    else:
        tell(info)
    if info.broken:
        raise NotAsExpected(f"bootinfo: {'; '.join(info.broken)}", Class.LAYOUT_INVALID.row.status)


def tell(info: BootInfo) -> None:
    for name, value in info.words.items():
        click.echo(f"{name:24} {value:#x}" if name == "ipcBuffer" else f"{name:24} {value}")
    for name, (start, end) in info.regions.items():
        click.echo(f"{name:24} {start} to {end}, {end - start} slots")
    for each in info.untyped:
        kind = "device" if each.device else "memory"
        click.echo(f"untyped                  {each.paddr:#x}, 1 << {each.bits} bytes of {kind}")
    for chunk in info.extra:
        told = f": {chunk.value}" if chunk.value is not None else ""
        click.echo(f"extra                    {chunk.name} (id {chunk.id}), {chunk.size} bytes{told}")
