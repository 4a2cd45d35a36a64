"""``skep validator``: does the runs that were asked of a hive's /validator."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from skep.cli.connect import ADDRESS, default_address, identity_option, standing_for
from skep.cli.exits import Failed, told
from skep.cli.settings import default_state
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
@click.option("--node", help="Its name in the hive. Default: its identity's, else the host's.")
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
    from skep.roles.worker import WorkerError, host_node, work
    from skep.trace.note import NoteError, parse_vkey

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    address = hive or default_address()
    standing = standing_for(address)
    own = "" if standing is None else standing().identity.name.node
    if node is not None and own not in ("", node):
        raise click.UsageError(f"--node {node}: the identity is that of {own}")
    name = node or own or host_node()
    try:
        trusted = [parse_vkey(key) for key in keys]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    place = directory or default_state().parent / f"validator-{name}"
    try:
        with told(str(address)):
            uvloop.run(
                work(plan(address, name, place, trusted, standing), lambda said: print(said, flush=True))
            )
    except WorkerError as error:
        raise Failed(str(error)) from error
