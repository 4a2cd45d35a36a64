"""Who a machine is to the hive whose work it does, and where it keeps what is its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import click

from skep.cli.connect import standing_for
from skep.cli.settings import default_state
from skep.fs.address import Address
from skep.fs.ctl import labels as parsed_labels
from skep.fs.link import Standing

node_option: Final = click.option(
    "--node", help="Its name in the hive. Default: its identity's, else the host's."
)


class Machine(NamedTuple):
    """``standing``: None where the address is none of TLS."""

    hive: Address
    node: str
    directory: Path
    standing: Callable[[], Standing] | None


def machine(kind: str, hive: Address, node: str | None, directory: Path | None) -> Machine:
    """A machine of this ``kind``: worker, validator, annex. Raises UsageError for a name that its identity
    has not."""
    from skep.roles.worker import host_node

    standing = standing_for(hive)
    own = "" if standing is None else standing().identity.name.node
    if node is not None and own not in ("", node):
        raise click.UsageError(f"--node {node}: the identity is that of {own}")
    name = node or own or host_node()
    return Machine(hive, name, directory or default_state().parent / f"{kind}-{name}", standing)


def labels(said: str) -> dict[str, str]:
    """What jobs may require of it. Raises UsageError."""
    try:
        return parsed_labels(said)
    except ValueError as error:
        raise click.UsageError(f"--labels {said}: expected k:v,k:v") from error
