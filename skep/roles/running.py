"""A job's process: a directory, a program, what it prints, what it leaves.

    <jobs>/<job>.<fence>/input   the input's bytes, when it has one
    <jobs>/<job>.<fence>/inputs/ those of the inputs that have names
    <jobs>/<job>.<fence>/out/    files left here become the job's artifacts
    <jobs>/<job>.<fence>/        the working directory and HOME of the process; removed afterwards

The process is the leader of a session of its own and is killed with it: at the time limit, when the job is
cancelled, when the lease is lost. It dies with its worker. It prints into the job's log as it runs; the
result is the last line of its standard output. The lease that it runs under is leased.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from skep.roles.handlers import PLACEHOLDERS, Handler
from skep.roles.leased import ERROR_MAX, RESULT_MAX, JobFailed, Lease, Leased, cut
from skep.trace.clock import SECOND, parse_duration

TAIL: Final = 64 * 1024  # bytes of standard output kept to find its last line in
PIECE: Final = 32 * 1024  # bytes of a log sent at a time
PIECES_MAX: Final = 16  # read and not sent yet: then the process waits for its pipe
OUTPUTS_MAX: Final = 64  # files of one job
KILL_S: Final = 2.0  # between asking a process to end and ending it


def performing(handlers: dict[str, Handler]) -> Callable[[Leased], Awaitable[str]]:
    """What does jobs by these handlers."""
    return lambda leased: Process(leased, handlers).perform()


class Process:
    """The process of one leased job."""

    def __init__(self, leased: Leased, handlers: dict[str, Handler]) -> None:
        self.leased = leased
        self.handlers = handlers
        self.directory = leased.directory
        self.tail = b""  # of standard output
        self.complaint = b""  # the end of standard error

    async def perform(self) -> str:
        """The result. Raises JobFailed."""
        lease = self.leased.lease
        handler = self.handlers.get(lease.topic)
        if handler is None:
            known = " ".join(self.handlers)
            raise JobFailed(f"this worker has no handler for topic {lease.topic}, only for {known}")
        (self.directory / "out").mkdir(parents=True)
        argv = handler.command(await self._values(), await self._inputs(handler.named()))
        if shutil.which(argv[0]) is None or "\0" in "".join(argv):
            raise JobFailed(f"{argv[0]}: no such program on this node")
        limit_ns = min(handler.timeout_ns, parse_duration(lease.timeout or handler.timeout))
        error = await self._process(argv, limit_ns / SECOND)
        if error:
            raise JobFailed(error)
        await self._keep_outputs()
        last = _last_line(self.tail)
        words = last.split()
        return cut(words[0] if words and handler.result == "first-word" else last, RESULT_MAX)

    async def _values(self) -> dict[str, str]:
        lease, path = self.leased.lease, await self.leased.input_file()
        labels = ",".join(f"{name}:{value}" for name, value in lease.labels.items())
        values = (str(path or ""), lease.input or "", lease.job, lease.topic, str(lease.attempt), labels)
        return dict(zip(PLACEHOLDERS, values, strict=True))

    async def _inputs(self, asked: Collection[str]) -> dict[str, str]:
        """The files of its inputs that have names. Raises JobFailed unless all that are asked for are."""
        if missing := sorted(set(asked).difference(self.leased.lease.inputs)):
            raise JobFailed(f"the job has no input named {' '.join(missing)}", "no-input", final=True)
        return {name: str(file) for name, file in (await self.leased.input_files()).items()}

    # the process

    async def _process(self, argv: list[str], limit_s: float) -> str:
        """Run it to its end; why it failed, or ""."""
        process = await asyncio.create_subprocess_exec(
            *_tied(argv),
            cwd=self.directory,
            env=_environment(self.directory, self.leased.lease),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        pieces: asyncio.Queue[bytes] = asyncio.Queue(PIECES_MAX)
        sending = asyncio.create_task(self.leased.send_log(pieces.get))
        reading = (
            asyncio.create_task(self._read(process.stdout, pieces, self._note)),
            asyncio.create_task(self._read(process.stderr, pieces, self._complain)),
        )
        try:
            in_time = await _ended(process, limit_s)
            # What it left running has its pipes still; it has been killed.
            await asyncio.wait(reading)
            await pieces.put(b"")
            await sending
        finally:
            for task in (*reading, sending):
                task.cancel()
            await asyncio.wait((*reading, sending))
        if not in_time:
            return f"timeout: it ran longer than {limit_s:g} s"
        return _exit_text(process.returncode, _last_line(self.complaint))

    def _note(self, piece: bytes) -> None:
        self.tail = (self.tail + piece)[-TAIL:]

    def _complain(self, piece: bytes) -> None:
        self.complaint = (self.complaint + piece)[-ERROR_MAX:]

    async def _read(
        self, stream: asyncio.StreamReader, pieces: asyncio.Queue[bytes], note: Callable[[bytes], None]
    ) -> None:
        while piece := await stream.read(PIECE):
            note(piece)
            await pieces.put(piece)

    # what it leaves

    async def _keep_outputs(self) -> None:
        """Make artifacts of the plain files in out/."""
        names = sorted(os.listdir(self.directory / "out"))
        if len(names) > OUTPUTS_MAX:
            raise JobFailed(f"out/ has {len(names)} files, at most {OUTPUTS_MAX} are kept")
        for name in names:
            # No link is followed: it could name any file of this machine.
            try:
                fd = os.open(self.directory / "out" / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise JobFailed(f"out/{name}: {error.strerror}: expected a plain file") from error
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise JobFailed(f"out/{name}: expected a plain file")
                await self.leased.keep(name, file)


def _tied(argv: list[str]) -> list[str]:
    """``argv``, so that it ends when its worker does, where util-linux can do that."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *argv] if setpriv else argv


def _environment(directory: Path, lease: Lease) -> dict[str, str]:
    """Little: what the worker's own environment holds is nobody's business. The trace is handed on as
    OpenTelemetry has it for processes."""
    home = str(directory.resolve())
    path = os.environ.get("PATH", os.defpath)
    trace = {"TRACEPARENT": lease.traceparent, "TRACESTATE": lease.tracestate}
    return {
        "PATH": path, "HOME": home, "TMPDIR": home, "LANG": os.environ.get("LANG", "C.UTF-8"),
    } | {name: value for name, value in trace.items() if value}  # fmt: skip


async def _ended(process: asyncio.subprocess.Process, limit_s: float) -> bool:
    """Wait for its end, bring it about at the limit, and end all it started; whether it was in time."""
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
        return True
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_S):
                    await process.wait()
        _signal(process.pid, signal.SIGKILL)
        await process.wait()


def _signal(session: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, number)


def _exit_text(returncode: int | None, complaint: bytes) -> str:
    """Why it failed, with the last line of its standard error; "": it did not."""
    if not returncode:
        return ""
    why = f"exit status {returncode}" if returncode > 0 else f"ended by {signal.Signals(-returncode).name}"
    return f"{why}: {complaint.decode(errors='replace')}" if complaint else why


def _last_line(tail: bytes) -> bytes:
    lines = [text for text in tail.splitlines() if text.strip()]
    return lines[-1].strip() if lines else b""
