"""An order: one line of a write as a noun's core sees it, and how a core says no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from skep.fs.errors import E
from skep.trace.rules import Refusal

HIVE = "hive"  # actor and role of what the hive itself writes: timers, registrations.
HIVE_TENANT = "default/default/default"  # the hive's own: who runs the hive works in it, and its machines do.

# What kind of actor speaks, by its role; others, and roles unknown here, are services.
ACTOR_TYPES: Final = ("human", "agent", "service", "device")
_TYPE_OF: Final[Mapping[str, str]] = {
    "operator": "human", "observer": "human", "interactive-ai-booth": "device", "kiosk-interactive": "device",
    "glasses-agent": "device", "sensor-relay": "device",
}  # fmt: skip


class Order(NamedTuple):
    """Parsed and checked against its place's table of verbs; who may write it has been asked.

    place: the kind of file it was written to, below the noun: ``ctl``, ``*/ctl``; name: what ``*`` stands
    for ("": nothing). id: fresh, for what the order makes. Times are ns."""

    verb: str
    args: dict[str, str]
    place: str
    name: str
    actor: str
    role: str
    tenant: str
    time_ns: int
    id: str
    token: str = ""

    @property
    def node(self) -> str:
        """The node that speaks; "" when no node does."""
        return node_of(self.actor)

    def check_rev(self, have: int) -> None:
        """Refuse when ``if-rev=`` asks for another revision than ``have``."""
        want = self.args.get("if-rev")
        if want is not None and int(want) != have:
            raise refusal(E.CONFLICT, f"rev have={have} want={want}")


def refusal(kind: E, detail: str = "") -> Refusal:
    """The Refusal of an error class, its text as the error table begins it."""
    return Refusal(kind.name, f"{kind.value.text}: {detail}" if detail else kind.value.text)


def covers(tenant: str, of: str) -> bool:
    """Whether what ``tenant`` has of the hive's machines has to do with ``of``'s jobs: they run the tenant's
    jobs, the hive's own run everybody's."""
    return tenant in (HIVE_TENANT, of)


def actor_type(role: str) -> str:
    """Which of ACTOR_TYPES the role's actors are."""
    return _TYPE_OF.get(role, "service")


def actor_of(principal: str, node: str) -> str:
    """Who speaks, as the ledger has it: ``spiffe://…`` or ``unix:root``, a node behind ``#``.

    SPIFFE ids have no fragment; whatever else has a ``#`` in it must not be taken for a node."""
    principal = principal.replace("#", "%23")
    return f"{principal}#{node}" if node else principal


def node_of(actor: str) -> str:
    """The node of an actor; "" when it has none."""
    return actor.partition("#")[2]
