"""conv2d: a cross-correlation, on a CPU as a product of matrices for each image, which is BLAS's."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from skep.native.kernels.device import Cuda, blocks_for

EACH: Final = 16  # elements of a thread on a device: PLACES * CHANNELS of conv2d.cu


def conv2d(images: Any, weights: Any) -> tuple[Any, ...]:
    o, c, r, s = weights.shape
    b, _, h, w = images.shape
    out = np.empty((b, o, h - r + 1, w - s + 1), np.float32)
    up, right = out.shape[2:]
    flat = weights.reshape(o, c * r * s)
    # columns: what each weight meets, of one image at a time.
    columns = np.empty((c, r, s, up, right), np.float32)
    for image in range(b):
        for i in range(r):
            for j in range(s):
                columns[:, i, j] = images[image, :, i : i + up, j : j + right]
        out[image] = (flat @ columns.reshape(c * r * s, up * right)).reshape(o, up, right)
    return (out,)


def conv2d_cuda(cuda: Cuda, images: Any, weights: Any) -> tuple[Any, ...]:
    o, c, r, s = weights.shape
    b, _, h, w = images.shape
    out = cuda.cupy.empty((b, o, h - r + 1, w - s + 1), np.float32)
    sizes = map(np.uint64, (b, c, h, w, o, r, s))
    cuda.run("conv2d", blocks_for(-(-out.size // EACH)), *sizes, images, weights, out)
    return (out,)


CPU: Final = {"conv2d": conv2d}
CUDA: Final = {"conv2d": conv2d_cuda}
