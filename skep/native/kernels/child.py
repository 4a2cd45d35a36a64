"""The process that kernels run in: a request a line in, an answer a line out, until its input ends.

Only process.py starts it. What a kernel prints goes to stderr; what it breaks is this process alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from hashlib import file_digest
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np

from skep.native.kernels.check import ArgumentError
from skep.native.kernels.device import ASKED, NoDevice, chosen
from skep.native.kernels.run import kernel_of, run
from skep.native.kernels.signature import SourceError

READY: Final = b"ready\n"
WARM: Final = "--warm"  # numba is loaded before the first request, where it is installed
REFUSALS: Final = {ArgumentError: "argument", SourceError: "unsigned"}


def main() -> None:
    # The answers keep the pipe for themselves: a library that prints would break a line of them.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if WARM in sys.argv and find_spec("numba") is not None:
        import_module("numba")
    answers.write(READY)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """``kernel in {name: path} numbers out device seconds bytes signed`` -> what was made, or ``why`` and
    ``error``. Whatever a kernel raises ends here, as the answer: the asker is another process."""
    assert request["device"] in ASKED
    try:
        return _ran(request)
    except tuple(REFUSALS) as error:
        return {"why": REFUSALS[type(error)], "error": str(error)}
    except NoDevice as error:
        return {"why": str(error), "error": f"{request['kernel']}: no CUDA device: {error}"}
    except Exception as error:
        out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        why = "oom" if out else "kernel_failed"
        return {"why": why, "error": f"{request['kernel']}: {type(error).__name__}: {error}"}


def _ran(request: Mapping[str, Any]) -> dict[str, Any]:
    kernel = kernel_of(request["kernel"])
    device = chosen(request["device"], os.environ)
    arrays = {name: array(name, Path(path)) for name, path in request["in"].items()}
    with _limited(request["seconds"], request["bytes"], device.cupy):
        ran = run(kernel, device, arrays, request["numbers"], request["signed"])
    made = {}
    for name, out in ran.outs.items():
        path = Path(request["out"]) / f"{name}.npy"
        np.save(path, out, allow_pickle=False)
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        made[name] = {"path": str(path), "dtype": out.dtype.name, "shape": list(out.shape), "sha256": digest}
    return {"kernel": kernel.name, "device": device.said, "nanoseconds": ran.nanoseconds, "out": made}


def array(name: str, path: Path) -> Any:
    """The array of a .npy file, read where it is. Raises ArgumentError."""
    if not path.is_file():
        raise ArgumentError(f"{name}: {path}: expected a file")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ArgumentError(f"{name}: {path}: expected an array in .npy: {error}") from error


@contextlib.contextmanager
def _limited(seconds: float, size: int, cupy: Any) -> Iterator[None]:
    """Bound what is taken inside more than what was taken so far: time of all processors, and memory. A
    driver reserves more addresses than there is memory: with a device, cupy's own memory is bounded."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ceil(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: pages * resource.getpagesize() + size}
    if cupy is not None:
        cupy.get_default_memory_pool().set_limit(size=size)
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
