"""Work for kernels, and what NumPy says comes of it.

All numbers are small and whole, so that no sum is rounded: in whatever order a device adds up, the bytes are
the same, those of the file that NumPy writes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, NamedTuple

import numpy as np

HIGH: Final = 16  # of values: what is counted in a histogram
REACH: Final = 1000  # of long work, whose twin goes through the weights one by one


class Work(NamedTuple):
    """Arrays and numbers by their names in the catalogue; ``outs``: what comes of them."""

    kernel: str
    inputs: dict[str, Any]
    numbers: dict[str, float]
    outs: dict[str, Any]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each result as a .npy file."""
        return {name: sha256(npy(out)).hexdigest() for name, out in self.outs.items()}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def whole(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Any:
    return rng.integers(-3, 4, shape).astype(dtype)


def vector_add(rng: np.random.Generator) -> Work:
    a, b = (whole(rng, int(rng.integers(0, 300)), dtype="float64") for _ in "ab")
    b = np.resize(b, a.shape)
    return Work("vector_add", {"a": a, "b": b}, {}, {"out": a + b})


def saxpy(rng: np.random.Generator) -> Work:
    x, y, alpha = whole(rng, 200), whole(rng, 200), float(rng.integers(1, 9))
    return Work("saxpy", {"x": x, "y": y}, {"alpha": alpha}, {"out": np.float32(alpha) * x + y})


def matmul(rng: np.random.Generator) -> Work:
    dtype = str(rng.choice(["float32", "float16"]))
    a, b = whole(rng, 12, 20, dtype=dtype), whole(rng, 20, 8, dtype=dtype)
    out = (a.astype("float64") @ b.astype("float64")).astype(dtype)
    return Work("matmul", {"a": a, "b": b}, {}, {"out": out})


def reduce_sum(rng: np.random.Generator) -> Work:
    a = whole(rng, 500)
    return Work("reduce_sum", {"a": a}, {}, {"out": np.array(a.sum(dtype="float64"))})


def histogram(rng: np.random.Generator) -> Work:
    places = rng.integers(0, HIGH, 400)
    numbers = {"bins": HIGH, "low": 0.0, "high": float(HIGH)}
    out = np.bincount(places, minlength=HIGH).astype("int64")
    return Work("histogram", {"a": (places + 0.5).astype("float32")}, numbers, {"out": out})


def sha256_leaves(rng: np.random.Generator) -> Work:
    data = rng.integers(0, 256, 600).astype("uint8")
    ends = np.sort(np.append(rng.integers(0, data.size, 5), data.size)).astype("uint64")
    entries = np.split(data, ends[:-1].astype("int64"))
    leaves = b"".join(sha256(b"\0" + entry.tobytes()).digest() for entry in entries)
    out = np.frombuffer(leaves, "uint8").reshape(-1, 32)
    return Work("sha256_leaves", {"data": data, "ends": ends}, {}, {"out": out})


def topk(rng: np.random.Generator) -> Work:
    a, k = whole(rng, 300), int(rng.integers(0, 30))
    indices = np.argsort(-a, kind="stable")[:k].astype("int64")
    return Work("topk", {"a": a}, {"k": k}, {"values": a[indices], "indices": indices})


def conv2d(rng: np.random.Generator, side: int = 9, reach: int = 3) -> Work:
    images, weights = whole(rng, 1, 2, side, side), whole(rng, 3, 2, reach, reach)
    views = np.lib.stride_tricks.sliding_window_view(images, (reach, reach), (2, 3))
    out = np.einsum("bchwrs,ocrs->bohw", views, weights, dtype="float64", optimize=True).astype("float32")
    return Work("conv2d", {"images": images, "weights": weights}, {}, {"out": out})


def softmax(rng: np.random.Generator) -> Work:
    """Of rows whose elements are equal, as many as a power of two: no result is rounded."""
    columns = 2 ** int(rng.integers(0, 6))
    a = np.repeat(whole(rng, 10, 1), columns, axis=1)
    return Work("softmax", {"a": a}, {}, {"out": np.full_like(a, 1 / columns)})


OF_EACH: Final[tuple[Callable[[np.random.Generator], Work], ...]] = (
    vector_add, saxpy, matmul, reduce_sum, histogram, sha256_leaves, topk, conv2d, softmax,
)  # fmt: skip


def works(seed: int, of_each: int) -> list[Work]:
    rng = np.random.default_rng(seed)
    return [make(rng) for make in OF_EACH for _ in range(of_each)]


def long(rng: np.random.Generator) -> Work:
    """What takes a processor a second or so: of an image that is the same everywhere, with many weights."""
    images, weights = np.full((1, 1, REACH, REACH), 2, "float32"), whole(rng, 1, 1, REACH, REACH)
    out = np.full((1, 1, 1, 1), 2 * weights.sum(dtype="float64"), "float32")
    return Work("conv2d", {"images": images, "weights": weights}, {}, {"out": out})


def large(rng: np.random.Generator) -> Work:
    """What takes megabytes."""
    a, b = (whole(rng, 1 << 18, dtype="float64") for _ in "ab")
    return Work("vector_add", {"a": a, "b": b}, {}, {"out": a + b})


def wrong(rng: np.random.Generator) -> Work:
    """What no device can do: two arrays that have not the same size. Nothing comes of it."""
    return Work("vector_add", {"a": whole(rng, 7), "b": whole(rng, 8)}, {}, {})
