"""Occasions: the events of the ledger that triggers wait for, with what is known of the job they are about.

Beside the nouns, as they do not know each other: what is an occasion here is the event of several.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from skep.namespaces.alerts import Alerted
from skep.namespaces.hive import Event, HiveState
from skep.namespaces.jobs import record as jobs
from skep.namespaces.order import HIVE_TENANT
from skep.trace.clock import rfc3339
from skep.trace.entry import Entry, entry_decoder
from skep.trace.turn import Turn

READ_MAX: Final = 64  # entries read in one step.
TEXT_MAX: Final = 1024  # characters of an event's text that an input has; the whole is in /events.
JSON_MAX: Final = 4 * 1024  # bytes of it in all: it stands twice in an entry of 64 KiB, its quotes doubled.

_decoder = entry_decoder(Event)


class Occasion(NamedTuple):
    """The event ``k`` of entry ``seq``, and the tenants who may know of it. ``state`` is the job's or node's
    after it; ``depth`` how many triggers there were on the way to its job."""

    entry: Entry[Event]
    k: int
    kind: str
    tenants: tuple[str, ...]
    state: str = ""
    topic: str = ""
    pool: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012
    depth: int = 0

    @property
    def place(self) -> tuple[int, int]:
        return self.entry.seq, self.k

    def json(self) -> str:
        """The event as /events has it. Its long texts are cut; too long all the same, it is what and where
        alone."""
        event: dict[str, Any] = msgspec.to_builtins(self.entry.events[self.k])
        head = {"seq": self.entry.seq, "time": rfc3339(self.entry.time), "trace": self.entry.trace}
        short = {name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in event.items()}
        whole = msgspec.json.encode(head | short)
        if len(whole) > JSON_MAX:
            whole = msgspec.json.encode(
                head | {name: short[name] for name in ("type", "job") if name in short}
            )
        return whole.decode()


_STATES: Final = {
    "job.submitted": "queued", "job.leased": "leased", "job.started": "running", "job.delayed": "delayed",
    "job.fellback": "queued",
}  # fmt: skip


def occasions(state: HiveState, entry: Entry[Event], wanted: Collection[str]) -> Iterator[Occasion]:
    """Those of the entry, of the kinds ``wanted``. ``state`` has the jobs that the entry is about."""
    for k, event in enumerate(entry.events):
        kind = event.__struct_config__.tag
        if kind in wanted:
            found = _occasion(state, entry, k, str(kind), event)
            if found is not None:
                yield found


def _occasion(state: HiveState, entry: Entry[Event], k: int, kind: str, event: Any) -> Occasion | None:
    """None: the job is forgotten; a trigger has fired for it or was made later."""
    about = event.id if isinstance(event, Alerted) else getattr(event, "job", "")
    job = state.jobs.by_id.get(about)
    depth = 0 if job is None else job.request.depth
    if kind.startswith("job."):
        if job is None:
            return None
        of = job.request
        if of.imported is not None and of.imported.ended:
            return None  # it ended elsewhere, long ago
        after = event.state if isinstance(event, jobs.Ended) else _STATES[kind]
        if isinstance(event, jobs.Fellback) and event.in_place:
            after = "leased"
        return Occasion(entry, k, kind, (of.tenant,), after, of.topic, of.pool, of.labels, depth)
    if kind.startswith("node."):
        node = state.nodes.by_id.get(event.node)
        # Before its first entry it was another of its name.
        known = node is not None and len(node.tenants) == 1 and entry.seq >= node.first
        alone = node.tenants if node is not None and known else ()
        return Occasion(entry, k, kind, (HIVE_TENANT, *alone), getattr(event, "link", ""))
    return Occasion(entry, k, kind, (event.tenant,), depth=depth)


def read(
    turn: Turn[HiveState, Event, str], after: int, wanted: Collection[str]
) -> tuple[list[Occasion], int]:
    """The occasions in the entries after ``after``, as far as one step goes, and the last entry of it."""
    bodies = turn.read(after, READ_MAX)
    marks = [
        f'"type":"{kind}"'.encode() for kind in wanted
    ]  # as canonical JSON has it: most entries have none
    entries = [_decoder.decode(body) for _, body in bodies if any(mark in body for mark in marks)]
    found = [each for entry in entries for each in occasions(turn.state, entry, wanted)]
    return found, bodies[-1][0] if bodies else turn.seq
