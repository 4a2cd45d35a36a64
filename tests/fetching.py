"""A hive's log fetched whole over 9P, as anybody may who keeps a copy."""

from __future__ import annotations

from pathlib import Path

from skep.fs.dial import Client
from skep.trace.tiles import Tile, tiles_of

TRACE = "/log/trace"


async def fetched(address: str, trace: Path) -> Path:
    """``trace``, in which the log is now: checkpoint, keys, handovers, tiles and bundles."""
    async with await Client.connect(address) as client:
        checkpoint = await client.read_file(f"{TRACE}/checkpoint")
        tiles = list(tiles_of(int(checkpoint.split()[1])))
        bundles = [Tile(None, tile.number, tile.width) for tile in tiles if tile.level == 0]
        for name in ("keys", "handovers", *(f"tile/{tile.path()}" for tile in (*tiles, *bundles))):
            (trace / name).parent.mkdir(parents=True, exist_ok=True)
            (trace / name).write_bytes(await client.read_file(f"{TRACE}/{name}"))
        # Last: a directory with a checkpoint has what it speaks of.
        (trace / "checkpoint").write_bytes(checkpoint)
    return trace
