"""The sessions that live under a token: each ends when its token does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from skep.namespaces.tokens.grant import Grant
from skep.trace.clock import SECOND, Clock

STEP_S: Final = 0.5  # between two looks at a clock that may be set while a token lives


class Held:
    """Grants in use, and how to end what uses them. Used on one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: dict[object, tuple[Grant, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, grant: Grant, end: Callable[[], None]) -> Callable[[], None]:
        """Have ``end`` called once, when the grant expires or is revoked; what is returned calls that off."""
        key = object()
        self._ends[key] = grant, end
        self._look()
        return lambda: self._release(key)

    def keep(self, good: Callable[[Grant], bool]) -> None:
        """End those whose grant is not ``good``."""
        for key, (grant, _) in list(self._ends.items()):
            if not good(grant):
                self._end(key)

    def __len__(self) -> int:
        return len(self._ends)

    def _release(self, key: object) -> None:
        self._ends.pop(key, None)
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, key: object) -> None:
        found = self._ends.get(key)
        self._release(key)
        if found is not None:
            found[1]()

    def _look(self) -> None:
        """End what has expired, and look again when the next one does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_ns = self._clock.now_ns()
        for key, (grant, _) in list(self._ends.items()):
            if grant.until_ns <= now_ns:
                self._end(key)
        if self._ends:
            next_ns = min(grant.until_ns for grant, _ in self._ends.values())
            wait_s = min(max(next_ns - now_ns, 0) / SECOND, STEP_S)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)
