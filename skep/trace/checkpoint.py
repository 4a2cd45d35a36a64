"""Checkpoints: how many entries a ledger had, and the root of their tree, as signed notes have it.

A key that takes over is vouched for by the one before it, in a handover: a note that says the new key, signed
by the old. It cannot be taken for a checkpoint, whose second line is a number.
Source: c2sp.org/tlog-checkpoint."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Final, NamedTuple

from skep.trace.merkle import HASH_SIZE
from skep.trace.note import Note, NoteError, Vkey, parse_note, parse_vkey

HANDOVER: Final = "key handover"
_SIZE: Final = re.compile(r"0|[1-9]\d{0,18}")


class Checkpoint(NamedTuple):
    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


def origin_of(hive: str) -> str:
    """What a hive's checkpoints and keys go by; a hive without certificates has no name."""
    return f"{hive or 'hive'}/log/trace"


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint that a note's text is; lines after the third are others' and passed over.

    Raises NoteError."""
    lines = text.split("\n")
    if len(lines) < 4 or "" in lines[:-1] or lines[-1]:
        raise NoteError("no checkpoint: expected lines of origin, size and root")
    try:
        root = b64decode(lines[2], validate=True)
    except ValueError:
        root = b""
    if not _SIZE.fullmatch(lines[1]) or len(root) != HASH_SIZE or b64encode(root).decode() != lines[2]:
        raise NoteError(f"no checkpoint: size {lines[1]!r}, root {lines[2]!r}")
    return Checkpoint(lines[0], int(lines[1]), root)


def handover_text(origin: str, key: Vkey) -> str:
    """What the old key signs."""
    return f"{origin}\n{HANDOVER}\n{key}\n"


def parse_handovers(data: bytes) -> list[Note]:
    """Notes of handovers, an empty line between two. Raises NoteError."""
    parts = data.decode("utf-8", "replace").split("\n\n")
    pairs = zip(parts[::2], parts[1::2], strict=False)
    return [parse_note(f"{text}\n\n{below.removesuffix(chr(10))}\n".encode()) for text, below in pairs]


def vouched(trusted: Iterable[Vkey], handovers: Iterable[Note]) -> list[Vkey]:
    """``trusted``, and the keys that they, and those in turn, hand over to."""
    found, waiting = list(trusted), list(handovers)
    for _ in range(len(waiting)):
        for note in waiting:
            lines = note.text.split("\n")
            if len(lines) != 4 or lines[1] != HANDOVER:
                continue
            try:
                new = parse_vkey(lines[2])
                note.signers(key for key in found if key.name == lines[0])
            except NoteError:
                continue
            if new not in found:
                found.append(new)
    return found
