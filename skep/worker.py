"""A worker in Python: functions that do the jobs of their topics.

    from skep.worker import Job, Worker

    worker = Worker(node="w7")

    @worker.handles("resize")
    async def resize(job: Job) -> str:
        ...
        return "done"

    worker.run()

Leases are renewed and cancellations heard by the SDK, also while a plain function computes; the hive is found
again when it was away. What a handler returns is the job's result, what it raises its error. docs/WORKERS.md
tells more; a lease's life is roles/leased.py's, the loops are roles/worker.py's, those of `skep worker` too.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import msgspec

from skep.fs.address import Address, default_hive, parse
from skep.fs.errors import FsError
from skep.fs.link import Standing
from skep.roles.leased import RESULT_MAX, JobFailed, Leased, LeaseLost
from skep.roles.signals import told_signals
from skep.roles.worker import Plan, drive, host_node
from skep.trace.clock import MS, SECOND, duration, parse_duration

GRACE_S: Final = 30.0  # for what runs when told to stop; then it is given back
LOG_MAX: Final = 1 << 20  # bytes printed and not sent yet: what a handler prints beyond is not kept
PIECE: Final = 32 * 1024  # bytes of a log sent at a time
PROGRESS_S: Final = 0.1  # between two reports: what is said in between is replaced by what is said later
QUIET_S: Final = 0.015  # a job that is over by then is said to run and to have ended in one write
STOP_S: Final = 2.0  # for a plain function to see that it is cancelled, before the hive is told
H = TypeVar("H", bound=Callable[[Any], Any])


class Retry(JobFailed):
    """Raised by a handler: this attempt failed, and the next one may be better, if the job has retries left.
    ``delay``: seconds, or a duration like "10m"; None: as the hive has it."""

    def __init__(self, error: str = "retry", delay: float | str | None = None, code: str = "") -> None:
        text = duration(round(delay * 1000) * MS) if isinstance(delay, int | float) else delay or ""
        if text:
            parse_duration(text)
        super().__init__(error, code, text)


class Fail(JobFailed):
    """Raised by a handler: no attempt could succeed, whatever retries are left."""

    def __init__(self, error: str = "failed", code: str = "") -> None:
        super().__init__(error, code, final=True)


class Cancelled(Exception):
    """The job is not ours any more; raised by ``check`` so that a plain function ends."""


class _Given:
    """What a handler is given. Every method may be called from any thread."""

    def __init__(self, leased: Leased, input: Path | None, inputs: Mapping[str, Path]) -> None:
        lease = leased.lease
        self.id = lease.job
        self.topic = lease.topic
        self.attempt = lease.attempt  # from 1
        self.fence = lease.fence  # greater with each lease: for stores that refuse what comes too late
        self.tenant = lease.tenant
        self.labels = lease.labels
        self.text = lease.input  # the input, when it is one; None: it is an artifact, or nothing
        self.inputs = inputs  # files of the artifacts besides it, by their names; checked as it is
        self.traceparent = lease.traceparent  # W3C, to be handed on; "": there is none
        self.tracestate = lease.tracestate
        self.cancelled = threading.Event()  # set: stop, nothing that is said counts any more
        self._input = input
        self._leased = leased
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._printed = _Printed(leased)
        self._progress = _Progress(leased)

    @property
    def directory(self) -> Path:
        """Its own, removed afterwards."""
        return self._leased.made()

    def check(self) -> None:
        """Raise Cancelled when the job is not ours any more: cancelled, preempted, out of time."""
        if self.cancelled.is_set():
            raise Cancelled(self.id)

    def input_file(self) -> Path:
        """A file with the input; an artifact's bytes have been checked. Raises Fail when there is none."""
        file = self._input or self._leased.text_file()
        if file is None:
            raise Fail("the job has no input", "no-input")
        return file

    def json(self) -> Any:
        """The input, as JSON. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.input_file().read_bytes() if self.text is None else self.text)

    def log(self, text: str) -> None:
        """Print into the job's log, a line or several."""
        data = text.encode("utf-8", "replace")
        self._soon(self._printed.add, data if data.endswith(b"\n") else data + b"\n")

    def progress(self, percent: int | None = None, msg: str = "") -> None:
        """Say how far it is; the last word counts."""
        self._soon(self._progress.say, percent, msg)

    def _soon(self, do: Callable[..., None], *args: object) -> None:
        """On the loop: now if we are there, else with its next step."""
        if threading.get_ident() == self._thread:
            do(*args)
        else:
            self._loop.call_soon_threadsafe(do, *args)


class Job(_Given):
    """What an async handler is given."""

    async def put(self, name: str, what: Path | str | bytes) -> str:
        """Make an artifact of the job, of a file or of bytes; its SHA-256."""
        with _opened(what) as file:
            return await self._leased.keep(name, file)


