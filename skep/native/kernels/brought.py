"""CUDA C source that somebody brought, compiled by NVRTC and started on a device, through cupy.

Its text was read and checked by source.py. It runs in a process that is its own alone: what it writes
beside its arrays is nobody else's."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from skep.native.kernels.arguments import CONTEXT, DTYPES, ArgumentError
from skep.native.kernels.catalogue import BYTES_MAX
from skep.native.kernels.check import told_of
from skep.native.kernels.run import Ran
from skep.native.kernels.source import Brought, In, Result

STANDARD: Final = "--std=c++17"
LOG_MAX: Final = 4000  # characters of NVRTC's, from its begin: the first error is the one that counts
COMPILING_MAX: Final = 2 << 30  # bytes: templates can ask for any number
USUAL_SHARED: Final = 48 << 10  # bytes of a block, from which on a function must be told that it has more


def fit(source: Brought, arrays: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
    """Raise ArgumentError unless the arrays are those that the source takes, and ones that it can."""
    if numbers:
        raise ArgumentError(f"{source.function}: its numbers are among args, not {' '.join(numbers)}")
    for name in source.inputs:
        if name not in arrays:
            raise ArgumentError(f"{source.function}: {name}: given nothing, expected an array")
    for name, array in arrays.items():
        of = told_of(array)
        if name not in source.inputs:
            raise ArgumentError(f"{source.function}: {name}: given an array that args do not name")
        if of.dtype not in DTYPES or of.size > BYTES_MAX:
            expected = f"{BYTES_MAX} bytes at most of {' '.join(DTYPES)}"
            raise ArgumentError(f"{source.function}: {name}: given {of}, expected {expected}")


def run_brought(source: Brought, text: str, cupy: Any, arrays: Mapping[str, Any], size_max: int) -> Ran:
    """Raises ArgumentError, MemoryError, and what cupy raises when it fails on the device."""
    function = _compiled(source, text, cupy)
    _fits(source, function, cupy, size_max)
    begun = time.perf_counter_ns()
    there: dict[str, Any] = {
        name: cupy.asarray(np.ascontiguousarray(array)) for name, array in arrays.items()
    }
    there |= {name: cupy.zeros(of.shape, of.dtype) for name, of in source.results.items()}
    args = tuple(
        there[arg.name] if isinstance(arg, In | Result) else np.dtype(arg.dtype).type(arg.value)
        for arg in source.args
    )
    function(source.grid, source.block, args, shared_mem=source.shared)
    # A fault shows here, before anything is copied back.
    cupy.cuda.Device().synchronize()
    outs = {name: there[name].get() for name in source.results}
    return Ran(outs, time.perf_counter_ns() - begun)


def _compiled(source: Brought, text: str, cupy: Any) -> Any:
    module = cupy.RawModule(code=text, options=(STANDARD,))
    try:
        with compiling(COMPILING_MAX):
            module.compile()
    except cupy.cuda.compiler.CompileException as error:
        raise ArgumentError(f"{source.function}: it does not compile: {str(error)[:LOG_MAX]}") from error
    try:
        return module.get_function(source.function)
    except cupy.cuda.driver.CUDADriverError as error:
        raise ArgumentError(f'{source.function}: no extern "C" kernel of that name: {error}') from error


def _fits(source: Brought, function: Any, cupy: Any, size_max: int) -> None:
    """Hold the launch against what was compiled and the device it is for. What the threads keep in memory of
    their own is of no pool: the driver takes it at the launch, for as many threads as the device has room."""
    device = cupy.cuda.Device().attributes
    threads = math.prod(source.block)
    if threads > function.max_threads_per_block:
        expected = f"{function.max_threads_per_block} at most, as it was compiled"
        raise ArgumentError(f"block: given {threads} threads, expected {expected}")
    shared = function.shared_size_bytes + source.shared
    if shared > device["MaxSharedMemoryPerBlockOptin"]:
        expected = f"{device['MaxSharedMemoryPerBlockOptin']} at most on this device"
        raise ArgumentError(f"shared: given {shared} bytes with those it declares, expected {expected}")
    if source.shared > USUAL_SHARED:
        function.max_dynamic_shared_size_bytes = source.shared
    resident = device["MultiProcessorCount"] * device["MaxThreadsPerMultiProcessor"]
    local = function.local_size_bytes * resident
    if local > size_max - CONTEXT:
        raise MemoryError(f"{local} bytes of the threads' own, {function.local_size_bytes} of each")


@contextlib.contextmanager
def compiling(size: int) -> Iterator[None]:
    """Bound what NVRTC takes of this process's memory: over it, it says that there is no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
