"""The kernels for a graphics processor: as C everywhere, by NVIDIA's compiler and on a device where they are.

What could not run is skipped, and says what it was: ``pytest -rs tests/native/test_trace_cuda.py``."""

from __future__ import annotations

import importlib.util
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvrtc import compiled, library

from skep.native.trace import HASH
from skep.native.trace_cuda import HERE, SOURCE, Cuda, Cupy, chunks
from skep.native.trace_twin import Twin

TWIN = Twin()
SIZES = [0, 1, 54, 55, 56, 62, 63, 64, 65, 118, 119, 120, 127, 128, 490, 70_000]
CALLS = """
typedef unsigned char byte;
typedef unsigned long long wide;
void all_leaves(wide n, const byte *data, const wide *ends, wide base, byte *out);
void all_nodes(wide n, const byte *hashes, byte *out);
"""
LOOPS = """
void
all_leaves(wide n, const byte *data, const wide *ends, wide base, byte *out)
{
	for (wide i = 0; i < n; i++)
		leaf(data, ends, base, i, out);
}

void
all_nodes(wide n, const byte *hashes, byte *out)
{
	for (wide i = 0; i < n; i++)
		node(hashes, i, out);
}
"""


class AsC:
    """A Device that is this processor: the kernels' text, compiled as C."""

    def __init__(self, directory: Path) -> None:
        ffi = cffi.FFI()
        ffi.cdef(CALLS)
        text = "\n".join((HERE / name).read_text() for name in ("sha256.h", "trace.cu"))
        ffi.set_source("kernels_as_c", "#define DEVICE\n#define CONSTANT\n#define UNROLL\n" + text + LOOPS)
        spec = importlib.util.spec_from_file_location("kernels_as_c", ffi.compile(tmpdir=str(directory)))
        assert spec is not None
        assert spec.loader is not None
        self._made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._made)
        self._types = {"leaves": ("byte *", "wide *", "", "byte *"), "nodes": ("byte *", "byte *")}

    def put(self, data: memoryview) -> bytearray:
        assert len(data)
        return bytearray(data)

    def room(self, size: int) -> bytearray:
        return bytearray(size)

    def run(self, kernel: str, count: int, *args: Any) -> None:
        buffer = self._made.ffi.from_buffer
        given = [
            buffer(type, arg) if type else arg for type, arg in zip(self._types[kernel], args, strict=True)
        ]
        getattr(self._made.lib, f"all_{kernel}")(count, *given)

    def get(self, memory: bytearray) -> bytes:
        return bytes(memory)


@pytest.fixture(scope="module")
def as_c(tmp_path_factory: pytest.TempPathFactory) -> AsC:
    return AsC(tmp_path_factory.mktemp("cuda"))


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(SIZES), st.integers(0, 2_000)), max_size=9),
    st.integers(0, 1 << 32),
    st.integers(1, 5_000),
)
def test_as_c_the_kernels_hash_like_the_twin(as_c: AsC, sizes: list[int], seed: int, chunk_max: int) -> None:
    chance = Random(seed)
    bodies = [chance.randbytes(size) for size in sizes]
    cuda = Cuda(as_c, chunk_max)
    hashes = cuda.leaves(bodies)
    assert TWIN.leaves(bodies) == hashes
    for levels in range(4) if hashes else ():
        assert TWIN.fold(hashes * 8, levels) == cuda.fold(hashes * 8, levels)


@pytest.mark.slow
def test_nvidias_compiler_takes_the_kernels() -> None:
    found = library()
    if found is None:
        pytest.skip("did not run: NVRTC is not here (nvidia-cuda-nvrtc-cu12, of the extra test)")
    ffi, lib = found
    ptx = compiled(ffi, lib, SOURCE)
    assert [1, 1] == [ptx.count(f".entry {name}(") for name in ("leaves", "nodes")]


@pytest.mark.slow
def test_on_a_device_the_kernels_hash_like_the_twin() -> None:
    try:
        cuda = Cuda(Cupy())
    except ImportError:
        pytest.skip("did not run: cupy is not here (the extra cuda), nothing was hashed on a device")
    except RuntimeError as error:
        pytest.skip(f"did not run: no device, nothing was hashed on one ({error})")
    chance = Random(5)
    bodies = [chance.randbytes(size) for size in SIZES * 9 + list(range(400))]
    assert TWIN.leaves(bodies) == cuda.leaves(bodies)
    assert b"" == cuda.leaves([])
    hashes = chance.randbytes(512 * HASH)
    for levels in range(10):
        assert TWIN.fold(hashes, levels) == cuda.fold(hashes, levels)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 60))
def test_chunks_are_all_the_entries_in_their_order(sizes: list[int], chunk_max: int) -> None:
    ends = list(accumulate(sizes))
    cut = list(chunks(ends, chunk_max))
    assert list(range(len(sizes))) == [i for begin, end in cut for i in range(begin, end)]
    assert all(sum(sizes[begin:end]) <= chunk_max or end == begin + 1 for begin, end in cut)
