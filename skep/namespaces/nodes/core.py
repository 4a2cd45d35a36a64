"""Nodes as a fold: who belongs to the hive, whether it is heard, whether it gets work.

Heartbeats are not here: only what their absence means is written down, and what they say the node offers,
when that is something else than before.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
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
        Verb(
            "expect",
            (
                NODE,
                Arg("principal", required=True),
                Arg("role", required=True, kind="name"),
                Arg("tenants", help="those it works for, blanks between; else as it joins"),
                Arg("duty", kind="open|cordoned|draining"),
                Arg("trust", kind="green|yellow|red"),
                Arg("labels", kind="labels"),
                Arg("capacity", kind="number"),
                Arg("version"),
            ),
            "expect node=w9 principal=spiffe://hive/drone-worker/w9 role=drone-worker trust=yellow",
            "register it before it joins; of one that is there, set its duty, trust and labels",
        ),
    ),
    # The hive's own, written to no file.
    "*": ctl.verbs(
        Verb("join", (Arg("principal", required=True), Arg("role", required=True), Arg("tenant"))),
        Verb("leave"),
        Verb("suspect"),
        Verb("lost"),
        Verb("back"),
        Verb(
            "offer",
            (Arg("labels", required=True), Arg("capacity", required=True, kind="number"), Arg("version")),
        ),
    ),
}

IMPORT: Final = Verb(
    "import",
    (Arg("sha256", required=True, kind="sha256", help="of import.csv, as sha256sum tells it"),),
    "import sha256=0f…",
    "expect every node of import.csv",
)
# What people write. The door makes of an import what it expects.
VERBS: Final = {**TABLES["ctl"], IMPORT.name: IMPORT}

# What is heard of it: state -> the states that may follow.
LINKS: Final[Mapping[str, frozenset[str]]] = {
    "online": frozenset({"suspect", "lost", "left"}),
    "suspect": frozenset({"online", "lost", "left"}),
    "lost": frozenset({"online", "left"}),
    "left": frozenset({"online"}),
    "expected": frozenset({"online"}),
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


class Offered(msgspec.Struct, frozen=True, tag_field="type", tag="node.offered", omit_defaults=True):
    """``capacity``: how many leases it may hold; 0: it did not say."""

    node: str
    labels: dict[str, str] = {}
    capacity: int = 0
    version: str = ""


class Expected(msgspec.Struct, frozen=True, tag_field="type", tag="node.expected", omit_defaults=True):
    """It was registered, and has not joined."""

    node: str
    principal: str
    role: str
    tenants: tuple[str, ...] = ()


class Removed(msgspec.Struct, frozen=True, tag_field="type", tag="node.removed"):
    node: str


Event = Joined | Heard | Employed | Rated | Offered | Expected | Removed


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
    labels: dict[str, str] = {}
    capacity: int = 0  # leases it may hold; 0: without a limit
    version: str = ""
    offers: frozenset[str] = frozenset()  # what its labels come to: their names, and name:value
    first: int = 0  # the entry that its record begins with: what was before is of another of its name

    @property
    def state(self) -> str:
        """online, suspect, lost, left, expected, cordoned, draining: what is not as it should be."""
        return self.duty if self.link == "online" and self.duty != "open" else self.link


def visible(node: Node, tenant: str) -> bool:
    """Whether the node exists for the tenant: when it is the tenant's alone, or the tenant the hive's own.

    What a node of several tenants tells of itself would tell each of them what the others do."""
    return tenant == HIVE_TENANT or node.tenants == (tenant,)


Kind = tuple[tuple[str, ...], frozenset[str]]  # tenants, offers


@dataclass
class Nodes:
    """``kinds``: how many nodes there are that have joined for the same tenants and offer the same."""

    by_id: dict[str, Node] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=dict)

    def copy(self) -> Nodes:
        return Nodes(self.by_id.copy(), self.kinds.copy())

    def has(self, tenant: str, words: frozenset[str]) -> bool:
        """Whether there is a node, heard or not, that works for the tenant and offers these."""
        return any(_works_for(tenants, tenant) and words <= offers for tenants, offers in self.kinds)

    def takes(self, tenant: str, words: frozenset[str], shut: Container[str] = ()) -> bool:
        """Whether one of these, but for those that are ``shut``, is online and gets leases now."""
        return any(
            node.state == "online"
            and node.trust != "red"
            and node.id not in shut
            and _works_for(node.tenants, tenant)
            and words <= node.offers
            for node in self.by_id.values()
        )

    def why_none(self, tenant: str, words: frozenset[str], shut: Container[str] = ()) -> tuple[str, str]:
        """Why no node that offers these takes the tenant's leases now, and the one that changed last of those
        that did: annex_lost (it is not heard), disabled (it is to take none, or ``shut``), no_device (there
        was none); ("", ""): there is one."""
        found: list[tuple[bool, int, str]] = []
        for node in self.offering(tenant, words):
            if node.state == "online" and node.trust != "red" and node.id not in shut:
                return "", ""
            found.append((node.link == "online", node.rev, node.id))
        if not found:
            return "no_device", ""
        heard, _, id = max(found)
        return "disabled" if heard else "annex_lost", id

    def offering(self, tenant: str, words: frozenset[str]) -> Iterator[Node]:
        """The nodes, heard or not, that have joined for the tenant's jobs and offer these."""
        for node in self.by_id.values():
            if node.link != "expected" and words <= node.offers and _works_for(node.tenants, tenant):
                yield node


