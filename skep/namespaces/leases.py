"""Who reads /pools/<p>/next, and who of them is served: the node that has the least to do for what it can
hold, then first come, first served; one job for one reader.

A reader is told to ask when a job waits that it can have and that no reader before it has been told of.
Asking is a line in the ledger, and which job it gets is decided there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush
from typing import Final, TypeVar

from skep.fs.errors import E, FsError
from skep.namespaces.hive import HiveState
from skep.namespaces.jobs.placement import Fit
from skep.namespaces.order import HIVE_TENANT

READERS_MAX: Final = 65536  # of one pool: each is a session that waits.


class _Reader:
    __slots__ = ("node", "tenant", "told")

    def __init__(self, node: str, tenant: str) -> None:
        self.node = node
        self.tenant = tenant
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Leases:
    """The readers of all pools. ``state`` gives what is durable now, ``now_ns`` the time."""

    def __init__(self, state: Callable[[], HiveState], now_ns: Callable[[], int]) -> None:
        self._state = state
        self._now_ns = now_ns
        self._readers: dict[str, deque[_Reader]] = {}
        # pool, tenant -> readers told, whose lines are not decided yet
        self._asking: Counter[tuple[str, str]] = Counter()
        self._asking_nodes: Counter[str] = Counter()

    async def take(self, pool: str, node: str, tenant: str, ask: Callable[[], Awaitable[str]]) -> str:
        """What ``ask`` gives, the id of a job leased to the node, when it is this reader's turn.

        ``tenant``: whose jobs it takes; the hive's own takes everybody's.
        ``ask`` raises FsError(E.NODATA) when there was none after all. Cancelled before it asked, no job is
        taken; ``ask`` itself says what a cancellation of it does."""
        readers = self._readers.setdefault(pool, deque())
        if len(readers) >= READERS_MAX:
            raise FsError(E.QUOTA, f"readers have={len(readers)} max={READERS_MAX}")
        reader = _Reader(node, tenant)
        readers.append(reader)
        while True:
            self.dispatch(pool)
            await self._wait_told(pool, reader)
            try:
                return await ask()
            except FsError as error:
                if error.kind is not E.NODATA:
                    raise
            finally:
                self._asked(pool, reader)
            reader = _Reader(node, tenant)
            # It was its turn.
            readers.appendleft(reader)

    async def _wait_told(self, pool: str, reader: _Reader) -> None:
        try:
            await reader.told
        except asyncio.CancelledError:
            if reader.told.cancelled():
                self._readers[pool].remove(reader)
            else:
                self._asked(pool, reader)
            raise

    def _asked(self, pool: str, reader: _Reader) -> None:
        _less(self._asking, (pool, reader.tenant))
        _less(self._asking_nodes, reader.node)
        self.dispatch(pool)

    def dispatch(self, pool: str) -> None:
        """Tell as many readers as there are jobs waiting for them that nobody was told of."""
        readers = self._readers.get(pool)
        if not readers:
            return
        state = self._state()
        choice = _Choice(state, pool, self._now_ns(), self._asking)
        if choice.free() <= 0:
            return
        heap = [(self._load(state, reader.node), n, reader) for n, reader in enumerate(readers)]
        heapify(heap)
        while heap and choice.free() > 0:
            load, n, reader = heappop(heap)
            # Another reader of its node was told meanwhile.
            if (now := self._load(state, reader.node)) > load:
                heappush(heap, (now, n, reader))
                continue
            # Given up in this step of the loop, and still among the readers until the next one.
            if reader.told.cancelled() or not choice.has_job(reader, self._asking_nodes[reader.node]):
                continue
            readers.remove(reader)
            self._asking[pool, reader.tenant] += 1
            self._asking_nodes[reader.node] += 1
            reader.told.set_result(None)

    def _load(self, state: HiveState, node: str) -> float:
        """How much of what it can hold the node holds, or has been told to ask for."""
        found = state.nodes.by_id.get(node)
        held = state.count_held(node) + self._asking_nodes[node]
        return held / (found.capacity or 1) if found is not None else held

    @property
    def asking(self) -> bool:
        """Whether readers have been told, and their lines are not decided yet."""
        return bool(self._asking)

    def why_not(self, pool: str, node: str) -> str:
        """Why the pool gives the node no lease now, whatever waits there; "": it does."""
        asked = sum(n for (of, _), n in self._asking.items() if of == pool)
        return self._state().why_no_lease(pool, node, self._asking_nodes[node], asked)

    def ranked(self, pool: str) -> list[tuple[str, str]]:
        """Node and tenant of each reader that waits, in the order in which they are told."""
        state = self._state()
        readers = [reader for reader in self._readers.get(pool, ()) if not reader.told.cancelled()]
        readers.sort(key=lambda reader: self._load(state, reader.node))
        return [(reader.node, reader.tenant) for reader in readers]

    def dispatch_all(self) -> None:
        """The state has moved."""
        for pool in self._readers:
            self.dispatch(pool)

    def waiting(self, pool: str) -> list[str]:
        """The nodes of the readers that wait, the first to be served first."""
        return [reader.node for reader in self._readers.get(pool, ())]


K = TypeVar("K")


def _less(counted: Counter[K], key: K) -> None:
    """One less; what comes to none is forgotten."""
    counted[key] -= 1
    if not counted[key]:
        del counted[key]


class _Choice:
    """Who of a pool's readers can be told, at a moment. Nodes that offer the same are asked about once."""

    def __init__(self, state: HiveState, pool: str, now_ns: int, asking: Counter[tuple[str, str]]) -> None:
        self._state = state
        self._pool = pool
        self._now_ns = now_ns
        self._asking = asking
        self._fits: dict[frozenset[str], Fit] = {}

    def free(self) -> int:
        """How many jobs wait that nobody was told of. Those who ask for anybody's job may get any."""
        return self._state.jobs.count_waiting(self._pool) - self._told(HIVE_TENANT)

    def _told(self, tenant: str) -> int:
        """How many readers that could get the tenant's jobs have been told and have not got any yet."""
        return sum(
            n
            for (pool, of), n in self._asking.items()
            if (pool == self._pool and HIVE_TENANT in (tenant, of)) or (pool, of) == (self._pool, tenant)
        )

    def has_job(self, reader: _Reader, asking: int) -> bool:
        """Whether there is one more for the reader, whose node has been told ``asking`` times."""
        state, pool = self._state, self._pool
        if state.why_no_lease(pool, reader.node, asking, self._told(HIVE_TENANT)):
            return False
        offers = state.offers(reader.node)
        fit = self._fits.get(offers)
        if fit is None:
            fit = self._fits[offers] = Fit(state, pool, offers, self._now_ns)
        told = self._told(reader.tenant)
        whose = "" if reader.tenant == HIVE_TENANT else reader.tenant
        return state.jobs.queues.count_for(pool, whose, fit, told + 1) > told
