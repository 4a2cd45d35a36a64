"""A document as a line of the ledger holds it: compressed, in letters that need no quoting."""

from __future__ import annotations

import base64
import zlib
from hashlib import sha256
from typing import Final

TEXT_MAX: Final = 64 * 1024  # bytes of a document: people read it.
PACKED_MAX: Final = 24 * 1024  # bytes, packed: it stands twice in an entry of 64 KiB.


class PackError(Exception):
    """It is too large, or is no packed document."""


class Altered(PackError):
    """It is another document than its hash says."""


def pack(text: bytes) -> str:
    """``text`` for a line. Raises PackError when it is too large."""
    if len(text) > TEXT_MAX:
        raise PackError(f"{len(text)} bytes, at most {TEXT_MAX} were expected")
    packed = base64.b64encode(zlib.compress(text, 9)).decode()
    if len(packed) > PACKED_MAX:
        raise PackError(f"{len(packed)} bytes packed, at most {PACKED_MAX} were expected")
    return packed


def unpack(packed: str) -> bytes:
    """The text that was packed. Raises PackError."""
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(base64.b64decode(packed, validate=True), TEXT_MAX + 1)
    # ValueError: base64's own.
    except (ValueError, zlib.error) as error:
        raise PackError(str(error)) from error
    if len(packed) > PACKED_MAX or len(text) > TEXT_MAX or not reader.eof or reader.unused_data:
        raise PackError(f"more than {TEXT_MAX} bytes, or cut short")
    return text


def unpack_as(packed: str, digest: str) -> bytes:
    """The text, when its SHA-256 is ``digest``, in hex. Raises PackError, Altered."""
    text = unpack(packed)
    found = sha256(text).hexdigest()
    if found != digest:
        raise Altered(f"sha256={digest}: the draft is {found}")
    return text
