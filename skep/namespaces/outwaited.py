"""Writes that wait: a line may stand in a queue of the ledger, and its writer is answered when it is through.

What is asked for has the id of its line, and its news are told under that id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.namespaces.live import Hive

Said = tuple[str, str, str]  # a path, a line, a tenant: the hive's own line


def any_waits(commands: Sequence[Command]) -> bool:
    """Whether one of the commands may wait. Raises FsError(E.USAGE) when it is not alone in its write."""
    waiting = next((command for command in commands if "wait" in command.args), None)
    if waiting is not None and len(commands) > 1:
        said = f"{waiting.verb}: wait=: expected a write of one line, this one has {len(commands)}"
        raise FsError(E.USAGE, said)
    return waiting is not None


async def outwaited(
    hive: Hive,
    write: Awaitable[list[str]],
    waits: Callable[[str], bool],
    withdraw: Callable[[str], Said],
) -> tuple[str, str]:
    """The reply to the one line that ``write`` writes, and its id, when it ``waits`` no more.

    Cancelled, it leaves nothing behind: the hive says what ``withdraw`` gives."""
    task = asyncio.current_task()
    assert task is not None
    given_up = task.cancelling()
    (reply,) = await write
    id = reply.rpartition("trace=")[2]
    try:
        while waits(id) and task.cancelling() == given_up:
            await hive.wait_news(id)
        # A line that is being written when its writer gives up is written all the same.
        if task.cancelling() > given_up:
            raise asyncio.CancelledError
    except asyncio.CancelledError:
        await hive.withdraw(*withdraw(id))
        raise
    return reply, id
