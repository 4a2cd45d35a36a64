"""Who reads /pools/<p>/next, and who of them is served: first come, first served, one job for one reader.

A reader is told to ask when a job waits that no reader before it has been told of. Asking is a line in the
ledger, and which job it gets is decided there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final

from skep.fs.errors import E, FsError
from skep.namespaces.hive import HiveState
from skep.namespaces.order import HIVE_TENANT

READERS_MAX: Final = 65536  # of one pool: each is a session that waits.


class _Reader:
    __slots__ = ("node", "tenant", "told")

    def __init__(self, node: str, tenant: str) -> None:
        self.node = node
        self.tenant = tenant
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Leases:
    """The readers of all pools. ``state`` gives what is durable now."""

    def __init__(self, state: Callable[[], HiveState]) -> None:
        self._state = state
        self._readers: dict[str, deque[_Reader]] = {}
        # pool, tenant -> readers told, whose lines are not decided yet
        self._asking: Counter[tuple[str, str]] = Counter()

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
                self._asked(pool, tenant)
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
                self._asked(pool, reader.tenant)
            raise

    def _asked(self, pool: str, tenant: str) -> None:
        self._asking[pool, tenant] -= 1
        if not self._asking[pool, tenant]:
            del self._asking[pool, tenant]
        self.dispatch(pool)

    def dispatch(self, pool: str) -> None:
        """Tell as many readers as there are jobs waiting that nobody was told of."""
        readers = self._readers.get(pool)
        if not readers:
            return
        state = self._state()
        # Those who ask for anybody's job may get any.
        asking = sum(n for (where, _), n in self._asking.items() if where == pool)
        free = state.jobs.count_waiting(pool) - asking
        if free <= 0:
            return
        for reader in [r for r in readers if not state.why_no_lease(pool, r.node)]:
            # Given up in this step of the loop, and still among the readers until the next one.
            if reader.told.cancelled():
                continue
            if not self._has_job(state, pool, reader.tenant):
                continue
            readers.remove(reader)
            self._asking[pool, reader.tenant] += 1
            reader.told.set_result(None)
            free -= 1
            if not free:
                return

    def _has_job(self, state: HiveState, pool: str, tenant: str) -> bool:
        if tenant == HIVE_TENANT:
            return True
        return state.jobs.count_waiting(pool, tenant) > self._asking[pool, tenant]

    def dispatch_all(self) -> None:
        """The state has moved."""
        for pool in self._readers:
            self.dispatch(pool)

    def waiting(self, pool: str) -> list[str]:
        """The nodes of the readers that wait, the first to be served first."""
        return [reader.node for reader in self._readers.get(pool, ())]
