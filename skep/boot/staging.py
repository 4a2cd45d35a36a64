"""A private copy of what is to boot: QEMU opens the very bytes that were hashed, and nothing else is there.

Names stay as they are: on x86 they reach the guest, and its counts. Every file is opened once, hashed while
it is copied, and not looked at again; whoever changes it afterwards changes nothing. Of a signed boot no part
of a path is a symbolic link, and no file is read beyond the size that was signed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from skep.boot.argv import CODE, ESP
from skep.boot.manifest import MANIFEST_MAX, OVMF, Manifest, ManifestError, kinds_of, load
from skep.boot.secureboot import FIRMWARE, LOADER
from skep.boot.signing import SUFFIX, Item, Seen, SignatureError, Statement, check, compare
from skep.trace.clock import SECOND
from skep.trace.note import NOTE_MAX
from skep.trace.pem import public_key

PIECE: Final = 1 << 20
PREFIX: Final = "skep-staged-"
ABANDONED_NS: Final = 60 * SECOND  # from when a folder is made until it is locked, at the very most


class Staged(NamedTuple):
    """``base``: the directory to run QEMU in. ``items``: the manifest, then its files. ``statement``: what
    was signed; None: nobody asked."""

    manifest: Manifest
    base: Path
    items: tuple[Item, ...]
    statement: Statement | None

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 in hex by name, of the manifest's files."""
        return {item.path: item.sha256 for item in self.items[1:]}


@contextmanager
def staged(path: Path, trusted: Sequence[Path], seen: Seen, now_ns: int) -> Iterator[Staged]:
    """What the manifest at ``path`` boots, until the block ends; signed when there are keys in ``trusted``,
    or else when the manifest itself names one.

    Raises SignatureError, ManifestError, PemError, OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _private(now_ns) as into:
            yield _staged(folder, path, trusted, seen, now_ns, into)
    finally:
        os.close(folder)


@contextmanager
def _private(now_ns: int) -> Iterator[Path]:
    """A folder for us alone, removed at the end. We hold its lock: one that nobody holds was left by a lab
    that was killed, and is removed by the next."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_abandoned(left, now_ns)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as into:
        held = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(into)
        finally:
            os.close(held)


def _remove_abandoned(left: Path, now_ns: int) -> None:
    with suppress(OSError):  # another's, held by another, or removed by another meanwhile
        held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(held)
            if found.st_uid == os.getuid() and now_ns - found.st_mtime_ns > ABANDONED_NS:
                shutil.rmtree(left)
        finally:
            os.close(held)


def _staged(folder: int, path: Path, trusted: Sequence[Path], seen: Seen, now_ns: int, into: Path) -> Staged:
    data = _small(folder, path.name, MANIFEST_MAX)
    if not trusted:
        said = load(data, str(path)).signature
        trusted = [path.parent / said.trust] if said is not None else []
    first = _item("manifest", data, path.name)
    statement: Statement | None = None
    if trusted:
        note = _small(folder, path.name + SUFFIX, NOTE_MAX)
        statement = check(note, [public_key(each) for each in trusted], now_ns)
        compare(statement.items[:1], [first])
    manifest = load(data, str(path))
    items = (first, *_copied(folder, manifest, into, statement))
    if statement is not None:
        if statement.name != manifest.name:
            raise SignatureError(f"{path.name}: {manifest.name} is signed as {statement.name}")
        compare(statement.items, items)
        seen.admit(statement)
    if manifest.vars:
        items = (*items, *_efi(manifest, into))
    return Staged(manifest, into, items, statement)


def described(path: Path) -> tuple[Manifest, tuple[Item, ...]]:
    """The manifest and its files, to be signed. Raises ManifestError, SignatureError, OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        data = _small(folder, path.name, MANIFEST_MAX)
        manifest = load(data, str(path))
        items = [_item("manifest", data, path.name)]
        for name, kind in kinds_of(manifest).items():
            with _opened(folder, name, strict=True) as file:
                items.append(_hashed(kind, name, file, None, None))
        return manifest, tuple(items)
    finally:
        os.close(folder)


def _copied(folder: int, manifest: Manifest, into: Path, statement: Statement | None) -> Iterator[Item]:
    sizes = {item.path: item.size for item in statement.items} if statement is not None else {}
    for name, kind in kinds_of(manifest).items():
        if statement is not None and name not in sizes:
            raise SignatureError(f"{name}: named by the manifest, and not signed")
        copy = into / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _opened(folder, name, strict=statement is not None) as file, copy.open("wb") as kept:
            yield _hashed(kind, name, file, kept, sizes.get(name))


def _efi(manifest: Manifest, into: Path) -> Iterator[Item]:
    """What the firmware boots from, and the machine's firmware where it is that."""
    if manifest.firmware == OVMF:
        source = FIRMWARE[manifest.arch].code
        try:
            (into / CODE).parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as file, (into / CODE).open("xb") as kept:
                yield _hashed("firmware", OVMF, file, kept, None)
        except FileNotFoundError:
            package = FIRMWARE[manifest.arch].package
            raise ManifestError(f"{source} is not there: Debian has it in the package {package}") from None
    loader = into / ESP / LOADER[manifest.arch]
    loader.parent.mkdir(parents=True)
    os.link(into / manifest.kernel, loader)


def _hashed(kind: str, name: str, file: BinaryIO, kept: BinaryIO | None, size_max: int | None) -> Item:
    """The file, read to its end, or to where it is longer than it may be."""
    digest, size = sha256(), 0
    while piece := file.read(PIECE):
        size += len(piece)
        if size_max is not None and size > size_max:
            raise SignatureError(f"{name}: not what was signed: longer than {size_max} bytes")
        digest.update(piece)
        if kept is not None:
            kept.write(piece)
    return Item(kind, digest.hexdigest(), size, name)


def _item(kind: str, data: bytes, name: str) -> Item:
    return Item(kind, sha256(data).hexdigest(), len(data), name)


def _small(folder: int, name: str, size_max: int) -> bytes:
    with _opened(folder, name, strict=False) as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise ManifestError(f"{name}: longer than {size_max} bytes")
    return data


def _opened(folder: int, name: str, strict: bool) -> BinaryIO:
    """A regular file below ``folder``. ``strict``: by no symbolic link.

    Raises ManifestError, SignatureError."""
    wrong = SignatureError if strict or name.endswith(SUFFIX) else ManifestError
    try:
        fd = _walked(folder, name) if strict else os.open(name, READ, dir_fd=folder)
    except OSError as error:
        # A link where a directory is expected is told as no directory.
        link = strict and error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise wrong(f"{name}: {'a symbolic link' if link else error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise wrong(f"{name}: expected a file")
    return os.fdopen(fd, "rb")


# A FIFO does not hold us up.
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def _walked(folder: int, name: str) -> int:
    *above, last = name.split("/")
    held = os.dup(folder)
    try:
        for part in above:
            held, before = os.open(part or ".", READ | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held), held
            os.close(before)
        return os.open(last, READ | os.O_NOFOLLOW, dir_fd=held)
    finally:
        os.close(held)
