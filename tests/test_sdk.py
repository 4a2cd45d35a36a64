"""skep.worker against a hive: results, failures, cancels, lost leases, drains, and a hive that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from skep.fs.address import Address, parse
from skep.fs.ctl import line
from skep.fs.server import listen
from skep.namespaces.artifacts.shelf import BYTES
from skep.namespaces.artifacts.store import place
from skep.namespaces.hive import WORKER
from skep.namespaces.live import Hive as Live
from skep.namespaces.packed import pack
from skep.namespaces.tree import hive_tree
from skep.roles.gate import Doorkeeper
from skep.roles.leased import Leased
from skep.roles.manifest import load
from skep.roles.worker import Plan, drive
from skep.trace.clock import SECOND, SystemClock
from skep.worker import Fail, Job, Retry, ThreadJob, Worker
from tests.daemons import Daemon, Hive, daemon, seconds
from tests.namespaces.door import Door, say
from tests.namespaces.hives import ANN, Living, living
from tests.networked import networked

LEASE_S = 1.0


class Ahead(SystemClock):
    """Some time from now: a hive lets leases be for a while after its start, and that while is over."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


class Field:
    """A hive in this process, its leases of one second, with a door for workers."""

    def __init__(self, alive: Living, address: str) -> None:
        self.alive = alive
        self.hive: Live = alive.hive
        self.address = address

    def worker(self, **more: Any) -> Worker:
        told: dict[str, Any] = {"hive": self.address, "node": "w7", "grace": 5.0} | more
        return Worker(**told)

    async def submit(self, topic: str, more: str = "") -> str:
        return (await self.alive.write("/jobs/ctl", f"submit topic={topic} {more}"))[0]

    async def write(self, path: str, line: str) -> None:
        await self.alive.write(path, line)

    async def wait_state(self, job: str, *states: str) -> str:
        """The text of the job, once it is in one of the states."""
        async with asyncio.timeout(10):
            while (found := self.hive.state.jobs.by_id[job]).state not in states:
                await self.hive.wait_news(job)
        return found.text

    async def ended(self, job: str) -> tuple[str, str]:
        text = await self.wait_state(job, "succeeded", "failed", "cancelled")
        return self.hive.state.jobs.by_id[job].state, text

    def log(self, job: str) -> str:
        return self.hive.logs.read(job, "log", 0, 1 << 20).decode()


@contextlib.asynccontextmanager
async def field(directory: Path) -> AsyncIterator[Field]:
    clock = Ahead()
    async with living(directory, clock=clock) as alive:  # type: ignore[arg-type]
        hive = alive.hive
        clock.ahead_ns = 15 * SECOND
        await alive.write("/pools/ctl", "create pool=brief lease=1s")
        for topic in TOPICS:
            await alive.write("/pools/ctl", f"map topic={topic} pool=brief")
        timers = asyncio.create_task(hive.run())
        keeper = Doorkeeper(hive, hive_tree(hive), load(WORKER))
        async with listen(keeper, Address("unix", path=f"{directory}/worker.sock")) as listener:
            try:
                yield Field(alive, str(listener.address))
            finally:
                timers.cancel()
                await asyncio.wait((timers,))


TOPICS = (
    "echo", "plain", "bytes", "json", "long", "raise", "retry", "fail", "exit", "slow", "busy", "put", "add",
)  # fmt: skip


def story(told: Callable[[Field], Awaitable[None]], directory: Path) -> None:
    async def run() -> None:
        async with field(directory) as found:
            await told(found)

    asyncio.run(run())


