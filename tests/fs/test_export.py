"""A host directory as a tree: names, opens, creation, removal, attributes. Run as root."""

import asyncio
import errno
import gc
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skep.fs.errors import FsError
from skep.fs.export import Export, HostHandle, HostNode
from skep.fs.messages import LO, NONUNAME, QT
from skep.fs.node import Attr, Caller, Change, How, Node

ME = Caller("unix:root", "operator", session="1")
READ, WRITE, BOTH = How(read=True), How(write=True), How(read=True, write=True)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    return served


@pytest.fixture
def root(top: Path) -> HostNode:
    return Export(top).root


def refused(call: Callable[..., object], *args: object) -> int:
    """The errno with which ``call`` fails."""
    try:
        call(*args)
    except (OSError, FsError) as error:
        return error.errno or 0
    raise AssertionError("it was allowed")


def attr(node: HostNode) -> Attr:
    return node.attr(ME)


def write(node: HostNode, data: bytes, offset: int = 0) -> None:
    handle = node.open(WRITE, ME)
    assert len(data) == handle.write(offset, memoryview(data))
    handle.close()


def read(node: HostNode) -> bytes:
    handle = node.open(READ, ME)
    data = handle.read(0, 1 << 20)
    handle.close()
    return data


def made(root: HostNode, name: str, data: bytes = b"", mode: int = 0o644) -> HostNode:
    node, handle = root.create(name, mode, BOTH, NONUNAME, ME)
    handle.write(0, memoryview(data))
    handle.close()
    return node


def names(node: HostNode) -> list[str]:
    handle = node.open(READ, ME)
    found = [entry.name for entry in handle.entries()]  # type: ignore[union-attr]
    handle.close()
    return sorted(found)


# Walks stay beneath the root.


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "../x", "a\0b"])
def test_a_name_that_is_no_single_element_is_refused_by_every_operation(root: HostNode, name: str) -> None:
    file = made(root, "file")
    calls: list[Callable[[], object]] = [
        lambda: root.walk(name, ME),
        lambda: root.create(name, 0o644, BOTH, 0, ME),
        lambda: root.mkdir(name, 0o755, 0, ME),
        lambda: root.symlink(name, "t", 0, ME),
        lambda: root.mknod(name, stat.S_IFIFO | 0o644, 0, 0, ME),
        lambda: root.link(name, file, ME),
        lambda: root.unlink(name, None, ME),
        lambda: root.rename(name, root, "new", True, ME),
        lambda: root.rename("file", root, name, True, ME),
    ]
    assert [errno.EINVAL] * len(calls) == [refused(call) for call in calls]
    assert ["file"] == names(root)


@pytest.mark.parametrize("target", ["/etc", "../..", ".", "/proc/self/root", "/proc/self/cwd", "loop"])
def test_a_symbolic_link_is_itself_and_leads_nowhere(root: HostNode, target: str) -> None:
    link = root.symlink("loop", target, 0, ME)
    assert target == link.readlink(ME)
    assert QT.SYMLINK == attr(link).qid.type
    assert target == attr(link).target
    assert errno.ELOOP == refused(link.open, READ, ME)
    assert errno.ENOTDIR == refused(link.walk, "passwd", ME)
    assert errno.ENOTDIR == refused(link.create, "x", 0o644, BOTH, 0, ME)
    assert errno.ELOOP == refused(root.create, "loop", 0o644, How(write=True, flags=LO.CREAT), 0, ME)


def test_a_directory_swapped_for_a_link_keeps_the_node_where_it_was(root: HostNode, top: Path) -> None:
    inner = root.mkdir("d", 0o755, 0, ME)
    made(inner, "mine", b"mine")
    (top / "d").rename(top / "elsewhere")
    (top / "d").symlink_to("/etc")
    assert ["mine"] == names(inner)
    assert b"mine" == read(inner.walk("mine", ME))
    assert QT.SYMLINK == attr(root.walk("d", ME)).qid.type


