"""The afid a token is written to: what Tauth gives, and attach then shows.

The token may come in pieces, at their offsets. It is looked at when the afid is shown, not before: then it is
whole, and then it is known for whom. Nothing can be read back.

Source: Plan 9 manual, attach(5).
"""

from __future__ import annotations

import stat
from typing import Final

from skep.fs.chan import EVERYTHING, Chan
from skep.fs.errors import E, FsError
from skep.fs.messages import QT, Qid
from skep.fs.node import Attr, Caller, Handle, How, Node, new_path
from skep.namespaces.tokens.biscuit import TOKEN_MAX

WRITTEN_MAX: Final = TOKEN_MAX * 4 // 3 + 64  # as base64, and with the newline that editors add
AFIDS_MAX: Final = 8  # open at one time on one connection

_NOBODY: Final = Caller("", "")


class Afids:
    """The afids of one connection."""

    def __init__(self) -> None:
        self.open = 0

    def chan(self) -> Chan:
        """A new one, open for reading and writing. Raises FsError(E.QUOTA)."""
        if self.open >= AFIDS_MAX:
            raise FsError(E.QUOTA, f"afids have={self.open} max={AFIDS_MAX}")
        chan = Chan(_Afid(), _NOBODY, EVERYTHING)
        chan.handle, chan.how = _Written(self), How(read=True, write=True)
        self.open += 1
        return chan


def written(afid: Chan) -> bytes:
    """What was written to an afid."""
    assert isinstance(afid.handle, _Written), "auth gives no other"
    return bytes(afid.handle.data)


class _Afid(Node):
    def __init__(self) -> None:
        self.path = new_path()

    def attr(self, caller: Caller) -> Attr:
        return Attr(Qid(int(QT.AUTH), 0, self.path), stat.S_IFREG | 0o600)


class _Written(Handle):
    takes_secrets = tells_secrets = True

    def __init__(self, afids: Afids) -> None:
        self.afids = afids
        self.data = bytearray()

    def read(self, offset: int, count: int) -> bytes:
        return b""

    def write(self, offset: int, data: memoryview) -> int:
        if offset + len(data) > WRITTEN_MAX:
            raise FsError(E.TOOBIG, f"max={WRITTEN_MAX}")
        if offset > len(self.data):
            raise FsError(E.INVALID, f"offset {offset}: {len(self.data)} bytes are here")
        self.data[offset : offset + len(data)] = data
        return len(data)

    def close(self) -> None:
        self.afids.open -= 1