def handlers(worker: Worker) -> Worker:
    """What most stories need."""

    @worker.handles("echo")
    async def echo(job: Job) -> str | None:
        return job.text

    @worker.handles("plain")
    def plain(job: ThreadJob) -> str:
        return f"{job.text} {threading.current_thread() is not threading.main_thread()}"

    @worker.handles("bytes")
    async def data(job: Job) -> bytes:
        return b"\xff\x00"

    @worker.handles("json")
    def parsed(job: ThreadJob) -> object:
        return {"got": job.json()}

    @worker.handles("long")
    async def long(job: Job) -> str:
        return "x" * 5000

    @worker.handles("raise")
    def wrong(job: ThreadJob) -> None:
        job.log("about to")
        raise ValueError("no such size")

    @worker.handles("retry")
    async def again(job: Job) -> str:
        if job.attempt < 3:
            raise Retry("not yet", delay=0.01)
        return f"attempt {job.attempt}"

    @worker.handles("fail")
    async def final(job: Job) -> None:
        raise Fail("no image", code="bad-image")

    @worker.handles("exit")
    def leave(job: ThreadJob) -> None:
        sys.exit(3)

    @worker.handles("put")
    async def put(job: Job) -> str:
        job.progress(50, "half of it")
        return await job.put("copy", job.input_file())

    return worker


@pytest.mark.parametrize(
    ("what", "ended"),
    [
        ("echo input='it''s \"so\"'", ("succeeded", 'it\'s "so"')),
        ("plain input=x", ("succeeded", "x True")),
        ("bytes", ("succeeded", f"sha256:{hashlib.sha256(bytes([255, 0])).hexdigest()}")),
        ("json input='{\"a\": [1]}'", ("succeeded", '{"got":{"a":[1]}}')),
        ("json input=nothing", ("failed", "DecodeError: JSON is malformed: ")),
        ("long", ("succeeded", f"sha256:{hashlib.sha256(b'x' * 5000).hexdigest()}")),
        ("raise", ("failed", "ValueError: no such size")),
        ("fail retries=5", ("failed", "no image")),
        ("exit", ("failed", "SystemExit: 3")),
        ("put input=kept", ("succeeded", hashlib.sha256(b"kept").hexdigest())),
        ("slow", ("failed", "this worker has no handler for topic slow, only for ")),
    ],
)
def test_what_a_handler_returns_or_raises_is_how_its_job_ends(
    what: str, ended: tuple[str, str], tmp_path: Path
) -> None:
    async def told(field: Field) -> None:
        async with handlers(field.worker(pools=["brief"])):
            topic, _, more = what.partition(" ")
            state, text = await field.ended(await field.submit(topic, more))
            assert (ended[0], ended[1]) == (state, text[: len(ended[1])])

    story(told, tmp_path)


def test_a_mistake_of_the_workers_own_is_the_end_of_one_job_and_not_of_the_worker(tmp_path: Path) -> None:
    async def perform(leased: Leased) -> str:
        if leased.lease.input == "odd":
            raise KeyError("\ud800")  # what a terminal could not show, nor a line carry
        return "right"

    async def told(field: Field) -> None:
        plan = Plan(parse(field.address), "w7", tmp_path / "w7", perform, ("brief",))
        stop = asyncio.Event()
        working = asyncio.create_task(drive(plan, stop, lambda said: None))
        found = [
            await field.ended(await field.submit("echo", f"input={of} retries=3")) for of in ("odd", "x")
        ]
        assert [("failed", "worker: KeyError: '\\ud800'"), ("succeeded", "right")] == found
        stop.set()
        await working

    story(told, tmp_path)


