"""What a job's files tell its holder, and the forms that a request may have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from door import Door
from hives import ANN, W1, W2, Living, live, settled

from skep.fs.errors import E, FsError
from skep.namespaces.jobs.due import TIMEOUT_GRACE_NS
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND

Ending = Callable[[Living, str], Awaitable[object]]


async def cancelled(alive: Living, job: str) -> None:
    await alive.write("/jobs/ctl", f"cancel job={job}")


async def timed_out(alive: Living, job: str) -> None:
    alive.clock.advance(10 * SECOND + TIMEOUT_GRACE_NS)
    await alive.hive.tick()


async def expired(alive: Living, job: str) -> None:
    alive.clock.advance(30 * SECOND)
    await alive.hive.tick()


@pytest.mark.parametrize(
    ("end", "more", "state"),
    [(cancelled, "", "cancelled"), (timed_out, "timeout=10s retries=1", "delayed"), (expired, "", "queued")],
)
def test_the_end_of_a_lease_reaches_its_holder_through_its_open_wait(
    end: Ending, more: str, state: str
) -> None:
    async def story(alive: Living) -> None:
        w1, ann = (Door(hive_tree(alive.hive), who) for who in (W1, ANN))
        job = await alive.submit(more)
        await alive.hive.take(W1, "default")
        await alive.run(job, "start")
        holder = asyncio.ensure_future(w1.read(f"/jobs/{job}/wait"))
        others = asyncio.ensure_future(ann.read(f"/jobs/{job}/wait"))
        await settled()
        await alive.run(job, "renew")
        await settled()
        assert not holder.done()
        await end(alive, job)
        # No clock moves and nobody asks: it is told with the commit.
        assert f"{state}\n" == await holder
        with pytest.raises(FsError, match="fenced: "):
            await alive.run(job, "ack fence=1")
        assert others.done() == (state == "cancelled")
        others.cancel()

    live(story)


def test_a_node_that_holds_it_no_more_waits_for_the_job_s_end() -> None:
    async def story(alive: Living) -> None:
        w1 = Door(hive_tree(alive.hive), W1)
        job = await alive.submit()
        await alive.hive.take(W1, "default")
        await expired(alive, job)
        await alive.hive.join(W2)
        await alive.hive.take(W2, "default")
        late = asyncio.ensure_future(w1.read(f"/jobs/{job}/wait"))
        await settled()
        assert not late.done()
        await cancelled(alive, job)
        assert "cancelled\n" == await late

    live(story)


def test_a_request_is_an_object_of_version_one() -> None:
    async def story(alive: Living) -> None:
        whole = '{"verb":"submit","v":1,"topic":"sum","input":"x","retries":2,"labels":{"a":"b"},"key":"k"}'
        (job,) = await alive.write("/jobs/ctl", whole)
        request = alive.state.jobs.by_id[job].request
        assert ("x", 2, {"a": "b"}) == (request.input, request.retries, request.labels)
        # The same request, without its version, is the same job.
        assert [job] == await alive.write("/jobs/ctl", whole.replace('"v":1,', ""))

    live(story)


def test_an_unknown_version_and_an_unknown_field_are_refused_with_a_pointer() -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError, match="unsupported version: /v: 2, expected 1") as caught:
            await alive.write("/jobs/ctl", '{"verb":"submit","v":2,"topic":"sum","key":"k"}')
        assert E.VERSION is caught.value.kind
        with pytest.raises(FsError, match="submit: /colour: unknown field"):
            await alive.write("/jobs/ctl", '{"verb":"submit","v":1,"topic":"sum","colour":"red","key":"k"}')
        # A refused submit leaves its key free.
        await alive.submit("key=k input=another")

    live(story)
