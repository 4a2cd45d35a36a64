"""The formats of 9P a second time, from the manuals, in construct's words: what wire.py is compared with.

Nothing here is taken from messages.py. Strings are bytes. Sources: Plan 9 manual, section 5; the 9P2000.u
draft; diod's protocol.md.
"""

from __future__ import annotations

from typing import Any

from construct import (  # type: ignore[import-untyped]
    Array,
    Bytes,
    Const,
    Construct,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Prefixed,
    Rebuild,
    Struct,
    Terminated,
    len_,
    this,
)

u8, u16, u32, u64 = Int8ul, Int16ul, Int32ul, Int64ul
s = Prefixed(u16, GreedyBytes)  # s: length[2] and that many bytes
qid = Struct("type" / u8, "vers" / u32, "path" / u64)  # qid[13]
data = Prefixed(u32, GreedyBytes)  # count[4] data[count]

stat_fields = [
    "type" / u16,
    "dev" / u32,
    "qid" / qid,
    "mode" / u32,
    "atime" / u32,
    "mtime" / u32,
    "length" / u64,
    "name" / s,
    "uid" / s,
    "gid" / s,
    "muid" / s,
]
unix_stat_fields = [*stat_fields, "extension" / s, "n_uid" / u32, "n_gid" / u32, "n_muid" / u32]


def stat(*fields: Construct) -> Construct:
    """stat[n]: n[2], then the entry with its own size[2]."""
    return Prefixed(u16, Prefixed(u16, Struct(*fields, Terminated)))


def names(item: Construct, count: str, field: str) -> list[Construct]:
    """count[2] count*(field)."""
    return [count / Rebuild(u16, len_(this[field])), field / Array(this[count], item)]


# Bodies: what follows size[4] type[1] tag[2].

