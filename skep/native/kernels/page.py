"""The catalogue as people read it: lines for a terminal, and docs/KERNELS.md's part of it."""

from __future__ import annotations

from collections.abc import Iterator

from skep.native.kernels.catalogue import KERNELS, Array, Kernel, Number, Out


def lines(kernel: Kernel) -> Iterator[str]:
    """A kernel, a fact a line."""
    yield f"{kernel.name}: {kernel.about}"
    taken: list[Array | Number] = [*kernel.arrays, *kernel.numbers]
    for of in taken:
        yield f"takes    {_told(of)}"
    for out in kernel.outs:
        yield f"gives    {_told(out)}"
    for rule in kernel.rules:
        yield f"where    {rule.less} <= {rule.more}"
    yield f"special  {kernel.special}"
    yield f"exact    {_exact(kernel)}"
    yield f"moves    {kernel.cost.moved} bytes"
    yield f"does     {kernel.cost.operations} operations"
    yield f"holds    {kernel.room.cuda} bytes on a device"
    yield f"holds    {kernel.room.cpu} bytes on a CPU"
    yield f"device   {kernel.device}"


def sections() -> str:
    """All of them, in Markdown."""
    parts = []
    for kernel in KERNELS.values():
        first, *rest = lines(kernel)
        parts.append(
            f"### {kernel.name}\n\n{first.partition(': ')[2]}.\n\n```\n" + "\n".join(rest) + "\n```\n"
        )
    return "\n".join(parts)


def _told(of: Array | Number | Out) -> str:
    if isinstance(of, Number):
        return f"{of.name} {of.bounds}"
    dtypes = " or ".join(of.dtypes) if isinstance(of, Array) else of.dtype
    values = f", the {of.values}" if isinstance(of, Array) and of.values else ""
    return f"{of.name} {dtypes}[{', '.join(of.shape)}]{values}"


def _exact(kernel: Kernel) -> str:
    steps, dtype = kernel.tolerance
    if steps == "0":
        return "by its definition, the same on all devices"
    return f"to {steps} units of {dtype} of the sum of magnitudes, and one of the result"
