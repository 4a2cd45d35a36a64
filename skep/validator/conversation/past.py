"""A hive as it was: its ledger up to a moment that moves on, and a turn that decides again what is written.

A line that is written here was written before, and the ledger has it: it is decided on the state that it met
then, with its recorded time and ids. What is believed afterwards is what the ledger says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, cast

import msgspec

from skep.fs.errors import E
from skep.namespaces.hive import UNRECORDED, Event, HiveRules
from skep.namespaces.order import HIVE
from skep.namespaces.stored import Begun
from skep.trace.entry import OK, Entry, Line, Outcome, canonical, entry_decoder, entry_of
from skep.trace.ledger import READ_MAX, Ledger, LedgerTampered
from skep.trace.merkle import Frontier
from skep.trace.rules import Meta, Refusal
from skep.trace.turn import Done, Refused, Turn
from skep.validator.replay.replay import differing

AHEAD_MAX: Final = 65536  # entries that are looked at ahead of the moment: those of a blocked read's hours


class PastLedger:
    """The entries of ``ledger``, which has not been read yet, up to ``limit``; those up to ``known`` are
    verified and not given. Nothing is appended to it."""

    def __init__(self, ledger: Ledger, limit: int, known: int = 0) -> None:
        self.limit = limit
        self.size = known
        self._ledger = ledger
        self._tail = cast(Generator[tuple[int, bytes], None, None], ledger.tail(known))
        first = next(self._tail, None)
        self._ahead = deque([] if first is None else [first])
        self._tree = Frontier()

    @property
    def root(self) -> bytes:
        if self._tree.size < self.size:
            self._tree.extend(self.leaves(self._tree.size, self.size - self._tree.size))
        return self._tree.root()

    def ahead(self) -> Iterator[tuple[int, bytes]]:
        """What comes after the moment. Raises LedgerTampered."""
        yield from list(self._ahead)
        while len(self._ahead) < AHEAD_MAX and (found := next(self._tail, None)) is not None:
            self._ahead.append(found)
            yield found

    def begin(self) -> None:
        raise AssertionError("nothing is appended to what is past")

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        while self.size < self.limit:
            found = self._ahead.popleft() if self._ahead else next(self._tail, None)
            if found is None:
                raise LedgerTampered(f"it ends at entry {self.size}, expected {self.limit}")
            self.size = found[0]
            if found[0] > known:
                yield found

    def append(self, bodies: Sequence[bytes]) -> None:
        raise AssertionError("nothing is appended to what is past")

    def commit(self) -> None:
        raise AssertionError("nothing is appended to what is past")

    def rollback(self) -> None:
        """There is no turn."""

    def changed(self) -> bool:
        return self.size < self.limit

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, bytes]]:
        return (
            self._ledger.read(after_seq, min(limit, self.size - after_seq)) if after_seq < self.size else []
        )

    def committed_root(self, size: int) -> bytes | None:
        return self._ledger.committed_root(size)

    def leaves(self, first: int, count: int) -> bytes:
        return self._ledger.leaves(first, min(count, self.size - first))

    def close(self) -> None:
        """Read no more of the ledger, which is its opener's to close."""
        self._tail.close()


class _NoCommits:
    def __init__(self, ledger: Ledger) -> None: ...

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        raise AssertionError("nothing is committed to what is past")

    def end(self) -> None: ...

    def wait_ended(self) -> None: ...


class Strange(msgspec.Struct, frozen=True):
    """What was decided otherwise, or was never written then. ``entry`` 0: the ledger has none for it."""

    entry: int
    field: str
    recorded: str
    decided: str


