"""The CPU twins of the annex's kernels, against float64; what they are given is checked before."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.native.kernels import elementwise, histogram, reduce_sum
from skep.native.kernels.arguments import ArgumentError
from skep.native.kernels.catalogue import HERE, KERNELS, SAME, described, module_path
from skep.native.kernels.check import checked
from skep.native.kernels.device import NoDevice, chosen
from skep.native.kernels.formula import value
from skep.native.kernels.run import run
from skep.native.kernels.signature import SourceError, check_source
from skep.native.kernels.topk import DIGIT_BITS, least_of

ROOT = HERE.parents[2]
ON_CPU = chosen("cpu", {})
often = settings(max_examples=40, deadline=None)
dims = st.integers(0, 9)
lengths = st.one_of(dims, st.integers(0, 600))
seeds = st.integers(0, 1 << 32)
TINY = float(np.float32(1e-45))
SPECIAL = [0.0, -0.0, 1.0, -1.0, TINY, -TINY, 1e-40, math.nan, math.inf, -math.inf, 3e38]
Reference = tuple[Any, Any]  # float64: the result, and that of the terms' magnitudes


def made(shape: tuple[int, ...], seed: int, dtype: str = "float32", special: bool = False) -> Any:
    """Values of many magnitudes, denormals among them; ``special``: NaN and infinities too."""
    chance = np.random.default_rng(seed)
    array = chance.standard_normal(shape) * 10.0 ** chance.integers(-3, 3, shape)
    tiny = chance.random(shape) < 0.1
    array[tiny] *= 1e-38 if dtype != "float16" else 1e-6
    if special:
        array = np.where(chance.random(shape) < 0.3, chance.choice(SPECIAL, shape), array)
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def ran(name: str, **given: Any) -> tuple[Any, ...]:
    arrays = {key: of for key, of in given.items() if isinstance(of, np.ndarray)}
    numbers = {key: of for key, of in given.items() if key not in arrays}
    return tuple(run(KERNELS[name], ON_CPU, arrays, numbers).outs.values())


def within(name: str, out: Any, reference: Reference, **given: Any) -> None:
    """Assert that a result is as near to the reference as the kernel's row says."""
    kernel, (exact, magnitude) = KERNELS[name], reference
    arrays = {key: of for key, of in given.items() if isinstance(of, np.ndarray)}
    told = checked(kernel, arrays, {key: of for key, of in given.items() if key not in arrays})
    steps = value(kernel.tolerance.steps, told.sizes)
    dtype = out.dtype if kernel.tolerance.dtype == SAME else np.dtype(kernel.tolerance.dtype)
    unit, own = np.finfo(dtype), np.finfo(out.dtype)
    room = steps * unit.eps * magnitude + own.eps * np.abs(exact)
    room = room + (steps * float(unit.smallest_subnormal) + float(own.smallest_subnormal))
    assert exact.shape == out.shape
    far = np.abs(out.astype(np.float64) - exact) > room
    assert not far.any(), (out[far], exact[far])


def wide(*arrays: Any) -> list[Any]:
    return [array.astype(np.float64) for array in arrays]


@often
@given(lengths, st.sampled_from(["float32", "float64"]), seeds)
def test_vector_add_is_the_sum_of_each_pair(n: int, dtype: str, seed: int) -> None:
    a, b = made((n,), seed, dtype), made((n,), seed + 1, dtype)
    x, y = wide(a, b)
    (out,) = ran("vector_add", a=a, b=b)
    within("vector_add", out, (x + y, abs(x) + abs(y)), a=a, b=b)
    (out,) = ran("vector_add", a=(c := made((n,), seed, dtype, True)), b=b)
    assert np.array_equal(c + b, out, equal_nan=True)


@often
@given(lengths, st.floats(-1e3, 1e3), seeds)
def test_saxpy_is_the_scaled_sum(n: int, alpha: float, seed: int) -> None:
    x, y = made((n,), seed), made((n,), seed + 1)
    (out,) = ran("saxpy", x=x, y=y, alpha=alpha)
    scaled, added = float(np.float32(alpha)) * x.astype(np.float64), y.astype(np.float64)
    within("saxpy", out, (scaled + added, abs(scaled) + abs(added)), x=x, y=y, alpha=alpha)


