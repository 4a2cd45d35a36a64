"""/dlq: dead letters, jobs that have failed and wait for somebody to decide.

    ctl                 W retry, discard; R usage
    <id>/entry.json     R the job, its code and message, the state before its end, how many attempts it had
    <id>/request.json   R what was asked for, as /jobs/<id>/request.json has it
    <id>/error          R the message alone

``code`` is what its worker called it (``nack code=``), or nacked, final, timeout, deadline, lost. In
/jobs/by-state such a job is ``failed``, and stays so: a job ends once. ``retry`` submits another one with the
topic, key, priority, labels, limits and input of the first, in its tenant and its submitter's name; it is
refused when its submitter would now be refused, by the policies or for want of a pool. ``discard`` takes the
letter away; the job's own files stay. Other tenants' letters do not exist.

    echo retry id=$(ls dlq | grep -v ctl | head -1) > dlq/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text
from skep.fs.tree import Listing
from skep.namespaces.jobs.files import request_json
from skep.namespaces.jobs.letters import TABLES, is_letter
from skep.namespaces.jobs.record import Job, visible
from skep.namespaces.live import Hive
from skep.namespaces.rows import Rows, fixed
from skep.trace.clock import rfc3339


def files(hive: Hive) -> Listing:
    """The tree of /dlq."""
    children = fixed({"ctl": Ctl(TABLES["ctl"], hive.writes("/dlq/ctl"))})

    def walk(name: str, caller: Caller) -> Any:
        job = hive.state.jobs.by_id.get(name)
        if job is None or not is_letter(hive.state.jobs, job) or not _sees(job, caller):
            return children.get(name)
        return Rows(FILES, hive, name, job.rev)

    return Listing(lambda caller: [*children, *_letters(hive, caller)], walk)


def _letters(hive: Hive, caller: Caller) -> list[str]:
    jobs = hive.state.jobs
    return [id for id in jobs.dead.get(caller.tenant, ()) if _sees(jobs.by_id[id], caller)]


def _sees(job: Job, caller: Caller) -> bool:
    return visible(job, caller.role, caller.tenant, caller.node)


def _entry(job: Job) -> str:
    request = job.request
    shown = {
        "job": job.id, "tenant": request.tenant, "submitter": request.actor, "topic": request.topic,
        "pool": request.pool, "code": job.code or "nacked", "message": job.text,
        "last_state": job.last_state, "attempts": len(job.attempts), "submitted": rfc3339(job.submitted_ns),
    }  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


def _text(render: Callable[[Job], str]) -> Callable[[Hive, str], Text]:
    return lambda hive, id: Text(lambda: render(hive.state.jobs.by_id[id]))


FILES: Final[Mapping[str, Callable[[Hive, str], Text]]] = {
    "entry.json": _text(_entry),
    "request.json": _text(request_json),
    "error": _text(lambda job: f"{job.text}\n"),
}
