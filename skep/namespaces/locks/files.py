"""/locks: who may go on alone, or together with whom, and until when.

    ctl               W acquire, renew, release; R usage, after a write its reply
    check             W name= fence=; R ok. The write fails with fenced when that grant holds no more
    <name>/state      R free, shared, exclusive
    <name>/holders    R a line for each: fence, mode=, holder=, since=, until=, session= if it ends with one
    <name>/waiters    R a line for each in the queue, the next one first: mode=, holder=, since=, until=

acquire gives a fence, a number that rises with every grant. A lock in mode x is held by one, in mode s by
several. Held otherwise, acquire fails with exclusive lock: holder= until=, at once or, with wait=, when it
has stood in the queue so long; within half a second. Nobody overtakes: a shared one behind an exclusive one
that waits, waits. The write of an acquire that waits is answered when it is granted or refused; given up
(^C, the connection ends), it is out of the queue.

A grant ends at its time unless it is renewed, when it is released, and, asked for with session=true, when
the session ends that asked. All are ended by a restart of the hive that have a session, and its queues.
Only who acquired may renew and release: the same principal on the same node.

A grant that has ended is only known to have: who is late must be stopped where it writes. A store that keeps
the highest fence it has seen, refuses lower ones; one that keeps none asks check.

A lock exists for its tenant, from its first acquire on. A tenant's fences are counted together, and never
start again, whatever is released, forgotten or restarted.

    echo acquire name=db mode=x ttl=30s wait=5s > locks/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from skep.fs import ctl
from skep.fs.ctl import Command, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.live import Hive
from skep.namespaces.locks.core import ACQUIRE, FENCE, NAME, VERBS, WAITING, Holder, Lock, Waiter
from skep.namespaces.outwaited import Said, any_waits, outwaited
from skep.namespaces.rows import Rows, fixed
from skep.trace.clock import rfc3339

PATH: Final = "/locks/ctl"
CHECK: Final = ctl.verbs(Verb("check", (NAME, FENCE)))


def files(hive: Hive) -> Listing:
    """The tree of /locks."""
    children = fixed(
        {
            "ctl": Ctl(VERBS, lambda caller, commands: run(hive, caller, commands)),
            "check": Transaction(lambda caller, said: check(hive, caller, said)),
        }
    )

    def walk(name: str, caller: Caller) -> Any:
        lock = hive.state.locks.find(caller.tenant, name)
        return children.get(name) if lock is None else Rows(FILES, hive, name, lock.rev)

    return Listing(lambda caller: [*children, *hive.state.locks.by_tenant.get(caller.tenant, ())], walk)


# commands


async def run(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands; returns when they are done, and an acquire that waits has been granted."""
    waits = any_waits(commands)
    lines = [_line(hive, caller, command) for command in commands]
    if not waits:
        return await _write(hive, caller, lines)
    return [await _acquire(hive, caller, commands[0].args["name"], lines[0])]


def _line(hive: Hive, caller: Caller, command: Command) -> str:
    """The command as it is written down: with the session's id, which nobody else's line can have."""
    args = dict(command.args)
    if command.verb != ACQUIRE.name or args.pop("session", "false") == "false":
        return ctl.line(command.verb, args)
    if hive.sessions.of(caller) is None:
        raise FsError(E.USAGE, f"line {command.number}: acquire: session=true: there is no session")
    return ctl.line(command.verb, args | {"session": caller.session})


async def _write(hive: Hive, caller: Caller, lines: Sequence[str]) -> list[str]:
    try:
        return await hive.command(caller, PATH, lines)
    finally:
        # After it: a session that ended meanwhile is looked for once more.
        hive.lock_ends.note(caller)


async def _acquire(hive: Hive, caller: Caller, name: str, line: str) -> str:
    """The reply to an acquire that may wait. Cancelled, it leaves nothing behind."""

    def waits(waiter: str) -> bool:
        return _lock(hive, caller, name).waits(waiter)

    def withdraw(waiter: str) -> Said:
        return f"/locks/{name}", f"withdraw waiter={waiter}", caller.tenant

    reply, waiter = await outwaited(hive, _write(hive, caller, [line]), waits, withdraw)
    if not reply.startswith(f"{WAITING} "):
        return reply
    lock = _lock(hive, caller, name)
    holder = lock.granted_to(waiter)
    if holder is None:
        raise FsError(E.BUSY, lock.busy(), trace=waiter)
    return f"{holder.fence} rev={lock.rev} trace={waiter}"


# questions


def check(hive: Hive, caller: Caller, said: bytes) -> str:
    """``ok`` when the grant holds now. Raises FsError(E.FENCED)."""
    command = ctl.parse_line(f"check {said.decode('utf-8', 'replace').strip()}")
    ctl.check(command, CHECK)
    name, fence = command.args["name"], int(command.args["fence"])
    # Another process of this hive may have granted it.
    hive.turn.refresh()
    if why := hive.state.locks.why_fenced(caller.tenant, name, fence, hive.clock.now_ns()):
        raise FsError(E.FENCED, why)
    return "ok\n"


# one lock


def _lock(hive: Hive, caller: Caller, name: str) -> Lock:
    """The lock. Raises FsError(E.MISSING) when it was forgotten since it was walked to."""
    lock = hive.state.locks.find(caller.tenant, name)
    if lock is None:
        raise FsError(E.MISSING, name)
    return lock


def _text(render: Callable[[Lock], str]) -> Callable[[Hive, str], Text]:
    """A row rendered from the lock's record when opened."""
    return lambda hive, name: Text(lambda caller: render(_lock(hive, caller, name)))


def _holder(holder: Holder) -> str:
    asked = holder.asked
    session = f" session={asked.session}" if asked.session else ""
    times = f"since={rfc3339(holder.since_ns)} until={rfc3339(holder.until_ns)}"
    return f"{holder.fence} mode={asked.mode} holder={asked.actor} {times}{session}\n"


def _waiter(waiter: Waiter) -> str:
    asked = waiter.asked
    times = f"since={rfc3339(waiter.since_ns)} until={rfc3339(asked.until_ns)}"
    return f"mode={asked.mode} holder={asked.actor} {times}\n"


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "state": _text(lambda lock: f"{lock.state}\n"),
    "holders": _text(lambda lock: "".join(map(_holder, lock.holders))),
    "waiters": _text(lambda lock: "".join(map(_waiter, lock.waiters))),
}
