"""Verifying a log offline: that it is whole, that its key signed it, that it continues an older checkpoint.

Every entry is hashed, every commit's root and every tile compared. An entry says its own number, so that what
was moved, put in or taken out is told apart from what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from skep.trace.checkpoint import Checkpoint, parse_checkpoint, vouched
from skep.trace.entry import leaf_hash
from skep.trace.merkle import Frontier
from skep.trace.note import Note, NoteError, UnknownSigner, Vkey
from skep.trace.rows import Edge, follow
from skep.validator.verify.found import Finding, Kind
from skep.validator.verify.sources import Batch, Row, Source


class _Numbered(msgspec.Struct):
    seq: int


_numbered = msgspec.json.Decoder(_Numbered)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be consistent. ``signers``: who of those who are trusted signed the head; none where
    heads are not signed."""

    head: Checkpoint
    signers: tuple[Vkey, ...]
    old: Checkpoint | None


def verify(source: Source, old: Note | None = None, pinned: Sequence[Vkey] = ()) -> Verified:
    """Whether the log is consistent, in itself and with the older checkpoint ``old``. Raises Finding.

    ``pinned``: the keys that are trusted, and those they hand over to. None: those that the log says are its
    own; then only ``old`` shows that somebody else did not make all of it."""
    signers, since = _check_signers(source, old, pinned)
    head = source.head
    if since is not None and since.size > head.size:
        text = f"missing: the older checkpoint has {since.size} entries, the head {head.size}"
        raise Finding(Kind.REWOUND, head.size + 1, text)
    root = _check_rows(source, since.size if since is not None else 0)
    if since is not None and since.size and root != since.root:
        text = f"the first {since.size} entries are not those that the older checkpoint was signed for"
        raise Finding(Kind.FORKED, 0, text)
    return Verified(head, tuple(signers), since)


def seq_of(body: bytes) -> int:
    """The number that an entry says it has; 0: it says none."""
    try:
        return _numbered.decode(body).seq
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0


# signatures


def _check_signers(
    source: Source, old: Note | None, pinned: Sequence[Vkey]
) -> tuple[list[Vkey], Checkpoint | None]:
    """Who signed the head, and the older checkpoint when it is this log's."""
    if source.note is None and old is None and not pinned:
        return [], None
    trusted = list(pinned) or source.keys()
    since = None
    try:
        if pinned:
            trusted = vouched(trusted, source.handovers())
        if old is not None:
            since = parse_checkpoint(old.text)
            if since.origin != source.head.origin:
                text = f"the older checkpoint is of {since.origin}, this log is {source.head.origin}"
                raise Finding(Kind.RESIGNED, 0, text)
            trusted = vouched(old.signers(trusted), source.handovers())
    except UnknownSigner as error:
        raise Finding(Kind.RESIGNED, 0, f"the older checkpoint is {error}") from error
    except NoteError as error:
        raise Finding(Kind.ALTERED, 0, f"the older checkpoint: {error}") from error
    try:
        return (source.note.signers(trusted) if source.note is not None else []), since
    except UnknownSigner as error:
        raise Finding(Kind.RESIGNED, 0, f"the checkpoint is {error}") from error
    except NoteError as error:
        raise Finding(Kind.ALTERED, 0, f"the checkpoint: {error}") from error


# entries


def _check_rows(source: Source, old_size: int) -> bytes:
    """The root of the first ``old_size`` entries, b"" where there are fewer. Raises Finding where the log
    contradicts itself."""
    edge, old_root = Edge(Frontier()), b""
    for last in (old_size, source.head.size):
        edge = source.skip(edge, last)
        if edge.frontier.size == old_size:
            old_root = edge.frontier.root()
    for rows in source.batches(edge.frontier.size):
        size = edge.frontier.size
        after = follow(edge, rows) if _numbered_from(size + 1, rows) else None
        if after is None or size < old_size < after.frontier.size:
            after, root = _check_each(source, edge, rows, old_size)
            old_root = root or old_root
        elif after.frontier.size == old_size:
            old_root = after.frontier.root()
        edge = after
    _check_end(source, edge.frontier, edge.committed)
    return old_root


