"""NVIDIA's run-time compiler, which needs no device. Source: docs.nvidia.com/cuda/nvrtc."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cffi

DECLARATIONS = """
int nvrtcVersion(int *major, int *minor);
int nvrtcCreateProgram(void **program, const char *text, const char *name, int n, const char *const *headers,
    const char *const *names);
int nvrtcCompileProgram(void *program, int n, const char *const *options);
int nvrtcGetProgramLogSize(void *program, size_t *size);
int nvrtcGetProgramLog(void *program, char *log);
int nvrtcGetPTXSize(void *program, size_t *size);
int nvrtcGetPTX(void *program, char *ptx);
int nvrtcDestroyProgram(void **program);
"""


def library() -> Any:
    """(ffi, the library), from the package of PyPI or the system's; None: there is none."""
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found is not None else None
    paths = [path for place in places or () for path in Path(place).glob("cuda_nvrtc/lib/libnvrtc.so.1[0-9]")]
    for name in [*map(str, paths), "libnvrtc.so.12", "libnvrtc.so.13"]:
        try:
            return ffi, ffi.dlopen(name)
        except OSError:
            continue
    return None


def compiled(ffi: Any, lib: Any, text: str, standard: str = "--std=c++14") -> str:
    """The PTX of a CUDA source; fails with the compiler's log."""
    program, size = ffi.new("void **"), ffi.new("size_t *")
    assert not lib.nvrtcCreateProgram(program, text.encode(), b"trace.cu", 0, ffi.NULL, ffi.NULL)
    try:
        option = ffi.new("char[]", standard.encode())
        failed = lib.nvrtcCompileProgram(program[0], 1, ffi.new("char *[]", [option]))
        lib.nvrtcGetProgramLogSize(program[0], size)
        log = ffi.new("char[]", size[0])
        lib.nvrtcGetProgramLog(program[0], log)
        assert not failed, ffi.string(log).decode()
        lib.nvrtcGetPTXSize(program[0], size)
        ptx = ffi.new("char[]", size[0])
        assert not lib.nvrtcGetPTX(program[0], ptx)
        return bytes(ffi.string(ptx)).decode()
    finally:
        lib.nvrtcDestroyProgram(program)