class ThreadJob(_Given):
    """What a plain handler is given, which runs on a thread of its own."""

    def put(self, name: str, what: Path | str | bytes) -> str:
        """Make an artifact of the job, of a file or of bytes; its SHA-256."""
        with _opened(what) as file:
            keeping = asyncio.run_coroutine_threadsafe(self._leased.keep(name, file), self._loop)
            return keeping.result()


class Worker:
    """A node that does the jobs of the topics it has handlers for: ``run``, ``serve`` or ``async with``.

    hive          its address; None: SKEP_HIVE, or worker.sock beside the socket that this names
    node          its name in the hive; None: its identity's, else SKEP_NODE, else the host's
    pools         whose jobs it does
    concurrency   how many at a time, of each pool
    grace         seconds that what runs has when it is told to stop; then it is given back to the hive
    labels        what it has, told to the hive: jobs and pools may require it
    capacity      how many jobs it says that it can do at a time; 0: concurrency times pools
    identity      the directory of its papers, for tls: addresses; None: SKEP_IDENTITY, else skep enroll's
    directory     where its jobs have theirs; None: a temporary one
    """

    def __init__(
        self,
        hive: str | Address | None = None,
        *,
        node: str | None = None,
        pools: Iterable[str] = ("default",),
        concurrency: int = 1,
        grace: float = GRACE_S,
        labels: Mapping[str, str] | None = None,
        capacity: int = 0,
        identity: Path | str | None = None,
        directory: Path | str | None = None,
    ) -> None:
        """Raises ValueError for what is no address."""
        self.hive = _door() if hive is None else parse(hive) if isinstance(hive, str) else hive
        self.node = node
        self.pools = tuple(pools)
        self.concurrency = concurrency
        self.grace = grace
        self.labels = dict(labels or {})
        self.capacity = capacity
        self.identity = identity
        self.directory = directory
        self.handlers: dict[str, Callable[[Any], Any]] = {}
        self._told = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None  # None: not within ``async with``

    def handles(self, *topics: str) -> Callable[[H], H]:
        """Decorate what does the jobs of these topics: an async function of a Job, or a plain one of a
        ThreadJob, which gets a thread for each."""

        def register(handler: H) -> H:
            self.handlers.update(dict.fromkeys(topics, handler))
            return handler

        return register

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; a second one leaves undone what runs. Raises FsError when the hive
        refuses this node, ValueError when there are no papers for a tls: address, WorkerError."""
        import uvloop

        uvloop.run(self.serve())

    async def serve(self) -> None:
        """As ``run``, in a loop that runs already."""
        with told_signals() as told:
            await self._drive(told, lambda said: None)

    async def __aenter__(self) -> Worker:
        """Work until the end of the ``async with``; the hive has taken us in. Raises as ``run``."""
        self._told = asyncio.Event()
        ready = asyncio.Event()
        self._serving = asyncio.create_task(self._drive(self._told, lambda said: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait((self._serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._serving.cancel()
            raise
        finally:
            waiting.cancel()
        if self._serving.done():
            self._serving.result()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """What runs has its grace. Raises what ended the work before."""
        assert self._serving is not None
        self._told.set()
        await self._serving

    async def _drive(self, told: asyncio.Event, say: Callable[[str], None]) -> None:
        standing = _standing(self.hive, self.identity)
        own = "" if standing is None else standing().identity.name.node
        node = self.node or own or os.environ.get("SKEP_NODE") or host_node()
        with tempfile.TemporaryDirectory(prefix="skep-worker-", ignore_cleanup_errors=True) as place:
            plan = Plan(
                self.hive,
                node,
                Path(self.directory or place),
                self._perform,
                self.pools,
                self.concurrency,
                standing,
                self.grace,
                self.labels,
                self.capacity,
                QUIET_S,
            )
            await drive(plan, told, say)

    # one job

    async def _perform(self, leased: Leased) -> str:
        """The result. Raises JobFailed, and FsError, LeaseLost."""
        handler = self.handlers.get(leased.lease.topic)
        if handler is None:
            known = " ".join(self.handlers)
            raise Fail(
                f"this worker has no handler for topic {leased.lease.topic}, only for {known}", "no-handler"
            )
        path = await leased.input_file() if leased.lease.artifact else None
        kind = Job if inspect.iscoroutinefunction(handler) else ThreadJob
        job = kind(leased, path, await leased.input_files())
        try:
            ended = await _ended(job, handler)
            # What it printed is in the log when the job has ended.
            await job._printed.sent()
        except asyncio.CancelledError:
            job.cancelled.set()
            if leased.lingering is not None:
                await asyncio.wait((leased.lingering,), timeout=STOP_S)
            raise
        finally:
            await job._printed.stop()
            await job._progress.stop()
        if isinstance(ended, JobFailed):
            raise ended
        return ended


async def _ended(job: Job | ThreadJob, handler: Callable[[Any], Any]) -> str | JobFailed:
    """The result, or how the attempt failed; a traceback is in the job's log then. Raises LeaseLost."""
    timeout = job._leased.lease.timeout
    limit_s = parse_duration(timeout) / SECOND if timeout else None
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await _result(job, await _called(job, handler))
    except LeaseLost:
        raise
    except JobFailed as failed:
        return failed
    # CancelledError: of the handler's own making, for ours is seen by _perform.
    except (Exception, SystemExit, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        if isinstance(error, TimeoutError) and limit.expired():
            job.cancelled.set()
            return JobFailed(f"timeout: it ran longer than {limit_s:g} s", "timeout")
        job.log("".join(traceback.format_exception(error)))
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return JobFailed(said.replace("\n", " "), type(error).__name__)


async def _called(job: Job | ThreadJob, handler: Callable[[Any], Any]) -> object:
    """What the handler returns. A plain one goes on to its end when this is cancelled, and keeps its slot."""
    if isinstance(job, Job):
        awaited: Awaitable[object] = handler(job)
        return await awaited
    over = _on_thread(job, handler)
    job._leased.lingering = over
    result, error = await asyncio.shield(over)
    if error is not None:
        raise error
    return result


def _on_thread(
    job: ThreadJob, handler: Callable[[Any], Any]
) -> asyncio.Future[tuple[object, BaseException | None]]:
    """What the handler returns or raises. The thread does not keep the process from ending, as those of an
    executor would."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[tuple[object, BaseException | None]] = loop.create_future()

    def tell(result: object, error: BaseException | None) -> None:
        if not over.done():
            over.set_result((result, error))

    def call() -> None:
        result, raised = None, None
        try:
            result = handler(job)
        except BaseException as error:
            raised = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, raised)

    threading.Thread(target=call, name=f"job {job.id}", daemon=True).start()
    return over


async def _result(job: Job | ThreadJob, value: object) -> str:
    """The result as text: what is long, or none, is the artifact ``result``, its hash the result."""
    match value:
        case None:
            data = b""
        case str():
            data = value.encode()
        case bytes() | bytearray():
            data = bytes(value)
        case _:
            data = msgspec.json.encode(value)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if len(data) > RESULT_MAX or (data and not text):
        return f"sha256:{await job._leased.keep('result', io.BytesIO(data))}"
    return text


class _Told:
    """What a job says beside its end, told by a task that begins with the first word. On the loop."""

    def __init__(self, leased: Leased) -> None:
        self._leased = leased
        self._closed = False  # nothing more is said
        self._telling: asyncio.Task[None] | None = None  # None: nothing was said yet
        self._more = asyncio.Event()

    def _tell(self, telling: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._more.set()
        if self._telling is None and not self._closed:
            self._telling = asyncio.create_task(telling())

    async def stop(self) -> None:
        self._closed = True
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)


class _Printed(_Told):
    """What it printed; what is not sent yet is kept."""

    def __init__(self, leased: Leased) -> None:
        super().__init__(leased)
        self._kept = bytearray()
        self._lost = 0

    def add(self, data: bytes) -> None:
        room = LOG_MAX - len(self._kept)
        self._kept += data[:room]
        self._lost += max(0, len(data) - room)
        self._tell(lambda: self._leased.send_log(self._take))

    async def sent(self) -> None:
        """Nothing more is printed: returns when all is in the log. Raises LeaseLost."""
        self._closed = True
        self._more.set()
        if self._telling is not None:
            await self._telling

    async def _take(self) -> bytes:
        """The next piece; b"" at the end."""
        while not self._kept and not self._closed:
            self._more.clear()
            await self._more.wait()
        if not self._kept and self._lost:
            self._kept += b"[%d bytes were printed faster than they could be sent]\n" % self._lost
            self._lost = 0
        piece = bytes(self._kept[:PIECE])
        del self._kept[:PIECE]
        return piece


class _Progress(_Told):
    """How far it says it is."""

    def __init__(self, leased: Leased) -> None:
        super().__init__(leased)
        self._said: tuple[int | None, str] = (None, "")

    def say(self, percent: int | None, msg: str) -> None:
        self._said = (percent, msg)
        self._tell(self._report)

    async def _report(self) -> None:
        """Until cancelled, or refused: who watches the lease hears why."""
        while await self._more.wait():
            self._more.clear()
            try:
                await self._leased.report(*self._said)
            except FsError:
                return
            await asyncio.sleep(PROGRESS_S)


def _opened(what: Path | str | bytes) -> BinaryIO:
    return io.BytesIO(what) if isinstance(what, bytes) else open(what, "rb")


def _door() -> Address:
    """Where workers come in, of the hive that is meant when none is named."""
    hive = default_hive()
    return hive if hive.kind != "unix" else Address("unix", path=str(Path(hive.path).parent / "worker.sock"))


def _standing(hive: Address, identity: Path | str | None) -> Callable[[], Standing] | None:
    """What sessions are opened with; None: it is no tls: address. Raises PapersError."""
    if hive.kind != "tls":
        return None
    from skep.roles.enrolling import Shown  # OpenSSL takes a tenth of a second to import
    from skep.roles.papers import Papers, papers_for

    papers = papers_for(hive) if identity is None else Papers(Path(identity))
    return lambda: Shown(papers)