@often
@given(dims, lengths, dims, st.sampled_from(["float32", "float16"]), seeds)
def test_matmul_is_the_product(m: int, k: int, n: int, dtype: str, seed: int) -> None:
    a, b = made((m, k), seed, dtype) / np.dtype(dtype).type(64), made((k, n), seed + 1, dtype)
    a, b = np.clip(a, -9, 9), np.clip(b, -99, 99)
    (out,) = ran("matmul", a=a, b=b)
    x, y = wide(a, b)
    within("matmul", out, (x @ y, abs(x) @ abs(y)), a=a, b=b)


def test_matmul_adds_up_halves_in_floats() -> None:
    a, b = np.ones((1, 5000), np.float16), np.ones((5000, 1), np.float16)
    assert 5000 == ran("matmul", a=a, b=b)[0][0, 0]


@often
@given(st.one_of(dims, st.integers(0, 3000)), st.sampled_from(["float32", "float64"]), seeds)
def test_reduce_sum_is_the_sum(n: int, dtype: str, seed: int) -> None:
    a = made((n,), seed, dtype)
    (out,) = ran("reduce_sum", a=a)
    exact = np.asarray(math.fsum(a.astype(np.float64)))
    within("reduce_sum", out, (exact, np.asarray(math.fsum(abs(a.astype(np.float64))))), a=a)


def test_reduce_sum_passes_on_nan_and_infinities() -> None:
    assert 0 == ran("reduce_sum", a=np.empty(0, np.float32))[0]
    for values, expected in (([1, np.inf], np.inf), ([np.inf, -np.inf], np.nan), ([1, np.nan], np.nan)):
        with np.errstate(invalid="ignore"):
            (out,) = ran("reduce_sum", a=np.array(values, np.float32))
        assert np.array_equal(np.float64(expected), out, equal_nan=True)


def counted(a: Any, bins: int, low: float, high: float) -> list[int]:
    """What the row of histogram says, in Python's floats."""
    counts = [0] * bins
    for x in map(float, a):
        if low <= x <= high:
            counts[min(int((x - low) * (bins / (high - low))), bins - 1)] += 1
    return counts


@often
@given(lengths, st.integers(1, 12), st.floats(-10, 10), st.floats(0.01, 20), seeds)
def test_histogram_counts_what_is_inside(n: int, bins: int, low: float, width: float, seed: int) -> None:
    a = np.concatenate([made((n,), seed, special=True), np.array([low, low + width], np.float32)])
    (out,) = ran("histogram", a=a, bins=bins, low=low, high=low + width)
    assert counted(a, bins, low, low + width) == out.tolist()


@often
@given(st.lists(st.sampled_from([0, 1, 54, 55, 56, 63, 64, 65, 300]), max_size=9), seeds)
def test_sha256_leaves_are_those_of_rfc_6962(sizes: list[int], seed: int) -> None:
    bodies = [Random(seed + size).randbytes(size) for size in sizes]
    data = np.frombuffer(b"".join(bodies), np.uint8)
    (out,) = ran("sha256_leaves", data=data, ends=np.cumsum(sizes, dtype=np.uint64))
    assert [sha256(b"\0" + body).digest() for body in bodies] == [row.tobytes() for row in out]


@often
@given(st.lists(st.sampled_from([*SPECIAL, 2.0, 7.5, -2.0]), max_size=30), st.data())
def test_topk_are_the_largest_the_first_first(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    a = np.array(values, np.float32)
    order = sorted(range(len(a)), key=lambda i: (not math.isnan(a[i]), -a[i] if a[i] == a[i] else 0.0, i))
    found, places = ran("topk", a=a, k=k)
    assert order[:k] == places.tolist()
    assert a[order[:k]].tobytes() == found.tobytes()


@often
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=30, unique=True), st.data())
def test_the_least_of_the_largest_keys_is_found_by_counts_of_digits(
    given: list[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(given)))

    def count(shift: int, bits: int, prefix: int) -> list[int]:
        digits = [key >> shift & (1 << bits) - 1 for key in given if key >> shift >> bits == prefix]
        return np.bincount(digits, minlength=1 << DIGIT_BITS).tolist()

    least = least_of(count, k)
    assert sorted(given)[-k:] == sorted(key for key in given if key >= least)


