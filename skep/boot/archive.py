"""An image in one file: a tar archive of a boot manifest, its first member, and of the files it names.

What ``skep boot pack`` makes of the same files is the same bytes, so an image has one hash. Any archive of
plain files with relative names is taken: ``tar cf image.tar boot.toml kernel rootserver`` makes one. Nothing
is believed before it is measured; the index is read block by block, wherever who reads it has them from.

Source: POSIX, pax, "ustar Interchange Format"."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from skep.boot.baseline import SUFFIX as BASELINE
from skep.boot.manifest import MANIFEST_MAX, files_of, read
from skep.boot.signing import SUFFIX as SIGNATURE

BLOCK: Final = 512  # bytes of a header; members begin at multiples of it
MEMBERS_MAX: Final = 64  # more than a manifest names
DEPTH_MAX: Final = 8  # folders of a name: each is a node where the image is served
SIZE_MAX: Final = 1 << 30  # bytes of an archive: it is copied to where it boots
PIECE: Final = 1 << 20


class ArchiveError(Exception):
    """It is no image's archive: where, what is there, what was expected."""


class Member(NamedTuple):
    """A file of the archive: its bytes begin at ``offset``."""

    name: str
    offset: int
    size: int


class Index:
    """The members of an archive of ``size`` bytes, as far as its headers were fed."""

    def __init__(self, size: int) -> None:
        if size > SIZE_MAX:
            raise ArchiveError(f"{size} bytes, an image has at most {SIZE_MAX}")
        self._size = size
        self.members: list[Member] = []
        self.at: int | None = 0  # where the next header is; None: there is none

    def feed(self, block: bytes) -> None:
        """The BLOCK bytes at ``at``, less at the end of the archive. Raises ArchiveError."""
        assert self.at is not None
        if not block.strip(b"\0"):
            self._end()
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ArchiveError(f"at byte {self.at}: no header of a tar archive: {error}") from error
        member = Member(header.name, self.at + BLOCK, header.size)
        self._check(header, member)
        self.members.append(member)
        self.at = member.offset + -(-member.size // BLOCK) * BLOCK
        if self.at >= self._size:
            self._end()

    def _check(self, header: tarfile.TarInfo, member: Member) -> None:
        name = member.name
        if not header.isreg() or header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArchiveError(f"{name!r}: expected plain files alone, as `skep boot pack` writes them")
        parts = name.split("/")
        if not name.isprintable() or {"", ".", ".."} & set(parts) or len(parts) > DEPTH_MAX:
            raise ArchiveError(f"{name!r}: expected a plain relative name, at most {DEPTH_MAX} deep")
        if member.size < 0 or member.offset + member.size > self._size:
            raise ArchiveError(f"{name}: {member.size} bytes, the archive ends before that")
        names = [each.name for each in self.members]
        if any(_within(name, other) or _within(other, name) for other in names):
            raise ArchiveError(f"{name}: there are two")
        if len(names) == MEMBERS_MAX:
            raise ArchiveError(f"more than {MEMBERS_MAX} files")

    def _end(self) -> None:
        self.at = None
        if not self.members or not self.members[0].name.endswith(".toml"):
            raise ArchiveError("expected a boot manifest, NAME.toml, as its first file")
        if self.members[0].size > MANIFEST_MAX:
            raise ArchiveError(f"{self.members[0].name}: longer than {MANIFEST_MAX} bytes")


def _within(name: str, other: str) -> bool:
    """Whether a file of that name is the other one, or would need it to be a directory."""
    return name == other or name.startswith(f"{other}/")


def pack(manifest: Path, to: BinaryIO) -> None:
    """Write the archive of the manifest, its files, and what stands beside it: its signature, its
    baseline, the key that it names when that is below it.

    Raises ManifestError, ArchiveError, OSError."""
    base = manifest.parent
    said = read(manifest)
    beside = [manifest.name + SIGNATURE, manifest.with_suffix(BASELINE).name]
    if said.signature is not None and ".." not in said.signature.trust.split("/"):
        beside.append(said.signature.trust)
    there = [name for name in beside if not name.startswith("/") and (base / name).is_file()]
    names = dict.fromkeys([manifest.name, *files_of(said), *there])
    index = Index(SIZE_MAX)
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            with (base / name).open("rb") as file:
                header = tarfile.TarInfo(name)
                header.size = file.seek(0, 2)
                file.seek(0)
                # What could not be read back is not written.
                index.feed(header.tobuf(tarfile.USTAR_FORMAT))
                archive.addfile(header, file)
        index.feed(b"")


def unpack(path: Path, to: Path) -> Path:
    """Copy the files of the archive into the directory ``to``; the manifest. Raises ArchiveError, OSError."""
    with path.open("rb") as file:
        index = Index(file.seek(0, 2))
        while index.at is not None:
            file.seek(index.at)
            index.feed(file.read(BLOCK))
        for member in index.members:
            copy = to / member.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            file.seek(member.offset)
            with copy.open("xb") as kept:
                for piece in _pieces(file, member.size):
                    kept.write(piece)
    return to / index.members[0].name


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(PIECE, size))):
        size -= len(piece)
        yield piece
