from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.chan import settle
from skep.fs.errors import E, FsError
from skep.namespaces.artifacts.chunks import CHUNK, STEP
from skep.namespaces.artifacts.shelf import Directory, Kept
from skep.namespaces.artifacts.store import KEPT_NS, STAGED_MAX, Put, Store, place
from skep.trace.clock import SystemClock

NOW = SystemClock().now_ns


def stage(store: Store, name: str, data: bytes, owner: str = "ann") -> None:
    file = store.create(owner, name)
    file.write(0, memoryview(data))
    store.close(file)


def seal(store: Store, name: str, owner: str = "ann", settled: bool = True) -> Put:
    with store.sealing(owner, name) as file:
        sealed = asyncio.run(store.put(file))
        if settled:
            store.settle(file)
    return sealed


def path_of(store: Store, put: Put) -> Path:
    return store.root / place("sha256", put.sha256)


def manifest_of(store: Store, put: Put) -> Path:
    return store.root / place("chunks", put.sha256)


async def read(store: Store, put: Put, offset: int, count: int) -> bytes:
    reading = store.reading(put)
    try:
        return await settle(reading.read(offset, count))
    finally:
        reading.close()


def content(store: Store, put: Put, offset: int = 0, count: int = 1 << 30) -> bytes:
    return asyncio.run(read(store, put, offset, count))


def check_tampered(store: Store, put: Put, offset: int = 0, count: int = 1 << 30) -> None:
    with pytest.raises(FsError, match=f"integrity: sha256:{put.sha256}") as caught:
        content(store, put, offset, count)
    assert E.TAMPER is caught.value.kind


