"""Leaf hashes and nodes on a graphics processor, for audits of billions of entries: trace.cu through cupy.

Nothing chooses it by itself: whoever has that many makes a ``Cuda(Cupy())``. From how many it pays,
tests.bench.hashing tells where there is one."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Protocol

from skep.native.trace import HASH

HERE: Final = Path(__file__).parent
SOURCE: Final = "\n".join(
    [
        "#define DEVICE __device__",
        "#define CONSTANT",
        '#define UNROLL _Pragma("unroll")',
        *((HERE / name).read_text() for name in ("sha256.h", "trace.cu")),
    ]
)
THREADS: Final = 128  # of a block
CHUNK_MAX: Final = 256 * 1024 * 1024  # bytes on the device at a time, or one entry; hashes come to it


class Device(Protocol):
    """Something that runs the kernels, with memory of its own."""

    def put(self, data: memoryview) -> Any:
        """Its memory with these bytes in it."""

    def room(self, size: int) -> Any:
        """Some of its memory, for so many bytes."""

    def run(self, kernel: str, count: int, *args: Any) -> None:
        """Run a kernel ``count`` times, with memory and numbers."""

    def get(self, memory: Any) -> bytes: ...


class Cupy:
    """The device that cupy uses. Raises ImportError without cupy, RuntimeError (cupy's CUDARuntimeError)
    without a device."""

    def __init__(self) -> None:
        import cupy
        import numpy

        cupy.cuda.runtime.getDevice()
        self._cupy: Any = cupy
        self._numpy: Any = numpy
        self._kernels: Any = cupy.RawModule(code=SOURCE, options=("--std=c++14",))

    def put(self, data: memoryview) -> Any:
        return self._cupy.asarray(self._numpy.frombuffer(data, self._numpy.uint8))

    def room(self, size: int) -> Any:
        return self._cupy.empty(size, self._cupy.uint8)

    def run(self, kernel: str, count: int, *args: Any) -> None:
        numbers = (self._numpy.uint64(arg) if isinstance(arg, int) else arg for arg in (count, *args))
        self._kernels.get_function(kernel)((-(-count // THREADS),), (THREADS,), tuple(numbers))

    def get(self, memory: Any) -> bytes:
        return bytes(memory.get().tobytes())


class Cuda:
    """The hashes on a device; ``chunk_max`` bytes of entries at a time."""

    def __init__(self, device: Device, chunk_max: int = CHUNK_MAX) -> None:
        self._device = device
        self._chunk_max = chunk_max

    def leaves(self, bodies: Sequence[bytes]) -> bytes:
        """The hash of each entry, joined."""
        return self.leaves_of(b"".join(bodies), array("Q", accumulate(map(len, bodies))))

    def leaves_of(self, data: bytes, ends: array[int]) -> bytes:
        """The same of entries that are joined, where each ends; ``ends`` is of 64 bits."""
        device, bytes_, places = self._device, memoryview(data), memoryview(ends)
        found = []
        for begin, end in chunks(ends, self._chunk_max):
            base = ends[begin - 1] if begin else 0
            # Empty ones have no bytes; a device has no memory of none.
            there = device.put(bytes_[base : ends[end - 1]] or memoryview(b"\0"))
            made = device.room((end - begin) * HASH)
            device.run("leaves", end - begin, there, device.put(places[begin:end].cast("B")), base, made)
            found.append(device.get(made))
        return b"".join(found)

    def fold(self, hashes: bytes, levels: int) -> bytes:
        """The nodes ``levels`` above some hashes, a multiple of 2**levels; all of them go there at once."""
        below, size = self._device.put(memoryview(hashes)), len(hashes)
        for _ in range(levels):
            size //= 2
            above = self._device.room(size)
            self._device.run("nodes", size // HASH, below, above)
            below = above
        return self._device.get(below)


def chunks(ends: Sequence[int], chunk_max: int) -> Iterator[tuple[int, int]]:
    """The entries of each chunk, from and to: as many as it has room for, one at least."""
    begin = 0
    while begin < len(ends):
        base = ends[begin - 1] if begin else 0
        end = max(bisect_right(ends, base + chunk_max, begin), begin + 1)
        yield begin, end
        begin = end
