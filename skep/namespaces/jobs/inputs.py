"""The artifacts that go into a job besides its input, each under a name: which bytes they are. Pure.

They are said as ``inputs=a:<name>,b:<sha256>`` and found out when the job is submitted: what is sealed under
that name afterwards is another's. Whoever holds the job may read them, as they may its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from skep.fs import ctl
from skep.fs.errors import E
from skep.namespaces.order import refusal

INPUTS_MAX: Final = 16  # of one job: their hashes stand in its record and in each of its leases.


class World(Protocol):
    def artifact_named(self, tenant: str, name: str) -> str | None:
        """The hash that the tenant sealed last under the name."""

    def has_artifact(self, tenant: str, sha256: str) -> bool:
        """Whether the tenant sealed these bytes."""


def resolved(args: Mapping[str, str], tenant: str, world: World) -> dict[str, str]:
    """The inputs that the arguments of a submit name, name -> hash, by name; raises Refusal."""
    if "inputs" not in args:
        return {}
    said = ctl.artifacts(args["inputs"])
    if len(said) > INPUTS_MAX:
        raise refusal(E.USAGE, f"submit: inputs=: expected {INPUTS_MAX} or fewer, not {len(said)}")
    return {name: _digest(name, said[name], tenant, world) for name in sorted(said)}


def _digest(name: str, said: str, tenant: str, world: World) -> str:
    if ctl.is_sha256(said):
        if not world.has_artifact(tenant, said):
            raise refusal(E.USAGE, f"submit: inputs={name}:{said}: no artifact of that hash was sealed")
        return said
    digest = world.artifact_named(tenant, said)
    if digest is None:
        raise refusal(E.USAGE, f"submit: inputs={name}:{said}: no artifact was sealed under that name")
    return digest


def said(inputs: Mapping[str, str]) -> str:
    """Inputs as a submit says them."""
    return ",".join(f"{name}:{digest}" for name, digest in inputs.items())
