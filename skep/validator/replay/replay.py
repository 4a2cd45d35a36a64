"""Replay: every line of a ledger decided again, with its recorded time and ids, on a state folded from it.

Nothing is executed and nothing but the ledger is asked. What is applied are always the recorded events, so
that one difference does not make all that follows differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

import msgspec

from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.namespaces.stored import Begun
from skep.trace.digest import digest, parts
from skep.trace.entry import (
    ENTRY_MAX,
    OK,
    VERSION,
    Entry,
    Line,
    Outcome,
    canonical,
    entry_decoder,
    entry_of,
    events_decoder,
)
from skep.trace.ledger import LedgerTampered
from skep.trace.rules import Meta, Refusal
from skep.validator.replay.changes import declared

MISTAKE: Final = "raised"  # the outcome of a line at which the rules raise what is no refusal

Decided = tuple[Outcome, tuple[Any, ...]]


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry that is decided otherwise: the first field, ``events[0].fence``, and both values in JSON.

    ``declared``: the change of rules by which it may be so; "": none. It is the first field that differs by
    none, where there is one."""

    seq: int
    actor: str
    path: str
    line: str
    field: str
    recorded: str
    decided: str
    declared: str = ""


class Unfoldable(Exception):
    """The recorded events cannot be applied: there is no state to decide the rest on."""


