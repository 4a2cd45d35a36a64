"""Whose conversations are to be recorded: orders, and what became of each. namespaces/tapes.py records them.

An order names a session, or a principal whose sessions are recorded from their first message on. It is of its
writer's tenant, and reaches that tenant's sessions; the hive's own reaches all. An order ends when it is
taken back, a session's with the session, and all with the process that serves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import HIVE_TENANT, Order, refusal
from skep.trace.rules import Decision, Meta

ORDERS_MAX: Final = 256  # at a time, of all tenants: each session that attaches is held against them
VERBS: Final = ctl.verbs(
    Verb(
        "record",
        (
            Arg("session", kind="name", help="one that is attached now"),
            Arg("principal", help="all its sessions to come, from their first message on"),
            Arg("set", required=True, kind="on|off", help="on and off stand for set=on and set=off"),
        ),
        "record session=01JD… on",
        "write down what is said in a conversation, in sessions/<id>.9pt",
    )
)
# The hive's own.
OWN: Final[Mapping[str, Verb]] = ctl.verbs(
    Verb(
        "recorded",
        (
            Arg("session", required=True, kind="name"),
            Arg("why", required=True, help="as the recording's end has it; cut: it has none"),
            Arg("file", help="its name; none was made when it is not there"),
            Arg("messages", kind="number"),
            Arg("lost", kind="number"),
            Arg("size", kind="number", help="of the file, in bytes"),
            Arg("link", kind="sha256", help="of its last record"),
        ),
    ),
    Verb("unordered"),
)


class Ordered(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="log.ordered"):
    """Either a session or a principal is to be recorded, or no more."""

    tenant: str
    on: bool
    session: str = ""
    principal: str = ""

    def reaches(self, tenant: str) -> bool:
        """Whether a session of ``tenant`` is recorded by it."""
        return self.tenant in (HIVE_TENANT, tenant)


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="log.recorded"):
    """A recording of a session of ``tenant`` has ended. ``link``: of its last record, in hex: whoever has it
    knows the whole file."""

    tenant: str
    session: str
    why: str
    file: str = ""
    messages: int = 0
    lost: int = 0
    size: int = 0
    link: str = ""


class Unordered(msgspec.Struct, frozen=True, tag_field="type", tag="log.unordered"):
    """The process that recorded has ended, and with it every order."""


Event = Ordered | Recorded | Unordered


@dataclass
class Orders:
    """``sessions``: tenant of the order, by session. ``principals``: (tenant of the order, principal), in the
    order of their coming."""

    sessions: dict[str, str] = field(default_factory=dict)
    principals: dict[tuple[str, str], None] = field(default_factory=dict)

    def copy(self) -> Orders:
        return Orders(self.sessions.copy(), self.principals.copy())

    def __bool__(self) -> bool:
        return bool(self.sessions or self.principals)

    def reach(self, principal: str, tenant: str) -> bool:
        """Whether a session of the principal, which attaches to ``tenant``, is to be recorded."""
        return any((of, principal) in self.principals for of in (HIVE_TENANT, tenant))


def decide(orders: Orders, order: Order) -> Decision[Event, str]:
    """What follows from a line of VERBS or OWN. That there is such a session, its writer's tenant's, is not
    asked here: sessions are not in the state."""
    said = order.args
    match order.verb:
        case "record":
            return _record(orders, order)
        case "recorded":
            messages, lost, size = (int(said.get(name, "0")) for name in ("messages", "lost", "size"))
            file, link = said.get("file", ""), said.get("link", "")
            recorded = Recorded(order.tenant, said["session"], said["why"], file, messages, lost, size, link)
            return Decision((recorded,), "ok")
        case _:
            return Decision((Unordered(),) if orders else (), "ok")


def _record(orders: Orders, order: Order) -> Decision[Event, str]:
    said = order.args
    session, principal = said.get("session", ""), said.get("principal", "")
    if bool(session) is bool(principal):
        raise refusal(E.USAGE, "record: expected session= or principal=")
    what, on = session or principal, said["set"] == "on"
    by = orders.sessions.get(session)
    there = by in (order.tenant, HIVE_TENANT) if session else (order.tenant, principal) in orders.principals
    if on and there:
        return Decision((), what)
    if on and len(orders.sessions) + len(orders.principals) >= ORDERS_MAX:
        raise refusal(E.QUOTA, f"recordings ordered max={ORDERS_MAX}")
    mine = there if principal else by is not None and order.tenant in (HIVE_TENANT, by)
    if not on and not mine:
        raise refusal(E.MISSING, f"{what} is not recorded")
    return Decision((Ordered(order.tenant, on, session, principal),), what)


def apply(orders: Orders, event: Event, meta: Meta) -> None:
    """Change ``orders`` by ``event``."""
    match event:
        case Ordered(session=session) if session:
            if event.on:
                orders.sessions[session] = event.tenant
            else:
                orders.sessions.pop(session, None)
        case Ordered():
            if event.on:
                orders.principals[event.tenant, event.principal] = None
            else:
                orders.principals.pop((event.tenant, event.principal), None)
        case Recorded():
            orders.sessions.pop(event.session, None)
        case Unordered():
            orders.sessions.clear()
            orders.principals.clear()
