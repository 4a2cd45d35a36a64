"""Builds skep.native._hot, the session's inner loop. What each call does is told in hot.c."""

from pathlib import Path
from runpy import run_path

import cffi

HERE = Path(__file__).parent
HOST = run_path(str(HERE / "host_build.py"))

TYPES = """
struct hot_memory {             /* a Memory file's bytes, which Python and the loop share */
    uint8_t *data;
    uint64_t length, size;      /* used, set aside */
    uint64_t version;
    int64_t mtime_ns;
};
struct hot_ghost {
    uint32_t fid;
    int32_t place, parent, node;
    uint64_t path;
    char name[256];
};
"""
CALLS = """
extern uint64_t hot_epoch;
struct hot *hot_new(uint32_t fids_max);
void hot_free(struct hot *);
void hot_reset(struct hot *, uint32_t msize, int dialect);
void hot_budget(struct hot *, uint64_t calls, uint64_t walks);
void hot_left(struct hot *, uint64_t *calls, uint64_t *walks);
void hot_fids_max(struct hot *, uint32_t fids_max);
uint64_t hot_run(struct hot *, const uint8_t *in, uint64_t n, uint8_t *out, uint64_t room, uint64_t *used);
int32_t hot_place(struct hot *);
void hot_name(struct hot *, int32_t parent, int32_t child, const uint8_t *name, uint32_t n,
    const uint8_t *qid);
void hot_reply(struct hot *, int32_t place, const uint8_t *reply, uint32_t n);
int hot_fid(struct hot *, uint32_t fid, int32_t place, int node, uint64_t path);
void hot_open_bytes(struct hot *, uint32_t fid, const uint8_t *data, uint64_t n);
void hot_open_memory(struct hot *, uint32_t fid, struct hot_memory *, int how);
void hot_open_host(struct hot *, uint32_t fid, int fd, int how);
void hot_drop(struct hot *, uint32_t fid);
void hot_hold_fid(struct hot *, uint32_t fid, int step);
void hot_unheld(struct hot *, uint32_t fid);
int hot_hold_tag(struct hot *, uint16_t tag, int on);
uint32_t hot_ghosts(struct hot *);
int hot_spill(struct hot *, uint32_t *at, struct hot_ghost *out);
"""

ffi = cffi.FFI()
ffi.cdef(TYPES + "struct hot;" + CALLS + "void *realloc(void *, size_t); void free(void *);")
ffi.set_source(
    "skep.native._hot",
    HOST["HEAD"]
    + "#include <stdlib.h>\n#include <time.h>\n"
    + TYPES
    + (HERE / "host.c").read_text()
    + (HERE / "hot.c").read_text(),
    extra_compile_args=["-O2", "-std=gnu11", "-Wno-unused-function"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
