"""Artifacts as a fold: whose bytes they are, their names, how long they stay. The bytes are store.py's.

An artifact ends when its time is over, or when it is removed before that; not while it is held, nor while a
job that has not ended or a dead letter needs it, and one of the class audit by its time alone. Then its
tenant knows it no more, and the bytes go when no tenant does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.clock import HOUR, MINUTE, duration, parse_duration, rfc3339
from skep.trace.rules import Decision, Meta

DAY: Final = 24 * HOUR
YEAR: Final = 365 * DAY
SIZE_LIMIT: Final = "limits/artifact-size"
BYTES_LIMIT: Final = "limits/artifact-bytes"
ACTOR_LIMIT: Final = "limits/actor-artifact-bytes"
OUTPUTS_MAX: Final = 1024  # of one job: they are read and copied together.
EXPIRED_MAX: Final = 64  # artifacts that one line ends: their events share a ledger entry of 64 KiB.


class Class(NamedTuple):
    """How long an artifact is kept when nothing is said, and between what one may say; ns."""

    kept_ns: int
    least_ns: int
    most_ns: int
    removable: bool = True  # before its time


CLASSES: Final[Mapping[str, Class]] = {  # the longest last
    "short": Class(24 * HOUR, MINUTE, 7 * DAY),
    "standard": Class(30 * DAY, HOUR, YEAR),
    "audit": Class(7 * YEAR, 7 * YEAR, 30 * YEAR, removable=False),
}
_ORDER: Final = tuple(CLASSES)

_SHA256: Final = Arg("sha256", required=True, kind="sha256")
SEAL: Final = Verb(
    "seal",
    (
        Arg("name", required=True, kind="name", help="a file in /artifacts/stage"),
        Arg("sha256", kind="sha256", help="refuse if the bytes are others"),
        Arg("class", kind="|".join(CLASSES), help="how long it is kept, else standard"),
        Arg("ttl", kind="duration", help="how long exactly, within what its class allows"),
        Arg("type", help="its media type"),
        Arg("job", kind="name", help="it is an output of this job, which the writer holds"),
    ),
    "seal name=notes.txt",
    "make a staged file an artifact; the reply is its hash",
)
HOLD: Final = Verb(
    "hold",
    (_SHA256, Arg("reason", required=True)),
    "hold sha256=ab12… reason='case 7'",
    "it stays until it is released",
)
RELEASE: Final = Verb("release", (_SHA256,), "release sha256=ab12…", "its time counts again")
REMOVE: Final = Verb("remove", (_SHA256,), "remove sha256=ab12…", "end it early, as its class allows")

VERBS: Final = ctl.verbs(SEAL, HOLD, RELEASE, REMOVE)
# As written down: the door has hashed the bytes and put them away, and says so.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        SEAL._replace(
            args=(
                *(arg._replace(required=arg.name in ("name", "sha256")) for arg in SEAL.args),
                Arg("size", required=True, kind="number"),
                Arg("chunks", kind="sha256"),
            )
        ),
        HOLD,
        RELEASE,
        REMOVE,
        Verb("expire"),  # the hive's own: end what is due
    ),
}
# What these seal is a job's.
LEASING: Final = frozenset({"drone-worker", "cuda-annex", "boot-lab", "validator"})


class Sealed(msgspec.Struct, frozen=True, tag_field="type", tag="artifact.sealed", omit_defaults=True):
    sha256: str  # hex
    size: int  # bytes
    tenant: str
    name: str
    actor: str
    kind: str = "standard"  # one of CLASSES
    media: str = ""
    job: str = ""  # whose output it is; "": nobody's
    chunks: str = ""  # sha256 of its manifest; "": it has none
    until_ns: int = 0  # 0: it has no end
    owner: str = ""  # who submitted the job whose output it is; "": ``actor``


class Held(msgspec.Struct, frozen=True, tag_field="type", tag="artifact.held"):
    sha256: str
    tenant: str
    reason: str


class Released(msgspec.Struct, frozen=True, tag_field="type", tag="artifact.released"):
    sha256: str
    tenant: str


class Ended(msgspec.Struct, frozen=True, tag_field="type", tag="artifact.ended"):
    """Its tenant has it no more. ``why``: expired or removed."""

    sha256: str
    tenant: str
    why: str


Event = Sealed | Held | Released | Ended


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
    chunks: str = ""
    until_ns: int = 0  # 0: it has no end
    hold: str = ""  # the reason; "": it is not held
    owner: str = ""  # as it was sealed last

    def due(self, now_ns: int) -> bool:
        return 0 < self.until_ns <= now_ns and not self.hold


@dataclass
class Artifacts:
    by_hash: dict[str, dict[str, Artifact]] = field(default_factory=dict)  # tenant -> sha256
    by_name: dict[str, dict[str, str]] = field(default_factory=dict)  # tenant -> name -> sha256
    names: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)  # by_name from its other end
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)  # job -> name -> sha256, never changed
    sealed: dict[str, int] = field(default_factory=dict)  # sha256 -> how many tenants have it
    sizes: dict[str, int] = field(default_factory=dict)  # tenant -> bytes it has, of each hash once
    # tenant -> owner -> bytes of what was sealed last as its
    actors: dict[str, dict[str, int]] = field(default_factory=dict)

    def copy(self) -> Artifacts:
        return Artifacts(
            {tenant: table.copy() for tenant, table in self.by_hash.items()},
            {tenant: names.copy() for tenant, names in self.by_name.items()},
            {of: names.copy() for of, names in self.names.items()},
            self.outputs.copy(),
            self.sealed.copy(),
            self.sizes.copy(),
            {tenant: sizes.copy() for tenant, sizes in self.actors.items()},
        )

    def due(self, tenant: str, now_ns: int, used: Collection[str]) -> Iterator[Artifact]:
        """The tenant's artifacts whose time is over and that no job uses."""
        for artifact in self.by_hash.get(tenant, {}).values():
            if artifact.due(now_ns) and artifact.sha256 not in used:
                yield artifact


