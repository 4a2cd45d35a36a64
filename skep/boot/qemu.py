"""A QEMU of our own: its serial text, its monitor, its gdb stub, and that nothing of it is left.

The serial port is a pipe with one reader from start to end, which waits for nothing else: a guest whose
output nobody takes holds QEMU's lock. The monitor and the stub are socket pairs, so that no path is too long
and none is raced for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from qemu.qmp import ConnectError, Message, QMPClient, QMPError

from skep.boot.gdb import GdbError, Packets, insert, packet, remove

SERIAL_MAX: Final = 32 << 20  # bytes of a boot's text; what prints more is ended
REPLY_S: Final = 10.0  # for an answer of the monitor, or of the stub to what is no wait
END_S: Final = 2.0  # from asking QEMU to end to killing it
PIECE: Final = 65536
LAST_PIECES: Final = 32

# Kills QEMU with us, whatever ends us; also when we ended before it was told to.
GUARD: Final = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
NAMED: Final = "SKEP_QEMU_"  # SKEP_QEMU_AARCH64: what to run in place of qemu-system-aarch64


T = TypeVar("T")

# What it logs it raises too, and that is told.
logging.getLogger("qemu").addHandler(logging.NullHandler())


class LabError(Exception):
    """QEMU did not do its part."""


class NotStarted(LabError):
    """It ended, or did not answer, before the guest ran."""


class Reader:
    """Takes from a pipe what comes, from start to end, whatever else is waited for."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._take = take
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> bool:
        """Whether there was anything."""
        try:
            data = os.read(self._fd, PIECE)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            return False
        self._take(data)
        return True

    def close(self) -> None:
        """Take what is still in the pipe."""
        with contextlib.suppress(OSError):
            # More than a pipe holds is of somebody who still writes.
            for _ in range(LAST_PIECES):
                if not self._readable():
                    break
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


class Version(msgspec.Struct, frozen=True):
    """QEMU's, as query-version tells it."""

    major: int
    minor: int
    micro: int


class Told(msgspec.Struct, frozen=True):
    """What query-version answers. Another package of one version may count otherwise."""

    qemu: Version
    package: str = ""


class Replay(msgspec.Struct, frozen=True):
    """Of query-replay's answer, the instructions since reset."""

    icount: int


class Serial:
    """What the guest prints, with the time of each piece. ``heard`` is called with each."""

    def __init__(self, fd: int) -> None:
        self.data = bytearray()
        self.pieces: list[tuple[float, int]] = []  # (monotonic seconds, bytes up to there)
        self.heard: Callable[[bytes], None] = lambda data: None
        self.copied: Callable[[bytes], None] = lambda data: None  # the same, for who only listens
        self.full = asyncio.Event()
        self._reader = Reader(fd, self._take)
        self.close = self._reader.close

    def _take(self, data: bytes) -> None:
        if len(self.data) >= SERIAL_MAX:
            self.full.set()
            return
        self.data += data
        self.pieces.append((time.monotonic(), len(self.data)))
        self.copied(data)
        self.heard(data)


class Stub:
    """QEMU's gdb stub."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._packets = Packets()
        self._waiting: list[str] = []

    async def ask(self, body: str, seconds: float = REPLY_S) -> str:
        """Its answer, within ``seconds``. Raises LabError, TimeoutError."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(body)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise LabError(f"QEMU's gdb stub: {error.strerror}") from error

    async def _ask(self, body: str) -> str:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, packet(body))
        while not self._waiting:
            data = await loop.sock_recv(self._socket, PIECE)
            if not data:
                raise LabError("QEMU's gdb stub has closed")
            try:
                found = self._packets.feed(data)
            except GdbError as error:
                raise LabError(f"QEMU's gdb stub: {error}") from error
            self._waiting += found
            # For packets alone: any byte that comes while the guest runs, stops it.
            await loop.sock_sendall(self._socket, b"+" * len(found))
        return self._waiting.pop(0)

    async def set_break(self, address: int) -> None:
        await self._ok(insert(address))

    async def clear_break(self, address: int) -> None:
        await self._ok(remove(address))

    async def go(self, seconds: float) -> str:
        """Let the guest run until it stops. Raises TimeoutError when it does not."""
        return await self.ask("c", seconds)

    async def _ok(self, body: str) -> None:
        answer = await self.ask(body)
        if answer != "OK":
            raise LabError(f"QEMU's gdb stub: {body}: {answer or 'not supported'}")

    def close(self) -> None:
        self._socket.close()


