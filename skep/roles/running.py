"""One job on a node, from its lease to its ack: a directory, a process, what it prints, what it leaves.

    <jobs>/<job>/input     the input's bytes, when it has one
    <jobs>/<job>/out/      files left here become the job's artifacts
    <jobs>/<job>/          the working directory and HOME of the process; removed afterwards

The process is the leader of a session of its own and is killed with it: at the time limit, when the job is
cancelled, when the lease is lost. It dies with its worker. It prints into the job's log as it runs; the
result is the last line of its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.roles.handlers import PLACEHOLDERS, Handler
from skep.roles.uplink import Uplink
from skep.trace.clock import SECOND, parse_duration

log = logging.getLogger("skep.worker")
RESULT_MAX: Final = 4096  # bytes: longer results are artifacts
ERROR_MAX: Final = 1024  # bytes of why a job failed; the rest is in its log
TAIL: Final = 64 * 1024  # bytes of standard output kept to find its last line in
PIECE: Final = 32 * 1024  # bytes of a log sent at a time
PIECES_MAX: Final = 16  # read and not sent yet: then the process waits for its pipe
OUTPUTS_MAX: Final = 64  # files of one job
KILL_S: Final = 2.0  # between asking a process to end and ending it
RETRY_S: Final = 1.0  # between tries to say something that the hive cannot take now
_PASSING: Final = (E.NOSPACE, E.THROTTLED, E.OVERLOAD, E.BUSY, E.IO)
_LOST: Final = (E.FENCED, E.ILLEGAL_MOVE, E.CONFLICT, E.MISSING, E.DENIED)  # the lease is not ours any more


class Lease(msgspec.Struct, frozen=True):
    """The line of /pools/<p>/next, as far as a worker needs it. Durations as written."""

    job: str
    attempt: int
    fence: int
    topic: str
    lease: str
    input: str | None = None  # None: no text
    artifact: str = ""  # "sha256:<hex>", or "": none
    timeout: str = ""  # "": the job asks for none


class JobFailed(Exception):
    """The job failed; the text is its error."""


class LeaseLost(Exception):
    """Nothing that is said of the job counts any more: it was cancelled, or is another's."""