@often
@given(st.tuples(*[st.integers(0, 3)] * 3), st.integers(1, 3), st.integers(1, 3), dims, dims, seeds)
def test_conv2d_is_the_sum_over_each_window(
    bco: tuple[int, int, int], r: int, s: int, up: int, right: int, seed: int
) -> None:
    b, c, o = bco
    images, weights = made((b, c, r + up, s + right), seed), made((o, c, r, s), seed + 1)
    (out,) = ran("conv2d", images=images, weights=weights)
    x, y = wide(images, weights)
    exact, magnitude = np.zeros((2, b, o, up + 1, right + 1))
    for i in range(r):
        for j in range(s):
            part = x[:, :, i : i + up + 1, j : j + right + 1]
            exact += np.einsum("bchw,oc->bohw", part, y[:, :, i, j])
            magnitude += np.einsum("bchw,oc->bohw", abs(part), abs(y[:, :, i, j]))
    within("conv2d", out, (exact, magnitude), images=images, weights=weights)


@often
@given(dims, lengths, seeds, st.floats(0.1, 100))
def test_softmax_shares_one_in_each_row(rows: int, columns: int, seed: int, scale: float) -> None:
    a = np.clip(made((rows, columns), seed) * np.float32(scale), -1e4, 1e4)
    (out,) = ran("softmax", a=a)
    (x,) = wide(a)
    powers = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
    exact = powers / powers.sum(axis=1, keepdims=True)
    within("softmax", out, (exact, exact), a=a)


def test_softmax_of_a_row_with_nan_or_infinity_is_nan() -> None:
    bad = [[1, np.nan], [1, np.inf], [-np.inf, -np.inf]]
    (out,) = ran("softmax", a=np.array([*bad, [0, -np.inf]], np.float32))
    assert np.isnan(out[:3]).all()
    assert [1, 0] == out[3].tolist()


def product(a: Any, b: Any) -> Any:
    """In float64, term by term: a library's may leave out what it multiplies by zero."""
    return (a[:, :, None] * b[None, :, :]).sum(axis=1)


def windows(images: Any, weights: Any) -> Any:
    """The sums over each window, in float64."""
    r, s = weights.shape[2:]
    seen = np.lib.stride_tricks.sliding_window_view(images, (r, s), axis=(2, 3))
    return (seen[:, None] * weights[None, :, :, None, None]).sum(axis=(2, 5, 6))


# Of the kernels that add up: what each is in float64. Values that only float32 has no room for are left out.
SUMS: dict[str, tuple[Any, Any]] = {
    "vector_add": (lambda a, b: a + b, {"a": (40,), "b": (40,)}),
    "saxpy": (lambda x, y: 2.0 * x + y, {"x": (40,), "y": (40,)}),
    "matmul": (product, {"a": (4, 5), "b": (5, 6)}),
    "reduce_sum": (np.sum, {"a": (5,)}),
    "conv2d": (windows, {"images": (2, 2, 4, 5), "weights": (3, 2, 2, 1)}),
}
CLOSE = [of for of in SPECIAL if of != 3e38]


