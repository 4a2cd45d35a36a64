"""Connections that are cut while they attach: nothing of them stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from skep.fs.conversation import Peer
from skep.fs.messages import NOFID, Dialect, Tattach
from skep.namespaces.hive import WORKER
from skep.namespaces.tree import hive_tree
from skep.roles.gate import Door, Doorkeeper
from skep.roles.manifest import load
from tests.fs.grounds import Raw
from tests.namespaces.hives import Living, living

HERE = Peer("unix", uid=os.getuid(), gid=os.getgid(), pid=4711)


async def come(alive: Living) -> tuple[Raw, Door]:
    """A worker at the door, who has not attached."""
    keeper = Doorkeeper(alive.hive, hive_tree(alive.hive), load(WORKER))
    raw = Raw(None, HERE)  # type: ignore[arg-type]
    door = raw.conversation.gate = keeper.greet(raw.conversation)
    await raw.version(Dialect.U)
    return raw, door


def cut(raw: Raw, door: Door) -> None:
    """As the server tells it."""
    raw.conversation.lost()
    door.left()


@pytest.mark.parametrize("steps", range(6))
def test_a_connection_cut_while_it_attaches_leaves_no_session(tmp_path: Path, steps: int) -> None:
    async def story() -> None:
        async with living(tmp_path) as alive:
            raw, door = await come(alive)
            # The second and the third wait for the first, which waits for the ledger.
            raw.say(*((tag, Tattach(tag, NOFID, "w3", "")) for tag in range(3)))
            for _ in range(steps):
                await asyncio.sleep(0)
            cut(raw, door)
            await alive.hive.say("/", "start")  # what was begun before has been written down
            while raw.conversation.busy:
                await asyncio.sleep(0)
            assert ({}, {}) == (alive.hive.sessions.by_id, door.sessions)
            assert not alive.hive.sessions.of_principal
            assert not alive.hive.limits._held

    asyncio.run(story())
