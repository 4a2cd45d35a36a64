"""Strategies of requests that make sense on the grounds: few fids, few tags, names there and not there."""

from __future__ import annotations

from hypothesis import strategies as st

from skep.fs import messages as m
from skep.fs.messages import DONT_TOUCH, NOFID, NONUNAME, Dialect, Message

fids = st.sampled_from([0, 0, 1, 1, 1, 2, 2, 3, 4, NOFID])
tags = st.integers(0, 4)
synthetic_names = st.sampled_from(
    ["hello", "memory", "log", "lock", "ctl", "ask", "events", "clone", "names", "one", "slow", "slowly",
     "journal", "dir", "dir", "sub", "a", "closing", "broken", "zeros", "motto"]
)  # fmt: skip
host_names = st.sampled_from(["file", "dir", "dir", "link", "new", "other", "é"])
odd_names = st.sampled_from(["..", "..", ".", "", "a/b", "nothing", "x" * 255, "x" * 256])
offsets = st.sampled_from([0, 0, 0, 1, 5, 100, 1 << 40, 1 << 63, (1 << 64) - 1])
counts = st.sampled_from([0, 1, 10, 100, 8181, 1 << 20, (1 << 32) - 1])
data = st.sampled_from([b"", b"x", b"say what=hi\n", b"\0" * 100])
modes = st.sampled_from([0, 0, 1, 2, 3, 0x10, 0x11, 0x40, 0x80])
flags = st.sampled_from([0, 0, 1, 2, 3, 0o1001, 0o2001, 0o100, 0o300, 0o100000, 0o200000])
perms = st.sampled_from([0o644, 0o755, 0, 0x80000000 | 0o755, 0x40000000 | 0o644, 0x02000000])


def requests(dialect: Dialect, host: bool) -> st.SearchStrategy[Message]:
    """One request of a dialect, for the exported directory or the synthetic tree."""
    names = st.one_of(*[host_names if host else synthetic_names] * 3, odd_names)
    aname = st.sampled_from(["host"] * 3 + ["nowhere"]) if host else st.sampled_from(["", "", "", "nowhere"])
    users = st.sampled_from(["alice", "bob", "carol", ""])
    n_uname = st.sampled_from([NONUNAME, NONUNAME, 500, 501, 77])
    common = [
        st.builds(m.Tattach, fids, st.sampled_from([NOFID, NOFID, 9, 1]), users, aname, n_uname),
        st.builds(m.Tauth, st.sampled_from([1, 9]), users, aname, n_uname),
        *[st.builds(m.Twalk, fids, fids, st.lists(names, max_size=3).map(tuple))] * 4,
        *[st.builds(m.Tread, fids, offsets, counts)] * 3,
        *[st.builds(m.Twrite, st.sampled_from([1, 2, 3, 9]), offsets, data)] * 2,
        st.builds(m.Tclunk, fids),
        st.builds(m.Tremove, st.integers(1, 4)),
    ]
    classic = [
        *[st.builds(m.Topen, fids, modes)] * 3,
        st.builds(m.Tcreate, fids, names, perms, modes),
        st.builds(m.Tstat, fids),
        st.builds(m.Twstat, fids, st.sampled_from([DONT_TOUCH])),
    ]
    times = st.sampled_from([0, 5, (1 << 64) - 1])
    linux = [
        *[st.builds(m.Tlopen, fids, flags)] * 3,
        st.builds(m.Tlcreate, fids, names, flags, perms, st.just(0)),
        st.builds(m.Tgetattr, fids, st.just(0x7FF)),
        st.builds(m.Tsetattr, fids, st.integers(0, 0x1FF), perms, st.just(0), st.just(0),
                  st.sampled_from([0, 7, 1 << 63]), times, times, times, times),
        st.builds(m.Treaddir, fids, offsets, counts),
        st.builds(m.Tmkdir, fids, names, perms, st.just(0)),
        st.builds(m.Tsymlink, fids, names, names, st.just(0)),
        st.builds(m.Tmknod, fids, names, st.sampled_from([0o10644, 0o100644, 0o20644, 0o777777]),
                  st.sampled_from([0, 1 << 31]), st.just(5), st.just(0)),
        st.builds(m.Trename, fids, fids, names),
        st.builds(m.Trenameat, fids, names, fids, names),
        st.builds(m.Tunlinkat, fids, names, st.sampled_from([0, 0, 0x200, 1])),
        st.builds(m.Tlink, fids, fids, names),
        st.builds(m.Treadlink, fids),
        st.builds(m.Tstatfs, fids),
        st.builds(m.Tfsync, fids, st.just(0)),
        st.builds(m.Txattrwalk, fids, fids, st.sampled_from(["", "user.x", "system.posix_acl_access"])),
        st.builds(m.Txattrcreate, fids, st.just("user.x"), st.sampled_from([0, 1, 100, 1 << 40]),
                  st.integers(0, 3)),
        st.builds(m.Tlock, fids, st.integers(0, 3), st.integers(0, 2), offsets, offsets, st.integers(1, 2),
                  users),
        st.builds(m.Tgetlock, fids, st.integers(0, 3), offsets, offsets, st.integers(1, 2), users),
    ]  # fmt: skip
    return st.one_of(*common, *(linux if dialect is Dialect.L else classic))
