"""CUDA C source that somebody brings: what is told of it, what of its text is refused, how it is compiled.

What needs a device is skipped, and says what it was: ``pytest -rs tests/native/test_kernels_source.py``."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvrtc import compiled, library

from skep.native.kernels.arguments import CONTEXT, DTYPES, ArgumentError, Told
from skep.native.kernels.brought import STANDARD, compiling, fit
from skep.native.kernels.device import chosen
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request, RunError
from skep.native.kernels.source import Brought, In, Result, Scalar, brought, check_text, text_of

often = settings(max_examples=40, deadline=None)
SCALE = r"""
#include <cuda_fp16.h>

extern "C" __global__ void
scale(const float *x, float *y, unsigned long long n, float by)
{
	unsigned long long i;

	for (i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
		y[i] = by * x[i];
}
"""
ARGS = "in:x,out:y:float32:1000,uint64:1000,float32:2.5"


def scale(directory: Path, text: str = SCALE, args: str = ARGS, **more: str) -> Brought:
    path = directory / "scale.cu"
    path.write_text(text)
    told = {"function": "scale", "grid": "4", "block": "256", **more}
    return brought(path=str(path), sha256=sha256(text.encode()).hexdigest(), args=args, **told)


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
whole = st.sampled_from([of for of in DTYPES if not of.startswith("float")])
arg = st.one_of(
    names.map(In),
    st.builds(Result, names, st.builds(Told, st.sampled_from(list(DTYPES)), shapes)),
    st.builds(Scalar, whole, st.integers(0, 127)),
    st.builds(Scalar, st.just("float64"), st.floats()),
)


@often
@given(
    st.lists(arg, max_size=9, unique_by=lambda of: getattr(of, "name", id(of))),
    st.tuples(st.integers(1, 1 << 30), st.integers(1, 65535)),
    st.integers(0, 9999),
)  # fmt: skip
def test_what_is_told_of_a_source_is_read_again(args: list[Any], grid: tuple[int, int], shared: int) -> None:
    told = Brought("f.cu", "0" * 64, "f", grid, (1024,), tuple(args), shared)
    assert repr(told) == repr(brought(**told.fields()))


def test_a_source_says_what_it_takes_gives_and_needs(tmp_path: Path) -> None:
    of = scale(tmp_path)
    assert (["x"], {"y": Told("float32", (1000,))}) == (of.inputs, of.results)
    assert ((4,), (256,), Scalar("uint64", 1000)) == (of.grid, of.block, of.args[2])
    assert 8000 + CONTEXT == of.needed({"x": Told("float32", (1000,))})
    assert SCALE == text_of(of)


WRONG = [
    ({"function": "a b"}, "function: given a b, expected a name"),
    ({"grid": "0"}, "grid: given 0, expected 1 or more, and at most 2147483647x65535x65535"),
    ({"grid": "1x1x1x1"}, "grid: given 1x1x1x1"),
    ({"grid": "1x70000"}, "grid: given 1x70000"),
    ({"grid": ""}, "grid: given , expected"),
    ({"block": "1024x2"}, "block: given 1024x2, expected 1024 threads at most"),
    ({"block": "1x1x65"}, "block: given 1x1x65"),
    ({"shared": "232449"}, "shared: given 232449, expected 0 or more, and at most 232448"),
    ({"args": "x"}, "args: given x, expected in:NAME, out:NAME:DTYPE"),
    ({"args": "in:x y"}, "args: given in:x y"),
    ({"args": "in:x,out:x:float32:1"}, "args: given x twice"),
    ({"args": "out:y:float33:1"}, "y: 'float33:1': expected DTYPE"),
    ({"args": "out:y:float64:1000000x1000"}, "expected 4294967296 bytes at most"),
    ({"args": "uint8:256"}, "args: given uint8:256, expected 0 to 255"),
    ({"args": "int8:-129"}, "args: given int8:-129, expected -128 to 127"),
    ({"args": "uint64:1.5"}, "args: given uint64:1.5"),
    ({"args": "float32:much"}, "args: given float32:much"),
    ({"args": ",".join(["uint8:1"] * 65)}, "args: given 65 of them, expected 64 at most"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "text"), WRONG, ids=[row[1] for row in WRONG])
def test_what_is_told_wrong_of_a_source_is_named(more: dict[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        scale(tmp_path, **more)
    assert text in str(error.value)


# A text that made its compiler read a file would show it to whoever brought it, in an error's text.
@pytest.mark.parametrize(
    "text",
    [
        '#include "/etc/passwd"', "#include </etc/passwd>", "#include <../x.h>", "# include FILE",
        "%:include </x>", '??=include "x"', "#inc\\\nlude </x>", "#inc??/\nlude </x>",
        "#inc\\  \r\nlude </x>", '# /* a\n */ include "/x"', '#/**/include "/x"', '\f#include "/x"',
        '#if __has_include("/x")', '#embed "/x"', "#include_next <x>", "#include <a\rb>", "#import <x>",
        'R"( /* )"\n#include "/x"\n// */', '#include <x> /* */ "y"',
    ],
)  # fmt: skip
def test_a_text_that_would_read_files_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"source: given .*, expected #include <NAME>"):
        check_text(f"int a;\n{text}\n")


def test_cudas_own_headers_may_be_read() -> None:
    check_text("#include <cuda_fp16.h>\r\n  #  include <cooperative_groups/reduce.h>")
    check_text("#include <cuda/std/limits>")


def test_a_text_is_the_one_that_was_told(tmp_path: Path) -> None:
    of = scale(tmp_path)
    Path(of.path).write_text(SCALE + "\n")
    with pytest.raises(ArgumentError, match=f"source: given [0-9a-f]+, expected {of.sha256}"):
        text_of(of)
    with pytest.raises(ArgumentError, match="expected a file: No such file"):
        text_of(of._replace(path=str(tmp_path / "none")))
    Path(of.path).write_bytes(b"\xff")
    with pytest.raises(ArgumentError, match=r"given b'\\xff', expected text in UTF-8"):
        text_of(of._replace(sha256=sha256(b"\xff").hexdigest()))


def test_arrays_are_those_that_the_args_name(tmp_path: Path) -> None:
    of, x = scale(tmp_path), np.zeros(3, np.float32)
    fit(of, {"x": x}, {})
    for arrays, numbers, text in (
        ({}, {}, "scale: x: given nothing"),
        ({"x": x, "z": x}, {}, "scale: z: given an array that args do not name"),
        ({"x": x.astype(">f4")}, {}, "x: given >f4:3, expected"),
        ({"x": x.astype(bool)}, {}, "x: given bool:3, expected"),
        ({"x": x}, {"n": 1}, "its numbers are among args, not n"),
    ):
        with pytest.raises(ArgumentError, match=text):
            fit(of, arrays, numbers)


@pytest.mark.slow
def test_nvidias_compiler_takes_a_source_that_is_brought() -> None:
    found = library()
    if found is None:
        pytest.skip("did not run: NVRTC is not here (nvidia-cuda-nvrtc-cu12, of the extra test)")
    # NVRTC's own package has no headers; cupy's has.
    ptx = compiled(*found, SCALE.replace("#include <cuda_fp16.h>", ""), STANDARD)
    assert 1 == ptx.count(".entry scale(")
    with pytest.raises(AssertionError, match='identifier "z" is undefined'):
        compiled(*found, "void f() { z = 1; }", STANDARD)


# Two to the 24th templates.
BOMB = """
template <int N, int M> struct A { static const int v = A<N - 1, 2 * M>::v + A<N - 1, 2 * M + 1>::v; };
template <int M> struct A<0, M> { static const int v = M; };
extern "C" __global__ void f(int *a) { *a = A<24, 0>::v; }
"""


@pytest.mark.slow
def test_a_source_that_takes_all_memory_to_compile_is_told_so() -> None:
    found = library()
    if found is None:
        pytest.skip("did not run: NVRTC is not here (nvidia-cuda-nvrtc-cu12, of the extra test)")
    with compiling(100 << 20), pytest.raises(AssertionError, match="catastrophic error: out of memory"):
        compiled(*found, BOMB, STANDARD)


@pytest.mark.slow
def test_without_a_device_a_source_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEP_NO_CUDA", "1")
    np.save(tmp_path / "x.npy", np.ones(1000, np.float32))
    request = Request("scale", {"x": str(tmp_path / "x.npy")}, {}, str(tmp_path), source=scale(tmp_path))
    with Process() as process:
        for device, why in (("auto", "disabled"), ("cuda:0", "disabled"), ("cpu", "no_device")):
            with pytest.raises(RunError, match="scale: no CUDA device") as error:
                process.run(request._replace(device=device))
            assert (why, None) == (error.value.why, process.pid)
        with pytest.raises(RunError, match="x: given nothing") as error:
            process.run(request._replace(inputs={}))
        assert "argument" == error.value.why


@pytest.fixture
def on_device() -> None:
    device = chosen("auto", os.environ)
    if device.cupy is None:
        pytest.skip(f"did not run: {device.said}, no source ran on one")


@pytest.mark.slow
@pytest.mark.usefixtures("on_device")
def test_on_a_device_a_source_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1000, dtype=np.float32))
    request = Request("scale", {"x": str(tmp_path / "x.npy")}, {}, str(tmp_path), source=scale(tmp_path))
    with Process() as process:
        done = process.run(request)
        assert "cuda:0" == done.device
        assert np.array_equal(2.5 * np.arange(1000, dtype=np.float32), np.load(done.out["y"].path))
        raw = process.run(request._replace(form="raw"))
        assert Path(raw.out["y"].path).read_bytes() == np.load(done.out["y"].path).tobytes()


FAULTS = [
    ("y[1ULL << 50] = 1;", "kernel_failed"),
    ("for (;;) if (y[0] == 1) break;", "time"),
    ("z = 1;", "argument"),
    ("volatile char a[1 << 19]; for (int i = 0; i < 1 << 19; i++) a[i] = i;", "oom"),
]


@pytest.mark.slow
@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(("body", "why"), FAULTS, ids=[row[1] for row in FAULTS])
def test_on_a_device_a_source_that_faults_says_how(body: str, why: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(1000, np.float32))
    of = scale(tmp_path, SCALE.replace("unsigned long long i;", f"unsigned long long i; {body}"))
    request = Request("scale", {"x": str(tmp_path / "x.npy")}, {}, str(tmp_path), seconds=20, source=of)
    with Process() as process, pytest.raises(RunError) as error:
        process.run(request)
    assert why == error.value.why
    assert not list(tmp_path.glob("y*"))
