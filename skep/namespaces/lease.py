"""A lease as its reader gets it: one JSON line from /pools/<p>/next.

job, attempt (from 1), fence, topic, tenant, priority, labels, deadline (when it ends unless renewed), lease
(how long a renewal lasts), and the input: input, or artifact and its size in bytes; and inputs, the artifacts
besides it by their names, each with its sha256 and its size. As far as they are said:
timeout, no more than runtime_left (of all attempts), bytes (of the outputs together), requires, risk, pack,
capability, actor_id, actor_type, workflow, run, step, fallback (allow, refuse), patience (what its node
may still wait for a device), fell_back (why it did), and the W3C trace context, traceparent and tracestate.
"""

from __future__ import annotations

import msgspec

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.jobs import envelope
from skep.namespaces.jobs.due import patience_end_ns
from skep.namespaces.jobs.record import Job, shown_input
from skep.namespaces.live import Hive
from skep.trace.clock import MS, duration, rfc3339


class Next:
    """Gives one lease, then ends. Not delivered, the lease is given back."""

    def __init__(self, hive: Hive, caller: Caller, pool: str) -> None:
        if caller.node not in hive.state.nodes.by_id:
            raise FsError(E.DENIED, "rule=nodes-only")
        self.hive = hive
        self.caller = caller
        self.pool = pool
        self.taken: Job | None = None  # None: not yet

    async def next(self) -> bytes | None:
        if self.taken is not None:
            return None
        self.taken = await self.hive.take(self.caller, self.pool)
        return lease_line(self.hive, self.taken)

    def close(self, undelivered: bytes | None) -> None:
        if undelivered is not None and self.taken is not None:
            self.hive.give_back(self.taken)


def lease_line(hive: Hive, job: Job) -> bytes:
    """The line of a job that is held."""
    request = job.request
    line: dict[str, object] = {
        "job": job.id, "attempt": len(job.attempts), "fence": job.fence, "topic": request.topic,
        "tenant": request.tenant, "priority": request.priority, "labels": request.labels,
        "deadline": rfc3339(job.until_ns), "lease": duration(hive.state.lease_ns(request)),
    } | envelope.shown_to_worker(request) | shown_input(job)  # fmt: skip
    if request.runtime_ns:
        left_ns = max(request.runtime_ns - job.ran_ns(), 0)
        line["runtime_left"] = duration(left_ns)
        # Workers keep to this one alone.
        line["timeout"] = duration(min(left_ns, request.timeout_ns or left_ns))
    if end_ns := patience_end_ns(job):
        left_ns = max(end_ns - job.attempts[-1].leased_ns, 0)
        line["patience"] = duration(left_ns - left_ns % MS)
    if job.fallbacks:
        line["fell_back"] = job.fallbacks[-1].reason
    sealed = hive.state.artifacts.by_hash.get(request.tenant, {})
    if request.artifact:
        line["size"] = sealed[request.artifact].size
    if request.inputs:
        line["inputs"] = {
            name: {"sha256": digest, "size": sealed[digest].size} for name, digest in request.inputs.items()
        }
    return msgspec.json.encode(line) + b"\n"
