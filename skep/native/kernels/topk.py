"""topk: the largest and where they are, by integers that order as floats do, NaN above all, then by place.

On a CPU only what is large enough gets one: NumPy finds the least of the largest without. On a device all get
one, again and again, which costs a look at ``a``: six at most, three where no two floats are equal, instead
of the many copies of all keys that a sort makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from skep.native.kernels.device import Cuda, blocks_for

PLACE: Final = 0xFFFF_FFFF  # the half of a key that is ~place
KEY_BITS: Final = 64
DIGIT_BITS: Final = 11  # DIGITS of topk.cu: their counts, 8 KiB, are of each block
BLOCKS: Final = 1024


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


def least_of(count: Callable[[int, int, int], Any], k: int) -> int:
    """What the k largest keys are not below, and all others are. ``count(shift, bits, prefix)``: int[2**bits]
    or more, how many keys there are of each digit of so many bits above ``shift``, where what is above that
    is ``prefix``. Of all of them there are k, which is 1 or more."""
    prefix, left, shift = 0, k, KEY_BITS
    while shift:
        bits = min(DIGIT_BITS, shift)
        shift -= bits
        counts = np.asarray(count(shift, bits, prefix), np.int64)
        from_here = np.cumsum(counts[::-1])[::-1]
        digit = int(np.flatnonzero(from_here >= left)[-1])
        prefix = prefix << bits | digit
        left -= int(from_here[digit] - counts[digit])
        if left == counts[digit]:
            break
    return prefix << shift


def topk_cuda(cuda: Cuda, a: Any, k: int) -> tuple[Any, ...]:
    if k == 0:
        return a[:0].copy(), cuda.cupy.empty(0, np.int64)
    blocks, size = min(BLOCKS, blocks_for(a.size)), np.uint64(a.size)

    def count(shift: int, bits: int, prefix: int) -> Any:
        counts = cuda.cupy.zeros(1 << DIGIT_BITS, np.uint32)
        of = np.uint32(shift), np.uint32(bits), np.uint64(prefix)
        cuda.run("topk_count", blocks, size, a, *of, counts)
        return counts.get()

    taken, found = cuda.cupy.zeros(1, np.uint32), cuda.cupy.empty(k, np.uint64)
    cuda.run("topk_take", blocks_for(a.size), size, a, np.uint64(least_of(count, k)), taken, found)
    best = cuda.cupy.sort(found)[::-1]
    places = (PLACE - (best & np.uint64(PLACE))).astype(np.int64)
    return a[places], places


CPU: Final = {"topk": topk}
CUDA: Final = {"topk": topk_cuda}