@pytest.mark.parametrize("name", list(SUMS))
@often
@given(st.floats(0.02, 0.3), seeds)
def test_nan_and_infinities_come_out_where_they_do_in_float64(name: str, often: float, seed: int) -> None:
    reference, shapes = SUMS[name]
    chance = np.random.default_rng(seed)
    arrays = {}
    for key, shape in shapes.items():
        plain = chance.standard_normal(shape)
        special = np.where(chance.random(shape) < often, chance.choice(CLOSE, shape), plain)
        arrays[key] = special.astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = reference(*wide(*arrays.values()))
        (out,) = ran(name, **arrays, **({"alpha": 2.0} if name == "saxpy" else {}))
    assert np.array_equal(np.isnan(expected), np.isnan(out))
    ends = np.isinf(expected)
    assert np.array_equal(ends, np.isinf(out))
    assert np.array_equal(expected[ends], out[ends])
    assert np.allclose(expected[np.isfinite(expected)], out[np.isfinite(out)], rtol=1e-5, atol=1e-5)


@often
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9), st.sampled_from([1e-45, 3e-42, 1e-39]))
def test_denormals_are_kept(counts: list[int], unit: float) -> None:
    one = np.float32(unit)
    a = (np.array(counts) * float(one)).astype(np.float32)
    assert (2 * a).tolist() == ran("vector_add", a=a, b=a)[0].tolist()
    assert (3 * a).tolist() == ran("saxpy", x=a, y=a, alpha=2.0)[0].tolist()
    assert float(one) * sum(counts) == ran("reduce_sum", a=a)[0]
    assert (5 * a[:, None]).tolist() == ran("matmul", a=a[:, None], b=np.array([[5]], np.float32))[0].tolist()
    halves = np.array(counts, np.float16) * np.float16(6e-8)
    made = ran("matmul", a=halves[:, None], b=np.array([[3]], np.float16))[0]
    assert (3 * halves[:, None]).tolist() == made.tolist()
    images, weights = a.reshape(1, 1, 1, -1), np.array([[[[7]]]], np.float32)
    assert (7 * images).tolist() == ran("conv2d", images=images, weights=weights)[0].tolist()
    assert sorted(a.tolist(), reverse=True) == ran("topk", a=a, k=a.size)[0].tolist()
    bins = ran("histogram", a=a, bins=1, low=0.0, high=1.0)[0]
    assert [sum(count >= 0 for count in counts)] == bins.tolist()


F0, U0 = np.zeros(0, np.float32), np.zeros(0, np.uint8)
EMPTY: list[tuple[str, dict[str, Any], Any]] = [
    ("vector_add", {"a": F0, "b": F0}, [[]]),
    ("saxpy", {"x": F0, "y": F0, "alpha": 2}, [[]]),
    ("matmul", {"a": F0.reshape(2, 0), "b": F0.reshape(0, 3)}, [[[0.0] * 3] * 2]),
    ("matmul", {"a": F0.reshape(0, 2), "b": np.ones((2, 3), np.float32)}, [[]]),
    ("matmul", {"a": np.ones((2, 3), np.float16), "b": np.zeros((3, 0), np.float16)}, [[[], []]]),
    ("reduce_sum", {"a": F0}, [0.0]),
    ("histogram", {"a": F0, "bins": 3, "low": 0.0, "high": 1.0}, [[0, 0, 0]]),
    ("sha256_leaves", {"data": U0, "ends": np.zeros(0, np.uint64)}, [[]]),
    ("sha256_leaves", {"data": U0, "ends": np.zeros(1, np.uint64)}, [[list(sha256(b"\0").digest())]]),
    ("topk", {"a": F0, "k": 0}, [[], []]),
    ("conv2d", {"images": np.ones((0, 1, 2, 2), "f4"), "weights": np.ones((1, 1, 1, 1), "f4")}, [[]]),
    ("conv2d", {"images": np.ones((1, 1, 1, 1), "f4"), "weights": np.ones((0, 1, 1, 1), "f4")}, [[[]]]),
    ("conv2d", {"images": np.ones((1, 0, 1, 1), "f4"), "weights": np.ones((1, 0, 1, 1), "f4")}, [[[[[0]]]]]),
    ("softmax", {"a": F0.reshape(0, 3)}, [[]]),
    ("softmax", {"a": F0.reshape(3, 0)}, [[[], [], []]]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "expected"), EMPTY, ids=[row[0] for row in EMPTY])
