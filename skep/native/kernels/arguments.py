"""What a kernel is given, as names, numbers, dtypes and shapes: checked before a file is read.

Nothing here needs numpy: who takes a run in refuses it as who runs it does. What is in an array is looked at
in check.py. Told in text, an array is ``float32:1000x10``, and one without axes ``float64``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from skep.native.kernels.catalogue import BYTES_MAX, SAME, Array, Kernel, Number
from skep.native.kernels.formula import value

DTYPES: Final = {  # bytes of an element
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
AXES_MAX: Final = 8
SIZE_END: Final = 10**18  # of an axis: what has more digits is no size of anything here
# Of device memory beside the arrays: the driver's own for a process, and cuBLAS's. On cards of today it is
# some hundred MiB; this is an allowance, which nobody measured here.
CONTEXT: Final = 512 << 20
# The same of a CPU: BLAS's buffers, 32 MiB of addresses as measured, and numba with a loop that it compiled,
# 195 MiB, where one is worth it; the rest is spare.
PROCESS: Final = 512 << 20


class ArgumentError(Exception):
    """An argument is missing, unknown or wrong; the text names it, what was given and what was expected."""


class Told(NamedTuple):
    """An array by what it is, not what is in it. ``dtype``: one of DTYPES, or another that nothing takes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    def __str__(self) -> str:
        return ":".join([self.dtype, *(["x".join(map(str, self.shape))] if self.shape else [])])


class Fitted(NamedTuple):
    """``sizes``: what each letter of the row is; ``outs``: what the results will be."""

    numbers: dict[str, float]
    sizes: dict[str, float]
    outs: dict[str, Told]


def told(name: str, text: str) -> Told:
    """``DTYPE[:SIZExSIZE…]`` of the argument ``name``. Raises ArgumentError."""
    dtype, colon, sizes = text.partition(":")
    # As many digits as are below SIZE_END.
    shape = [int(size) for size in sizes.split("x") if size.isascii() and size.isdecimal() and len(size) < 19]
    whole = len(shape) == len(sizes.split("x")) <= AXES_MAX if colon else True
    if dtype not in DTYPES or not whole:
        raise ArgumentError(f"{name}: {text!r}: expected DTYPE or DTYPE:SIZExSIZE…, {' '.join(DTYPES)}")
    return Told(dtype, tuple(shape))


def fitted(kernel: Kernel, arrays: Mapping[str, Told], numbers: Mapping[str, Any]) -> Fitted:
    """What follows from the arguments, right for the kernel but for what is in them. Raises ArgumentError."""
    values = named(kernel, arrays, numbers)
    first = arrays[kernel.arrays[0].name]
    sizes: dict[str, float] = {**values, "item": DTYPES.get(first.dtype, 0)}
    for of in kernel.arrays:
        _array(kernel, of, arrays[of.name], first, sizes)
    for rule in kernel.rules:
        if not value(rule.less, sizes) <= value(rule.more, sizes):
            found = f"{value(rule.less, sizes)} and {value(rule.more, sizes)}"
            raise wrong(kernel, rule.argument, found, f"{rule.less} <= {rule.more}")
    outs = {}
    for out in kernel.outs:
        dtype = first.dtype if out.dtype == SAME else out.dtype
        outs[out.name] = Told(dtype, tuple(int(value(size, sizes)) for size in out.shape))
        _bounded(kernel, out.name, outs[out.name])
    return Fitted(values, sizes, outs)


def named(kernel: Kernel, arrays: Iterable[str], numbers: Mapping[str, Any]) -> dict[str, float]:
    """The numbers, where every argument is there, none beside them, and each number within its bounds.
    Raises ArgumentError."""
    _names(kernel, "an array", kernel.arrays, arrays)
    _names(kernel, "a number", kernel.numbers, numbers)
    return {of.name: _number(kernel, of, numbers[of.name]) for of in kernel.numbers}


def needed(kernel: Kernel, arrays: Mapping[str, Told], numbers: Mapping[str, Any], device: str) -> int:
    """Bytes of memory that a run takes at most on a ``device``: ``cpu…`` or ``cuda…``; what it must hold at
    once as its row says, and an allowance for the process. Raises ArgumentError."""
    sizes = fitted(kernel, arrays, numbers).sizes
    if device.startswith("cpu"):
        return int(value(kernel.room.cpu, sizes)) + PROCESS
    return int(value(kernel.room.cuda, sizes)) + CONTEXT


def _names(
    kernel: Kernel, kind: str, rows: tuple[Array, ...] | tuple[Number, ...], given: Iterable[str]
) -> None:
    names, given = [row.name for row in rows], list(given)
    for name in names:
        if name not in given:
            raise wrong(kernel, name, "nothing", kind)
    for name in given:
        if name not in names:
            raise wrong(kernel, name, kind, f"of its kind only {' '.join(names) or 'none'}")


def _number(kernel: Kernel, row: Number, given: Any) -> float:
    kinds = (int,) if row.kind == "int" else (int, float)
    # NaN is within no bounds.
    right = isinstance(given, kinds) and not isinstance(given, bool)
    if not right or not row.least <= given <= row.most:
        raise wrong(kernel, row.name, repr(given), row.bounds)
    return int(given) if row.kind == "int" else float(given)


def _array(kernel: Kernel, row: Array, given: Told, first: Told, sizes: dict[str, float]) -> None:
    """Also learns the letters that are new in this one."""
    several = len(row.dtypes) > 1 and first.dtype in row.dtypes
    dtypes = (first.dtype,) if several else row.dtypes
    wanted = f"{' or '.join(dtypes)}[{', '.join(row.shape)}]"
    if given.dtype not in dtypes or len(given.shape) != len(row.shape):
        raise wrong(kernel, row.name, shown(given), wanted)
    _bounded(kernel, row.name, given)
    for letter, size in zip(row.shape, given.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise wrong(kernel, row.name, shown(given), f"{wanted} with {letter} = {sizes[letter]}")


def _bounded(kernel: Kernel, name: str, array: Told) -> None:
    if array.size > BYTES_MAX:
        raise wrong(kernel, name, f"{shown(array)} of {array.size} bytes", f"{BYTES_MAX} at most")


def shown(array: Told) -> str:
    """As the rows of the catalogue have it."""
    return f"{array.dtype}{list(array.shape)}"


def wrong(kernel: Kernel, name: str, given: str, expected: str) -> ArgumentError:
    return ArgumentError(f"{kernel.name}: {name}: given {given}, expected {expected}")