class World(Protocol):
    def held_tenant(self, job: str, node: str) -> str | None:
        """The tenant of a job that the node holds; None: it does not hold it."""

    def limit(self, tenant: str, key: str) -> int | None:
        """The limit that /config has for the tenant; None: there is none. Raises Refusal."""

    def submitter(self, job: str) -> str:
        """The actor that submitted a job that is held."""

    def outputs_max(self, job: str) -> int | None:
        """How many bytes the outputs of a job that is held may have together; None: there is no limit."""

    def artifacts_used(self, tenant: str) -> Collection[str]:
        """The hashes of inputs and outputs of the tenant's jobs that have not ended or may be retried."""


Decided = Decision[Event, str]


def decide(artifacts: Artifacts, order: Order, world: World) -> Decided:
    """What follows from an order; raises Refusal."""
    if order.verb == "expire":
        due = artifacts.due(order.tenant, order.time_ns, world.artifacts_used(order.tenant))
        ended = [Ended(a.sha256, a.tenant, "expired") for a, _ in zip(due, range(EXPIRED_MAX), strict=False)]
        return Decision(tuple(ended), "ok")
    digest = order.args["sha256"].removeprefix("sha256:")
    if order.verb == "seal":
        sealed = _seal(digest, order, world)
        _check_limits(artifacts, sealed, world)
        return Decision((sealed,), f"sha256:{digest}")
    artifact = artifacts.by_hash.get(order.tenant, {}).get(digest)
    if artifact is None or order.node:
        raise refusal(E.MISSING, digest)
    return Decision((_DECIDE[order.verb](artifact, order, world),), f"sha256:{digest}")


