"""matmul: a product of matrices, by the library that each device has for it: BLAS, cuBLAS."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.device import Cuda


def matmul(a: Any, b: Any) -> tuple[Any, ...]:
    # NumPy has no BLAS for halves and adds them up in halves.
    out = np.matmul(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))
    return (out.astype(a.dtype, copy=False),)


def matmul_cuda(cuda: Cuda, a: Any, b: Any) -> tuple[Any, ...]:
    # cuBLAS adds up halves in float32; TensorFloat-32 is not used unless CUPY_TF32 says so.
    return (cuda.cupy.matmul(a, b),)


CPU: Final = {"matmul": matmul}
CUDA: Final = {"matmul": matmul_cuda}
