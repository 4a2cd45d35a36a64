"""The kernels' device code: as C everywhere, by NVIDIA's compiler and on a device where they are.

What could not run is skipped, and says what it was: ``pytest -rs tests/native/test_kernels_cuda.py``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest
from nvrtc import compiled, library
from test_kernels import EMPTY

from skep.native.kernels.catalogue import HERE, KERNELS
from skep.native.kernels.conv2d import conv2d
from skep.native.kernels.device import THREADS, chosen, source
from skep.native.kernels.histogram import histogram_numpy
from skep.native.kernels.run import run
from skep.native.kernels.softmax import softmax
from skep.native.kernels.topk import DIGIT_BITS, keys, least_of, topk
from tests.bench.device import FMA, NO_DEVICE, main

ENTRIES = {
    "vector_add": ["vector_add", "saxpy"],
    "reduce_sum": ["reduce_sum"],
    "histogram": ["histogram", "histogram_few"],
    "sha256_leaves": ["leaves"],
    "topk": ["topk_count", "topk_take"],
    "conv2d": ["conv2d"],
    "softmax": ["softmax"],
}
CALLS = """
typedef unsigned long long wide;
void all_add(wide count, wide n, const float *a, const float *b, float *out);
void all_saxpy(wide count, wide n, float alpha, const float *x, const float *y, float *out);
double all_sum(wide n, const float *a, double *sums);
void all_keys(wide count, wide n, const unsigned *a, wide *out);
void all_bins(wide count, wide n, const float *a, double low, double high, double scale, int bins, wide *out);
void all_counts(wide n, const wide *keys, unsigned shift, unsigned bits, wide prefix, unsigned *out);
void all_conv2d(wide b, wide c, wide h, wide w, wide o, wide r, wide s, const float *x, const float *y, float *out);
void all_softmax(wide rows, wide columns, const float *a, float *out, float *all);
"""  # noqa: E501
LOOPS = """
void
all_add(wide count, wide n, const float *a, const float *b, float *out)
{
	for (wide t = 0; t < count; t++)
		add(t, count, n, a, b, out);
}

void
all_saxpy(wide count, wide n, float alpha, const float *x, const float *y, float *out)
{
	for (wide t = 0; t < count; t++)
		scale_and_add(t, count, n, alpha, x, y, out);
}

double
all_sum(wide n, const float *a, double *sums)
{
	for (word t = 0; t < THREADS; t++)
		sums[t] = part(t, THREADS, n, a);
	for (word step = THREADS / 2; step > 0; step /= 2)
		for (word t = 0; t < THREADS; t++)
			fold(t, step, sums);
	return sums[0];
}

void
all_keys(wide count, wide n, const unsigned *a, wide *out)
{
	wide keys[AHEAD];

	for (wide t = 0; t < count; t++)
		for (wide i = t; i < n; i += AHEAD * count) {
			keys_ahead(i, count, n, a, keys);
			for (int j = 0; j < AHEAD; j++)
				if (i + j * count < n)
					out[i + j * count] = keys[j];
		}
}

void
all_bins(wide count, wide n, const float *a, double low, double high, double scale, int bins, wide *out)
{
	float seen[AHEAD];

	for (wide t = 0; t < count; t++)
		for (wide i = t; i < n; i += AHEAD * count) {
			ahead(i, count, n, a, seen);
			for (int j = 0; j < AHEAD; j++) {
				int at = bin(seen[j], low, high, scale, bins);

				if (at >= 0)
					out[at]++;
			}
		}
}

void
all_counts(wide n, const wide *keys, word shift, word bits, wide prefix, word *out)
{
	for (wide i = 0; i < n; i++) {
		int at = digit(keys[i], shift, bits, prefix);

		if (at >= 0)
			out[at]++;
	}
}