class Machine:
    """A QEMU that has been started and waits for ``go``."""

    def __init__(self, process: asyncio.subprocess.Process, serial: Serial, stub: Stub | None) -> None:
        self.process = process
        self.serial = serial
        self.stub = stub
        self.monitor = QMPClient("skep")
        self.reply_s = REPLY_S
        self.stderr = b""
        self.was_reset = asyncio.Event()

    async def execute(self, command: str, **arguments: object) -> Any:
        """Raises LabError."""
        try:
            async with asyncio.timeout(self.reply_s):
                return await self.monitor.execute(command, arguments or None)
        except TimeoutError as error:
            raise LabError(f"{command}: QEMU did not answer within {self.reply_s:g} s") from error
        except (QMPError, OSError) as error:
            raise LabError(f"{command}: {error or type(error).__name__}") from error

    async def _asked(self, command: str, form: type[T]) -> T:
        """Raises LabError, also for an answer of another form."""
        try:
            return msgspec.convert(await self.execute(command), form)
        except msgspec.ValidationError as error:
            raise LabError(f"{command}: {error}") from error

    async def icount(self) -> int:
        """Instructions since reset."""
        return (await self._asked("query-replay", Replay)).icount

    async def registers(self) -> str:
        """As the monitor tells them to people. Raises LabError."""
        return str(await self.execute("human-monitor-command", **{"command-line": "info registers"}))

    async def memory(self, address: int, size: int, physical: bool = False) -> bytes:
        """``size`` bytes at an address of what runs now, or of the machine. Raises LabError."""
        with tempfile.TemporaryDirectory(prefix="skep-boot-") as folder:
            path = Path(folder) / "memory"
            await self.execute(
                "pmemsave" if physical else "memsave", val=address, size=size, filename=str(path)
            )
            return path.read_bytes()

    async def version(self) -> str:
        """Such as "7.2.9 (Debian 1:7.2+dfsg-7)"."""
        told = await self._asked("query-version", Told)
        package = told.package.strip().strip("()")
        return ".".join(map(str, msgspec.structs.astuple(told.qemu))) + (f" ({package})" if package else "")

    async def follow(self) -> None:
        """Watch for the reset that ends it."""
        async for event in self.monitor.events:
            if _is_reset(event):
                self.was_reset.set()


def _is_reset(event: Message) -> bool:
    data = event.get("data")
    reason = data.get("reason") if isinstance(data, dict) else ""
    return event.get("event") == "RESET" or (event.get("event") == "SHUTDOWN" and reason == "guest-reset")


