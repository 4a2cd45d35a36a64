"""How much a tenant, and one actor of it, may have of the engine at a time: /config's limits against what
usage.py counts. No clock, no I/O.

Deciding comes one line after the other, each on what those before it did: so no burst takes anybody over a
limit. One that is lowered below what is used stops what is new and ends nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from skep.namespaces.jobs.usage import ALL, Usage
from skep.trace.clock import duration


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


class World(Protocol):
    def limit(self, tenant: str, key: str) -> int | None:
        """The limit that /config has for the tenant; None: there is none. Raises Refusal."""


def why_not_held(usage: Usage, world: World, tenant: str, actor: str, now_ns: int, bound_ns: int) -> str:
    """Why no job of the actor (ALL: of the tenant) is leased now, whose attempts may take ``bound_ns``; "":
    it is. Raises Refusal when the limits cannot be read."""
    for who, keys in ((ALL, TENANT), (actor, ACTOR)):
        if keys is ACTOR and actor == ALL:
            break
        used = usage.of(tenant, who)
        most = world.limit(tenant, keys.held)
        if most is not None and used.held >= most:
            return over("held", used.held, most)
        most_ns = world.limit(tenant, keys.runtime)
        have_ns = usage.ran_ns(used, now_ns) + used.reserved_ns
        if most_ns is not None and have_ns + max(bound_ns, 1) > most_ns:
            return over("day-runtime", duration(have_ns), duration(most_ns))
    return ""


def over(what: str, have: object, most: object) -> str:
    return f"{what} have={have} max={most}"
