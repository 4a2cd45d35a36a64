"""Pools as a fold: which topics go where, how long leases last, which nodes may have them, which pools give
none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.clock import HOUR, SECOND, parse_duration
from skep.trace.rules import Decision, Meta

LEASE_NS: Final = 30 * SECOND  # when a pool says nothing: a worker renews three times in it.
PATIENCE_NS: Final = 30 * SECOND  # how long its jobs wait before they fall back, when a pool says nothing.
LEASE_MIN_NS: Final = SECOND  # shorter ones would end before a busy hive has heard their renewal.
QUEUE_MAX: Final = 1_000_000  # jobs that wait, when a pool says nothing: each takes 1.2 KiB of memory.
POOLS_MAX: Final = 1024  # each has readers' queues in memory.
PATIENCE_MAX_NS: Final = 365 * 24 * HOUR  # times stay numbers of 64 bits.
AGEING_MAX_NS: Final = 365 * 24 * HOUR  # ranks stay numbers of 64 bits.
CANDIDATES_MAX: Final = 16  # pools of one topic: each is looked at by every submit of it.
TOPICS_MAX: Final = 65536  # the table is read whole by /pools/<p>/topics.

RESERVED: Final = ("ctl", "plan")  # files of /pools: a pool of that name was made before there was a plan.

POOL: Final = Arg("pool", required=True, kind="name")
TOPIC: Final = Arg("topic", required=True, kind="name")

# What a submit says where it says nothing itself.
DEFAULTS: Final = (
    Arg("retries", kind="number", help="of its jobs, when their submit does not say"),
    Arg("timeout", kind="duration", help="the same"),
    Arg("deadline", kind="duration", help="the same"),
)

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        Verb(
            "create",
            (
                POOL,
                Arg("lease", kind="duration", help="how long a lease lasts unless renewed, else 30s"),
                Arg("queue", kind="number", help=f"how many jobs may wait in it, else {QUEUE_MAX}"),
                Arg("capacity", kind="number", help="how many leases it gives at a time, else no limit"),
                Arg(
                    "requires", kind="list", help="labels that a node must have to get its jobs: gpu,zone:eu"
                ),
                Arg("ageing", kind="duration", help="waiting that outweighs a step of priority, else 30s"),
                Arg(
                    "empty", kind="refuse|wait", help="what becomes of jobs while no node is there, else wait"
                ),
                Arg("fallback", kind="name", help="the pool that its jobs go on in when no node can do them"),
                Arg("patience", kind="duration", help="how long they wait before that, else 30s"),
                *DEFAULTS,
            ),
            "create pool=images lease=1m",
        ),
        Verb(
            "map",
            (TOPIC, Arg("pool", required=True, help="one or more: images,spare"), *DEFAULTS),
            "map topic=thumbnail pool=images,spare retries=3",
            "jobs of the topic wait in the pool, of several in the one that has the least to do",
        ),
        Verb("unmap", (TOPIC,), "unmap topic=thumbnail", "jobs of the topic are refused"),
        Verb("drain", (POOL,), "drain pool=images", "no more leases; what runs goes on"),
        Verb("resume", (POOL,), "resume pool=images"),
    ),
    "*/next": ctl.verbs(Verb("lease")),  # decided by the jobs
    "*": ctl.verbs(Verb("unread")),  # the hive's own, written to no file
}


class Created(msgspec.Struct, frozen=True, tag_field="type", tag="pool.created", omit_defaults=True):
    """``defaults``: arguments of submit, as written."""

    pool: str
    lease_ns: int
    defaults: dict[str, str] = {}
    queue_max: int = QUEUE_MAX
    capacity: int = 0  # 0: leases without a limit
    requires: tuple[str, ...] = ()  # sorted
    ageing_ns: int = 0  # 0: what the queues have where a pool says nothing
    refuses: bool = False  # jobs that no node is there for
    fallback: str = ""  # the pool in which its jobs go on that no node of it can do; "": none
    patience_ns: int = 0  # how long they wait before that; 0: it has no fallback


class Mapped(msgspec.Struct, frozen=True, tag_field="type", tag="pool.mapped", omit_defaults=True):
    """``more``: the pools after the first, in order."""

    topic: str
    pool: str
    defaults: dict[str, str] = {}
    more: tuple[str, ...] = ()


class Unmapped(msgspec.Struct, frozen=True, tag_field="type", tag="pool.unmapped"):
    topic: str
    pool: str


class Drained(msgspec.Struct, frozen=True, tag_field="type", tag="pool.drained"):
    pool: str


class Resumed(msgspec.Struct, frozen=True, tag_field="type", tag="pool.resumed"):
    pool: str


class Unread(msgspec.Struct, frozen=True, tag_field="type", tag="pool.unread"):
    """Jobs have fallen back to it that nobody takes; told once, until somebody does."""

    pool: str


Event = Created | Mapped | Unmapped | Drained | Resumed | Unread


class Pool(msgspec.Struct, frozen=True):
    name: str
    lease_ns: int
    rev: int
    draining: bool = False
    defaults: Mapping[str, str] = {}
    queue_max: int = QUEUE_MAX
    capacity: int = 0
    requires: frozenset[str] = frozenset()
    ageing_ns: int = 0
    refuses: bool = False
    fallback: str = ""
    patience_ns: int = 0
    unread: bool = False


@dataclass
class Pools:
    by_name: dict[str, Pool] = field(default_factory=dict)
    topics: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # topic -> its pools, the first one first
    defaults: dict[str, Mapping[str, str]] = field(default_factory=dict)  # topic -> arguments of submit

    def copy(self) -> Pools:
        return Pools(self.by_name.copy(), self.topics.copy(), self.defaults.copy())

    def defaults_of(self, topic: str, pool: str) -> Mapping[str, str]:
        """The topic's, and where it has none the pool's."""
        return {**self.by_name[pool].defaults, **self.defaults.get(topic, {})}


class Made(NamedTuple):
    """A pool that the hive makes when it is first needed. ``args``: of its ``create``."""

    pool: str
    topics: tuple[str, ...] = ()
    args: Mapping[str, str] = {}


def lines_for(pools: Pools, made: Made) -> tuple[str, ...]:
    """The lines for /pools/ctl by which jobs of its topics have where to wait; none when they do."""
    create = ctl.line("create", {"pool": made.pool, **made.args})
    missing = (topic for topic in made.topics if topic not in pools.topics)
    maps = (ctl.line("map", {"topic": topic, "pool": made.pool}) for topic in missing)
    return (*(() if made.pool in pools.by_name else (create,)), *maps)


Decided = Decision[Event, str]


def decide(pools: Pools, order: Order) -> Decided:
    """What follows from an order to /pools; raises Refusal."""
    return _DECIDE[order.verb](pools, order)


def _create(pools: Pools, order: Order) -> Decided:
    name = order.args["pool"]
    if name in pools.by_name or name in RESERVED:
        raise refusal(E.EXISTS, f"pool={name}")
    if len(pools.by_name) >= POOLS_MAX:
        raise refusal(E.QUOTA, f"pools have={len(pools.by_name)} max={POOLS_MAX}")
    lease_ns = parse_duration(order.args["lease"]) if "lease" in order.args else LEASE_NS
    if lease_ns < LEASE_MIN_NS:
        raise refusal(E.USAGE, f"create: lease={order.args['lease']}: expected 1s or more")
    ageing_ns = parse_duration(order.args["ageing"]) if "ageing" in order.args else 0
    if "ageing" in order.args and not 0 < ageing_ns <= AGEING_MAX_NS:
        raise refusal(
            E.USAGE, f"create: ageing={order.args['ageing']}: expected more than nothing, a year at most"
        )
    event = Created(
        name,
        lease_ns,
        _defaults(order),
        int(order.args.get("queue", QUEUE_MAX)),
        int(order.args.get("capacity", 0)),
        tuple(sorted(ctl.listed(order.args.get("requires", "")))),
        ageing_ns,
        order.args.get("empty") == "refuse",
        *_fallback(pools, order),
    )
    return Decision((event,), name)


def _fallback(pools: Pools, order: Order) -> tuple[str, int]:
    """The pool that the new one's jobs fall back to, and their patience; a job falls back once."""
    name = order.args.get("fallback", "")
    if not name:
        if "patience" in order.args:
            raise refusal(E.USAGE, "create: patience=: expected fallback= with it")
        return "", 0
    if _pool(pools, order, name).fallback:
        raise refusal(E.USAGE, f"create: fallback={name}: expected a pool that has none itself")
    patience_ns = parse_duration(order.args["patience"]) if "patience" in order.args else PATIENCE_NS
    if not 0 < patience_ns <= PATIENCE_MAX_NS:
        raise refusal(E.USAGE, f"create: patience={order.args['patience']}: expected from 1ns to a year")
    return name, patience_ns


