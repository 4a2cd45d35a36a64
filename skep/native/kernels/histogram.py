"""histogram: counts in bins of the same width; NumPy needs six passes for what is one loop."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.compiled import compiled, pays
from skep.native.kernels.device import Cuda, blocks_for

PAYS: Final = (
    1 << 8,
    1 << 26,
)  # elements from which on compiled is faster, warm and cold: tests.bench.kernels
FEW: Final = 8192  # bins that fit into a block's memory: 32 of its 48 KiB
BLOCKS: Final = 1024  # where each has counts of its own


def histogram_loop(a: Any, low: float, high: float, scale: float, out: Any) -> None:
    bins = out.size
    for i in range(a.size):
        x = np.float64(a[i])
        if x >= low and x <= high:
            out[min(np.int64((x - low) * scale), bins - 1)] += 1


def histogram_numpy(a: Any, bins: int, low: float, high: float) -> tuple[Any, ...]:
    # As they are, floats would be compared with bounds that are rounded to theirs.
    x = a.astype(np.float64)
    inside = x[(x >= low) & (x <= high)]
    at = np.minimum(((inside - low) * (bins / (high - low))).astype(np.int64), bins - 1)
    return (np.bincount(at, minlength=bins),)


def compiled_histogram(a: Any, bins: int, low: float, high: float) -> tuple[Any, ...]:
    out = np.zeros(bins, np.int64)
    compiled(histogram_loop)(a, low, high, bins / (high - low), out)
    return (out,)


def histogram(a: Any, bins: int, low: float, high: float) -> tuple[Any, ...]:
    return (compiled_histogram if pays(a.size, *PAYS) else histogram_numpy)(a, bins, low, high)


def histogram_cuda(cuda: Cuda, a: Any, bins: int, low: float, high: float) -> tuple[Any, ...]:
    out = cuda.cupy.zeros(bins, np.int64)
    scale = np.float64(bins / (high - low))
    args = (np.uint64(a.size), a, np.float64(low), np.float64(high), scale, np.int32(bins), out)
    if bins <= FEW:
        cuda.run("histogram_few", min(BLOCKS, blocks_for(a.size)), *args, shared=4 * bins)
    else:
        cuda.run("histogram", blocks_for(a.size), *args)
    return (out,)


CPU: Final = {"histogram": histogram}
CUDA: Final = {"histogram": histogram_cuda}