def flip(path: Path, at: int) -> None:
    """Change a bit of the file, whatever its mode says."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_sealed_file_is_found_by_its_hash_and_not_staged_any_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    assert ["f"] == store.staged("ann")
    put = seal(store, "f")
    assert Put(sha256(b"hello").hexdigest(), 5) == put
    assert b"hello" == content(store, put)
    assert [] == store.staged("ann")
    assert 0o400 == path_of(store, put).stat().st_mode & 0o777


def test_a_file_of_several_chunks_has_the_hash_of_all_and_one_of_each(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.create("ann", "f")
    file.truncate(STEP + 1)
    file.write(STEP, memoryview(b"x"))
    store.close(file)
    put = seal(store, "f")
    assert (sha256(bytes(STEP) + b"x").hexdigest(), STEP + 1) == (put.sha256, put.size)
    manifest = manifest_of(store, put).read_bytes()
    assert sha256(manifest).hexdigest() == put.chunks
    zeros = sha256(bytes(CHUNK)).digest()
    assert CHUNK.to_bytes(4, "little") + zeros * (STEP // CHUNK) + sha256(b"x").digest() == manifest


@pytest.mark.slow
@given(
    st.integers(0, 3 * CHUNK + 1),
    st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, 2 * CHUNK)), max_size=8),
)
@settings(max_examples=30, deadline=None)
def test_any_reads_give_what_was_written(size: int, reads: list[tuple[int, int]]) -> None:
    data = (b"0123456789abcde" * (size // 15 + 1))[:size]

    async def run(store: Store, put: Put) -> None:
        reading = store.reading(put)
        for offset, count in reads:
            assert data[offset : offset + count] == await settle(reading.read(offset, count))
        reading.close()

    with TemporaryDirectory() as directory:
        store = Store(Path(directory))
        stage(store, "f", data)
        asyncio.run(run(store, seal(store, "f")))


def test_a_flipped_bit_is_an_error_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", bytes(3 * CHUNK))
    put = seal(store, "f")
    flip(path_of(store, put), CHUNK + 7)
    assert bytes(CHUNK) == content(store, put, 0, CHUNK)
    assert bytes(CHUNK) == content(store, put, 2 * CHUNK)
    check_tampered(store, put, CHUNK, 1)
    check_tampered(store, put, 2 * CHUNK - 1, 10)
    check_tampered(store, put, CHUNK - 1, 2)


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_bytes_that_were_cut_off_or_are_gone_are_an_error(tmp_path: Path, size: int) -> None:
    store = Store(tmp_path)
    stage(store, "f", bytes(size))
    put = seal(store, "f")
    path_of(store, put).chmod(0o600)
    os.truncate(path_of(store, put), (size - 1) // CHUNK * CHUNK)
    check_tampered(store, put)
    path_of(store, put).unlink()
    check_tampered(store, put)


def test_a_manifest_that_is_lost_or_false_is_made_again_from_the_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", bytes(2 * CHUNK))
    put = seal(store, "f")
    was = manifest_of(store, put).read_bytes()
    for damage in (lambda path: flip(path, 5), Path.unlink, lambda path: path.write_bytes(was + b"x")):
        damage(manifest_of(store, put))
        assert bytes(2 * CHUNK) == content(store, put)
        assert was == manifest_of(store, put).read_bytes()


def test_a_false_manifest_does_not_excuse_false_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", bytes(2 * CHUNK))
    put = seal(store, "f")
    flip(path_of(store, put), 0)
    false = CHUNK.to_bytes(4, "little") + b"".join(
        sha256(path_of(store, put).read_bytes()[at : at + CHUNK]).digest() for at in (0, CHUNK)
    )
    manifest_of(store, put).write_bytes(false)
    check_tampered(store, put, CHUNK, 1)


def test_bytes_sealed_before_there_were_manifests_are_read_and_checked(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 5)
    digest = sha256(data).hexdigest()
    old = tmp_path / "sha256" / digest[:2] / digest
    old.parent.mkdir(parents=True)
    old.write_bytes(data)
    store, put = Store(tmp_path), Put(digest, len(data))
    assert data == content(store, put)
    flip(old, CHUNK)
    check_tampered(store, put, CHUNK, 1)
    check_tampered(Store(tmp_path), put, 0, 1)


def test_staged_files_are_their_writers_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    assert [] == store.staged("bob")
    with pytest.raises(FileNotFoundError):
        store.open("bob", "f")


def test_nothing_is_written_while_it_is_sealed_nor_after_it_was_linked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    other = store.open("ann", "f")
    with store.sealing("ann", "f") as file:
        with pytest.raises(FsError, match="f is being sealed"):
            other.write(0, memoryview(b"j"))
        with pytest.raises(FsError, match="f is being sealed"):
            store.remove("ann", "f")
        put = asyncio.run(store.put(file))
    # The ledger refused it: the bytes under the hash stay what the hash says.
    with pytest.raises(FsError, match="f is sealed"):
        other.write(0, memoryview(b"j"))
    store.close(other)
    with pytest.raises(FsError, match="f is sealed"):
        Store(tmp_path).open("ann", "f").truncate(1)
    assert put == seal(store, "f")
    assert b"hello" == content(store, put)


def test_what_a_crash_left_half_sealed_is_begun_anew_under_its_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    with store.sealing("ann", "f") as file:
        put = asyncio.run(store.put(file))
    store = Store(tmp_path)
    again = store.open("ann", "f")
    again.truncate(0)
    again.write(0, memoryview(b"other"))
    store.close(again)
    assert b"other" == content(store, seal(store, "f"))
    assert b"hello" == content(store, put)


def test_the_same_bytes_are_kept_once_and_the_fresh_copy_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    put = seal(store, "f")
    flip(path_of(store, put), 0)
    check_tampered(store, put)
    stage(store, "g", b"hello", "bob")
    assert put == seal(store, "g", "bob")
    assert b"hello" == content(store, put)
    assert [put.sha256] == [path.name for path in tmp_path.glob("sha256/*/*")]


def test_a_new_file_under_a_removed_name_is_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = store.create("ann", "f")
    store.remove("ann", "f")
    new = store.create("ann", "f")
    old.write(0, memoryview(b"old"))
    new.write(0, memoryview(b"new"))
    store.close(old)
    assert b"new" == store.open("ann", "f").read(0, 10)


def test_a_name_is_staged_once_and_names_have_a_limit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(STAGED_MAX):
        stage(store, f"f{n}", b"")
    with pytest.raises(FsError) as caught:
        store.create("ann", "f0")
    assert E.EXISTS is caught.value.kind
    with pytest.raises(FsError, match=f"quota exceeded: staged files have={STAGED_MAX} max={STAGED_MAX}"):
        store.create("ann", "more")


def sweep(store: Store, now_ns: int, *known: Put) -> list[str]:
    digests = {put.sha256 for put in known}
    return asyncio.run(store.sweep(now_ns, digests.__contains__))


def test_what_nobody_sealed_in_a_day_is_swept_and_what_the_ledger_knows_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("known", "orphan"):
        stage(store, name, name.encode() * CHUNK)
    stage(store, "staged", b"")
    known, orphan = seal(store, "known"), seal(store, "orphan")
    held = store.create("ann", "open")
    assert [] == sweep(store, NOW(), known)
    gone = sweep(store, NOW() + 2 * KEPT_NS, known)
    assert {"staged", place("sha256", orphan.sha256), place("chunks", orphan.sha256)} == set(gone)
    assert b"known" * CHUNK == content(store, known)
    assert manifest_of(store, known).exists()
    assert not manifest_of(store, orphan).exists()
    assert ["open"] == store.staged("ann")
    store.close(held)


class Stale(Directory):
    """A listing that was right long ago."""

    async def kept(self) -> AsyncIterator[Kept]:
        async for each in super().kept():
            yield each._replace(since_ns=0)


def test_what_is_sealed_again_while_it_is_swept_stays(tmp_path: Path) -> None:
    """The sweep has listed old bytes that nobody knows; they are sealed, and the ledger's word is to come."""
    store = Store(tmp_path, Stale(tmp_path))
    stage(store, "f", b"hello")
    put = seal(store, "f")
    assert [] == sweep(store, NOW())
    assert b"hello" == content(store, put)
    assert [place("sha256", put.sha256)] == sweep(store, NOW() + 2 * KEPT_NS)


