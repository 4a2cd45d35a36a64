"""The device a kernel runs on, and why that one; kernels compiled for it by NVRTC, through cupy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from skep.native.kernels.catalogue import Kernel, code

OFF: Final = "SKEP_NO_CUDA"  # set to 1, or to anything but 0, no device is used: for drills
ASKED: Final = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?", re.ASCII)
THREADS: Final = 256  # of a block; a power of two, by which blocks fold
BLOCKS_MAX: Final = 4096  # enough for any card to be full; threads take several elements beyond
BEFORE: Final = f"""#define DEVICE __device__
#define CONSTANT
#define UNROLL _Pragma("unroll")
#define THREADS {THREADS}
"""


class NoDevice(Exception):
    """A device was asked for where there is none; the text is the reason: no_device or disabled."""


class Chosen(NamedTuple):
    """``said``: ``cuda:N``, or ``cpu: `` and why. ``cupy``: None on a CPU."""

    said: str
    cupy: Any = None


def chosen(asked: str, environment: Mapping[str, str]) -> Chosen:
    """The device for what was asked, one that ASKED matches: never another than that. Of several, auto and
    cuda are the first. Raises NoDevice."""
    found = ASKED.fullmatch(asked)
    assert found is not None, asked
    if asked == "cpu":
        return Chosen("cpu: asked")
    number = int(found[1] or 0)
    why, cupy = "disabled", None
    if not is_off(environment):
        why, cupy = "no_device", _cupy(number)
    if cupy is not None:
        return Chosen(f"cuda:{number}", cupy)
    if asked != "auto":
        raise NoDevice(why)
    return Chosen(f"cpu: {why}")


def is_off(environment: Mapping[str, str]) -> bool:
    """Whether no device is to be used."""
    return environment.get(OFF, "") not in ("", "0")


def _cupy(number: int) -> Any:
    """With that device its current one. None: it is not installed, or finds no driver or no such device."""
    try:
        import cupy
    except ImportError:
        return None
    try:
        if number >= cupy.cuda.runtime.getDeviceCount():
            return None
        cupy.cuda.Device(number).use()
    except cupy.cuda.runtime.CUDARuntimeError:
        return None
    return cupy


def source(kernel: Kernel, real: str = "float") -> str:
    """The text that NVRTC is given."""
    return f"{BEFORE}#define REAL {real}\n{code(kernel)}"


class Cuda:
    """A kernel on a device: its code compiled, and started. ``cupy``: that module."""

    def __init__(self, kernel: Kernel, cupy: Any) -> None:
        self.cupy = cupy
        self._kernel = kernel
        self._modules: dict[str, Any] = {}

    def run(self, name: str, blocks: int, *args: Any, real: str = "float", shared: int = 0) -> None:
        """Start so many blocks, BLOCKS_MAX at most, with numbers of numpy's and arrays; ``real``: what REAL
        is, ``shared``: bytes for each block."""
        if real not in self._modules:
            text = source(self._kernel, real)
            self._modules[real] = self.cupy.RawModule(code=text, options=("--std=c++14",))
        function = self._modules[real].get_function(name)
        function((max(1, min(blocks, BLOCKS_MAX)),), (THREADS,), args, shared_mem=shared)


def blocks_for(count: int) -> int:
    """Blocks with a thread for each of ``count``."""
    return -(-count // THREADS)
