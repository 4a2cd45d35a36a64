"""How much a tenant, and one actor of it, may have of the engine at a time: /config's limits against what
usage.py counts. No clock, no I/O.

Deciding comes one line after the other, each on what those before it did: so no burst takes anybody over a
limit. One that is lowered below what is used stops what is new and ends nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from skep.fs.errors import E
from skep.namespaces.jobs.queues import KINDS_MAX
from skep.namespaces.jobs.record import Submitted
from skep.namespaces.jobs.usage import ALL, Usage, Used, bound_ns
from skep.namespaces.order import refusal
from skep.trace.clock import MS, SECOND, duration


class Limits(NamedTuple):
    """The keys of /config for the tenant as a whole, or for each of its actors."""

    held: str
    waiting: str
    submits: str
    runtime: str


TENANT: Final = Limits("limits/jobs", "limits/waiting", "limits/submits", "limits/day-runtime")
ACTOR: Final = Limits(
    "limits/actor-jobs", "limits/actor-waiting", "limits/actor-submits", "limits/actor-day-runtime"
)


ROOM_MAX: Final = 1 << 62  # where there is no limit


class World(Protocol):
    def count_kinds(self, request: Submitted) -> int:
        """How many kinds of its tenant's jobs wait where the job would be another; 0: it would be none."""

    def limit(self, tenant: str, key: str) -> int | None:
        """The limit that /config has for the tenant; None: there is none. Raises Refusal."""


def room(usage: Usage, world: World, tenant: str, actor: str, now_ns: int, bound_ns: int) -> int:
    """How many more jobs of the actor (ALL: of the tenant) can be held now, whose attempts may take
    ``bound_ns`` each (0: a moment). Raises Refusal when the limits cannot be read."""
    found = ROOM_MAX
    for who, keys in ((ALL, TENANT), (actor, ACTOR)) if actor != ALL else ((ALL, TENANT),):
        most = world.limit(tenant, keys.held)
        if most is not None:
            found = min(found, most - usage.of(tenant, who).held)
        most_ns = world.limit(tenant, keys.runtime)
        if most_ns is not None:
            used = usage.of(tenant, who)
            left_ns = most_ns - usage.ran_ns(used, now_ns) - used.reserved_ns
            found = min(found, left_ns // max(bound_ns, 1))
    return max(found, 0)


def admitted(usage: Usage, event: Submitted, now_ns: int, world: World) -> Submitted:
    """The submission with what it costs its tenant and its actor, which may have one more. Raises Refusal.

    What waits again after a lease always has a place; until as many have gone, nothing new has."""
    kinds = world.count_kinds(event)
    if kinds >= KINDS_MAX:
        raise refusal(E.QUOTA, over("kinds (actor, priority, requires, time limit)", kinds, KINDS_MAX))
    costs = []
    for actor, keys in ((ALL, TENANT), (event.actor, ACTOR)):
        used = usage.of(event.tenant, actor)
        most = world.limit(event.tenant, keys.waiting)
        if most is not None and used.waiting >= most:
            raise refusal(E.QUOTA, over(_name(keys.waiting), used.waiting, most))
        _check_bound(event, keys, world)
        most = world.limit(event.tenant, keys.submits)
        costs.append(0 if most is None else _cost_ns(used.owed_ns(now_ns), keys.submits, most))
    return msgspec.structs.replace(event, cost_ns=costs[0], actor_cost_ns=costs[1]) if any(costs) else event


def _check_bound(event: Submitted, keys: Limits, world: World) -> None:
    """A job that could never be leased is refused; its attempt's limit is reserved while it is held."""
    most_ns = world.limit(event.tenant, keys.runtime)
    if most_ns is None:
        return
    if not bound_ns(event):
        raise refusal(E.USAGE, f"submit: timeout= is missing: {keys.runtime} is {duration(most_ns)}")
    if bound_ns(event) > most_ns:
        raise refusal(E.QUOTA, over(_name(keys.runtime), duration(bound_ns(event)), duration(most_ns)))


def _cost_ns(owed_ns: int, key: str, most: int) -> int:
    """What a submission costs where ``most`` may come in a second: they may come at once, and then one each
    time that one has been paid for. So in any t seconds no more than ``most`` (1 + t) come."""
    if most == 0:
        raise refusal(E.QUOTA, over(_name(key), 0, 0))
    cost_ns = paid_in_ns(most)
    wait_ns = owed_ns - (most - 1) * cost_ns
    if wait_ns > 0:
        raise refusal(E.THROTTLED, f"retry-ms={-(-wait_ns // MS)}")
    return cost_ns


def paid_in_ns(most: int) -> int:
    """How long a submission takes to be paid for, where ``most`` (from 1) may come in a second."""
    return -(-SECOND // most)


def count_submits(used: Used, most: int | None, now_ns: int) -> int:
    """How many of the submissions that may come at once are not paid for yet."""
    return -(-used.owed_ns(now_ns) // paid_in_ns(most)) if most else 0


def _name(key: str) -> str:
    return key.removeprefix("limits/")


def over(what: str, have: object, most: object) -> str:
    return f"{what} have={have} max={most}"
