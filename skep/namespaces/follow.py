"""Reading on: the ledger's entries and events as JSON lines, to the present or for ever.

A follower's place is a ledger number. It is told where it is even when nothing comes for it, so that it
can begin again there without gap or duplicate.

What another tenant does is in none of these lines. But there is one ledger, and its numbers count every
tenant's entries: who reads two of them knows how much was written between, by all together. Numbers of a
tenant's own would have to be written down, to be the same for its every session and after a restart; that
they are no secret is the price of places that can be named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from skep.fs.node import Caller
from skep.namespaces.hive import OPERATOR
from skep.namespaces.jobs.record import visible
from skep.namespaces.live import Hive, told_as_fs_error
from skep.namespaces.order import HIVE_TENANT, actor_of
from skep.trace.clock import rfc3339
from skep.trace.entry import Entry, entry_decoder

READ_MAX: Final = 64  # entries read in one step: 4 MiB at the most, and a pause for the others.
EVENTS_MAX: Final = 128  # looked at without a pause: of those whose job has left memory the index is asked.
READERS: Final = frozenset({OPERATOR, "observer"})  # roles that see what is no job's
TRACERS: Final = READERS | {"validator", "simulator-test"}  # roles that see what others wrote
AUDITORS: Final = frozenset({OPERATOR, "validator"})  # roles that see what was refused, and to whom
OF_WORK: Final = ("job.", "gpu.")  # types of events that are about somebody's work
REFUSALS: Final = "/log/"  # what is written there is of refusals
# Events that are every tenant's to see: what the hive has, and whether it works. Others without a tenant are
# for the hive's own.
PUBLIC: Final = frozenset({
    "hive.drained", "hive.resumed", "hive.shutdown", "hive.started",
    "pool.created", "pool.mapped", "pool.unmapped", "pool.drained", "pool.resumed",
})  # fmt: skip

Plain = Entry[dict[str, Any]]
_decoder = entry_decoder(dict)


class Feed:
    """The lines that ``render`` makes of the entries after ``after``; each entry gives some, or b"".

    ``until`` is the last entry wanted; None: there is none, wait for more."""

    def __init__(self, hive: Hive, after: int, until: int | None, render: Callable[[Plain], bytes]) -> None:
        self.hive = hive
        self.seq = after
        self.until = until
        self.render = render

    async def next(self) -> bytes | None:
        turn = self.hive.turn
        while self.until is None or self.seq < self.until:
            limit = READ_MAX if self.until is None else min(READ_MAX, self.until - self.seq)
            bodies = turn.read(self.seq, limit)
            if bodies:
                # Whose an event is, its job says.
                await self.hive.wait_history()
                lines = await self._rendered(bodies)
                self.seq = bodies[-1][0]
                if lines:
                    return lines
                # Others get their turn before the next step.
                await asyncio.sleep(0)
            elif self.until is not None:
                break
            elif not await self._more():
                return msgspec.json.encode({"seq": max(self.seq, turn.seq)}) + b"\n"
        return None

    async def _rendered(self, bodies: list[tuple[int, bytes]]) -> bytes:
        lines, looked_at = [], 0
        for _, body in bodies:
            entry = _decoder.decode(body)
            lines.append(self.render(entry))
            looked_at += len(entry.events)
            if looked_at >= EVENTS_MAX:
                looked_at = 0
                await asyncio.sleep(0)
                await self.hive.wait_history()  # jobs have left memory meanwhile
        return b"".join(lines)

    async def _more(self) -> bool:
        """Whether an entry came before a bookmark was due."""
        try:
            with told_as_fs_error():
                await asyncio.wait_for(self.hive.turn.wait_past(self.seq), self.hive.bookmark_s)
        except TimeoutError:
            return False
        return True

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


def events(hive: Hive, caller: Caller, job: str = "") -> Callable[[Plain], bytes]:
    """Renders the events that the caller may see, one JSON line each; given ``job``, that job's."""

    def render(entry: Plain) -> bytes:
        return b"".join(
            _event_line(entry, event)
            for event in entry.events
            if (not job or event.get("job") == job) and sees(hive, caller, event, entry.seq)
        )

    return render


def _event_line(entry: Plain, event: dict[str, Any]) -> bytes:
    head = {"seq": entry.seq, "time": rfc3339(entry.time), "trace": entry.trace}
    return msgspec.json.encode(head | event) + b"\n"


def sees(hive: Hive, caller: Caller, event: dict[str, Any], seq: int) -> bool:
    """Whether the event is of the caller's tenant, or of no tenant and the caller one who reads such."""
    if event["type"].startswith("log.") and caller.role not in AUDITORS:
        return False
    job = event.get("job", "")
    tenant = hive.tenant_of(job)
    if tenant is not None and not caller.node:
        return tenant == caller.tenant
    if job:
        found = hive.found(job) if tenant is not None else None
        return found is not None and visible(found.job, caller.role, caller.tenant, caller.node)
    if event["type"].startswith(("node.", "annex.")):
        node = event.get("node") or event["annex"]
        return caller.role in READERS and hive.state.sees_node(caller.tenant, node, seq)
    if "tenant" in event:
        return not caller.node and bool(event["tenant"] == caller.tenant)
    return caller.role in READERS and (caller.tenant == HIVE_TENANT or event["type"] in PUBLIC)


def trace(hive: Hive, caller: Caller) -> Callable[[Plain], bytes]:
    """Renders entries as the trace has them: a tenant's to its readers, who wrote it to others.

    What the hive itself wrote about no tenant is its own tenant's. An entry is of the tenant whose job its
    events are about: a node that runs the jobs of several asks for the next one without knowing whose."""
    actor = actor_of(caller.principal, caller.node)

    def render(entry: Plain) -> bytes:
        if caller.role not in TRACERS and entry.actor != actor:
            return b""
        if entry.path.startswith(REFUSALS) and caller.role not in AUDITORS:
            return b""
        # The hive's own nodes have done what they did, whoever's the jobs are.
        own = caller.tenant == HIVE_TENANT and bool(caller.node)
        if not own and _tenant_of(hive, entry) != caller.tenant:
            return b""
        line = {
            "seq": entry.seq, "time": rfc3339(entry.time), "trace": entry.trace, "actor": entry.actor,
            "role": entry.role, "tenant": entry.tenant, "path": entry.path, "line": entry.line,
            "outcome": entry.outcome, "events": entry.events if own else _own(hive, caller.tenant, entry),
        }  # fmt: skip
        return msgspec.json.encode(line) + b"\n"

    return render


def _own(hive: Hive, tenant: str, entry: Plain) -> Sequence[dict[str, Any]]:
    """The entry's events without those of other tenants' work: what one has no more of a device, the next one
    is given, in one entry."""
    if len(entry.events) == 1:
        return entry.events
    return [event for event in entry.events if _worker_of(hive, event) in (None, tenant)]


def _worker_of(hive: Hive, event: dict[str, Any]) -> str | None:
    """Whose work the event is about; None: nobody's."""
    if not event["type"].startswith(OF_WORK):
        return None
    tenant: str | None = hive.tenant_of(event.get("job", "")) or event.get("tenant")
    return tenant


def _tenant_of(hive: Hive, entry: Plain) -> str:
    tenants = (hive.tenant_of(event.get("job", "")) for event in entry.events)
    tenant = next((tenant for tenant in tenants if tenant is not None), entry.tenant)
    return tenant or HIVE_TENANT
