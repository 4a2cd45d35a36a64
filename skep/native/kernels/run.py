"""A kernel, run in this process: its source checked, its arguments too, its results as they must be.

What may crash or take too long runs in a process of its own: process.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from skep.native.kernels.arguments import ArgumentError
from skep.native.kernels.catalogue import KERNELS, Kernel, module_path
from skep.native.kernels.check import checked, told_of
from skep.native.kernels.device import Chosen, Cuda
from skep.native.kernels.signature import check_source


class Ran(NamedTuple):
    """``nanoseconds``: of the kernel, with its copies to a device and back."""

    outs: dict[str, Any]
    nanoseconds: int


def kernel_of(name: str) -> Kernel:
    """Raises ArgumentError."""
    if name not in KERNELS:
        raise ArgumentError(f"kernel {name!r}: expected one of {' '.join(KERNELS)}")
    return KERNELS[name]


def run(
    kernel: Kernel,
    device: Chosen,
    arrays: Mapping[str, Any],
    numbers: Mapping[str, Any],
    signed: Mapping[str, Any] | None = None,
) -> Ran:
    """Run it. ``signed``: what was signed of it (None: nothing need be). Raises ArgumentError, SourceError,
    and what the kernel raises: MemoryError (cupy's OutOfMemoryError), RuntimeError."""
    if signed is not None:
        check_source(kernel, signed)
    module = loaded(kernel)
    told = checked(kernel, arrays, numbers)
    begun = time.perf_counter_ns()
    if device.cupy is None:
        found = module.CPU[kernel.name](**told.arrays, **told.numbers)
    else:
        there = {name: device.cupy.asarray(array) for name, array in told.arrays.items()}
        cuda = _on(kernel, device)
        found = tuple(out.get() for out in module.CUDA[kernel.name](cuda, **there, **told.numbers))
    took = time.perf_counter_ns() - begun
    outs = dict(zip(told.outs, found, strict=True))
    for name, out in outs.items():
        assert told.outs[name] == told_of(out), f"{kernel.name}: {name} is {told_of(out)}"
    return Ran({name: np.ascontiguousarray(out).reshape(out.shape) for name, out in outs.items()}, took)


@cache
def loaded(kernel: Kernel) -> ModuleType:
    """The kernel's module, from the source that is there and from no bytecode kept of another."""
    name, path = f"skep.native.kernels.{kernel.module}", module_path(kernel)
    spec = spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = module_from_spec(spec)
    module.__file__ = str(path)
    # numba keeps what it compiles for modules that can be imported by their names.
    sys.modules[name] = module
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


@cache
def _on(kernel: Kernel, device: Chosen) -> Cuda:
    """Compiled once for all of its runs there in this process."""
    return Cuda(kernel, device.cupy)
