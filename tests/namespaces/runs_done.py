"""Runs of a living hive that are jobs: asked for at a door, and done by whoever has the role."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import msgspec
import pytest
from door import Door, say
from hives import ANN, Living

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.tree import hive_tree


class Running(Living):
    """A living hive, and the door of each caller."""

    def __init__(self, alive: Living) -> None:
        super().__init__(alive.hive, alive.clock)
        self.tree = hive_tree(alive.hive)
        self.ann = self.door(ANN)

    def door(self, caller: Caller) -> Door:
        return Door(self.tree, caller)

    async def leased(self, run: str, pool: str, who: Caller) -> int:
        """The fence of the run, which ``who`` has begun."""
        await self.hive.join(who)
        assert run == (await self.write(f"/pools/{pool}/next", "lease", who=who))[0]
        fence = self.state.jobs.by_id[run].fence
        await self.write(f"/jobs/{run}/ctl", f"start fence={fence}", who=who)
        return fence

    async def end(
        self, run: str, fence: int, who: Caller, verdict: str, files: Mapping[str, str], more: str = ""
    ) -> None:
        """Seal the outputs, each with ``more``, and say that it is done."""
        door = self.door(who)
        for file, content in files.items():
            staged = await door.create("/artifacts/stage", file)
            await say(staged, content)
            await staged.clunk()
            await door.write("/artifacts/ctl", f"seal name={file} job={run}{more}")
        said = msgspec.json.encode({"verb": "ack", "fence": fence, "result": verdict}).decode()
        await self.write(f"/jobs/{run}/ctl", said, who=who)


async def refused(doing: Awaitable[object]) -> E:
    with pytest.raises(FsError) as caught:
        await doing
    return caught.value.kind
