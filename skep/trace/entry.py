"""What the ledger keeps: a line that was written, what was decided, which events followed.

An entry's bytes are canonical (JSON, UTF-8, keys sorted, no spaces), because its hash is taken over
them and other programs recompute it. Event types belong to the nouns; here an event is any JSON
object with a ``type``, and ``Entry`` is generic over how its reader wants to see them.
Source: RFC 6962, 2.1 (leaf hash)."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Generic, TypeVar

import msgspec

E = TypeVar("E")

VERSION = 1
# Bytes of one entry: blobs go to the artifact store, the ledger holds their hash. Entry bundles of tlog-tiles
# say the length in 16 bits.
ENTRY_MAX = 64 * 1024 - 1

# "sorted" sorts struct fields as well as dict keys.
_encoder = msgspec.json.Encoder(order="sorted")


class Line(msgspec.Struct, frozen=True):
    """The lines of one Twrite: one transaction, every line takes effect or none does.

    Who wrote (actor, role, tenant), where (path), when (time_ns) and the write's name (trace, a ULID)
    are chosen at the door."""

    actor: str
    role: str
    tenant: str
    path: str
    lines: tuple[str, ...]
    time_ns: int
    trace: str
    token: str = ""  # under which capability token it was written; "": under none.

    def __post_init__(self) -> None:
        assert self.lines, "a write of no line is not a write"
        assert "\n" not in "".join(self.lines), self.lines

    def id(self, k: int) -> str:
        """A fresh object id for line ``k``: the trace itself for the first."""
        return self.trace if k == 0 else f"{self.trace}-{k}"


class Outcome(msgspec.Struct, frozen=True):
    """``code`` is ``ok`` or the refusal's class; ``text`` says why, ``k`` is the refused line (from 0)."""

    code: str = "ok"
    text: str = ""
    k: int = 0


OK = Outcome()


class Entry(msgspec.Struct, Generic[E], frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of the ledger; ``seq`` from 1, ``time`` in ns, ``line`` the lines joined by newlines.

    A refused entry has no events."""

    v: int
    seq: int
    time: int
    trace: str
    actor: str
    role: str
    tenant: str
    path: str
    line: str
    outcome: Outcome
    events: tuple[E, ...]
    token: str = ""  # not in the bytes when there was none.

    def written(self) -> Line:
        """The line as it came in, for replay."""
        return Line(
            self.actor,
            self.role,
            self.tenant,
            self.path,
            tuple(self.line.split("\n")),
            self.time,
            self.trace,
            self.token,
        )


def entry_of(line: Line, seq: int, outcome: Outcome, events: tuple[E, ...]) -> Entry[E]:
    """The entry that records ``line`` and what became of it."""
    return Entry(
        VERSION,
        seq,
        line.time_ns,
        line.trace,
        line.actor,
        line.role,
        line.tenant,
        line.path,
        "\n".join(line.lines),
        outcome,
        events,
        line.token,
    )


def canonical(value: object) -> bytes:
    """The one encoding of an entry, an event or any JSON value."""
    return _encoder.encode(value)


def entry_decoder(event_type: Any) -> msgspec.json.Decoder[Entry[Any]]:
    """Decodes entries whose events are ``event_type``: a union of tagged Structs, or ``dict``."""
    return msgspec.json.Decoder(Entry[event_type])


def events_decoder(event_type: Any) -> msgspec.json.Decoder[tuple[Any, ...]]:
    """Decodes the events of one decision."""
    return msgspec.json.Decoder(tuple[event_type, ...])


def leaf_hash(body: bytes) -> bytes:
    """RFC 6962's hash of an entry: SHA-256(0x00 || body)."""
    return sha256(b"\x00" + body).digest()
