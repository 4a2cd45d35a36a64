"""Kernels in a process of their own, with limits: one that faults, hangs or takes all memory ends that alone.

A process is started by its first run and stays for the next ones: a lease has one. It ends with this one,
however that ends."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Final, Self

from skep.native.kernels.request import (
    FORMS,
    LIFE,
    READY,
    WARM,
    Done,
    Made,
    Request,
    RunError,
    answered,
    asked,
)

START_NS: Final = 60_000_000_000  # for Python and numpy to be there: a cold disk has taken ten seconds
ENDING_NS: Final = 1_000_000_000  # of a process whose pipe has ended, until it has too
POLL_MAX_MS: Final = (1 << 31) - 1  # poll(2) takes an int
ANSWER_MAX: Final = 1 << 20  # bytes
ASIDE: Final = ".making-"  # where results are until all of them are whole, in the directory for them
# Its threads wait for each other by spinning: on two busy processors two of them multiply at a third of the
# rate of one. Leases are what goes side by side; who has processors to spare sets it to more.
ONE_THREAD: Final = "OPENBLAS_NUM_THREADS"
# CUDA counts devices from the fastest on unless told; NVML, by which an annex lists them, does so.
BY_BUS: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# Of this process's environment, what Python, CUDA and the libraries ask for. The rest may be secrets of it,
# and a process for kernels is the first that somebody else's mistakes are in.
PASSED_ON: Final = re.compile(
    r"PATH|HOME|TMPDIR|TZ|LANG|LC_\w+|LD_LIBRARY_PATH|XDG_CACHE_HOME|VIRTUAL_ENV|PYTHON\w+|SKEP_NO_CUDA"
    r"|(CUDA|CUPY|NVIDIA|NUMBA|OPENBLAS|NVPL|OMP|MKL)_\w+"
)


class Process:
    """The process of a lease; runs come one at a time, from whatever thread. ``warm``: it loads numba before
    its first."""

    def __init__(self, warm: bool = False) -> None:
        self._warm = warm
        self._killed = False
        self._child: subprocess.Popen[bytes] | None = None
        self._life = -1
        self._used = False  # something has run in it
        # Held where the child is reaped or signalled: a number that is free may be another's.
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        """None: none was started, or it ended."""
        child = self._child
        return None if child is None else child.pid

    @property
    def died(self) -> bool:
        """Whether it was started and has ended by itself, or by somebody who was short of memory."""
        with self._lock:
            if self._child is None:
                return False
            # It is reaped elsewhere.
            look = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._child.pid, look) is not None

    def start(self) -> None:
        """Start it ahead of its first run. Raises RunError."""
        if self._child is None:
            self._started()

    def run(self, request: Request) -> Done:
        """Run it, to its end: results are in ``request.out`` when this returns, all of them, and none where
        it raises. A source that was brought has a process that nothing else runs in, before or after. Raises
        RunError, after which the process may be another."""
        assert request.form in FORMS
        if request.source is not None and self._used:
            self.end()
        self._used = True
        try:
            with _aside(request.out) as aside:
                done = self._ran(request._replace(out=aside))
                return done._replace(out={name: moved(of, request.out) for name, of in done.out.items()})
        except RunError as error:
            if self._killed:
                raise RunError("killed", f"{request.kernel}: its process was told to end") from error
            raise
        finally:
            if request.source is not None:
                self.end()

    def kill(self) -> None:
        """End the run that goes on in another thread: it, and any later one, raises RunError ``killed``."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                _end_all(self._child)

    def end(self) -> None:
        """Kill it with all that it started; a process with no run in it loses nothing. Not while a run goes
        on: that is ``kill``."""
        with self._lock:
            child, self._child = self._child, None
            if child is None:
                return
            _end_all(child)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._life)

    def _ran(self, request: Request) -> Done:
        child = self._child or self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(asked(request))
            child.stdin.flush()
        except BrokenPipeError:
            raise self._died(request.kernel) from None
        try:
            line = self._line(child, int(request.seconds * 1e9))
        except TimeoutError:
            self.end()
            raise RunError("time", f"{request.kernel}: not done after {request.seconds:g} s") from None
        if not line:
            raise self._died(request.kernel)
        try:
            return answered(line)
        except RunError as error:
            # A fault on a device spoils all that its process does there.
            if error.why == "kernel_failed":
                self.end()
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            child = self._begun()
        except OSError as error:
            # There is no process, memory or descriptor to be had now.
            raise RunError("kernel_failed", f"the process for kernels: not started: {error}") from error
        try:
            line = self._line(child, START_NS)
        except TimeoutError:
            line = b""
        if line != READY:
            raise self._died("the process for kernels")
        return child

    def _begun(self) -> subprocess.Popen[bytes]:
        """Raises RunError, OSError."""
        pipe, environment = subprocess.PIPE, {ONE_THREAD: "1", **_passed_on(), **BY_BUS}
        with self._lock, contextlib.ExitStack() as pipes:
            if self._killed:
                raise RunError("killed", "the process for kernels")
            life, mine = os.pipe()
            pipes.callback(os.close, life)
            # -P: what lies about in the directory where somebody has started this is no module of it.
            command = [sys.executable, "-P", "-m", "skep.native.kernels.child", f"{LIFE}{life}"]
            command += [WARM] if self._warm else []
            try:
                child = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True, env=environment,
                    pass_fds=(life,),
                )  # fmt: skip
            except OSError:
                os.close(mine)
                raise
            self._child, self._life = child, mine
        return child

    def _line(self, child: subprocess.Popen[bytes], timeout_ns: int) -> bytes:
        """The next line of answers; "": it ended. Raises TimeoutError."""
        assert child.stdout is not None
        until, line = time.monotonic_ns() + timeout_ns, b""
        while not line.endswith(b"\n") and len(line) < ANSWER_MAX:
            if not _is_readable(child.stdout.fileno(), max(0, until - time.monotonic_ns())):
                raise TimeoutError
            piece = os.read(child.stdout.fileno(), ANSWER_MAX)
            if not piece:
                return b""
            line += piece
        return line

    def _died(self, what: str) -> RunError:
        child = self._child
        assert child is not None
        # It is looked at here and reaped under the lock.
        with os.fdopen(os.pidfd_open(child.pid), "rb") as of:
            ended = _is_readable(of.fileno(), ENDING_NS)
        self.end()
        status = child.returncode if ended else 0
        if status == -signal.SIGXCPU:
            return RunError("time", f"{what}: more time of processors than it was given")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return RunError("kernel_failed", f"{what}: its process ended: {how}")


def _passed_on() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def _is_readable(fd: int, within_ns: int) -> bool:
    """Whether there is something to read, or an end, within so long."""
    poll = select.poll()  # select() takes no descriptor from 1024 on
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(min(ceil(within_ns / 1e6), POLL_MAX_MS)))


@contextlib.contextmanager
def _aside(out: str) -> Iterator[str]:
    """A directory in that for the results, so that each is moved by its name alone. Raises RunError."""
    try:
        aside = mkdtemp(prefix=ASIDE, dir=out)
    except OSError as error:
        raise RunError("argument", f"{out}: expected a directory: {error.strerror}") from error
    try:
        yield aside
    finally:
        try:
            os.rmdir(aside)
        except OSError:
            # Why the run ended is the error that counts.
            shutil.rmtree(aside, ignore_errors=True)


def moved(made: Made, out: str) -> Made:
    """The result, under its name in ``out``."""
    path = Path(out) / Path(made.path).name
    os.replace(made.path, path)
    return made._replace(path=str(path))


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """It may be gone already, with nobody left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