def _defaults(order: Order) -> dict[str, str]:
    return {arg.name: order.args[arg.name] for arg in DEFAULTS if arg.name in order.args}


def _map(pools: Pools, order: Order) -> Decided:
    topic = order.args["topic"]
    names = tuple(dict.fromkeys(order.args["pool"].split(",")))
    if len(names) > CANDIDATES_MAX:
        raise refusal(E.USAGE, f"map: pool=: {len(names)} pools, expected {CANDIDATES_MAX} or fewer")
    first, *more = (_pool(pools, order, name) for name in names)
    order.check_rev(first.rev)
    if topic not in pools.topics and len(pools.topics) >= TOPICS_MAX:
        raise refusal(E.QUOTA, f"topics have={len(pools.topics)} max={TOPICS_MAX}")
    event = Mapped(topic, first.name, _defaults(order), tuple(pool.name for pool in more))
    return Decision((event,), topic)


def _unmap(pools: Pools, order: Order) -> Decided:
    topic = order.args["topic"]
    if topic not in pools.topics:
        raise refusal(E.NOROUTE, f"topic={topic}")
    return Decision((Unmapped(topic, pools.topics[topic][0]),), topic)


def _drain(pools: Pools, order: Order) -> Decided:
    pool = _named(pools, order)
    return Decision((Drained(pool.name),), pool.name)


