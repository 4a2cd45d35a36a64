"""/validator: does the ledger tell the truth?

    ctl               W verify, replay, diff; R usage. The reply is the run's id
    <id>/             a run, which is a job of the pool validator
        asked.json    R what was asked, by whom, one JSON line
        state         R as the job's: queued, leased, running, succeeded (it ran to its end, whatever it
                      found), failed, cancelled
        wait          R blocks until the run has ended, gives its state
        verdict       R in one line what was found: consistent …, same …, different …, integrity: …; that it
                      failed, and why; empty before the end
        diff          R what was found, a line each; empty when all is as it should be, and before the end
        progress      R percent, msg (how far, entries a second) and time as last reported

Who runs it is a validator (`skep validator`): a process that reads the log as any outsider does, tiles and
entries under the signed checkpoint, believes none of it, and remembers the checkpoint of its last run, so
that one that was rewound or forked since is found. Without one, runs wait. A validator that dies is
followed by another, and a run ends once.

`verify` is `skep verify` of the log as it is; `replay` is that and then `skep replay`: every line decided
again. With `policy=` every line is also decided with that bundle's draft in the place of the live one.
`diff` is `skep diff` of two recorded conversations or two snapshots of /log/trace.

Reports are /log/validator/<id>.json, and stay for seven years (artifacts of the class audit). Runs are the
hive's own tenant's, for who may read the trace; what differs, and the reports, are for auditors alone. Runs
that have left memory are found by their id and listed no more; /log/validator lists every report.

    echo replay from=1 to=1000 > validator/ctl
    cat validator/01JD…/wait validator/01JD…/verdict
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Handle, How
from skep.fs.shapes import Ctl
from skep.fs.tree import Listing
from skep.namespaces.follow import AUDITORS, TRACERS
from skep.namespaces.jobs import files as jobs
from skep.namespaces.jobs.history import Found
from skep.namespaces.jobs.names import job_of
from skep.namespaces.jobs.record import Job
from skep.namespaces.jobs.verbs import ID
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.ordered import Output, output, text_of, verdict
from skep.namespaces.policy.bundle import BundleError
from skep.namespaces.pools.core import Made
from skep.namespaces.rows import Rows, fixed
from skep.namespaces.validator.runs import (
    COMPARED,
    LINES,
    POOL,
    TOPICS,
    VERBS,
    Asked,
    report_name,
    reported,
    submit_line,
)
from skep.trace.clock import rfc3339

Packed = Callable[[str], str]
"""The draft of a bundle by its name, packed. Raises BundleError."""


def files(hive: Hive, packed: Packed) -> Listing:
    """The tree of /validator."""

    async def command(caller: Caller, commands: list[Command]) -> list[str]:
        check(caller)
        lines = [_line(command, packed) for command in commands]
        await hive.prepare(Made(POOL, TOPICS))
        return await hive.command(caller, "/jobs/ctl", lines)

    async def walk(name: str, caller: Caller) -> Any:
        if name in children:
            return children[name]
        if not is_seen(caller) or (found := await _run(hive, name)) is None:
            return None
        return Rows(FILES, hive, name, found.job.rev)

    def names(caller: Caller) -> list[str]:
        own = hive.state.jobs.by_tenant.get(HIVE_TENANT, {}) if is_seen(caller) else {}
        return [*children, *(id for id in own if hive.state.jobs.by_id[id].request.topic in TOPICS)]

    children = fixed({"ctl": Ctl(VERBS, command)})
    return Listing(names, walk)


def reports(hive: Hive) -> Listing:
    """The tree of /log/validator."""

    async def walk(name: str, caller: Caller) -> Any:
        id = name.removesuffix(".json")
        if id == name or not is_seen(caller, AUDITORS) or (found := await _run(hive, id)) is None:
            return None
        return output(hive, found, report_name(id))

    def names(caller: Caller) -> list[str]:
        sealed = hive.state.artifacts.by_hash.get(HIVE_TENANT, {}) if is_seen(caller, AUDITORS) else {}
        return [f"{id}.json" for id in reported(artifact.name for artifact in sealed.values())]

    return Listing(names, walk)


def is_seen(caller: Caller, roles: frozenset[str] = TRACERS) -> bool:
    """Whether runs are there for the caller."""
    return caller.tenant == HIVE_TENANT and caller.role in roles


def check(caller: Caller) -> None:
    """Refuse who is of another tenant: a run reads all tenants' entries."""
    if caller.tenant != HIVE_TENANT:
        raise FsError(E.DENIED, "rule=hive-tenant the ledger is of all tenants' entries")


def _line(command: Command, packed: Packed) -> str:
    first, last = int(command.args.get("from", 1)), int(command.args.get("to", 0))
    if not 0 < first or 0 < last < first:
        said = f"line {command.number}: from={first} to={last}: expected from=1 or more, to= no less"
        raise FsError(E.USAGE, said)
    for name in ("a", "b"):
        if (found := command.args.get(name)) is not None and COMPARED.fullmatch(found) is None:
            expected = "sessions/<id>.9pt or snapshots/<n>"
            raise FsError(E.USAGE, f"line {command.number}: {name}={found}: expected {expected}")
    if "policy" not in command.args:
        return submit_line(command.verb, command.args)
    try:
        content = packed(command.args["policy"])
    except BundleError as error:
        raise FsError(E.SCHEMA, str(error)) from error
    return submit_line(command.verb, command.args, content)


async def _run(hive: Hive, id: str) -> Found | None:
    """The job of a run; None: there is no such run."""
    if ID.fullmatch(id) is None:
        return None
    try:
        found = await job_of(hive, id)
    except FsError as error:
        if error.kind is not E.MISSING:
            raise
        return None
    request = found.job.request
    return found if request.tenant == HIVE_TENANT and request.topic in TOPICS else None


# one run


def _asked(job: Job) -> str:
    """One JSON line; of a draft that is asked its name alone."""
    asked = msgspec.json.decode(job.request.input or "{}", type=Asked)
    shown: dict[str, Any] = {
        "run": job.id, "what": job.request.topic.partition(".")[2], "by": job.request.actor,
        "at": rfc3339(job.submitted_ns),
    } | msgspec.to_builtins(msgspec.structs.replace(asked, content=""))  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


class _Diff(Output):
    """What a run found, for auditors."""

    def __init__(self, hive: Hive, id: str) -> None:
        super().__init__(hive, id, LINES)

    async def opened(self, how: How, caller: Caller) -> Handle:
        if not is_seen(caller, AUDITORS):
            raise FsError(E.DENIED, f"rule=auditors {caller.role} is none")
        return await super().opened(how, caller)


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "asked.json": text_of(_asked),
    "state": jobs.FILES["state"],
    "wait": jobs.FILES["wait"],
    "verdict": text_of(verdict),
    "diff": _Diff,
    "progress": jobs.FILES["progress"],
}