def test_a_link_swapped_in_during_walks_never_leads_out(root: HostNode, top: Path) -> None:
    made(root.mkdir("d", 0o755, 0, ME), "passwd", b"inside")
    (top / "link").symlink_to("/etc")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for old, new in (("d", "aside"), ("link", "d"), ("d", "link"), ("aside", "d")):
                os.rename(top / old, top / new)

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes: set[bytes | int] = set()
    try:
        while not {b"inside", errno.ENOTDIR, errno.ENOENT} <= outcomes:
            try:
                outcomes.add(read(root.walk("d", ME).walk("passwd", ME)))
            except OSError as error:
                outcomes.add(error.errno or 0)
    finally:
        over.set()
        swapper.join()
    assert {b"inside", errno.ENOTDIR, errno.ENOENT} == outcomes


def test_nodes_below_a_renamed_directory_stay_valid(root: HostNode) -> None:
    a = root.mkdir("a", 0o755, 0, ME)
    b = a.mkdir("b", 0o755, 0, ME)
    file = made(b, "file", b"1")
    root.rename("a", root, "z", True, ME)
    made(b, "second", b"2")
    write(file, b"3")
    assert ["file", "second"] == names(root.walk("z", ME).walk("b", ME))
    assert b"3" == read(root.walk("z", ME).walk("b", ME).walk("file", ME))
    b.unlink("file", False, ME)
    assert ["second"] == names(b)


def test_a_tree_deeper_than_any_path_is_walked_and_removed(root: HostNode) -> None:
    chain = [root]
    name = "n" * 255
    for _ in range(257):
        chain.append(chain[-1].mkdir(name, 0o755, 0, ME))
    made(chain[-1], "deep", b"deep")
    again = root
    for _ in range(257):
        again = again.walk(name, ME)
    assert attr(chain[-1]).qid == attr(again).qid
    assert b"deep" == read(again.walk("deep", ME))
    chain.pop().unlink("deep", False, ME)
    while chain:
        chain.pop().unlink(name, True, ME)
    assert [] == names(root)


def test_a_name_of_256_bytes_is_too_long(root: HostNode) -> None:
    assert errno.ENAMETOOLONG == refused(root.walk, "n" * 256, ME)
    assert errno.ENAMETOOLONG == refused(root.mkdir, "é" * 128, 0o755, 0, ME)


def test_names_are_bytes(root: HostNode, top: Path) -> None:
    (Path(os.fsdecode(bytes(top) + b"/\xff\xfe"))).write_bytes(b"x")
    assert ["\udcff\udcfe"] == names(root)
    assert b"x" == read(root.walk("\udcff\udcfe", ME))


def test_a_missing_name_and_a_walk_from_a_file_say_so(root: HostNode) -> None:
    file = made(root, "file")
    assert errno.ENOENT == refused(root.walk, "missing", ME)
    assert errno.ENOTDIR == refused(file.walk, "x", ME)


# Qids.


def test_a_qid_is_the_same_by_every_way_to_the_file(root: HostNode) -> None:
    nodes: list[tuple[str, HostNode]] = [
        ("dir", root.mkdir("dir", 0o755, 0, ME)),
        ("link", root.symlink("link", "x", 0, ME)),
        ("pipe", root.mknod("pipe", stat.S_IFIFO | 0o600, 0, 0, ME)),
        ("file", made(root, "file", b"data")),
    ]
    handle = root.open(READ, ME)
    listed = {entry.name: entry for entry in handle.entries()}  # type: ignore[union-attr]
    handle.close()
    for name, node in nodes:
        walked = attr(root.walk(name, ME))
        assert walked.qid == attr(node).qid == listed[name].qid
        assert stat.S_IFMT(walked.mode) == listed[name].mode
    assert 4 == len({entry.qid.path for entry in listed.values()})


