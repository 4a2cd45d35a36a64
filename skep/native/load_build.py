"""Builds skep.native._load, the load generator. Its layouts and rules are told in load.c."""

from pathlib import Path

import cffi

DECLARATIONS = """
enum { LOAD_READ, LOAD_WRITE, LOAD_STAT, LOAD_GETATTR, LOAD_WALK, LOAD_CTL };

typedef struct {
    int op;
    int nconn, depth;
    const int *fds;              /* fds[nconn] */
    uint32_t count;              /* READ, WRITE: bytes asked for or carried by each request */
    const char *body;            /* WALK: nwname[2] nwname*(s).  CTL: the line before its number */
    uint32_t nbody;
    const char *tail;            /* CTL: the line after its number */
    uint32_t ntail;
    uint64_t serial;             /* CTL: the next line's number; left at the first unused one */
    uint64_t duration_ns, stall_ns;

    uint64_t ops, bytes, errors; /* ops: answered well, whole and in time */
    uint64_t elapsed_ns;
    uint64_t p50_ns, p99_ns;
    int stalled;                 /* nothing came, or nothing could be sent, for stall_ns */
    int error_errno;             /* of the first error; 0: it had none */
    char error[320];             /* the first error; empty: none */
} load_t;
"""

HEAD = """
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BUCKETS = 60 * 32 };
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS + "void load_run(load_t *l);")
ffi.set_source(
    "skep.native._load",
    HEAD + DECLARATIONS + (Path(__file__).parent / "load.c").read_text(),
    extra_compile_args=["-O2", "-std=gnu11"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
