"""Builds skep.native._fuse: libfuse3's low-level API as fs/fuse.py uses it; see fuse.c.

Needs libfuse3-dev (Debian's name) and a C compiler.
"""

import shlex
import subprocess
from pathlib import Path

import cffi

DECLARATIONS = """
enum {
    ASK_LOOKUP, ASK_FORGET, ASK_GETATTR, ASK_SETATTR, ASK_READLINK, ASK_MKNOD, ASK_MKDIR, ASK_UNLINK,
    ASK_RMDIR, ASK_SYMLINK, ASK_RENAME, ASK_LINK, ASK_OPEN, ASK_READ, ASK_WRITE, ASK_FLUSH, ASK_RELEASE,
    ASK_FSYNC, ASK_OPENDIR, ASK_READDIR, ASK_RELEASEDIR, ASK_STATFS, ASK_SETXATTR, ASK_GETXATTR,
    ASK_LISTXATTR, ASK_REMOVEXATTR, ASK_CREATE, ASK_GETLK, ASK_SETLK
};

/* What the kernel asks. Pointers are good only during the call. */
typedef struct {
    int op;
    struct fuse_req *req;       /* NULL for ASK_FORGET */
    uint64_t node, other;       /* other: the new parent of RENAME and LINK */
    uint64_t fh, owner;         /* fh: 0 where there is no open file */
    const char *name, *other_name;
    const char *data;           /* WRITE, SETXATTR: data[size] */
    uint64_t size;              /* also READ, READDIR, GETXATTR, LISTXATTR: room; FORGET: how many */
    uint64_t offset;
    uint32_t flags, mode, uid, gid, rdev, valid, pid;
    int64_t atime_ns, mtime_ns;
    uint32_t lock_type;         /* F_RDLCK, F_WRLCK, F_UNLCK */
    uint64_t start, length;     /* of a lock; length 0: to the end */
} ask_t;

/* Who is asked. Lives as long as the session; the buffer is libfuse's, for one request after another. */
typedef struct {
    void *owner;
    uint32_t unit;              /* the most bytes of one READ or WRITE, whole pages */
    void *buffer;
} host_t;

/* What is told about a file. */
typedef struct {
    uint64_t ino, size, blocks, nlink, rdev;
    uint32_t mode, uid, gid, blksize;
    int64_t atime_ns, mtime_ns, ctime_ns;
} attr_t;
"""

FUNCTIONS = """
struct fuse_session *fuse_start(int argc, char **argv, host_t *host);
int fuse_next(struct fuse_session *se, host_t *host);
void fuse_end(struct fuse_session *se, host_t *host);
void fuse_answer_entry(struct fuse_req *req, uint64_t node, const attr_t *a, double timeout);
void fuse_answer_attr(struct fuse_req *req, const attr_t *a, double timeout);
void fuse_answer_open(struct fuse_req *req, uint64_t fh, int direct);
void fuse_answer_create(struct fuse_req *req, uint64_t node, const attr_t *a, double timeout, uint64_t fh,
                        int direct);
size_t fuse_put_dirent(char *buf, size_t room, const char *name, uint64_t ino, uint32_t mode, uint64_t next);
void fuse_answer_statfs(struct fuse_req *req, uint32_t bsize, uint64_t blocks, uint64_t bfree,
                        uint64_t bavail, uint64_t files, uint64_t ffree, uint64_t fsid, uint32_t namelen);
void fuse_answer_lock(struct fuse_req *req, uint32_t type, uint64_t start, uint64_t length, uint32_t pid);
"""

LIBFUSE = """
int fuse_session_mount(struct fuse_session *se, const char *mountpoint);
void fuse_session_unmount(struct fuse_session *se);
int fuse_session_fd(struct fuse_session *se);
int fuse_reply_err(struct fuse_req *req, int err);
int fuse_reply_readlink(struct fuse_req *req, const char *link);
int fuse_reply_write(struct fuse_req *req, size_t count);
int fuse_reply_buf(struct fuse_req *req, const char *buf, size_t size);
int fuse_reply_xattr(struct fuse_req *req, size_t count);
"""

CALLBACKS = """
extern "Python" void fuse_asked(void *owner, ask_t *ask);
extern "Python" void fuse_interrupted(void *owner, struct fuse_req *req);
"""

HEAD = """
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
"""


def options(kind: str, fallback: str) -> list[str]:
    """What pkg-config tells about fuse3; Debian's places when it is not there."""
    try:
        told = subprocess.run(
            ["pkg-config", kind, "fuse3"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        told = fallback
    return shlex.split(told)


ffi = cffi.FFI()
ffi.cdef(DECLARATIONS + "struct fuse_session;\nstruct fuse_req;\n" + FUNCTIONS + LIBFUSE + CALLBACKS)
ffi.set_source(
    "skep.native._fuse",
    HEAD
    + DECLARATIONS
    + "static void fuse_asked(void *, ask_t *);\nstatic void fuse_interrupted(void *, struct fuse_req *);\n"
    + (Path(__file__).parent / "fuse.c").read_text(),
    extra_compile_args=["-O2", "-std=gnu11", *options("--cflags", "-I/usr/include/fuse3")],
    extra_link_args=options("--libs", "-lfuse3"),
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
