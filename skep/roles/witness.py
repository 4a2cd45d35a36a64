"""A witness: follows hives, cosigns what continues what it saw, and serves what it knows.

/log/trace/witness/   as shown.py has it, and
    ctl               W clear split=<id>: go on with that log; its own user and root alone"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from skep.fs.address import Address
from skep.fs.ctl import Arg, Command, Verb, verbs
from skep.fs.errors import E, FsError, from_oserror
from skep.fs.node import Caller
from skep.fs.server import listen
from skep.fs.shapes import Ctl
from skep.namespaces.seen import Witness, WitnessError
from skep.namespaces.shown import added, files
from skep.roles.alone import Held, alone
from skep.roles.signals import told_signals
from skep.roles.uplink import Uplink
from skep.roles.witnessing import Follower, Peer, exchange
from skep.trace.clock import SystemClock
from skep.trace.note import Vkey

log = logging.getLogger("skep.witness")
LOCK: Final = "witness.lock"
_CLEAR: Final = verbs(
    Verb(
        "clear",
        (Arg("split", required=True, kind="name"),),
        "clear split=0a1b2c3d4e5f6071",
        "cosign its log again, from what was cosigned last; the notes stay",
    )
)


class Plan(NamedTuple):
    """What a witness is told. ``hives``: whom it follows; ``logs``: the keys of logs that it believes;
    ``first``: also that of a hive it follows and does not know; ``identity``: for TLS addresses in
    ``listen``."""

    directory: Path
    name: str
    hives: Sequence[Peer]
    listen: Sequence[Address]
    peers: Sequence[Peer] = ()
    logs: Sequence[Vkey] = ()
    first: bool = False
    every_s: float = 1.0


async def witness(plan: Plan, say: Callable[[str], None]) -> None:
    """Be a witness until a signal; ``say`` gets the key, a line for each address, then ``ready``.

    Raises WitnessError, FsError when a hive refuses us, OSError."""
    plan.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(plan.directory), told_signals() as told:
        found = Witness(plan.directory, plan.name, SystemClock())
        for key in plan.logs:
            found.trust(key.name, [key])
        say(f"key {found.vkey}")
        async with contextlib.AsyncExitStack() as stack:
            for address in plan.listen:
                listener = await stack.enter_async_context(listen(tree(found), address))
                say(f"serving {listener.address}")
            say("ready")
            await _until(told, plan, found)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        with alone(directory / LOCK):
            yield
    except Held as error:
        raise WitnessError(f"{directory}: another witness (pid {error}) has it") from None


async def _until(told: asyncio.Event, plan: Plan, found: Witness) -> None:
    """Return when told to; raise what ends the following of a hive."""
    followers = []
    for hive in plan.hives:
        node = "" if hive.standing is None else hive.standing().identity.name.node
        followers.append(Follower(found, Uplink(hive.address, node, hive.standing), plan.every_s, plan.first))
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(told.wait())]
    tasks += [asyncio.create_task(_followed(each, alone=len(followers) == 1)) for each in followers]
    if plan.peers:
        tasks.append(asyncio.create_task(exchange(plan.peers, followers, plan.every_s)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _followed(follower: Follower, alone: bool) -> None:
    """Until cancelled. Raises what ends it when it is ``alone``: others are not to be left for one."""
    tasks = [asyncio.create_task(follower.uplink.keep()), asyncio.create_task(follower.follow())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except (WitnessError, FsError, OSError) as error:
        if alone:
            raise
        log.error("%s is not followed any more: %s", follower.uplink.address, error)
        await asyncio.get_running_loop().create_future()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


# what it serves


def tree(found: Witness) -> dict[str, Any]:
    """The files of a witness."""
    ctl = Ctl(_CLEAR, lambda caller, commands: _cleared(found, caller, commands))
    served = files(lambda caller: found, lambda caller, said: added(found, said))
    return {"log": {"trace": {"witness": {**served, "ctl": ctl}}}}


def _cleared(found: Witness, caller: Caller, commands: list[Command]) -> list[str]:
    if not caller.principal.startswith("unix:"):
        raise FsError(E.DENIED, "rule=own-socket an operator's, by the witness's Unix socket")
    done = []
    for command in commands:
        if command.args["split"] not in found.splits:
            raise FsError(E.MISSING, command.args["split"])
        try:
            found.clear(command.args["split"])
        except OSError as error:
            raise from_oserror(error) from error
        done.append(command.args["split"])
    return done
