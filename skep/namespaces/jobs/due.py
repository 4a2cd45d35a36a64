"""When time does something to a job, and what: the ends of leases, attempts, delays and whole jobs. Pure."""

from __future__ import annotations

from typing import Final

from skep.namespaces.jobs.record import Job
from skep.trace.clock import SECOND

FALL_BACK: Final = "fallback reason=full"  # the reason is another when no annex could have had it.
OVERDUE: Final = "overdue"
TIMEOUT_GRACE_NS: Final = 5 * SECOND  # a worker ends its process and says so itself, if it is well.


def timeout_ns(job: Job) -> int:
    """When the running attempt has had its time, and its worker time to say so; 0: there is no limit."""
    limit_ns = job.request.timeout_ns
    if job.state != "running" or not limit_ns:
        return 0
    return job.attempts[-1].started_ns + limit_ns + TIMEOUT_GRACE_NS


def spent_ns(job: Job) -> int:
    """When the running attempt has used up what the job's attempts may run together, and its worker time to
    say so; 0: there is no limit."""
    if job.state != "running" or not job.request.runtime_ns:
        return 0
    left_ns = max(job.request.runtime_ns - job.ran_ns(), 0)
    return job.attempts[-1].started_ns + left_ns + TIMEOUT_GRACE_NS


def is_spent(job: Job, now_ns: int) -> bool:
    """Whether its attempts have run as long as they may."""
    return 0 < job.request.runtime_ns <= job.ran_ns(now_ns)


def patience_end_ns(job: Job) -> int:
    """When a job that waits where it could fall back from, or is held there, has waited long enough; 0: it
    never has. What it waited before a lease that it lost does not count."""
    patience_ns = job.request.patience_ns
    if not patience_ns or job.moved:
        return 0
    ended_ns = (attempt.ended_ns for attempt in reversed(job.attempts) if attempt.ended_ns)
    return max(job.queued_ns, next(ended_ns, 0)) + patience_ns


def due(job: Job) -> tuple[int, str] | None:
    """The next time at which time does something to the job, and the hive's own line to it then; None: time
    does nothing to it, unless somebody else does first."""
    found = []
    if job.held:
        found.append((job.until_ns, f"expire fence={job.fence}"))
        if end_ns := timeout_ns(job):
            found.append((end_ns, f"timeout fence={job.fence}"))
        if end_ns := spent_ns(job):
            found.append((end_ns, f"spent fence={job.fence}"))
    elif job.state == "delayed":
        found.append((job.until_ns, "wake"))
    elif job.state != "queued":
        return None
    elif end_ns := patience_end_ns(job):
        found.append((end_ns, FALL_BACK))
    if job.deadline_ns:
        found.append((job.deadline_ns, OVERDUE))
    return min(found) if found else None
