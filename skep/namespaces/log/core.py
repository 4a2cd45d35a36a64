"""What was refused, as the ledger counts it. The hive alone writes these lines, for all doors.

One line stands for ``count`` refusals of one kind between ``first`` and ``last``, which were all told the
same ``trace``. What each says of itself is bounded by who writes it (denials.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.namespaces.log import recordings, witnesses
from skep.namespaces.log.recordings import Orders
from skep.namespaces.log.witnesses import Witnesses
from skep.namespaces.order import Order
from skep.trace.rules import Decision, Meta

LOG: Final = "net_trace_secure9p.log"

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "*": ctl.verbs(
        Verb(
            "denied",
            (
                Arg("trace", required=True, kind="name", help="the id that the refused were told"),
                Arg("op", required=True, kind="name"),
                Arg("code", required=True, kind="name", help="the class of the error"),
                Arg("rule", required=True),
                Arg("peer", required=True),
                Arg("principal"),
                Arg("role"),
                Arg("node"),
                Arg("path", help="as it was asked for"),
                Arg("canonical"),
                Arg("why", help="the rest of what the refused were told"),
                Arg("count", required=True, kind="number"),
                Arg("first", required=True, kind="name", help="RFC 3339"),
                Arg("last", required=True, kind="name", help="RFC 3339"),
            ),
        ),
        *recordings.OWN.values(),
    ),
    "*/ctl": recordings.VERBS,
    **witnesses.TABLES,
}


class Denied(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="log.denied"):
    """``count`` refusals of one kind; "*" stands for many. Times are as RFC 3339 writes them."""

    id: str
    op: str
    code: str
    rule: str
    peer: str
    tenant: str
    count: int
    first: str
    last: str
    principal: str = ""
    role: str = ""
    node: str = ""
    path: str = ""
    canonical: str = ""
    why: str = ""


Event = Denied | recordings.Event | witnesses.Event


@dataclass
class Log:
    """How often what was refused: (operation, class of error) -> count."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    witnesses: Witnesses = field(default_factory=Witnesses)
    recordings: Orders = field(default_factory=Orders)

    def copy(self) -> Log:
        return Log(self.counts.copy(), self.witnesses.copy(), self.recordings.copy())


def decide(log: Log, order: Order) -> Decision[Event, str]:
    """What follows from ``denied``, or from a line about witnesses or recordings."""
    if order.place in witnesses.TABLES:
        return witnesses.decide(log.witnesses, order)
    if order.verb != "denied":
        return recordings.decide(log.recordings, order)
    said = order.args
    words = ("op", "code", "rule", "peer", "principal", "role", "node", "path", "canonical", "why")
    denied = Denied(
        id=said["trace"],
        tenant=order.tenant,
        count=int(said["count"]),
        first=said["first"],
        last=said["last"],
        **{word: said.get(word, "") for word in words},
    )
    return Decision((denied,), "ok")


def apply(log: Log, event: Event, meta: Meta) -> None:
    """Change ``log`` by ``event``."""
    if isinstance(event, recordings.Event):
        recordings.apply(log.recordings, event, meta)
        return
    if not isinstance(event, Denied):
        witnesses.apply(log.witnesses, event, meta)
        return
    kind = event.op, event.code
    log.counts[kind] = log.counts.get(kind, 0) + event.count
