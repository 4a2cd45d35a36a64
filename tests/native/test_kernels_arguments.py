"""What a kernel is given, told by dtypes and shapes alone: in text, in the header of a file, and what it
takes of memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.native.kernels.arguments import (
    CONTEXT,
    DTYPES,
    PROCESS,
    ArgumentError,
    Told,
    fitted,
    named,
    needed,
    told,
)
from skep.native.kernels.catalogue import KERNELS
from skep.native.kernels.check import checked, told_of
from skep.native.kernels.device import chosen
from skep.native.kernels.formula import value
from skep.native.kernels.header import header
from skep.native.kernels.run import run

often = settings(max_examples=40, deadline=None)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@often
@given(st.sampled_from(list(DTYPES)), shapes)
def test_what_is_told_in_text_is_read_again(dtype: str, shape: tuple[int, ...]) -> None:
    array = Told(dtype, shape)
    assert array == told("x", str(array))
    assert array == told_of(np.empty(shape, dtype))
    assert np.empty(shape, dtype).nbytes == array.size


@pytest.mark.parametrize(
    "text", ["", "float33:1", "float32:", "float32:-1", "float32:1x", "float32:1,2", "float32:²", "bool:1",
             "float32:" + "x".join("111111111"), "float32:" + "1" * 19]
)  # fmt: skip
def test_what_is_no_array_is_not_told(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"x: .*expected DTYPE or DTYPE:SIZE"):
        told("x", text)


@often
@given(st.sampled_from([*DTYPES, ">f4", ">i2", "bool", "<U3"]), shapes, st.booleans())
def test_a_header_tells_what_numpy_finds(dtype: str, shape: tuple[int, ...], turned: bool) -> None:
    array = np.zeros(shape, dtype)
    path = Path("a.npy")
    np.save(path, array.copy("F" if turned else "C"))
    expected = told_of(array) if dtype in DTYPES else Told(array.dtype.str, shape)
    assert expected == header("a", path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_header_of_each_version_is_read(version: tuple[int, int]) -> None:
    with open("a.npy", "wb") as file:
        np.lib.format.write_array(file, np.zeros((2, 3), np.float32), version=version)
    assert Told("float32", (2, 3)) == header("a", Path("a.npy"))


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"\x93NUMPY", b"\x93NUMPY\1\0\xff\xff{", b"\x93NUMPY\1\0\2\0{}",
                b"\x93NUMPY\1\0\2\0[(", b"\x93NUMPY\t\0\2\0{}", b"\x93NUMPY\1\0\x0e\0{'shape':(-1,)}"]
)  # fmt: skip
def test_what_has_no_header_is_an_argument_that_is_wrong(content: bytes) -> None:
    Path("a.npy").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"a: a\.npy: expected an array in \.npy"):
        header("a", Path("a.npy"))


def of_text(text: str) -> Path:
    """A file with that header."""
    Path("a.npy").write_bytes(b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text.encode())
    return Path("a.npy")


@pytest.mark.parametrize(
    "text", ["{[]: 1}", "-" * 20_000 + "1", "(" * 5000, "{'descr': '<f4', 'shape': (0x" + "f" * 9999 + ",)}",
             "{'descr': '<f4', 'shape': (" + "9" * 19 + ",)}", "{'descr': '<f4', 'shape': " + "(1,)*9}",
             "{'descr': '<f4', 'shape': (1,1,1,1,1,1,1,1,1)}", "{'descr': '<f4', 'shape': (True,)}"]
)  # fmt: skip
def test_a_header_that_is_to_harm_who_reads_it_is_an_argument_that_is_wrong(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"a: a\.npy: expected an array in \.npy"):
        header("a", of_text(text))


@pytest.mark.parametrize("of", ["\\ud800", "a\\nb\\x1b[31m", "A" * 9999, "<f4\\0"])
def test_a_dtype_is_quoted_as_what_can_be_shown(of: str) -> None:
    dtype, shape = header("a", of_text("{'descr': '" + of + "', 'shape': (12,)}"))
    assert ((12,), True, True) == (shape, dtype.isprintable() and dtype.isascii(), len(dtype) <= 40)


def test_a_file_that_is_not_there_has_no_header() -> None:
    with pytest.raises(ArgumentError, match=r"a: b\.npy: expected a file: No such file"):
        header("a", Path("b.npy"))


def test_names_and_numbers_are_checked_before_there_is_an_array() -> None:
    saxpy = KERNELS["saxpy"]
    assert {"alpha": 2.0} == named(saxpy, ["x", "y"], {"alpha": 2})
    with pytest.raises(ArgumentError, match="saxpy: y: given nothing, expected an array"):
        named(saxpy, ["x"], {"alpha": 2})
    with pytest.raises(ArgumentError, match=r"saxpy: alpha: given 1e\+39, expected float from"):
        named(saxpy, ["x", "y"], {"alpha": 1e39})


def floats(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


N = 1 << 17
SPARE = 100_000  # bytes: what NumPy takes whatever the size
GIVEN: dict[str, list[dict[str, Any]]] = {
    "vector_add": [{"a": floats(N), "b": floats(N)}],
    "saxpy": [{"x": floats(N), "y": floats(N), "alpha": 1.5}],
    "matmul": [{"a": floats(200, 300).astype(of), "b": floats(300, 100).astype(of)} for of in ("f2", "f4")],
    "reduce_sum": [{"a": floats(N)}],
    "histogram": [{"a": floats(N), "bins": bins, "low": -9.0, "high": 9.0} for bins in (1, 100, 1 << 16)],
    "sha256_leaves": [
        {"data": np.zeros(N, np.uint8), "ends": np.arange(step, N + 1, step, dtype=np.uint64)}
        for step in (1, 64, N)
    ],
    "topk": [{"a": of, "k": k} for of in (floats(N), np.zeros(N, np.float32)) for k in (0, 9, N)],
    "conv2d": [{"images": floats(2, 3, 40, 50), "weights": floats(4, 3, 5, 2)}],
    "softmax": [{"a": floats(100, 300)}],
}


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_twin_holds_no_more_than_its_row_says(name: str) -> None:
    for args in GIVEN[name]:
        arrays = {key: of for key, of in args.items() if isinstance(of, np.ndarray)}
        numbers = {key: of for key, of in args.items() if key not in arrays}
        run(KERNELS[name], chosen("cpu", {}), arrays, numbers)
        tracemalloc.start()
        run(KERNELS[name], chosen("cpu", {}), arrays, numbers)
        held = tracemalloc.get_traced_memory()[1] + sum(of.nbytes for of in arrays.values())
        tracemalloc.stop()
        sizes = checked(KERNELS[name], arrays, numbers).sizes
        room = value(KERNELS[name].room.cpu, sizes)
        assert held <= room + SPARE, (held, room)


def test_what_a_run_needs_is_known_from_sizes_alone() -> None:
    arrays = {"a": Told("float16", (1000, 10)), "b": Told("float16", (10, 500))}
    of = 1000 * 10 + 10 * 500 + 1000 * 500
    assert 2 * of + CONTEXT == needed(KERNELS["matmul"], arrays, {}, "cuda:1")
    assert 6 * of + PROCESS == needed(KERNELS["matmul"], arrays, {}, "cpu:0")
    assert {"out": Told("float16", (1000, 500))} == fitted(KERNELS["matmul"], arrays, {}).outs
    with pytest.raises(ArgumentError, match=r"b: given float16\[11, 500\], expected"):
        needed(KERNELS["matmul"], {**arrays, "b": Told("float16", (11, 500))}, {}, "cpu")


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