def _works_for(tenants: tuple[str, ...], tenant: str) -> bool:
    return HIVE_TENANT in tenants or tenant in tenants


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


def _offer(nodes: Nodes, order: Order, world: World) -> Decided:
    node, args = _node(nodes, order, order.name), order.args
    event = Offered(node.id, ctl.labels(args["labels"]), int(args["capacity"]), args.get("version", ""))
    known = (node.labels, node.capacity, node.version)
    return Decision((event,) if (event.labels, event.capacity, event.version) != known else (), node.id)


def _expect(nodes: Nodes, order: Order, world: World) -> Decided:
    """What of the node is not as it is said becomes so. Its principal stays, until it is removed."""
    args, name = order.args, order.args["node"]
    expected = Expected(name, args["principal"], args["role"], tuple(args.get("tenants", "").split()))
    known = nodes.by_id.get(name)
    events: list[Event] = []
    if known is None:
        if "#" in name:
            raise refusal(E.USAGE, f"expect: node={name}: expected a name without #")
        if len(nodes.by_id) >= NODES_MAX:
            raise refusal(E.QUOTA, f"nodes have={len(nodes.by_id)} max={NODES_MAX}")
        known = Node(name, expected.principal, expected.role, 0, 0)
        events.append(expected)
    elif known.principal != expected.principal:
        raise refusal(E.DENIED, f"rule=node-owner node={name}")
    order.check_rev(known.rev)
    if "duty" in args and args["duty"] != known.duty:
        events.append(Employed(name, args["duty"]))
    if "trust" in args and args["trust"] != known.trust:
        events.append(Rated(name, args["trust"]))
    labels = ctl.labels(args["labels"]) if "labels" in args else known.labels
    offered = Offered(
        name, labels, int(args.get("capacity", known.capacity)), args.get("version", known.version)
    )
    if (labels, offered.capacity, offered.version) != (known.labels, known.capacity, known.version):
        events.append(offered)
    return Decision(tuple(events), name)


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
    "uncordon": _employ("open"), "trust": _trust, "offer": _offer, "remove": _remove,
    "expect": _expect,
}  # fmt: skip


def apply(nodes: Nodes, event: Event, meta: Meta) -> None:
    """Change ``nodes`` by ``event``."""
    known = nodes.by_id.get(event.node)
    new = _changed(known, event, meta)
    _count(nodes, known, -1)
    _count(nodes, new, 1)
    if new is None:
        del nodes.by_id[event.node]
    else:
        nodes.by_id[event.node] = new


def _count(nodes: Nodes, node: Node | None, more: int) -> None:
    if node is None:
        return
    kind = (node.tenants, node.offers)
    nodes.kinds[kind] = nodes.kinds.get(kind, 0) + more
    if not nodes.kinds[kind]:
        del nodes.kinds[kind]


def _changed(known: Node | None, event: Event, meta: Meta) -> Node | None:
    """The node's next record; None: it is no more."""
    if isinstance(event, Joined):
        new = Node(event.node, event.principal, event.role, meta.time_ns, meta.seq, first=meta.seq)
        if known is not None:
            new = msgspec.structs.replace(
                known,
                principal=new.principal,
                role=new.role,
                joined_ns=new.joined_ns,
                rev=new.rev,
                link=new.link,
            )
        if event.tenant not in new.tenants:
            new = msgspec.structs.replace(new, tenants=(*new.tenants, event.tenant))
        return new
    if isinstance(event, Expected):
        return Node(
            event.node, event.principal, event.role, 0, meta.seq, "expected",
            tenants=event.tenants, first=meta.seq,
        )  # fmt: skip
    assert known is not None, event
    match event:
        case Heard():
            return msgspec.structs.replace(known, link=event.link, rev=meta.seq)
        case Employed():
            return msgspec.structs.replace(known, duty=event.duty, rev=meta.seq)
        case Rated():
            return msgspec.structs.replace(known, trust=event.trust, rev=meta.seq)
        case Offered():
            return msgspec.structs.replace(
                known,
                labels=event.labels,
                capacity=event.capacity,
                version=event.version,
                offers=frozenset(
                    (*event.labels, *(f"{name}:{value}" for name, value in event.labels.items()))
                ),
                rev=meta.seq,
            )
        case Removed():
            return None
