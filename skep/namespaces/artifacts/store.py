"""Artifacts' bytes: files being staged in a directory, sealed bytes on a shelf by their SHA-256.

    stage/<owner>/<name>  being written; <owner> is a hash of who stages (room.py)

Sealing syncs, hashes and shelves the file before anybody is told; the staged name goes when the ledger has
it. Once shelved it cannot be written, even when the ledger refused: it can be sealed again, or removed. A
crash between the two leaves bytes that no line names: the sweep takes them after a day. So it does with those
of artifacts that have ended: a crash after the ledger's word loses no space.

Equal artifacts are kept once, equal pieces of different ones are not: docs/decisions/0015-whole-artifacts.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from skep.fs.chan import settle
from skep.fs.errors import E, FsError
from skep.fs.node import Maybe
from skep.namespaces.artifacts.chunks import CHUNK, Chunks, manifest_size, measure, single, unpack
from skep.namespaces.artifacts.room import Limit, Room, tenant_of
from skep.namespaces.artifacts.shelf import BYTES, CHUNKS, Directory, Shelf, Source
from skep.trace.clock import HOUR
from skep.trace.whole import sync

STAGED_MAX: Final = 256  # files one writer stages at a time: each has a place in a directory.
SIZE_MAX: Final = 1 << 40  # bytes of one artifact: a larger file is a mistake. limits.toml may say less.
KEPT_NS: Final = 24 * HOUR  # how long what nobody sealed stays.
MEASURED_MAX: Final = 64  # manifests kept in memory, of bytes sealed before the ledger had their hashes.


class Put(NamedTuple):
    """Sealed bytes: their hash in hex, how many, and the hash of the manifest of their chunks ("": none)."""

    sha256: str
    size: int
    chunks: str = ""


class Staged:
    """One staged file of a tenant. All who have it open share this object."""

    def __init__(self, path: Path, tenant: str, room: Room) -> None:
        self.path = path
        self.tenant = tenant
        self.room = room
        room.used(tenant)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.sealing = False
        # Its bytes are an artifact's too, or were about to be before a crash: never written again. Who
        # begins with none, begins another file.
        self.closed = os.fstat(self.fd).st_nlink > 1
        self.opens = 0
        self.size = os.fstat(self.fd).st_size  # as the room has it
        self.removed = False  # it has no name any more

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def write(self, offset: int, data: memoryview, size_max: int = SIZE_MAX) -> int:
        self._check(offset + len(data), size_max)
        try:
            return os.pwrite(self.fd, data, offset)
        finally:
            self._measure()

    def append(self, data: memoryview, size_max: int = SIZE_MAX) -> int:
        return self.write(os.fstat(self.fd).st_size, data, size_max)

    def truncate(self, size: int, size_max: int = SIZE_MAX) -> None:
        if size == 0 and self.closed and not self.sealing and not self.removed:
            self._begin_anew()
        self._check(size, size_max)
        os.ftruncate(self.fd, size)
        self._measure()

    def sync(self) -> None:
        os.fsync(self.fd)

    def _begin_anew(self) -> None:
        """Under the name there is another file, to all who have it open."""
        self.path.unlink()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self.closed = False

    def _check(self, size: int, size_max: int) -> None:
        if self.closed:
            raise FsError(E.BUSY, f"{self.path.name} is sealed")
        self.check_idle()
        if size > size_max:
            raise FsError(E.TOOBIG, f"max={size_max} bytes of one artifact")
        self.room.check(self.tenant, size - self.size)

    def _measure(self) -> None:
        size = os.fstat(self.fd).st_size
        self.room.grown(self.tenant, size - self.size, self.removed)
        self.size = size

    def check_idle(self) -> None:
        if self.sealing:
            raise FsError(E.BUSY, f"{self.path.name} is being sealed")


class Store:
    """The directory ``root`` for staging, and a shelf, by default of the same directory. ``limit``: how much
    of it is a tenant's.

    Its methods block for a file system call at most, hashing runs on threads."""

    def __init__(
        self, root: Path, shelf: Shelf | None = None, limit: Limit = lambda tenant: (0, None)
    ) -> None:
        self.root = root
        self.room = Room(root / "stage", limit)
        self.shelf: Shelf = shelf or Directory(root)
        self._open: dict[Path, Staged] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._measured: dict[str, Chunks] = {}
        (root / "stage").mkdir(parents=True, exist_ok=True)
        sync(root)

    # staging

    def staged(self, owner: str) -> list[str]:
        """The names that ``owner`` stages."""
        try:
            return sorted(entry.name for entry in os.scandir(self._stage(owner)))
        except FileNotFoundError:
            return []

    def has(self, owner: str, name: str) -> bool:
        """Whether ``owner`` stages a file of that name."""
        return os.path.lexists(self._stage(owner) / name)

    def stat(self, owner: str, name: str) -> os.stat_result:
        """Raises FileNotFoundError."""
        return os.stat(self._stage(owner) / name)

    def create(self, owner: str, name: str) -> Staged:
        """A new staged file, opened. Raises FsError(E.EXISTS, E.QUOTA)."""
        names = self.staged(owner)
        if name in names:
            raise FsError(E.EXISTS)
        if len(names) >= STAGED_MAX:
            raise FsError(E.QUOTA, f"staged files have={len(names)} max={STAGED_MAX}")
        self._stage(owner).mkdir(mode=0o700, exist_ok=True)
        return self._opened(owner, name)

    def open(self, owner: str, name: str) -> Staged:
        """A staged file, to be given to ``close``. Raises FileNotFoundError."""
        os.stat(self._stage(owner) / name)
        return self._opened(owner, name)

    def _opened(self, owner: str, name: str) -> Staged:
        path = self._stage(owner) / name
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = Staged(path, tenant_of(owner), self.room)
        file.opens += 1
        return file

    def close(self, file: Staged) -> None:
        file.opens -= 1
        if file.opens == 0:
            os.close(file.fd)
            if file.removed:
                self.room.grown(file.tenant, -file.size, apart=True)
            # It may have been removed and another be staged under its name.
            if self._open.get(file.path) is file:
                del self._open[file.path]

    def remove(self, owner: str, name: str) -> None:
        """Forget a staged file. Raises FileNotFoundError."""
        path = self._stage(owner) / name
        file = self._open.get(path)
        if file is not None:
            file.check_idle()
        tenant, size = tenant_of(owner), os.stat(path).st_size
        self.room.used(tenant)
        path.unlink()
        self.room.grown(tenant, -size)
        if file is not None:
            # It takes room as long as it is open.
            file.removed = True
            self.room.grown(tenant, size, apart=True)
            del self._open[path]

    def _stage(self, owner: str) -> Path:
        return self.room.directory(owner)

    # sealing

    @contextmanager
    def sealing(self, owner: str, name: str) -> Iterator[Staged]:
        """The staged file, which nobody can write meanwhile. Raises FileNotFoundError, FsError(E.BUSY)."""
        file = self.open(owner, name)
        try:
            file.check_idle()
            with _flagged(file):
                yield file
        finally:
            self.close(file)

    async def put(self, file: Staged) -> Put:
        """Of a file that is being sealed: its bytes are now on the shelf under their hash."""
        chunks, size = await asyncio.to_thread(_synced, file.fd)
        if chunks is None:
            chunks, size = await measure(
                lambda offset, count: asyncio.to_thread(os.pread, file.fd, count, offset)
            )
        file.closed = True
        async with self._moving(chunks.name):
            if chunks.root:
                await self.shelf.write(place(CHUNKS, chunks.name), chunks.pack())
            await self.shelf.take(place(BYTES, chunks.name), file.path)
        return Put(chunks.name, size, chunks.root)

    def settle(self, file: Staged) -> None:
        """The ledger has it: the staged name goes."""
        os.fchmod(file.fd, 0o400)
        self._open.pop(file.path, None)
        file.path.unlink()
        self.room.grown(file.tenant, -file.size)

    # sealed

    def reading(self, put: Put) -> Reading:
        """Sealed bytes, to be read and closed."""
        return Reading(self, put)

    async def chunks(self, put: Put, source: Source) -> Chunks:
        """The hashes by which to check what ``source`` gives.

        Lost ones, and those of bytes sealed before there were any, are made from the bytes, all of which are
        read for it. Raises FsError(E.TAMPER) when they are not what was sealed."""
        if not put.chunks and put.size <= CHUNK:
            return single(put.sha256)
        async with self._moving(put.sha256):
            return (
                await self._manifest(put) or self._measured.get(put.sha256) or await self._again(put, source)
            )

    async def _manifest(self, put: Put) -> Chunks | None:
        try:
            file = await self.shelf.open(place(CHUNKS, put.sha256))
        except FileNotFoundError:
            return None
        with closing(file):
            # One byte more than it should have: a longer one has another hash.
            packed = await settle(file.read(0, manifest_size(put.size) + 1))
        return unpack(put.sha256, packed, put.chunks)

    async def _again(self, put: Put, source: Source) -> Chunks:
        found, _ = await measure(lambda offset, count: _off_loop(source, offset, count))
        if found.name != put.sha256:
            raise FsError(E.TAMPER, f"sha256:{put.sha256}: the bytes are not what was sealed")
        if found.root == put.chunks:
            with suppress(OSError):  # it is a saving: a full disk can do without
                await self.shelf.write(place(CHUNKS, put.sha256), found.pack())
                return found
        self._measured[put.sha256] = found
        if len(self._measured) > MEASURED_MAX:
            del self._measured[next(iter(self._measured))]
        return found

    async def sweep(self, now_ns: int, known: Callable[[str], bool]) -> list[str]:
        """Remove what was not sealed in a day, and what has stood for a day of bytes that the ledger does not
        know, by hash; the names of all that went."""
        gone = [path.name for path in await asyncio.to_thread(self._stale, now_ns)]
        self.room.recount()
        async for kept in self.shelf.kept():
            if now_ns - kept.since_ns > KEPT_NS and await self._removed(kept.name, now_ns, known):
                gone.append(kept.name)
        return gone

    def _stale(self, now_ns: int) -> list[Path]:
        gone = []
        for path in self.root.glob("stage/*/*"):
            with suppress(FileNotFoundError):
                if path not in self._open and now_ns - path.stat().st_ctime_ns > KEPT_NS:
                    path.unlink()
                    gone.append(path)
        return gone

    async def _removed(self, name: str, now_ns: int, known: Callable[[str], bool]) -> bool:
        """Whether it was not needed, and went. Asked again: it may have been sealed since it was listed."""
        digest = name.rpartition("/")[2]
        async with self._moving(digest):
            with suppress(FileNotFoundError):
                if not known(digest) and now_ns - await self.shelf.since_ns(name) > KEPT_NS:
                    await self.shelf.remove(name)
                    return True
        return False

    @asynccontextmanager
    async def _moving(self, digest: str) -> AsyncIterator[None]:
        """Within it no other puts these bytes on the shelf, or takes them from there."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            yield