def _seal(digest: str, order: Order, world: World) -> Sealed:
    """A job's outputs are its tenant's, whoever runs it."""
    args, tenant = order.args, order.tenant
    if job := args.get("job", ""):
        # The door has put the write into the job's tenant's trace: one write, one tenant.
        if world.held_tenant(job, order.node) != tenant:
            raise refusal(E.DENIED, "rule=lease-holder")
    elif order.role in LEASING:
        raise refusal(E.USAGE, f"seal: job= is missing: {order.node} seals for the jobs it holds")
    kind = args.get("class", "standard")
    return Sealed(
        digest, int(args["size"]), tenant, args["name"], order.actor, kind, args.get("type", ""), job,
        args.get("chunks", "").removeprefix("sha256:"), order.time_ns + _kept_ns(kind, args.get("ttl")),
        world.submitter(job) if job else "",
    )  # fmt: skip


def _check_limits(artifacts: Artifacts, sealed: Sealed, world: World) -> None:
    """What a tenant has already takes no more of its room: it can be sealed again, under any limit of it."""
    _check_outputs(artifacts, sealed, world)
    tenant, owner = sealed.tenant, owner_of(sealed)
    before = artifacts.by_hash.get(tenant, {}).get(sealed.sha256)
    if before is None:
        most = world.limit(tenant, SIZE_LIMIT)
        if most is not None and sealed.size > most:
            raise refusal(E.TOOBIG, f"max={most} bytes of one artifact")
        _check_bytes(world, tenant, BYTES_LIMIT, artifacts.sizes.get(tenant, 0), sealed.size)
    if before is None or owner_of(before) != owner:
        have = artifacts.actors.get(tenant, {}).get(owner, 0)
        _check_bytes(world, tenant, ACTOR_LIMIT, have, sealed.size)


def _check_bytes(world: World, tenant: str, key: str, have: int, size: int) -> None:
    most = world.limit(tenant, key)
    if most is not None and have + size > most:
        raise refusal(E.QUOTA, f"{key.removeprefix('limits/')} have={have} max={most}")


def owner_of(artifact: Sealed | Artifact) -> str:
    """The actor whose bytes these are: who sealed them, or submitted the job whose output they are."""
    return artifact.owner or artifact.actor


def _check_outputs(artifacts: Artifacts, sealed: Sealed, world: World) -> None:
    """A job's outputs together have no more bytes than it asked for: one under the same name is replaced."""
    outputs = artifacts.outputs.get(sealed.job, {})
    if len(outputs) >= OUTPUTS_MAX and sealed.name not in outputs:
        raise refusal(E.QUOTA, f"outputs have={len(outputs)} max={OUTPUTS_MAX}")
    most = world.outputs_max(sealed.job) if sealed.job else None
    if most is None:
        return
    table = artifacts.by_hash.get(sealed.tenant, {})
    # One that has been removed since takes no room.
    have = sum(table[of].size for name, of in outputs.items() if name != sealed.name and of in table)
    if have + sealed.size > most:
        raise refusal(E.QUOTA, f"bytes have={have + sealed.size} max={most}")


def _kept_ns(kind: str, ttl: str | None) -> int:
    of = CLASSES[kind]
    if ttl is None:
        return of.kept_ns
    if not of.least_ns <= (asked_ns := parse_duration(ttl)) <= of.most_ns:
        bounds = f"{duration(of.least_ns)} to {duration(of.most_ns)}"
        raise refusal(E.USAGE, f"seal: ttl={ttl}: expected {bounds} for class={kind}")
    return asked_ns


def _hold(artifact: Artifact, order: Order, world: World) -> Held:
    if artifact.hold:
        # One who holds it must not end another's hold by taking it over.
        raise refusal(E.CONFLICT, f"it is held: {artifact.hold}")
    if not order.args["reason"].strip():
        raise refusal(E.USAGE, "hold: reason= is empty")
    return Held(artifact.sha256, order.tenant, order.args["reason"])


def _release(artifact: Artifact, order: Order, world: World) -> Released:
    if not artifact.hold:
        raise refusal(E.CONFLICT, "it is not held")
    return Released(artifact.sha256, order.tenant)


