"""``skep witness``: follow hives, and cosign what continues what was seen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skep.cli.connect import ADDRESS, identity_option, standing_for
from skep.cli.exits import Failed, told
from skep.cli.serving import DURATION
from skep.fs.address import Address
from skep.trace.clock import SECOND

if TYPE_CHECKING:  # cryptography takes a while to import
    from skep.roles.witnessing import Peer
    from skep.trace.note import Vkey


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where it keeps its key and what it has seen; nobody else's disk should hold it.",
)
@click.option("--name", help="A new witness's, in its key for ever. Default: HOST/witness.")
@click.option(
    "--log", "keys", multiple=True, help="A log's key, as /log/trace/keys writes it; again for more."
)
@click.option(
    "--logs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of such keys, one a line.",
)
@click.option("--trust-first", is_flag=True, help="Believe the key that a new hive shows at first sight.")
@click.option(
    "--listen",
    type=ADDRESS,
    multiple=True,
    help="unix:/path, or tcp:127.0.0.1:port (0: any free). Default: witness.sock in --dir.",
)
@click.option("--peer", "peers", type=ADDRESS, multiple=True, help="Another witness, to compare with.")
@identity_option
@click.option("--every", type=DURATION, default="1s", show_default=True, help="Between two looks.")
@click.argument("hives", type=ADDRESS, nargs=-1)
def witness_command(
    directory: Path,
    name: str | None,
    keys: tuple[str, ...],
    logs: Path | None,
    trust_first: bool,
    listen: tuple[Address, ...],
    peers: tuple[Address, ...],
    every: int,
    hives: tuple[Address, ...],
) -> None:
    """Be a witness: follow hives, and cosign what continues what was seen. What does not continue it is kept.
    It ends at SIGTERM.

    Prints its key, a line for each address it serves, then `ready`. A hive takes its cosignatures when it is
    told the key: add name=w1 key=KEY > /log/trace/witness/ctl.

    \b
    Examples:
      skep witness --dir ~/witness --trust-first unix:var/hive/hive.sock
      skep witness --dir ~/witness --log 'hive/log/trace+1a2b3c4d+AQ…' tls:hive.example.org:5640
      skep witness --dir ~/witness --logs known --peer unix:/run/w2.sock tls:hive.example.org:5640
    """
    if any(address.kind == "tls" for address in listen):
        # By TLS only a queen is believed to serve.
        raise click.UsageError("a witness is served to this machine: unix:/path or tcp:127.0.0.1:port")
    from skep.fs.errors import FsError
    from skep.namespaces.seen import WitnessError
    from skep.roles.witness import Plan, witness
    from skep.roles.worker import host_node
    from skep.trace.note import NoteError, parse_vkey

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    lines = [*keys, *(logs.read_text("utf-8").split("\n") if logs is not None else ())]
    try:
        known: list[Vkey] = [parse_vkey(line.split(" ")[0]) for line in lines if line and line[0] != "#"]
    except NoteError as error:
        raise click.UsageError(str(error)) from error
    plan = Plan(
        directory,
        name or f"{host_node()}/witness",
        [_peer(hive) for hive in hives],
        listen or (Address("unix", path=str(directory / "witness.sock")),),
        [_peer(peer) for peer in peers],
        known,
        trust_first,
        every / SECOND,
    )
    import uvloop

    try:
        with told("witness"):
            uvloop.run(witness(plan, lambda line: print(line, flush=True)))
    except WitnessError as error:
        raise Failed(str(error)) from error
    except FsError as error:
        raise Failed(error.text) from error
    except (OSError, ValueError) as error:
        raise Failed(str(error)) from error


def _peer(address: Address) -> Peer:
    from skep.roles.witnessing import Peer

    return Peer(address, standing_for(address))