@asynccontextmanager
async def started(
    argv: Sequence[str],
    where: Path,
    seconds: float,
    debugged: bool = False,
    logged: Callable[[bytes], None] | None = None,
) -> AsyncIterator[Machine]:
    """QEMU with ``argv`` in directory ``where``, stopped before its first instruction; ended at the end.

    ``logged`` is called with what it logs of exceptions. Raises NotStarted."""
    binary = _binary(argv[0])
    ours, theirs = socket.socketpair()
    serial_end, serial_fd = os.pipe()
    more = [
        *("-chardev", f"file,id=serial0,path=/dev/fd/{serial_fd}", "-serial", "chardev:serial0"),
        *("-chardev", f"socket,id=qmp0,fd={theirs.fileno()}", "-mon", "chardev=qmp0,mode=control"),
    ]
    passed = [serial_fd, theirs.fileno()]
    stub_end: socket.socket | None = None
    stub_theirs: socket.socket | None = None
    if debugged:
        stub_end, stub_theirs = socket.socketpair()
        more += ["-chardev", f"socket,id=gdb0,fd={stub_theirs.fileno()}", "-gdb", "chardev:gdb0"]
        passed.append(stub_theirs.fileno())
    log_end = log_fd = -1
    if logged is not None:
        log_end, log_fd = os.pipe()
        more += ["-d", "int", "-D", f"/dev/fd/{log_fd}"]
        passed.append(log_fd)
    try:
        process = await asyncio.create_subprocess_exec(
            *(*GUARD, str(os.getpid()), binary, *argv[1:], "-S", *more),
            cwd=where,
            pass_fds=passed,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Of its own, so that ^C is ours, and so that what a script has started is killed with it.
            process_group=0,
        )
    except OSError as error:
        for end in (ours, stub_end):
            if end is not None:
                end.close()
        for fd in (serial_end, log_end):
            if fd >= 0:
                os.close(fd)
        raise NotStarted(f"{GUARD[0]}: {error.strerror}") from error
    finally:
        theirs.close()
        os.close(serial_fd)
        if log_fd >= 0:
            os.close(log_fd)
        if stub_theirs is not None:
            stub_theirs.close()
    machine = Machine(process, Serial(serial_end), Stub(stub_end) if stub_end is not None else None)
    log = Reader(log_end, logged) if logged is not None else None
    errors = asyncio.ensure_future(_errors(machine))
    follower: asyncio.Task[None] | None = None
    asked = False
    try:
        await _connected(machine, ours, errors, seconds)
        follower = asyncio.ensure_future(machine.follow())
        yield machine
        asked = True
    finally:
        # Nothing is asked of it after a failure or ^C.
        await _end(machine, asked)
        await _last(errors)
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        machine.serial.close()
        if log is not None:
            log.close()
        if machine.stub is not None:
            machine.stub.close()


def _binary(name: str) -> str:
    """Where it is. Raises NotStarted."""
    said = os.environ.get(NAMED + name.removeprefix("qemu-system-").upper(), name)
    found = shutil.which(said)
    if found is None:
        raise NotStarted(f"{said}: there is no such command")
    return os.path.abspath(found)


async def _connected(
    machine: Machine, ours: socket.socket, errors: asyncio.Task[None], seconds: float
) -> None:
    """Raises NotStarted, with what QEMU itself says where it does."""
    process = machine.process
    try:
        async with asyncio.timeout(seconds):
            await machine.monitor.connect(ours)
    # Which of them it is when QEMU ends at once, is a race; the library asserts that it has not ended yet.
    except (ConnectError, OSError, EOFError, TimeoutError, AssertionError) as error:
        if not isinstance(error, TimeoutError):
            # It is about to end, and says why.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await process.wait()
        status = process.returncode
        await _end(machine, asked=False)
        await _last(errors)
        told = machine.stderr.decode("utf-8", "replace").strip()
        if not told and isinstance(error, TimeoutError):
            told = f"QEMU did not answer within {seconds:g} s"
        elif not told:
            told = f"QEMU ended with status {status}" if status is not None else "its monitor is none"
        raise NotStarted(told) from error


async def _last(errors: asyncio.Task[None]) -> None:
    """What QEMU has said to its end; what outlives it may go on to hold the pipe."""
    await asyncio.wait({errors}, timeout=END_S)
    errors.cancel()
    await asyncio.gather(errors, return_exceptions=True)


async def _errors(machine: Machine) -> None:
    """The end of what QEMU itself says."""
    assert machine.process.stderr is not None
    while piece := await machine.process.stderr.read(PIECE):
        machine.stderr = (machine.stderr + piece)[-PIECE:]


async def _end(machine: Machine, asked: bool) -> None:
    """Let it end if it can be ``asked``, else kill it and all that it has started; always wait for it."""
    process = machine.process
    try:
        if asked and process.returncode is None:
            with contextlib.suppress(LabError, TimeoutError):
                async with asyncio.timeout(END_S):
                    await machine.execute("quit")
                    await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    # It raises again what ended the conversation, whatever that was.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(END_S):
            await machine.monitor.disconnect()