void
all_conv2d(wide b, wide c, wide h, wide w, wide o, wide r, wide s, const float *x, const float *y, float *out)
{
	Sizes of = sizes(b, c, h, w, o, r, s);

	for (wide i = 0; i < threads(of); i++)
		elements(i, of, x, y, out);
}

void
all_softmax(wide rows, wide columns, const float *a, float *out, float *all)
{
	for (wide i = 0; i < rows; i++) {
		const float *row = a + i * columns;
		float most;

		for (word t = 0; t < THREADS; t++)
			all[t] = largest(t, columns, row);
		for (word step = THREADS / 2; step > 0; step /= 2)
			for (word t = 0; t < THREADS; t++)
				fold_largest(t, step, all);
		most = all[0];
		for (word t = 0; t < THREADS; t++)
			all[t] = sum_above(t, columns, row, most);
		for (word step = THREADS / 2; step > 0; step /= 2)
			for (word t = 0; t < THREADS; t++)
				fold_sum(t, step, all);
		for (word t = 0; t < THREADS; t++)
			share(t, columns, row, most, all[0], out + i * columns);
	}
}
"""
FILES = ("prelude.h", "elementwise.cu", "reduce_sum.cu", "histogram.cu", "topk.cu", "conv2d.cu", "softmax.cu")
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, np.nan, -np.nan, np.inf, -np.inf, 3e38]


@pytest.fixture(scope="module")
def as_c(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels' text, compiled for this processor."""
    ffi = cffi.FFI()
    ffi.cdef(CALLS)
    before = (
        f"#include <math.h>\n#define DEVICE\n#define UNROLL\n#define REAL float\n#define THREADS {THREADS}\n"
    )
    text = "\n".join((HERE / name).read_text() for name in FILES)
    ffi.set_source("annex_as_c", before + text + LOOPS, libraries=["m"])
    made = ffi.compile(tmpdir=str(tmp_path_factory.mktemp("annex")))
    spec = importlib.util.spec_from_file_location("annex_as_c", made)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(module: Any, kind: str, array: Any) -> Any:
    return module.ffi.from_buffer(kind, array)


def floats(shape: tuple[int, ...], seed: int, special: bool = False) -> Any:
    chance = np.random.default_rng(seed)
    made = chance.standard_normal(shape).astype(np.float32)
    special_ = np.where(chance.random(shape) < 0.2, chance.choice(SPECIAL, shape), made)
    return special_.astype(np.float32) if special else made


