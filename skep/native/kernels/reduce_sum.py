"""reduce_sum: a sum in float64. Compiled, eight sums go side by side: one alone waits for itself."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.compiled import compiled, pays
from skep.native.kernels.device import Cuda, blocks_for

PAYS: Final = (
    1 << 20,
    1 << 30,
)  # elements from which on compiled is faster, warm and cold: tests.bench.kernels
BLOCKS: Final = 1024  # of the first pass; a second one adds up theirs


def sum_loop(a: Any, sums: Any) -> None:
    """sums: float64[8]"""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = a.size // 8 * 8
    for i in range(0, whole, 8):
        s0 += a[i]
        s1 += a[i + 1]
        s2 += a[i + 2]
        s3 += a[i + 3]
        s4 += a[i + 4]
        s5 += a[i + 5]
        s6 += a[i + 6]
        s7 += a[i + 7]
    for i in range(whole, a.size):
        s0 += a[i]
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3
    sums[4], sums[5], sums[6], sums[7] = s4, s5, s6, s7


def sum_numpy(a: Any) -> tuple[Any, ...]:
    return (np.asarray(np.sum(a, dtype=np.float64)),)


def compiled_sum(a: Any) -> tuple[Any, ...]:
    sums = np.empty(8)
    compiled(sum_loop)(a, sums)
    return sum_numpy(sums)


def reduce_sum(a: Any) -> tuple[Any, ...]:
    return (compiled_sum if pays(a.size, *PAYS) else sum_numpy)(a)


def reduce_sum_cuda(cuda: Cuda, a: Any) -> tuple[Any, ...]:
    blocks = max(1, min(BLOCKS, blocks_for(a.size)))
    sums, out = cuda.cupy.empty(blocks), cuda.cupy.empty(())
    real = "float" if a.dtype == np.float32 else "double"
    cuda.run("reduce_sum", blocks, np.uint64(a.size), a, sums, real=real)
    cuda.run("reduce_sum", 1, np.uint64(blocks), sums, out, real="double")
    return (out,)


CPU: Final = {"reduce_sum": reduce_sum}
CUDA: Final = {"reduce_sum": reduce_sum_cuda}
