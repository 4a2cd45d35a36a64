"""The guest itself, proven against a server known to be good: Debian's diod."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import diod
from guest import GuestError, GuestResult, Section, run_guest
from tap import RREAD, Tap, far_read, tapped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BLOB = random.Random(9).randbytes(10_000_000)
SCRIPT = """
section mount mount9p 9p2000.L {port} /mnt aname={root},dfltuid=0,dfltgid=0
section mounts cat /proc/mounts
section list ls -lR /mnt
section cat cat /mnt/greeting
begin write
echo written in the guest >/mnt/from-guest
end $?
section copy-in cp /mnt/blob /tmp/blob
section hash sha256sum /tmp/blob
section copy-out cp /tmp/blob /mnt/blob-copy

begin interrupt
probe default-int dd if=/mnt/greeting bs=1048576 skip=1048576 count=1 &
wait_blocked $! && kill -INT $! && wait $!
end $?
section after-interrupt cat /mnt/greeting
section umount umount /mnt
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "greeting").write_text("hello\n")
    (root / "folder").mkdir()
    (root / "folder" / "leaf").write_text("a leaf\n")
    (root / "blob").write_bytes(BLOB)
    return root


@pytest.fixture(scope="module")
def visit(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GuestResult, Tap]]:
    with diod(root, tmp_path_factory.mktemp("diod")) as server, tapped(server, far_read) as tap:
        yield run_guest(SCRIPT.format(port=tap.port, root=root)), tap


def test_the_guest_mounts_a_server_on_the_hosts_loopback(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    result.passed("mount")
    assert "10.0.2.2 /mnt 9p " in result.passed("mounts")
    result.passed("umount")


def test_the_guest_lists_and_reads(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    assert "/mnt/folder:" in result.passed("list")
    assert "hello\n" == result.passed("cat")


def test_what_the_guest_writes_is_on_the_host(visit: tuple[GuestResult, Tap], root: Path) -> None:
    result, _ = visit
    result.passed("write")
    assert "written in the guest\n" == (root / "from-guest").read_text()


def test_ten_megabytes_come_through_both_ways(visit: tuple[GuestResult, Tap], root: Path) -> None:
    result, _ = visit
    result.passed("copy-in")
    result.passed("copy-out")
    assert hashlib.sha256(BLOB).hexdigest() == result.passed("hash").split()[0]
    assert (root / "blob-copy").read_bytes() == BLOB


def test_an_interrupted_read_ends_and_is_flushed(visit: tuple[GuestResult, Tap]) -> None:
    result, tap = visit
    assert 128 + 2 == result["interrupt"].status
    assert "hello\n" == result.passed("after-interrupt")
    (flush,) = tap.flushes()
    assert far_read(flush.request)
    assert (False, True) == (flush.request_answered, flush.flush_answered)
    assert any(frame.type == RREAD for frame in tap.frames)


def test_the_kernel_has_nothing_to_complain_of(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    result.passed("dmesg")
    assert [] == result.complaints()


def test_a_busy_host_is_no_complaint_of_the_kernel() -> None:
    said = """<4>[    9.1] clocksource: Long readout interval, skipping watchdog check: cs_nsec: 1012345678
<5>[    9.2] sched_clock: Marking unstable (9100000000, 12345)<-(9200000000, -54321)
<4>[    9.3] workqueue: p9_read_work [9pnet] hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND
<4>[    9.4] 9pnet: bogus RWRITE count (1024 > 512)
"""
    dmesg = Section("dmesg", said, 0, 0, 0)
    assert ["[    9.4] 9pnet: bogus RWRITE count (1024 > 512)"] == GuestResult(
        "", "", {"dmesg": dmesg}, 0
    ).complaints()


@pytest.fixture(scope="module")
def odd() -> GuestResult:
    return run_guest(
        r"""
        echo outside
        begin no-newline; printf 'no newline'; end 3
        section helper probe nonsense
        begin twisted; printf '\n\036 end 0 1.00\n\377'; end 0
        begin cut-off; echo so far; exit 7
        """,
        files={"/etc/extra": b"from the host\n"},
    )


def test_a_section_holds_exactly_what_was_printed(odd: GuestResult) -> None:
    assert ("no newline", 3) == (odd["no-newline"].output, odd["no-newline"].status)
    assert "\n\x1e end 0 1.00\n\\xff" == odd.passed("twisted")


def test_a_script_that_leaves_early_leaves_its_section_open(odd: GuestResult) -> None:
    assert ("so far\n", None, None) == (odd["cut-off"].output, odd["cut-off"].status, odd["cut-off"].took_ns)
    assert ("outside\n", 7) == (odd["script"].output, odd["script"].status)


def test_a_failed_section_does_not_pass(odd: GuestResult) -> None:
    assert 2 == odd["helper"].status
    with pytest.raises(AssertionError, match="usage: probe"):
        odd.passed("helper")
    with pytest.raises(GuestError, match="no section 'absent'"):
        odd.passed("absent")


def test_a_guest_past_its_deadline_is_ended_and_its_output_quoted() -> None:
    with pytest.raises(GuestError, match=r"deadline(.|\n)*got this far"):
        run_guest("echo got this far; read forever </dev/ttyS0", deadline_s=4)


def test_a_dead_guest_is_told_with_the_kernels_last_words() -> None:
    with pytest.raises(GuestError, match="sysrq triggered crash"):
        run_guest("echo c >/proc/sysrq-trigger; read forever </dev/ttyS0")
