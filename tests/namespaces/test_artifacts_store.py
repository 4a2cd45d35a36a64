from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from pathlib import Path

import pytest

from skep.fs.errors import E, FsError
from skep.namespaces.artifacts.store import CHUNK, KEPT_NS, STAGED_MAX, Store
from skep.trace.clock import SystemClock

NOW = SystemClock().now_ns


def stage(store: Store, name: str, data: bytes, owner: str = "ann") -> None:
    file = store.create(owner, name)
    file.write(0, memoryview(data))
    store.close(file)


def seal(store: Store, name: str, owner: str = "ann", settle: bool = True) -> tuple[str, int]:
    with store.sealing(owner, name) as file:
        sealed = asyncio.run(store.put(file))
        if settle:
            store.settle(file)
    return sealed


def content(store: Store, digest: str) -> bytes:
    return store.path(digest).read_bytes()


def test_a_sealed_file_is_found_by_its_hash_and_not_staged_any_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    assert ["f"] == store.staged("ann")
    digest, size = seal(store, "f")
    assert (sha256(b"hello").hexdigest(), 5) == (digest, size)
    assert b"hello" == content(store, digest)
    assert [] == store.staged("ann")
    assert 0o400 == store.path(digest).stat().st_mode & 0o777


def test_a_file_of_several_chunks_has_the_hash_of_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.create("ann", "f")
    file.truncate(2 * CHUNK + 1)
    file.write(2 * CHUNK, memoryview(b"x"))
    store.close(file)
    assert (sha256(bytes(2 * CHUNK) + b"x").hexdigest(), 2 * CHUNK + 1) == seal(store, "f")


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
        digest, _ = asyncio.run(store.put(file))
    # The ledger refused it: the bytes under the hash stay what the hash says.
    with pytest.raises(FsError, match="f is sealed"):
        other.write(0, memoryview(b"j"))
    store.close(other)
    with pytest.raises(FsError, match="f is sealed"):
        Store(tmp_path).open("ann", "f").truncate(0)
    assert digest == seal(store, "f")[0]
    assert b"hello" == content(store, digest)


def test_the_same_bytes_are_kept_once_and_the_fresh_copy_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage(store, "f", b"hello")
    digest, _ = seal(store, "f")
    os.chmod(store.path(digest), 0o600)
    store.path(digest).write_bytes(b"rotten")
    assert not asyncio.run(store.verify(digest))
    stage(store, "g", b"hello", "bob")
    assert digest == seal(store, "g", "bob")[0]
    assert asyncio.run(store.verify(digest))
    assert [digest] == [path.name for path in tmp_path.glob("sha256/*/*")]


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


def test_what_nobody_sealed_in_a_day_is_swept_and_what_the_ledger_knows_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("known", "orphan", "staged"):
        stage(store, name, name.encode())
    known, orphan = seal(store, "known")[0], seal(store, "orphan")[0]
    held = store.create("ann", "open")
    assert [] == store.sweep(NOW(), {known}.__contains__)
    gone = store.sweep(NOW() + 2 * KEPT_NS, {known}.__contains__)
    assert {"staged", orphan} == {path.name for path in gone}
    assert b"known" == content(store, known)
    assert ["open"] == store.staged("ann")
    store.close(held)
