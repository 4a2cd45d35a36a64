"""Where artifacts' bytes are: a directory of files named by their SHA-256, and of files being staged.

    sha256/ab/ab12…       sealed, never written again
    stage/<owner>/<name>  being written; <owner> is a hash of who stages

Sealing syncs, hashes and links the file before anybody is told; the staged name goes when the ledger has it.
Once linked it cannot be written, even when the ledger refused: it can be sealed again, or removed. A crash
between the two leaves bytes that no line names: the sweep takes them after a day.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skep.fs.errors import E, FsError
from skep.trace.clock import HOUR

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

STAGED_MAX: Final = 256  # files one writer stages at a time: each has a place in a directory.
SIZE_MAX: Final = 1 << 40  # bytes of one artifact: a larger file is a mistake.
KEPT_NS: Final = 24 * HOUR  # how long what nobody sealed stays.
CHUNK: Final = 16 * 1024 * 1024  # bytes hashed in one go on a thread: some ten milliseconds.


class Staged:
    """One staged file. All who have it open share this object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.sealing = False
        # Its bytes are an artifact's too, or were about to be before a crash: never written again.
        self.closed = os.fstat(self.fd).st_nlink > 1
        self.opens = 0

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def write(self, offset: int, data: memoryview) -> int:
        self._check(offset + len(data))
        return os.pwrite(self.fd, data, offset)

    def append(self, data: memoryview) -> int:
        return self.write(os.fstat(self.fd).st_size, data)

    def truncate(self, size: int) -> None:
        self._check(size)
        os.ftruncate(self.fd, size)

    def sync(self) -> None:
        os.fsync(self.fd)

    def _check(self, size: int) -> None:
        if self.closed:
            raise FsError(E.BUSY, f"{self.path.name} is sealed")
        self.check_idle()
        if size > SIZE_MAX:
            raise FsError(E.TOOBIG, f"max={SIZE_MAX}")

    def check_idle(self) -> None:
        if self.sealing:
            raise FsError(E.BUSY, f"{self.path.name} is being sealed")


class Store:
    """The directory. Its methods block for a file system call at most, hashing runs on threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[Path, Staged] = {}
        for name in ("stage", "sha256"):
            (root / name).mkdir(parents=True, exist_ok=True)
        _sync_directory(root)

    # staging

    def staged(self, owner: str) -> list[str]:
        """The names that ``owner`` stages."""
        try:
            return sorted(entry.name for entry in os.scandir(self._stage(owner)))
        except FileNotFoundError:
            return []

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
        return self._opened(self._stage(owner) / name)

    def open(self, owner: str, name: str) -> Staged:
        """A staged file, to be given to ``close``. Raises FileNotFoundError."""
        path = self._stage(owner) / name
        os.stat(path)
        return self._opened(path)

    def _opened(self, path: Path) -> Staged:
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = Staged(path)
        file.opens += 1
        return file

    def close(self, file: Staged) -> None:
        file.opens -= 1
        if file.opens == 0:
            os.close(file.fd)
            # It may have been removed and another be staged under its name.
            if self._open.get(file.path) is file:
                del self._open[file.path]

    def remove(self, owner: str, name: str) -> None:
        """Forget a staged file. Raises FileNotFoundError."""
        path = self._stage(owner) / name
        file = self._open.get(path)
        if file is not None:
            file.check_idle()
        path.unlink()
        self._open.pop(path, None)

    def _stage(self, owner: str) -> Path:
        return self.root / "stage" / sha256(owner.encode()).hexdigest()[:32]

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

    async def put(self, file: Staged) -> tuple[str, int]:
        """The hash and size of a file that is being sealed, whose bytes are now on disk under the hash."""
        await asyncio.to_thread(os.fsync, file.fd)
        digest = await _hash(file.fd)
        target = self.path(digest)
        file.closed = True
        await asyncio.to_thread(_link, file.path, target)
        return digest, os.fstat(file.fd).st_size

    def settle(self, file: Staged) -> None:
        """The ledger has it: the staged name goes."""
        os.fchmod(file.fd, 0o400)
        self._open.pop(file.path, None)
        file.path.unlink()

    # sealed

    def path(self, digest: str) -> Path:
        return self.root / "sha256" / digest[:2] / digest

    def open_sealed(self, digest: str) -> int:
        """A descriptor to read it by. Raises FileNotFoundError."""
        return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)

    async def verify(self, digest: str) -> bool:
        """Whether the bytes are still those that were sealed. Raises FileNotFoundError."""
        fd = self.open_sealed(digest)
        try:
            return await _hash(fd) == digest
        finally:
            os.close(fd)

    def sweep(self, now_ns: int, known: Callable[[str], bool]) -> list[Path]:
        """Remove what was not sealed in a day, and sealed bytes that the ledger does not know; both."""
        gone = []
        for path in [*self.root.glob("stage/*/*"), *self.root.glob("sha256/*/*")]:
            if path in self._open or (path.parent.parent.name == "sha256" and known(path.name)):
                continue
            with suppress(FileNotFoundError):
                # Not mtime: linking under the hash must count.
                if now_ns - path.stat().st_ctime_ns > KEPT_NS:
                    path.unlink()
                    gone.append(path)
        return gone


@contextmanager
def _flagged(file: Staged) -> Iterator[None]:
    file.sealing = True
    try:
        yield
    finally:
        file.sealing = False


async def _hash(fd: int) -> str:
    digest = sha256()
    offset = 0
    while taken := await asyncio.to_thread(_hash_chunk, digest, fd, offset):
        offset += taken
    return digest.hexdigest()


def _hash_chunk(digest: Hash, fd: int, offset: int) -> int:
    data = os.pread(fd, CHUNK, offset)
    digest.update(data)
    return len(data)


def _link(path: Path, target: Path) -> None:
    """``target`` is ``path``'s file too, and survives a crash."""
    if not target.parent.exists():
        target.parent.mkdir(exist_ok=True)
        _sync_directory(target.parent.parent)
    # Whatever stood there, a crash's remains or a rotten copy, these bytes are known to be right.
    fresh = target.with_name(f"{target.name}.{os.stat(path).st_ino}")
    with suppress(FileExistsError):
        os.link(path, fresh)
    os.replace(fresh, target)
    # Renaming one name of a file over another of the same file does nothing.
    fresh.unlink(missing_ok=True)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
