"""A mount of somebody else's server, Debian's diod: it has no Trenameat and no Tunlinkat, and takes up two
requests on one fid at the same time."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.mounted import Mounted, is_mounted, wait_until


class Diod(Mounted):
    """``host`` is the exported directory, and the root of the mount."""

    def serve(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp:127.0.0.1:{port}"
        command = ["/usr/sbin/diod", "-f", "-n", "-l", f"127.0.0.1:{port}", "-e", str(self.host)]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)


@pytest.fixture
def diod(tmp_path: Path) -> Iterator[Diod]:
    made = Diod(tmp_path)
    try:
        made.serve()
        made.start(aname=str(made.host))
        yield made
    finally:
        made.stop()
    assert not is_mounted(made.place)


STORY = """
echo one > f; cat f; echo two >> f; cat f
mkdir d; mv f d/g; cat d/g; ln d/g h; stat -c %h h; rm h; ls
mv d/g d/f; ls d; rmdir d 2> err || echo full; rm d/f err; rmdir d; ls
head -c 1000000 /dev/zero > zeros; stat -c %s zeros; cp zeros copy; cmp zeros copy; rm zeros copy
for i in 1 2 3 4 5 6 7 8 9; do echo $i > n$i; done; cat n*; ls -l | wc -l; rm n*; ls
"""


@pytest.mark.slow
def test_names_change_and_files_are_copied(diod: Diod, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    there = subprocess.run(["sh", "-c", STORY], cwd=beside, capture_output=True, text=True).stdout
    assert there == diod.sh(STORY)