def _remove(artifact: Artifact, order: Order, world: World) -> Ended:
    if artifact.hold:
        raise refusal(E.DENIED, f"rule=legal-hold {artifact.hold}")
    if not CLASSES[artifact.kind].removable and not artifact.due(order.time_ns):
        until = rfc3339(artifact.until_ns) if artifact.until_ns else "for ever"
        raise refusal(E.DENIED, f"rule=retention class={artifact.kind} until={until}")
    if artifact.sha256 in world.artifacts_used(order.tenant):
        raise refusal(E.BUSY, "a job that has not ended uses it")
    return Ended(artifact.sha256, order.tenant, "removed")


_DECIDE: Final[Mapping[str, Callable[[Artifact, Order, World], Event]]] = {
    "hold": _hold,
    "release": _release,
    "remove": _remove,
}


def apply(artifacts: Artifacts, event: Event, meta: Meta) -> None:
    """Change ``artifacts`` by ``event``."""
    _APPLY[type(event)](artifacts, event, meta)


def _apply_sealed(artifacts: Artifacts, event: Sealed, meta: Meta) -> None:
    table = artifacts.by_hash.setdefault(event.tenant, {})
    before = table.get(event.sha256)
    artifact = Artifact(
        event.sha256, event.size, event.tenant, event.name, event.actor, event.kind, event.media,
        meta.time_ns, meta.seq, event.chunks, event.until_ns, owner=event.owner,
    )  # fmt: skip
    if before is None:
        artifacts.sealed[event.sha256] = artifacts.sealed.get(event.sha256, 0) + 1
        artifacts.sizes[event.tenant] = artifacts.sizes.get(event.tenant, 0) + event.size
    else:
        _charge(artifacts, before, -before.size)
        artifact = msgspec.structs.replace(
            artifact,
            kind=max(event.kind, before.kind, key=_ORDER.index),
            sealed_ns=before.sealed_ns,
            # Promised once, it stays as long.
            until_ns=max(event.until_ns, before.until_ns) if event.until_ns and before.until_ns else 0,
            hold=before.hold,
        )
    table[event.sha256] = artifact
    _charge(artifacts, artifact, artifact.size)
    if event.job:
        # A new dict: copies of the table share it.
        artifacts.outputs[event.job] = artifacts.outputs.get(event.job, {}) | {event.name: event.sha256}
    else:
        _name(artifacts, event)


def _charge(artifacts: Artifacts, artifact: Artifact, by: int) -> None:
    """Its owner has so many bytes more."""
    sizes = artifacts.actors.setdefault(artifact.tenant, {})
    owner = owner_of(artifact)
    sizes[owner] = sizes.get(owner, 0) + by
    if not sizes[owner]:
        del sizes[owner]


def _name(artifacts: Artifacts, event: Sealed) -> None:
    names = artifacts.by_name.setdefault(event.tenant, {})
    before = names.get(event.name)
    if before is not None:
        artifacts.names[event.tenant, before].pop(event.name)
    names[event.name] = event.sha256
    artifacts.names.setdefault((event.tenant, event.sha256), {})[event.name] = None


def _apply_hold(artifacts: Artifacts, event: Held | Released, meta: Meta) -> None:
    table = artifacts.by_hash[event.tenant]
    reason = event.reason if isinstance(event, Held) else ""
    table[event.sha256] = msgspec.structs.replace(table[event.sha256], hold=reason, rev=meta.seq)


def _apply_ended(artifacts: Artifacts, event: Ended, meta: Meta) -> None:
    gone = artifacts.by_hash[event.tenant].pop(event.sha256)
    artifacts.sizes[event.tenant] -= gone.size
    _charge(artifacts, gone, -gone.size)
    for name in artifacts.names.pop((event.tenant, event.sha256), ()):
        del artifacts.by_name[event.tenant][name]
    artifacts.sealed[event.sha256] -= 1
    if not artifacts.sealed[event.sha256]:
        del artifacts.sealed[event.sha256]


_APPLY: Final[Mapping[type, Callable[[Artifacts, Any, Meta], None]]] = {
    Sealed: _apply_sealed,
    Held: _apply_hold,
    Released: _apply_hold,
    Ended: _apply_ended,
}