def test_a_name_made_anew_is_another_file(root: HostNode, top: Path) -> None:
    paths, inodes = set(), set()
    for _ in range(200):
        node = made(root, "file")
        paths.add(attr(node).qid.path)
        inodes.add((top / "file").stat().st_ino)
        del node
        root.unlink("file", False, ME)
    assert 200 == len(paths)
    # The file system reused inodes, or this has shown nothing.
    assert len(inodes) < 200 or os.uname().sysname != "Linux" or _on_tmpfs(top)


def _on_tmpfs(path: Path) -> bool:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if path.is_relative_to(m[1])]
    return "tmpfs" == max(inside, key=lambda m: len(m[1]))[2]


def test_a_version_changes_with_content_and_not_with_reading(root: HostNode) -> None:
    node = made(root, "file", b"one")
    first = attr(node).qid
    assert b"one" == read(node)
    assert first == attr(node).qid
    write(node, b"two!")
    second = attr(node).qid
    assert first.path == second.path
    assert first.vers != second.vers


def test_a_hard_link_is_the_same_file_twice(root: HostNode) -> None:
    node = made(root, "one", b"x")
    root.link("two", node, ME)
    assert attr(node).qid.path == attr(root.walk("two", ME)).qid.path
    assert 2 == attr(node).nlink
    directory = root.mkdir("dir", 0o755, 0, ME)
    assert errno.EPERM == refused(root.link, "three", directory, ME)
    assert errno.EEXIST == refused(root.link, "two", node, ME)
    link = root.symlink("soft", "nowhere", 0, ME)
    root.link("soft2", link, ME)
    assert "nowhere" == root.walk("soft2", ME).readlink(ME)


def test_a_node_of_another_tree_is_across_a_device(root: HostNode, tmp_path: Path) -> None:
    other = Export(tmp_path).root
    made(root, "file")
    assert errno.EXDEV == refused(root.link, "x", other, ME)
    assert errno.EXDEV == refused(root.rename, "file", other, "x", True, ME)
    assert errno.EXDEV == refused(root.rename, "file", Node(), "x", True, ME)


# Opens, reads and writes.


def test_an_unlinked_file_is_still_read_written_opened_and_changed(root: HostNode) -> None:
    node = made(root, "file", b"content")
    handle = node.open(BOTH, ME)
    root.unlink("file", False, ME)
    assert b"content" == handle.read(0, 100)
    assert 3 == handle.write(7, memoryview(b"!!!"))
    assert b"content!!!" == read(node)
    node.setattr(Change(size=3, mode=0o600, mtime_ns=5), ME)
    assert (3, 0o100600, 5, 0) == (attr(node).size, attr(node).mode, attr(node).mtime_ns, attr(node).nlink)
    assert errno.ENOENT == refused(root.link, "back", node, ME)
    handle.close()


def test_reads_end_where_the_file_ends(root: HostNode) -> None:
    handle = made(root, "file", b"0123456789").open(READ, ME)
    assert b"3456" == handle.read(3, 4)
    assert b"89" == handle.read(8, 100)
    assert [b""] * 4 == [handle.read(at, 100) for at in (10, 11, 1 << 63, (1 << 64) - 1)]
    handle.close()


def test_a_write_past_the_largest_file_is_too_big(root: HostNode) -> None:
    handle = made(root, "file").open(WRITE, ME)
    assert errno.EFBIG == refused(handle.write, 1 << 63, memoryview(b"x"))
    assert 0 == handle.write(0, memoryview(b""))
    handle.close()


def test_an_append_ignores_the_offset(root: HostNode) -> None:
    node = made(root, "log", b"one")
    handle = node.open(How(write=True, append=True), ME)
    handle.write(0, memoryview(b"two"))
    handle.close()
    assert b"onetwo" == read(node)


def test_a_truncating_open_empties_the_file(root: HostNode) -> None:
    node = made(root, "file", b"old content")
    node.open(How(write=True, trunc=True), ME).close()
    assert b"" == read(node)