def test_inputs_that_have_names_are_files_and_what_several_are_is_fetched_once(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        for name in ("x", "y"):
            await sealed(field, name, f"bytes of {name}")
        worker = field.worker(pools=["brief"])

        @worker.handles("add")
        def add(job: ThreadJob) -> object:
            links = [name for name, file in job.inputs.items() if file.is_symlink()]
            return [job.text, {name: file.read_text() for name, file in job.inputs.items()}, links]

        async with handlers(worker):
            assert ("succeeded", '["t",{},[]]') == await field.ended(await field.submit("add", "input=t"))
            job = await field.submit("add", "inputs=b:y,a:x,c:x input=t")
            said = '["t",{"a":"bytes of x","b":"bytes of y","c":"bytes of x"},["c"]]'
            assert ("succeeded", said) == await field.ended(job)
            digest = hashlib.sha256(b"bytes of y").hexdigest()
            (tmp_path / "artifacts" / place(BYTES, digest)).write_bytes(b"bytes of z")
            state, text = await field.ended(await field.submit("add", "inputs=a:x,b:y"))
            assert ("failed", "worker: integrity") == (state, text[:17])

    story(told, tmp_path)


async def sealed(field: Field, name: str, text: str) -> None:
    """Make an artifact of the text."""
    door = Door(hive_tree(field.hive), ANN)
    chan = await door.create("/artifacts/stage", name)
    await say(chan, text)
    await chan.clunk()
    await door.write("/artifacts/ctl", f"seal name={name}\n")


def test_a_short_job_is_begun_and_ended_in_one_entry(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        async with handlers(field.worker(pools=["brief"])):
            job = await field.submit("echo", "input=hi")
            assert ("succeeded", "hi") == await field.ended(job)
        (attempt,) = field.hive.state.jobs.by_id[job].attempts
        assert attempt.leased_ns < attempt.started_ns == attempt.ended_ns

    story(told, tmp_path)


@pytest.mark.slow
def test_an_exception_s_kind_and_traceback_are_kept_with_the_job(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        async with handlers(field.worker(pools=["brief"])):
            job = await field.submit("raise")
            await field.ended(job)
            assert "ValueError" == field.hive.state.jobs.by_id[job].code
            assert field.log(job).startswith("about to\nTraceback (most recent call last):\n")
            assert field.log(job).endswith("ValueError: no such size\n")
            again = await field.submit("retry", "retries=3")
            assert ("succeeded", "attempt 3") == await field.ended(again)

    story(told, tmp_path)


@pytest.mark.slow
def test_a_lease_is_renewed_while_a_plain_function_computes(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        worker = field.worker(pools=["brief"])

        @worker.handles("busy")
        def busy(job: ThreadJob) -> str:
            return "computed" if not job.cancelled.wait(2.5 * LEASE_S) else "stopped"

        async with worker:
            job = await field.submit("busy")
            assert ("succeeded", "computed") == await field.ended(job)
            assert 1 == len(field.hive.state.jobs.by_id[job].attempts)

    story(told, tmp_path)


def stoppable(worker: Worker, seen: asyncio.Queue[str]) -> Worker:
    """Handlers that run until they are cancelled, and say so."""
    loop = asyncio.get_running_loop()

    @worker.handles("slow")
    async def slow(job: Job) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.put_nowait(f"slow {job.cancelled.is_set()}")

    @worker.handles("busy")
    def busy(job: ThreadJob) -> None:
        job.cancelled.wait(60)
        loop.call_soon_threadsafe(seen.put_nowait, "busy")
        job.check()

    return worker


def test_a_cancel_reaches_async_and_plain_handlers_within_a_second(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()
        async with stoppable(field.worker(pools=["brief"]), seen):
            for topic, expected in (("slow", "slow False"), ("busy", "busy")):
                job = await field.submit(topic)
                await field.wait_state(job, "running")
                await field.write(f"/jobs/{job}/ctl", "cancel reason='not needed'")
                async with asyncio.timeout(seconds(1)):
                    assert expected == await seen.get()
                assert ("cancelled", "not needed") == await field.ended(job)

    story(told, tmp_path)


@pytest.mark.slow
def test_a_preemption_reaches_a_handler_and_the_more_urgent_job_is_done_first(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        text = "jobs.preempt = true\n"
        said = {"scope": "system", "sha256": hashlib.sha256(text.encode()).hexdigest()}
        await field.write("/config/ctl", line("publish", said | {"content": pack(text.encode())}))
        seen: asyncio.Queue[str] = asyncio.Queue()
        async with handlers(stoppable(field.worker(pools=["brief"]), seen)):
            for topic, expected in (("slow", "slow False"), ("busy", "busy")):
                job = await field.submit(topic, "priority=1")
                await field.wait_state(job, "running")
                urgent = await field.submit("echo", "priority=9 input=urgent")
                async with asyncio.timeout(10):
                    assert expected == await seen.get()
                assert ("succeeded", "urgent") == await field.ended(urgent)
                await field.wait_state(job, "running")
                assert ["preempted", ""] == [each.end for each in field.hive.state.jobs.by_id[job].attempts]
                await field.write(f"/jobs/{job}/ctl", "cancel")
                assert expected == await seen.get()

    story(told, tmp_path)


def test_a_handler_is_given_the_trace_to_hand_on(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        worker = field.worker(pools=["brief"])
        worker.handles("echo")(lambda job: f"{job.traceparent} {job.tracestate}")
        async with worker:
            parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            job = await field.submit("echo", f"traceparent={parent} tracestate=rojo=1")
            assert ("succeeded", f"{parent} rojo=1") == await field.ended(job)
            assert ("succeeded", " ") == await field.ended(await field.submit("echo"))

    story(told, tmp_path)


def test_a_job_out_of_time_is_ended_by_its_worker(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()
        async with stoppable(field.worker(pools=["brief"]), seen):
            for topic in ("slow", "busy"):
                job = await field.submit(topic, "timeout=100ms")
                assert ("failed", "timeout: it ran longer than 0.1 s") == await field.ended(job)
                assert "timeout" == field.hive.state.jobs.by_id[job].code
                assert (await seen.get()).startswith(topic)

    story(told, tmp_path)


def test_what_runs_longer_than_the_grace_is_given_back(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()
        async with stoppable(field.worker(pools=["brief"], concurrency=2, grace=0.05), seen):
            jobs = [await field.submit(topic) for topic in ("slow", "busy")]
            for job in jobs:
                await field.wait_state(job, "running")
        for job in jobs:
            found = field.hive.state.jobs.by_id[job]
            assert ("queued", "released") == (found.state, found.attempts[-1].end)

    story(told, tmp_path)


def test_what_runs_is_ended_within_the_grace_and_nothing_new_is_taken(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        worker = field.worker(pools=["brief"])

        @worker.handles("slow")
        async def slow(job: Job) -> str:
            await asyncio.sleep(0.2)
            return "ended"

        async with worker:
            first, second = [await field.submit("slow") for _ in range(2)]
            await field.wait_state(first, "running")
        jobs = field.hive.state.jobs.by_id
        assert ("succeeded", "queued") == (jobs[first].state, jobs[second].state)

    story(told, tmp_path)


# links that fail


class Relay:
    """A Unix socket before another one, whose traffic can be held, either way, and cut."""

    def __init__(self, path: Path, to: str) -> None:
        self.address = f"unix:{path}"
        self.path = path
        self.to = to.removeprefix("unix:")
        self.up = asyncio.Event()  # set: what is said gets through
        self.down = asyncio.Event()  # set: what is answered gets through
        self.last = b""  # what is said last: answers are held from then on; b"": nothing is
        self.writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Relay]:
        self.flow()
        server = await asyncio.start_unix_server(self._joined, self.path)
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def hold(self) -> None:
        self.up.clear()
        self.down.clear()

    def flow(self) -> None:
        self.up.set()
        self.down.set()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_unix_connection(self.to)
        except OSError:
            writer.close()
            return
        self.writers += [writer, back]
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(reader, back, self.up), self._pump(there, writer, self.down))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                await flowing.wait()
                if self.last and self.last in data:
                    self.last = b""
                    self.down.clear()
                writer.write(data)
        finally:
            writer.close()


@pytest.mark.slow
def test_a_lease_lost_while_a_function_computes_is_another_s_to_end(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()
        async with Relay(tmp_path / "relay.sock", field.address).listening() as relay:
            async with stoppable(field.worker(pools=["brief"], hive=relay.address), seen):
                job = await field.submit("busy")
                await field.wait_state(job, "running")
                relay.hold()
                await field.wait_state(job, "queued")
                second = field.worker(pools=["brief"], node="w8")
                second.handles("busy")(lambda job: f"by another, attempt {job.attempt}")
                async with second:
                    assert ("succeeded", "by another, attempt 2") == await field.ended(job)
                relay.flow()
                assert "busy" == await seen.get()
                other = await field.submit("busy")
                await field.wait_state(other, "running")
                await field.write(f"/jobs/{other}/ctl", "cancel")
                assert "busy" == await seen.get()
            ends = [each.end for each in field.hive.state.jobs.by_id[job].attempts]
            assert ["expired", "acked"] == ends

    story(told, tmp_path)


def test_an_ack_whose_answer_was_lost_is_said_again_and_ends_the_job_once(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        async with Relay(tmp_path / "relay.sock", field.address).listening() as relay:
            worker = field.worker(pools=["brief"], hive=relay.address)

            @worker.handles("slow")
            async def slow(job: Job) -> str:
                relay.last = b"ack fence="
                return "done"

            handlers(worker)
            async with worker:
                job = await field.submit("slow")
                assert ("succeeded", "done") == await field.ended(job)
                relay.cut()
                relay.flow()
                assert ("succeeded", "next") == await field.ended(await field.submit("echo", "input=next"))
            found = field.hive.state.jobs.by_id[job]
            assert (1, "done") == (len(found.attempts), found.text)

    story(told, tmp_path)


@pytest.mark.slow
def test_a_hive_killed_between_an_ack_and_its_answer_has_the_job_ended_once(tmp_path: Path) -> None:
    directory = tmp_path / "hive"
    pools = ("--pool", "default=slow,echo")

    async def told(began: Daemon, hive: Hive, restart: Callable[[], Daemon]) -> None:
        async with Relay(tmp_path / "relay.sock", hive.workers).listening() as relay:
            worker = handlers(Worker(relay.address, node="w7"))

            @worker.handles("slow")
            async def slow(job: Job) -> str:
                relay.last = b"ack fence="
                return "done"

            async with worker:
                job = await asyncio.to_thread(hive.submit, "topic=slow")
                assert "succeeded" == await asyncio.to_thread(hive.ask, "cat", f"/jobs/{job}/wait")
                await asyncio.to_thread(began.end, signal.SIGKILL)
                relay.cut()
                relay.flow()
                await asyncio.to_thread(restart)
                after = await asyncio.to_thread(hive.submit, "topic=echo input=next")
                assert "succeeded" == await asyncio.to_thread(hive.ask, "cat", f"/jobs/{after}/wait")
                events = await asyncio.to_thread(hive.ask, "cat", f"/jobs/{job}/events.jsonl")
                assert 1 == events.count("job.ended")

    serve = ("serve", "--dir", str(directory), *pools)
    with contextlib.ExitStack() as stack:
        began = stack.enter_context(daemon("ready", *serve))
        hive = Hive(directory)
        asyncio.run(told(began, hive, lambda: stack.enter_context(daemon("ready", *serve))))


@pytest.mark.slow
def test_a_thousand_jobs_by_eight_handlers_each_end_once(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        done: dict[str, int] = {}
        worker = field.worker(pools=["brief"], concurrency=8)

        @worker.handles("echo")
        async def echo(job: Job) -> str | None:
            done[job.id] = done.get(job.id, 0) + 1
            return job.text

        async with worker:
            jobs = [await field.submit("echo", f"input={n}") for n in range(1000)]
            for n, job in enumerate(jobs):
                assert ("succeeded", str(n)) == await field.ended(job)
        assert dict.fromkeys(jobs, 1) == done
        assert all(1 == len(field.hive.state.jobs.by_id[job].attempts) for job in jobs)

    story(told, tmp_path)


def test_a_worker_says_what_it_offers(tmp_path: Path) -> None:
    async def told(field: Field) -> None:
        async with field.worker(pools=["brief"], labels={"zone": "eu"}, capacity=3, concurrency=2):
            heard = field.hive.heard("w7")
            assert heard is not None
            assert ({"zone": "eu"}, 3) == (heard.said.labels, heard.said.capacity)

    story(told, tmp_path)


@pytest.mark.slow
def test_a_worker_by_tls_is_who_its_papers_say(tmp_path: Path) -> None:
    with networked(tmp_path) as hive:
        member = hive.enroll("drone-worker", "w9")

        async def told() -> str:
            worker = Worker(hive.tls, identity=member.directory)
            worker.handles("sha256")(lambda job: f"seen by {worker.node}, {job.text}")
            async with worker:
                job = await asyncio.to_thread(hive.submit, "topic=sha256 input=x")
                await asyncio.to_thread(hive.ask, "cat", f"/jobs/{job}/wait")
                return await asyncio.to_thread(hive.ask, "cat", f"/jobs/{job}/attempts")

        assert "node=w9" == asyncio.run(told()).split()[1]
