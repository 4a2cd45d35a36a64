"""The hashes of an artifact's pieces: what lets a read of a few bytes be checked without reading the rest.

A manifest is ``chunk[4] (sha256[32])*``, chunk little-endian in bytes; its own SHA-256 stands in the ledger,
so it can be lost, and made again from the bytes, but not exchanged. Bytes that fit in one chunk need none:
their name is the hash of the only chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final, NamedTuple

from skep.fs.errors import E, FsError

CHUNK: Final = 256 * 1024  # bytes: hashed in 0.15 ms, and the hashes of a terabyte are 128 MiB.
STEP: Final = 16 * 1024 * 1024  # bytes hashed in one go on a thread: some ten milliseconds.
_HASH: Final = 32  # bytes
_HEAD: Final = 4  # bytes


class Chunks(NamedTuple):
    """The hash of each ``length`` bytes of what ``name`` names, one after the other."""

    name: str
    length: int
    hashes: bytes

    def pack(self) -> bytes:
        return self.length.to_bytes(_HEAD, "little") + self.hashes

    @property
    def root(self) -> str:
        """The hash of the manifest, in hex; "": the name says all."""
        return "" if self.hashes == bytes.fromhex(self.name) else sha256(self.pack()).hexdigest()

    def check(self, k: int, data: bytes | memoryview) -> None:
        """Raises FsError(E.TAMPER) when ``data`` is not the k-th chunk."""
        if sha256(data).digest() != self.hashes[k * _HASH : (k + 1) * _HASH]:
            raise FsError(
                E.TAMPER, f"sha256:{self.name}: the bytes at {k * self.length} are not what was sealed"
            )


def single(name: str) -> Chunks:
    """The chunks of bytes that are one chunk, or none."""
    return Chunks(name, CHUNK, bytes.fromhex(name))


def unpack(name: str, packed: bytes, root: str) -> Chunks | None:
    """The manifest whose hash is ``root``; None: these bytes are not."""
    if sha256(packed).hexdigest() != root:
        return None
    return Chunks(name, int.from_bytes(packed[:_HEAD], "little"), packed[_HEAD:])


def manifest_size(size: int) -> int:
    """Bytes of the manifest of so many bytes."""
    return _HEAD + -(-size // CHUNK) * _HASH


async def measure(read: Callable[[int, int], Awaitable[bytes]]) -> tuple[Chunks, int]:
    """The chunks and the size of what ``read(offset, count)`` gives until it gives nothing."""
    whole, hashes, size = sha256(), bytearray(), 0
    while data := await read(size, STEP):
        size += len(data)
        # Both on threads: hashing lets others run.
        found, _ = await asyncio.gather(
            asyncio.to_thread(_hashes, data), asyncio.to_thread(whole.update, data)
        )
        hashes += found
    name = whole.hexdigest()
    return (single(name) if size <= CHUNK else Chunks(name, CHUNK, bytes(hashes))), size


def _hashes(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(sha256(view[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))