def test_flags_that_are_the_clients_affair_are_left_out(root: HostNode) -> None:
    node = made(root, "file", b"data")
    asked = LO.LARGEFILE | LO.CLOEXEC | LO.NOATIME | LO.CREAT | LO.EXCL | LO.NOFOLLOW | LO.DIRECT | LO.SYNC
    handle = node.open(How(read=True, write=True, flags=asked), ME)
    assert b"data" == handle.read(0, 10)
    assert 3 == handle.write(1, memoryview(b"xxx"))
    handle.close()
    assert errno.ENOTDIR == refused(node.open, How(read=True, flags=LO.DIRECTORY), ME)


@pytest.mark.parametrize("how", [WRITE, BOTH, How(read=True, trunc=True)])
def test_a_directory_is_not_opened_for_writing(root: HostNode, how: How) -> None:
    assert errno.EISDIR == refused(root.open, how, ME)


def test_execution_needs_the_execute_bit(root: HostNode) -> None:
    run = How(read=True, execute=True)
    assert errno.EACCES == refused(made(root, "text", mode=0o644).open, run, ME)
    made(root, "program", mode=0o755).open(run, ME).close()


@pytest.mark.parametrize(
    ("mode", "rdev", "target"),
    [
        (stat.S_IFIFO | 0o640, 0, ""),
        (stat.S_IFSOCK | 0o640, 0, ""),
        (stat.S_IFCHR | 0o640, os.makedev(1, 3), "c 1 3"),
        (stat.S_IFBLK | 0o640, os.makedev(7, 300), "b 7 300"),
    ],
)
def test_special_files_are_made_as_asked_and_never_opened(
    root: HostNode, mode: int, rdev: int, target: str
) -> None:
    node = root.mknod("special", mode, rdev, 0, ME)
    told = attr(node)
    assert (mode, rdev, target) == (told.mode, told.rdev, told.target)
    assert attr(root.walk("special", ME)).qid == told.qid
    assert errno.ENXIO == refused(node.open, READ, ME)
    assert errno.ENXIO == refused(node.open, BOTH, ME)
    assert errno.ENXIO == refused(root.create, "special", 0o644, How(read=True, flags=LO.CREAT), 0, ME)


def test_fsync_returns_and_a_flushed_one_leaks_nothing(root: HostNode) -> None:
    async def story() -> None:
        handle = made(root, "file", b"x").open(BOTH, ME)
        await handle.fsync(False)
        await handle.fsync(True)
        flushed = asyncio.ensure_future(handle.fsync(False))
        await asyncio.sleep(0)
        flushed.cancel()
        handle.close()
        directory = root.open(READ, ME)
        await directory.fsync(False)
        directory.close()

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(story())
    assert before == len(os.listdir("/proc/self/fd"))


# Creation and removal.


def test_create_opens_an_existing_file_only_when_asked_to(root: HostNode) -> None:
    made(root, "file", b"old")
    assert errno.EEXIST == refused(root.create, "file", 0o644, BOTH, 0, ME)
    exclusive = How(write=True, flags=LO.CREAT | LO.EXCL)
    assert errno.EEXIST == refused(root.create, "file", 0o644, exclusive, 0, ME)
    node, handle = root.create("file", 0o644, How(read=True, flags=LO.CREAT), 0, ME)
    assert b"old" == handle.read(0, 10)
    handle.close()
    _, handle = root.create("file", 0o644, How(write=True, trunc=True, flags=LO.CREAT), 0, ME)
    handle.close()
    assert b"" == read(node)
    _, handle = root.create("new", 0o644, How(write=True, flags=LO.CREAT), 0, ME)
    handle.close()
    root.mkdir("dir", 0o755, 0, ME)
    assert errno.EISDIR == refused(root.create, "dir", 0o644, How(read=True, flags=LO.CREAT), 0, ME)
    assert ["dir", "file", "new"] == names(root)


