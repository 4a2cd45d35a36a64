"""What a witness makes of a checkpoint that it is shown: it continues the last one, or it does not.

No clock, no disk, no key: what has been seen and what is asked go in, a verdict comes out. Where a log has
signed two things that cannot both be true, both notes are the evidence, and anybody can check it.
Source: c2sp.org/tlog-witness (add-checkpoint)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from enum import Enum
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from skep.trace.checkpoint import Checkpoint, parse_checkpoint
from skep.trace.merkle import HASH_SIZE
from skep.trace.note import Note, NoteError, Vkey, parse_note, parse_vkey
from skep.trace.proof import is_consistent, roots

PROOF_MAX: Final = 63  # lines of a proof
_OLD: Final = re.compile(r"old (0|[1-9]\d{0,18})")


class Answer(Enum):
    """How an add-checkpoint is answered; the value is the HTTP status that the public text gives it."""

    MALFORMED = 400
    UNSIGNED = 403
    UNKNOWN = 404
    CONFLICT = 409
    UNPROVEN = 422


class Declined(Exception):
    """The checkpoint is not cosigned. ``size``: with CONFLICT, that of the last one that was."""

    def __init__(self, answer: Answer, text: str, size: int = 0) -> None:
        super().__init__(text)
        self.answer = answer
        self.size = size


class Split(msgspec.Struct, frozen=True):
    """Two checkpoints of one log that cannot both be true, as signed notes, the smaller first.

    ``proof`` leads from ``root``, what the second's tree has at the size of the first, to the second's root:
    both in base64. ``root`` "": the log gave no proof at all, and who was there is the only witness of
    that."""

    origin: str
    first: str
    second: str
    root: str = ""
    proof: tuple[str, ...] = ()
    time_s: int = 0  # when it was found
    cleared_s: int = 0  # when an operator let go of it; 0: nobody has

    @property
    def id(self) -> str:
        """The same for the same two checkpoints, whoever found them and has cosigned them."""
        return sha256("".join(checkpoint.text() for checkpoint in self.checkpoints).encode()).hexdigest()[:16]

    @property
    def checkpoints(self) -> tuple[Checkpoint, Checkpoint]:
        one, other = (parse_checkpoint(parse_note(note.encode()).text) for note in (self.first, self.second))
        return one, other

    @property
    def why(self) -> str:
        one, other = self.checkpoints
        if one.size == other.size:
            return f"it signed two roots of {one.size} entries"
        if not self.root:
            return f"it gave no proof that {other.size} entries continue the {one.size} before"
        return f"its {other.size} entries do not begin with the {one.size} that it signed before"


class Contradiction(Exception):
    """The log has signed what cannot be true beside what it signed before."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.why)
        self.split = split


class Shown(NamedTuple):
    """The body of an add-checkpoint, taken apart; no signature has been checked."""

    old: int
    proof: tuple[bytes, ...]
    note: Note
    checkpoint: Checkpoint
    data: bytes  # the note's


class Seen(msgspec.Struct, frozen=True):
    """What a witness knows of a log. ``keys``: those that are believed; ``note``: the last checkpoint that
    was cosigned, with the log's signatures and ours; "": none was."""

    origin: str
    keys: tuple[str, ...]
    note: str = ""

    @property
    def vkeys(self) -> list[Vkey]:
        return [parse_vkey(key) for key in self.keys]

    @property
    def last(self) -> Checkpoint | None:
        return parse_checkpoint(parse_note(self.note.encode()).text) if self.note else None

    @property
    def size(self) -> int:
        last = self.last
        return 0 if last is None else last.size


