"""A running hive, mounted by the Linux kernel's own 9p client, in both of its dialects."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import hive
from guest import GuestResult, run_guest
from tap import TREAD, Tap, tapped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = (Path(__file__).parent / "hive.sh").read_text()
BLOB = random.Random(9).randbytes(10_000_000)
DIGEST = hashlib.sha256(BLOB).hexdigest()


@pytest.fixture(scope="module", params=["9p2000.L", "9p2000.u"])
def visit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GuestResult, Tap]]:
    with hive(tmp_path_factory.mktemp("hive")) as server, tapped(server) as tap:
        prelude = f"PORT={tap.port} VERSION={request.param} TOPIC=sha256 IDLE_TOPIC=idle\n"
        yield run_guest(prelude + SCRIPT, files={"/root/blob": BLOB}), tap


def test_the_tree_is_listed_and_read(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    result.passed("mount")
    assert "/mnt/jobs:" in result.passed("list")
    assert "submit" in result.passed("usage")
    assert "No such file or directory" in result["absent"].output
    result.passed("umount")


def test_a_wrong_line_is_refused_on_the_write(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    assert 1 == result["refused"].status
    assert "Invalid argument" in result["refused"].output


def test_ten_megabytes_come_through_both_ways(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    result.passed("stage")
    result.passed("seal")
    assert DIGEST == result.passed("fetch").split()[0]


def test_a_job_is_submitted_and_waited_for(visit: tuple[GuestResult, Tap]) -> None:
    result, _ = visit
    for section in ("submit", "id", "wait"):
        result.passed(section)
    assert DIGEST in result.passed("result")


def test_an_interrupted_wait_ends_at_once_and_is_flushed(visit: tuple[GuestResult, Tap]) -> None:
    result, tap = visit
    assert 128 + 2 == result["interrupt"].status
    assert "queued\n" == result.passed("still-queued")
    (flush,) = tap.flushes()
    assert TREAD == flush.request.type
    assert (False, True) == (flush.request_answered, flush.flush_answered)


def test_a_blocked_wait_is_woken(visit: tuple[GuestResult, Tap]) -> None:
    assert "cancelled\n" == visit[0].passed("cancel-while-waiting")


def test_the_kernel_has_nothing_to_complain_of(visit: tuple[GuestResult, Tap]) -> None:
    assert [] == visit[0].complaints()