def test_of_nothing_there_is_what_the_row_says(name: str, given: dict[str, Any], expected: Any) -> None:
    assert expected == [out.tolist() for out in ran(name, **given)]


def test_every_kernel_is_given_nothing_once() -> None:
    assert KERNELS.keys() == {row[0] for row in EMPTY}


def test_arrays_in_another_order_are_the_same_arrays() -> None:
    a = made((5, 7), 1)
    assert ran("softmax", a=a)[0].tolist() == ran("softmax", a=np.asfortranarray(a))[0].tolist()
    assert ran("reduce_sum", a=a.ravel()[::3].copy())[0] == ran("reduce_sum", a=a.ravel()[::3])[0]
    assert ran("matmul", a=a, b=a.T.copy())[0].tolist() == ran("matmul", a=a, b=a.T)[0].tolist()


@pytest.mark.slow
@often
@given(st.integers(0, 70), st.sampled_from(["float32", "float64"]), seeds)
def test_compiled_loops_are_right_at_every_length(n: int, dtype: str, seed: int) -> None:
    a, b, c = made((n,), seed, special=True), made((n,), seed + 1), made((n,), seed + 2, dtype)
    with np.errstate(all="ignore"):
        expected = elementwise.saxpy_numpy(a, b, 1.5)[0]
        assert np.array_equal(expected, elementwise.compiled_saxpy(a, b, 1.5)[0], equal_nan=True)
    assert counted(a, 7, -2.5, 3.0) == histogram.compiled_histogram(a, 7, -2.5, 3.0)[0].tolist()
    exact = np.asarray(math.fsum(wide(c)[0])), np.asarray(math.fsum(abs(wide(c)[0])))
    within("reduce_sum", reduce_sum.compiled_sum(c)[0], exact, a=c)


@pytest.mark.slow
def test_compiled_loops_make_what_those_of_numpy_make() -> None:
    n = 1 << 17
    a, b = made((n,), 3, special=True), made((n,), 4)
    with np.errstate(all="ignore"):
        expected = elementwise.saxpy_numpy(a, b, 1.5)[0]
    assert np.array_equal(expected, elementwise.compiled_saxpy(a, b, 1.5)[0], equal_nan=True)
    expected = histogram.histogram_numpy(a, 77, -2.5, 3.0)[0]
    assert expected.tolist() == histogram.compiled_histogram(a, 77, -2.5, 3.0)[0].tolist()
    for dtype in ("float32", "float64"):
        c = made((n + 5,), 5, dtype)
        x = c.astype(np.float64)
        exact = np.asarray(math.fsum(x)), np.asarray(math.fsum(abs(x)))
        within("reduce_sum", reduce_sum.compiled_sum(c)[0], exact, a=c)
        within("reduce_sum", reduce_sum.sum_numpy(c)[0], exact, a=c)


