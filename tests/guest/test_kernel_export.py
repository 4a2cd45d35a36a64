"""A directory of the host, mounted by the Linux kernel's own 9p client: the same script for each server."""

import fcntl
import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from exports import diod, skep_export
from guest import GuestResult, run_guest
from tap import FAR, Address, Tap, far_read, tapped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = (Path(__file__).parent / "export.sh").read_text()
BLOB = random.Random(9).randbytes(10_000_000)
MANY = tuple(f"file-{n:04}" for n in range(1000))
LONG = "x" * 255


class Row(NamedTuple):
    """A server to be mounted, and how."""

    dialect: str
    export: Callable[[Path, Path], AbstractContextManager[Address]]
    options: str  # {root} is the exported directory.
    lock: Callable[[int, int], object]  # The host's lock that the server's clients must see.


EXPORTS = {
    # diod takes flock(2) locks for those of its clients.
    "diod-9p2000.L": Row("9p2000.L", diod, "aname={root}", fcntl.flock),
    "skep-9p2000.L": Row("9p2000.L", skep_export, "aname=", lambda fd, how: fcntl.lockf(fd, how, 1)),
    "skep-9p2000.u": Row("9p2000.u", skep_export, "aname=", lambda fd, how: fcntl.lockf(fd, how, 1)),
}
LINUX_ONLY = [name for name, row in EXPORTS.items() if row.dialect == "9p2000.L"]


@dataclass(frozen=True)
class Mounted:
    """A guest's visit to an exported directory, over."""

    dialect: str
    root: Path
    result: GuestResult
    tap: Tap

    def failed(self, section: str) -> str:
        """The output of a section that must not have ended with status 0."""
        assert self.result[section].status not in (0, None), self.result[section]
        return self.result[section].output


def furnish(root: Path) -> None:
    (root / "greeting").write_text("hello\n")
    (root / "folder").mkdir()
    (root / "folder" / "leaf").write_text("a leaf\n")
    (root / "blob").write_bytes(BLOB)
    (root / "locked").touch()
    (root / "labelled").touch()
    os.setxattr(root / "labelled", "user.label", b"from the host")
    (root / "many").mkdir()
    for name in MANY:
        (root / "many" / name).touch()
    (root.parent / "secret").write_text("outside\n")
    (root / "outside").symlink_to("../secret")


@pytest.fixture(scope="module", params=EXPORTS)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    row = EXPORTS[request.param]
    folder = tmp_path_factory.mktemp("export")
    root = folder / "root"
    root.mkdir()
    furnish(root)
    options = row.options.format(root=root)
    with (
        row.export(root, folder) as server,
        tapped(server, far_read) as tap,
        (root / "locked").open("r+b") as locked,
    ):
        row.lock(locked.fileno(), fcntl.LOCK_EX)
        prelude = f"PORT={tap.port} VERSION={row.dialect} OPTIONS={options} FAR_BLOCKS={FAR >> 20}\n"
        yield Mounted(row.dialect, root, run_guest(prelude + SCRIPT), tap)


# Reading.


def test_the_kernel_mounts_and_unmounts(mounted: Mounted) -> None:
    mounted.result.passed("mount")
    mounted.result.passed("umount")


def test_everything_is_listed(mounted: Mounted) -> None:
    listed = mounted.result.passed("list")
    assert "/mnt/folder:" in listed
    assert f"{len(BLOB)} " in listed
    assert "outside -> ../secret" in listed


def test_a_file_reads_whole(mounted: Mounted) -> None:
    assert "hello\n" == mounted.result.passed("cat")
    assert "hello\n" == mounted.result.passed("mmap")


def test_a_thousand_names_are_listed_once_each(mounted: Mounted) -> None:
    assert list(MANY) == sorted(mounted.result.passed("many").split())


# Writing.


def test_files_are_made_and_appended_to(mounted: Mounted) -> None:
    assert "made in the guest\nand more\n" == mounted.result.passed("create")
    assert "one two" == mounted.result.passed("append")
    assert "File exists" in mounted.failed("create-exclusively")


def test_deep_folders_are_made_and_found(mounted: Mounted) -> None:
    mounted.result.passed("mkdir")
    mounted.result.passed("deep-write")
    leaf = "a/" + "/".join("bcdefghijklmnopqrstuvwxyz") + "/leaf"
    assert f"/mnt/{leaf}\n" == mounted.result.passed("deep-find")
    assert "bottom\n" == (mounted.root / leaf).read_text()


def test_renamed_files_are_where_they_were_moved(mounted: Mounted) -> None:
    for section in ("rename", "rename-folder", "rename-across"):
        mounted.result.passed(section)
    assert "newer\n" == mounted.result.passed("rename-over")
    assert not (mounted.root / "made").exists()
    assert "a leaf\n" == (mounted.root / "a/b/leaf").read_text()
    assert [] == os.listdir(mounted.root / "moved")


def test_symbolic_links_hold_their_target(mounted: Mounted) -> None:
    assert "renamed\nmade in the guest\n" == mounted.result.passed("symlink")
    assert "renamed" == os.readlink(mounted.root / "pointer")
    assert "No such file or directory" in mounted.failed("dangling")


