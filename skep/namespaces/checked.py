"""The door of submits: artifacts that are inputs of topics with a schema are checked here, before the line
is written, for deciding reads no files. What the line then says, nobody but this door can write.

Triggers that fire and retries of dead letters are submits too, and come by here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from skep.fs import ctl
from skep.fs.chan import asked
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.artifacts.core import Artifact
from skep.namespaces.artifacts.store import Put
from skep.namespaces.jobs.contract import CHECKED_MAX, request_schema, vouching
from skep.namespaces.jobs.envelope import scope_of
from skep.namespaces.jobs.verbs import ADOPT, SUBMIT
from skep.trace.rules import Refusal

if TYPE_CHECKING:  # it comes by here itself, when triggers fire
    from skep.namespaces.live import Hive


KNOWN_MAX: Final = 4096  # answers that are kept: a MiB that is checked holds everybody up.


class Answer(NamedTuple):
    """The version that bytes are good by, or why they are good by none."""

    version: str = ""
    why: str = ""


async def checked(hive: Hive, caller: Caller, commands: Sequence[Command]) -> list[str]:
    """The commands' lines, to be written as the caller. Raises FsError(E.SCHEMA) with the place."""
    return [
        vouched_line(command, await vouched(hive, caller.tenant, command.args))
        if _submits(command)
        else command.text
        for command in commands
    ]


def _submits(command: Command) -> bool:
    return command.verb == SUBMIT.name or (command.verb == ADOPT.name and "end" not in command.args)


def vouched_line(command: Command, more: Mapping[str, str]) -> str:
    """The command's line with what the door says."""
    return ctl.line(command.verb, {**command.args, **more}) if more else command.text


async def vouched(hive: Hive, tenant: str, args: Mapping[str, str]) -> dict[str, str]:
    """What the door adds to a line that comes to a submit with these arguments. Raises FsError(E.SCHEMA) with
    the place. What else is wrong with it is told when it is decided."""
    state = hive.state
    name = args.get("input", "").removeprefix("artifact:")
    if args.get("input", "") != name:
        at, digest = "/input", state.artifact_named(tenant, name) or ""
    else:
        at, digest = "/artifact", args.get("artifact", "").removeprefix("sha256:")
    artifact = state.artifacts.by_hash.get(tenant, {}).get(digest)
    try:
        scope = scope_of(tenant, args.get("workflow", ""), args.get("step", ""))
        schema = request_schema(state, scope, args["topic"]) if artifact is not None else None
    except Refusal:
        return {}
    if artifact is None or schema is None:
        return {}
    if artifact.size > CHECKED_MAX:
        raise FsError(E.SCHEMA, f"{at}: {artifact.size} bytes, at most {CHECKED_MAX} can be checked")
    return vouching(await _version(hive, tenant, schema, at, artifact), digest)


async def _version(hive: Hive, tenant: str, schema: str, at: str, artifact: Artifact) -> str:
    """The version of the schema that the artifact is good by. Raises FsError(E.SCHEMA) with the place.

    The same bytes are the same by the same version, however often they are asked about."""
    try:
        key = tenant, artifact.sha256, hive.state.schema_version(schema, at), at
    except Refusal as error:
        raise FsError(E.SCHEMA, detail_of(E.SCHEMA, error.text)) from error
    answer = hive.vouched.get(key)
    if answer is None:
        data = await _read(hive, Put(artifact.sha256, artifact.size, artifact.chunks))
        try:
            answer = Answer(hive.state.checked_by(schema, data, at))
        except Refusal as error:
            answer = Answer(why=detail_of(E.SCHEMA, error.text))
        hive.vouched[key] = answer
        if len(hive.vouched) > KNOWN_MAX:
            del hive.vouched[next(iter(hive.vouched))]
    if answer.why:
        raise FsError(E.SCHEMA, answer.why)
    return answer.version


def detail_of(kind: E, text: str) -> str:
    """A refusal's text without what every error of its kind begins with."""
    return text.removeprefix(kind.value.text).removeprefix(": ")


async def _read(hive: Hive, put: Put) -> bytes:
    """All of its bytes, which have been checked by their hash."""
    reading = hive.store.reading(put)
    try:
        found = bytearray()
        while piece := await asked(reading.read(len(found), put.size - len(found))):
            found += piece
    finally:
        reading.close()
    return bytes(found)
