"""Drafts of documents on their way into a line of the ledger."""

from __future__ import annotations

from skep.fs.errors import E, FsError
from skep.fs.shapes import Memory
from skep.namespaces.packed import TEXT_MAX, PackError, pack


def packed(draft: Memory | None, of: str) -> str:
    """The draft of ``of`` for a line. Raises FsError when there is none, or it is too large."""
    if draft is None:
        raise FsError(E.SCHEMA, f"/: there is no draft of {of}")
    try:
        return pack(draft.data.read(0, TEXT_MAX + 1))
    except PackError as error:
        raise FsError(E.TOOBIG, str(error)) from error
