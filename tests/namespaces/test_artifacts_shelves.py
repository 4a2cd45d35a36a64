"""What every shelf does, whatever it is made of."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from skep.fs.chan import settle
from skep.fs.errors import E, FsError
from skep.namespaces.artifacts.chunks import CHUNK
from skep.namespaces.artifacts.objects import AHEAD, Objects
from skep.namespaces.artifacts.shelf import Directory, Kept, Shelf, shelf_at
from skep.namespaces.artifacts.store import KEPT_NS, Put, Store, place
from skep.trace.clock import SECOND, SystemClock

Make = Callable[[Path], Shelf]
SHELVES: dict[str, Make] = {
    "directory": Directory,
    "memory": lambda root: Objects(MemoryStore()),
    "local": lambda root: Objects(LocalStore(root / "objects", mkdir=True)),
}


@pytest.fixture(params=SHELVES)
def make(request: pytest.FixtureRequest) -> Make:
    return SHELVES[request.param]


async def check_shelf(shelf: Shelf, file: Path) -> None:
    name, other = "sha256/ab/" + "ab" * 32, "chunks/ab/" + "ab" * 32
    for lost in (shelf.open(name), shelf.since_ns(name)):
        with pytest.raises(FileNotFoundError):
            await lost
    for data in (b"old", b"", b"hello"):
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        await shelf.take(name, file)
        source = await shelf.open(name)
        assert data == await settle(source.read(0, 100))
        source.close()
    file.unlink()
    source = await shelf.open(name)
    assert [b"ell", b"o", b"", b""] == [
        await settle(source.read(*at)) for at in ((1, 3), (4, 100), (5, 1), (50, 1))
    ]
    source.close()
    await shelf.write(other, b"few")
    await shelf.write(other, b"fewer")
    kept: list[Kept] = [each async for each in shelf.kept()]
    assert {name, other} == {each.name for each in kept}
    for each in kept:
        assert abs(SystemClock().now_ns() - each.since_ns) < 60 * SECOND
        assert each.since_ns == await shelf.since_ns(each.name)
        await shelf.remove(each.name)
    assert [] == [each async for each in shelf.kept()]


def test_a_shelf_keeps_gives_and_forgets(make: Make, tmp_path: Path) -> None:
    asyncio.run(check_shelf(make(tmp_path), tmp_path / "file"))


def test_a_store_on_any_shelf_seals_reads_and_sweeps(make: Make, tmp_path: Path) -> None:
    data = os.urandom(AHEAD + 3 * CHUNK + 1)

    async def run() -> None:
        store = Store(tmp_path, make(tmp_path))
        file = store.create("ann", "f")
        file.write(0, memoryview(data))
        store.close(file)
        with store.sealing("ann", "f") as file:
            put = await store.put(file)
            store.settle(file)
        assert Put(sha256(data).hexdigest(), len(data), put.chunks) == put
        reading = store.reading(put)
        got = b""
        while piece := await settle(reading.read(len(got), 100_000)):
            got += piece
        assert data == got
        assert data[5:9] == await settle(reading.read(5, 4))
        reading.close()
        now_ns = SystemClock().now_ns()
        assert [] == await store.sweep(now_ns, lambda digest: False)
        assert [] == await store.sweep(now_ns + 2 * KEPT_NS, lambda digest: True)
        names = {place(folder, put.sha256) for folder in ("sha256", "chunks")}
        assert names == set(await store.sweep(now_ns + 2 * KEPT_NS, lambda digest: False))
        with pytest.raises(FsError, match="the bytes are gone"):
            await settle(store.reading(put).read(0, 1))

    asyncio.run(run())


def test_an_object_that_is_not_what_was_sealed_is_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        shelf = Objects(MemoryStore())
        store = Store(tmp_path, shelf)
        put = Put(sha256(b"hello").hexdigest(), 5)
        await shelf.write(place("sha256", put.sha256), b"jello")
        with pytest.raises(FsError) as caught:
            await settle(store.reading(put).read(0, 5))
        assert E.TAMPER is caught.value.kind

    asyncio.run(run())


def test_a_url_names_the_shelf_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    assert isinstance(shelf_at("", tmp_path), Directory)
    assert isinstance(shelf_at("memory:///", tmp_path), Objects)
    for url in ("nonsense", "gopher://x/y"):
        with pytest.raises(ValueError, match=f"artifacts {url}: "):
            shelf_at(url, tmp_path)


def test_without_obstore_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "skep.namespaces.artifacts.objects")
    with pytest.raises(ValueError, match=r"pip install 'skep\[objects\]'"):
        shelf_at("s3://bucket", tmp_path)
