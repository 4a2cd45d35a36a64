"""Builds skep.native._trace, the hashes of the trace's tree. What each call does is told in trace.c."""

from pathlib import Path

import cffi

HERE = Path(__file__).parent

DECLARATIONS = """
int trace_sha(int wanted);
void trace_leaves(const uint8_t *data, const uint64_t *ends, uint64_t n, uint8_t *out, int threads);
void trace_fold(const uint8_t *hashes, uint64_t n, int levels, uint8_t *out);
int trace_grow(uint64_t size, uint8_t *peaks, const uint8_t *leaves, uint64_t n, const uint64_t *sizes,
    uint64_t m, uint8_t *roots);
"""

HEAD = """
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif
#define DEVICE
#define CONSTANT
#define UNROLL _Pragma("GCC unroll 64")
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "skep.native._trace",
    HEAD + (HERE / "sha256.h").read_text() + (HERE / "trace.c").read_text(),
    extra_compile_args=["-O2", "-std=gnu11", "-pthread", "-Wno-unused-function"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
