"""/boot: images put and read, runs that are jobs, for whom both exist; what a hive tells of its own start."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from door import BOTH, rest, say
from hives import ANN, BOB, EYE, W1, living
from imaging import MANIFEST, archive
from runs_done import Running, refused

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.boot.starts import STAGES, Setting, Starts
from skep.trace.clock import SECOND, ManualClock

L1 = Caller("spiffe://hive/boot-lab/l1", "boot-lab", node="l1")
FILES = {"boot.toml": MANIFEST, "kernel": b"\x7fELF kernel", "more/root": b"root" * 300}


class Lab(Running):
    """A living hive, and the door of each caller."""

    async def stage(self, name: str, data: bytes, who: Caller = ANN) -> None:
        chan = await self.door(who).create("/artifacts/stage", name)
        assert len(data) == await chan.write(0, memoryview(data))
        await chan.clunk()

    async def say(self, line: str, who: Caller = ANN) -> str:
        """The first word of the reply."""
        chan = await self.door(who).open("/boot/ctl", BOTH)
        try:
            await say(chan, line)
            return (await rest(chan)).decode().split(" ")[0]
        finally:
            await chan.clunk()

    async def put(self, files: dict[str, bytes] = FILES, who: Caller = ANN) -> str:
        await self.stage("worker.boot", archive(files), who)
        return await self.say("put image=worker", who)

    async def done(self, run: str, verdict: str, **outputs: str) -> None:
        """A machine of the lab has done the run."""
        fence = await self.leased(run, "boot-lab", L1)
        await self.door(L1).write(f"/jobs/{run}/log", "ROOT: ready\n")
        await self.end(run, fence, L1, verdict, {f"{name}.json": said for name, said in outputs.items()})


def lab(story: Callable[[Lab], Awaitable[None]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory)) as alive:
                await story(Lab(alive))

    asyncio.run(run())


def test_an_image_is_read_file_by_file() -> None:
    async def story(hive: Lab) -> None:
        sha256 = await hive.put()
        assert sha256 == (await hive.ann.read("/artifacts/by-name/worker.boot")).strip()
        assert ["worker"] == await hive.ann.names("/boot/images")
        assert ["boot.toml", "kernel", "more"] == await hive.ann.names("/boot/images/worker")
        assert MANIFEST.decode() == await hive.ann.read("/boot/images/worker/boot.toml")
        assert "root" * 300 == await hive.ann.read("/boot/images/worker/more/root")
        assert 1200 == (await hive.ann.attr("/boot/images/worker/more/root")).size
        chan = await hive.ann.open("/boot/images/worker/kernel")
        assert b"ELF" == await chan.read(1, 3)
        assert b"" == await chan.read(11, 100)
        await chan.clunk()

    lab(story)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no archive at all".ljust(1024, b"."), "no header of a tar archive"),
        (b"", "expected a boot manifest"),
        (archive({"kernel": b"x"}), "expected a boot manifest"),
        (archive({"boot.toml": b"name = 1"}), "boot.toml: "),
        (archive({"boot.toml": MANIFEST}), "names kernel, which is not in it"),
        (archive({"boot.toml": MANIFEST, "../kernel": b""}), "expected a plain relative name"),
        (archive({"boot.toml": MANIFEST, "/kernel": b""}), "expected a plain relative name"),
        (archive({"boot.toml": MANIFEST, "kernel": b"", "kernel/x": b""}), "there are two"),
        (archive({"boot.toml": b"", "kernel": b""}, tarfile.SYMTYPE), "expected plain files alone"),
        (archive(FILES)[:1540], "the archive ends before that"),
    ],
)
def test_what_is_no_image_is_not_put(content: bytes, why: str) -> None:
    async def story(hive: Lab) -> None:
        await hive.stage("worker.boot", content)
        with pytest.raises(FsError) as caught:
            await hive.say("put image=worker")
        assert E.SCHEMA is caught.value.kind
        assert why in caught.value.detail
        assert [] == await hive.ann.names("/boot/images")

    lab(story)


def test_a_run_is_a_job_of_a_pool_that_is_made_when_somebody_asks() -> None:
    async def story(hive: Lab) -> None:
        sha256 = await hive.put()
        assert "boot-lab" not in hive.state.pools.by_name
        run = await hive.say("run image=worker shift=2 boots=3")
        job = hive.state.jobs.by_id[run]
        assert ("boot-lab", "boot.run", "queued") == (job.request.pool, job.request.topic, job.state)
        assert {"image": "worker", "shift": "2", "boots": "3"} == job.request.labels
        at = f"/boot/runs/{run}"
        shown = msgspec.json.decode(await hive.ann.read(f"{at}/asked.json"))
        assert ("worker", "unix:ann", sha256) == (shown["image"], shown["by"], f"sha256:{shown['sha256']}")
        assert ("queued\n", "", "") == tuple(
            [await hive.ann.read(f"{at}/{name}") for name in ("status", "verdict", "timing.json")]
        )
        await hive.done(run, "user_fault: vm fault", timing='{"stages":[]}', diagnostics='{"cause":"x"}')
        assert "user_fault: vm fault\n" == await hive.ann.read(f"{at}/verdict")
        assert "succeeded\n" == await hive.ann.read(f"{at}/wait")
        assert "ROOT: ready\n" == await hive.ann.read(f"{at}/serial.log")
        assert "ready\n" == await hive.ann.read(f"{at}/serial.log@6")
        assert '{"cause":"x"}' == await hive.ann.read(f"{at}/diagnostics.json")
        assert '{"stages":[]}' == await hive.ann.read(f"/log/boot/runs/{run}.json")
        assert [f"{run}.json"] == await hive.ann.names("/log/boot/runs")
        assert [] == await hive.ann.names("/log/boot/elf_checks")
        other = await hive.submit()
        assert [run] == await hive.ann.names("/boot/runs")
        assert not await hive.ann.exists(f"/boot/runs/{other}")

    lab(story)


def test_images_and_runs_are_their_tenants_own() -> None:
    async def story(hive: Lab) -> None:
        await hive.put()
        run = await hive.say("run image=worker")
        await hive.done(run, "as expected", timing="{}")
        for who in (BOB, W1, L1):
            door = hive.door(who)
            assert [] == await door.names("/boot/images") == await door.names("/boot/runs")
            for path in ("images/worker", f"runs/{run}"):
                assert not await door.exists(f"/boot/{path}")
            assert not await door.exists(f"/log/boot/runs/{run}.json")
            assert E.USAGE is await refused(hive.say("run image=worker", who))

    lab(story)


def test_reports_of_layouts_are_found_by_the_hash_of_their_file() -> None:
    async def story(hive: Lab) -> None:
        name = f"{'0f' * 32}.json"
        for text in ("first", "second"):
            await hive.stage(name, text.encode())
            await hive.ann.write("/artifacts/ctl", f"seal name={name}")
        assert [name] == await hive.ann.names("/log/boot/elf_checks")
        assert "second" == await hive.ann.read(f"/log/boot/elf_checks/{name}")
        assert not await hive.ann.exists(f"/log/boot/elf_checks/{name}.sig")
        assert not await hive.door(BOB).exists(f"/log/boot/elf_checks/{name}")

    lab(story)


def test_who_may_submit_nothing_has_nothing_booted() -> None:
    async def story(hive: Lab) -> None:
        await hive.put()
        assert E.DENIED is await refused(hive.say("run image=worker", EYE))
        assert E.USAGE is await refused(hive.say("run image=other"))
        assert E.USAGE is await refused(hive.say("run image=worker shift=11"))
        assert E.USAGE is await refused(hive.say("run image=worker boots=101"))
        assert E.USAGE is await refused(hive.say("put image=Worker"))
        assert E.USAGE is await refused(hive.say("put image=other"))
        assert E.USAGE is await refused(hive.say("put image=a\nput image=b"))

    lab(story)


def test_a_machine_of_the_lab_is_given_no_other_job() -> None:
    async def story(hive: Lab) -> None:
        await hive.submit()
        await hive.hive.join(L1)
        assert "boot-lab" in hive.state.pools.by_name
        assert E.DENIED is await refused(hive.hive.command(L1, "/pools/default/next", ["lease"]))

    lab(story)


# how the hive itself began


def started(clock: ManualClock, path: Path | None, *settings: Setting) -> Starts:
    return Starts(path, clock, "1.0", settings)


def test_the_stages_of_a_start_are_logged_with_how_long_they_took(tmp_path: Path) -> None:
    clock = ManualClock()
    starts = started(clock, tmp_path / "boot.jsonl")
    for stage in STAGES:
        assert stage == starts.phase
        clock.time_ns += SECOND
        starts.ended(stage)
    lines = [msgspec.json.decode(line) for line in starts.log().splitlines()]
    assert [(stage, 1000.0, starts.hash) for stage in STAGES] == [
        (line["stage"], line["ms"], line["transcript"]) for line in lines
    ]
    for _ in range(100):
        again = started(clock, tmp_path / "boot.jsonl")
        for stage in STAGES:
            again.ended(stage)
    assert 65 * len(STAGES) == len(again.log().splitlines())


def test_the_same_settings_have_the_same_transcript_wherever_they_come_from() -> None:
    clock = ManualClock()
    role, name = Setting("role", "queen", "default"), Setting("name", "h", "SKEP_NAME")
    one, two = (
        started(clock, None, role, name),
        started(clock, None, name, Setting("role", "queen", "--role")),
    )
    assert one.hash == two.hash
    assert "name h SKEP_NAME\nrole queen default\n" == one.config
    assert one.hash != started(clock, None, role).hash


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://ann:secret@db/hive", "postgresql://ann:***@db/hive"),
        ("pkcs11:/m.so?token=a&pin-value=1234", "pkcs11:/m.so?token=a&pin-value=***"),
        ("two words", "'two words'"),
        ("unix:/run/h.sock", "unix:/run/h.sock"),
    ],
)
def test_a_setting_is_told_without_its_secret(value: str, shown: str) -> None:
    assert f"x {shown} --x\n" == started(ManualClock(), None, Setting("x", value, "--x")).config


def test_how_the_hive_began_is_told_to_its_auditors() -> None:
    async def story(hive: Lab) -> None:
        hive.hive.starts = started(hive.clock, None, Setting("role", "queen", "default"))
        assert "preboot\n" == await hive.ann.read("/boot/phase")
        assert "role queen default\n" == await hive.ann.read("/boot/config")
        assert "" == await hive.ann.read("/log/boot/starts")
        told = (await hive.ann.read("/boot/hash")).strip()
        assert hive.hive.starts.hash == told
        for who in (BOB, EYE, W1):
            for path in ("/boot/config", "/boot/hash", "/boot/phase", "/boot/transcript", "/log/boot/starts"):
                assert E.DENIED is await refused(hive.door(who).read(path))

    lab(story)
