"""Nodes as a fold: who belongs to the hive, whether it is heard, whether it gets work.

Heartbeats are not here: only what their absence means is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import HIVE_TENANT, Order, refusal
from skep.trace.rules import Decision, Meta

NODES_MAX: Final = 65536  # each has rings of signals in memory.

NODE: Final = Arg("node", required=True, kind="name")

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        Verb("cordon", (NODE,), "cordon node=w1", "it gets no more leases"),
        Verb("drain", (NODE,), "drain node=w1", "it gets no more leases and ends what it runs"),
        Verb("uncordon", (NODE,), "uncordon node=w1", "it gets leases again"),
        Verb(
            "trust",
            (NODE, Arg("level", required=True, kind="green|yellow|red")),
            "trust node=w1 level=red",
            "what the policies may think of it; red gets no leases",
        ),
        Verb("remove", (NODE,), "remove node=w1", "forget it; it must hold no lease"),
    ),
    # The hive's own, written to no file.
    "*": ctl.verbs(
        Verb("join", (Arg("principal", required=True), Arg("role", required=True), Arg("tenant"))),
        Verb("leave"),
        Verb("suspect"),
        Verb("lost"),
        Verb("back"),
    ),
}

# What is heard of it: state -> the states that may follow.
LINKS: Final[Mapping[str, frozenset[str]]] = {
    "online": frozenset({"suspect", "lost", "left"}),
    "suspect": frozenset({"online", "lost", "left"}),
    "lost": frozenset({"online", "left"}),
    "left": frozenset({"online"}),
}


class Joined(msgspec.Struct, frozen=True, tag_field="type", tag="node.joined"):
    node: str
    principal: str
    role: str
    tenant: str = HIVE_TENANT


class Heard(msgspec.Struct, frozen=True, tag_field="type", tag="node.heard"):
    """``link`` is one of LINKS."""

    node: str
    link: str


class Employed(msgspec.Struct, frozen=True, tag_field="type", tag="node.employed"):
    """``duty``: open, cordoned, draining."""

    node: str
    duty: str


class Rated(msgspec.Struct, frozen=True, tag_field="type", tag="node.rated"):
    """``trust``: green, yellow, red."""

    node: str
    trust: str


class Removed(msgspec.Struct, frozen=True, tag_field="type", tag="node.removed"):
    node: str


Event = Joined | Heard | Employed | Rated | Removed


class Node(msgspec.Struct, frozen=True):
    id: str
    principal: str
    role: str
    joined_ns: int
    rev: int
    link: str = "online"
    duty: str = "open"
    trust: str = "green"
    tenants: tuple[str, ...] = ()  # for which it has joined, the first one first

    @property
    def state(self) -> str:
        """online, suspect, lost, left, cordoned, draining: the first that is not as it should be."""
        return self.duty if self.link == "online" and self.duty != "open" else self.link


def visible(node: Node, tenant: str) -> bool:
    """Whether the node exists for the tenant: when it is the tenant's alone, or the tenant the hive's own.

    What a node of several tenants tells of itself would tell each of them what the others do."""
    return tenant == HIVE_TENANT or node.tenants == (tenant,)


@dataclass
class Nodes:
    by_id: dict[str, Node] = field(default_factory=dict)

    def copy(self) -> Nodes:
        return Nodes(self.by_id.copy())


class World(Protocol):
    def count_held(self, node: str) -> int:
        """How many leases the node holds."""


Decided = Decision[Event, str]


def decide(nodes: Nodes, order: Order, world: World) -> Decided:
    """What follows from an order to /nodes; raises Refusal."""
    return _DECIDE[order.verb](nodes, order, world)


def _join(nodes: Nodes, order: Order, world: World) -> Decided:
    """A node's session begins. A name belongs to the principal that had it first, until it is removed."""
    principal, role = order.args["principal"], order.args["role"]
    tenant = order.args.get("tenant", HIVE_TENANT)
    node = nodes.by_id.get(order.name)
    if node is None:
        if len(nodes.by_id) >= NODES_MAX:
            raise refusal(E.QUOTA, f"nodes have={len(nodes.by_id)} max={NODES_MAX}")
        return Decision((Joined(order.name, principal, role, tenant),), order.name)
    if node.principal != principal:
        raise refusal(E.DENIED, f"rule=node-owner node={node.id}")
    if node.role != role or tenant not in node.tenants:
        return Decision((Joined(node.id, principal, role, tenant),), node.id)
    return Decision((Heard(node.id, "online"),) if node.link != "online" else (), node.id)


def _heard(link: str) -> Callable[[Nodes, Order, World], Decided]:
    def decide_heard(nodes: Nodes, order: Order, world: World) -> Decided:
        node = _node(nodes, order, order.name)
        if link not in LINKS[node.link]:
            raise refusal(E.ILLEGAL_MOVE, f"{node.link} -> {link}")
        return Decision((Heard(node.id, link),), node.id)

    return decide_heard


def _employ(duty: str) -> Callable[[Nodes, Order, World], Decided]:
    def decide_employed(nodes: Nodes, order: Order, world: World) -> Decided:
        node = _node(nodes, order, order.args["node"])
        return Decision((Employed(node.id, duty),), node.id)

    return decide_employed


def _trust(nodes: Nodes, order: Order, world: World) -> Decided:
    node = _node(nodes, order, order.args["node"])
    return Decision((Rated(node.id, order.args["level"]),), node.id)


def _remove(nodes: Nodes, order: Order, world: World) -> Decided:
    node = _node(nodes, order, order.args["node"])
    if held := world.count_held(node.id):
        raise refusal(E.CONFLICT, f"{node.id} holds {held} leases: drain it, or wait for their end")
    return Decision((Removed(node.id),), node.id)


def _node(nodes: Nodes, order: Order, name: str) -> Node:
    node = nodes.by_id.get(name)
    if node is None:
        raise refusal(E.USAGE, f"{order.verb}: node={name}: there is no such node")
    order.check_rev(node.rev)
    return node


_DECIDE: Final[Mapping[str, Callable[[Nodes, Order, World], Decided]]] = {
    "join": _join, "leave": _heard("left"), "suspect": _heard("suspect"), "lost": _heard("lost"),
    "back": _heard("online"), "cordon": _employ("cordoned"), "drain": _employ("draining"),
    "uncordon": _employ("open"), "trust": _trust, "remove": _remove,
}  # fmt: skip


def apply(nodes: Nodes, event: Event, meta: Meta) -> None:
    """Change ``nodes`` by ``event``."""
    table = nodes.by_id
    match event:
        case Joined(node, principal, role, tenant):
            known = table.get(node)
            new = Node(node, principal, role, meta.time_ns, meta.seq)
            if known is not None:
                new = msgspec.structs.replace(new, duty=known.duty, trust=known.trust, tenants=known.tenants)
            if tenant not in new.tenants:
                new = msgspec.structs.replace(new, tenants=(*new.tenants, tenant))
            table[node] = new
        case Heard(node, link):
            table[node] = msgspec.structs.replace(table[node], link=link, rev=meta.seq)
        case Employed(node, duty):
            table[node] = msgspec.structs.replace(table[node], duty=duty, rev=meta.seq)
        case Rated(node, trust):
            table[node] = msgspec.structs.replace(table[node], trust=trust, rev=meta.seq)
        case Removed(node):
            del table[node]
