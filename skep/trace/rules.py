"""What a hive's turn asks of a state machine, and what it gives it.

No clock and no I/O pass through here: times and ids come with the line."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from skep.trace.entry import Line

S = TypeVar("S")
E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Refusal(Exception):
    """Deciding says no: ``code`` is a class of the error table, ``text`` what the writer is told."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Decision(NamedTuple, Generic[E_co, R_co]):
    """What follows from a line (events, in order) and what its writer is told (reply)."""

    events: tuple[E_co, ...]
    reply: R_co


class Meta(NamedTuple):
    """Where an event stands: its entry's number, time and trace."""

    seq: int
    time_ns: int
    trace: str


class Rules(Protocol[S, E, R_co]):
    """A deterministic state machine. Its calls come one at a time, on one thread."""

    @property
    def event_type(self) -> Any:
        """How events are decoded: a union of msgspec Structs with ``tag_field="type"``, or ``dict``.

        Events are applied as decoded from the entry's bytes, never as decided: what is applied
        live and what is applied when the ledger is read again are the same by construction."""

    def fresh(self) -> S:
        """The state before entry 1."""

    def copy(self, state: S) -> S:
        """A state that shares no mutable part with ``state``: dicts copied, records in them shared.

        Called when a write is taken back after some of its lines were applied, not for each write."""

    def decide(self, state: S, line: Line, k: int) -> Decision[E, R_co]:
        """What follows from ``line.lines[k]``, state untouched; raises Refusal."""

    def apply(self, state: S, event: E, meta: Meta) -> None:
        """Change ``state`` by ``event``. Same state and event: same result, always."""
