"""An image's archive: whatever the bytes are, it is one within bounds or told to be none."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.boot.archive import BLOCK, MEMBERS_MAX, SIZE_MAX, ArchiveError, Index, Member, unpack

GOOD = {"boot.toml": b"name", "kernel": b"k" * 700, "a/b/root": b""}


def tar(files: dict[str, bytes], how: int = tarfile.USTAR_FORMAT) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=how) as made:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            made.addfile(header, io.BytesIO(data))
    return held.getvalue()


def index(data: bytes) -> list[Member]:
    found = Index(len(data))
    while found.at is not None:
        found.feed(data[found.at : found.at + BLOCK])
    return found.members


def header(size: bytes) -> bytes:
    """Of boot.toml, with this size field and a checksum that fits."""
    raw = bytearray(tar({"boot.toml": b""})[:BLOCK])
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_what_was_packed_is_unpacked(tmp_path: Path, how: int) -> None:
    (tmp_path / "image").write_bytes(tar(GOOD, how))
    assert tmp_path / "to" / "boot.toml" == unpack(tmp_path / "image", tmp_path / "to")
    assert GOOD == {
        str(path.relative_to(tmp_path / "to")): path.read_bytes()
        for path in (tmp_path / "to").rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "size",
    [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x40" + b"\0" * 7, b"\xff" * 12, b"\xff" * 11 + b"\xf0"],
    ids=["8 GiB", "2**62", "-1", "-16"],
)
def test_a_size_that_no_archive_has_is_refused(size: bytes) -> None:
    with pytest.raises(ArchiveError):
        index(header(size) + bytes(2 * BLOCK))


def test_an_archive_has_only_so_many_files_and_bytes() -> None:
    many = {"boot.toml": b""} | {f"{n}": b"" for n in range(MEMBERS_MAX)}
    with pytest.raises(ArchiveError, match="more than"):
        index(tar(many))
    with pytest.raises(ArchiveError, match="at most"):
        Index(SIZE_MAX + 1)
    with pytest.raises(ArchiveError, match="deep"):
        index(tar({"boot.toml": b"", "a/" * 9 + "b": b""}))


@given(st.binary(max_size=4 * BLOCK))
def test_any_bytes_are_an_archive_within_bounds_or_none(data: bytes) -> None:
    whole(data)


@given(st.data())
def test_an_archive_with_other_bytes_is_one_within_bounds_or_none(data: st.DataObject) -> None:
    raw = bytearray(tar(GOOD))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    whole(bytes(raw))


def whole(data: bytes) -> None:
    try:
        members = index(data)
    except ArchiveError:
        return
    assert members
    assert len(members) <= MEMBERS_MAX
    for member in members:
        assert 0 < member.offset <= member.offset + member.size <= len(data)
        assert ".." not in member.name.split("/")
        assert not member.name.startswith("/")
