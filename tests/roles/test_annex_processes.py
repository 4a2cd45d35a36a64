"""Which process of an annex a run gets: its own, or one that its tenant had before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from skep.native.kernels.arguments import CONTEXT
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request, RunError
from skep.roles.annex.processes import Processes

pytestmark = pytest.mark.slow  # processes begin and end


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    file = str(tmp_path / "a.npy")
    return Request("vector_add", {"a": file, "b": file}, {}, str(tmp_path), "cpu")


async def ran(processes: Processes, tenant: str, request: Request) -> int | None:
    """The pid of the process that ran it."""
    found: list[Process] = []
    await processes.run(tenant, request, found.append)
    return found[0].pid


def test_a_process_is_kept_for_its_tenant_alone(request_: Request) -> None:
    async def story() -> list[int | None]:
        with closing(Processes({"cpu": 2})) as processes:
            return [await ran(processes, tenant, request_) for tenant in ("a", "b", "a", "c", "b")]

    a, b, again, c, other = asyncio.run(story())
    assert a == again
    # There is room for two: c's took the place of b's, which had waited longer than a's.
    assert 4 == len({a, b, c, other})


def test_what_was_refused_before_it_ran_harms_no_process_and_a_fault_does(request_: Request) -> None:
    wrong = request_._replace(numbers={"alpha": 1})

    async def story() -> tuple[list[str], list[int | None]]:
        with closing(Processes({"cpu": 1})) as processes:
            pids = [await ran(processes, "a", request_)]
            with pytest.raises(RunError) as refused:
                await ran(processes, "a", wrong)
            pids.append(await ran(processes, "a", request_))
            assert pids[-1] is not None
            os.kill(pids[-1], signal.SIGSTOP)
            running = asyncio.create_task(ran(processes, "a", request_))
            await until(lambda: processes._places["cpu"].running == 1)
            os.kill(pids[-1], signal.SIGKILL)
            with pytest.raises(RunError) as faulted:
                await running
            pids.append(await ran(processes, "a", request_))
            return [refused.value.why, faulted.value.why], pids

    whys, (first, second, third) = asyncio.run(story())
    assert ["argument", "kernel_failed"] == whys
    assert first == second != third


def test_one_that_died_while_it_waited_is_nobodys_fault(request_: Request) -> None:
    async def story() -> list[int | None]:
        with closing(Processes({"cpu": 1})) as processes:
            pids = [await ran(processes, "a", request_)]
            assert pids[0] is not None
            os.kill(pids[0], signal.SIGKILL)
            await until(lambda: processes._places["cpu"].idle[0].process.died)
            await until(lambda: processes._spare is not None)
            assert processes._spare is not None
            assert processes._spare.pid is not None
            os.kill(processes._spare.pid, signal.SIGKILL)
            await until(lambda: processes._spare is None or processes._spare.died)
            return [*pids, await ran(processes, "a", request_)]

    first, then = asyncio.run(story())
    assert first != then is not None


def test_one_is_started_ahead_and_the_next_too(request_: Request) -> None:
    async def story() -> tuple[int | None, int | None]:
        with closing(Processes({"cpu": 1})) as processes:
            processes.prepare()
            await until(lambda: processes._spare is not None)
            assert processes._spare is not None
            spare = processes._spare.pid
            found = await ran(processes, "a", request_)
            await until(lambda: processes._spare is not None)
            return spare, found

    spare, found = asyncio.run(story())
    assert spare == found is not None


def test_who_has_run_on_a_device_waits_there_while_it_is_in_nobodys_way(request_: Request) -> None:
    async def story() -> list[int]:
        with closing(Processes({"cpu": 4})) as processes:
            waiting = []
            for left in (None, 2 * CONTEXT, 2 * CONTEXT, 2 * CONTEXT - 1, 0):
                for tenant in "abc":
                    if left is None:
                        await ran(processes, tenant, request_)
                await processes.run("a", request_, lambda of: None, left)
                waiting.append(len(processes._places["cpu"].idle))
            return waiting

    # The one that runs has its own context, and waits again afterwards.
    assert [3, 3, 3, 2, 1] == asyncio.run(story())


def test_who_is_cancelled_ends_with_its_process(request_: Request) -> None:
    async def story() -> tuple[bool, int | None]:
        with closing(Processes({"cpu": 1})) as processes:
            pid = await ran(processes, "a", request_)
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            running = asyncio.create_task(ran(processes, "a", request_))
            await until(lambda: processes._places["cpu"].running == 1)
            running.cancel()
            await asyncio.wait([running])
            ended = running.cancelled() and not Path(f"/proc/{pid}").exists()
            return ended, await ran(processes, "a", request_)

    ended, another = asyncio.run(story())
    assert ended
    assert another is not None


def test_who_is_cancelled_as_it_ends_harms_no_process_that_is_anothers(request_: Request) -> None:
    async def story() -> tuple[int | None, int | None]:
        with closing(Processes({"cpu": 1})) as processes:
            first = await ran(processes, "a", request_)
            running = asyncio.create_task(ran(processes, "a", request_))
            await until(lambda: processes._places["cpu"].running == 1)
            # The loop hears that the run has ended, and then is told to give it up.
            processes._threads.submit(int).result()
            asyncio.get_running_loop().call_soon(running.cancel)
            await asyncio.wait([running])
            return first, await ran(processes, "a", request_)

    first, again = asyncio.run(story())
    assert first == again


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)
