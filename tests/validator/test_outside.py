"""Other people's code checks our log: the notes and trees of Go's module mirror (golang.org/x/mod/sumdb)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from logs import VKEYS, as_tiles, bodies

from skep.fs.dial import Client
from skep.trace.tiles import WIDTH, Tile
from tests.daemons import Hive, queen
from tests.fetching import TRACE, fetched

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent / "outside" / "main.go"
GOPATH = "/usr/share/gocode"  # where Debian has the libraries of golang-golang-x-mod-dev
SIZES = (1, 2, WIDTH - 1, WIDTH, WIDTH + 1, 700, 2 * WIDTH, WIDTH * WIDTH + 300)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program; packages golang-go and golang-golang-x-mod-dev, which the tests' set-up installs."""
    place: Path = tmp_path_factory.mktemp("outside")
    go = {"GO111MODULE": "off", "GOPATH": GOPATH, "GOCACHE": str(place / "cache"), "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", "outside", SOURCE], cwd=place, env=os.environ | go, check=True)
    return place / "outside"


def said(outside: Path, *args: str | Path) -> tuple[int, str]:
    done = subprocess.run([outside, *map(str, args)], capture_output=True, text=True, timeout=60)
    return done.returncode, (done.stdout or done.stderr).strip()


def put(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("size", SIZES)
def test_a_log_of_any_size_is_good(outside: Path, tmp_path: Path, size: int) -> None:
    trace = put(tmp_path, as_tiles(bodies(size)))
    assert (0, f"ok {size}") == said(outside, "log", trace, str(VKEYS[0]))


def test_what_was_changed_is_not(outside: Path, tmp_path: Path) -> None:
    """The same that ours finds: it is no program that says yes."""
    files = as_tiles(bodies(700))
    key = str(VKEYS[0])
    bundle, tile = f"tile/{Tile(None, 1).path()}", f"tile/{Tile(0, 2, 700 - 2 * WIDTH).path()}"
    at = files[bundle].index(b'"seq":300')
    bad = {
        "entry 300": {bundle: files[bundle][: at + 6] + b"9" + files[bundle][at + 7 :]},
        "entry 257": {bundle: files[bundle].replace(b'"seq":257', b'"seq":258')},
        "inconsistent tile": {tile: bytes(32) + files[tile][32:]},
        "invalid signature": {"checkpoint": files["checkpoint"].replace(b"\n700\n", b"\n699\n")},
    }  # fmt: skip
    for n, (text, changed) in enumerate(bad.items()):
        code, told = said(outside, "log", put(tmp_path / str(n), files | changed), key)
        assert (1, True) == (code, text in told), told
    assert 1 == said(outside, "log", put(tmp_path / "key", files), str(VKEYS[1]))[0]


# a hive that lives


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with queen(tmp_path_factory.mktemp("outside-hive")) as found:
        yield found


def test_what_a_hive_serves_is_good(outside: Path, hive: Hive, tmp_path: Path) -> None:
    key = hive.ask("cat", f"{TRACE}/keys").split(" ")[0]
    old = tmp_path / "old"
    old.write_text(hive.ask("cat", f"{TRACE}/checkpoint") + "\n")
    hive.submit("topic=sha256 input=x")
    trace = asyncio.run(fetched(hive.address, tmp_path / "trace"))
    size = (trace / "checkpoint").read_text().split("\n")[1]
    assert (0, f"ok {size}") == said(outside, "log", trace, key)
    before = int(old.read_text().split("\n")[1])
    asyncio.run(prove(hive, tmp_path, before))
    assert (0, f"ok {before - 1}") == said(
        outside, "inclusion", tmp_path / "inclusion", key, tmp_path / "body"
    )
    assert (0, f"ok {before}") == said(outside, "consistency", tmp_path / "consistency", key, old)
    other = tmp_path / "other"
    other.write_bytes((tmp_path / "body").read_bytes() + b" ")
    assert 1 == said(outside, "inclusion", tmp_path / "inclusion", key, other)[0]


async def prove(hive: Hive, place: Path, entry: int) -> None:
    """Have an entry, that it is in the log, and that the log continues that of as many entries."""
    async with await Client.connect(hive.address) as client:
        for name, question in (("inclusion", f"entry={entry}"), ("consistency", f"old={entry}")):
            async with await client.open(f"{TRACE}/proof/{name}", "rw") as fid:
                await fid.write(0, question.encode())
                (place / name).write_bytes(await fid.read(0, 8192))
        bundle = await client.read_file(f"{TRACE}/tile/{Tile(None, 0, entry).path()}")
    body = b""
    while bundle:
        end = 2 + int.from_bytes(bundle[:2], "big")
        body, bundle = bundle[2:end], bundle[end:]
    (place / "body").write_bytes(body)
