"""Where jobs wait: each pool's queue, and which job of it a node gets next. Pure.

Within a tenant the job of the smallest rank goes first: the time at which it was queued, less its priority
times the pool's ageing. A rank never changes, so ageing costs nothing, and what waits long enough passes any
priority. Between tenants goes who holds the fewest leases of the pool, of those the one served longest ago.

What no lease depends on is not looked at: a pool's tenants stand in their order, a tenant's jobs in bands of
one priority and one set of requirements, a band's in lanes of one actor and time limit, a lane's in the order
they came. A choice looks at the heads alone, however many wait behind them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from skep.namespaces.jobs.usage import ALL, bound_ns
from skep.trace.clock import SECOND

if TYPE_CHECKING:  # the queues are a part of what is recorded there
    from skep.namespaces.jobs.record import Job, Submitted

AGEING_NS: Final = 30 * SECOND  # of waiting outweigh one step of priority, where a pool says nothing.
KINDS_MAX: Final = 2048  # lanes of a tenant in a pool: a lease of anybody's may look at the head of each.
GONE_MIN: Final = 32  # jobs that left a lane from its middle before it is made anew.

# What a job is in its queue by its state; "": nothing.
PART: Final = {
    "queued": "waits", "leased": "held", "running": "held",
    "delayed": "", "succeeded": "", "failed": "", "cancelled": "",
}  # fmt: skip

Band = tuple[int, tuple[str, ...]]  # priority, requires
Lane = tuple[str, int]  # actor, the time limit of an attempt in ns (0: none)


class Waiting(NamedTuple):
    """A job that waits. ``place``: its number among all that were ever queued."""

    queued_ns: int
    place: int
    job: str


class Terms(Protocol):
    """What a choice is made by, for one node; in a moment's state."""

    @property
    def ageing_ns(self) -> int:
        """How much waiting outweighs one step of priority."""

    def serves(self, tenant: str) -> bool:
        """Whether the tenant's jobs can be leased at all now, and by the node."""

    def meets(self, tenant: str, requires: tuple[str, ...]) -> bool:
        """Whether the node has what the tenant's jobs require of it that name this."""

    def room(self, tenant: str, actor: str, bound_ns: int) -> int:
        """How many more jobs of this time limit the actor (ALL: the tenant) may have held."""


