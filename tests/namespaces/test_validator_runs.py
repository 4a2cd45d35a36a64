"""/validator: what asks for a run, for whom runs and reports exist, what no report is forged by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, living
from runs_done import Running, refused

from skep.fs.errors import E
from skep.fs.node import Caller

V1 = Caller("spiffe://hive/validator/v1", "validator", node="v1")
RUNNER = Caller("unix:sim", "simulator-test")


class Asked(Running):
    """A living hive, and the door of each caller."""

    async def ask(self, line: str = "verify", who: Caller = ANN) -> str:
        """The id of a run."""
        chan = await self.door(who).open("/validator/ctl", BOTH)
        await say(chan, line)
        reply = await rest(chan)
        await chan.clunk()
        return reply.decode().split(" ")[0]

    async def done(self, run: str, verdict: str, **outputs: str) -> None:
        """A validator has done the run."""
        fence = await self.leased(run, "validator", V1)
        files = {name.replace("report", f"validator-{run}.json"): said for name, said in outputs.items()}
        await self.end(run, fence, V1, verdict, files, " class=audit")


def asked(story: Callable[[Asked], Awaitable[None]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory)) as alive:
                await story(Asked(alive))

    asyncio.run(run())


async def exists(door: Door, *paths: str) -> list[bool]:
    return [await door.exists(path) for path in paths]


def test_a_run_is_a_job_of_a_pool_that_is_made_when_somebody_asks() -> None:
    async def story(hive: Asked) -> None:
        assert "validator" not in hive.state.pools.by_name
        run = await hive.ask("replay from=3 to=9")
        job = hive.state.jobs.by_id[run]
        assert ("validator", "validator.replay", "queued") == (job.request.pool, job.request.topic, job.state)
        assert "queued\n" == await hive.ann.read(f"/validator/{run}/state")
        assert "" == await hive.ann.read(f"/validator/{run}/verdict")
        assert "" == await hive.ann.read(f"/validator/{run}/diff")
        shown = msgspec.json.decode(await hive.ann.read(f"/validator/{run}/asked.json"))
        assert ("replay", "unix:ann", 3, 9) == tuple(shown[key] for key in ("what", "by", "from", "to"))
        other = await hive.submit()
        assert ["ctl", run] == await hive.ann.names("/validator")
        assert not await hive.ann.exists(f"/validator/{other}")

    asked(story)


def test_what_a_run_found_is_read_by_auditors() -> None:
    async def story(hive: Asked) -> None:
        run = await hive.ask()
        await hive.done(run, "consistent: it's all there", report='{"v":1}', diff="a line\n")
        report = f"/log/validator/{run}.json"
        for who in (ANN, V1):
            door = hive.door(who)
            assert "consistent: it's all there\n" == await door.read(f"/validator/{run}/verdict")
            assert "a line\n" == await door.read(f"/validator/{run}/diff")
            assert '{"v":1}' == await door.read(report)
            assert [f"{run}.json"] == await door.names("/log/validator")
        # Who reads the trace, and not what others were refused.
        for who in (EYE, RUNNER):
            door = hive.door(who)
            assert (await door.read(f"/validator/{run}/verdict")).startswith("consistent: ")
            assert E.DENIED is await refused(door.read(f"/validator/{run}/diff"))
            assert ([], False) == (await door.names("/log/validator"), await door.exists(report))
        for who in (BOB, W1):
            door = hive.door(who)
            assert ["ctl"] == await door.names("/validator")
            assert [False, False] == await exists(door, f"/validator/{run}", report)

    asked(story)


def test_a_tenant_asks_for_no_run_in_whatever_way() -> None:
    async def story(hive: Asked) -> None:
        await hive.ask()
        assert E.DENIED is await refused(hive.ask(who=BOB))
        said = "submit topic=validator.verify"
        assert E.DENIED is await refused(hive.write("/jobs/ctl", said, who=BOB))
        assert E.DENIED is await refused(hive.ask(who=EYE))
        assert E.DENIED is await refused(hive.ask(who=W1))
        assert E.USAGE is await refused(hive.ask("replay from=9 to=3"))
        assert E.USAGE is await refused(hive.ask("replay from=0"))
        assert E.SCHEMA is await refused(hive.ask("replay policy=nothing"))

    asked(story)


def test_a_worker_is_given_no_run() -> None:
    async def story(hive: Asked) -> None:
        await hive.ask()
        assert E.DENIED is await refused(hive.hive.command(W1, "/pools/validator/next", ["lease"]))
        await hive.submit()
        await hive.hive.join(V1)
        assert E.DENIED is await refused(hive.hive.command(V1, "/pools/default/next", ["lease"]))

    asked(story)


def test_a_report_is_the_runs_own_output() -> None:
    """An artifact that is called like one is none, and a job that is called like a run neither."""

    async def story(hive: Asked) -> None:
        run = await hive.ask()
        other = await hive.submit()
        for name in (f"validator-{run}.json", f"validator-{other}.json"):
            staged = await hive.ann.create("/artifacts/stage", name)
            await say(staged, f"forged {name}")
            await staged.clunk()
            await hive.ann.write("/artifacts/ctl", f"seal name={name}")
        assert [] == await hive.ann.names("/log/validator")
        paths = (f"/log/validator/{run}.json", f"/log/validator/{other}.json", "/log/validator/x.json")
        assert [False, False, False] == await exists(hive.ann, *paths)
        await hive.done(run, "consistent", report="true")
        assert "true" == await hive.ann.read(f"/log/validator/{run}.json")

    asked(story)


def test_a_run_that_failed_says_why() -> None:
    async def story(hive: Asked) -> None:
        run = await hive.ask()
        await hive.hive.join(V1)
        await hive.write("/pools/validator/next", "lease", who=V1)
        await hive.write(f"/jobs/{run}/ctl", "start fence=1", "nack fence=1 error=no final=true", who=V1)
        assert "failed: no\n" == await hive.ann.read(f"/validator/{run}/verdict")
        cancelled = await hive.ask()
        await hive.write("/jobs/ctl", f"cancel job={cancelled}")
        assert "cancelled\n" == await hive.ann.read(f"/validator/{cancelled}/verdict")

    asked(story)
