"""What the hive itself has to say about triggers: ticks that are due, events that match.

It follows the ledger as it is written, and where it could not keep up, or the hive was down, reads it again
from the last event that was fired for. Said twice, a line is refused: what is in memory here is no record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol

from skep.fs import ctl
from skep.namespaces.triggers.core import EVENT, Trigger, Triggers
from skep.namespaces.triggers.ticks import newest, next_tick
from skep.trace.clock import MINUTE, rfc3339

LATE_NS: Final = MINUTE  # a tick that is found later than this was missed.
MISSED_MAX: Final = 100  # ticks that missed=all has fired for; older ones are not.
WAITING_MAX: Final = 4096  # events to be fired for, and those of one entry; more are read again later.
BYTES_MAX: Final = 20 * 1024  # of what the fires of one write make, so that their entry is under 64 KiB.
FIRES_MAX: Final = 32  # in one write: they are decided without a pause.
SEEN_EVERY: Final = 4096  # entries: so many are read again after a crash, beyond those just fired for.

Key = tuple[str, str]  # tenant, name


class Occasion(Protocol):
    """An event that something may be fired by; see occasions.py."""

    @property
    def place(self) -> tuple[int, int]: ...
    @property
    def kind(self) -> str: ...
    @property
    def tenants(self) -> tuple[str, ...]: ...
    @property
    def state(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def depth(self) -> int: ...
    def json(self) -> str: ...


class Watch:
    """``state`` gives what is durable now; ``read`` the occasions of the kinds given in the entries after the
    one given, and the last entry that it looked at; ``say`` writes lines as the hive (a path, lines, a
    tenant), and when they are refused returns all the same."""

    def __init__(
        self,
        state: Callable[[], Triggers],
        read: Callable[[int, Collection[str]], tuple[Sequence[Occasion], int]],
        say: Callable[[str, Sequence[str], str], Awaitable[None]],
    ) -> None:
        self._state = state
        self._read = read
        self._say = say
        self._next: dict[Key, tuple[Trigger, int | None]] = {}  # when it is due next, None: never
        self._waiting: dict[Key, deque[Occasion]] = {}  # to be fired for, oldest first
        self._count = 0  # of these
        self._saying: set[Key] = set()
        self._closing = False
        self.seq = 0  # the entry up to which events were looked for

    # events

    def moved(
        self, first: int, last: int, occasions: Callable[[Collection[str]], Iterable[Occasion]]
    ) -> bool:
        """The entries from ``first`` to ``last`` were written. Whether there is something to fire for now."""
        on = self._state().on
        if on and (first > self.seq + 1 or self._count >= WAITING_MAX):
            return False  # it is behind: caught up from the ledger
        self.seq = max(self.seq, self._match(occasions(on), last) if on else last)
        return self._count > 0

    async def catch_up(self, until: int) -> None:
        """Look for events up to the entry ``until``, as far as there is room for them."""
        self.seq = max(self.seq, self._settled())
        while self.seq < until and self._count < WAITING_MAX and self._state().on:
            found, last = self._read(self.seq, self._state().on)
            if last > self.seq:  # else it was moved meanwhile
                self.seq = self._match(found, last)
            # Others get their turn before the next step.
            await asyncio.sleep(0)

    def _settled(self) -> int:
        """Up to which entry no trigger is to be fired for."""
        state = self._state()
        # Of the cursor's own entry there may be more to fire for.
        settled = (_trigger(state, key).cursor[0] - 1 for keys in state.on.values() for key in keys)
        return max(state.seen, min(settled, default=0))

    def _match(self, occasions: Iterable[Occasion], last: int) -> int:
        """The entry up to which they have been looked through: ``last``, or as far as there was room."""
        state, seq = self._state(), 0
        for occasion in occasions:
            if self._count >= WAITING_MAX and occasion.place[0] != seq:
                return occasion.place[0] - 1
            seq = occasion.place[0]
            for key in state.on.get(occasion.kind, ()):
                trigger = _trigger(state, key)
                if occasion.place > trigger.cursor and matches(trigger, occasion):
                    self._waiting.setdefault(key, deque()).append(occasion)
                    self._count += 1
        return last

    # firing

    async def fire(self, now_ns: int) -> None:
        """Fire for what is due. A trigger's lines are said one write after the other, in their order."""
        keys = [key for key in (*self._due(now_ns), *self._waiting) if key not in self._saying]
        await asyncio.gather(*(self._fire(key, now_ns) for key in dict.fromkeys(keys)))

    async def _fire(self, key: Key, now_ns: int) -> None:
        self._saying.add(key)
        try:
            trigger = self._active(key)
            while not self._closing and trigger is not None and (lines := self._lines(trigger, now_ns)):
                await self._say(f"/triggers/{key[1]}", lines, key[0])
                before, trigger = trigger, self._active(key)
                if trigger is not None and (trigger.after_ns, trigger.cursor) == (
                    before.after_ns,
                    before.cursor,
                ):
                    return  # the disk is full, or too many others write: at the next tick
        finally:
            self._saying.discard(key)

    def close(self) -> None:
        """Say no more than is being said: the rest is found again at the next start."""
        self._closing = True

    def _active(self, key: Key) -> Trigger | None:
        trigger = self._state().find(*key)
        if trigger is None or not trigger.active:
            self._count -= len(self._waiting.pop(key, ()))
            return None
        return trigger

    def _lines(self, trigger: Trigger, now_ns: int) -> list[str]:
        return self._ticks(trigger, now_ns) if trigger.made.cron else self._events(trigger)

    def _due(self, now_ns: int) -> Iterator[Key]:
        state = self._state()
        for key in state.cron:
            due_ns = self._next_ns(_trigger(state, key), now_ns)
            if due_ns is not None and due_ns <= now_ns:
                yield key
        if len(self._next) > 2 * len(state.cron):
            self._next = {key: each for key, each in self._next.items() if key in state.cron}

    def _next_ns(self, trigger: Trigger, now_ns: int) -> int | None:
        """The tick after its last; of those that were missed only if they are not to be skipped."""
        found = self._next.get(trigger.key)
        if found is None or found[0] is not trigger:
            made, after_ns = trigger.made, trigger.after_ns
            if made.missed == "skip":
                after_ns = max(after_ns, now_ns - LATE_NS)
            found = self._next[trigger.key] = trigger, next_tick(made.cron, made.zone, after_ns)
        return found[1]

    def _ticks(self, trigger: Trigger, now_ns: int) -> list[str]:
        """A line for each tick that is due and not left out."""
        made, after_ns, most = trigger.made, trigger.after_ns, 1
        if made.missed == "skip":
            after_ns = max(after_ns, now_ns - LATE_NS)
        elif made.missed == "all":
            most = MISSED_MAX
        due = newest(made.cron, made.zone, after_ns, now_ns, most)
        if not due:
            self._next.pop(trigger.key, None)  # what was due is too late by now
        return [ctl.line("fire", {"at": rfc3339(at_ns)}) for at_ns in due[: _room(trigger, 0)]]

    def _events(self, trigger: Trigger) -> list[str]:
        """Lines for the next events that it waits for."""
        waiting = self._waiting.get(trigger.key, deque())
        while waiting and waiting[0].place <= trigger.cursor:
            waiting.popleft()
            self._count -= 1
        if not waiting:
            self._waiting.pop(trigger.key, None)
        given = trigger.made.submit.get("input") == EVENT
        lines: list[str] = []
        room = FIRES_MAX
        for occasion in waiting:
            event = occasion.json() if given else ""
            room = min(room, _room(trigger, len(event)))
            if len(lines) >= room:
                break
            place = {"seq": str(occasion.place[0]), "k": str(occasion.place[1])}
            said = place | {"depth": str(occasion.depth)} | ({"event": event} if given else {})
            lines.append(ctl.line("fire", said))
        return lines

    # what was seen

    def seen(self) -> int | None:
        """Up to which entry all was fired for, when it is time to write that down; None: it is not."""
        if not self._state().on:
            return None
        waiting = (occasions[0].place[0] for occasions in self._waiting.values())
        seq = min(waiting, default=self.seq + 1) - 1
        return seq if seq - self._state().seen >= SEEN_EVERY else None


def matches(trigger: Trigger, occasion: Occasion) -> bool:
    """Whether the event is one that the trigger is fired by."""
    made = trigger.made
    return (
        made.tenant in occasion.tenants
        and all(getattr(occasion, word) == value for word, value in made.where.items())
        and made.labels.items() <= occasion.labels.items()
    )


def _trigger(state: Triggers, key: Key) -> Trigger:
    trigger = state.find(*key)
    assert trigger is not None, key
    return trigger


def _room(trigger: Trigger, event: int) -> int:
    """How many fires of the trigger go into one write; ``event``: bytes of the event that each has."""
    said = sum(len(name) + 2 * len(value) for name, value in trigger.made.submit.items())
    return max(1, min(FIRES_MAX, BYTES_MAX // (512 + said + 3 * event)))
