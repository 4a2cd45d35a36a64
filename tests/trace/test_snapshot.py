"""The file of a snapshot: what is in it, how it comes to be there, what is no snapshot."""

from __future__ import annotations

import resource
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.checkpoint import parse_checkpoint
from skep.trace.note import NoteError, Signing, Vkey, sign_note
from skep.trace.snapshot import (
    FOLDER,
    Head,
    SnapshotError,
    listed,
    parse_head,
    read_note,
    read_snapshot,
    state_hash,
    write_snapshot,
)

KEY = Signing.of(Ed25519PrivateKey.from_private_bytes(bytes(32)))
ORIGIN = "h1/log/trace"
STATE = b"a state\n\n\xff" * 100


def head(size: int = 42, packed: bytes = STATE) -> Head:
    hashes = (sha256(bytes([n])).hexdigest() for n in (1, 2))
    return Head(ORIGIN, size, sha256(b"root").digest(), state_hash(packed), *hashes)


def written(directory: Path, size: int = 42, packed: bytes = STATE) -> Path:
    return write_snapshot(directory, sign_note(head(size, packed).text(), ORIGIN, [KEY]), packed)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = read_snapshot(path)
    assert (head(), STATE) == (found.head, found.packed)
    assert [Vkey(ORIGIN, KEY.public)] == found.note.signers([Vkey(ORIGIN, KEY.public)])
    assert sign_note(head().text(), ORIGIN, [KEY]) == read_note(path)
    assert 0o600 == path.stat().st_mode & 0o777


@given(st.integers(1, 10**18), st.binary(max_size=99))
def test_a_head_is_its_text(size: int, packed: bytes) -> None:
    assert head(size, packed) == parse_head(head(size, packed).text())


def test_a_head_cannot_be_taken_for_a_checkpoint() -> None:
    with pytest.raises(NoteError, match="size 'state snapshot'"):
        parse_checkpoint(head().text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state snapshot", "7"),
        ("size 42", "size 042"),
        ("size 42", "size 0"),
        ("=\n", "\n"),
        ("rules", "rule"),
    ],
)
def test_another_text_is_no_head(old: str, new: str) -> None:
    text = head().text()
    assert old in text
    with pytest.raises(SnapshotError, match="its note is not a snapshot's"):
        parse_head(text.replace(old, new, 1))


def test_the_newest_are_listed_first_and_the_oldest_removed(tmp_path: Path) -> None:
    for size in (9, 10, 200):
        written(tmp_path, size)
    (tmp_path / FOLDER / "notes.snapshot").touch()
    assert [200, 10] == [size for size, _ in listed(tmp_path)]
    assert [] == listed(tmp_path / "nowhere")


def test_what_was_left_half_written_is_removed(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / FOLDER / ".99.snapshot.new").write_bytes(b"half")
    assert [42] == [size for size, _ in listed(tmp_path)]
    written(tmp_path, 43)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert ["42.snapshot", "43.snapshot"] == names


def test_without_space_there_is_none_and_the_others_stay(tmp_path: Path) -> None:
    written(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            written(tmp_path, 43, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ["42.snapshot"] == [path.name for path in (tmp_path / FOLDER).iterdir()]


@pytest.mark.parametrize(
    "data", [b"", b"skep-snapshot/1 9\n", b"skep-snapshot/2 1\nx", b"skep-snapshot/1 0\n"]
)
def test_what_does_not_begin_as_one_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "1.snapshot").write_bytes(data)
    with pytest.raises(SnapshotError, match="does not begin as a snapshot does"):
        read_snapshot(tmp_path / "1.snapshot")


def test_one_that_is_gone_is_none(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="No such file"):
        read_snapshot(tmp_path / "1.snapshot")


def test_another_state_than_was_signed_is_none(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SnapshotError, match="not the one that was signed"):
        read_snapshot(path)
