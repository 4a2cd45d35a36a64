"""vector_add and saxpy: a sum for each element.

NumPy's addition is bound by memory already. Of saxpy it makes two passes; compiled it is one."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.compiled import compiled, pays
from skep.native.kernels.device import Cuda, blocks_for

SAXPY_PAYS: Final = (
    1 << 20,
    1 << 31,
)  # elements from which on compiled is faster, warm and cold: tests.bench.kernels


def vector_add(a: Any, b: Any) -> tuple[Any, ...]:
    return (a + b,)


def vector_add_cuda(cuda: Cuda, a: Any, b: Any) -> tuple[Any, ...]:
    out, real = cuda.cupy.empty_like(a), "float" if a.dtype == np.float32 else "double"
    cuda.run("vector_add", blocks_for(a.size), np.uint64(a.size), a, b, out, real=real)
    return (out,)


def saxpy_loop(alpha: Any, x: Any, y: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = alpha * x[i] + y[i]


def saxpy_numpy(x: Any, y: Any, alpha: float) -> tuple[Any, ...]:
    out = np.multiply(x, np.float32(alpha))
    out += y
    return (out,)


def compiled_saxpy(x: Any, y: Any, alpha: float) -> tuple[Any, ...]:
    out = np.empty_like(x)
    compiled(saxpy_loop)(np.float32(alpha), x, y, out)
    return (out,)


def saxpy(x: Any, y: Any, alpha: float) -> tuple[Any, ...]:
    return (compiled_saxpy if pays(x.size, *SAXPY_PAYS) else saxpy_numpy)(x, y, alpha)


def saxpy_cuda(cuda: Cuda, x: Any, y: Any, alpha: float) -> tuple[Any, ...]:
    out = cuda.cupy.empty_like(x)
    cuda.run("saxpy", blocks_for(x.size), np.uint64(x.size), np.float32(alpha), x, y, out)
    return (out,)


CPU: Final = {"vector_add": vector_add, "saxpy": saxpy}
CUDA: Final = {"vector_add": vector_add_cuda, "saxpy": saxpy_cuda}
