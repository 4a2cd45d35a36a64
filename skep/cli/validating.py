"""``skep validator``: does the runs that were asked of a hive's /validator."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from skep.cli.connect import ADDRESS, default_address, identity_option
from skep.cli.exits import Failed, told
from skep.cli.joining import machine, node_option
from skep.fs.address import Address


@click.command()
@click.option(
    "-H",
    "--hive",
    type=ADDRESS,
    help="The hive's address for validators: tls:host:port, or what the queen was told --listen-validators. "
    "Default: SKEP_HIVE.",
)
@identity_option
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="A key that is trusted, as /log/trace/keys writes it; repeatable. Default: at the first run those "
    "that the hive tells, then those of the checkpoint that was kept.",
)
@node_option
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it keeps its last checkpoint. Default: validator-NODE beside the state of a hive.",
)
def validator_command(
    hive: Address | None, keys: tuple[str, ...], node: str | None, directory: Path | None
) -> None:
    """Run a validator: do what was asked of /validator. At SIGTERM it ends what runs, and takes nothing new.

    Prints `ready NODE` when the hive has taken it in. It reads the hive's log as any outsider does, decides
    every line again when that is asked, and leaves reports in /log/validator. Keep it on another machine than
    the hive: what it remembers is what a rewound or forked log is found by.

    \b
    Examples:
      skep validator -H tls:hive.example.org:5640
      skep validator -H unix:var/hive/validator.sock --dir ./var/validator
      skep write /validator/ctl 'replay from=1 to=1000'
    """
    import uvloop

    from skep.roles.validator import plan
    from skep.roles.worker import WorkerError, work
    from skep.trace.note import NoteError, parse_vkey

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    address = hive or default_address()
    own = machine("validator", address, node, directory)
    try:
        trusted = [parse_vkey(key) for key in keys]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    try:
        with told(str(address)):
            told_to = plan(address, own.node, own.directory, trusted, own.standing)
            uvloop.run(work(told_to, lambda said: print(said, flush=True)))
    except WorkerError as error:
        raise Failed(str(error)) from error
