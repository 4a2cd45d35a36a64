"""/boot: the boot lab, and how this hive itself began.

    ctl               W put, run; R usage. The reply is the image's hash, the run's id
    images/<name>/    R the files of an image as it was put last: its manifest, what that names, its signature
    runs/<id>/        a run, which is a job of the pool boot-lab
        asked.json    R which image, by whom, when, how: one JSON line
        status        R as the job's state: queued, leased, running, succeeded (it was booted, whatever became
                      of it), failed, cancelled
        wait          R blocks until the run has ended, gives its status
        verdict       R in one line what became of it: as expected …, or its cause: …; that the run failed,
                      and why; empty before the end
        serial.log    R what the guest prints, boot by boot; serial.log@N follows from byte N to the run's end
        timing.json   R stages with instructions, virtual milliseconds, budgets; wall times; empty before
                      the end, as are those below
        diagnostics.json  R the cause with what shows it: lines, registers, fault; null: all was as expected
        junit.xml     R the same for who reads that
        stages.svg    R the stages as a picture
    phase             R boot, online or shutdown
    config            R a line for each setting that this hive's process was started with: name, value, origin
                      (an environment variable, the configuration's file, an option, default)
    transcript        R the release, these values and the stages of a start: the same for the same settings
    hash              R the SHA-256 of the transcript

An image is an archive that `skep boot pack` makes of a manifest and its files (BOOT.md has the format),
staged as <name>.boot. It is an artifact, kept as long as its class says; put again, it is another one of that
name, and a run has the one that it was asked of. Who runs it is a worker of the pool boot-lab with a
handler for the topic boot.run, as examples/boot-lab.toml has it; without one, runs wait.

Images and runs are their tenant's own. How the hive began is told to the auditors of its own tenant;
/log/boot/starts has when and how long. Runs that have left memory are found by their id and listed no more.

    skep boot pack boot.toml worker.boot; cp worker.boot artifacts/stage/
    echo put image=worker > boot/ctl; echo run image=worker shift=4 > boot/ctl
    cat boot/runs/01JD…/wait boot/runs/01JD…/verdict
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from skep.fs.chan import settle
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, File, Text
from skep.fs.tree import Dir, Listing
from skep.namespaces.artifacts.core import Artifact
from skep.namespaces.artifacts.kept import Kept
from skep.namespaces.boot.images import Images
from skep.namespaces.boot.runs import (
    BOOTS_MAX,
    CHECK,
    DIAGNOSTICS,
    JUNIT,
    POOL,
    STAGES,
    TIMING,
    TOPIC,
    VERBS,
    submit_line,
)
from skep.namespaces.follow import AUDITORS
from skep.namespaces.jobs import files as jobs
from skep.namespaces.jobs.history import Found
from skep.namespaces.jobs.names import job_of, locate
from skep.namespaces.jobs.record import Job
from skep.namespaces.jobs.verbs import ID
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.ordered import Output, output, text_of, verdict
from skep.namespaces.pools.core import Made
from skep.namespaces.rows import Rows
from skep.trace.clock import rfc3339


def files(hive: Hive) -> dict[str, Any]:
    """The tree of /boot."""
    images = Images(hive)

    async def command(caller: Caller, commands: list[Command]) -> list[str]:
        if all(command.verb == "run" for command in commands):
            return await _run(hive, images, caller, commands)
        if len(commands) > 1:
            raise FsError(E.USAGE, "put: expected in a write of its own")
        return [await images.put(caller, commands[0])]

    return {
        "ctl": Ctl(VERBS, command),
        "images": images.files(),
        "runs": _Runs(hive),
        "phase": _told(hive, lambda: f"{hive.starts.phase}\n"),
        "config": _told(hive, lambda: hive.starts.config),
        "transcript": _told(hive, lambda: hive.starts.transcript),
        "hash": _told(hive, lambda: f"{hive.starts.hash}\n"),
    }


def records(hive: Hive) -> Dir:
    """The tree of /log/boot."""

    def names(caller: Caller) -> list[str]:
        return [f"{id}.json" for id in _listed(hive, caller)]

    async def walk(name: str, caller: Caller) -> Any:
        id = name.removesuffix(".json")
        if id == name or (found := await _found(hive, id, caller)) is None:
            return None
        return output(hive, found, TIMING)

    return Dir(
        {
            "starts": _told(hive, lambda: hive.starts.log()),
            "runs": Listing(names, walk),
            "elf_checks": Listing(lambda caller: sorted(_checks(hive, caller)), partial(_check, hive)),
        }
    )


def _checks(hive: Hive, caller: Caller) -> dict[str, Artifact]:
    """By name, the reports of checks that the caller's tenant has, each as it was sealed last."""
    sealed = {} if caller.node else hive.state.artifacts.by_hash.get(caller.tenant, {})
    found = (each for each in sealed.values() if CHECK.fullmatch(each.name))
    return {each.name: each for each in sorted(found, key=lambda each: each.rev)}