def test_a_file_created_without_rights_is_open_all_the_same(root: HostNode) -> None:
    _, handle = root.create("file", 0, BOTH, 0, ME)
    assert 1 == handle.write(0, memoryview(b"x"))
    assert b"x" == handle.read(0, 10)
    handle.close()


@pytest.mark.parametrize("mode", [0o777, 0o666, 0o600, 0o4755, 0o2711, 0o000])
def test_permissions_are_those_asked_for_whatever_the_umask(root: HostNode, mode: int) -> None:
    made_here = made(root, "file", mode=mode)
    assert stat.S_IFREG | mode == attr(made_here).mode
    assert stat.S_IFDIR | mode & 0o1777 == attr(root.mkdir("dir", mode, 0, ME)).mode
    assert stat.S_IFIFO | mode == attr(root.mknod("pipe", stat.S_IFIFO | mode, 0, 0, ME)).mode


def test_a_new_file_has_the_group_asked_for(root: HostNode) -> None:
    node, handle = root.create("file", 0o2755, BOTH, 4, ME)
    handle.close()
    assert (4, 0o102755) == (attr(node).gid, attr(node).mode)
    assert 4 == attr(root.mkdir("dir", 0o755, 4, ME)).gid
    assert 4 == attr(root.symlink("link", "x", 4, ME)).gid
    assert 4 == attr(root.mknod("pipe", stat.S_IFIFO | 0o600, 0, 4, ME)).gid
    assert os.getegid() == attr(root.mkdir("own", 0o755, NONUNAME, ME)).gid


def test_a_set_group_id_directory_hands_its_group_on(root: HostNode, top: Path) -> None:
    os.chown(top, -1, 4)
    top.chmod(0o2775)
    inner = attr(root.mkdir("dir", 0o777, NONUNAME, ME))
    assert (4, stat.S_IFDIR | 0o2777) == (inner.gid, inner.mode)


def test_a_default_acl_stands_in_for_the_umask(root: HostNode, top: Path) -> None:
    # version[4] and (tag[2] perm[2] id[4])*: user::rwx group::r-x mask::r-x other::---
    acl = b"".join(
        [(2).to_bytes(4, "little")]
        + [
            tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + b"\xff" * 4
            for tag, perm in ((1, 7), (4, 5), (0x10, 5), (0x20, 0))
        ]
    )
    root.set_xattr("system.posix_acl_default", acl, 0, ME)
    assert 0o100640 == attr(made(root, "file", mode=0o666)).mode


def test_unlink_tells_files_from_directories(root: HostNode) -> None:
    directory = root.mkdir("dir", 0o755, 0, ME)
    made(directory, "inner")
    made(root, "file")
    root.symlink("link", "dir", 0, ME)
    assert errno.EISDIR == refused(root.unlink, "dir", False, ME)
    assert errno.ENOTDIR == refused(root.unlink, "file", True, ME)
    assert errno.ENOTDIR == refused(root.unlink, "link", True, ME)
    assert errno.ENOTEMPTY == refused(root.unlink, "dir", True, ME)
    assert errno.ENOTEMPTY == refused(root.unlink, "dir", None, ME)
    assert errno.ENOENT == refused(root.unlink, "missing", None, ME)
    directory.unlink("inner", False, ME)
    for name in ("dir", "file", "link"):
        root.unlink(name, None, ME)
    assert [] == names(root)
    assert errno.ENOENT == refused(directory.create, "late", 0o644, BOTH, 0, ME)
    assert [] == names(directory)


