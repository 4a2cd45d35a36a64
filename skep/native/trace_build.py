"""Builds skep.native._trace: the hashes of the trace's tree, and a ledger's rows. What each call does is told
in trace.c and ledger.c."""

from pathlib import Path

import cffi

HERE = Path(__file__).parent

DECLARATIONS = """
int trace_sha(int wanted);
void trace_leaves(const uint8_t *data, const uint64_t *ends, uint64_t n, uint8_t *out, int threads);
void trace_fold(const uint8_t *hashes, uint64_t n, int levels, uint8_t *out);
int trace_grow(uint64_t size, uint8_t *peaks, const uint8_t *leaves, uint64_t n, const uint64_t *sizes,
    uint64_t m, uint8_t *roots);
int ledger_begin(void);
void ledger_follow(const char *uri, const char *sql, int numbers, uint64_t last, uint64_t *size,
    uint64_t *committed, uint8_t *peaks, uint8_t *root);
"""

HEAD = """
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
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
    HEAD + "".join((HERE / name).read_text() for name in ("sha256.h", "trace.c", "ledger.c")),
    extra_compile_args=["-O2", "-std=gnu11", "-pthread", "-Wno-unused-function"],
    libraries=["dl"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
