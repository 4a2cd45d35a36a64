"""What became of the jobs that an annex did not do: /gpu/<annex>/fallbacks.jsonl."""

from __future__ import annotations

import msgspec

from skep.fs.node import Caller
from skep.fs.shapes import Text
from skep.namespaces.jobs.files import device_of
from skep.namespaces.jobs.names import job_of
from skep.namespaces.jobs.record import TERMINAL, Job
from skep.namespaces.live import Hive
from skep.trace.clock import rfc3339


def fallbacks(hive: Hive, annex: str) -> Text:
    """The file: a JSON line for each, the oldest first, as its job is now."""

    async def content(caller: Caller) -> bytes:
        lines = []
        for job, number in list(hive.state.gpu.fallen.get(annex, ())):
            await hive.wait_history()
            # What became of another tenant's job is not for those who look after the machine.
            if caller.node == annex or hive.tenant_of(job) == caller.tenant:
                lines.append(_line((await job_of(hive, job)).job, number))
        return b"".join(lines)

    return Text(content)


def _line(job: Job, number: int) -> bytes:
    of, attempts = job.fallbacks[number], job.attempts
    ended = rfc3339(attempts[-1].ended_ns) if attempts and job.state in TERMINAL else ""
    shown = {
        "job": job.id, "annex": of.annex, "reason": of.reason, "time": rfc3339(of.at_ns),
        "from": of.from_pool, "pool": job.request.pool,
        "attempt": sum(attempt.leased_ns <= of.at_ns for attempt in attempts), "text": of.text,
        "state": job.state, "device": device_of(job), "ended": ended,
    }  # fmt: skip
    return msgspec.json.encode(shown) + b"\n"
