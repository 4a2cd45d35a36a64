"""One leased job on its node, whatever does the work: begun, renewed, looked after, told how it ended.

Its lease is renewed at each third of it and its ``wait`` is read all the while: an end by others (a cancel,
another's lease) stops the work at once. Work that may be over in no time is given some before anything is
said or watched: then its start and its end are one write. What is said is said again until it is answered;
the hive takes a word twice for the same word. The bytes that go in and out are here too: input, log,
artifacts.

What does the work is running.py's (a process) or worker.py's beside the rooms (a function).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.flight import Flight
from skep.fs.messages import IOHDRSZ, Rread, Rwrite, Tread, Twrite
from skep.roles.uplink import Uplink
from skep.trace.clock import SECOND, parse_duration

log = logging.getLogger("skep.worker")
RESULT_MAX: Final = 4096  # bytes: longer results are artifacts
ERROR_MAX: Final = 1024  # bytes of why a job failed; the rest is in its log
OUTPUT_MAX: Final = 1 << 16  # bytes: a larger output is staged as soon as it is there
RETRY_S: Final = 1.0  # between tries to say something that the hive cannot take now
_PASSING: Final = (E.NOSPACE, E.THROTTLED, E.OVERLOAD, E.BUSY, E.IO)
_LOST: Final = (E.FENCED, E.ILLEGAL_MOVE, E.CONFLICT, E.MISSING, E.DENIED)  # the lease is not ours any more


class Input(msgspec.Struct, frozen=True):
    """An artifact that goes into a job under a name. ``sha256`` in hex, ``size`` in bytes."""

    sha256: str
    size: int


class Lease(msgspec.Struct, frozen=True):
    """The line of /pools/<p>/next, as far as a worker needs it. Durations as written."""

    job: str
    attempt: int
    fence: int
    topic: str
    lease: str
    tenant: str = ""
    labels: dict[str, str] = {}
    input: str | None = None  # None: no text
    artifact: str = ""  # "sha256:<hex>", or "": none
    timeout: str = ""  # "": the job asks for none
    pool: str = ""  # whose next gave it
    patience: str = ""  # how much longer it may wait for a device; "": it does not say
    traceparent: str = ""  # W3C; "": its submitter gave none
    tracestate: str = ""
    inputs: dict[str, Input] = {}  # what goes in besides the input, by name


class Output(msgspec.Struct, frozen=True):
    """What is to be an output of a job. ``sha256`` in hex. ``data``: what is staged as the end is said; None:
    it is staged already."""

    sha256: str
    data: bytes | None = None


class JobFailed(Exception):
    """The attempt failed; the text is its error. ``code``: its kind, "" for what the hive calls it.
    ``delay``: before the next attempt, a duration; "": as the hive has it. ``final``: there is none."""

    def __init__(self, error: str, code: str = "", delay: str = "", final: bool = False) -> None:
        super().__init__(error)
        self.code = code
        self.delay = delay
        self.final = final


class Fallback(JobFailed):
    """The attempt ended for want of a device, which ``code`` says: another pool is to do the job, if the hive
    allows it."""


class LeaseLost(Exception):
    """Nothing that is said of the job counts any more: it was cancelled, or is another's."""


class LeaseOver(LeaseLost):
    """It is over by our own clock. The hive, when it is heard again, may count it as ours."""


Perform = Callable[["Leased"], Awaitable[str]]  # does the job; its result. Raises JobFailed.


