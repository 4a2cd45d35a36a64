"""``skep conformance``: kits that programs of others are tried with."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec

from skep.cli.connect import coroutine, json_option
from skep.cli.exits import Failed

MARKS: Final = {True: "✓", False: "✗", None: "–"}


@click.group()
def conformance_command() -> None:
    """Try a program against what this hive's protocol asks of it.

    \b
    Examples:
      skep conformance worker -- python examples/worker.py
      skep conformance worker --mount -- sh examples/worker.sh
    """


@conformance_command.command("worker", context_settings={"ignore_unknown_options": True})
@click.option("--mount", "mounted", is_flag=True, help="Mount the hive for it, and name that in SKEP_MOUNT.")
@click.option("--case", "chosen", multiple=True, metavar="CASE", help="Only this one; again for more.")
@click.option("--without", multiple=True, metavar="CASE", help="It does not claim this; again for more.")
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@coroutine
async def worker(
    mounted: bool, chosen: tuple[str, ...], without: tuple[str, ...], as_json: bool, command: tuple[str, ...]
) -> None:
    """Try a worker in any language: does it keep what a lease asks of it?

    A hive of its own is started in a temporary directory, and COMMAND once for each case, with SKEP_HIVE,
    SKEP_NODE and SKEP_TOPICS (docs/WORKERS.md says what is asked of each topic). A line for each case: ✓ as
    it should be, ✗ with what was expected and seen, – not claimed.

    \b
    Examples:
      skep conformance worker -- python examples/worker.py
      skep conformance worker --mount -- sh examples/worker.sh
      skep conformance worker --case cancel --case drain -- ./my-worker
    """
    from skep.cli.kit import CASES, Kit, verdicts

    known = [case.name for case in CASES]
    for name in (*chosen, *without):
        if name not in known:
            raise click.UsageError(f"{name}: no case of this name: expected one of {' '.join(known)}")
    failed = 0
    # What ends it, ends the hive and the worker too: as an interrupt, which cancels what runs here.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.getsignal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="skep-kit-") as directory:
        async for verdict in verdicts(Kit(Path(directory), command, mounted), chosen, without):
            failed += verdict.ok is False
            if as_json:
                click.echo(msgspec.json.encode(verdict._asdict()).decode())
            else:
                click.echo(f"{MARKS[verdict.ok]} {verdict.case:10} {verdict.title}")
                if verdict.ok is False:
                    click.echo(f"             {verdict.why}")
    if failed:
        raise Failed(f"{failed} of {len(chosen or known)} cases: not as it should be")