def test_hard_links_count(mounted: Mounted) -> None:
    assert "2\n" == mounted.result.passed("link")
    assert "1\n" == mounted.result.passed("unlink")


def test_attributes_change_on_the_host(mounted: Mounted) -> None:
    assert "640\n" == mounted.result.passed("chmod")
    assert "12:34\n" == mounted.result.passed("chown")
    assert "981173106\n" == mounted.result.passed("touch")
    assert "made6\n" == mounted.result.passed("truncate")
    changed = (mounted.root / "renamed").stat()
    assert (0o640, 12, 34, 6) == (
        stat.S_IMODE(changed.st_mode),
        changed.st_uid,
        changed.st_gid,
        changed.st_size,
    )
    assert 981173106 == changed.st_mtime


def test_an_unlinked_file_stays_open(mounted: Mounted) -> None:
    assert "still here\n" == mounted.result.passed("unlinked-while-open")
    assert not (mounted.root / "ghost").exists()


def test_fsync_reaches_the_host(mounted: Mounted) -> None:
    mounted.result.passed("fsync")
    assert "durable" == (mounted.root / "synced").read_text()


def test_a_fifo_is_made(mounted: Mounted) -> None:
    assert "fifo\n" == mounted.result.passed("fifo")
    assert stat.S_ISFIFO((mounted.root / "fifo").stat().st_mode)


def test_odd_names_come_through(mounted: Mounted) -> None:
    mounted.result.passed("odd-names")
    # The guest's ls prints "?" for what it cannot show; the host reads back what was made.
    assert {"a b", "grüße", "it's", "-dash", LONG} == set(os.listdir(mounted.root / "odd-names"))


def test_a_full_folder_is_removed_with_its_files(mounted: Mounted) -> None:
    mounted.result.passed("remove-tree")
    assert not (mounted.root / "doomed").exists()


# Refusals.


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("absent", "No such file or directory"),
        ("mkdir-again", "File exists"),
        ("rmdir-full", "Directory not empty"),
        ("not-a-folder", "Not a directory"),
        ("name-too-long", "File name too long"),
    ],
)
def test_a_refusal_has_its_own_error(mounted: Mounted, section: str, message: str) -> None:
    assert message in mounted.failed(section)


def test_nothing_outside_the_root_is_reached(mounted: Mounted) -> None:
    # The guest resolves both paths itself and finds its own files or none: never the host's.
    assert "hello\n" == mounted.result.passed("escape")
    assert "No such file or directory" in mounted.failed("escape-link")


# 9P2000.L alone.


@pytest.mark.parametrize("mounted", LINUX_ONLY, indirect=True)
def test_extended_attributes_are_the_hosts(mounted: Mounted) -> None:
    assert "user.colour\nyellow\n" == mounted.result.passed("xattr")
    assert "from the host\n" == mounted.result.passed("xattr-host")
    assert "No data available" in mounted.failed("xattr-removed")
    assert [] == os.listxattr(mounted.root / "renamed")


@pytest.mark.parametrize("mounted", LINUX_ONLY, indirect=True)
def test_locks_are_the_hosts(mounted: Mounted) -> None:
    mounted.result.passed("lock-free")
    assert 3 == mounted.result["lock-in-guest"].status
    assert 3 == mounted.result["lock-held-by-host"].status


# Bulk and interruption.


def test_ten_megabytes_come_through_both_ways(mounted: Mounted) -> None:
    mounted.result.passed("copy-in")
    mounted.result.passed("copy-out")
    expected = hashlib.sha256(BLOB).hexdigest()
    assert expected == mounted.result.passed("hash").split()[0]
    assert expected == mounted.result.passed("remote-hash").split()[0]
    assert expected == hashlib.sha256((mounted.root / "blob-copy").read_bytes()).hexdigest()


def test_the_page_cache_reads_and_writes_back(mounted: Mounted) -> None:
    for section in ("cached-mount", "cached-list", "cached-write", "cached-umount"):
        mounted.result.passed(section)
    assert hashlib.sha256(BLOB).hexdigest() == mounted.result.passed("cached-read").split()[0]
    assert (mounted.root / "blob-cached").read_bytes() == BLOB


def test_the_smallest_messages_carry_everything(mounted: Mounted) -> None:
    for section in ("small-mount", "small-write", "small-read", "small-umount"):
        mounted.result.passed(section)
    assert list(MANY) == sorted(mounted.result.passed("small-list").split())
    assert (mounted.root / "blob-small").read_bytes() == BLOB[:1_000_000]


def test_each_user_of_the_guest_may_attach_alone(mounted: Mounted) -> None:
    for section in ("users-mount", "users-write", "users-umount"):
        mounted.result.passed(section)
    assert "by root\n" == (mounted.root / "by-root").read_text()


def test_an_interrupted_read_ends_and_is_flushed(mounted: Mounted) -> None:
    assert 128 + 2 == mounted.result["interrupt"].status
    assert "hello\n" == mounted.result.passed("after-interrupt")
    (flush,) = mounted.tap.flushes()
    assert far_read(flush.request)
    assert (False, True) == (flush.request_answered, flush.flush_answered)


def test_the_kernel_has_nothing_to_complain_of(mounted: Mounted) -> None:
    assert [] == mounted.result.complaints()
