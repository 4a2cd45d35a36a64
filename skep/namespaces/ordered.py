"""Runs that are jobs: files of what became of one, for the nouns that order them."""

from __future__ import annotations

from collections.abc import Callable

from skep.fs.chan import settle
from skep.fs.node import Caller, Handle, How
from skep.fs.shapes import File, Text
from skep.namespaces.artifacts.kept import Kept
from skep.namespaces.jobs.history import Found
from skep.namespaces.jobs.names import job_of
from skep.namespaces.jobs.record import TERMINAL, Job
from skep.namespaces.live import Hive


def text_of(render: Callable[[Job], str]) -> Callable[[Hive, str], Text]:
    """A file of what ``render`` makes of the run's job, as it is when the file is opened."""

    async def content(hive: Hive, id: str) -> str:
        return render((await job_of(hive, id)).job)

    return lambda hive, id: Text(lambda: content(hive, id))


def verdict(job: Job) -> str:
    """A line of how it ended; "": it has not."""
    if job.state not in TERMINAL:
        return ""
    said = [] if job.state == "succeeded" else [job.state]
    return ": ".join([*said, *([job.text] if job.text else [])]) + "\n"


def output(hive: Hive, found: Found, name: str) -> Kept | None:
    """An output of a run; None: there is none, or its time is over."""
    sealed = hive.state.artifacts.by_hash.get(found.job.request.tenant, {})
    artifact = sealed.get(found.outputs.get(name, ""))
    return None if artifact is None else Kept(hive.store, artifact)


class Output(File):
    """An output of a run: nothing as long as there is none."""

    def __init__(self, hive: Hive, id: str, name: str) -> None:
        super().__init__(0o444)
        self.hive = hive
        self.id = id
        self.name = name

    async def opened(self, how: How, caller: Caller) -> Handle:
        found: File = output(self.hive, await job_of(self.hive, self.id), self.name) or Text("")
        return await settle(found.opened(how, caller))
