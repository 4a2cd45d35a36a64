"""The hive's turn: the one place where a line becomes part of history.

Decide, write down, then believe; the answer leaves last. A turn takes the exclusive right to append,
folds what other processes appended, decides each waiting line in order, appends, commits, applies,
answers. Lines that come in meanwhile wait and are the next batch.

There are two states. Lines are decided on the *working* state, where each sees what the lines before
it in the same batch did. Readers see ``Turn.state``, where nothing is applied that is not on disk.

Deciding and applying run on the event loop, between awaits; only the commit's fsync runs on a thread.
Whoever brings a loop of another kind says how commits run there (``Commits``)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from skep.trace.entry import (
    ENTRY_MAX,
    OK,
    Entry,
    Line,
    Outcome,
    canonical,
    entry_decoder,
    entry_of,
    events_decoder,
)
from skep.trace.fold import apply_entry, tail_entries
from skep.trace.ledger import READ_MAX, Ledger, LedgerBusy, LedgerError, LedgerFull
from skep.trace.rules import Meta, Refusal, Rules

S = TypeVar("S")
E = TypeVar("E")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

WAITING_MAX = 16_384  # lines that wait for a turn: some seconds of work; more are told to come back.
BATCH_MAX = 256  # entries of one commit: deciding them holds the event loop for some milliseconds.
BATCH_BYTES_MAX = 4 * 1024 * 1024  # of one commit; with it the longest write to the disk.
BUSY_STEP_S = 0.001  # between two tries at a turn that another process has.
BUSY_STEPS_MAX = 10_000  # a process that keeps its turn longer is stopped or wedged.
FOLLOW_STEP_S = 0.1  # how late a follower notices another process's entries, at most.


class Refused(Exception):
    """The line was refused: it had no effect. ``k`` is the index of the line in its write.

    seq is the entry that records it (None: not recorded)."""

    def __init__(self, code: str, text: str, trace: str, k: int = 0, seq: int | None = None) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.trace = trace
        self.k = k
        self.seq = seq


class TurnStopped(Exception):
    """The turn goes on no more; whether the line was kept, the ledger will tell."""


class Done(NamedTuple, Generic[R_co]):
    """The write took effect: its entry's number and trace, a reply for each line."""

    seq: int
    trace: str
    replies: tuple[R_co, ...]


class _Waiting(Generic[E, R]):
    """A write on its way: what it said, then what was decided, then its answer."""

    __slots__ = ("answer", "entry", "future", "left", "line", "taken")

    def __init__(self, line: Line, future: asyncio.Future[None]) -> None:
        self.line = line
        self.future = future  # done when the answer may leave, or cancelled with its waiter.
        self.taken = False  # out of the queue: cancelling comes too late.
        self.entry: Entry[E] | None = None  # None: nothing to record.
        self.answer: Done[R] | Exception = TurnStopped("the turn stopped before its answer")
        self.left = False  # the answer may leave.

    def leave(self) -> None:
        self.left = True
        if not self.future.done():
            self.future.set_result(None)


class Commits(Protocol):
    """How a turn's commits run: one at a time."""

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        """Commit; ``done`` is called on the turn's loop, later, with None or with what commit raised."""

    def end(self) -> None:
        """No commit comes any more; one under way goes on."""

    def wait_ended(self) -> None:
        """Return when none is under way; after ``end``."""