class PastTurn(Turn[Any, Event, str]):
    """The turn of a hive at a moment. Entries up to ``horizon`` may be looked for; what was decided otherwise
    is kept in ``strange``."""

    ledger: PastLedger

    def __init__(self, ledger: PastLedger, begun: Begun | None = None) -> None:
        """``begun``: what the entries mean that the ledger does not give; None: it gives all."""
        state, seq = (None, 0) if begun is None else begun
        super().__init__(ledger, HiveRules(), UNRECORDED, _NoCommits, state, seq)
        self.horizon = ledger.limit
        self.strange: list[Strange] = []
        self._ahead_decoder: msgspec.json.Decoder[Entry[Event]] = entry_decoder(Event)
        self._heads: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)

    def go_to(self, seq: int) -> None:
        """Believe the entries up to ``seq``. Raises what stopped the turn."""
        self.ledger.limit = max(seq, self.ledger.limit)
        self.horizon = max(seq, self.horizon)
        self.refresh()
        if self.failed is not None:
            raise self.failed

    def next_of(self, actor: str, last: int) -> int | None:
        """The next entry of the actor, up to ``last``; None: there is none."""
        heads = ((seq, self._heads.decode(body)) for seq, body in self.ledger.ahead() if seq <= last)
        return next((seq for seq, head in heads if head.actor == actor), None)

    def line_of(self, actor: str, path: str) -> str | None:
        """What the actor wrote next to ``path``; None: nothing that may be looked for."""
        heads = ((seq, self._heads.decode(body)) for seq, body in self.ledger.ahead())
        for seq, head in heads:
            if seq > self.horizon:
                return None
            if (head.actor, head.path) == (actor, path):
                return head.line
        return None

    async def submit(self, line: Line) -> Done[str]:
        found = self._find(line)
        if found is not None:
            return self._again(*found, line)
        if line.role == HIVE:
            # What the hive says by itself comes with the ledger, when it was said.
            return Done(self.seq, line.trace, ("ok",) * len(line.lines))
        outcome, _, replies = self._decide_now(line, self.seq + 1)
        if outcome == OK and line.lines == ("lease",):
            # Another was given it then. Who asked, waits on.
            await self.wait_past(self.seq)
            raise Refused(E.NODATA.name, E.NODATA.value.text, line.trace)
        if outcome == OK:
            told = f"{line.path} {' | '.join(line.lines)}"
            self.strange.append(Strange(0, "outcome", "never written", f"ok: {told}"))
            return Done(self.seq, line.trace, replies)
        raise Refused(outcome.code, outcome.text, line.trace, outcome.k)

    def _find(self, line: Line) -> tuple[int, bytes] | None:
        """The entry that the line became."""
        said = _Head(line.actor, line.role, line.tenant, line.path, "\n".join(line.lines))
        for seq, body in self.ledger.ahead():
            if seq > self.horizon:
                return None
            if self._heads.decode(body) == said:
                return seq, body
        return None

    def _again(self, seq: int, body: bytes, line: Line) -> Done[str]:
        self.go_to(seq - 1)
        was = self._ahead_decoder.decode(body)
        written = was.written()
        outcome, events, replies = self._decide_now(written, seq)
        now = canonical(entry_of(written, seq, outcome, events))
        if now != body:
            fields = differing(msgspec.json.decode(body), msgspec.json.decode(now))
            for field, recorded, decided in fields:
                self.strange.append(Strange(seq, field, recorded, decided))
                break
        self.go_to(seq)
        if outcome != OK:
            raise Refused(outcome.code, outcome.text, was.trace, outcome.k, seq)
        return Done(seq, was.trace, replies)

    def _decide_now(self, line: Line, seq: int) -> tuple[Outcome, tuple[Event, ...], tuple[str, ...]]:
        """What follows from the line now; nothing of it stays."""
        rules, meta = self.rules, Meta(seq, line.time_ns, line.trace)
        state = self.state if len(line.lines) == 1 else rules.copy(self.state)
        events: list[Event] = []
        replies = []
        for k in range(len(line.lines)):
            try:
                decision = rules.decide(state, line, k)
            except Refusal as refusal:
                return Outcome(refusal.code, refusal.text, k), (), ()
            replies.append(decision.reply)
            decided = self._events.decode(canonical(decision.events))
            events.extend(decided)
            for event in decided if k + 1 < len(line.lines) else ():
                rules.apply(state, event, meta)
        return OK, tuple(events), tuple(replies)


class _Head(msgspec.Struct, frozen=True):
    """By which the entry of a line is found. A token is hidden from recordings: it is the entry's."""

    actor: str
    role: str
    tenant: str
    path: str
    line: str