class Reading:
    """One open of sealed bytes: what it gives has been checked. Calls come one at a time."""

    def __init__(self, store: Store, put: Put) -> None:
        self.store = store
        self.put = put
        self._source: Source | None = None  # None: nothing was read yet
        self._chunks = single(put.sha256)
        self._have: dict[int, bytes] = {}  # the checked chunks of the last read, and those fetched ahead

    def read(self, offset: int, count: int) -> Maybe[bytes]:
        """Raises FsError(E.TAMPER) when the bytes there are not those that were sealed, or are gone."""
        end = min(offset + count, self.put.size)
        if offset >= end:
            return b""
        if self._source is None:
            return self._begin(offset, end)
        return self._between(offset, end, self._source)

    async def _begin(self, offset: int, end: int) -> bytes:
        try:
            source = await self.store.shelf.open(place(BYTES, self.put.sha256))
        except FileNotFoundError as error:
            raise FsError(E.TAMPER, f"sha256:{self.put.sha256}: the bytes are gone") from error
        try:
            self._chunks = await self.store.chunks(self.put, source)
        except BaseException:
            source.close()
            raise
        self._source = source
        return await settle(self._between(offset, end, source))

    def _between(self, offset: int, end: int, source: Source) -> Maybe[bytes]:
        length = self._chunks.length
        first, last = offset // length, (end - 1) // length
        until = last + source.ahead // length
        self._have = {k: data for k, data in self._have.items() if first - 1 <= k <= until}
        missing = next((k for k in range(first, last + 1) if k not in self._have), None)
        if missing is None:
            return self._cut(offset, end)
        # Who goes on where he was, reads on.
        ahead = source.ahead if missing - 1 in self._have else 0
        start, stop = missing * length, min((last + 1) * length + ahead, self.put.size)
        found = source.read(start, stop - start)
        if isinstance(found, bytes):
            return self._taken(start, stop, found, offset, end)
        return self._late(start, stop, found, offset, end)

    async def _late(self, start: int, stop: int, found: Maybe[bytes], offset: int, end: int) -> bytes:
        return self._taken(start, stop, await settle(found), offset, end)

    def _taken(self, start: int, stop: int, found: bytes, offset: int, end: int) -> bytes:
        """Check the chunks of what was found between ``start`` and ``stop``; what was asked for."""
        length = self._chunks.length
        for at in range(0, stop - start, length):
            data = found[at : at + length]
            k = (start + at) // length
            self._chunks.check(k, data)
            self._have[k] = data
        return self._cut(offset, end)

    def _cut(self, offset: int, end: int) -> bytes:
        length = self._chunks.length
        first, last = offset // length, (end - 1) // length
        start = first * length
        data = self._have[first]
        if last > first:
            data = b"".join(self._have[k] for k in range(first, last + 1))
        return data[offset - start : end - start]

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def place(folder: str, digest: str) -> str:
    """Where on a shelf the bytes of a hash stand, or the hashes of their chunks."""
    return f"{folder}/{digest[:2]}/{digest}"


async def _off_loop(source: Source, offset: int, count: int) -> bytes:
    return await settle(await asyncio.to_thread(source.read, offset, count))


def _synced(fd: int) -> tuple[Chunks | None, int]:
    """Of a file, which is on disk then, its chunks (None: there are several) and size. What is small is done
    in one go: each time that a thread takes over costs more than hashing it."""
    os.fsync(fd)
    size = os.fstat(fd).st_size
    if size > CHUNK:
        return None, size
    data = os.pread(fd, CHUNK, 0)
    return single(sha256(data).hexdigest()), len(data)


@contextmanager
def _flagged(file: Staged) -> Iterator[None]:
    file.sealing = True
    try:
        yield
    finally:
        file.sealing = False
