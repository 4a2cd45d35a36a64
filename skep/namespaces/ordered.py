"""Runs that are jobs: files of what became of one, for the nouns that order them."""

from __future__ import annotations

from collections.abc import Callable

from skep.fs.shapes import Text
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
