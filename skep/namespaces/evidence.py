"""What makes the ledger evidence: its tree, and the hive's signature under it.

A checkpoint is signed when it is read, for the entries that are on disk then; the root is the one that the
ledger's own verification and every commit since have come to, so a commit costs nothing more. While a key
takes over, both sign."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from skep.fs.errors import E, FsError
from skep.namespaces.live import Hive
from skep.namespaces.policy.keys import load_or_create
from skep.trace.checkpoint import Checkpoint, handover_text, origin_of
from skep.trace.note import Signing, Vkey, sign_note, signature_line
from skep.trace.proof import consistency, inclusion, is_consistent, is_included, root_of
from skep.trace.tiles import WIDTH, Tile, Tiles, pack_entries

if TYPE_CHECKING:
    from skep.namespaces.trust.record import Key

KEY_FILE: Final = "merkle.key"  # of a hive without certificates


class Evidence:
    """The tree of a hive's ledger. Tiles and proofs raise FsError(E.MISSING) for what is not there yet, and
    FsError(E.IO) when what is on the disk now is not what was signed."""

    def __init__(self, hive: Hive) -> None:
        self.hive = hive
        self.tiles = Tiles(hive.turn.ledger.leaves)
        self._own: Signing | None = None  # None: not needed yet
        self._signed: tuple[tuple[int, tuple[bytes, ...]], bytes] = ((-1, ()), b"")

    @property
    def size(self) -> int:
        return self.hive.turn.seq

    @property
    def origin(self) -> str:
        return origin_of(self.hive.state.trust.hive)

    def signing(self) -> list[Signing]:
        """The keys that sign, the newest first."""
        if self.hive.authority is not None:
            return [Signing.of(key) for key in self.hive.authority.signing_keys("merkle")]
        if self._own is None:
            signer = load_or_create(self.hive.directory / KEY_FILE)
            public = bytes.fromhex(signer.public)
            self._own = Signing(public, lambda said: bytes.fromhex(signer.sign(said)))
        return [self._own]

    def checkpoint(self) -> bytes:
        """The checkpoint of what is on disk now."""
        keys = self.signing()
        place = (self.size, tuple(key.public for key in keys))
        if self._signed[0] != place:
            self._signed = place, self._sign(self.size, self.hive.turn.root)
        return self._signed[1]

    def keys(self) -> str:
        """A line for each key that signs or has signed, the newest first: the key, its state."""
        if self.hive.authority is None:
            return f"{Vkey(self.origin, self.signing()[0].public)} active\n"
        return "".join(f"{self._vkey(key)} {_state(key)}\n" for key in self._known())

    def handovers(self) -> str:
        """The notes by which each key vouched for the next, an empty line between two."""
        known = self._known()
        notes = []
        for new, old in pairwise(known):
            if new.cross:
                text = handover_text(self.origin, self._vkey(new))
                notes.append(f"{text}\n{signature_line(self._vkey(old), bytes.fromhex(new.cross))}")
        return "\n".join(notes)

    def _known(self) -> tuple[Key, ...]:
        return self.hive.state.trust.keys.get("merkle", ())

    def _vkey(self, key: Key) -> Vkey:
        return Vkey(self.origin, bytes.fromhex(key.id))

    async def grown(self) -> None:
        """Return when the tiles know the whole tree; others get their turn meanwhile."""
        while not self.tiles.grow(self.size):
            await asyncio.sleep(0)

    async def hash_tile(self, tile: Tile) -> bytes:
        await self.grown()
        return _whole(self.tiles.tile(tile), tile.width * 32, tile)

    def entries(self, tile: Tile) -> bytes:
        """The bundle of entries of a place; memory for all of it is taken: 16 MiB at the most."""
        rows = self.hive.turn.read(tile.number * WIDTH, tile.width)
        if len(rows) != tile.width:
            raise FsError(E.MISSING, tile.path())
        return pack_entries(body for _, body in rows)

    async def inclusion(self, index: int) -> tuple[list[bytes], bytes]:
        """The path of the leaf at ``index`` in the present tree, and that tree's checkpoint."""
        await self.grown()
        size, root = self.size, self.hive.turn.root
        if not 0 <= index < size:
            raise FsError(E.USAGE, f"entry={index + 1}: the checkpoint has 1 to {size}")
        path = inclusion(index, size, self.tiles.node)
        if not is_included(index, size, self.tiles.node(0, index), path, root):
            raise FsError(E.IO, f"integrity: entry {index + 1}: its leaf hash is not in the signed tree")
        return path, self.checkpoint()

    async def consistency(self, old: int, size: int | None = None) -> tuple[list[bytes], bytes]:
        """What shows that the tree of ``size`` entries (None: the present one) continues that of ``old``, and
        its checkpoint."""
        await self.grown()
        last, root = self.size, self.hive.turn.root
        size = last if size is None else size
        if not 0 <= old <= last or size > last:
            raise FsError(E.USAGE, f"old={old}: the checkpoint has {last} entries")
        if old > size:
            raise FsError(E.USAGE, f"old={old}: expected at most the size={size} that is to continue it")
        if size < last:
            root = self._root_of(size)
        path = consistency(old, size, self.tiles.node)
        if not is_consistent(old, size, root_of(old, self.tiles.node), root, path):
            raise FsError(E.IO, f"integrity: the first {old} entries are not those of the signed tree")
        return path, self.checkpoint() if size == last else self._sign(size, root)

    def _root_of(self, size: int) -> bytes:
        """The root of the tree as it was, which is not signed again unless the present one continues it."""
        last, root = self.size, root_of(size, self.tiles.node)
        path = consistency(size, last, self.tiles.node)
        if not is_consistent(size, last, root, self.hive.turn.root, path):
            raise FsError(E.IO, f"integrity: the first {size} entries are not those of the signed tree")
        return root

    def _sign(self, size: int, root: bytes) -> bytes:
        return sign_note(Checkpoint(self.origin, size, root).text(), self.origin, self.signing())


def _state(key: Key) -> str:
    return "retired" if key.retired else "overlap" if key.until_ns else "active"


def _whole(data: bytes, size: int, tile: Tile) -> bytes:
    if len(data) != size:
        raise FsError(E.MISSING, tile.path())
    return data