@pytest.mark.slow
def test_as_c_each_element_has_its_thread(as_c: Any) -> None:
    for n, count in ((0, 7), (5, 7), (7, 7), (1000, 7)):
        a, b = floats((n,), 1), floats((n,), 2)
        out, twice = np.zeros_like(a), np.zeros_like(a)
        arrays = [of(as_c, "float *", array) for array in (a, b, out, twice)]
        as_c.lib.all_add(count, n, *arrays[:3])
        as_c.lib.all_saxpy(count, n, 2.0, *arrays[:2], arrays[3])
        assert np.array_equal(a + b, out)
        assert np.allclose(2 * a + b, twice, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_as_c_a_block_folds_to_the_sum(as_c: Any) -> None:
    for n in (0, 1, THREADS - 1, THREADS, 10_000):
        a, sums = floats((n,), 3), np.zeros(THREADS)
        found = as_c.lib.all_sum(n, of(as_c, "float *", a), of(as_c, "double *", sums))
        assert abs(np.sum(a, dtype=np.float64) - found) <= 1e-9


@pytest.mark.slow
def test_as_c_bins_are_the_twins(as_c: Any) -> None:
    a = np.concatenate(
        [floats((2000,), 4, special=True).astype(np.float32), np.array([-1.5, 2.25], np.float32)]
    )
    for bins in (1, 7, 100):
        low, high = -1.5, 2.25
        counts, scale = np.zeros(bins, np.uint64), bins / (high - low)
        arrays = of(as_c, "float *", a), of(as_c, "wide *", counts)
        as_c.lib.all_bins(7, a.size, arrays[0], low, high, scale, bins, arrays[1])
        assert histogram_numpy(a, bins, low, high)[0].tolist() == counts.tolist()


@pytest.mark.slow
def test_as_c_keys_are_the_twins(as_c: Any) -> None:
    a = floats((2000,), 5, special=True).astype(np.float32)
    out = np.zeros(a.size, np.uint64)
    as_c.lib.all_keys(7, a.size, of(as_c, "unsigned *", a), of(as_c, "wide *", out))
    assert np.array_equal(keys(a, np.arange(a.size)), out)


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True])
def test_as_c_the_largest_are_found_digit_by_digit(as_c: Any, special: bool) -> None:
    a = floats((3000,), 11, special).astype(np.float32)
    a[::3] = a[0]
    made = keys(a, np.arange(a.size))
    looks = 0

    def count(shift: int, bits: int, prefix: int) -> Any:
        nonlocal looks
        looks += 1
        counts = np.zeros(1 << DIGIT_BITS, np.uint32)
        as_c.lib.all_counts(
            made.size, of(as_c, "wide *", made), shift, bits, prefix, of(as_c, "unsigned *", counts)
        )
        return counts

    for k in (1, 2, 100, 1000, 2999, 3000):
        looks = 0
        taken = np.sort(made[made >= np.uint64(least_of(count, k))])[::-1]
        assert topk(a, k)[1].tolist() == (0xFFFF_FFFF - (taken & np.uint64(0xFFFF_FFFF))).astype(int).tolist()
        assert 1 <= looks <= 6


