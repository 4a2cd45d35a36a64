"""The messages of 9P2000, 9P2000.u and 9P2000.L, each declared once, and the protocol's constants.

The bytes are made from these declarations by wire.py; fields stand in the order of the wire.

Sources: Plan 9 manual, intro(5) and its pages; the 9P2000.u draft; diod's protocol.md for 9P2000.L.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, NamedTuple

import msgspec

NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF
NONUNAME: Final = 0xFFFFFFFF
NAME_MAX: Final = 255  # bytes in one path element, as on Linux
WALK_MAX: Final = 16  # names in one Twalk; the protocol's own limit
READ_OVERHEAD: Final = 11  # size[4] Rread tag[2] count[4]
IOHDRSZ: Final = 24  # what clients subtract from msize


class Dialect(enum.Enum):
    """The three dialects, by the version string that names each."""

    PLAIN = "9P2000"
    U = "9P2000.u"
    L = "9P2000.L"

    # Looked up for each message; Enum's own is a function in Python.
    __hash__ = object.__hash__


class QT(enum.IntFlag):
    """Qid types: the top byte of a mode."""

    DIR = 0x80
    APPEND = 0x40
    EXCL = 0x20
    AUTH = 0x08
    TMP = 0x04
    SYMLINK = 0x02
    FILE = 0x00


class DM(enum.IntFlag):
    """Mode bits of 9P2000 above the nine permissions; from SYMLINK on they are 9P2000.u's."""

    DIR = 0x80000000
    APPEND = 0x40000000
    EXCL = 0x20000000
    AUTH = 0x08000000
    TMP = 0x04000000
    SYMLINK = 0x02000000
    LINK = 0x01000000
    DEVICE = 0x00800000
    NAMEDPIPE = 0x00200000
    SOCKET = 0x00100000
    SETUID = 0x00080000
    SETGID = 0x00040000


OREAD: Final = 0
OWRITE: Final = 1
ORDWR: Final = 2
OEXEC: Final = 3
OTRUNC: Final = 0x10
ORCLOSE: Final = 0x40


class LO(enum.IntFlag):
    """Tlopen and Tlcreate flags: Linux's values on every host."""

    WRONLY = 0o1
    RDWR = 0o2
    CREAT = 0o100
    EXCL = 0o200
    NOCTTY = 0o400
    TRUNC = 0o1000
    APPEND = 0o2000
    NONBLOCK = 0o4000
    DSYNC = 0o10000
    FASYNC = 0o20000
    DIRECT = 0o40000
    LARGEFILE = 0o100000
    DIRECTORY = 0o200000
    NOFOLLOW = 0o400000
    NOATIME = 0o1000000
    CLOEXEC = 0o2000000
    SYNC = 0o4000000


GETATTR_BASIC: Final = 0x7FF
GETATTR_ALL: Final = 0x3FFF
AT_REMOVEDIR: Final = 0x200


class SA(enum.IntFlag):
    """Tsetattr's valid bits."""

    MODE = 0x1
    UID = 0x2
    GID = 0x4
    SIZE = 0x8
    ATIME = 0x10
    MTIME = 0x20
    CTIME = 0x40
    ATIME_SET = 0x80
    MTIME_SET = 0x100


class LockType(enum.IntEnum):
    """Tlock and Tgetlock types."""

    RDLCK = 0
    WRLCK = 1
    UNLCK = 2


class LockStatus(enum.IntEnum):
    """Rlock's answer."""

    SUCCESS = 0
    BLOCKED = 1
    ERROR = 2
    GRACE = 3


class Qid(NamedTuple):
    """The server's name for a file: type[1] vers[4] path[8]."""

    type: int
    vers: int
    path: int


class Only(NamedTuple):
    """Marks a field that stands on the wire in these dialects alone."""

    dialects: tuple[Dialect, ...]


U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Data = Annotated[bytes, "data"]  # count[4] data[count]; unpacked as a view into the frame

