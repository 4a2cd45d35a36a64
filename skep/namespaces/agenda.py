"""What time will do to jobs, the soonest first. In memory: it is made from the state again at each start.

A job stands in it once, at a time at or before the one when something is due; what it is, is asked of the
job when that time has come. So a lease that is renewed all day costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from skep.namespaces.jobs.due import due
from skep.namespaces.jobs.record import Job
from skep.trace.clock import SECOND

AGAIN_NS: Final = SECOND  # when a line that was due came to nothing, it is tried again.
SLACK: Final = 1024  # entries of jobs that have ended, kept before the heap is made anew.


class Agenda:
    """``job_of`` gives a job's record; None: there is none."""

    def __init__(self, job_of: Callable[[str], Job | None], jobs: Iterable[Job]) -> None:
        self._job_of = job_of
        self._when: dict[str, int] = {}  # job -> its entry that counts
        self._heap: list[tuple[int, str]] = []
        for job in jobs:
            self.moved(job)

    def moved(self, job: Job) -> None:
        """The job's record is another one now."""
        found = due(job)
        if found is None:
            self._when.pop(job.id, None)
        elif job.id not in self._when or found[0] < self._when[job.id]:
            self._put(found[0], job.id)

    def _put(self, when_ns: int, id: str) -> None:
        self._when[id] = when_ns
        heappush(self._heap, (when_ns, id))
        if len(self._heap) > 2 * len(self._when) + SLACK:
            self._heap = [(at_ns, of) for of, at_ns in self._when.items()]
            heapify(self._heap)

    def take(self, now_ns: int, leases_from_ns: int) -> Iterator[tuple[Job, str]]:
        """Jobs and the hive's line to each that is due now. No lease ends before ``leases_from_ns``."""
        while self._heap and self._heap[0][0] <= now_ns:
            when_ns, id = heappop(self._heap)
            if self._when.get(id) != when_ns:
                continue
            del self._when[id]
            job = self._job_of(id)
            found = None if job is None else due(job)
            if job is None or found is None:
                continue
            at_ns, line = found
            if job.held:
                at_ns = max(at_ns, leases_from_ns)
            if at_ns > now_ns:
                self._put(at_ns, id)
                continue
            self._put(now_ns + AGAIN_NS, id)
            yield job, line