CRASHES = ("staged", "put", "settled", "ended", "half swept")


@pytest.mark.parametrize("at", CRASHES)
def test_a_crash_between_any_steps_loses_nothing_and_leaves_nothing_for_ever(tmp_path: Path, at: str) -> None:
    """``known``: what the ledger says when it died; a day later all else is gone, and that is whole."""
    data = bytes(CHUNK + 1)
    store = Store(tmp_path)
    stage(store, "f", data)
    put = Put(sha256(data).hexdigest(), len(data))
    if at != "staged":
        put = seal(store, "f", settled=at != "put")
    known = [put] if at in ("put", "settled") else []
    if at == "half swept":  # of the two that the sweep takes
        path_of(store, put).unlink()
    again = Store(tmp_path)
    if at == "put":
        # The ledger has it, or has not: what is staged still can be sealed again.
        assert put == seal(again, "f", settled=False)
    sweep(again, NOW() + 2 * KEPT_NS, *known)
    assert [] == again.staged("ann")
    assert len(known) == len(list(tmp_path.glob("sha256/*/*"))) == len(list(tmp_path.glob("chunks/*/*")))
    for each in known:
        assert data == content(again, each)


def test_a_file_has_a_greatest_size(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.create("ann", "f")
    file.write(0, memoryview(b"12345"), 5)
    for refused in (
        lambda: file.write(3, memoryview(b"123"), 5),
        lambda: file.append(memoryview(b"6"), 5),
        lambda: file.truncate(6, 5),
    ):
        with pytest.raises(FsError, match="too large: max=5 bytes of one artifact"):
            refused()
    assert b"12345" == file.read(0, 10)
    store.close(file)