def _resume(pools: Pools, order: Order) -> Decided:
    pool = _named(pools, order)
    return Decision((Resumed(pool.name),), pool.name)


def _unread(pools: Pools, order: Order) -> Decided:
    found = pools.by_name.get(order.name)
    if found is None or found.unread:
        raise refusal(E.NODATA, f"pool={order.name}: that is known")
    return Decision((Unread(order.name),), order.name)


def _named(pools: Pools, order: Order) -> Pool:
    pool = _pool(pools, order, order.args["pool"])
    order.check_rev(pool.rev)
    return pool


def _pool(pools: Pools, order: Order, name: str) -> Pool:
    pool = pools.by_name.get(name)
    if pool is None:
        raise refusal(E.USAGE, f"{order.verb}: pool={name}: there is no such pool")
    return pool


_DECIDE: Final[Mapping[str, Callable[[Pools, Order], Decided]]] = {
    "create": _create, "map": _map, "unmap": _unmap, "drain": _drain, "resume": _resume,
    "unread": _unread,
}  # fmt: skip


def apply(pools: Pools, event: Event, meta: Meta) -> None:
    """Change ``pools`` by ``event``."""
    match event:
        case Created():
            pools.by_name[event.pool] = Pool(
                event.pool,
                event.lease_ns,
                meta.seq,
                defaults=event.defaults,
                queue_max=event.queue_max,
                capacity=event.capacity,
                requires=frozenset(event.requires),
                ageing_ns=event.ageing_ns,
                refuses=event.refuses,
                fallback=event.fallback,
                patience_ns=event.patience_ns,
            )
        case Mapped():
            pools.topics[event.topic] = (event.pool, *event.more)
            pools.defaults[event.topic] = event.defaults
            _put(pools, event.pool, meta)
        case Unmapped():
            del pools.topics[event.topic]
            del pools.defaults[event.topic]
            _put(pools, event.pool, meta)
        case Drained():
            _put(pools, event.pool, meta, draining=True)
        case Resumed():
            _put(pools, event.pool, meta, draining=False)
        case Unread():
            pools.by_name[event.pool] = msgspec.structs.replace(pools.by_name[event.pool], unread=True)


def taken(pools: Pools, name: str) -> None:
    """Somebody has taken a job of the pool."""
    if pools.by_name[name].unread:
        pools.by_name[name] = msgspec.structs.replace(pools.by_name[name], unread=False)


def _put(pools: Pools, name: str, meta: Meta, draining: bool | None = None) -> None:
    """The pool's next record; ``draining`` None: as it was."""
    pool = pools.by_name[name]
    pools.by_name[name] = msgspec.structs.replace(
        pool, rev=meta.seq, draining=pool.draining if draining is None else draining
    )