def parse_shown(body: bytes) -> Shown:
    """Raises Declined."""
    head, _, data = body.partition(b"\n\n")
    first, *lines = head.decode("utf-8", "replace").split("\n")
    found = _OLD.fullmatch(first)
    if found is None or len(lines) > PROOF_MAX:
        text = f"{first!r}: expected old N, at most {PROOF_MAX} lines, an empty line"
        raise Declined(Answer.MALFORMED, text)
    try:
        proof = tuple(map(hash_of, lines))
        note = parse_note(data)
        return Shown(int(found[1]), proof, note, parse_checkpoint(note.text), data)
    except NoteError as error:
        raise Declined(Answer.MALFORMED, str(error)) from error


def hash_of(line: str) -> bytes:
    """A hash written in base64. Raises NoteError."""
    try:
        found = b64decode(line, validate=True)
    except ValueError:
        found = b""
    if len(found) != HASH_SIZE or b64encode(found).decode() != line:
        raise NoteError(f"{line!r}: expected a hash in base64")
    return found


def check(seen: Seen, shown: Shown) -> None:
    """Return when what is shown may be cosigned: it is signed, and continues the last one that was.

    Raises Declined, and Contradiction when it proves by itself that the log signed two things."""
    new = shown.checkpoint
    assert new.origin == seen.origin
    try:
        shown.note.signers(seen.vkeys)
    except NoteError as error:
        raise Declined(Answer.UNSIGNED, str(error)) from error
    if shown.old > new.size:
        raise Declined(Answer.MALFORMED, f"old {shown.old} is more than the {new.size} entries shown")
    check_same(seen, shown)
    last = seen.last
    if shown.old != seen.size:
        raise Declined(Answer.CONFLICT, f"old {shown.old}: the last was of {seen.size} entries", seen.size)
    if last is None or not last.size:
        if shown.proof:
            raise Declined(Answer.UNPROVEN, "a proof that continues nothing")
    elif not is_consistent(last.size, new.size, last.root, new.root, shown.proof):
        if contradicts(last, new, shown.proof):
            raise Contradiction(_split(seen, shown, _before(last, new, shown.proof), shown.proof))
        text = f"the proof does not lead from {last.size} entries to {new.size}"
        raise Declined(Answer.UNPROVEN, text, seen.size)


def check_same(seen: Seen, shown: Shown) -> None:
    """Raises Contradiction when two roots of as many entries were signed."""
    last, new = seen.last, shown.checkpoint
    if last is not None and last.size == new.size and last.root != new.root:
        raise Contradiction(_split(seen, shown, new.root, ()))


def unproven(seen: Seen, shown: Shown) -> Split:
    """What is kept when a log itself showed this, and no proof from the last."""
    return _split(seen, shown, b"", shown.proof)


def contradicts(one: Checkpoint, other: Checkpoint, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` leads to the root of ``other`` from another root than that of ``one``, which is
    smaller."""
    found = roots(one.size, other.size, one.root, proof)
    return found is not None and found[1] == other.root and found[0] != one.root


def is_evidence(split: Split, known: Iterable[Vkey]) -> bool:
    """Whether a split proves by itself that one of the keys that are known signed both. Never believed: a
    split without a proof."""
    keys = list(known)
    try:
        notes = [parse_note(note.encode()) for note in (split.first, split.second)]
        for note in notes:
            note.signers(keys)
        one, other = (parse_checkpoint(note.text) for note in notes)
        root = hash_of(split.root)
        proof = [hash_of(line) for line in split.proof]
    except NoteError:
        return False
    if {one.origin, other.origin} != {split.origin} or root == one.root:
        return False
    if one.size == other.size:
        return not proof and root == other.root
    return roots(one.size, other.size, root, proof) == (root, other.root)


def _before(one: Checkpoint, other: Checkpoint, proof: Sequence[bytes]) -> bytes:
    found = roots(one.size, other.size, one.root, proof)
    assert found is not None
    return found[0]


def _split(seen: Seen, shown: Shown, root: bytes, proof: Sequence[bytes]) -> Split:
    lines = tuple(b64encode(each).decode() for each in proof)
    return Split(seen.origin, seen.note, shown.data.decode(), b64encode(root).decode(), lines)