def _check(hive: Hive, name: str, caller: Caller) -> Kept | None:
    artifact = _checks(hive, caller).get(name) if CHECK.fullmatch(name) else None
    return None if artifact is None else Kept(hive.store, artifact)


def _told(hive: Hive, content: Callable[[], str]) -> Text:
    """What is told of the hive itself, to its auditors."""

    def tell(caller: Caller) -> str:
        if caller.tenant != HIVE_TENANT or caller.role not in AUDITORS:
            raise FsError(E.DENIED, f"rule=auditors {caller.role} of {caller.tenant} is none of the hive's")
        return content()

    return Text(tell)


async def _run(hive: Hive, images: Images, caller: Caller, commands: list[Command]) -> list[str]:
    lines = []
    for command in commands:
        artifact = images.find(command.args["image"], caller)
        if artifact is None:
            name = f"image={command.args['image']}"
            raise FsError(E.USAGE, f"line {command.number}: run: {name}: no image was put under that name")
        if int(command.args.get("boots", 1)) > BOOTS_MAX:
            said = f"line {command.number}: run: boots={command.args['boots']}: expected {BOOTS_MAX} or less"
            raise FsError(E.USAGE, said)
        lines.append(submit_line(artifact.sha256, command.args))
    if caller.tenant == HIVE_TENANT:
        # Pools are there for all: that one was made tells no tenant of another's asking.
        await hive.prepare(Made(POOL, (TOPIC,)))
    return await hive.command(caller, "/jobs/ctl", lines)


# runs


class _Runs(Listing):
    def __init__(self, hive: Hive) -> None:
        super().__init__(lambda caller: _listed(hive, caller), self._run)
        self.hive = hive

    async def _run(self, id: str, caller: Caller) -> Rows[Hive] | None:
        found = await _found(self.hive, id, caller)
        return None if found is None else Rows(FILES, self.hive, id, found.job.rev, AT)


def _listed(hive: Hive, caller: Caller) -> list[str]:
    own = {} if caller.node else hive.state.jobs.by_tenant.get(caller.tenant, {})
    return [id for id in own if hive.state.jobs.by_id[id].request.topic == TOPIC]


async def _found(hive: Hive, id: str, caller: Caller) -> Found | None:
    """The job of a run; None: there is no such run for the caller."""
    if caller.node or ID.fullmatch(id) is None or await settle(locate(hive, id, caller)) is None:
        return None
    found = await job_of(hive, id)
    return found if found.job.request.topic == TOPIC else None


def _asked(job: Job) -> str:
    request = job.request
    shown = {
        "run": job.id, "by": request.actor, "at": rfc3339(job.submitted_ns), "sha256": request.artifact,
    } | request.labels  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


def _kept(name: str) -> Callable[[Hive, str], File]:
    return lambda hive, id: Output(hive, id, name)


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "asked.json": text_of(_asked),
    "status": jobs.FILES["state"],
    "wait": jobs.FILES["wait"],
    "verdict": text_of(verdict),
    "serial.log": jobs.FILES["log"],
    **{name: _kept(name) for name in (TIMING, DIAGNOSTICS, JUNIT, STAGES)},
}
AT: Final = {"serial.log": jobs.AT["log"]}