@pytest.mark.slow
def test_as_c_windows_and_rows_are_the_twins(as_c: Any) -> None:
    for b, c, o, h, w, r, s in (
        (2, 3, 4, 7, 6, 3, 2),
        (1, 2, 5, 3, 3, 1, 1),
        (3, 1, 1, 5, 2, 5, 2),
        (1, 0, 3, 2, 2, 1, 2),
    ):
        images, weights = floats((b, c, h, w), 6), floats((o, c, r, s), 7)
        (expected,) = conv2d(images, weights)
        out = np.full_like(expected, np.nan)
        arrays = [of(as_c, "float *", array) for array in (images, weights, out)]
        as_c.lib.all_conv2d(b, c, h, w, o, r, s, *arrays)
        assert np.allclose(expected, out, rtol=0, atol=1e-5)
    for columns in (0, 1, 5, 1000, 2500):
        a = floats((9, columns), 8)
        a[::3] = floats((3, columns), 9, special=True)
        (expected,) = softmax(a)
        out, all_ = np.zeros_like(a), np.zeros(THREADS, np.float32)
        arrays = [of(as_c, "float *", array) for array in (a, out, all_)]
        as_c.lib.all_softmax(9, columns, *arrays)
        assert np.allclose(expected, out, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("real", ["float", "double"])
def test_nvidias_compiler_takes_the_annexs_kernels(real: str) -> None:
    found = library()
    if found is None:
        pytest.skip("did not run: NVRTC is not here (nvidia-cuda-nvrtc-cu12, of the extra test)")
    ffi, lib = found
    for name, entries in ENTRIES.items():
        ptx = compiled(ffi, lib, source(KERNELS[name], real))
        assert [1] * len(entries) == [ptx.count(f".entry {entry}(") for entry in entries]


GIVEN: dict[str, dict[str, Any]] = {
    "vector_add": {"a": floats((100_003,), 1), "b": floats((100_003,), 2)},
    "saxpy": {"x": floats((100_003,), 1), "y": floats((100_003,), 2), "alpha": 1.5},
    "matmul": {"a": floats((65, 130), 3), "b": floats((130, 33), 4)},
    "reduce_sum": {"a": floats((1_000_003,), 5)},
    "histogram": {"a": floats((100_003,), 6), "bins": 100, "low": -2.0, "high": 2.5},
    "sha256_leaves": {"data": np.zeros(700, np.uint8), "ends": np.array([0, 5, 64, 700], np.uint64)},
    "topk": {"a": floats((100_003,), 7, special=True).astype(np.float32), "k": 100},
    "conv2d": {"images": floats((2, 3, 20, 21), 8), "weights": floats((4, 3, 3, 5), 9)},
    "softmax": {"a": floats((300, 1001), 10)},
}


SPECIALS: dict[str, dict[str, Any]] = {
    "vector_add": {"a": floats((999,), 1, special=True), "b": floats((999,), 2)},
    "saxpy": {"x": floats((999,), 1, special=True), "y": floats((999,), 2), "alpha": 1.5},
    "matmul": {"a": floats((9, 30), 3, special=True), "b": floats((30, 5), 4)},
    "reduce_sum": {"a": floats((5,), 5, special=True)},
    "histogram": {"a": floats((999,), 6, special=True), "bins": 9000, "low": -2.0, "high": 2.5},
    "topk": {"a": floats((999,), 7, special=True), "k": 700},
    "conv2d": {"images": floats((2, 3, 9, 8), 8, special=True), "weights": floats((5, 3, 2, 2), 9)},
    "softmax": {"a": floats((99, 7), 10, special=True)},
    "sha256_leaves": {"data": np.zeros(0, np.uint8), "ends": np.zeros(3, np.uint64)},
}
DENORMALS: dict[str, dict[str, Any]] = {
    "vector_add": {"a": np.full(3, 1e-40, np.float32), "b": np.full(3, 1e-41, np.float32)},
    "saxpy": {"x": np.full(3, 1e-40, np.float32), "y": np.full(3, 1e-41, np.float32), "alpha": 2.0},
    "reduce_sum": {"a": np.full(3, 1e-40, np.float32)},
    "topk": {"a": np.array([0, 1e-45, -1e-45, 1e-40], np.float32), "k": 3},
}
ALL = [(name, given) for of in (GIVEN, SPECIALS, DENORMALS) for name, given in of.items()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), ALL + [row[:2] for row in EMPTY], ids=lambda of: str(of)[:20])
def test_on_a_device_the_kernel_makes_what_its_twin_makes(name: str, given: dict[str, Any]) -> None:
    device = chosen("auto", os.environ)
    if device.cupy is None:
        pytest.skip(f"did not run: {device.said}, nothing of {name} ran on one")
    arrays = {key: np.asarray(of) for key, of in given.items() if isinstance(of, np.ndarray)}
    numbers = {key: of for key, of in given.items() if key not in arrays}
    there = run(KERNELS[name], device, arrays, numbers).outs
    with np.errstate(all="ignore"):
        here = run(KERNELS[name], chosen("cpu", {}), arrays, numbers).outs
    for key, expected in here.items():
        if KERNELS[name].tolerance.steps == "0":
            assert np.array_equal(expected, there[key], equal_nan=expected.dtype.kind == "f")
        else:
            least = 1e-4 if np.nanmax(abs(expected), initial=0) > 1e-30 else 0
            assert np.allclose(expected, there[key], rtol=1e-5, atol=least, equal_nan=True)


@pytest.mark.slow
def test_the_benchmark_of_devices_measures_nothing_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKEP_NO_CUDA", "1")
    assert NO_DEVICE == main([])
    assert ("", "no CUDA device: cpu: disabled; nothing was measured\n") == capsys.readouterr()
    if (found := library()) is not None:
        assert 1 == compiled(*found, FMA).count(".entry fma_rate(")


def test_every_device_source_is_a_file_of_the_table() -> None:
    named = {Path(file).name for kernel in KERNELS.values() for file in kernel.files}
    assert {path.name for path in HERE.glob("*.cu")} <= named
    assert KERNELS.keys() == GIVEN.keys()
