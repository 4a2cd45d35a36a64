"""The first words of tests of leases: submit, lease, end, what nodes offer, what is configured."""

from __future__ import annotations

import asyncio
import copy
from hashlib import sha256

import msgspec
import pytest
from hives import ANN, W1, Folded

from skep.fs import ctl
from skep.fs.node import Caller
from skep.namespaces.jobs.record import Job
from skep.namespaces.packed import pack
from skep.trace.rules import Refusal

AGEING = 30  # seconds, of pools that say nothing


def submit(hive: Folded, more: str = "", who: Caller = ANN) -> str:
    return hive.write("/jobs/ctl", f"submit topic=sum {more}", who)


def lease(hive: Folded, who: Caller = W1, pool: str = "default") -> str:
    return hive.write(f"/pools/{pool}/next", "lease", who)


def tell(hive: Folded, job: str, verb: str) -> None:
    record = hive.state.jobs.by_id[job]
    node = Caller("unix:work", "drone-worker", node=record.node)
    hive.write(f"/jobs/{job}/ctl", f"{verb} fence={record.fence}", node)


def end(hive: Folded, job: str) -> None:
    tell(hive, job, "start")
    tell(hive, job, "ack")


def offer(hive: Folded, node: str, labels: str = "", capacity: int = 0) -> None:
    hive.hive(f"/nodes/{node}", ctl.line("offer", {"labels": labels, "capacity": str(capacity)}))


def refused(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    """What the writer is told; the state is untouched."""
    before = copy.deepcopy(hive.state)
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    assert before == hive.state
    return str(caught.value)


def configure(hive: Folded, document: dict[str, object], scope: str = "system") -> None:
    content = msgspec.json.encode(document)
    args = {"scope": scope, "sha256": sha256(content).hexdigest(), "content": pack(content)}
    hive.write("/config/ctl", ctl.line("publish", args))


async def cancel(tasks: list[asyncio.Task[Job]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
