"""A host directory as a tree: setattr, extended attributes, statfs, owners. Run as root."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from skep.fs.errors import FsError
from skep.fs.export import Export, HostNode
from skep.fs.node import Attr, Caller, Change, How, StatFs

ME = Caller("unix:root", "operator", session="1")
BOTH = How(read=True, write=True)


@pytest.fixture
def root(tmp_path: Path) -> HostNode:
    return Export(tmp_path).root


@pytest.fixture
def file(root: HostNode) -> HostNode:
    node, handle = root.create("file", 0o644, BOTH, 0, ME)
    handle.write(0, memoryview(b"0123456789"))
    handle.close()
    return node


def refused(call: Callable[..., object], *args: object) -> int:
    """The errno with which ``call`` fails."""
    try:
        call(*args)
    except (OSError, FsError) as error:
        return error.errno or 0
    raise AssertionError("it was allowed")


def attr(node: HostNode) -> Attr:
    return node.attr(ME)


def test_attributes_are_the_hosts(root: HostNode, file: HostNode, tmp_path: Path) -> None:
    os.chown(tmp_path / "file", 1, 4)
    told, host = attr(file), os.stat(tmp_path / "file")
    assert (host.st_mode, host.st_size, host.st_nlink, host.st_blocks, host.st_blksize) == (
        told.mode, told.size, told.nlink, told.blocks, told.blksize,
    )  # fmt: skip
    assert (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns) == (
        told.atime_ns, told.mtime_ns, told.ctime_ns,
    )  # fmt: skip
    assert (1, 4, "daemon", "adm") == (told.uid, told.gid, told.user, told.group)
    assert told.btime_ns <= told.mtime_ns
    os.chown(tmp_path / "file", 54321, 54322)
    assert ("54321", "54322") == (attr(file).user, attr(file).group)


def test_truncation_needs_no_open_and_extends_with_zeros(file: HostNode) -> None:
    file.setattr(Change(size=4), ME)
    file.setattr(Change(size=8), ME)
    handle = file.open(How(read=True), ME)
    assert b"0123\0\0\0\0" == handle.read(0, 100)
    handle.close()


def test_what_has_no_size_is_not_truncated(root: HostNode, file: HostNode) -> None:
    assert errno.EISDIR == refused(root.setattr, Change(size=0), ME)
    assert errno.EINVAL == refused(root.symlink("l", "file", 0, ME).setattr, Change(size=0), ME)
    pipe = root.mknod("pipe", stat.S_IFIFO | 0o600, 0, 0, ME)
    assert errno.EINVAL == refused(pipe.setattr, Change(size=0), ME)
    assert errno.EFBIG == refused(file.setattr, Change(size=1 << 63), ME)
    assert 10 == attr(file).size


def test_a_link_has_an_owner_and_times_but_no_mode(root: HostNode, file: HostNode) -> None:
    link = root.symlink("link", "file", 0, ME)
    link.setattr(Change(uid=1, gid=2, atime_ns=3, mtime_ns=4), ME)
    told = attr(link)
    assert (1, 2, 3, 4) == (told.uid, told.gid, told.atime_ns, told.mtime_ns)
    assert errno.EOPNOTSUPP == refused(link.setattr, Change(mode=0o600), ME)
    link.setattr(Change(ctime_now=True), ME)
    assert (0, 0o100644) == (attr(file).uid, attr(file).mode)


def test_each_time_is_set_alone(file: HostNode) -> None:
    file.setattr(Change(atime_ns=1_000_000_001, mtime_ns=2_000_000_002), ME)
    before = time.time_ns() - 1_000_000_000
    file.setattr(Change(mtime_now=True), ME)
    assert 1_000_000_001 == attr(file).atime_ns
    assert before < attr(file).mtime_ns
    file.setattr(Change(mtime_ns=5, atime_now=True), ME)
    assert 5 == attr(file).mtime_ns
    assert before < attr(file).atime_ns
    file.setattr(Change(atime_ns=7), ME)
    assert (7, 5) == (attr(file).atime_ns, attr(file).mtime_ns)
    assert errno.EINVAL == refused(file.setattr, Change(atime_ns=(1 << 63) * 1_000_000_000), ME)


def test_a_time_set_together_with_a_size_stands(file: HostNode) -> None:
    file.setattr(Change(size=3, mtime_ns=77), ME)
    assert (3, 77) == (attr(file).size, attr(file).mtime_ns)


def test_only_the_change_time_moves_when_only_that_is_asked(file: HostNode) -> None:
    file.setattr(Change(mode=0o4711), ME)
    before = attr(file)
    while attr(file).ctime_ns == before.ctime_ns:  # the clock of a file system ticks some 250 times a second
        file.setattr(Change(ctime_now=True), ME)
    after = attr(file)
    assert (before.mode, before.mtime_ns, before.atime_ns) == (after.mode, after.mtime_ns, after.atime_ns)


def test_a_group_may_be_named_or_numbered(file: HostNode) -> None:
    file.setattr(Change(group="adm"), ME)
    assert 4 == attr(file).gid
    file.setattr(Change(group="54321"), ME)
    assert 54321 == attr(file).gid
    assert errno.EINVAL == refused(file.setattr, Change(group="no such group", mode=0o600), ME)
    assert 0o100644 == attr(file).mode


def test_a_setattr_that_fails_changes_nothing(root: HostNode, file: HostNode) -> None:
    file.setattr(Change(mode=0o4755, atime_ns=1, mtime_ns=2), ME)
    before = attr(file)
    wrong = Change(mode=0o600, uid=1, gid=1, atime_ns=8, mtime_ns=9, size=1 << 63)
    assert errno.EFBIG == refused(file.setattr, wrong, ME)
    after = attr(file)
    assert (before.mode, before.uid, before.gid, before.atime_ns, before.mtime_ns, before.size) == (
        after.mode, after.uid, after.gid, after.atime_ns, after.mtime_ns, after.size,
    )  # fmt: skip
    directory = root.mkdir("dir", 0o755, 0, ME)
    assert errno.EISDIR == refused(directory.setattr, Change(mode=0o700, size=0), ME)
    assert 0o40755 == attr(directory).mode


def test_owner_and_mode_set_together_keep_set_user_id(file: HostNode) -> None:
    file.setattr(Change(uid=1, mode=0o4755), ME)
    assert (1, 0o104755) == (attr(file).uid, attr(file).mode)


def test_numbers_that_no_host_has_are_invalid(root: HostNode, file: HostNode) -> None:
    wild = 0xFFFFFFFF
    assert [errno.EINVAL] * 6 == [
        refused(file.setattr, Change(uid=wild), ME),
        refused(file.setattr, Change(gid=wild), ME),
        refused(file.setattr, Change(group=str(wild)), ME),
        refused(file.set_xattr, "user.x", b"", wild, ME),
        refused(file.set_xattr, "user.x", b"1", 3, ME),
        refused(root.mknod, "x", wild, 0, 0, ME),
    ]
    file.setattr(Change(mode=wild), ME)
    assert 0o107777 == attr(file).mode


AS_NOBODY = """
import os, sys
from skep.fs.export import Export
from skep.fs.node import Caller, Change, How
os.setgroups([]); os.setegid(65534); os.seteuid(65534)
ME = Caller("unix:nobody", "operator")
root = Export(sys.argv[1]).root
def refused(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
"""


def as_nobody(top: Path, story: str) -> None:
    """Run ``story`` after AS_NOBODY's lines, on an export of ``top`` by user 65534."""
    command = [sys.executable, "-c", AS_NOBODY + story, str(top)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (0, "") == (done.returncode, done.stderr)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that another user reaches, unlike pytest's own, and may write."""
    with TemporaryDirectory() as made:
        os.chmod(made, 0o777)
        yield Path(made)


def test_rights_are_the_serving_users(shared: Path) -> None:
    (shared / "secret").write_bytes(b"x")
    (shared / "secret").chmod(0o600)
    (shared / "closed").mkdir()
    (shared / "closed").chmod(0o700)
    as_nobody(
        shared,
        """
secret, closed = root.walk("secret", ME), root.walk("closed", ME)
assert 13 == refused(secret.open, How(read=True), ME)
assert 13 == refused(secret.setattr, Change(size=0), ME)
assert 1 == refused(secret.setattr, Change(mode=0o777), ME)
assert 13 == refused(closed.walk, "x", ME)
assert 13 == refused(closed.open, How(read=True), ME)
assert 13 == refused(closed.mkdir, "x", 0o755, 0, ME)
# A group that may not be given is left as it is.
node, handle = root.create("mine", 0o666, How(write=True), 4, ME)
assert (65534, 65534, 0o100666) == (node.attr(ME).uid, node.attr(ME).gid, node.attr(ME).mode)
""",
    )


def test_who_has_a_file_open_for_writing_may_truncate_it_whatever_its_mode(shared: Path) -> None:
    as_nobody(
        shared,
        """
node, handle = root.create("file", 0o444, How(read=True, write=True), 0, ME)
handle.write(0, memoryview(b"0123456789"))
node.setattr(Change(size=4), ME)
assert b"0123" == handle.read(0, 100)
handle.close()
assert 13 == refused(node.setattr, Change(size=0), ME)
""",
    )


def test_a_change_beyond_the_users_rights_undoes_what_came_before(shared: Path) -> None:
    as_nobody(
        shared,
        """
node, handle = root.create("file", 0o644, How(write=True), 0, ME)
before = node.attr(ME)
assert 1 == refused(node.setattr, Change(uid=0, mode=0o600, mtime_ns=5), ME)
after = node.attr(ME)
assert (before.mode, before.uid, before.mtime_ns) == (after.mode, after.uid, after.mtime_ns)
""",
    )


def test_names_that_may_be_listed_but_not_looked_up_are_listed(shared: Path) -> None:
    (shared / "listed").mkdir()
    (shared / "listed" / "file").touch()
    (shared / "listed" / "dir").mkdir()
    (shared / "listed").chmod(0o744)
    as_nobody(
        shared,
        """
entries = root.walk("listed", ME).open(How(read=True), ME).entries()
assert {("file", 0o100000, 0), ("dir", 0o40000, 0x80)} == {(e.name, e.mode, e.qid.type) for e in entries}
assert 2 == len({e.qid.path for e in entries})
""",
    )


# Extended attributes.


def test_extended_attributes_are_set_listed_read_and_removed(file: HostNode) -> None:
    assert [] == list(file.xattrs(ME))
    file.set_xattr("user.one", b"1", 0, ME)
    file.set_xattr("user.two", b"\0" * 1000, os.XATTR_CREATE, ME)
    file.set_xattr("user.empty", b"", os.XATTR_CREATE, ME)
    assert ["user.empty", "user.one", "user.two"] == sorted(file.xattrs(ME))
    assert (b"1", b"\0" * 1000, b"") == tuple(file.xattr(f"user.{n}", ME) for n in ("one", "two", "empty"))
    assert errno.EEXIST == refused(file.set_xattr, "user.one", b"2", os.XATTR_CREATE, ME)
    assert errno.ENODATA == refused(file.set_xattr, "user.new", b"2", os.XATTR_REPLACE, ME)
    file.set_xattr("user.one", b"2", os.XATTR_REPLACE, ME)
    assert b"2" == file.xattr("user.one", ME)
    file.set_xattr("user.one", b"", 0, ME)
    assert errno.ENODATA == refused(file.xattr, "user.one", ME)
    assert errno.ENODATA == refused(file.set_xattr, "user.one", b"", 0, ME)


def test_extended_attributes_outlive_the_name(root: HostNode, file: HostNode) -> None:
    file.set_xattr("user.one", b"1", 0, ME)
    root.unlink("file", False, ME)
    assert b"1" == file.xattr("user.one", ME)
    file.set_xattr("user.two", b"2", 0, ME)
    assert ["user.one", "user.two"] == sorted(file.xattrs(ME))


def test_a_links_attributes_are_not_its_targets(root: HostNode, file: HostNode) -> None:
    link = root.symlink("link", "file", 0, ME)
    assert errno.EPERM == refused(link.set_xattr, "user.one", b"1", 0, ME)
    link.set_xattr("trusted.one", b"1", 0, ME)
    assert ["trusted.one"] == list(link.xattrs(ME))
    assert [] == list(file.xattrs(ME))


def test_a_name_space_that_is_not_there_is_not_supported(file: HostNode) -> None:
    assert errno.EOPNOTSUPP == refused(file.xattr, "nonsense", ME)
    assert errno.ENODATA == refused(file.xattr, "system.posix_acl_access", ME)


def test_statfs_tells_of_the_file_system(root: HostNode, tmp_path: Path) -> None:
    host, told = os.statvfs(tmp_path), root.statfs(ME)
    assert (StatFs().type, host.f_frsize, host.f_blocks, host.f_files, host.f_namemax) == (
        told.type, told.bsize, told.blocks, told.files, told.namelen,
    )  # fmt: skip
    assert 0 < told.bfree <= told.blocks
