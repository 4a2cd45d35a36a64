from __future__ import annotations

from pathlib import Path

import pytest

from skep.fs.errors import FsError
from skep.namespaces.jobs.logs import LOG_MAX, Logs


def test_a_log_grows_and_is_read_at_any_offset(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    assert (0, b"", None) == (logs.size("j", "log"), logs.read("j", "log", 0, 9), logs.mtime_ns("j", "log"))
    logs.append("j", "log", b"one\n")
    logs.append("j", "log", b"two\n")
    assert (8, b"two\n") == (logs.size("j", "log"), logs.read("j", "log", 4, 9))
    assert b"" == logs.read("j", "out", 0, 9)


def test_what_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.append("j", "log", bytes(LOG_MAX - 1))
    with pytest.raises(FsError, match=f"too large: max={LOG_MAX}"):
        logs.append("j", "log", b"12")
    logs.append("j", "log", b"1")
    assert LOG_MAX == logs.size("j", "log")
