"""A manifest may ask that its files have good layouts: then what has not does not boot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skep.__main__ import run
from skep.boot.classes import Class
from tests.boot.elves import build, x86_kernel, x86_root

INVALID, USAGE = Class.LAYOUT_INVALID.row.status, 2


def manifest(folder: Path, layout: str) -> str:
    path = folder / "boot.toml"
    path.write_text(
        'name = "shapes"\narch = "x86_64"\nkernel = "kernel"\nmodules = ["root"]\n'
        f'[[milestone]]\nname = "ready"\nline = "^ready"\n{layout}'
    )
    (folder / "kernel").write_bytes(build(x86_kernel(32)))
    (folder / "root").write_bytes(build(x86_root()))
    return str(path)


def test_what_breaks_a_rule_does_not_boot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert INVALID == run(["boot", "run", manifest(tmp_path, "[layout]\n"), "--json"])
    said = capsys.readouterr()
    assert "layout_invalid: root: E R6 segment 4 (TLS): the loader clears 0x402010-0x402028" in said.err
    report = json.loads(said.out)
    assert "layout_invalid" == report["verdict"]["cause"]
    assert [] == report["wall"]
    assert 1 == len(report["verdict"]["evidence"])


def test_a_rule_that_is_none_cannot_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert USAGE == run(["boot", "run", manifest(tmp_path, '[layout]\nallow = ["Z1"]\n')])
    assert "layout: allow 'Z1': expected one of E1 " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_guest_whose_files_are_good_boots(images: Path, tmp_path: Path, arch: str) -> None:
    shutil.copytree(images / arch, tmp_path / arch)
    kernel = 'kernel = "kernel"\nmodules = ["rootserver"]' if arch == "x86_64" else 'kernel = "image"'
    path = tmp_path / arch / "boot.toml"
    path.write_text(
        f'name = "guest"\narch = "{arch}"\n{kernel}\ncmdline = "do=ready"\n[layout]\n'
        '[[milestone]]\nname = "ready"\nline = "^ROOT: ready"\n'
    )
    assert 0 == run(["boot", "run", str(path)])
    # Four bytes of the kernel's, or the elfloader's, entry in the header are others.
    file = tmp_path / arch / kernel.split('"')[1]
    data = bytearray(file.read_bytes())
    data[24:28] = b"\xff\xff\xff\x7f"
    file.write_bytes(data)
    assert INVALID == run(["boot", "run", str(path)])
