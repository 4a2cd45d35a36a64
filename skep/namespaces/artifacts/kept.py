"""Sealed bytes as a file, for nouns whose records are artifacts: who may read it, they have asked."""

from __future__ import annotations

from skep.fs.node import Caller, Handle, How, Maybe
from skep.fs.shapes import File
from skep.namespaces.artifacts.core import Artifact
from skep.namespaces.artifacts.store import Put, Reading, Store


class Kept(File):
    """An artifact, or the ``length`` bytes of it from ``begin`` on (None: all)."""

    def __init__(self, store: Store, artifact: Artifact, begin: int = 0, length: int | None = None) -> None:
        super().__init__(0o444)
        self.store = store
        self.artifact = artifact
        self.begin = begin
        self.length = artifact.size - begin if length is None else length
        self.mtime_ns = artifact.sealed_ns

    def size(self) -> int:
        return self.length

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Window(reading(self.store, self.artifact), self.begin, self.begin + self.length)


def reading(store: Store, artifact: Artifact) -> Reading:
    """Its bytes, to be read and closed."""
    return store.reading(Put(artifact.sha256, artifact.size, artifact.chunks))


class _Window(Handle):
    def __init__(self, reading: Reading, begin: int, end: int) -> None:
        self.reading = reading
        self.begin = begin
        self.end = end

    def read(self, offset: int, count: int) -> Maybe[bytes]:
        at = self.begin + offset
        return self.reading.read(at, max(min(count, self.end - at), 0))

    def close(self) -> None:
        self.reading.close()
