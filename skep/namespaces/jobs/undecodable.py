"""Writes that are no requests, as a fold: what somebody who may submit wrote and nobody could read.

They stand among the dead letters until they are thrown away. Of each its beginning is kept, and of the whole
its length and hash; of a tenant only so many, and those that came first: later ones show what the first do.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.rules import Decision, Meta

KEPT_MAX: Final = 4096  # bytes of one write: with its line it is in the ledger, and in memory.
LETTERS_MAX: Final = 64  # of a tenant
CODE: Final = "undecodable"

# The door's own: no file takes it.
KEEP: Final = Verb(
    "keep",
    (
        Arg("data", required=True, help="how the write begins, in base64"),
        Arg("size", required=True, kind="number", help="bytes of the whole"),
        Arg("sha256", required=True, kind="sha256", help="of the whole"),
        Arg("why", required=True, help="what its writer was told"),
    ),
)


class Kept(msgspec.Struct, frozen=True, tag_field="type", tag="dlq.kept"):
    letter: str
    tenant: str
    actor: str
    role: str
    data: str  # base64
    size: int
    sha256: str  # hex
    why: str


class Dropped(msgspec.Struct, frozen=True, tag_field="type", tag="dlq.dropped"):
    letter: str
    tenant: str
    reason: str


Event = Kept | Dropped


class Letter(msgspec.Struct, frozen=True):
    kept: Kept
    time_ns: int
    rev: int

    @property
    def data(self) -> bytes:
        return b64decode(self.kept.data)


@dataclass
class Undecodable:
    by_tenant: dict[str, dict[str, Letter]] = field(default_factory=dict)  # as they came

    def copy(self) -> Undecodable:
        return Undecodable({tenant: letters.copy() for tenant, letters in self.by_tenant.items()})

    def find(self, tenant: str, id: str, actor: str = "") -> Letter | None:
        """The letter, if it exists for the tenant; ``actor``: that wrote it, "": whoever did."""
        found = self.by_tenant.get(tenant, {}).get(id)
        return found if found is not None and actor in ("", found.kept.actor) else None

    def is_full(self, tenant: str) -> bool:
        return len(self.by_tenant.get(tenant, ())) >= LETTERS_MAX


Decided = Decision[Event, str]


def decide(letters: Undecodable, order: Order) -> Decided:
    """What follows from an order to /dlq that is about such a letter; raises Refusal."""
    if order.verb == KEEP.name:
        return _keep(letters, order)
    id = order.args["id"]
    found = letters.find(order.tenant, id, order.actor if order.node else "")
    if found is None:
        raise refusal(E.MISSING)
    order.check_rev(found.rev)
    if order.verb == "retry":
        raise refusal(E.USAGE, f"retry: id={id}: nobody could read it: submit what was meant")
    if not order.args["reason"].strip():
        raise refusal(E.USAGE, "discard: reason=: expected why")
    return Decision((Dropped(id, order.tenant, order.args["reason"]),), id)


def _keep(letters: Undecodable, order: Order) -> Decided:
    args = order.args
    if letters.is_full(order.tenant):
        raise refusal(E.QUOTA, f"letters have={LETTERS_MAX} max={LETTERS_MAX}")
    try:
        data = b64decode(args["data"], validate=True)
    except ValueError as error:
        raise refusal(E.USAGE, f"keep: data=: {error}") from error
    if len(data) > min(KEPT_MAX, int(args["size"])):
        raise refusal(E.USAGE, f"keep: data=: {len(data)} bytes, expected {KEPT_MAX} at most")
    event = Kept(
        order.id, order.tenant, order.actor, order.role, args["data"], int(args["size"]),
        args["sha256"].removeprefix("sha256:"), args["why"],
    )  # fmt: skip
    return Decision((event,), order.id)


def apply(letters: Undecodable, event: Event, meta: Meta) -> None:
    """Change ``letters`` by ``event``."""
    of = letters.by_tenant.setdefault(event.tenant, {})
    match event:
        case Kept():
            of[event.letter] = Letter(event, meta.time_ns, meta.seq)
        case Dropped():
            del of[event.letter]
    if not of:
        del letters.by_tenant[event.tenant]