F = np.zeros(4, np.float32)
ENDS = np.array([1, 4], np.uint64)
WRONG: list[tuple[str, Mapping[str, Any], str]] = [
    ("vector_add", {"a": F}, "vector_add: b: given nothing, expected an array"),
    ("vector_add", {"a": F, "b": F, "c": F}, "vector_add: c: given an array"),
    ("vector_add", {"a": F, "b": F[:3]}, "b: given float32[3], expected float32[n] with n = 4"),
    ("vector_add", {"a": F, "b": F.astype("f8")}, "b: given float64[4], expected float32[n]"),
    ("vector_add", {"a": F.astype(">f4"), "b": F}, "a: given >f4[4], expected float32 or float64[n]"),
    ("vector_add", {"a": F.astype("i4"), "b": F}, "a: given int32[4], expected float32 or float64[n]"),
    ("matmul", {"a": F, "b": F}, "a: given float32[4], expected float32[m, k]"),
    ("matmul", {"a": F.reshape(2, 2), "b": F.reshape(1, 4)}, "b: given float32[1, 4], expected float32[k"),
    ("saxpy", {"x": F, "y": F, "alpha": math.nan}, "alpha: given nan, expected float from -3.4e+38"),
    ("saxpy", {"x": F, "y": F, "alpha": 10**400}, "alpha: given 1000"),
    ("topk", {"a": F, "k": 5}, "k: given 5 and 4, expected k <= n"),
    ("topk", {"a": F, "k": 2.0}, "k: given 2.0, expected int"),
    ("topk", {"a": F, "k": True}, "k: given True, expected int"),
    ("histogram", {"a": F, "bins": 3, "low": 1, "high": 1}, "high: given 1e-290 and 0.0, expected"),
    ("conv2d", {"images": F.reshape(1, 1, 2, 2), "weights": np.zeros((1, 1, 3, 1), np.float32)}, "r <= h"),
    ("sha256_leaves", {"data": np.zeros(5, np.uint8), "ends": ENDS}, "ends: given a last end of 4, expec"),
    ("sha256_leaves", {"data": np.zeros(1, np.uint8), "ends": ENDS[::-1]}, "ends: given 1 at 1 after 4"),
    ("sha256_leaves", {"data": np.zeros(1, np.uint8), "ends": ENDS[:0]}, "a last end of 0, expected 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "text"), WRONG, ids=[f"{row[0]}-{row[2]}" for row in WRONG])
def test_a_wrong_argument_is_named_with_what_was_expected(
    name: str, given: Mapping[str, Any], text: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        ran(name, **given)
    assert text in str(error.value)


def test_a_result_that_is_too_large_is_refused_before_it_is_made() -> None:
    a = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 17, 1), (0, 0))
    with pytest.raises(ArgumentError, match=r"out: given float32.* bytes, expected 4294967296 at most"):
        ran("matmul", a=a, b=a.T)


def test_a_kernel_that_is_not_the_signed_one_does_not_run() -> None:
    kernel = KERNELS["vector_add"]
    signed = json.loads(json.dumps(described(kernel)))
    check_source(kernel, signed)
    signed["files"]["kernels/elementwise.cu"] = "0" * 64
    with pytest.raises(SourceError, match=r"vector_add: not as it was signed: kernels/elementwise\.cu"):
        run(kernel, ON_CPU, {"a": F, "b": F}, {}, signed)


def imported(path: Path) -> set[Path]:
    """The sources that a module of native/ needs, those that they need too."""
    found, todo = set(), [path]
    while todo:
        found.add(path := todo.pop())
        names = re.findall(r"^\s*from (skep\.[\w.]+) import", path.read_text(), re.MULTILINE)
        paths = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
        todo += [path for path in paths - found if path.is_file()]
    return found


@pytest.mark.parametrize("name", list(KERNELS))
def test_what_is_signed_is_all_that_decides_what_runs(name: str) -> None:
    kernel = KERNELS[name]
    needed = imported(HERE / "child.py") | imported(HERE / "process.py") | imported(module_path(kernel))
    signed = described(kernel)["files"]
    assert {str(path.relative_to(HERE.parent)) for path in needed} <= signed.keys()
    assert {file for file in signed if file.endswith((".cu", ".h", ".c"))} >= {*kernel.files}


def test_a_check_that_is_not_the_signed_one_stops_every_kernel() -> None:
    for kernel in KERNELS.values():
        signed = json.loads(json.dumps(described(kernel)))
        signed["files"]["kernels/arguments.py"] = "0" * 64
        with pytest.raises(SourceError, match=f"^{kernel.name}: not as it was signed: kernels/arguments"):
            check_source(kernel, signed)


def test_the_device_says_why_it_is_none() -> None:
    with pytest.raises(NoDevice, match=r"^disabled$"):
        chosen("cuda:1", {"SKEP_NO_CUDA": "1"})
    assert "cpu: disabled" == chosen("auto", {"SKEP_NO_CUDA": "1"}).said
    assert "cpu: asked" == chosen("cpu", {}).said
    with pytest.raises(NoDevice, match=r"^disabled$"):
        chosen("cuda", {"SKEP_NO_CUDA": "1"})
