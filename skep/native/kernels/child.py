"""The process that kernels run in: a request a line in, an answer a line out, until its input ends.

Only process.py starts it, and it ends with it. What a kernel prints goes to stderr; what it breaks is this
process alone."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, Final

from skep.native.kernels.arguments import CONTEXT, ArgumentError
from skep.native.kernels.brought import fit, run_brought
from skep.native.kernels.catalogue import BYTES_MAX, Kernel
from skep.native.kernels.device import Chosen, NoDevice, chosen
from skep.native.kernels.files import array, saved
from skep.native.kernels.request import LIFE, READY, WARM, Done, Request, RunError, heard, refused, said
from skep.native.kernels.run import Ran, kernel_of, run
from skep.native.kernels.signature import SourceError
from skep.native.kernels.source import text_of

REFUSALS: Final = {ArgumentError: "argument", SourceError: "unsigned"}
OUT_OF_MEMORY: Final = ("out of memory", "ALLOC_FAILED")  # in what CUDA and its libraries say
FILE_MAX: Final = BYTES_MAX + (1 << 20)  # bytes: a result, and its header
PR_SET_NO_NEW_PRIVS: Final = 38  # Source: linux/prctl.h
SPARE: Final = "kernel-spare"  # the name of a process that has had no request yet
USED: Final = "kernel"
ENDED: Final = 1  # status, where the parent was gone before anything began


def main() -> None:
    confine()
    for arg in sys.argv:
        if arg.startswith(LIFE):
            end_with(int(arg.removeprefix(LIFE)))
    # The answers keep the pipe for themselves: a library that prints would break a line of them.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if WARM in sys.argv and find_spec("numba") is not None:
        import_module("numba")
    named(SPARE)
    answers.write(READY)
    for number, line in enumerate(sys.stdin.buffer):
        if number == 0:
            named(USED)
        answers.write(answer(heard(line)))


def named(name: str) -> None:
    """What ps calls this process. Source: Linux, proc_pid_comm(5)."""
    with contextlib.suppress(OSError):  # as below
        Path("/proc/self/comm").write_text(name)


def confine() -> None:
    """Take from this process what no kernel needs: dumps of what others computed, rights by a program that is
    set-user-id, files larger than a result. Where memory is short, it is the first to end and not the annex.
    What it reads, it reads as the annex's user."""
    with contextlib.suppress(OSError):  # where there is no /proc to write to
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, FILE_MAX))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def end_with(life: int) -> None:
    """End this process when the other end of a pipe closes, whatever it computes then: the signal ends it
    by itself, no thread of Python's need come to run, not even where it is stopped. PR_SET_PDEATHSIG would
    fire when the parent's thread that started this process ends, which may be long before the parent does."""
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, 0)
    if poll.poll(0):
        sys.exit(ENDED)


def answer(request: Request) -> bytes:
    """Whatever a kernel raises ends here, as the answer: the asker is another process."""
    with contextlib.ExitStack() as after:
        try:
            return said(_done(request, after))
        except Exception as error:
            return refused(_error(request.kernel, error))


def _give_back(cupy: Any) -> None:
    """What cupy keeps of a device's memory for a next run is nobody's by the time of the answer. After a
    fault it cannot: then the process is ended."""
    with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
        cupy.get_default_memory_pool().free_all_blocks()


def _error(kernel: str, error: Exception) -> RunError:
    if type(error) in REFUSALS:
        return RunError(REFUSALS[type(error)], str(error))
    if isinstance(error, NoDevice):
        return RunError(str(error), f"{kernel}: no CUDA device: {error}")
    out = isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)
    why = "oom" if out or type(error).__name__ == "OutOfMemoryError" else "kernel_failed"
    return RunError(why, f"{kernel}: {type(error).__name__}: {error}")


def _done(request: Request, after: contextlib.ExitStack) -> Done:
    """``after``: what is done when all that the run held is free again."""
    kernel = kernel_of(request.kernel) if request.source is None else None
    for name in request.raw:
        if name not in request.inputs:
            raise ArgumentError(f"{request.kernel}: raw {name}: expected one of {' '.join(request.inputs)}")
    arrays = {name: array(name, Path(path), request.raw.get(name)) for name, path in request.inputs.items()}
    if kernel is not None:
        device, ran = _ran(request, kernel, arrays, after)
    else:
        device, ran = _ran_brought(request, arrays)
    out = Path(request.out)
    made = {name: saved(out, name, of, request.form) for name, of in ran.outs.items()}
    return Done(request.kernel, device.said, ran.nanoseconds, made)


def _ran(
    request: Request, kernel: Kernel, arrays: Mapping[str, Any], after: contextlib.ExitStack
) -> tuple[Chosen, Ran]:
    device = chosen(request.device, os.environ)
    if device.cupy is not None:
        after.callback(_give_back, device.cupy)
    with _limited(request.seconds, request.size_max, device.cupy):
        return device, run(kernel, device, arrays, request.numbers, request.signed)


def _ran_brought(request: Request, arrays: Mapping[str, Any]) -> tuple[Chosen, Ran]:
    """On a CUDA device or not at all, whatever was asked: there is no twin. Its process ends with it."""
    source = request.source
    assert source is not None
    text = text_of(source)
    fit(source, arrays, request.numbers)
    if request.device == "cpu":
        raise NoDevice("no_device")
    device = chosen("cuda" if request.device == "auto" else request.device, os.environ)
    with _limited(request.seconds, request.size_max, device.cupy):
        return device, run_brought(source, text, device.cupy, arrays, request.size_max)


@contextlib.contextmanager
def _limited(seconds: float, size: int, cupy: Any) -> Iterator[None]:
    """Bound what is taken inside more than what was taken so far: time of all processors, and memory. A
    driver reserves more addresses than there is memory: with a device, cupy's own memory is bounded, by
    what the driver's and cuBLAS's leave of it. Raises MemoryError."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ceil(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: pages * resource.getpagesize() + size}
    if cupy is not None:
        if size <= CONTEXT:
            raise MemoryError(f"{size} bytes, of which a process on a device takes {CONTEXT}")
        cupy.get_default_memory_pool().set_limit(size=size - CONTEXT)
        del limits[resource.RLIMIT_AS]
    before = {which: resource.getrlimit(which) for which in limits}
    try:
        for which, most in limits.items():
            resource.setrlimit(which, (most, before[which][1]))
        yield
    finally:
        for which, bounds in before.items():
            resource.setrlimit(which, bounds)


if __name__ == "__main__":
    main()
