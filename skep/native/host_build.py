"""Builds skep.native._host, the system calls of an exported directory. Layouts are told in host.c."""

from pathlib import Path

import cffi

DECLARATIONS = """
int host_stat(int fd, int want_path, int64_t *out);
int host_open(int dir, const char *name, int64_t *out);
int host_list(int dir, char *buf, unsigned size, int *more);
int host_rename(int dir, const char *name, int newdir, const char *newname);
int host_utime(int fd, int64_t asec, int64_t ansec, int64_t msec, int64_t mnsec);
"""

HEAD = """
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "skep.native._host",
    HEAD + (Path(__file__).parent / "host.c").read_text(),
    extra_compile_args=["-O2", "-std=gnu11"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
