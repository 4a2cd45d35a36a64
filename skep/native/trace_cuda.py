"""Leaf hashes and nodes on a graphics processor, for audits of billions of entries: trace.cu through cupy.

Nothing chooses it by itself: whoever has that many makes a ``Cuda``. From how many on it pays,
tests.bench.hashing tells where there is one."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

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


class Cuda:
    """The hashes, on the device that cupy uses. Raises ImportError without cupy, RuntimeError (cupy's
    CUDARuntimeError) without a device."""

    def __init__(self) -> None:
        import cupy
        import numpy

        cupy.cuda.runtime.getDevice()
        self._cupy: Any = cupy
        self._numpy: Any = numpy
        module = cupy.RawModule(code=SOURCE, options=("--std=c++14",))
        self._leaves, self._nodes = module.get_function("leaves"), module.get_function("nodes")

    def leaves(self, bodies: Sequence[bytes]) -> bytes:
        """The hash of each entry, joined."""
        return self.leaves_of(b"".join(bodies), array("Q", accumulate(map(len, bodies))))

    def leaves_of(self, data: bytes, ends: array[int]) -> bytes:
        """The same of entries that are joined, where each ends; ``ends`` is of 64 bits."""
        cupy, view = self._cupy, memoryview(data)
        out = bytearray(len(ends) * HASH)
        for begin, end in chunks(ends):
            base = ends[begin - 1] if begin else 0
            bytes_ = self._there(view[base : ends[end - 1]])
            where = self._there(memoryview(ends)[begin:end].cast("B")).view(cupy.uint64) - base
            made = cupy.empty((end - begin) * HASH, cupy.uint8)
            self._run(self._leaves, bytes_, where, end - begin, made)
            out[begin * HASH : end * HASH] = made.get().tobytes()
        return bytes(out)

    def fold(self, hashes: bytes, levels: int) -> bytes:
        """The nodes ``levels`` above these hashes, a multiple of 2**levels that the device has room for."""
        below = self._there(memoryview(hashes))
        for _ in range(levels):
            above = self._cupy.empty(below.size // 2, self._cupy.uint8)
            self._run(self._nodes, below, above.size // HASH, above)
            below = above
        return bytes(below.get().tobytes())

    def _there(self, data: memoryview) -> Any:
        """The bytes, on the device."""
        return self._cupy.asarray(self._numpy.frombuffer(data, self._numpy.uint8))

    def _run(self, kernel: Any, *args: Any) -> None:
        """Run it once for each of as many as its last but one argument says."""
        count = args[-2]
        if count:
            args = (*args[:-2], self._cupy.uint64(count), args[-1])
            kernel((-(-count // THREADS),), (THREADS,), args)


def chunks(ends: Sequence[int], chunk_max: int = CHUNK_MAX) -> Iterator[tuple[int, int]]:
    """The entries of each chunk, from and to: as many as it has room for, one at least."""
    begin = 0
    while begin < len(ends):
        base = ends[begin - 1] if begin else 0
        end = max(bisect_right(ends, base + chunk_max, begin), begin + 1)
        yield begin, end
        begin = end
