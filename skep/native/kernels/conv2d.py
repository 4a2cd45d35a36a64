"""conv2d: a cross-correlation, on a CPU as a product of matrices for each image, which is BLAS's."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.device import Cuda, blocks_for


def conv2d(images: Any, weights: Any) -> tuple[Any, ...]:
    o, c, r, s = weights.shape
    b, _, h, w = images.shape
    out = np.empty((b, o, h - r + 1, w - s + 1), np.float32)
    flat = weights.reshape(o, c * r * s)
    # windows: float32[b, c, y, x, r, s], a view; of one image at a time it becomes memory.
    windows = np.lib.stride_tricks.sliding_window_view(images, (r, s), axis=(2, 3))
    for image in range(b):
        columns = windows[image].transpose(0, 3, 4, 1, 2).reshape(c * r * s, out.shape[2] * out.shape[3])
        np.matmul(flat, columns, out=out[image].reshape(o, out.shape[2] * out.shape[3]))
    return (out,)


def conv2d_cuda(cuda: Cuda, images: Any, weights: Any) -> tuple[Any, ...]:
    o, c, r, s = weights.shape
    b, _, h, w = images.shape
    out = cuda.cupy.empty((b, o, h - r + 1, w - s + 1), np.float32)
    sizes = map(np.uint64, (out.size, c, h, w, o, r, s))
    cuda.run("conv2d", blocks_for(out.size), *sizes, images, weights, out)
    return (out,)


CPU: Final = {"conv2d": conv2d}
CUDA: Final = {"conv2d": conv2d_cuda}
