"""Kernels in a process of their own, with limits: one that faults, hangs or takes all memory ends that alone.

A process is started by its first run and stays for the next ones: a lease has one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from skep.native.kernels.child import READY, WARM

START_NS: Final = 60_000_000_000  # for Python and numpy to be there: a cold disk has taken ten seconds
ANSWER_MAX: Final = 1 << 20  # bytes
# Its threads wait for each other by spinning: on two busy processors two of them multiply at a third of the
# rate of one. Leases are what goes side by side; who has processors to spare sets it to more.
ONE_THREAD: Final = "OPENBLAS_NUM_THREADS"


class Request(NamedTuple):
    """``inputs``: .npy files by argument; ``out``: the directory for results, NAME.npy; ``device``: auto,
    cpu or cuda; ``seconds``, ``size_max``: bytes, what one run may take; ``signed``: what was signed of this
    kernel (None: nothing need be)."""

    kernel: str
    inputs: Mapping[str, str]
    numbers: Mapping[str, float]
    out: str
    device: str = "auto"
    seconds: float = 60.0
    size_max: int = 4 << 30
    signed: Mapping[str, Any] | None = None


class Made(NamedTuple):
    """A result: where it is, what it is."""

    path: str
    dtype: str
    shape: list[int]
    sha256: str


class Done(NamedTuple):
    kernel: str
    device: str  # cuda:0, or cpu: and why
    nanoseconds: int
    out: dict[str, Made]


class RunError(Exception):
    """The kernel did not run to its end. ``why``: argument, unsigned, no_device, disabled, oom, time or
    kernel_failed."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


class Process:
    """The process of a lease; runs come one at a time. ``warm``: it loads numba before its first."""

    def __init__(self, warm: bool = False) -> None:
        self._warm = warm
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        """None: none was started, or it ended."""
        return None if self._child is None else self._child.pid

    def run(self, request: Request) -> Done:
        """Raises RunError, after which the process may be another."""
        child = self._child or self._started()
        asked = {
            "kernel": request.kernel, "in": dict(request.inputs), "numbers": dict(request.numbers),
            "out": request.out, "device": request.device, "seconds": request.seconds,
            "bytes": request.size_max, "signed": request.signed,
        }  # fmt: skip
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n")
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
        answer = json.loads(line)
        if "why" in answer:
            # A fault on a device spoils all that its process does there.
            if answer["why"] == "kernel_failed":
                self.end()
            raise RunError(answer["why"], answer["error"])
        made = {name: Made(**of) for name, of in answer["out"].items()}
        return Done(answer["kernel"], answer["device"], answer["nanoseconds"], made)

    def end(self) -> None:
        """Kill it with all that it started; a process with no run in it loses nothing."""
        child, self._child = self._child, None
        if child is None:
            return
        # It may be gone already, with nobody left of its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "skep.native.kernels.child", *([WARM] if self._warm else [])]
        pipe = subprocess.PIPE
        environment = {ONE_THREAD: "1", **os.environ}
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True, env=environment
        )
        self._child = child
        try:
            line = self._line(child, START_NS)
        except TimeoutError:
            line = b""
        if line != READY:
            raise self._died("the process for kernels")
        return child

    def _line(self, child: subprocess.Popen[bytes], timeout_ns: int) -> bytes:
        """The next line of answers; "": it ended. Raises TimeoutError."""
        assert child.stdout is not None
        until, line = time.monotonic_ns() + timeout_ns, b""
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and len(line) < ANSWER_MAX:
                if not ready.select(max(0.0, (until - time.monotonic_ns()) / 1e9)):
                    raise TimeoutError
                piece = os.read(child.stdout.fileno(), ANSWER_MAX)
                if not piece:
                    return b""
                line += piece
        return line

    def _died(self, what: str) -> RunError:
        child = self._child
        assert child is not None
        try:
            status = child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = 0
        self.end()
        if status == -signal.SIGXCPU:
            return RunError("time", f"{what}: more time of processors than it was given")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return RunError("kernel_failed", f"{what}: its process ended: {how}")