@dataclass
class _Lane:
    """Jobs of one actor; what left from the middle stays in the heap until it comes to its head."""

    heap: list[Waiting] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)  # places

    def __len__(self) -> int:
        return len(self.heap) - len(self.gone)

    def copy(self) -> _Lane:
        return _Lane(self.heap.copy(), self.gone.copy())

    def add(self, waiting: Waiting) -> None:
        if waiting.place in self.gone:
            self.gone.discard(waiting.place)
        else:
            heappush(self.heap, waiting)

    def remove(self, waiting: Waiting) -> None:
        if self.heap[0].place != waiting.place:
            self.gone.add(waiting.place)
            if len(self.gone) > max(GONE_MIN, len(self.heap) // 2):
                self.heap = list(self)
                heapify(self.heap)
                self.gone.clear()
            return
        heappop(self.heap)
        while self.heap and self.heap[0].place in self.gone:
            self.gone.discard(heappop(self.heap).place)

    def count_until(self, queued_ns: int, most: int) -> int:
        """How many were queued by then, up to ``most``. Of a heap, what stands below one that was queued
        later was so too."""
        found, below = 0, [0]
        while below and found < most:
            at = below.pop()
            if at < len(self.heap) and self.heap[at].queued_ns <= queued_ns:
                found += self.heap[at].place not in self.gone
                below += (2 * at + 1, 2 * at + 2)
        return found

    def __iter__(self) -> Iterator[Waiting]:
        return (waiting for waiting in self.heap if waiting.place not in self.gone)


@dataclass
class _Band:
    """Jobs of one priority and the same requirements. ``heads``: each lane's first, in order."""

    lanes: dict[Lane, _Lane] = field(default_factory=dict)
    heads: list[tuple[Waiting, Lane]] = field(default_factory=list)

    def copy(self) -> _Band:
        return _Band({name: lane.copy() for name, lane in self.lanes.items()}, self.heads.copy())

    def add(self, name: Lane, waiting: Waiting) -> None:
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = _Lane()
        before = lane.heap[0] if lane.heap else None
        lane.add(waiting)
        self._moved(name, lane, before)

    def remove(self, name: Lane, waiting: Waiting) -> None:
        lane = self.lanes[name]
        before = lane.heap[0]
        lane.remove(waiting)
        self._moved(name, lane, before)
        if not lane.heap:
            del self.lanes[name]

    def _moved(self, name: Lane, lane: _Lane, before: Waiting | None) -> None:
        after = lane.heap[0] if lane.heap else None
        if after is before:
            return
        if before is not None:
            del self.heads[bisect_left(self.heads, (before, name))]
        if after is not None:
            insort(self.heads, (after, name))


@dataclass
class _Share:
    """A tenant's part of a pool's queue, and of its leases. ``served``: the number of its last lease among
    all; 0: it had none."""

    bands: dict[Band, _Band] = field(default_factory=dict)
    waiting: int = 0
    held: int = 0
    served: int = 0

    def copy(self) -> _Share:
        return _Share(
            {name: band.copy() for name, band in self.bands.items()}, self.waiting, self.held, self.served
        )

    def __iter__(self) -> Iterator[tuple[int, Waiting]]:
        """Each job that waits with its priority, in no order."""
        for (priority, _), band in self.bands.items():
            for lane in band.lanes.values():
                for waiting in lane:
                    yield priority, waiting

    def first(self, tenant: str, terms: Terms) -> str | None:
        found: tuple[int, int, str] | None = None
        for (priority, requires), band in self.bands.items():
            if not terms.meets(tenant, requires):
                continue
            for waiting, lane in band.heads:
                ranked = (rank_ns(waiting.queued_ns, priority, terms.ageing_ns), waiting.place, waiting.job)
                if found is not None and found < ranked:
                    break
                if terms.room(tenant, *lane):
                    found = ranked
                    break
        return None if found is None else found[2]

    def count(self, tenant: str, terms: Terms, most: int) -> int:
        most, found = min(most, terms.room(tenant, ALL, 0)), 0
        for (_, requires), band in self.bands.items():
            if not terms.meets(tenant, requires):
                continue
            for name, lane in band.lanes.items():
                found += min(len(lane), terms.room(tenant, *name))
                if found >= most:
                    return most
        return found


def rank_ns(queued_ns: int, priority: int, ageing_ns: int) -> int:
    return queued_ns - priority * ageing_ns


@dataclass
class _Queue:
    """One pool's. ``order``: held, served, tenant of those that have jobs waiting, the next one first. A
    share stays when nothing of it waits: who came back would else be the first each time."""

    shares: dict[str, _Share] = field(default_factory=dict)
    order: list[tuple[int, int, str]] = field(default_factory=list)
    waiting: int = 0
    held: int = 0

    def copy(self) -> _Queue:
        return _Queue(
            {tenant: share.copy() for tenant, share in self.shares.items()},
            self.order.copy(),
            self.waiting,
            self.held,
        )

    def share(self, tenant: str) -> _Share:
        share = self.shares.get(tenant)
        if share is None:
            share = self.shares[tenant] = _Share()
        return share

    def stand(self, tenant: str, share: _Share, waiting: int, held: int, served: int) -> None:
        """Change the tenant's share's numbers, and its place among the tenants with them; ``served`` 0: as it
        was."""
        if share.waiting:
            del self.order[bisect_left(self.order, (share.held, share.served, tenant))]
        share.waiting += waiting
        share.held += held
        share.served = served or share.served
        self.waiting += waiting
        self.held += held
        if share.waiting:
            insort(self.order, (share.held, share.served, tenant))


_NONE: Final = _Queue()
_NO_SHARE: Final = _Share()


@dataclass
class Queues:
    """Every pool's, and how many leases each node holds. ``last``: the numbers given out so far."""

    by_pool: dict[str, _Queue] = field(default_factory=dict)
    by_node: dict[str, int] = field(default_factory=dict)
    last: int = 0

    def copy(self) -> Queues:
        return Queues(
            {pool: queue.copy() for pool, queue in self.by_pool.items()}, self.by_node.copy(), self.last
        )

    # asking

    def next(self, pool: str, tenant: str, terms: Terms) -> str | None:
        """The job that a lease gets, of the tenant's jobs ("": of anybody's); None: none that the terms let
        it have."""
        queue = self.by_pool.get(pool, _NONE)
        for of in (tenant,) if tenant else (of for _, _, of in queue.order):
            share = queue.shares.get(of)
            if share is not None and share.waiting and terms.serves(of):
                found = share.first(of, terms)
                if found is not None:
                    return found
        return None

    def count_for(self, pool: str, tenant: str, terms: Terms, most: int) -> int:
        """How many jobs ``next`` could give under the terms, one after the other; counted until there are
        ``most``."""
        queue = self.by_pool.get(pool, _NONE)
        found = 0
        for of in (tenant,) if tenant else (of for _, _, of in queue.order):
            share = queue.shares.get(of)
            if share is not None and share.waiting and terms.serves(of):
                found += share.count(of, terms, most - found)
                if found >= most:
                    break
        return found

    def waiting(self, pool: str, tenant: str, ageing_ns: int) -> list[str]:
        """The tenant's jobs ("": everybody's) that wait in the pool, by rank."""
        found = [
            (rank_ns(waiting.queued_ns, priority, ageing_ns), waiting.place, waiting.job)
            for share in self._shares(pool, tenant)
            for priority, waiting in share
        ]
        return [job for _, _, job in sorted(found)]

    def count_before(self, pool: str, tenant: str, rank: int, ageing_ns: int, most: int) -> int:
        """How many of the tenant's jobs go before one of that rank that is queued now; counted up to
        ``most``."""
        found = 0
        for share in self._shares(pool, tenant):
            for (priority, _), band in share.bands.items():
                until_ns = rank + priority * ageing_ns
                for lane in band.lanes.values():
                    found += lane.count_until(until_ns, most - found)
                    if found >= most:
                        return most
        return found

    def kinds(self, pool: str) -> Iterator[tuple[str, tuple[str, ...], Iterator[str]]]:
        """Of the jobs that wait in the pool, a tenant, what they require and the jobs of both."""
        for tenant, share in self.by_pool.get(pool, _NONE).shares.items():
            for (_, requires), band in share.bands.items():
                yield tenant, requires, (each.job for lane in band.lanes.values() for each in lane)

    def count_waiting(self, pool: str, tenant: str = "") -> int:
        queue = self.by_pool.get(pool, _NONE)
        return queue.shares.get(tenant, _NO_SHARE).waiting if tenant else queue.waiting

    def count_held(self, pool: str) -> int:
        return self.by_pool.get(pool, _NONE).held

    def of(self, pool: str) -> _Queue:
        """The pool's, to be looked at."""
        return self.by_pool.get(pool, _NONE)

    def count_kinds(self, request: Submitted) -> int:
        """How many kinds of its tenant's jobs wait in the pool of a job that would be one more; 0: such wait
        there already."""
        share = self.by_pool.get(request.pool, _NONE).shares.get(request.tenant, _NO_SHARE)
        band = share.bands.get((request.priority, request.requires))
        if band is not None and (request.actor, bound_ns(request)) in band.lanes:
            return 0
        return sum(len(each.lanes) for each in share.bands.values())

    def _shares(self, pool: str, tenant: str) -> list[_Share]:
        shares = self.by_pool.get(pool, _NONE).shares
        return [shares[tenant]] if tenant in shares else [] if tenant else list(shares.values())

    # moving

    def moved(self, before: Job | None, after: Job) -> None:
        """A job's record was ``before`` (None: it was not there) and is ``after``."""
        was, now = "" if before is None else PART[before.state], PART[after.state]
        if before is not None and before.request.pool != after.request.pool:
            # It leaves the one queue and comes to the other.
            self._step(before, before, was, "")
            self._step(None, after, "", now)
        elif was != now:
            self._step(before, after, was, now)

    def _step(self, before: Job | None, after: Job, was: str, now: str) -> None:
        request = after.request
        queue = self.by_pool.get(request.pool)
        if queue is None:
            queue = self.by_pool[request.pool] = _Queue()
        share, served = queue.share(request.tenant), 0
        if before is not None and was == "waits":
            self._remove(share, before)
        elif before is not None and was == "held":
            self._drop(before.node)
        if now == "waits":
            self._add(share, after)
        elif now == "held":
            self.by_node[after.node] = self.by_node.get(after.node, 0) + 1
            served = self.number()
        waits, holds = (now == "waits") - (was == "waits"), (now == "held") - (was == "held")
        queue.stand(request.tenant, share, waits, holds, served)

    def number(self) -> int:
        """The next number."""
        self.last += 1
        return self.last

    def _add(self, share: _Share, job: Job) -> None:
        request = job.request
        name = request.priority, request.requires
        band = share.bands.get(name)
        if band is None:
            band = share.bands[name] = _Band()
        band.add((request.actor, bound_ns(request)), Waiting(job.queued_ns, job.place, request.job))

    def _remove(self, share: _Share, job: Job) -> None:
        request = job.request
        name = request.priority, request.requires
        band = share.bands[name]
        band.remove((request.actor, bound_ns(request)), Waiting(job.queued_ns, job.place, request.job))
        if not band.lanes:
            del share.bands[name]

    def _drop(self, node: str) -> None:
        left = self.by_node[node] - 1
        if left:
            self.by_node[node] = left
        else:
            del self.by_node[node]
