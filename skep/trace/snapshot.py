"""Snapshots: the state that the first entries of a ledger mean, in a file, so that folding can begin there.

    skep-snapshot/1 <bytes of the note> LF
    <a signed note, whose text is:>
        <origin of the ledger's checkpoints>
        state snapshot
        size <entries>
        root <the tree's root there, in base64>
        state <SHA-256 of the state's bytes, in hex>
        digest <the state's own digest, in hex>
        rules <the fold's fingerprint, in hex>
    <the state's bytes>

The text cannot be taken for a checkpoint's, whose second line is a number. Nothing depends on a snapshot: it
may be deleted at any time, and who finds one that is not good goes by the ledger alone.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from skep.trace.merkle import HASH_SIZE
from skep.trace.note import NOTE_MAX, Note, NoteError, parse_note
from skep.trace.whole import NEW, write_whole

FOLDER: Final = "snapshots"  # of a hive's directory
TEXT_MAX: Final = 4096  # bytes of a note's text
KEPT: Final = 2  # the newest; the one before is there when the newest turns out to be damaged.
MAGIC: Final = b"skep-snapshot/1 "
KIND: Final = "state snapshot"
_HEAD: Final = re.compile(MAGIC + rb"([1-9]\d{0,5})\n")
_NAME: Final = re.compile(r"([1-9]\d{0,18})\.snapshot")
_TEXT: Final = re.compile(
    rf"([^\n]+)\n{KIND}\nsize ([1-9]\d{{0,18}})\nroot (\S+)\n"
    r"state ([0-9a-f]{64})\ndigest ([0-9a-f]{64})\nrules ([0-9a-f]{64})\n"
)


class SnapshotError(Exception):
    """It is no snapshot, or not one to go by; the text says why."""


class Head(NamedTuple):
    """What is signed. Hashes in hex but for the root."""

    origin: str
    size: int
    root: bytes
    state: str
    digest: str
    rules: str

    def text(self) -> str:
        root = b64encode(self.root).decode()
        said = {"size": self.size, "root": root, "state": self.state, "digest": self.digest}
        lines = [self.origin, KIND, *(f"{name} {value}" for name, value in said.items())]
        return "".join(f"{line}\n" for line in [*lines, f"rules {self.rules}"])


class Snapshot(NamedTuple):
    """A snapshot as it was found: its state's bytes have the hash that its head says; nobody has looked who
    signed."""

    head: Head
    note: Note
    packed: bytes


def parse_head(text: str) -> Head:
    """Raises SnapshotError."""
    found = _TEXT.fullmatch(text)
    root = b""
    if found is not None:
        try:
            root = b64decode(found[3], validate=True)
        except ValueError:
            root = b""
    if found is None or len(root) != HASH_SIZE or b64encode(root).decode() != found[3]:
        raise SnapshotError("its note is not a snapshot's")
    return Head(found[1], int(found[2]), root, found[4], found[5], found[6])


def state_hash(packed: bytes) -> str:
    """As a head has it."""
    return sha256(packed).hexdigest()


def listed(directory: Path) -> list[tuple[int, Path]]:
    """The snapshots of a hive's directory by their names, the newest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in (directory / FOLDER).glob("*.snapshot"))
    return sorted(((int(found[1]), path) for found, path in names if found is not None), reverse=True)


def read_note(path: Path) -> bytes:
    """The signed note alone. Raises SnapshotError."""
    try:
        with path.open("rb") as file:
            found = _HEAD.fullmatch(file.readline(64))
            note = file.read(int(found[1])) if found is not None else b""
    except OSError as error:
        raise SnapshotError(f"{error.strerror}") from error
    if found is None or len(note) != int(found[1]) or len(note) > NOTE_MAX:
        raise SnapshotError("it does not begin as a snapshot does")
    return note


def read_snapshot(path: Path) -> Snapshot:
    """Raises SnapshotError."""
    said = read_note(path)
    try:
        note = parse_note(said)
    except NoteError as error:
        raise SnapshotError(f"its note: {error}") from error
    head = parse_head(note.text)
    begin = len(MAGIC) + len(str(len(said))) + 1 + len(said)
    try:
        packed = path.read_bytes()[begin:]
    except OSError as error:
        raise SnapshotError(f"{error.strerror}") from error
    if state_hash(packed) != head.state:
        raise SnapshotError("its state is not the one that was signed")
    return Snapshot(head, note, packed)


def write_snapshot(directory: Path, note: bytes, packed: bytes) -> Path:
    """Put a snapshot in its place, on disk when this returns, and remove all but the newest ``KEPT``; one
    process at a time. What others left behind half written, is removed first. It leaves as much of the disk
    free as it takes: the ledger needs some. Raises OSError."""
    folder = directory / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.glob(f".*{NEW}"):
        left.unlink()
    data = b"%s%d\n%s%s" % (MAGIC, len(note), note, packed)
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize < 2 * len(data):
        raise OSError(f"{folder}: less than {2 * len(data)} bytes are free")
    path = folder / f"{parse_head(parse_note(note).text).size}.snapshot"
    write_whole(path, data)
    for _, old in listed(directory)[KEPT:]:
        old.unlink()
    return path
