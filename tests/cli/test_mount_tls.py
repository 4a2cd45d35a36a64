"""A hive mounted over TLS: papers renewed under an open file, and under whoever works in there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.daemons import daemon, wait_for
from tests.networked import Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end


def sessions(hive: Networked, node: str) -> list[str]:
    """The sessions of a node's principal."""
    ids = hive.ask("ls", "/sessions").split()
    return [id for id in ids if hive.skep("cat", f"/sessions/{id}/principal").stdout.endswith(f"/{node}\n")]


def test_a_mount_goes_over_to_new_papers_and_what_is_open_stays_open(tmp_path: Path) -> None:
    place = tmp_path / "n"
    place.mkdir()
    with networked(tmp_path, "--certificate-ttl", "10s") as hive:
        ann = hive.enroll("operator", "ann")
        with daemon("mounted", "mount", hive.tls, str(place), env=ann.env) as mount:
            opened = os.open(place / "version", os.O_RDONLY)
            try:
                first = sessions(hive, "ann")
                wait_for(lambda: len(sessions(hive, "ann")) == 2, "the session that takes over")
                assert os.pread(opened, 100, 0).startswith(b"skep ")
                assert "online\n" == (place / "state").read_text()
                wait_for(lambda: first[0] not in sessions(hive, "ann"), "the first certificate's end")
            finally:
                os.close(opened)
            until = time.monotonic() + 8

            def goes_on() -> bool:
                assert "online\n" == (place / "state").read_text()
                (place / "jobs" / "ctl").write_text("submit topic=sha256 input=mounted\n")
                return time.monotonic() > until

            wait_for(goes_on, "the next session takes over as well")
            assert 0 == mount.end(signal.SIGTERM)
            assert mount.process.stdout is not None
    assert not os.path.ismount(place)


def test_a_revoked_mount_is_cut_off(tmp_path: Path) -> None:
    place = tmp_path / "n"
    place.mkdir()
    with networked(tmp_path) as hive:
        eve = hive.enroll("observer", "eve")
        with daemon("mounted", "mount", hive.tls, str(place), env=eve.env):
            assert "online\n" == (place / "state").read_text()
            hive.ask("revoke", "--node", "eve")
            with pytest.raises(OSError, match=r"Input/output error|Stale"):
                (place / "state").read_text()


def test_the_kernels_9p_speaks_no_tls(tmp_path: Path) -> None:
    with networked(tmp_path) as hive:
        eve = hive.enroll("observer", "eve")
        done = eve.skep("mount", "--way", "kernel", hive.tls, str(tmp_path))
    assert 1 == done.returncode
    assert "the kernel's 9p does not speak TLS" in done.stderr
