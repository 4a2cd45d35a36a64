"""Other people's clients, diod's tools, p9fs, pyroute2, on a synthetic tree and an exported directory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import p9fs  # type: ignore[import-untyped]
import pytest
from py9p.py9p import RpcError  # type: ignore[import-untyped]
from pyroute2 import Plan9ClientSocket

from skep.fs.export import Export
from skep.fs.server import listen
from skep.fs.shapes import Memory

pytestmark = pytest.mark.slow

LONG = b"0123456789" * 50_000


class Served(NamedTuple):
    """Where both trees listen on loopback, and the exported directory."""

    tree: int
    export: int
    folder: Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Both trees, served from a thread of their own."""
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "long").write_bytes(LONG)
    (tmp_path / "link").symlink_to("file")
    ports: list[int] = []
    ready = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        tree = {"hello": "hello, world\n", "dir": {"a": "A\n", "b": "B\n"}, "memory": Memory(b"0123456789")}
        async with (
            listen(tree, "tcp:127.0.0.1:0") as one,
            listen(Export(tmp_path).root, "tcp:127.0.0.1:0") as two,
        ):
            ports.extend((one.address.port, two.address.port))
            stop.append((asyncio.get_running_loop(), asyncio.Event()))
            ready.set()
            await stop[0][1].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield Served(ports[0], ports[1], tmp_path)
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(10)


def diod(tool: str, port: int, *words: str) -> bytes:
    """The output of one of diod's clients, which must be content."""
    command = [tool, "-s", f"127.0.0.1:{port}", "-a", "/", *words]
    return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout


def test_diods_ls_lists(served: Served) -> None:
    assert {b"hello", b"dir", b"memory"} == set(diod("diodls", served.tree).split())
    assert {b"file", b"dir", b"link"} == set(diod("diodls", served.export).split())
    long = diod("diodls", served.export, "-l").decode().splitlines()
    assert any(line.startswith("-rw-r--r--") and " 5 " in line and line.endswith(" file") for line in long)


def test_diods_cat_reads(served: Served) -> None:
    assert b"hello, world\nA\n" == diod("diodcat", served.tree, "hello", "dir/a")
    assert LONG == diod("diodcat", served.export, "dir/long")
    assert LONG == diod("diodcat", served.export, "-m", "4096", "dir/long")


def test_diods_tools_say_what_is_not_there(served: Served) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        diod("diodcat", served.tree, "nothing")
    assert b"No such file or directory" in failed.value.stderr


VERSIONS = pytest.mark.parametrize("version", [version.value for version in p9fs.Version])


@VERSIONS
def test_p9fs_reads_what_is_served(served: Served, version: str) -> None:
    fs = p9fs.P9FileSystem("127.0.0.1", served.tree, "glenda", version=version)
    assert {"hello", "dir", "memory"} == {name.strip("/") for name in fs.ls("", detail=False)}
    with fs.open("memory", "rb") as file:
        assert b"0123456789" == file.read()
    assert "directory" == fs.info("dir")["type"]
    # In the other dialects it knows an absent file by a text that is not ours.
    with pytest.raises((p9fs.P9FileNotFound, RpcError)):
        fs.info("nothing")


@VERSIONS
def test_p9fs_works_in_an_exported_directory(served: Served, version: str) -> None:
    fs = p9fs.P9FileSystem("127.0.0.1", served.export, "glenda", version=version)
    with fs.open("dir/long", "rb") as file:
        assert LONG == file.read()
    with fs.open("new", "wb") as file:
        file.write(LONG)
    assert LONG == (served.folder / "new").read_bytes()
    assert len(LONG) == fs.info("new")["size"]
    fs.mkdir("folder")
    assert (served.folder / "folder").is_dir()
    fs.rm("new")
    assert not (served.folder / "new").exists()


def test_pyroute2_walks(served: Served) -> None:
    async def visit() -> None:
        async with Plan9ClientSocket(address=("127.0.0.1", served.tree)) as client:
            await client.start_session()
            fid = await client.fid("dir/a")
            assert 2 == len((await client.walk("dir/b"))["wqid"])
            # It reads what it has not opened, as its own server allows, and takes our refusal for JSON.
            with pytest.raises(json.JSONDecodeError):
                await client.read(fid)

    asyncio.run(visit())
