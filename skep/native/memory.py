"""Bytes that grow, read and written at offsets, counting changes: hot.c's struct hot_memory, or a twin."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol


class Bytes(Protocol):
    """A file's content in memory. ``version`` and ``mtime_ns`` move with each write."""

    @property
    def version(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes at ``offset``; b"" at the end."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put ``data`` at ``offset``, with zeros between it and the end before."""

    def resize(self, size: int) -> None:
        """Cut, or extend with zeros."""


class Twin:
    """The same in Python alone."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.version = 0
        self.mtime_ns = 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self.data[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset > len(self.data):
            self.resize(offset)
        self.data[offset : offset + len(data)] = data
        self._changed()

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.mtime_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)


class Compiled:
    """The same in memory that hot.c reads and writes too."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib
        self.raw = ffi.new("struct hot_memory *")

    def __del__(self) -> None:
        self._lib.free(self.raw.data)

    @property
    def version(self) -> int:
        return int(self.raw.version)

    @property
    def mtime_ns(self) -> int:
        return int(self.raw.mtime_ns)

    def __len__(self) -> int:
        return int(self.raw.length)

    def _view(self) -> Any:
        return self._ffi.buffer(self.raw.data, self.raw.length) if self.raw.length else b""

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._view()[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset + len(data) > len(self):
            self._grow(offset + len(data))
        if len(data):
            self._view()[offset : offset + len(data)] = data
        self._changed()

    def resize(self, size: int) -> None:
        if size > len(self):
            self._grow(size)
        self.raw.length = size
        self._changed()

    def _grow(self, size: int) -> None:
        """Make it ``size`` long, the new bytes zero."""
        before = len(self)
        if size > self.raw.size:
            aside = max(size, 2 * before, 64)
            data = self._lib.realloc(self.raw.data, aside)
            if data == self._ffi.NULL:
                raise MemoryError(f"no {aside} bytes")
            self.raw.data, self.raw.size = self._ffi.cast("uint8_t *", data), aside
        self.raw.length = size
        self._ffi.memmove(self.raw.data + before, bytes(size - before), size - before)

    def _changed(self) -> None:
        self.raw.version += 1
        self.raw.mtime_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)


try:
    from skep.native._hot import ffi as _ffi
    from skep.native._hot import lib as _lib
except ImportError:
    _ffi = _lib = None
COMPILED: Final = _lib is not None


def memory() -> Bytes:
    """Empty bytes, compiled where that was built."""
    return Compiled(_ffi, _lib) if COMPILED else Twin()
