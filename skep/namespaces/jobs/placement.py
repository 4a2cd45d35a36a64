"""Which pool a job waits in, and which node may have it. Pure.

Submit, lease and the plan ask the same functions here, so that what was planned is what is done.
"""

from __future__ import annotations

from typing import Protocol

from skep.namespaces.jobs.usage import ALL
from skep.trace.rules import Refusal


class World(Protocol):
    """What the other nouns know of pools and nodes."""

    def ageing_ns(self, pool: str) -> int:
        """How much waiting outweighs one step of priority in the pool."""

    def needs(self, pool: str, scope: str) -> frozenset[str]:
        """What a node must have for jobs of the scope in the pool. Raises Refusal when that is not known."""

    def offers(self, node: str) -> frozenset[str]:
        """What the node has: the names of its labels, and ``name:value``."""

    def why_not_held(self, tenant: str, actor: str, now_ns: int, bound_ns: int) -> str:
        """Why the tenant's limits let no node have one more of the actor's jobs; "": they do."""


class Fit:
    """The terms by which a node gets jobs of a pool, at a moment: queues.Terms."""

    __slots__ = ("_lets", "_meets", "_now_ns", "_pool", "_world", "ageing_ns", "offers")

    def __init__(self, world: World, pool: str, offers: frozenset[str], now_ns: int) -> None:
        self._world = world
        self._pool = pool
        self._now_ns = now_ns
        self.offers = offers
        self.ageing_ns = world.ageing_ns(pool)
        # Asked once of each, though it stands in many places.
        self._meets: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._lets: dict[tuple[str, str, int], bool] = {}

    def serves(self, tenant: str) -> bool:
        return self.meets(tenant, ()) and self.lets(tenant, ALL, 0)

    def meets(self, tenant: str, requires: tuple[str, ...]) -> bool:
        found = self._meets.get((tenant, requires))
        if found is None:
            found = not self.missing(tenant, requires)
            self._meets[tenant, requires] = found
        return found

    def missing(self, tenant: str, requires: tuple[str, ...]) -> str:
        """Why the node is none for such jobs of the tenant; "": it is one."""
        try:
            needs = self._world.needs(self._pool, tenant)
        except Refusal as unreadable:
            return unreadable.text
        lacks = sorted((needs | frozenset(requires)) - self.offers)
        return f"it has no {','.join(lacks)}" if lacks else ""

    def lets(self, tenant: str, actor: str, bound_ns: int) -> bool:
        key = (tenant, actor, bound_ns)
        found = self._lets.get(key)
        if found is None:
            found = not self._world.why_not_held(tenant, actor, self._now_ns, bound_ns)
            self._lets[key] = found
        return found
