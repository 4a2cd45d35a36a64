"""docs/KERNELS.md: its example of a kernel, written where it says and typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skep.native.kernels.catalogue import HERE
from tests.pages import DOCS, check_page

PACKAGE = HERE.parents[1]
# Digests and times; what was skipped, where there is no compiler of NVIDIA's.
VOLATILE = re.compile(r"\b[0-9a-f]{64}\b|\b\d+\.\d+ ?m?s\b|[.s]{4} +\[100%\]|\d passed, \d skipped")
FILES = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\*\*1\. The row\*\*.*?^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)


def copied(to: Path) -> None:
    """The package, as links but for the kernels, and the tests' way to NVRTC."""
    kernels = to / "skep" / "native" / "kernels"
    kernels.mkdir(parents=True)
    for here, there in ((PACKAGE, kernels.parents[1]), (PACKAGE / "native", kernels.parent)):
        for path in here.iterdir():
            if path.name not in ("native", "kernels", "__pycache__"):
                (there / path.name).symlink_to(path)
    for path in HERE.iterdir():
        if path.is_file():
            (kernels / path.name).write_bytes(path.read_bytes())
    (to / "tests" / "native").mkdir(parents=True)
    (to / "tests" / "native" / "nvrtc.py").symlink_to(Path(__file__).with_name("nvrtc.py"))


@pytest.mark.slow
def test_a_kernel_is_written_as_the_page_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "KERNELS.md").read_text()
    copied(tmp_path)
    row, files = ROW.search(page), dict(FILES.findall(page))
    assert row is not None
    assert ["skep/native/kernels/clamp.py", "skep/native/kernels/clamp.cu", "tests/native/test_clamp.py"] == [
        *files
    ]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    catalogue = tmp_path / "skep" / "native" / "kernels" / "catalogue.py"
    before, end, after = catalogue.read_text().partition(")  # fmt: skip\nKERNELS:")
    assert end
    catalogue.write_text(before + row[1] + end + after)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SKEP_NO_CUDA", "1")
    check_page("KERNELS.md", "tests/native/test_kernels_page.py", tmp_path, VOLATILE)
