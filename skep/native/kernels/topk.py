"""topk: the largest and where they are, by integers that order as floats do, NaN above all, then by place.

On a CPU only what is large enough gets one: NumPy finds the least of the largest without."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.device import Cuda, blocks_for

PLACE: Final = 0xFFFF_FFFF  # the half of a key that is ~place


def keys(a: Any, places: Any) -> Any:
    """uint64[n]: order, ~place; topk.cu makes the same."""
    bits = a.view(np.uint32)
    size = bits & np.uint32(0x7FFF_FFFF)
    order = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x8000_0000))
    order[size == 0] = 0x8000_0000
    order[size > 0x7F80_0000] = 0xFFFF_FFFF
    return order.astype(np.uint64) << np.uint64(32) | (PLACE - places.astype(np.uint64))


def topk(a: Any, k: int) -> tuple[Any, ...]:
    if k == 0:
        return a[:0].copy(), np.empty(0, np.int64)
    least = np.partition(a, a.size - k)[a.size - k]
    # NaN is not less than anything; where it is the least of them, there are NaN enough.
    above = np.flatnonzero(~(a <= least))[:k] if least == least else np.empty(0, np.int64)
    same = np.flatnonzero(a == least if least == least else np.isnan(a))[: k - above.size]
    places = np.concatenate([above, same])
    places = places[np.argsort(keys(a[places], places))[::-1]]
    return a[places], places


def topk_cuda(cuda: Cuda, a: Any, k: int) -> tuple[Any, ...]:
    made = cuda.cupy.empty(a.size, np.uint64)
    cuda.run("topk_keys", blocks_for(a.size), np.uint64(a.size), a, made)
    best = cuda.cupy.sort(made)[a.size - k :][::-1]
    places = (PLACE - (best & np.uint64(PLACE))).astype(np.int64)
    return a[places], places


CPU: Final = {"topk": topk}
CUDA: Final = {"topk": topk_cuda}
