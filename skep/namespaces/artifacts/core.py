"""Artifacts as a fold: whose bytes they are and what they are called. The bytes are store.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.rules import Decision, Meta

CLASSES: Final = ("short", "standard", "audit")  # how long it must be kept, the longest last.

SEAL: Final = Verb(
    "seal",
    (
        Arg("name", required=True, kind="name", help="a file in /artifacts/stage"),
        Arg("sha256", kind="sha256", help="refuse if the bytes are others"),
        Arg("class", kind="|".join(CLASSES), help="how long it is kept, else standard"),
        Arg("type", help="its media type"),
        Arg("job", kind="name", help="it is an output of this job, which the writer holds"),
    ),
    "seal name=notes.txt",
    "make a staged file an artifact; the reply is its hash",
)

VERBS: Final = ctl.verbs(SEAL)
# As written down: the door has hashed the bytes and put them away, and says so.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        SEAL._replace(
            args=(
                *(arg._replace(required=arg.name in ("name", "sha256")) for arg in SEAL.args),
                Arg("size", required=True, kind="number"),
            )
        )
    )
}


class Sealed(msgspec.Struct, frozen=True, tag_field="type", tag="artifact.sealed", omit_defaults=True):
    sha256: str  # hex
    size: int  # bytes
    tenant: str
    name: str
    actor: str
    kind: str = "standard"  # one of CLASSES
    media: str = ""
    job: str = ""  # whose output it is; "": nobody's


Event = Sealed


class Artifact(msgspec.Struct, frozen=True):
    """What a tenant knows of some bytes. ``name`` is the latest."""

    sha256: str
    size: int
    tenant: str
    name: str
    actor: str
    kind: str
    media: str
    sealed_ns: int  # the first time
    rev: int


@dataclass
class Artifacts:
    by_hash: dict[str, dict[str, Artifact]] = field(default_factory=dict)  # tenant -> sha256
    by_name: dict[str, dict[str, str]] = field(default_factory=dict)  # tenant -> name -> sha256
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)  # job -> name -> sha256, never changed
    sealed: dict[str, None] = field(default_factory=dict)  # every sha256, whoever's

    def copy(self) -> Artifacts:
        return Artifacts(
            {tenant: table.copy() for tenant, table in self.by_hash.items()},
            {tenant: names.copy() for tenant, names in self.by_name.items()},
            self.outputs.copy(),
            self.sealed.copy(),
        )


class World(Protocol):
    def held_tenant(self, job: str, node: str) -> str | None:
        """The tenant of a job that the node holds; None: it does not hold it."""


Decided = Decision[Event, str]


def decide(artifacts: Artifacts, order: Order, world: World) -> Decided:
    """What follows from ``seal``; raises Refusal. A job's outputs are its tenant's, whoever runs it."""
    args, tenant = order.args, order.tenant
    if job := args.get("job", ""):
        # The door has put the write into the job's tenant's trace: one write, one tenant.
        if world.held_tenant(job, order.node) != tenant:
            raise refusal(E.DENIED, "rule=lease-holder")
    elif order.node:
        raise refusal(E.USAGE, f"seal: job= is missing: {order.node} seals for the jobs it holds")
    digest = args["sha256"].removeprefix("sha256:")
    event = Sealed(
        digest, int(args["size"]), tenant, args["name"], order.actor, args.get("class", "standard"),
        args.get("type", ""), job,
    )  # fmt: skip
    return Decision((event,), f"sha256:{digest}")


def apply(artifacts: Artifacts, event: Event, meta: Meta) -> None:
    """Change ``artifacts`` by ``event``."""
    table = artifacts.by_hash.setdefault(event.tenant, {})
    before = table.get(event.sha256)
    kind, since_ns = event.kind, meta.time_ns
    if before is not None:
        kind, since_ns = max(kind, before.kind, key=CLASSES.index), before.sealed_ns
    table[event.sha256] = Artifact(
        event.sha256, event.size, event.tenant, event.name, event.actor, kind, event.media, since_ns, meta.seq
    )
    artifacts.sealed[event.sha256] = None
    if event.job:
        # A new dict: copies of the table share it.
        artifacts.outputs[event.job] = artifacts.outputs.get(event.job, {}) | {event.name: event.sha256}
    else:
        artifacts.by_name.setdefault(event.tenant, {})[event.name] = event.sha256