common: dict[int, tuple[str, list[Construct]]] = {
    100: ("Tversion", ["msize" / u32, "version" / s]),
    101: ("Rversion", ["msize" / u32, "version" / s]),
    103: ("Rauth", ["aqid" / qid]),
    105: ("Rattach", ["qid" / qid]),
    108: ("Tflush", ["oldtag" / u16]),
    109: ("Rflush", []),
    110: ("Twalk", ["fid" / u32, "newfid" / u32, *names(s, "nwname", "wname")]),
    111: ("Rwalk", names(qid, "nwqid", "wqid")),
    116: ("Tread", ["fid" / u32, "offset" / u64, "count" / u32]),
    117: ("Rread", ["data" / data]),
    118: ("Twrite", ["fid" / u32, "offset" / u64, "data" / data]),
    119: ("Rwrite", ["count" / u32]),
    120: ("Tclunk", ["fid" / u32]),
    121: ("Rclunk", []),
    122: ("Tremove", ["fid" / u32]),
    123: ("Rremove", []),
}
classic: dict[int, tuple[str, list[Construct]]] = {
    112: ("Topen", ["fid" / u32, "mode" / u8]),
    113: ("Ropen", ["qid" / qid, "iounit" / u32]),
    115: ("Rcreate", ["qid" / qid, "iounit" / u32]),
    124: ("Tstat", ["fid" / u32]),
    127: ("Rwstat", []),
}
plain = {
    **common,
    **classic,
    102: ("Tauth", ["afid" / u32, "uname" / s, "aname" / s]),
    104: ("Tattach", ["fid" / u32, "afid" / u32, "uname" / s, "aname" / s]),
    107: ("Rerror", ["ename" / s]),
    114: ("Tcreate", ["fid" / u32, "name" / s, "perm" / u32, "mode" / u8]),
    125: ("Rstat", ["stat" / stat(*stat_fields)]),
    126: ("Twstat", ["fid" / u32, "stat" / stat(*stat_fields)]),
}
unix = {
    **common,
    **classic,
    102: ("Tauth", ["afid" / u32, "uname" / s, "aname" / s, "n_uname" / u32]),
    104: ("Tattach", ["fid" / u32, "afid" / u32, "uname" / s, "aname" / s, "n_uname" / u32]),
    107: ("Rerror", ["ename" / s, "errno" / u32]),
    114: ("Tcreate", ["fid" / u32, "name" / s, "perm" / u32, "mode" / u8, "extension" / s]),
    125: ("Rstat", ["stat" / stat(*unix_stat_fields)]),
    126: ("Twstat", ["fid" / u32, "stat" / stat(*unix_stat_fields)]),
}
linux = {
    **common,
    7: ("Rlerror", ["ecode" / u32]),
    8: ("Tstatfs", ["fid" / u32]),
    9: (
        "Rstatfs",
        [
            "type" / u32,
            "bsize" / u32,
            "blocks" / u64,
            "bfree" / u64,
            "bavail" / u64,
            "files" / u64,
            "ffree" / u64,
            "fsid" / u64,
            "namelen" / u32,
        ],
    ),
    12: ("Tlopen", ["fid" / u32, "flags" / u32]),
    13: ("Rlopen", ["qid" / qid, "iounit" / u32]),
    14: ("Tlcreate", ["fid" / u32, "name" / s, "flags" / u32, "mode" / u32, "gid" / u32]),
    15: ("Rlcreate", ["qid" / qid, "iounit" / u32]),
    16: ("Tsymlink", ["dfid" / u32, "name" / s, "target" / s, "gid" / u32]),
    17: ("Rsymlink", ["qid" / qid]),
    18: ("Tmknod", ["dfid" / u32, "name" / s, "mode" / u32, "major" / u32, "minor" / u32, "gid" / u32]),
    19: ("Rmknod", ["qid" / qid]),
    20: ("Trename", ["fid" / u32, "dfid" / u32, "name" / s]),
    21: ("Rrename", []),
    22: ("Treadlink", ["fid" / u32]),
    23: ("Rreadlink", ["target" / s]),
    24: ("Tgetattr", ["fid" / u32, "request_mask" / u64]),
    25: (
        "Rgetattr",
        [
            "valid" / u64,
            "qid" / qid,
            "mode" / u32,
            "uid" / u32,
            "gid" / u32,
            "nlink" / u64,
            "rdev" / u64,
            "size" / u64,
            "blksize" / u64,
            "blocks" / u64,
            "atime_sec" / u64,
            "atime_nsec" / u64,
            "mtime_sec" / u64,
            "mtime_nsec" / u64,
            "ctime_sec" / u64,
            "ctime_nsec" / u64,
            "btime_sec" / u64,
            "btime_nsec" / u64,
            "gen" / u64,
            "data_version" / u64,
        ],
    ),
    26: (
        "Tsetattr",
        [
            "fid" / u32,
            "valid" / u32,
            "mode" / u32,
            "uid" / u32,
            "gid" / u32,
            "size" / u64,
            "atime_sec" / u64,
            "atime_nsec" / u64,
            "mtime_sec" / u64,
            "mtime_nsec" / u64,
        ],
    ),
    27: ("Rsetattr", []),
    30: ("Txattrwalk", ["fid" / u32, "newfid" / u32, "name" / s]),
    31: ("Rxattrwalk", ["size" / u64]),
    32: ("Txattrcreate", ["fid" / u32, "name" / s, "attr_size" / u64, "flags" / u32]),
    33: ("Rxattrcreate", []),
    40: ("Treaddir", ["fid" / u32, "offset" / u64, "count" / u32]),
    41: ("Rreaddir", ["data" / data]),
    50: ("Tfsync", ["fid" / u32, "datasync" / u32]),
    51: ("Rfsync", []),
    52: (
        "Tlock",
        [
            "fid" / u32,
            "type" / u8,
            "flags" / u32,
            "start" / u64,
            "length" / u64,
            "proc_id" / u32,
            "client_id" / s,
        ],
    ),
    53: ("Rlock", ["status" / u8]),
    54: (
        "Tgetlock",
        ["fid" / u32, "type" / u8, "start" / u64, "length" / u64, "proc_id" / u32, "client_id" / s],
    ),
    55: ("Rgetlock", ["type" / u8, "start" / u64, "length" / u64, "proc_id" / u32, "client_id" / s]),
    70: ("Tlink", ["dfid" / u32, "fid" / u32, "name" / s]),
    71: ("Rlink", []),
    72: ("Tmkdir", ["dfid" / u32, "name" / s, "mode" / u32, "gid" / u32]),
    73: ("Rmkdir", ["qid" / qid]),
    74: ("Trenameat", ["olddirfid" / u32, "oldname" / s, "newdirfid" / u32, "newname" / s]),
    75: ("Rrenameat", []),
    76: ("Tunlinkat", ["dirfid" / u32, "name" / s, "flags" / u32]),
    77: ("Runlinkat", []),
    102: ("Tauth", ["afid" / u32, "uname" / s, "aname" / s, "n_uname" / u32]),
    104: ("Tattach", ["fid" / u32, "afid" / u32, "uname" / s, "aname" / s, "n_uname" / u32]),
}
DIALECTS = {"9P2000": plain, "9P2000.u": unix, "9P2000.L": linux}

dirent = Struct("qid" / qid, "offset" / u64, "type" / u8, "name" / s)  # an element of Rreaddir
header = Struct("size" / u32, "type" / u8, "tag" / u16)


def build(dialect: str, number: int, tag: int, values: dict[str, Any]) -> bytes:
    """The frame of a message whose fields are ``values``."""
    _, fields = DIALECTS[dialect][number]
    body: bytes = Struct(*fields).build(values)
    return bytes(header.build({"size": 7 + len(body), "type": number, "tag": tag})) + body


def read(dialect: str, frame: bytes) -> tuple[str, int, Any]:
    """The name, tag and fields of a frame. Raises ConstructError when it is none."""
    head = header.parse(frame)
    name, fields = DIALECTS[dialect][head.type]
    whole = Struct(Const(len(frame), u32), Bytes(3), *fields, Terminated)
    return name, head.tag, whole.parse(frame)
