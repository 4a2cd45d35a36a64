"""A bounded memory of the latest signals: progress, load, heartbeats. Never commands."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """The last ``length`` items, numbered from 1; each reader keeps its own cursor."""

    def __init__(self, length: int) -> None:
        self._items: deque[T] = deque(maxlen=length)
        self.last = 0  # number of the latest item; 0: none yet.

    def append(self, item: T) -> int:
        """Add an item, the oldest gives way; the new item's number."""
        self._items.append(item)
        self.last += 1
        return self.last

    def read(self, after: int, limit: int | None = None) -> tuple[int, list[T]]:
        """The items after number ``after`` (None: all), behind the number of the first of them.

        That number is above ``after + 1`` when items were lost to a slow reader."""
        oldest = self.last - len(self._items) + 1
        first = max(after + 1, oldest)
        start = first - oldest
        stop = None if limit is None else start + limit
        return first, list(islice(self._items, start, stop))
