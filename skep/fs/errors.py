"""What can go wrong with a file: one table of classes, each with its text, errno and HTTP status.

Source: the error table of docs/NAMESPACE.md; errno values are Linux's on every host.
"""

from __future__ import annotations

import enum
import re
from typing import Final, NamedTuple


class Kind(NamedTuple):
    """How one class of error is told: the text's fixed beginning, the Linux errno, the HTTP status."""

    text: str
    errno: int
    http: int


class E(enum.Enum):
    """The classes of errors. The upper rows are the tree's contract, the lower ones a host file system's."""

    MISSING = Kind("file does not exist", 2, 404)
    DENIED = Kind("permission denied", 13, 403)
    READONLY = Kind("operation not permitted", 1, 405)
    UNAUTHENTICATED = Kind("not authenticated", 1, 401)
    APPROVAL = Kind("approval required", 115, 202)
    USAGE = Kind("usage", 22, 400)
    SCHEMA = Kind("schema", 22, 422)
    CONFLICT = Kind("conflict", 116, 409)
    ILLEGAL_MOVE = Kind("illegal move", 116, 409)
    EXISTS = Kind("file exists", 17, 409)
    IDEMPOTENCY = Kind("idempotency mismatch", 17, 409)
    BUSY = Kind("exclusive lock", 16, 423)
    FENCED = Kind("fenced", 130, 409)
    QUOTA = Kind("quota exceeded", 122, 429)
    THROTTLED = Kind("throttled", 11, 429)
    TOOBIG = Kind("too large", 27, 413)
    GONE = Kind("gone", 61, 410)
    NOROUTE = Kind("no_pool_mapping", 6, 503)
    NOWORKER = Kind("no_workers", 19, 503)
    OVERLOAD = Kind("pool_overloaded", 105, 503)
    UNSIGNED = Kind("signature", 129, 401)
    EXPIRED = Kind("expired", 127, 401)
    REVOKED = Kind("revoked", 128, 401)
    DEADLINE = Kind("deadline exceeded", 110, 504)
    CANCELLED = Kind("interrupted", 125, 499)
    TAMPER = Kind("integrity", 74, 500)
    VERSION = Kind("unsupported version", 93, 400)

    NOSPACE = Kind("no space left on device", 28, 507)
    IO = Kind("i/o error", 5, 500)
    BADF = Kind("unknown fid", 9, 400)
    INVALID = Kind("invalid argument", 22, 400)
    NOTDIR = Kind("not a directory", 20, 409)
    ISDIR = Kind("is a directory", 21, 409)
    NOTEMPTY = Kind("directory not empty", 39, 409)
    NAMETOOLONG = Kind("file name too long", 36, 400)
    LOOP = Kind("symbolic link", 40, 409)
    NODATA = Kind("no such attribute", 61, 404)
    NOTSUP = Kind("operation not supported", 95, 501)
    PROTO = Kind("protocol error", 71, 400)
    INTR = Kind("interrupted", 4, 499)


# What an errno alone says; where several classes share one, a host file system's meaning.
_BY_ERRNO = {kind.value.errno: kind for kind in reversed(E)} | {
    1: E.READONLY, 4: E.INTR, 11: E.THROTTLED, 16: E.BUSY, 17: E.EXISTS, 22: E.INVALID, 38: E.NOTSUP,
    61: E.NODATA,
}  # fmt: skip


# What is refused because of who asks, or how often: each is recorded. The other classes are mistakes.
DENIALS: Final = frozenset({
    E.DENIED, E.READONLY, E.UNAUTHENTICATED, E.APPROVAL, E.QUOTA, E.THROTTLED, E.UNSIGNED, E.EXPIRED,
    E.REVOKED,
})  # fmt: skip


class FsError(Exception):
    """One refused or failed file operation, as every door tells it.

    ``detail`` follows the class's fixed text after ``: ``. ``errno`` overrides the class's own number where
    a host file system gave a more exact one. ``trace`` is the ledger's id of the refusal, shown at the
    text's end except for MISSING, where what is hidden and what does not exist must answer alike.
    ``hidden``, with MISSING: it may exist, but not for this caller. No answer differs by it.
    """

    def __init__(
        self,
        kind: E,
        detail: str = "",
        *,
        errno: int | None = None,
        trace: str | None = None,
        hidden: bool = False,
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
        self.errno = kind.value.errno if errno is None else errno
        self.trace = trace
        self.hidden = hidden
        self.told = trace is not None  # whether the refusal is recorded already

    @property
    def text(self) -> str:
        """The line 9P2000 sends."""
        text: str = self.kind.value.text
        if self.kind is E.MISSING:
            return text
        if self.detail:
            text = f"{text}: {self.detail}"
        return f"{text} trace={self.trace}" if self.trace else text

    def __str__(self) -> str:
        return self.text


def from_oserror(error: OSError) -> FsError:
    """The FsError that tells an ``OSError``: its errno is kept, whatever class it falls in."""
    number = error.errno or E.IO.value.errno
    kind = _BY_ERRNO.get(number, E.IO)
    detail = "" if kind.value.errno == number else (error.strerror or "")
    return FsError(kind, detail, errno=number)


_TRACE: Final = re.compile(r"(?:^| )trace=([0-9A-Z]{26})$")


def from_reply(text: str, errno: int | None) -> FsError:
    """The FsError a server's answer stands for, as clients see it: by its text first, else by its errno."""
    for kind in E:
        fixed = kind.value.text
        if text == fixed or text.startswith((fixed + ":", fixed + " ")):
            detail = text[len(fixed) :].removeprefix(":").strip()
            found = _TRACE.search(detail)
            return FsError(kind, detail[: found and found.start()], errno=errno, trace=found and found[1])
    kind = _BY_ERRNO.get(errno or 0, E.IO)
    return FsError(kind, text, errno=errno)
