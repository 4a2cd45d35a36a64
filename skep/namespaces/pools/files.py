"""/pools: where jobs wait for nodes.

    ctl               W create, map, unmap, drain, resume; R usage
    plan              W a submit, its arguments or an object; R where the job would go, a JSON line
    <pool>/state      R open, draining
    <pool>/topics     R a line for each topic mapped to it
    <pool>/requires   R a line for each label that a node must have to get the pool's jobs: gpu, zone:eu
    <pool>/fallback   R the pool that its jobs fall back to, patience=; empty: none
    <pool>/load       R waiting, held and readers: how many; capacity, the leases it gives at a time, if said
    <pool>/queue      R the ids of the caller's tenant's waiting jobs, the next one first
    <pool>/workers    R a line for each node that holds jobs or waits: name held= readers= capacity=
    <pool>/next       R blocks; gives one lease to the node that reads, a JSON line (lease.py), then ends

Ended before the read returns, the job stays queued; taken and not read, it goes back.

A topic may be mapped to several pools: its jobs go to the one with the least to do, what waits and is held
for each lease it gives at a time (capacity=), of equal ones to the first; one that drains is the last resort.
A job that requires labels (submit requires=), in a pool that may require more, is leased to nodes that have
them all; where no node of the hive has, it is refused, ``no_workers``. Other jobs wait, until a node comes,
except in pools that were created with empty=refuse. What /config has for pools and topics bounds and replaces
what is said here.

Between tenants the next lease goes to who holds the fewest of the pool, of those to the one served longest
ago. Of a tenant's jobs the first goes first, a step of priority counting as much as ageing= of waiting (30s):
nothing waits for ever. A job that nobody can take is passed by. Of several readers the node that holds the
least for its capacity is given the job. Where /config sets jobs/preempt, a job that has waited a second takes
the place of one of its own tenant of lower priority, which goes back to where it waited; that happens to no
job twice.

``plan`` decides a submit and throws the outcome away: {"pool", "worker", "at_once", "ahead": how many of the
tenant's jobs wait before it, 10000 at most, "pools" and "workers": each with chosen, or rejected: why, "job":
the one that its key stands for, "refused": why}. Its worker is who waits for a job now and gets it,
``at_once``. It counts as a command.

Pools and topics are the hive's, the same for every tenant. What goes on in them is a tenant's own: its jobs
and its nodes are counted, and no other's. The hive's own tenant, whose nodes run everybody's jobs, gets the
sum of all. A node that has joined for one tenant gets leases of that tenant's jobs alone.

``create fallback=`` names the pool in which jobs go on that nobody of this one can do: its nodes are gone or
closed, there was none, or the job has waited longer than patience= (30s) or than its own; see /jobs. The
other pool must be there, and have no fallback itself. A job may require a gpu or an annex that no node has.
Where nobody takes what has fallen back for as long, an event alert.raised says so once, until somebody does.

    echo create pool=gpu requires=gpu fallback=gpu-cpu patience=30s > pools/ctl

``create queue=`` bounds how many jobs wait; one more is refused, ``pool_overloaded``, and its key stays free.
A job that comes back, from a lost lease or a delay, or falls back to it, is never refused.

    echo map topic=sha256 pool=default > pools/ctl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Stream, Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.lease import Next
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.plan import plan
from skep.namespaces.pools.core import TABLES
from skep.namespaces.rows import Rows, fixed
from skep.trace.clock import duration
from skep.trace.rules import Refusal


def files(hive: Hive) -> Listing:
    """The tree of /pools."""
    children = fixed(
        {
            "ctl": Ctl(TABLES["ctl"], hive.writes("/pools/ctl")),
            "plan": Transaction(lambda caller, said: plan(hive, caller, said)),
        }
    )

    def walk(name: str, caller: Caller) -> Any:
        pool = hive.state.pools.by_name.get(name)
        return children.get(name) if pool is None else Rows(FILES, hive, name, pool.rev)

    return Listing(lambda caller: [*children, *hive.state.pools.by_name], walk)


def _state(hive: Hive, pool: str) -> Text:
    return Text(lambda: "draining\n" if hive.state.pools.by_name[pool].draining else "open\n")


def _topics(hive: Hive, pool: str) -> Text:
    topics = hive.state.pools.topics
    return Text(lambda: "".join(f"{topic}\n" for topic, of in sorted(topics.items()) if pool in of))


def _requires(hive: Hive, pool: str) -> Text:
    def content(caller: Caller) -> str:
        try:
            needs = hive.state.needs(pool, caller.tenant)
        except Refusal as error:
            raise FsError(E[error.code], error.text) from error
        return "".join(f"{word}\n" for word in sorted(needs))

    return Text(content)


def _fallback(hive: Hive, pool: str) -> Text:
    def content() -> str:
        way, patience_ns = hive.state.fallback_of(pool)
        return f"{way} patience={duration(patience_ns)}\n" if way else ""

    return Text(content)


def _load(hive: Hive, pool: str) -> Text:
    def content(caller: Caller) -> str:
        waiting = hive.state.jobs.count_waiting(pool, _whose(caller))
        held, readers = hive.state.holders(pool, caller.tenant), _readers(hive, pool, caller)
        capacity = hive.state.pools.by_name[pool].capacity
        said = f"capacity {capacity}\n" if capacity else ""
        return f"waiting {waiting}\nheld {len(held)}\nreaders {len(readers)}\n{said}"

    return Text(content)


def _queue(hive: Hive, pool: str) -> Text:
    def content(caller: Caller) -> str:
        state = hive.state
        return "".join(f"{id}\n" for id in state.jobs.waiting(pool, caller.tenant, state.ageing_ns(pool)))

    return Text(content)


def _workers(hive: Hive, pool: str) -> Text:
    def content(caller: Caller) -> str:
        held = Counter(hive.state.holders(pool, caller.tenant))
        readers = Counter(_readers(hive, pool, caller))
        nodes = sorted(held | readers)
        return "".join(
            f"{node} held={held[node]} readers={readers[node]}{_capacity(hive, node, caller)}\n"
            for node in nodes
        )

    return Text(content)


def _capacity(hive: Hive, node: str, caller: Caller) -> str:
    """What a node says of itself is for whom it is there for."""
    found = hive.state.nodes.by_id.get(node)
    if found is None or not found.capacity or not hive.state.sees_node(caller.tenant, node):
        return ""
    return f" capacity={found.capacity}"


def _whose(caller: Caller) -> str:
    """The tenant whose jobs are counted for the caller; "": every one's."""
    return "" if caller.tenant == HIVE_TENANT else caller.tenant


def _readers(hive: Hive, pool: str, caller: Caller) -> list[str]:
    """The nodes that wait for a job, as far as they are there for the caller."""
    return [node for node in hive.leases.waiting(pool) if hive.state.sees_node(caller.tenant, node)]


def _next(hive: Hive, pool: str) -> Stream:
    return Stream(lambda caller: Next(hive, caller, pool))


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "state": _state, "topics": _topics, "requires": _requires, "fallback": _fallback, "load": _load,
    "queue": _queue, "workers": _workers, "next": _next,
}  # fmt: skip
