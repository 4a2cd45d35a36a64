"""/dlq: dead letters, jobs that have failed and wait for somebody to decide.

    ctl                 W retry, discard; R usage
    <id>/entry.json     R the job, its code and message, the state before its end, how many attempts it had
    <id>/request.json   R what was asked for, as /jobs/<id>/request.json has it
    <id>/error          R the message alone
    undecodable/        writes to /jobs/ctl and /jobs/clone that are no commands
    undecodable/<id>/entry.json  R who wrote it and what is wrong; the length and the hash of all
    undecodable/<id>/data        R its first 4096 bytes, as they were
    undecodable/<id>/error       R what its writer was told

``code`` is what its worker called it (``nack code=``), or nacked, final, timeout, deadline, budget, lost. In
/jobs/by-state such a job is ``failed``, and stays so: a job ends once. ``retry`` submits another one with the
whole request of the first, its envelope and its input, in its tenant and its submitter's name; it is
refused when its submitter would now be refused, by the policies or for want of a pool. ``discard`` takes the
letter away; the job's own files stay. Other tenants' letters do not exist.

What is not UTF-8, or no command at all, is kept too, when its writer may have that done, who is told all the
same. Of a tenant's there are 64, the first that came, until they are discarded; ``retry`` refuses them.

    echo retry id=$(ls dlq | grep ^0 | head -1) > dlq/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from skep.fs.chan import settle
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text
from skep.fs.tree import Listing, Paged
from skep.namespaces.checked import vouched, vouched_line
from skep.namespaces.dlq import unread
from skep.namespaces.jobs.envelope import arguments
from skep.namespaces.jobs.files import request_json
from skep.namespaces.jobs.letters import TABLES, with_request
from skep.namespaces.jobs.names import Shelf, job_of, locate, own_jobs, pages, read
from skep.namespaces.jobs.record import Job
from skep.namespaces.live import Hive
from skep.namespaces.packed import PackError
from skep.namespaces.rows import Rows, fixed
from skep.trace.clock import rfc3339


def files(hive: Hive) -> Listing:
    """The tree of /dlq."""
    ctl = Ctl(TABLES["ctl"], lambda caller, commands: _command(hive, caller, commands))
    children = fixed({"ctl": ctl, "undecodable": unread.files(hive)})

    async def letter(name: str, caller: Caller) -> Any:
        place = await settle(locate(hive, name, caller))
        if place is None or name not in hive.state.jobs.dead.get(place.tenant, {}):
            return None
        rows = Rows(FILES, hive, name, place.rev)
        rows.number = Shelf.DEAD.path(place.number)
        return rows

    def listed(caller: Caller, after: int, limit: int) -> Sequence[tuple[int, str]]:
        dead = hive.state.jobs.dead.get(caller.tenant, {})
        while dead and (rows := hive.history.listed(caller.tenant, after, limit, "failed")):
            if found := [row for row in rows if row[1] in dead]:
                return found
            after = rows[-1][0]
        return []

    def own(caller: Caller) -> Iterable[tuple[int, str]]:
        dead = hive.state.jobs.dead.values()
        return (row for row in own_jobs(hive, caller, "failed") if any(row[1] in some for some in dead))

    return Paged(
        pages(hive, Shelf.DEAD, listed, own, children),
        lambda name, caller: children.get(name) or letter(name, caller),
    )


async def _command(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Write them, each with what the door knows of its letter."""
    lines = [vouched_line(command, await _besides(hive, caller, command)) for command in commands]
    return await hive.command(caller, "/dlq/ctl", lines)


async def _besides(hive: Hive, caller: Caller, command: Command) -> dict[str, str]:
    """The letter's request where that has left memory; of a retry, by what its artifact is good."""
    id, letters = command.args["id"], hive.state.jobs.dead.get(caller.tenant, {})
    if id not in letters:
        return {}
    request = (await job_of(hive, id)).job.asked
    try:
        more = {} if letters[id] is None else with_request(request)
    except PackError as error:
        raise FsError(E.TOOBIG, str(error)) from error
    if command.verb == "retry":
        more |= await vouched(hive, caller.tenant, arguments(request))
    return more


def _entry(job: Job) -> str:
    request = job.request
    shown = {
        "job": job.id, "tenant": request.tenant, "submitter": request.actor, "topic": request.topic,
        "pool": request.pool, "code": job.code or "nacked", "message": job.text,
        "last_state": job.last_state, "attempts": len(job.attempts), "submitted": rfc3339(job.submitted_ns),
    }  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


def _text(render: Callable[[Job], str]) -> Callable[[Hive, str], Text]:
    return lambda hive, id: Text(lambda: read(hive, id, lambda found: render(found.job)))


FILES: Final[Mapping[str, Callable[[Hive, str], Text]]] = {
    "entry.json": _text(_entry),
    "request.json": _text(request_json),
    "error": _text(lambda job: f"{job.text}\n"),
}