EXTENDED: Final = Only((Dialect.U, Dialect.L))
UNIX: Final = Only((Dialect.U,))


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message without its size, type and tag."""


class Stat(msgspec.Struct, frozen=True):
    """A directory entry of 9P2000: size[2] and these; times in seconds since 1970, length in bytes."""

    type: U16
    dev: U32
    qid: Qid
    mode: U32
    atime: U32
    mtime: U32
    length: U64
    name: str
    uid: str
    gid: str
    muid: str
    extension: Annotated[str, UNIX] = ""
    n_uid: Annotated[U32, UNIX] = NONUNAME
    n_gid: Annotated[U32, UNIX] = NONUNAME
    n_muid: Annotated[U32, UNIX] = NONUNAME


DONT_TOUCH: Final = Stat(
    0xFFFF, 0xFFFFFFFF, Qid(0xFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF), 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF,
    0xFFFFFFFFFFFFFFFF, "", "", "", "",
)  # fmt: skip
"""The Twstat that changes nothing: every field says "leave it"."""


class Tversion(Message, frozen=True):
    msize: U32
    version: str


class Rversion(Message, frozen=True):
    msize: U32
    version: str


class Tauth(Message, frozen=True):
    afid: U32
    uname: str
    aname: str
    n_uname: Annotated[U32, EXTENDED] = NONUNAME


class Rauth(Message, frozen=True):
    aqid: Qid


class Tattach(Message, frozen=True):
    fid: U32
    afid: U32
    uname: str
    aname: str
    n_uname: Annotated[U32, EXTENDED] = NONUNAME


class Rattach(Message, frozen=True):
    qid: Qid


class Rerror(Message, frozen=True):
    ename: str
    errno: Annotated[U32, UNIX] = 0


class Rlerror(Message, frozen=True):
    ecode: U32


class Tflush(Message, frozen=True):
    oldtag: U16


class Rflush(Message, frozen=True):
    pass


class Twalk(Message, frozen=True):
    fid: U32
    newfid: U32
    wname: tuple[str, ...]


class Rwalk(Message, frozen=True):
    wqid: tuple[Qid, ...]


class Topen(Message, frozen=True):
    fid: U32
    mode: U8


class Ropen(Message, frozen=True):
    qid: Qid
    iounit: U32


class Tcreate(Message, frozen=True):
    fid: U32
    name: str
    perm: U32
    mode: U8
    extension: Annotated[str, UNIX] = ""


class Rcreate(Message, frozen=True):
    qid: Qid
    iounit: U32


class Tread(Message, frozen=True):
    fid: U32
    offset: U64
    count: U32


class Rread(Message, frozen=True):
    data: Data


class Twrite(Message, frozen=True):
    fid: U32
    offset: U64
    data: Data


class Rwrite(Message, frozen=True):
    count: U32


class Tclunk(Message, frozen=True):
    fid: U32


class Rclunk(Message, frozen=True):
    pass


class Tremove(Message, frozen=True):
    fid: U32


class Rremove(Message, frozen=True):
    pass


class Tstat(Message, frozen=True):
    fid: U32


class Rstat(Message, frozen=True):
    stat: Stat


class Twstat(Message, frozen=True):
    fid: U32
    stat: Stat


class Rwstat(Message, frozen=True):
    pass


class Tstatfs(Message, frozen=True):
    fid: U32


class Rstatfs(Message, frozen=True):
    """Sizes in blocks of ``bsize`` bytes."""

    type: U32
    bsize: U32
    blocks: U64
    bfree: U64
    bavail: U64
    files: U64
    ffree: U64
    fsid: U64
    namelen: U32


class Tlopen(Message, frozen=True):
    fid: U32
    flags: U32


class Rlopen(Message, frozen=True):
    qid: Qid
    iounit: U32


class Tlcreate(Message, frozen=True):
    fid: U32
    name: str
    flags: U32
    mode: U32
    gid: U32


class Rlcreate(Message, frozen=True):
    qid: Qid
    iounit: U32


class Tsymlink(Message, frozen=True):
    dfid: U32
    name: str
    target: str
    gid: U32


class Rsymlink(Message, frozen=True):
    qid: Qid


class Tmknod(Message, frozen=True):
    dfid: U32
    name: str
    mode: U32
    major: U32
    minor: U32
    gid: U32


class Rmknod(Message, frozen=True):
    qid: Qid


class Trename(Message, frozen=True):
    fid: U32
    dfid: U32
    name: str


class Rrename(Message, frozen=True):
    pass


class Treadlink(Message, frozen=True):
    fid: U32


class Rreadlink(Message, frozen=True):
    target: str


class Tgetattr(Message, frozen=True):
    fid: U32
    request_mask: U64


class Rgetattr(Message, frozen=True):
    """160 bytes on the wire; times in seconds and nanoseconds, blocks of 512 bytes."""

    valid: U64
    qid: Qid
    mode: U32
    uid: U32
    gid: U32
    nlink: U64
    rdev: U64
    size: U64
    blksize: U64
    blocks: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64
    ctime_sec: U64
    ctime_nsec: U64
    btime_sec: U64
    btime_nsec: U64
    gen: U64
    data_version: U64


class Tsetattr(Message, frozen=True):
    fid: U32
    valid: U32
    mode: U32
    uid: U32
    gid: U32
    size: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64


class Rsetattr(Message, frozen=True):
    pass


class Txattrwalk(Message, frozen=True):
    fid: U32
    newfid: U32
    name: str


class Rxattrwalk(Message, frozen=True):
    size: U64


class Txattrcreate(Message, frozen=True):
    fid: U32
    name: str
    attr_size: U64
    flags: U32


class Rxattrcreate(Message, frozen=True):
    pass


class Treaddir(Message, frozen=True):
    fid: U32
    offset: U64
    count: U32


class Rreaddir(Message, frozen=True):
    data: Data


class Tfsync(Message, frozen=True):
    fid: U32
    datasync: U32


class Rfsync(Message, frozen=True):
    pass


class Tlock(Message, frozen=True):
    fid: U32
    type: U8
    flags: U32
    start: U64
    length: U64
    proc_id: U32
    client_id: str


class Rlock(Message, frozen=True):
    status: U8


class Tgetlock(Message, frozen=True):
    fid: U32
    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: str


class Rgetlock(Message, frozen=True):
    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: str


class Tlink(Message, frozen=True):
    dfid: U32
    fid: U32
    name: str


class Rlink(Message, frozen=True):
    pass


class Tmkdir(Message, frozen=True):
    dfid: U32
    name: str
    mode: U32
    gid: U32


class Rmkdir(Message, frozen=True):
    qid: Qid


class Trenameat(Message, frozen=True):
    olddirfid: U32
    oldname: str
    newdirfid: U32
    newname: str


class Rrenameat(Message, frozen=True):
    pass


class Tunlinkat(Message, frozen=True):
    dirfid: U32
    name: str
    flags: U32


class Runlinkat(Message, frozen=True):
    pass


_COMMON: Final[dict[int, type[Message]]] = {
    100: Tversion, 101: Rversion, 102: Tauth, 103: Rauth, 104: Tattach, 105: Rattach,
    108: Tflush, 109: Rflush, 110: Twalk, 111: Rwalk, 116: Tread, 117: Rread, 118: Twrite, 119: Rwrite,
    120: Tclunk, 121: Rclunk, 122: Tremove, 123: Rremove,
}  # fmt: skip
_CLASSIC: Final[dict[int, type[Message]]] = {
    107: Rerror, 112: Topen, 113: Ropen, 114: Tcreate, 115: Rcreate, 124: Tstat,
    125: Rstat, 126: Twstat, 127: Rwstat,
}  # fmt: skip
_LINUX: Final[dict[int, type[Message]]] = {
    7: Rlerror, 8: Tstatfs, 9: Rstatfs, 12: Tlopen, 13: Rlopen, 14: Tlcreate, 15: Rlcreate, 16: Tsymlink,
    17: Rsymlink, 18: Tmknod, 19: Rmknod, 20: Trename, 21: Rrename, 22: Treadlink, 23: Rreadlink,
    24: Tgetattr, 25: Rgetattr, 26: Tsetattr, 27: Rsetattr, 30: Txattrwalk, 31: Rxattrwalk,
    32: Txattrcreate, 33: Rxattrcreate, 40: Treaddir, 41: Rreaddir, 50: Tfsync, 51: Rfsync, 52: Tlock,
    53: Rlock, 54: Tgetlock, 55: Rgetlock, 70: Tlink, 71: Rlink, 72: Tmkdir, 73: Rmkdir,
    74: Trenameat, 75: Rrenameat, 76: Tunlinkat, 77: Runlinkat,
}  # fmt: skip
MESSAGES: Final[dict[Dialect, dict[int, type[Message]]]] = {
    Dialect.PLAIN: _COMMON | _CLASSIC,
    Dialect.U: _COMMON | _CLASSIC,
    Dialect.L: _COMMON | _LINUX,
}
"""The messages of each dialect, by type number."""
NUMBERS: Final[dict[type[Message], int]] = {m: n for n, m in (_COMMON | _CLASSIC | _LINUX).items()}