class Leased:
    """One leased job. ``directory`` is its own, removed with it."""

    def __init__(
        self,
        lease: Lease,
        uplink: Uplink,
        directory: Path,
        uploading: asyncio.Lock,
        quiet_s: float = 0.0,
        begins: bool = False,
    ) -> None:
        """``quiet_s``: how long it runs before the hive is told that it does; 0: that is said first.
        ``begins``: what does the work says that itself, and on what; then it is also stopped when its lease
        is over by our own clock, heard of or not."""
        self.lease = lease
        self.uplink = uplink
        self.directory = directory
        self.path = f"/jobs/{lease.job}"
        self.why = ""  # it was taken from us, once it was
        # What cannot be stopped, and has its slot until it ends; None: nothing runs on.
        self.lingering: asyncio.Future[Any] | None = None
        self._uploading = uploading  # staged names are the node's: one job stages at a time
        self.ending = asyncio.Event()  # the work is over: what is left is to say so
        self._quiet_s = quiet_s
        self._begins = begins
        self._lease_s = parse_duration(lease.lease) / SECOND
        self._until_s = asyncio.get_running_loop().time() + self._lease_s  # of the lease, as far as we know
        self._leaving = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None  # None: start is not said yet
        self._outputs: dict[str, Output] = {}  # by name: sealed with the ack
        self._made: Path | None = None  # its directory; None: it is not there yet

    async def run(self, perform: Perform) -> None:
        """Do it, and tell the hive how it ended. Raises nothing but cancellation."""
        doing = asyncio.create_task(self._do(perform))
        try:
            if self._quiet_s:
                await asyncio.wait((doing,), timeout=self._quiet_s)
            if doing.done():
                doing.result()
            else:
                await self._watched(doing)
        except LeaseOver as over:
            await _stopped(doing)
            await self._give_back(over)
        except LeaseLost as lost:
            self._lost(lost)
        except (FsError, OSError) as error:
            log.warning("%s: %s", self.lease.job, error)
        finally:
            await _stopped(doing, *([] if self._starting is None else [self._starting]))
            if self.lingering is not None:
                await asyncio.wait((self.lingering,))
            if self.directory.exists():
                # A disk may take milliseconds for each name.
                await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def _lost(self, lost: LeaseLost) -> None:
        self.why = str(lost)
        log.info("%s: %s", self.lease.job, lost)

    async def _give_back(self, over: LeaseOver) -> None:
        """Nothing runs any more: until the hive knows, others wait for the job, and we for what it had."""
        self._lost(over)
        try:
            await self._say("release")
        except (LeaseLost, FsError) as error:
            log.info("%s: %s", self.lease.job, error)

    def leave(self) -> None:
        """Stop it and give the lease back: that is no failure of the job's, which goes to another."""
        self._leaving.set()

    async def _watched(self, doing: asyncio.Task[None]) -> None:
        """Until it is done, taken from us, or to be left."""
        watching = asyncio.create_task(self._watch())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait((watching, doing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
            elif watching.done():
                watching.result()
            else:
                await _stopped(doing)
                await self._say("release")
        finally:
            await _stopped(watching, leaving)

    async def begin(self) -> None:
        """Say that it runs, unless that has been said. Raises LeaseLost, FsError."""
        if self._starting is None:
            # By its name who comes after us here knows what we held. On a full disk the job itself will fail.
            with contextlib.suppress(OSError):
                self.made()
            self._starting = asyncio.create_task(self._say("start"))
        await asyncio.shield(self._starting)

    async def begin_on(self, on: Mapping[str, str]) -> None:
        """Say once that it runs, and what it takes of a device. Raises FsError when that cannot be had,
        E.BUSY when it cannot be had now: then nothing is begun. Raises LeaseLost."""
        with contextlib.suppress(OSError):
            self.made()  # as above
        self._starting = starting = asyncio.create_task(self._begin_on(on))
        try:
            await asyncio.shield(starting)
        except FsError:
            self._starting = None
            raise

    async def _begin_on(self, on: Mapping[str, str]) -> None:
        said = self._line("start", **on)
        while True:
            try:
                return await self.uplink.write(f"{self.path}/ctl", said)
            except FsError as error:
                if error.kind is E.ILLEGAL_MOVE and "running -> running" in error.detail:
                    return None  # said before the connection was lost
                # The fence of a device's lease is another than that of this one.
                if error.kind in (E.ILLEGAL_MOVE, E.MISSING) or error.detail.startswith("token="):
                    raise LeaseLost(f"start: {error}") from error
                if error.kind not in _PASSING or error.kind is E.BUSY:
                    raise
                log.warning("%s: start: %s; trying again", self.lease.job, error)
            await asyncio.sleep(RETRY_S)

    async def _do(self, perform: Perform) -> None:
        try:
            if not self._quiet_s and not self._begins:
                await self.begin()
            result = await perform(self)
        except Fallback as error:
            await self._end("fallback", reason=error.code, error=_told(error))
        except JobFailed as error:
            await self._nack(error)
        except (FsError, OSError) as error:
            _raise_lost(error)
            await self._nack(JobFailed(f"worker: {error}"))
        except LeaseLost:
            raise
        except Exception as error:
            # Who submits a job must not end what works for others: a mistake of ours is that job's end alone.
            log.exception("%s", self.lease.job)
            await self._nack(JobFailed(f"worker: {type(error).__name__}: {error}", final=True))
        else:
            try:
                await self._end("ack", result=result)
            except FsError as error:
                # It asks for another result than this, one of the topic's schema say.
                await self._nack(JobFailed(f"result: {error}"))

    async def _nack(self, error: JobFailed) -> None:
        said = {"error": _told(error), "code": error.code, "delay": error.delay}
        final = {"final": "true"} if error.final else {}
        await self._end("nack", **{name: value for name, value in said.items() if value}, **final)

    async def _end(self, verb: str, **args: str) -> None:
        """Say how it ended, and in the same write that it ran, unless that has been said, or it never did."""
        if self._quiet_s:
            self.ending.set()
        if self._starting is not None:
            await self.begin()
            return await self._say(verb, **args)
        if self._begins:
            return await self._say(verb, **args)
        start = self._line("start")
        try:
            return await self._say(verb, f"{start}\n", **args)
        except FsError as error:
            if error.kind is not E.ILLEGAL_MOVE:
                raise
        # Both were said before the connection was lost, or the lease is: the end alone tells.
        return await self._say(verb, **args)

    def _line(self, verb: str, **args: str) -> str:
        return line(verb, {"fence": str(self.lease.fence)} | args)

    async def _say(self, verb: str, before: str = "", **args: str) -> None:
        """Write a verb to the job's ctl, again when the hive cannot take it now. Raises LeaseLost when it
        does not count any more. ``before``: lines of the same write; then a move that is not legal is an
        FsError, for it may be one of theirs."""
        said = before + self._line(verb, **args)
        while True:
            try:
                if verb == "ack" and self._outputs:
                    return await self.uplink.do(partial(self._hand_in, f"{self._sealing()}{said}\n".encode()))
                return await self.uplink.write(f"{self.path}/ctl", said)
            except FsError as error:
                if error.kind is E.ILLEGAL_MOVE and "running -> running" in error.detail and not before:
                    return None  # said before the connection was lost
                if error.kind is E.ILLEGAL_MOVE and before:
                    raise
                if error.kind in _LOST:
                    raise LeaseLost(f"{verb}: {error}") from error
                if error.kind not in _PASSING:
                    raise
                log.warning("%s: %s: %s; trying again", self.lease.job, verb, error)
            await asyncio.sleep(RETRY_S)

    def _sealing(self) -> str:
        """Lines before that of the end: there is no output of a job that did not come to it."""
        seals = (
            self._line("seal", name=name, sha256=f"sha256:{of.sha256}") for name, of in self._outputs.items()
        )
        return "".join(f"{seal}\n" for seal in seals)

    async def _hand_in(self, said: bytes, client: Client) -> None:
        """Stage what is not staged yet and say the end, all at once. Where the one has come before the other,
        or something of an earlier time is there, one after the other."""
        small = {self._stage_name(name): of.data for name, of in self._outputs.items() if of.data is not None}
        staging = [_staging(client, name, data) for name, data in small.items()]
        ending = Flight(client, f"{self.path}/ctl", "w", lambda fid: Twrite(fid, 0, said))
        answers = (flight.wait() for flight in (*staging, ending))
        *staged, ended = await asyncio.gather(*answers, return_exceptions=True)
        if not isinstance(ended, BaseException):
            return
        overtaken = isinstance(ended, FsError) and ended.kind is E.USAGE
        if not overtaken and not any(isinstance(each, BaseException) for each in staged):
            raise ended
        for name, data in small.items():
            await _staged(client, name, io.BytesIO(data))
        await Flight(client, f"{self.path}/ctl", "w", lambda fid: Twrite(fid, 0, said)).wait()

    def _stage_name(self, name: str) -> str:
        return f"{self.lease.job}.{self.lease.fence}.{name}"

    # what watches over it

    async def _watch(self) -> None:
        """Say that it runs, renew the lease, and look out for the job's end by others. Raises LeaseLost."""
        ended = asyncio.create_task(self.uplink.wait_read(f"{self.path}/wait"))
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait((ended, renewing), return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                renewing.result()
            raise LeaseLost(_ending(ended))
        finally:
            await _stopped(ended, renewing)

    async def _renew(self) -> None:
        if not self._begins:
            await self.begin()
        while True:
            await asyncio.sleep(self._lease_s / 3)
            said_s = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(self._until_s if self._begins else None):
                    await self._say("renew")
                self._until_s = said_s + self._lease_s
            except FsError as error:
                log.warning("%s: renew: %s", self.lease.job, error)
            except TimeoutError:
                raise LeaseOver("its lease is over, and the hive was not heard") from None

    # its bytes

    async def input_file(self) -> Path | None:
        """A file with its input; None: it has none. Raises JobFailed when the input is not what its hash
        says."""
        if not self.lease.artifact:
            return self.text_file()
        file = self.made() / "input"
        await self._fetch(self.lease.artifact.removeprefix("sha256:"), file)
        return file

    async def input_files(self) -> dict[str, Path]:
        """A file for each of its inputs that have names, inputs/<name>; called once. What several are is
        fetched once, and there by links. Raises JobFailed when one is not what its hash says."""
        said = self.lease.inputs
        if not said:
            return {}
        room = self.made() / "inputs"
        room.mkdir()
        first: dict[str, str] = {}
        for name, each in said.items():
            if first.setdefault(each.sha256, name) != name:
                (room / name).symlink_to(first[each.sha256])
        fetching = [
            asyncio.create_task(self._fetch(sha256, room / name, said[name].size))
            for sha256, name in first.items()
        ]
        try:
            await asyncio.gather(*fetching)
        finally:
            await _stopped(*fetching)
        return {name: room / name for name in said}

    def text_file(self) -> Path | None:
        """A file with the text that is its input; None: its input is none."""
        if self.lease.input is None:
            return None
        file = self.made() / "input"
        file.write_text(self.lease.input, "utf-8")
        return file

    def made(self) -> Path:
        """Its directory, which is there."""
        if self._made is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._made = self.directory.resolve()
        return self._made

    async def _fetch(self, sha256: str, to: Path, size: int | None = None) -> None:
        """``size``: in bytes, as the lease says; None: it does not."""
        path = f"/artifacts/{sha256}/data"

        async def copy(client: Client) -> str:
            digest = hashlib.sha256()
            if size is not None and size < _unit(client):
                data = await _at_once(client, path)
                to.write_bytes(data)
                return hashlib.sha256(data).hexdigest()
            with to.open("wb") as file:
                async with await client.open(path) as fid:
                    async for piece in fid.pieces():
                        file.write(piece)
                        digest.update(piece)
            return digest.hexdigest()

        found = await self.uplink.do(copy)
        if found != sha256:
            raise JobFailed(f"integrity: {to.name} has sha256:{found}, not sha256:{sha256}")

    async def give(self, name: str, file: BinaryIO) -> str:
        """Have what ``file`` holds become an output in the write that says that the job has succeeded; its
        SHA-256. Raises LeaseLost, FsError."""
        await self.begin()
        try:
            self._outputs[name] = await self.uplink.do(partial(_output, self._stage_name(name), file))
        except FsError as error:
            _raise_lost(error)
            raise
        return self._outputs[name].sha256

    async def keep(self, name: str, file: BinaryIO, kind: str = "") -> str:
        """Make an artifact of the job of what ``file`` holds; its SHA-256. ``kind``: its class, "": the
        hive's choice. Raises LeaseLost, FsError."""

        async def stage(client: Client) -> str:
            sha256 = await _staged(client, name, file)
            # Here, for a seal whose answer was lost has taken the staged file: it is begun anew with that.
            said = line(
                "seal",
                {"name": name, "sha256": f"sha256:{sha256}", "job": self.lease.job}
                | ({"class": kind} if kind else {}),
            )
            data = f"{said}\n".encode()
            await Flight(client, "/artifacts/ctl", "w", lambda fid: Twrite(fid, 0, data)).wait()
            return sha256

        await self.begin()
        async with self._uploading:
            try:
                return await self.uplink.do(stage)
            except FsError as error:
                _raise_lost(error)
                raise

    async def send_log(self, pieces: Callable[[], Awaitable[bytes]]) -> None:
        """Append the pieces to the job's log, each once, until one of no bytes. A log that takes no more
        loses the rest: the job goes on."""
        path = f"{self.path}/log"
        sent: int | None = None  # None: not asked yet
        while piece := await pieces():
            await self.begin()
            try:
                if sent is None:
                    sent = (await self.uplink.do(lambda client: client.stat(path))).size
                await self.uplink.do(_appending(path, piece, sent))
            except FsError as error:
                log.warning("%s: log: %s", self.lease.job, error)
                while await pieces():
                    pass
                return
            sent += len(piece)

    async def report(self, percent: int | None, msg: str) -> None:
        """Say how far it is. Raises FsError."""
        await self.begin()
        said = {"msg": msg} | ({} if percent is None else {"percent": str(percent)})
        await self.uplink.write(f"{self.path}/ctl", line("progress", said | {"fence": str(self.lease.fence)}))


async def _stopped(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, and wait until they have ended; how is nobody's business."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _unit(client: Client) -> int:
    """Bytes of a file that fit into one message."""
    return client.connection.session.msize - IOHDRSZ


async def _at_once(client: Client, path: str) -> bytes:
    """The bytes of a file that fit into one message."""
    count = _unit(client)
    reply = await Flight(client, path, "r", lambda fid: Tread(fid, 0, count)).wait()
    assert isinstance(reply, Rread)
    return bytes(reply.data)


async def _output(name: str, file: BinaryIO, client: Client) -> Output:
    """What ``file`` holds: what is large is staged under the name."""
    file.seek(0)
    data = file.read(OUTPUT_MAX)
    if 0 < len(data) < min(OUTPUT_MAX, _unit(client)):
        return Output(hashlib.sha256(data).hexdigest(), data)
    return Output(await _staged(client, name, file))


def _staging(client: Client, name: str, data: bytes) -> Flight:
    """Of what fits into one message."""
    return Flight(client, "/artifacts/stage", "w", lambda fid: Twrite(fid, 0, data), create=name)


async def _staged(client: Client, name: str, file: BinaryIO) -> str:
    """The SHA-256 of what ``file`` holds, once it is staged under the name."""
    file.seek(0)
    data = file.read(_unit(client))
    if data and len(data) < _unit(client):
        with contextlib.suppress(FsError):  # one that is there already is written anew, below
            reply = await _staging(client, name, data).wait()
            if isinstance(reply, Rwrite) and reply.count == len(data):
                return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    path = f"/artifacts/stage/{name}"
    await client.write_file(path, b"", create=True)
    file.seek(0)
    async with await client.open(path, "w") as fid:
        offset = 0
        while piece := file.read(fid.unit):
            await fid.write_all(piece, offset)
            digest.update(piece)
            offset += len(piece)
    return digest.hexdigest()


def _raise_lost(error: Exception) -> None:
    """Raise LeaseLost if that is what a refusal means."""
    if isinstance(error, FsError) and error.kind in _LOST:
        raise LeaseLost(str(error)) from error


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


def _told(error: Exception) -> str:
    """Its text as a ctl line can carry it: what is quoted in it may be anything."""
    return cut(str(error).encode("utf-8", "replace"), ERROR_MAX)


def cut(text: bytes, size_max: int) -> str:
    """``text`` as a ctl line can carry it, its end cut off."""
    return text.decode("utf-8", "replace").encode()[:size_max].decode("utf-8", "ignore")