def test_rename_replaces_only_when_it_may(root: HostNode) -> None:
    first, second = made(root, "a", b"a"), made(root, "b", b"b")
    assert errno.EEXIST == refused(root.rename, "a", root, "b", False, ME)
    root.rename("a", root, "c", False, ME)
    assert ["b", "c"] == names(root)
    root.rename("c", root, "b", True, ME)
    assert ["b"] == names(root)
    assert attr(first).qid.path == attr(root.walk("b", ME)).qid.path
    assert 0 == attr(second).nlink
    assert errno.ENOENT == refused(root.rename, "a", root, "x", True, ME)


def test_rename_of_directories_keeps_the_rules_of_posix(root: HostNode) -> None:
    full, empty = root.mkdir("full", 0o755, 0, ME), root.mkdir("empty", 0o755, 0, ME)
    made(full, "inner")
    made(root, "file")
    assert errno.ENOTEMPTY == refused(root.rename, "empty", root, "full", True, ME)
    assert errno.EINVAL == refused(root.rename, "full", full, "self", True, ME)
    assert errno.EINVAL == refused(root.rename, "full", full, "self", False, ME)
    assert errno.ENOTDIR == refused(root.rename, "full", root, "file", True, ME)
    assert errno.EISDIR == refused(root.rename, "file", root, "full", True, ME)
    root.rename("full", empty, "moved", True, ME)
    assert ["inner"] == names(empty.walk("moved", ME))


def test_readlink_of_what_is_no_link_is_invalid(root: HostNode) -> None:
    assert errno.EINVAL == refused(root.readlink, ME)
    assert errno.EINVAL == refused(made(root, "file").readlink, ME)


# A read-only export.


def test_a_read_only_export_changes_nothing(top: Path) -> None:
    (top / "file").write_bytes(b"data")
    (top / "dir").mkdir()
    root = Export(top, read_only=True).root
    file = root.walk("file", ME)
    calls: list[Callable[[], object]] = [
        lambda: file.open(WRITE, ME),
        lambda: file.open(How(read=True, trunc=True), ME),
        lambda: root.create("new", 0o644, BOTH, 0, ME),
        lambda: root.create("new", 0o644, How(read=True, flags=LO.CREAT), 0, ME),
        lambda: root.mkdir("new", 0o755, 0, ME),
        lambda: root.symlink("new", "x", 0, ME),
        lambda: root.mknod("new", stat.S_IFIFO, 0, 0, ME),
        lambda: root.link("new", file, ME),
        lambda: root.unlink("file", None, ME),
        lambda: root.rename("file", root, "new", True, ME),
        lambda: file.setattr(Change(mode=0o777), ME),
        lambda: file.set_xattr("user.x", b"1", 0, ME),
    ]
    assert [errno.EROFS] * len(calls) == [refused(call) for call in calls]
    assert b"data" == read(file)
    _, handle = root.create("file", 0o644, How(read=True, flags=LO.CREAT), 0, ME)
    assert b"data" == handle.read(0, 10)
    handle.close()
    assert ["dir", "file"] == names(root)


def test_an_export_of_a_file_or_of_nothing_is_refused(top: Path) -> None:
    (top / "file").touch()
    assert errno.ENOTDIR == refused(Export, top / "file")
    assert errno.ENOENT == refused(Export, top / "missing")


# Descriptors.


def test_every_descriptor_goes_with_its_last_reference(top: Path) -> None:
    def story() -> HostHandle:
        root = Export(top).root
        inner = root.mkdir("dir", 0o755, 0, ME)
        node, handle = inner.create("file", 0o644, BOTH, 0, ME)
        for call in (
            lambda: inner.walk("missing", ME),
            lambda: inner.create("file", 0o644, BOTH, 0, ME),
            lambda: node.walk("x", ME),
            lambda: inner.open(WRITE, ME),
        ):
            refused(call)
        names(inner)
        node.open(READ, ME)  # never closed
        assert 4 == sum(1 for _ in (root, inner, node, handle))
        return handle

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    handle = story()
    assert before + 1 == len(os.listdir("/proc/self/fd"))
    handle.close()
    assert before == len(os.listdir("/proc/self/fd"))