def _numbered_from(first: int, rows: Batch) -> bool:
    """Whether the entries say that they have the numbers from ``first`` on."""
    return all(seq_of(row[1]) == seq for seq, row in enumerate(rows, first))


def _check_each(source: Source, edge: Edge, rows: Batch, old_size: int) -> tuple[Edge, bytes]:
    """Follow rows one by one; the edge after them, and the root at ``old_size`` when they get there."""
    frontier, committed, old_root = edge.frontier.copy(), edge.committed, b""
    for row in map(Row.of, rows):
        expected = frontier.size + 1
        if row.seq != expected:
            kind, text = (Kind.DROPPED, f"missing, entry {row.seq} is in its place")
            if row.seq < expected:
                kind, text = Kind.INSERTED, f"entry {row.seq} stands before it, where none was"
            raise Finding(kind, expected, text)
        if leaf_hash(row.body) != row.leaf or seq_of(row.body) != expected:
            raise _what_of(source, row)
        frontier.append(row.leaf)
        if row.root is not None:
            if row.since != committed or row.root != frontier.root():
                raise _what_of_commit(source, row, committed)
            committed = expected
        if frontier.size == old_size:
            old_root = frontier.root()
    return Edge(frontier, committed), old_root


def _check_end(source: Source, frontier: Frontier, committed: int) -> None:
    head = source.head
    if frontier.size < head.size:
        text = f"missing, and what came after it: the head speaks of {head.size} entries"
        raise Finding(Kind.TRUNCATED, frontier.size + 1, text)
    if source.note is None and frontier.size > committed:
        raise Finding(Kind.INSERTED, committed + 1, "no commit covers it")
    if frontier.root() != head.root:
        text = f"the tree of these {head.size} entries is not the one that was signed"
        raise Finding(Kind.FORKED, 0, text)


def _what_of(source: Source, row: Row) -> Finding:
    """What happened at the place of ``row``, whose body has another hash or number than belong there."""
    place, said = row.seq, seq_of(row.body)
    there = source.row(said) if said != place else None
    pushed = _said_behind(source, row) == place
    if said == place + 1 and pushed and not row.behind:
        # Two that changed places, or one more before both; then the next one is where it should not be.
        second = source.row(place + 1)
        pushed = second is not None and _said_behind(source, second) == place + 1
    own = leaf_hash(row.body)
    # One that agrees with its hash was not changed since it was put there.
    if pushed or (0 < said < place and own == row.leaf):
        return _put_in(source, row, said)
    if said > place and there is not None and seq_of(there.body) == place:
        return Finding(Kind.SWAPPED, place, f"entry {said} is in its place, and it in that of entry {said}")
    moved = own == row.leaf or (own == there.leaf if there is not None else said == place + 1)
    if said > place and moved:
        return Finding(Kind.DROPPED, place, f"missing, entry {said} is in its place")
    return Finding(Kind.ALTERED, place, f"leaf hash {row.leaf.hex()} is not that of its body, {own.hex()}")


def _said_behind(source: Source, row: Row) -> int:
    """The number that what stands behind ``row`` says it has; 0: nothing does, or it says none."""
    if row.behind:
        return seq_of(row.behind)
    after = source.row(row.seq + 1)
    return seq_of(after.body) if after is not None else 0


def _put_in(source: Source, row: Row, said: int) -> Finding:
    """What was put in: this entry, or the one before it when both say the same number."""
    before = source.row(said) if said == row.seq - 1 else None
    if before is not None and before.body != row.body:
        return Finding(Kind.INSERTED, said, f"the next one says that it is entry {said}, too")
    return Finding(Kind.INSERTED, row.seq, f"it says that it is entry {said}, and those after it are moved")


def _what_of_commit(source: Source, row: Row, committed: int) -> Finding:
    """What happened among the entries of a commit, each of which agrees with its own hash."""
    if row.since != committed:
        text = f"its commit begins after entry {row.since}, the one before ended with {committed}"
        return Finding(Kind.ALTERED, row.seq, text)
    after = source.row(row.seq + 1)
    if after is not None and seq_of(after.body) == row.seq:
        return _put_in(source, after, row.seq)
    text = f"the entries from here to {row.seq} are not those of their commit: its root is another"
    return Finding(Kind.ALTERED, committed + 1, text)