class CommitThread:
    """One fsync after the other on a thread, nothing else."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        # What to call when it is done; None: end.
        self._wanted: SimpleQueue[Callable[[Exception | None], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        self._wanted.put(done)

    def end(self) -> None:
        self._wanted.put(None)

    def wait_ended(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while (done := self._wanted.get()) is not None:
            failure: Exception | None = None
            try:
                self._ledger.commit()
            except Exception as error:
                failure = error
            self._loop.call_soon_threadsafe(done, failure)


class Turn(Generic[S, E, R]):
    """Submits lines to ``rules`` over ``ledger``; made, used and closed on one event loop.

    Making it verifies the whole ledger and folds it, or what is after entry ``known``, whose state is
    ``begun`` and is the turn's from then on; raises LedgerError. Refusals whose code is in ``unrecorded``
    leave no entry. The ledger stays its opener's to close, after ``close``."""

    def __init__(
        self,
        ledger: Ledger,
        rules: Rules[S, E, R],
        unrecorded: frozenset[str] = frozenset(),
        commits: Callable[[Ledger], Commits] = CommitThread,
        begun: S | None = None,
        known: int = 0,
    ) -> None:
        self.ledger = ledger
        self.rules = rules
        self.unrecorded = unrecorded
        self.on_commit: list[Callable[[list[Entry[E]]], None]] = []  # called when ``state`` has moved.
        self.failed: Exception | None = None  # what stopped the turn; None: it goes on.
        self._entries: msgspec.json.Decoder[Entry[E]] = entry_decoder(rules.event_type)
        self._events: msgspec.json.Decoder[tuple[E, ...]] = events_decoder(rules.event_type)
        self.state: S = rules.fresh() if begun is None else begun
        for entry in tail_entries(ledger, self._entries, known):
            apply_entry(rules, self.state, entry)
        self.seq = ledger.size  # the last entry that ``state`` holds.
        self.root = ledger.root  # of the tree up to there
        self._working: S = rules.copy(self.state)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting[E, R]] = deque()
        self._batch: list[_Waiting[E, R]] = []  # not empty: it is being committed.
        self._scheduled = False  # a turn is going on or about to begin.
        self._closing = False
        self._busy_steps = 0
        # The number each has seen; woken in the order they came.
        self._followers: dict[asyncio.Future[None], int] = {}
        self._poll: asyncio.TimerHandle | None = None  # None: nobody follows.
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._commits = commits(ledger)

    async def submit(self, line: Line) -> Done[R]:
        """Write the lines; returns when their entry is on disk and applied.

        Raises Refused, TurnStopped, or what deciding raised by mistake (then nothing happened).
        Cancelled while it waits for its turn, the write never happens. Cancelled later it goes on,
        and its answer is returned all the same: a write that reached the disk must be answered."""
        self._check_going()
        if len(self._queue) >= WAITING_MAX:
            raise Refused("THROTTLED", "throttled: retry-ms=100", line.trace)
        waiting: _Waiting[E, R] = _Waiting(line, self._loop.create_future())
        self._queue.append(waiting)
        # Not at once: what else comes in during this step of the loop shares the commit.
        self._schedule()
        while not waiting.left:
            try:
                await waiting.future
            except asyncio.CancelledError:
                if not waiting.taken:
                    self._queue.remove(waiting)
                    raise
                if not waiting.left:
                    waiting.future = self._loop.create_future()
        if isinstance(waiting.answer, Exception):
            raise waiting.answer
        return waiting.answer

    async def wait_past(self, seq: int) -> None:
        """Return when ``self.seq`` is above ``seq``. Raises TurnStopped.

        Entries of other processes are noticed within FOLLOW_STEP_S while anybody waits."""
        if self.seq > seq:
            return
        self._check_going()
        follower: asyncio.Future[None] = self._loop.create_future()
        self._followers[follower] = seq
        if self._poll is None:
            self._follow_step()
        try:
            await follower
        finally:
            del self._followers[follower]

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, bytes]]:
        """(seq, body) of up to ``limit`` entries after ``after_seq``: all on disk and in ``state``."""
        return self.ledger.read(after_seq, min(limit, self.seq - after_seq)) if after_seq < self.seq else []

    def refresh(self) -> None:
        """Fold what other processes appended, when no commit is under way (the next turn folds anyway).

        For a reader who must see what another process has been told is done. Costs some microseconds."""
        if self._batch or self.failed is not None:
            return
        try:
            if self.ledger.changed():
                self._fold()
        except LedgerBusy:
            return
        except Exception as error:
            self._stop(error)

    async def wait_failed(self) -> Exception:
        """What stopped the turn, when something has; the role ends then and starts from the ledger."""
        await self._stopped.wait()
        assert self.failed is not None
        return self.failed

    async def close(self) -> None:
        """Let the commit under way end, answer those who wait with TurnStopped, take nothing more."""
        self._closing = True
        await self._idle.wait()
        if self.failed is None:
            self._stop(TurnStopped("closed"))
        self._commits.wait_ended()

    def _check_going(self) -> None:
        if self._closing or self.failed is not None:
            raise TurnStopped(f"the turn has stopped: {self.failed or 'closed'}") from self.failed

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Take the turn, or try again a little later; then decide the next batch and commit it."""
        self._scheduled = False
        if not self._queue or self._batch or self._closing or self.failed is not None:
            return
        try:
            self.ledger.begin()
            self._busy_steps = 0
            self._fold()
            self._append(self._decide_batch())
        except LedgerBusy:
            self._wait_busy()
        except LedgerFull as error:
            self._full(error)
        except Exception as error:
            # State or ledger are unsure.
            self._stop(error)

    def _wait_busy(self) -> None:
        self._busy_steps += 1
        if self._busy_steps < BUSY_STEPS_MAX:
            self._scheduled = True
            self._loop.call_later(BUSY_STEP_S, self._begin)
            return
        self._busy_steps = 0
        self._answer_all("BUSY", "exclusive lock: holder=another process of this hive")

    def _take(self, count: int) -> None:
        """Move up to ``count`` waiting writes to the batch."""
        for _ in range(min(count, len(self._queue))):
            waiting = self._queue.popleft()
            waiting.taken = True
            self._batch.append(waiting)

    def _decide_batch(self) -> list[bytes]:
        """Take waiting writes and decide them; the entries to append."""
        bodies: list[bytes] = []
        size = 0
        while self._queue and len(self._batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            self._take(1)
            waiting = self._batch[-1]
            # A mistake in the rules is this writer's to hear of, and nobody else's.
            try:
                body = self._decide(waiting, self.seq + len(bodies) + 1)
            except Exception as error:
                waiting.entry, waiting.answer = None, error
                self._rewind()
                continue
            if body is not None:
                bodies.append(body)
                size += len(body)
        return bodies

    def _decide(self, waiting: _Waiting[E, R], seq: int) -> bytes | None:
        """Decide a write on the working state and apply it there; its entry's bytes (None: not recorded)."""
        line, rules = waiting.line, self.rules
        meta = Meta(seq, line.time_ns, line.trace)
        events: list[E] = []
        replies: list[R] = []
        for k in range(len(line.lines)):
            try:
                decision = rules.decide(self._working, line, k)
            except Refusal as refusal:
                return self._refuse(waiting, seq, Outcome(refusal.code, refusal.text, k), bool(events))
            replies.append(decision.reply)
            decided = self._events.decode(canonical(decision.events))
            events.extend(decided)
            for event in decided:
                rules.apply(self._working, event, meta)
        entry = entry_of(line, seq, OK, tuple(events))
        body = canonical(entry)
        if len(body) > ENTRY_MAX:
            outcome = Outcome("TOOBIG", f"too large: max={ENTRY_MAX}")
            return self._refuse(waiting, seq, outcome, bool(events))
        waiting.entry, waiting.answer = entry, Done(seq, line.trace, tuple(replies))
        return body

    def _refuse(self, waiting: _Waiting[E, R], seq: int, outcome: Outcome, touched: bool) -> bytes | None:
        """Take back what earlier lines of the write did; the refusal's entry, if it is to be recorded."""
        if touched:
            self._rewind()
        line = waiting.line
        entry: Entry[E] = entry_of(line, seq, outcome, ())
        body = canonical(entry)
        # A line that is too big itself cannot be recorded.
        recorded = outcome.code not in self.unrecorded and len(body) <= ENTRY_MAX
        waiting.answer = Refused(outcome.code, outcome.text, line.trace, outcome.k, seq if recorded else None)
        if not recorded:
            return None
        waiting.entry = entry
        return body

    def _rewind(self) -> None:
        """The working state as the batch's accepted writes left it."""
        self._working = self.rules.copy(self.state)
        for waiting in self._batch:
            if waiting.entry is not None:
                apply_entry(self.rules, self._working, waiting.entry)

    def _append(self, bodies: list[bytes]) -> None:
        if bodies:
            self.ledger.append(bodies)
            self._commits.begin(self._committed)
            self._idle.clear()  # not before it has begun: ``close`` waits for its end
        else:
            self.ledger.rollback()
            self._leave()

    def _committed(self, failure: Exception | None) -> None:
        """The batch is on disk, or is not."""
        self._idle.set()
        if isinstance(failure, LedgerFull):
            self._full(failure)
            return
        if failure is not None:
            self._stop(failure)
            return
        entries = [waiting.entry for waiting in self._batch if waiting.entry is not None]
        try:
            for entry in entries:
                apply_entry(self.rules, self.state, entry)
            self._moved(entries)
        except Exception as error:
            self._stop(error)
            return
        self._leave()

    def _fold(self) -> None:
        """Apply what other processes appended, on both states."""
        entries = []
        for entry in tail_entries(self.ledger, self._entries):
            apply_entry(self.rules, self.state, entry)
            apply_entry(self.rules, self._working, entry)
            entries.append(entry)
        if entries:
            self._moved(entries)

    def _moved(self, entries: list[Entry[E]]) -> None:
        """The state has these entries now: tell those who listen and follow."""
        self.seq, self.root = self.ledger.size, self.ledger.root
        for listener in self.on_commit:
            listener(entries)
        for future, seq in self._followers.items():
            if seq < self.seq and not future.done():
                future.set_result(None)

    def _follow_step(self) -> None:
        """Look for other processes' entries while anybody follows."""
        self._poll = None
        self.refresh()
        if self._followers and self.failed is None:
            self._poll = self._loop.call_later(FOLLOW_STEP_S, self._follow_step)

    def _leave(self) -> None:
        """Let the batch's answers go, and begin the next turn after those who got them could write more."""
        batch, self._batch = self._batch, []
        for waiting in batch:
            waiting.leave()
        self._schedule()

    def _answer_all(self, code: str, text: str) -> None:
        """Refuse the batch, or all who wait when the turn did not come to one; nothing is recorded."""
        if not self._batch:
            self._take(len(self._queue))
        for waiting in self._batch:
            waiting.answer = Refused(code, text, waiting.line.trace)
        self._leave()

    def _full(self, error: LedgerFull) -> None:
        """No space: the batch did not happen; the next submit tries again."""
        try:
            self.ledger.rollback()
            self._working = self.rules.copy(self.state)
        except Exception as unsure:
            self._stop(unsure)
            return
        self._answer_all("NOSPACE", f"no space left on device: {error}")

    def _stop(self, error: Exception) -> None:
        """The end: the state may not be the ledger's. Everybody who waits is told."""
        self.failed = error
        self._stopped.set()
        self._take(len(self._queue))
        if self._poll is not None:
            self._poll.cancel()
        self._commits.end()
        # It has failed already, a second failure tells nothing.
        with suppress(LedgerError):
            self.ledger.rollback()
        stopped = TurnStopped(f"the turn has stopped: {error}")
        stopped.__cause__ = error
        for waiting in self._batch:
            waiting.answer = stopped
            waiting.leave()
        for future in self._followers:
            if not future.done():
                future.set_exception(stopped)