class Running:
    """One leased job."""

    def __init__(
        self, lease: Lease, handlers: dict[str, Handler], uplink: Uplink, jobs: Path, uploading: asyncio.Lock
    ) -> None:
        self.lease = lease
        self.handlers = handlers
        self.uplink = uplink
        self.directory = jobs / f"{lease.job}.{lease.fence}"
        self.uploading = uploading
        self.path = f"/jobs/{lease.job}"
        self.tail = b""  # of standard output
        self.complaint = b""  # the end of standard error

    async def run(self) -> None:
        """Do it, and tell the hive how it ended. Raises nothing but cancellation."""
        watching = asyncio.create_task(self._watch())
        doing = asyncio.create_task(self._do())
        try:
            await asyncio.wait((watching, doing), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
            else:
                watching.result()
        except LeaseLost as lost:
            log.info("%s: %s", self.lease.job, lost)
        except (FsError, OSError) as error:
            log.warning("%s: %s", self.lease.job, error)
        finally:
            for task in (watching, doing):
                task.cancel()
            await asyncio.wait((watching, doing))
            shutil.rmtree(self.directory, ignore_errors=True)

    async def _do(self) -> None:
        try:
            await self._say("start")
            result = await self._perform()
        except JobFailed as error:
            await self._say("nack", error=_cut(str(error).encode(), ERROR_MAX))
        except (FsError, OSError) as error:
            if isinstance(error, FsError) and error.kind in _LOST:
                raise
            await self._say("nack", error=_cut(f"worker: {error}".encode(), ERROR_MAX))
        else:
            await self._say("ack", result=result)

    async def _perform(self) -> str:
        """The result. Raises JobFailed."""
        handler = self.handlers.get(self.lease.topic)
        if handler is None:
            known = " ".join(self.handlers)
            raise JobFailed(f"this worker has no handler for topic {self.lease.topic}, only for {known}")
        (self.directory / "out").mkdir(parents=True)
        argv = handler.command(await self._values())
        if shutil.which(argv[0]) is None or "\0" in "".join(argv):
            raise JobFailed(f"{argv[0]}: no such program on this node")
        limit_ns = min(handler.timeout_ns, parse_duration(self.lease.timeout or handler.timeout))
        error = await self._process(argv, limit_ns / SECOND)
        if error:
            raise JobFailed(error)
        await self._keep_outputs()
        last = _last_line(self.tail)
        words = last.split()
        return _cut(words[0] if words and handler.result == "first-word" else last, RESULT_MAX)

    async def _say(self, verb: str, **args: str) -> None:
        """Write a verb to the job's ctl, again when the hive cannot take it now. Raises LeaseLost when it
        does not count any more."""
        said = line(verb, {"fence": str(self.lease.fence)} | args)
        while True:
            try:
                return await self.uplink.write(f"{self.path}/ctl", said)
            except FsError as error:
                if error.kind is E.ILLEGAL_MOVE and "running -> running" in error.detail:
                    return None  # said before the connection was lost
                if error.kind in _LOST:
                    raise LeaseLost(f"{verb}: {error}") from error
                if error.kind not in _PASSING:
                    raise
                log.warning("%s: %s: %s; trying again", self.lease.job, verb, error)
            await asyncio.sleep(RETRY_S)

    # what it needs

    async def _values(self) -> dict[str, str]:
        lease = self.lease
        path = ""
        if lease.artifact or lease.input is not None:
            file = self.directory / "input"
            path = str(file.resolve())
            if lease.artifact:
                await self._fetch(lease.artifact.removeprefix("sha256:"), file)
            else:
                file.write_text(lease.input or "", "utf-8", "surrogateescape")
        values = (path, lease.input or "", lease.job, lease.topic, str(lease.attempt))
        return dict(zip(PLACEHOLDERS, values, strict=True))

    async def _fetch(self, sha256: str, to: Path) -> None:
        """Copy an artifact to a file. Raises JobFailed when its bytes are not what its name says."""

        async def copy(client: Client) -> str:
            digest = hashlib.sha256()
            with to.open("wb") as file:
                async with await client.open(f"/artifacts/{sha256}/data") as fid:
                    async for piece in fid.pieces():
                        file.write(piece)
                        digest.update(piece)
            return digest.hexdigest()

        found = await self.uplink.do(copy)
        if found != sha256:
            raise JobFailed(f"integrity: the input has sha256:{found}, not sha256:{sha256}")

    # the process

    async def _process(self, argv: list[str], limit_s: float) -> str:
        """Run it to its end; why it failed, or ""."""
        process = await asyncio.create_subprocess_exec(
            *_tied(argv),
            cwd=self.directory,
            env=_environment(self.directory),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        pieces: asyncio.Queue[bytes] = asyncio.Queue(PIECES_MAX)
        sending = asyncio.create_task(self._send_log(pieces))
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

    async def _send_log(self, pieces: asyncio.Queue[bytes]) -> None:
        """Append the pieces to the job's log, each once, until one of no bytes. A log that takes no more
        loses the rest: the job goes on."""
        path = f"{self.path}/log"
        sent = (await self.uplink.do(lambda client: client.stat(path))).size
        while piece := await pieces.get():
            try:
                await self.uplink.do(_appending(path, piece, sent))
            except FsError as error:
                log.warning("%s: log: %s", self.lease.job, error)
                while await pieces.get():
                    pass
                return
            sent += len(piece)

    # what watches over it

    async def _watch(self) -> None:
        """Renew the lease, and look out for the job's end by others. Raises LeaseLost."""
        ended = asyncio.create_task(self.uplink.wait_read(f"{self.path}/wait"))
        try:
            while True:
                third_s = parse_duration(self.lease.lease) / SECOND / 3
                done, _ = await asyncio.wait((ended,), timeout=third_s)
                if done:
                    raise LeaseLost(_ending(ended))
                try:
                    await self._say("renew")
                except FsError as error:
                    log.warning("%s: renew: %s", self.lease.job, error)
        finally:
            ended.cancel()

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
                async with self.uploading:
                    await self._keep(name, file)

    async def _keep(self, name: str, file: BinaryIO) -> None:
        path = f"/artifacts/stage/{name}"

        async def stage(client: Client) -> str:
            digest = hashlib.sha256()
            await client.write_file(path, b"", create=True)
            file.seek(0)
            async with await client.open(path, "w") as fid:
                offset = 0
                while piece := file.read(fid.unit):
                    await fid.write_all(piece, offset)
                    digest.update(piece)
                    offset += len(piece)
            return digest.hexdigest()

        sha256 = await self.uplink.do(stage)
        said = {"name": name, "sha256": f"sha256:{sha256}", "job": self.lease.job}
        await self.uplink.write("/artifacts/ctl", line("seal", said))


def _ending(ended: asyncio.Task[bytes]) -> str:
    """What a read of the job's ``wait`` came to."""
    try:
        return f"it is {ended.result().decode().strip()}"
    except FsError as error:
        return str(error)


def _appending(path: str, piece: bytes, offset: int) -> Callable[[Client], Awaitable[None]]:
    """Append ``piece`` at ``offset``, what is there of it already left out: nobody else appends."""

    async def append(client: Client) -> None:
        async with await client.open(path, "w") as fid:
            there = (await fid.attr()).size - offset
            if there < len(piece):
                await fid.write_all(piece[max(there, 0) :])

    return append


def _tied(argv: list[str]) -> list[str]:
    """``argv``, so that it ends when its worker does, where util-linux can do that."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *argv] if setpriv else argv


def _environment(directory: Path) -> dict[str, str]:
    """Little: what the worker's own environment holds is nobody's business."""
    home = str(directory.resolve())
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "HOME": home, "TMPDIR": home, "LANG": os.environ.get("LANG", "C.UTF-8")}


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


def _cut(text: bytes, size_max: int) -> str:
    """``text`` as a ctl line can carry it, its end cut off."""
    return text.decode("utf-8", "replace").encode()[:size_max].decode("utf-8", "ignore")