class Replay:
    """The state that a ledger means, entry by entry; after those that a snapshot is of, where it has
    ``begun``. Another ``rules`` shows what they would decide."""

    def __init__(self, rules: HiveRules | None = None, begun: Begun | None = None) -> None:
        self.rules = rules or HiveRules()
        self.state, self.seq = begun or (self.rules.fresh(), 0)
        # The same entries, upon which nothing is ever decided: deciding must change nothing. None: no
        # entry was decided yet.
        self._untouched: HiveState | None = None
        self._entries: msgspec.json.Decoder[Entry[Event]] = entry_decoder(Event)
        self._events: msgspec.json.Decoder[tuple[Event, ...]] = events_decoder(Event)

    def decode(self, seq: int, body: bytes) -> Entry[Event]:
        """Raises LedgerTampered when it is no entry, or another."""
        try:
            entry = self._entries.decode(body)
        except msgspec.DecodeError as error:
            raise LedgerTampered(f"entry {seq}: {error}") from error
        if entry.v != VERSION or entry.seq != seq:
            raise LedgerTampered(f"entry {seq}: says it is entry {entry.seq} of version {entry.v}")
        return entry

    def fold(self, entry: Entry[Event]) -> None:
        """Believe the entry. Raises Unfoldable."""
        self._apply(entry, 0)

    def judge(self, entry: Entry[Event], body: bytes) -> Difference | None:
        """Decide the entry again, then believe what it says; how it differs. Raises Unfoldable."""
        if self._untouched is None:
            self._untouched = self.rules.copy(self.state)
        line = entry.written()
        applied = 0
        if len(line.lines) == 1:
            outcome, events = self._decide(line)
        else:
            outcome, events, applied = self._decide_each(entry, line)
        now = canonical(entry_of(line, entry.seq, outcome, events))
        if len(now) > ENTRY_MAX and outcome is OK:
            now = canonical(entry_of(line, entry.seq, Outcome("TOOBIG", f"too large: max={ENTRY_MAX}"), ()))
        found = None if now == body else self._difference(entry, body, now)
        self._apply(entry, applied)
        return found

    def digest(self) -> str:
        """The state's after the last entry; the same for everybody who has the same ledger."""
        return digest(self.state)

    def touched(self, now: str) -> Difference | None:
        """Whether deciding has changed the state, which is for events alone to do. ``now``: its digest."""
        if self._untouched is None or now == digest(self._untouched):
            return None
        there, here = parts(self._untouched), parts(self.state)
        noun = next(name for name in there if there[name] != here[name])
        return Difference(self.seq, "", "", "", f"state.{noun}", there[noun], here[noun])

    def _decide(self, line: Line) -> Decided:
        try:
            return OK, self.rules.decide(self.state, line, 0).events
        except Refusal as refusal:
            return Outcome(refusal.code, refusal.text), ()
        except Exception as mistake:
            return Outcome(MISTAKE, repr(mistake)), ()

    def _decide_each(self, entry: Entry[Event], line: Line) -> tuple[Outcome, tuple[Any, ...], int]:
        """Decide a write of several lines, which see each other; also how many of its recorded events have
        been applied. It ends at the first line from which events of other kinds follow."""
        kept = entry.outcome == OK
        # What was refused was taken back.
        state = self.state if kept else self.rules.copy(self.state)
        meta = Meta(entry.seq, entry.time, entry.trace)
        events: list[Event] = []
        for k in range(len(line.lines)):
            try:
                decided = self.rules.decide(state, line, k).events
                begin = len(events)
                events.extend(decided)
                # Those decided are applied as a turn applies them: as they will be read.
                believed = entry.events[begin : len(events)] if kept else self._read(decided)
                if [*map(type, believed)] != [*map(type, decided)]:
                    return OK, tuple(events), begin
                for event in believed:
                    self.rules.apply(state, event, meta)
            except Refusal as refusal:
                return Outcome(refusal.code, refusal.text, k), (), len(events) if kept else 0
            except Exception as mistake:
                return Outcome(MISTAKE, repr(mistake), k), (), len(events) if kept else 0
        return OK, tuple(events), len(events) if kept else 0

    def _read(self, decided: tuple[Event, ...]) -> tuple[Event, ...]:
        return self._events.decode(canonical(decided))

    def _apply(self, entry: Entry[Event], applied: int) -> None:
        """Apply the recorded events, those after the first ``applied`` ones."""
        meta, apply = Meta(entry.seq, entry.time, entry.trace), self.rules.apply
        try:
            if self._untouched is not None:
                for event in entry.events:
                    apply(self._untouched, event, meta)
            for event in entry.events[applied:]:
                apply(self.state, event, meta)
        except Exception as error:
            raise Unfoldable(f"entry {entry.seq}: its events cannot be applied: {error!r}") from error
        self.seq = entry.seq

    def _difference(self, entry: Entry[Event], body: bytes, now: bytes) -> Difference | None:
        was, is_now = msgspec.json.decode(body), msgspec.json.decode(now)
        found = list(differing(was, is_now))
        if not found and body == canonical(was):
            return None  # as decided, the events had what JSON writes in the same way
        found = found or [("bytes", body.decode(), now.decode())]
        changes = [declared(self.state, entry, field, recorded) for field, recorded, _ in found]
        i = changes.index("") if "" in changes else 0
        return Difference(entry.seq, entry.actor, entry.path, entry.line, *found[i], changes[i])


_FIRST: Final = ("outcome", "events")  # what is compared before the rest, which no decision changes
_NOTHING: Final = object()  # where the other value has something


def differing(recorded: Any, decided: Any, at: str = "") -> Iterator[tuple[str, str, str]]:
    """The fields that are not the same in two JSON values, the outcome's and the events' first; each with
    both values in JSON."""
    match recorded, decided:
        case dict(), dict():
            names = sorted({*recorded, *decided}, key=lambda name: (_place(name), name))
            for name in names:
                where = f"{at}.{name}" if at else name
                was, now = recorded.get(name, _NOTHING), decided.get(name, _NOTHING)
                yield from differing(was, now, where)
        case list(), list():
            pairs = zip_longest(recorded, decided, fillvalue=_NOTHING)
            for i, (was, now) in enumerate(pairs):
                yield from differing(was, now, f"{at}[{i}]")
        case _ if recorded != decided:
            yield at, _json(recorded), _json(decided)


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _json(value: Any) -> str:
    return "absent" if value is _NOTHING else canonical(value).decode()
