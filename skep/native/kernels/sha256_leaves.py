"""sha256_leaves: the leaf hashes of a trace, by the C of native/trace.py, on a device by its trace.cu."""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np

from skep.native.kernels.device import BLOCKS_MAX, THREADS, Cuda, blocks_for
from skep.native.trace import HASH, hashing


def sha256_leaves(data: Any, ends: Any) -> tuple[Any, ...]:
    hashes = hashing.leaves_of(data.tobytes(), array("Q", ends.tobytes()))
    return (np.frombuffer(hashes, np.uint8).reshape(-1, HASH),)


def sha256_leaves_cuda(cuda: Cuda, data: Any, ends: Any) -> tuple[Any, ...]:
    out = cuda.cupy.empty((ends.size, HASH), np.uint8)
    step = BLOCKS_MAX * THREADS
    for begin in range(0, ends.size, step):
        # A thread hashes one: what more there are than threads goes there after these.
        some = ends[begin : begin + step]
        base = 0 if begin == 0 else int(ends[begin - 1])
        args = (np.uint64(some.size), data[base:], some, np.uint64(base), out[begin : begin + step])
        cuda.run("leaves", blocks_for(some.size), *args)
    return (out,)


CPU: Final = {"sha256_leaves": sha256_leaves}
CUDA: Final = {"sha256_leaves": sha256_leaves_cuda}
