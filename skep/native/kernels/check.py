"""What a kernel is given, checked against its row before anything runs; each refusal names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from skep.native.kernels.catalogue import BYTES_MAX, SAME, Array, Kernel, Number
from skep.native.kernels.formula import value


class ArgumentError(Exception):
    """An argument is missing, unknown or wrong; the text names it, what was given and what was expected."""


class Checked(NamedTuple):
    """``sizes``: what each letter of the row is; ``outs``: what the results will be, dtype and shape."""

    arrays: dict[str, Any]
    numbers: dict[str, float]
    sizes: dict[str, float]
    outs: dict[str, tuple[str, tuple[int, ...]]]


def checked(kernel: Kernel, arrays: Mapping[str, Any], numbers: Mapping[str, Any]) -> Checked:
    """The arguments, right for the kernel. Raises ArgumentError."""
    _names(kernel, "an array", kernel.arrays, arrays)
    _names(kernel, "a number", kernel.numbers, numbers)
    told = {of.name: _number(kernel, of, numbers[of.name]) for of in kernel.numbers}
    first = arrays[kernel.arrays[0].name]
    sizes: dict[str, float] = {**told, "item": first.dtype.itemsize}
    for of in kernel.arrays:
        _array(kernel, of, arrays[of.name], first, sizes)
    for rule in kernel.rules:
        if not value(rule.less, sizes) <= value(rule.more, sizes):
            found = f"{value(rule.less, sizes)} and {value(rule.more, sizes)}"
            raise _wrong(kernel, rule.argument, found, f"{rule.less} <= {rule.more}")
    # What is in a file may change once it was looked at.
    arrays = {of.name: np.array(arrays[of.name]) if of.values else arrays[of.name] for of in kernel.arrays}
    for of in kernel.arrays:
        VALUES[of.values](kernel, of, arrays)
    outs = {}
    for out in kernel.outs:
        dtype = first.dtype.name if out.dtype == SAME else out.dtype
        shape = tuple(int(value(size, sizes)) for size in out.shape)
        _bounded(kernel, out.name, dtype, shape)
        outs[out.name] = dtype, shape
    return Checked(
        {of.name: np.ascontiguousarray(arrays[of.name]) for of in kernel.arrays}, told, sizes, outs
    )


def _names(kernel: Kernel, kind: str, rows: tuple[Array, ...] | tuple[Number, ...], given: Any) -> None:
    names = [row.name for row in rows]
    for name in names:
        if name not in given:
            raise _wrong(kernel, name, "nothing", kind)
    for name in given:
        if name not in names:
            raise _wrong(kernel, name, kind, f"of its kind only {' '.join(names) or 'none'}")


def _number(kernel: Kernel, row: Number, given: Any) -> float:
    kinds = (int,) if row.kind == "int" else (int, float)
    # NaN is within no bounds.
    right = isinstance(given, kinds) and not isinstance(given, bool)
    if not right or not row.least <= given <= row.most:
        raise _wrong(kernel, row.name, repr(given), f"{row.kind} from {row.least:g} to {row.most:g}")
    return int(given) if row.kind == "int" else float(given)


def _array(kernel: Kernel, row: Array, given: Any, first: Any, sizes: dict[str, float]) -> None:
    """Also learns the letters that are new in this one."""
    several = len(row.dtypes) > 1 and first.dtype.name in row.dtypes
    dtypes = (first.dtype.name,) if several else row.dtypes
    wanted = f"{' or '.join(dtypes)}[{', '.join(row.shape)}]"
    # Not by its name: float32 of the other byte order has the same.
    if all(given.dtype != np.dtype(dtype) for dtype in dtypes) or given.ndim != len(row.shape):
        raise _wrong(kernel, row.name, _told(given), wanted)
    _bounded(kernel, row.name, given.dtype.name, given.shape)
    for letter, size in zip(row.shape, given.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise _wrong(kernel, row.name, _told(given), f"{wanted} with {letter} = {sizes[letter]}")


def _bounded(kernel: Kernel, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > BYTES_MAX:
        raise _wrong(kernel, name, f"{dtype}{list(shape)} of {size} bytes", f"{BYTES_MAX} at most")


def _ends(kernel: Kernel, row: Array, arrays: Mapping[str, Any]) -> None:
    """Places where entries of ``data`` end: none before the one before, the last one where data does."""
    ends, size = arrays[row.name], arrays["data"].size
    if np.any(ends[1:] < ends[:-1]):
        at = int(np.argmax(ends[1:] < ends[:-1])) + 1
        raise _wrong(kernel, row.name, f"{ends[at]} at {at} after {ends[at - 1]}", "ends that ascend")
    last = int(ends[-1]) if ends.size else 0
    if last != size:
        raise _wrong(kernel, row.name, f"a last end of {last}", f"{size}, the bytes of data")


def _anything(kernel: Kernel, row: Array, arrays: Mapping[str, Any]) -> None:
    return


VALUES: Final[dict[str, Callable[[Kernel, Array, Mapping[str, Any]], None]]] = {
    "": _anything,
    "ends of data": _ends,
}


def _told(given: Any) -> str:
    order = "" if given.dtype.isnative else " of the other byte order"
    return f"{given.dtype.name}{list(given.shape)}{order}"


def _wrong(kernel: Kernel, name: str, given: str, expected: str) -> ArgumentError:
    return ArgumentError(f"{kernel.name}: {name}: given {given}, expected {expected}")
