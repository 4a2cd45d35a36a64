"""What a kernel is given, checked against its row before anything runs: also what is in its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from skep.native.kernels.arguments import Told, fitted, wrong
from skep.native.kernels.catalogue import Array, Kernel


class Checked(NamedTuple):
    """``sizes``: what each letter of the row is; ``outs``: what the results will be."""

    arrays: dict[str, Any]
    numbers: dict[str, float]
    sizes: dict[str, float]
    outs: dict[str, Told]


def checked(kernel: Kernel, arrays: Mapping[str, Any], numbers: Mapping[str, Any]) -> Checked:
    """The arguments, right for the kernel. Raises ArgumentError."""
    fits = fitted(kernel, {name: told_of(array) for name, array in arrays.items()}, numbers)
    # What is in a file may change once it was looked at.
    arrays = {of.name: np.array(arrays[of.name]) if of.values else arrays[of.name] for of in kernel.arrays}
    for of in kernel.arrays:
        VALUES[of.values](kernel, of, arrays)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return Checked(arrays, *fits)


def told_of(array: Any) -> Told:
    """Of an array; the dtype of one whose bytes are in another order is no dtype's name: ``>f4``."""
    dtype = array.dtype
    return Told(dtype.name if dtype.isnative else dtype.str, array.shape)


def _ends(kernel: Kernel, row: Array, arrays: Mapping[str, Any]) -> None:
    """Places where entries of ``data`` end: none before the one before, the last one where data does."""
    ends, size = arrays[row.name], arrays["data"].size
    if np.any(ends[1:] < ends[:-1]):
        at = int(np.argmax(ends[1:] < ends[:-1])) + 1
        raise wrong(kernel, row.name, f"{ends[at]} at {at} after {ends[at - 1]}", "ends that ascend")
    last = int(ends[-1]) if ends.size else 0
    if last != size:
        raise wrong(kernel, row.name, f"a last end of {last}", f"{size}, the bytes of data")


def _anything(kernel: Kernel, row: Array, arrays: Mapping[str, Any]) -> None:
    return


VALUES: Final[dict[str, Callable[[Kernel, Array, Mapping[str, Any]], None]]] = {
    "": _anything,
    "ends of data": _ends,
}
