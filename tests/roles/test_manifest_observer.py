"""An observer reads all it can find in a hive, and nothing has happened."""

from __future__ import annotations

import stat

from skep.fs.chan import Chan
from skep.fs.errors import FsError
from skep.fs.node import How
from skep.namespaces.tree import hive_tree
from skep.roles.manifest import load
from skep.roles.view import Names
from tests.namespaces.hives import EYE, Living, live

NAMES: Names = dict.fromkeys(("node", "leased", "input", "own", "annex"), lambda name: False)
DEPTH_MAX = 6


async def read_all(chan: Chan, depth: int = 0) -> list[str]:
    """The paths of the files below that may be opened, each read once where that does not wait."""
    attr = await chan.attr()
    if not stat.S_ISDIR(attr.mode):
        try:
            await chan.open(How(read=True))
        except FsError:
            return []
        if not chan.waits:
            await chan.read(0, 65536)
        await chan.clunk()
        return [chan.path]
    listing = chan.clone()
    await listing.open(How(read=True))
    found: list[str] = []
    for entry in await listing.entries():
        below, _ = await chan.child(entry.name)
        found += await read_all(below, depth + 1) if depth < DEPTH_MAX else []
    await listing.clunk()
    return found


def test_what_an_observer_reads_changes_nothing() -> None:
    async def look(hive: Living) -> None:
        job = await hive.submit("input=x")
        seq = hive.hive.turn.seq
        root = Chan(hive_tree(hive.hive), EYE, load("observer").view(NAMES))
        found = await read_all(root)
        assert f"/jobs/{job}/state" in found
        assert "/whoami" in found
        assert not any(word in path.split("/") for path in found for word in ("clone", "next", "secrets"))
        assert not any(path.startswith(("/trust/tokens", "/trust/enroll")) for path in found)
        assert ("queued", seq) == (hive.job_state(job), hive.hive.turn.seq)

    live(look)
