"""Processes on a loop whose time is made up."""

from __future__ import annotations

import asyncio

import pytest

from skep.sim.loop import SimLoop, Stuck


def test_time_passes_when_nobody_can_go_on() -> None:
    loop = SimLoop("a")

    async def main() -> float:
        await asyncio.sleep(3600)
        async with asyncio.timeout(10):
            await asyncio.sleep(5)
        return loop.time()

    assert 3605.0 == loop.run(main())


def test_a_killed_process_runs_no_more_not_even_its_finally() -> None:
    loop, said = SimLoop("a"), []

    async def life() -> None:
        try:
            said.append("lives")
            await asyncio.sleep(10)
        finally:
            said.append("tidies up")

    async def main() -> None:
        process = loop.process("p")
        process.start(life())
        await asyncio.sleep(5)
        process.end()
        await asyncio.sleep(10)
        assert ["lives"] == said

    loop.run(main())


def test_what_a_killed_process_did_not_look_at_is_no_mistake() -> None:
    loop = SimLoop("a")

    async def main() -> None:
        for kill in (False, True):
            process = loop.process("p")
            future = process.context.run(loop.create_future)
            future.set_exception(ValueError(f"unseen {kill}"))
            if kill:
                process.end()
            del future

    loop.run(main())
    (mistake,) = loop.mistakes
    assert mistake.endswith("never retrieved: ValueError('unseen False')")


def test_a_process_is_killed_after_so_many_steps() -> None:
    loop, said = SimLoop("a"), []

    async def life() -> None:
        while True:
            said.append(1)
            await asyncio.sleep(0)

    async def main() -> None:
        process = loop.process("p")
        process.blown, process.fuse = process.end, 7
        process.start(life())
        await asyncio.sleep(1)

    loop.run(main())
    assert 7 == len(said)


def test_a_paused_process_goes_on_where_it_was() -> None:
    loop = SimLoop("a")
    said: list[float] = []

    async def life() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            said.append(loop.time())

    async def main() -> None:
        process = loop.process("p")
        process.start(life())
        await asyncio.sleep(1.5)
        process.pause()
        await asyncio.sleep(8.5)
        process.go_on()
        await asyncio.sleep(5)

    loop.run(main())
    assert [1.0, 10.0, 11.0] == said


def test_a_seed_is_an_interleaving() -> None:
    def order(seed: str) -> str:
        loop, said = SimLoop(seed), []

        async def life(name: str) -> None:
            for _ in range(5):
                said.append(name)
                await asyncio.sleep(0)

        async def main() -> None:
            for name in "abc":
                loop.process(name).start(life(name))
            await asyncio.sleep(1)

        loop.run(main())
        return "".join(said)

    assert order("1") == order("1")
    assert len({order(str(seed)) for seed in range(20)}) > 10


def test_who_waits_for_nothing_is_told() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        SimLoop("a").run(main())


def test_work_given_to_a_thread_is_done_in_a_step() -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 7)

    assert 7 == SimLoop("a").run(main())
