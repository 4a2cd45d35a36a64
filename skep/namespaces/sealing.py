"""The door of seals: staged files are hashed and put away here before the line is written, for deciding
reads no files. What the line then says of size and hash, nobody but this door can write.

What is sealed in /artifacts/ctl is staged under the name that it gets. What a job's holder seals in the job's
ctl is staged as <job>.<fence>.<name>: jobs of one node do not wait for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.artifacts.store import Put, Staged, Store
from skep.namespaces.order import actor_of

if TYPE_CHECKING:
    from skep.namespaces.live import Hive

SEAL: Final = "seal"


def owner_of(caller: Caller) -> str:
    """Whose staged files a caller sees."""
    return f"{caller.tenant}\0{actor_of(caller.principal, caller.node)}"


@asynccontextmanager
async def sealed(
    hive: Hive, caller: Caller, commands: Sequence[Command], job: str = ""
) -> AsyncIterator[Mapping[int, str]]:
    """The lines to write down within it, by their numbers, those of seal alone. ``job``: whose ctl they are
    written to. The staged names go at its end, and stay where it raises. Raises FsError."""
    with ExitStack() as sealing:
        lines, files = {}, []
        for command in commands:
            if command.verb != SEAL:
                continue
            if job and (line := _said_again(hive, caller, command, job)):
                lines[command.number] = line
                continue
            file = _staged(hive, caller, command, job, sealing)
            lines[command.number] = await _put(hive.store, command, file)
            files.append(file)
        yield lines
        for file in files:
            hive.store.settle(file)


def _name(command: Command, job: str) -> str:
    args = command.args
    return f"{job}.{args['fence']}.{args['name']}" if job else args["name"]


def _said_again(hive: Hive, caller: Caller, command: Command, job: str) -> str:
    """The line of a seal whose answer was lost: it is sealed, and staged no more. "": it is not that."""
    digest, state = command.args.get("sha256", "").removeprefix("sha256:"), hive.state
    record = state.jobs.by_id.get(job)
    if record is None or not record.was_held_by(caller.node):
        return ""
    if state.artifacts.outputs.get(job, {}).get(command.args["name"]) != digest:
        return ""
    if hive.store.has(owner_of(caller), _name(command, job)):
        return ""
    artifact = state.artifacts.by_hash.get(record.request.tenant, {}).get(digest)
    return "" if artifact is None else _line(command, Put(digest, artifact.size, artifact.chunks))


def _staged(hive: Hive, caller: Caller, command: Command, job: str, sealing: ExitStack) -> Staged:
    """The file that it seals, for as long as ``sealing`` lasts. An output has room among its job's tenant's
    bytes before it leaves those that its node's stages."""
    owner, name, store = owner_of(caller), _name(command, job), hive.store
    if not store.has(owner, name):
        raise FsError(E.USAGE, f"line {command.number}: seal: name={name}: nothing is staged under that name")
    file = sealing.enter_context(store.sealing(owner, name))
    tenant = hive.state.held_tenant(job or command.args.get("job", ""), caller.node) or caller.tenant
    if tenant != caller.tenant:
        sealing.enter_context(store.room.reserved(tenant, file.size))
    return file


async def _put(store: Store, command: Command, file: Staged) -> str:
    """The line to write down: the command with the hash and size found."""
    put = await store.put(file)
    expected = command.args.get("sha256", put.sha256).removeprefix("sha256:")
    if put.sha256 != expected:
        raise FsError(E.TAMPER, f"{command.args['name']} has sha256:{put.sha256}, not sha256:{expected}")
    return _line(command, put)


def _line(command: Command, put: Put) -> str:
    chunks = {"chunks": put.chunks} if put.chunks else {}
    return ctl.line(SEAL, command.args | {"sha256": put.sha256, "size": str(put.size)} | chunks)
