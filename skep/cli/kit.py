"""What the conformance kit for workers tries: a hive of its own, the worker under test, and named cases.

The worker is a command. It is told by its environment:

    SKEP_HIVE    the address where workers come in, unix:/…
    SKEP_NODE    the name to attach with (uname)
    SKEP_MOUNT   the hive, mounted in that name; only with --mount
    SKEP_TOPICS  the topics to handle, whose jobs are in the pool ``default``:

        kit.echo      the result is the input text
        kit.fail      the attempt fails, its error the input text
        kit.slow      takes as many seconds as the input says, then succeeds
        kit.artifact  the input is an artifact; its bytes become the artifact ``copy`` of the job

It does one job at a time until SIGTERM, which is sent to the command's own process; any other topic fails.
Each case has a fresh worker on the same hive, whose leases last two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from skep.cli.local import Part, start, stop
from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.namespaces.jobs.record import TERMINAL
from skep.namespaces.live import START_GRACE_NS
from skep.trace.clock import SECOND, parse_rfc3339

NODE: Final = "kit1"
OTHER: Final = "kit2"  # the kit itself, as another worker
TOPICS: Final = ("kit.echo", "kit.fail", "kit.slow", "kit.artifact")
UNKNOWN: Final = "kit.unknown"
LEASE_S: Final = 2
READY_S: Final = 15.0  # for a worker to read next
SOON_S: Final = 5.0  # for a job that takes no time
LONG_S: Final = 30.0  # for what waits for a hive to come back, or a lease to end
CANCEL_S: Final = 1.0
BEAT_S: Final = 15.0  # a node that is not heard for so long is suspect, and gets no leases
STEP_S: Final = 0.02
TEXT: Final = 'it\'s "so": a\\b {x} $HOME äöü 雪 *'


class Wrong(Exception):
    """The worker did otherwise; the text says what was expected and what was seen."""


class Case(NamedTuple):
    name: str
    title: str
    tries: Callable[[Kit], Awaitable[None]]


class Kit:
    """The hive, and the worker of one case after the other."""

    def __init__(self, directory: Path, command: tuple[str, ...], mounted: bool) -> None:
        self.directory = directory
        self.command = command
        self.mount = directory / "n" if mounted else None  # None: the worker has no mount
        self.address = f"unix:{directory}/hive.sock"
        self.door = f"unix:{directory}/worker.sock"
        self.queen = 0  # its pid
        self.began = 0.0  # when that started, of the monotonic clock
        self.worker: subprocess.Popen[bytes] | None = None  # None: none runs
        self.jobs: list[str] = []  # of the case

    # the ground

    @contextlib.asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Within it the hive runs. Raises Failed."""
        mounting = None
        try:
            self.start_queen()
            await self.write("/pools/ctl", line("create", {"pool": "default", "lease": f"{LEASE_S}s"}))
            for topic in (*TOPICS, UNKNOWN):
                await self.write("/pools/ctl", line("map", {"topic": topic, "pool": "default"}))
            if self.mount is not None:
                self.mount.mkdir()
                # The kernel's own client does not come back to a hive that was away.
                how = ("mount", "--way", "fuse", "--uname", NODE, self.door, str(self.mount))
                mounting = Part("mount", how, "mounted")
                mount_pid = start(self.directory, mounting)
            yield
        finally:
            if mounting is not None:
                stop(self.directory, mounting, mount_pid)
            self.signal_queen(signal.SIGKILL)

    def start_queen(self) -> None:
        where = ("--listen", self.address, "--listen-workers", self.door)
        part = Part("queen", ("serve", "--dir", str(self.directory), *where, "--pool", "unused"), "ready")
        self.queen, self.began = start(self.directory, part), time.monotonic()

    def signal_queen(self, number: signal.Signals) -> None:
        if self.queen:
            os.kill(self.queen, number)
        if number is signal.SIGKILL:
            self.queen = 0

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Within it a fresh worker runs, and has asked for its first job. Raises Wrong."""
        self.jobs.clear()
        told = {"SKEP_HIVE": self.door, "SKEP_NODE": NODE, "SKEP_TOPICS": " ".join(TOPICS)}
        if self.mount is not None:
            told["SKEP_MOUNT"] = str(self.mount)
        with (self.directory / "worker.log").open("wb") as log:
            self.worker = subprocess.Popen(
                self.command,
                env=os.environ | told,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await self.until(self._reads, READY_S, "the worker reads /pools/default/next", "it does not")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()
            self.signal_queen(signal.SIGCONT)  # a case may have been cut off that stopped it
            for job in self.jobs:
                with contextlib.suppress(FsError):
                    await self.write(f"/jobs/{job}/ctl", "cancel")
            await self.until(
                self._left, READY_S, "nobody reads next when the worker is gone", "somebody does"
            )

    async def _reads(self) -> bool:
        return (await self.read("/pools/default/workers")).startswith(f"{NODE} held=0 readers=1")

    async def _left(self) -> bool:
        return not await self.read("/pools/default/workers")

    # asking the hive

    async def read(self, path: str) -> str:
        async with await Client.connect(self.address, dialect=Dialect.U) as client:
            return (await client.read_file(path)).decode().rstrip("\n")

    async def write(self, path: str, text: str, uname: str | None = None) -> str:
        """The first word of the reply. ``uname``: the node that says it; None: an operator."""
        address = self.address if uname is None else self.door
        async with (
            await Client.connect(address, uname=uname, dialect=Dialect.U) as client,
            await client.open(path, "rw") as fid,
        ):
            await fid.write_all(f"{text}\n".encode())
            return (await fid.read(0, fid.unit)).decode().partition(" ")[0]

    async def submit(self, topic: str, input: str = "", **more: str) -> str:
        job = await self.write("/jobs/ctl", line("submit", {"topic": topic, "input": input} | more))
        self.jobs.append(job)
        return job

    async def until(
        self, holds: Callable[[], Awaitable[bool]], limit_s: float, expected: str, seen: str
    ) -> None:
        """Return when it holds. Raises Wrong. Looked at again and again, for processes tell nobody."""
        until = time.monotonic() + limit_s
        while not await holds():
            if (
                self.worker is not None
                and self.worker.poll() is not None
                and "worker is gone" not in expected
            ):
                seen = f"it ended with status {self.worker.returncode}: {self.said()}"
                raise Wrong(f"expected: {expected}; seen: {seen}")
            if time.monotonic() > until:
                raise Wrong(f"expected within {limit_s:g} s: {expected}; seen: {seen}")
            await asyncio.sleep(STEP_S)

    def said(self) -> str:
        """The end of what the worker printed."""
        text = (self.directory / "worker.log").read_text(errors="replace").strip()
        return " / ".join(text.splitlines()[-3:]) or "it printed nothing"

    async def state(self, job: str, *expected: str, limit_s: float = SOON_S) -> None:
        """Return when the job is in one of the states. Raises Wrong, also when it ended in another."""
        until = time.monotonic() + limit_s
        while (found := await self.read(f"/jobs/{job}/state")) not in expected:
            if found in TERMINAL or time.monotonic() > until:
                error = await self.read(f"/jobs/{job}/error")
                what = f"{found} {error}".strip()
                raise Wrong(f"expected within {limit_s:g} s: the job {' or '.join(expected)}; seen: {what}")
            await asyncio.sleep(STEP_S)

    async def attempts(self, job: str) -> list[dict[str, str]]:
        lines = (await self.read(f"/jobs/{job}/attempts")).splitlines()
        return [dict(word.split("=", 1) for word in text.split()[1:]) for text in lines]

    async def one_attempt(self, job: str) -> None:
        ends = [each.get("end", "held") for each in await self.attempts(job)]
        same("the job's attempts", ["acked"], ends)

    async def goes_on(self) -> None:
        """The worker does another job."""
        job = await self.submit("kit.echo", "next")
        await self.state(job, "succeeded", limit_s=LONG_S)


def same(what: str, expected: object, seen: object) -> None:
    if expected != seen:
        raise Wrong(f"{what}: expected {expected!r}; seen {seen!r}")


# the cases


async def takes(kit: Kit) -> None:
    job = await kit.submit("kit.echo", "hello")
    await kit.state(job, "succeeded")
    same("the result", "hello", await kit.read(f"/jobs/{job}/result"))


async def gives_back(kit: Kit) -> None:
    job = await kit.submit("kit.echo", TEXT)
    await kit.state(job, "succeeded")
    same("the result", TEXT, await kit.read(f"/jobs/{job}/result"))


async def once(kit: Kit) -> None:
    jobs = [await kit.submit("kit.echo", str(n)) for n in range(10)]
    for job in jobs:
        await kit.state(job, "succeeded", limit_s=LONG_S)
        await kit.one_attempt(job)


async def fails(kit: Kit) -> None:
    job = await kit.submit("kit.fail", "broken")
    await kit.state(job, "failed")
    error = await kit.read(f"/jobs/{job}/error")
    if "broken" not in error:
        raise Wrong(f"the error: expected one with 'broken' in it; seen {error!r}")
    await kit.goes_on()


async def retried(kit: Kit) -> None:
    job = await kit.submit("kit.fail", "broken", retries="1")
    await kit.state(job, "failed", limit_s=LONG_S)
    same("the attempts", ["nacked", "nacked"], [each["end"] for each in await kit.attempts(job)])


async def unknown(kit: Kit) -> None:
    await kit.state(await kit.submit(UNKNOWN), "failed")
    await kit.goes_on()


async def artifact(kit: Kit) -> None:
    data = bytes(range(256)) * 1024
    async with await Client.connect(kit.address, dialect=Dialect.U) as client:
        await client.write_file("/artifacts/stage/given", data, create=True)
    await kit.write("/artifacts/ctl", "seal name=given")
    job = await kit.submit("kit.artifact", "artifact:given")
    await kit.state(job, "succeeded")
    digest = hashlib.sha256(data).hexdigest()
    same("the job's artifacts", f"copy sha256:{digest}", await kit.read(f"/jobs/{job}/artifacts"))


async def renews(kit: Kit) -> None:
    # No lease ends in the first seconds of a hive.
    seconds = 2 * LEASE_S + 1 + max(0, round(kit.began + START_GRACE_NS / SECOND - time.monotonic()))
    job = await kit.submit("kit.slow", str(seconds))
    await kit.state(job, "succeeded", limit_s=seconds + LEASE_S + 1)
    await kit.one_attempt(job)


async def one(kit: Kit) -> None:
    jobs = [await kit.submit("kit.slow", "1") for _ in range(3)]
    for job in jobs:
        await kit.state(job, "succeeded", limit_s=LONG_S)
    spans = sorted([_span(each) for job in jobs for each in await kit.attempts(job)])
    for (_, ended), (leased, _) in pairwise(spans):
        if leased < ended:
            raise Wrong("expected: a job leased when the one before has ended; seen: two leases at a time")


def _span(attempt: dict[str, str]) -> tuple[int, int]:
    return parse_rfc3339(attempt["leased"]), parse_rfc3339(attempt["ended"])


async def cancelled(kit: Kit) -> None:
    slow = await kit.submit("kit.slow", "60")
    await kit.state(slow, "running")
    after = await kit.submit("kit.echo", "next")
    await kit.write(f"/jobs/{slow}/ctl", "cancel")
    await kit.state(after, "succeeded", limit_s=SOON_S)
    (stopped,) = await kit.attempts(slow)
    (taken,) = await kit.attempts(after)
    took_s = (parse_rfc3339(taken["leased"]) - parse_rfc3339(stopped["ended"])) / SECOND
    if took_s > CANCEL_S:
        raise Wrong(f"expected: the next job taken within {CANCEL_S:g} s of a cancel; seen: {took_s:.2f} s")


async def late(kit: Kit) -> None:
    job = await kit.submit("kit.slow", "1")
    await kit.state(job, "running")
    assert kit.worker is not None
    os.killpg(kit.worker.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(LONG_S):
            async with await Client.connect(kit.door, uname=OTHER, dialect=Dialect.U) as client:
                lease = msgspec.json.decode(await client.read_file("/pools/default/next"))
                for verb in ("start", "ack"):
                    said = {"fence": str(lease["fence"])} | ({"result": "another's"} if verb == "ack" else {})
                    await client.write_file(f"/jobs/{job}/ctl", f"{line(verb, said)}\n".encode())
    finally:
        os.killpg(kit.worker.pid, signal.SIGCONT)
    await kit.goes_on()
    same("the result", "another's", await kit.read(f"/jobs/{job}/result"))
    same("the attempts", ["expired", "acked"], [each["end"] for each in await kit.attempts(job)])


async def restarted(kit: Kit) -> None:
    job = await kit.submit("kit.slow", "3")
    await kit.state(job, "running")
    kit.signal_queen(signal.SIGKILL)
    kit.start_queen()
    await kit.state(job, "succeeded", limit_s=LONG_S)
    await kit.one_attempt(job)
    await kit.goes_on()


async def unanswered(kit: Kit) -> None:
    job = await kit.submit("kit.slow", "1")
    await kit.state(job, "running")
    kit.signal_queen(signal.SIGSTOP)
    # Its worker ends the job meanwhile and tells a hive that does not answer.
    await asyncio.sleep(2)
    kit.signal_queen(signal.SIGKILL)
    kit.start_queen()
    await kit.state(job, "succeeded", limit_s=LONG_S)
    await kit.one_attempt(job)


async def beats(kit: Kit) -> None:
    path = f"/nodes/{NODE}/heartbeat"
    last = await kit.read(path)

    async def heard() -> bool:
        return await kit.read(path) != last

    await kit.until(heard, BEAT_S, f"another heartbeat in {path}", f"still {last or 'none'}")


async def drains(kit: Kit) -> None:
    running, waiting = [await kit.submit("kit.slow", "2") for _ in range(2)]
    await kit.state(running, "running")
    assert kit.worker is not None
    kit.worker.terminate()
    try:
        status = await asyncio.to_thread(kit.worker.wait, LONG_S)
    except subprocess.TimeoutExpired:
        raise Wrong(f"expected: an end within {LONG_S:g} s of SIGTERM; seen: it runs on") from None
    same("the exit status", 0, status)
    same("the job that waited", "queued", await kit.read(f"/jobs/{waiting}/state"))
    state = await kit.read(f"/jobs/{running}/state")
    if state in ("leased", "running"):
        raise Wrong(f"the job that ran: expected its end, or the lease given back; seen {state}")


CASES: Final = (
    Case("takes", "takes a job by reading next, and acks it with the result", takes),
    Case("text", "gives a text back as it was: quotes, backslashes, any script", gives_back),
    Case("once", "does ten jobs, each in one attempt", once),
    Case("fails", "nacks what fails with its error, and goes on", fails),
    Case("retried", "tries again what is given again", retried),
    Case("unknown", "nacks a topic that it does not know", unknown),
    Case("artifact", "reads an artifact and seals one", artifact),
    Case("renews", "renews a lease that is too short for its job", renews),
    Case("one", "never takes two at a time", one),
    Case("cancel", "stops within a second when its job is cancelled", cancelled),
    Case("late", "is refused when it speaks after its lease, and goes on", late),
    Case("restart", "keeps its job when the hive is killed and comes back", restarted),
    Case("unanswered", "acks again when the hive died before it answered", unanswered),
    Case("beats", "writes a heartbeat every fifteen seconds or oftener", beats),
    Case("drain", "ends at SIGTERM with no lease left, and takes nothing new", drains),
)


class Verdict(NamedTuple):
    """``ok`` None: not claimed, not tried."""

    case: str
    ok: bool | None
    title: str
    why: str = ""
    seconds: float = 0.0


async def verdicts(kit: Kit, chosen: tuple[str, ...], without: tuple[str, ...]) -> AsyncIterator[Verdict]:
    """What came of each case, in their order. ``chosen``: those alone; none: all. Raises Failed."""
    async with kit.begun():
        for case in _chosen(chosen):
            if case.name in without:
                yield Verdict(case.name, None, case.title, "not claimed")
                continue
            began = time.monotonic()
            why = ""
            try:
                async with kit.working():
                    await case.tries(kit)
            except (Wrong, FsError, TimeoutError) as error:
                why = str(error) or f"no answer; {kit.said()}"
                if not kit.queen:
                    kit.start_queen()
            yield Verdict(case.name, not why, case.title, why, round(time.monotonic() - began, 2))


def _chosen(names: tuple[str, ...]) -> Iterator[Case]:
    return (case for case in CASES if not names or case.name in names)
