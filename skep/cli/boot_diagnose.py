"""``skep boot diagnose``: what a serial log tells, also one of hardware."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from skep.cli.boot_run import NotAsExpected, cause_of, tell_evidence
from skep.cli.connect import json_option

PIECE: Final = 65536


@click.command()
@click.option(
    "--elf",
    "elves",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the symbols of what ran, also an elfloader's image; may be repeated.",
)
@click.option(
    "--arch", type=click.Choice(["x86_64", "aarch64"]), help="Default: that of the files, or of the log."
)
@click.option(
    "--expect",
    "expected",
    multiple=True,
    metavar="REGEX",
    help="A line that must come; may be repeated, in their order.",
)
@json_option
@click.argument("log", type=click.File("rb"))
def diagnose_command(
    elves: tuple[Path, ...], arch: str | None, expected: tuple[str, ...], as_json: bool, log: BinaryIO
) -> None:
    """Read the serial log LOG (-: stdin) and name the one cause why the boot failed, with what shows it.

    \b
    Exit status: 0 nothing is wrong with it, 2 usage; else the cause, as of skep boot run.

    \b
    Examples:
      skep boot diagnose serial.log --elf kernel.elf --elf rootserver
      picocom --quiet /dev/ttyUSB0 | skep boot diagnose - --expect 'All is well in the universe'
    """
    from skep.boot.diagnose import arch_of, of_log, read
    from skep.boot.symbols import Symbols, archived

    for pattern in expected:
        try:
            re.compile(pattern)
        except re.error as error:
            raise click.UsageError(f"--expect {pattern}: {error}") from error
    symbols = [each for path in elves for each in (Symbols(path), *archived(path))]
    reading = read(_pieces(log), expected)
    arch = arch or arch_of(reading, symbols)
    verdict, grammar = of_log(reading, arch, symbols), reading.grammar
    if as_json:
        said = {
            "arch": arch,
            "lines": grammar.lines,
            "firmware_lines": grammar.firmware,
            "boots": grammar.boots,
            "passed_over": grammar.noise,
            "verdict": verdict,
        }
        click.echo(msgspec.json.encode(said))
    else:
        tell_evidence(verdict)
        passed = f", {grammar.noise} errors of users passed over" if grammar.noise else ""
        click.echo(f"{grammar.lines} lines{passed}" + ("" if verdict is not None else ": nothing is wrong"))
    if verdict is not None:
        raise NotAsExpected(cause_of(verdict), verdict.cause.row.status)


def _pieces(log: BinaryIO) -> Iterator[bytes]:
    while piece := log.read(PIECE):
        yield piece
