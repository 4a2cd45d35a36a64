"""What the other end of a played conversation answers, by tag."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

_HEAD: Final = 7  # bytes of the least message


class Answers:
    """Frames out of bytes cut anywhere. ``taken`` is called with the tag of each."""

    def __init__(self, taken: Callable[[int], object] = lambda tag: None) -> None:
        self._taken = taken
        self._data = b""
        self._by_tag: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._came = asyncio.Event()
        self._ended = False

    def feed(self, data: bytes | memoryview) -> None:
        self._data += data
        at = 0
        while len(self._data) - at >= _HEAD:
            size = max(int.from_bytes(self._data[at : at + 4], "little"), _HEAD)
            if len(self._data) - at < size:
                break
            frame = self._data[at : at + size]
            tag = int.from_bytes(frame[5:7], "little")
            self._taken(tag)
            self._by_tag[tag].append(frame)
            at += size
        self._data = self._data[at:]
        self._came.set()

    def end(self) -> None:
        """No more come: nobody waits any longer."""
        self._ended = True
        self._came.set()

    def has(self, tag: int) -> bool:
        return bool(self._by_tag[tag])

    async def next(self, tag: int, seconds: float) -> bytes | None:
        """The first answer with ``tag``; None: none came within ``seconds``, or none will."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._by_tag[tag] and not self._ended:
                    self._came.clear()
                    await self._came.wait()
        return self._by_tag[tag].popleft() if self._by_tag[tag] else None

    def rest(self) -> list[bytes]:
        """Those that nobody has asked for, which are forgotten."""
        found = [frame for frames in self._by_tag.values() for frame in frames]
        self._by_tag.clear()
        return found
