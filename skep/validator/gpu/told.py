"""What a ledger tells of GPU work, as far as the proof asks it: read here anew, and not as the hive reads it.

An event's fields that nobody asks for are passed over, as are events that are not in ``TOLD``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from skep.trace.entry import Outcome
from skep.trace.ledger import LedgerTampered


class PoolCreated(msgspec.Struct):
    pool: str
    requires: tuple[str, ...] = ()
    fallback: str = ""  # "": its jobs have nowhere to fall back to


class Imported(msgspec.Struct):
    ended: bool = False


class Submitted(msgspec.Struct):
    job: str
    tenant: str
    actor: str
    topic: str
    pool: str
    requires: tuple[str, ...] = ()
    fallback: str = ""  # refuse, or anything else: it may
    imported: Imported | None = None  # None: it was submitted here


class JobLeased(msgspec.Struct):
    job: str
    node: str
    fence: int


class JobStarted(msgspec.Struct):
    job: str
    fence: int
    device: str = ""  # cuda:<n>, cpu:<n> of the node's annex, or cpu; "": nobody said


class JobRenewed(msgspec.Struct):
    job: str
    fence: int


class JobReturned(msgspec.Struct):
    job: str
    fence: int


class JobDelayed(msgspec.Struct):
    job: str
    fence: int


class JobWoken(msgspec.Struct):
    job: str


class FellBack(msgspec.Struct):
    """``in_place``: it stays with its holder, who has no GPU; else it waits in ``pool`` from now on."""

    job: str
    fence: int
    reason: str
    pool: str
    annex: str = ""
    from_pool: str = ""
    requires: tuple[str, ...] = ()
    in_place: bool = False


class JobEnded(msgspec.Struct):
    job: str
    state: str
    fence: int
    text: str = ""
    code: str = ""


class Alerted(msgspec.Struct):
    about: str  # job or annex
    id: str
    reason: str
    text: str = ""


class Device(msgspec.Struct):
    id: str  # cuda:0, cpu:0
    memory: int = 0  # bytes that may be given
    slots: int = 1


class Offered(msgspec.Struct):
    annex: str
    devices: tuple[Device, ...] = ()
    disabled: str = ""  # why nothing is to be given, as the annex says; "": something is


class Disabled(msgspec.Struct):
    annex: str


class Enabled(msgspec.Struct):
    annex: str


class Asked(msgspec.Struct):
    """Somebody waits for a lease."""

    annex: str
    lease: str


class Leased(msgspec.Struct):
    """So much of a device is somebody's: a job's, as long as its attempt lasts, or who asked for it has it
    until ``until_ns``. ``within``: the lease of which it takes; "": it takes of the device."""

    annex: str
    device: str
    lease: str
    tenant: str
    holder: str
    memory: int
    slots: int
    fence: int
    exclusive: bool = False
    job: str = ""
    until_ns: int = 0
    within: str = ""


class Renewed(msgspec.Struct):
    annex: str
    lease: str
    until_ns: int


class Ended(msgspec.Struct):
    annex: str
    lease: str
    why: str


class Heard(msgspec.Struct):
    """Of a node: whether it is heard, or has been lost."""

    node: str
    link: str


class Removed(msgspec.Struct):
    """A node is forgotten, and what it offered."""

    node: str


class Sealed(msgspec.Struct):
    sha256: str
    tenant: str


class ArtifactEnded(msgspec.Struct):
    sha256: str
    tenant: str


Told = (
    PoolCreated | Submitted | JobLeased | JobStarted | JobRenewed | JobReturned | JobDelayed | JobWoken
    | FellBack | JobEnded | Alerted | Offered | Disabled | Enabled | Asked | Leased | Renewed | Ended
    | Heard | Removed | Sealed | ArtifactEnded
)  # fmt: skip

TOLD: Final[Mapping[str, type[Told]]] = {
    "pool.created": PoolCreated, "job.submitted": Submitted, "job.leased": JobLeased,
    "job.started": JobStarted, "job.renewed": JobRenewed, "job.returned": JobReturned,
    "job.delayed": JobDelayed, "job.woken": JobWoken, "job.fellback": FellBack, "job.ended": JobEnded,
    "alert.raised": Alerted, "annex.offered": Offered, "annex.disabled": Disabled, "annex.enabled": Enabled,
    "gpu.asked": Asked, "gpu.leased": Leased, "gpu.renewed": Renewed, "gpu.ended": Ended,
    "node.heard": Heard, "node.removed": Removed, "artifact.sealed": Sealed, "artifact.ended": ArtifactEnded,
}  # fmt: skip


class Entry(NamedTuple):
    """``accepted``: what was written was done, and ``events`` followed. ``time_ns``: when it was written;
    ``trace`` names what its first line makes."""

    seq: int
    time_ns: int
    trace: str
    path: str
    line: str
    accepted: bool
    events: tuple[Told, ...]


class _Entry(msgspec.Struct):
    seq: int
    time: int
    trace: str
    path: str
    line: str
    outcome: Outcome
    events: tuple[msgspec.Raw, ...]


class _Typed(msgspec.Struct):
    type: str


_entry: Final = msgspec.json.Decoder(_Entry)
_typed: Final = msgspec.json.Decoder(_Typed)
_told: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(struct) for kind, struct in TOLD.items()
}


def read(seq: int, body: bytes) -> Entry:
    """The entry at place ``seq``. Raises LedgerTampered when it is none, or another, or tells of one of these
    events what they are not."""
    try:
        entry = _entry.decode(body)
        events = tuple(_events(entry.events))
    except msgspec.DecodeError as error:
        raise LedgerTampered(f"entry {seq}: {error}") from error
    if entry.seq != seq:
        raise LedgerTampered(f"entry {seq}: says it is entry {entry.seq}")
    return Entry(seq, entry.time, entry.trace, entry.path, entry.line, entry.outcome.code == "ok", events)


def _events(events: tuple[msgspec.Raw, ...]) -> Iterator[Told]:
    for event in events:
        decoder = _told.get(_typed.decode(event).type)
        if decoder is not None:
            yield decoder.decode(event)
