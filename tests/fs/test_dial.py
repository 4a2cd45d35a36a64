"""The client over the whole protocol, in process: files in all dialects, flush, loss, many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skep.fs.connection import Connection, ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.local import joined, local
from skep.fs.messages import Dialect, Rversion, Rwalk, Tread, Twalk
from skep.fs.server import listen
from skep.fs.wire import pack
from tests.fs.grounds import Grounds, wait_until

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda d: d.value)
Play = Callable[[Client, Grounds], Awaitable[None]]


def play(story: Play, host: Path, dialect: Dialect = Dialect.L, aname: str = "") -> None:
    """Run ``story`` with a client of the grounds; nothing may stay behind in client or server."""

    async def run() -> None:
        grounds = Grounds(host)
        async with await local(grounds, uname="alice", aname=aname, dialect=dialect) as client:
            assert dialect is client.connection.dialect
            await story(client, grounds)
            session = client.connection.session
            await wait_until(lambda: not session._calls)
            assert {client.root.fid} == set(range(session._next_fid)) - set(session._free_fids)

    asyncio.run(run())


@DIALECTS
def test_files_are_read_written_and_listed_alike_in_every_dialect(dialect: Dialect, tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        assert b"hello, world\n" == await client.read_file("/hello")
        await client.write_file("ctl", b"say what=hi\n")
        assert ["hi"] == grounds.said
        await client.write_file("log", b"more\n", append=True)
        assert b"begin\nmore\n" == await client.read_file("log")
        assert ["a", "b", "sub"] == [entry.name for entry in await client.listdir("dir")]
        assert ["a", "b", "sub"] == [name for name, _ in await client.scan("dir")]
        assert b"C\n" == await client.read_file("dir/./sub//c")
        assert (0o40555, 0o100644) == ((await client.stat("dir")).mode, (await client.stat("memory")).mode)
        async with await client.open("ask", "rw") as fid:
            await fid.write_all(b"stop")
            assert b"pots" == await fid.read(0, 10)

    play(story, tmp_path, dialect)


@DIALECTS
def test_a_directory_of_the_host_is_changed_alike_in_every_dialect(dialect: Dialect, tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        data = bytes(range(256)) * 20_000
        await client.mkdir("d")
        await client.write_file("d/big", data, create=True)
        assert data == (tmp_path / "d/big").read_bytes() == await client.read_file("d/big")
        await client.write_file("d/big", b"tail", append=True)
        assert len(data) + 4 == (await client.stat("d/big")).size
        await client.write_file("d/big", b"short")
        assert b"short" == await client.read_file("d/big")
        with pytest.raises(FsError, match="file exists"):
            await client.create("d/big")
        with pytest.raises(FsError, match="directory not empty"):
            await client.remove("d")
        await client.remove("d/big")
        await client.remove("d")
        assert [] == await client.listdir("")

    play(story, tmp_path, dialect, "host")


@pytest.mark.parametrize("dialect", [Dialect.U, Dialect.L])
def test_a_link_tells_where_it_points(dialect: Dialect, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("far/away")
    (tmp_path / "file").touch()

    async def story(client: Client, grounds: Grounds) -> None:
        assert "far/away" == await client.readlink("link")
        with pytest.raises(FsError, match="invalid argument"):
            await client.readlink("file")

    play(story, tmp_path, dialect, "host")


@DIALECTS
def test_walks_of_any_depth_lead_there_and_say_which_step_is_refused(
    dialect: Dialect, tmp_path: Path
) -> None:
    deep = tmp_path.joinpath(*("d" * 40))
    deep.mkdir(parents=True)
    (deep / "end").write_text("end\n")
    (tmp_path / "d/d/file").touch()

    async def story(client: Client, grounds: Grounds) -> None:
        assert b"end\n" == await client.read_file("d/" * 40 + "end")
        for path in ("nope", "d/nope/x", "d/" * 20 + "nope/x"):
            with pytest.raises(FsError) as raised:
                await client.walk(path)
            assert E.MISSING is raised.value.kind
        with pytest.raises(FsError) as raised:
            await client.walk("d/d/file/x")
        assert raised.value.kind in (E.NOTDIR, E.MISSING)
        with pytest.raises(FsError) as raised:
            await client.walk("d/" + "x" * 256)
        assert E.NAMETOOLONG is raised.value.kind

    play(story, tmp_path, dialect, "host")


@pytest.mark.slow
def test_a_long_listing_comes_whole(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"file-{i:04}").touch()

    async def story(client: Client, grounds: Grounds) -> None:
        names = [f"file-{i:04}" for i in range(3000)]
        assert names == sorted(entry.name for entry in await client.listdir("/"))
        assert names == sorted(name for name, _ in await client.scan("/"))

    play(story, tmp_path, aname="host")


def test_a_file_that_shrinks_while_it_is_read_ahead_ends_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))

    async def story(client: Client, grounds: Grounds) -> None:
        async with await client.open("file") as fid:
            sizes = []
            async for piece in fid.pieces():
                sizes.append(len(piece))
                if len(sizes) == 1:
                    path.write_bytes(bytes(3 << 20))
            assert sum(sizes) <= 5 << 20

    play(story, tmp_path, aname="host")


def test_an_error_told_at_the_close_is_raised(tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        with pytest.raises(FsError, match="usage"):
            await client.write_file("ctl", b"dance\n")
        with pytest.raises(FsError, match=r"permission denied|operation not permitted"):
            await client.write_file("hello", b"x")

    play(story, tmp_path, Dialect.PLAIN)


# Cancellation


@DIALECTS
def test_a_cancelled_read_is_flushed_and_the_line_goes_to_the_next_reader(
    dialect: Dialect, tmp_path: Path
) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        reading = asyncio.create_task(client.read_file("slowly"))
        other = asyncio.create_task(client.read_file("slowly"))
        async with await client.open("slowly") as fid:
            blocked = asyncio.create_task(fid.read(0, 100))
            await asyncio.sleep(0)
            assert b"hello, world\n" == await client.read_file("hello")
            blocked.cancel()
            reading.cancel()
            await asyncio.wait([blocked, reading])
            assert blocked.cancelled()
            assert reading.cancelled()
            grounds.lets["slowly"].set()
            assert b"at last\n" == await fid.read(0, 100)
        assert b"at last\n" == await other

    play(story, tmp_path, dialect)


def test_a_cancelled_walk_leaves_no_fid(tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        walking = [asyncio.create_task(client.walk("slow/child")) for _ in range(20)]
        await wait_until(lambda: len(client.connection.session._calls) == 20)
        for i, task in enumerate(walking):
            if i % 2:
                task.cancel()
        grounds.lets["slow"].set()
        await asyncio.wait(walking)
        for i, task in enumerate(walking):
            assert task.cancelled() == bool(i % 2)
            if not i % 2:
                await task.result().close()

    play(story, tmp_path)


class Played:
    """A server whose every byte the test says."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.heard: list[bytes] = []
        self.closed = False

    def join(self, connection: Connection) -> tuple[Callable[[list[bytes]], None], Callable[[], None]]:
        self.connection = connection
        return self.hear, self.close

    def hear(self, buffers: list[bytes]) -> None:
        for frame in buffers:
            self.heard.append(frame)
            if frame[4] == 100:
                self.say(pack(0xFFFF, Rversion(8192, "9P2000.L"), Dialect.L))

    def close(self) -> None:
        self.closed = True

    def say(self, frame: bytes) -> None:
        assert self.connection is not None
        self.connection.data_received(frame)


# Cancelled between the answer's coming and the task's next step: the fid is bound, and nobody will use it.
def test_what_was_done_for_a_cancelled_call_is_undone() -> None:
    async def run() -> None:
        server = Played()
        connection = await Connection.over(server.join)
        task = asyncio.create_task(connection.rpc(Twalk(0, 1, ("x",)), Rwalk))
        await asyncio.sleep(0)
        server.say(pack(0, Rwalk(((0, 0, 7),)), Dialect.L))  # type: ignore[arg-type]
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert 120 == server.heard[-1][4]  # Tclunk

    asyncio.run(run())


# The end of the connection


def test_a_lost_connection_fails_every_call_and_the_next_one() -> None:
    async def run() -> None:
        server = Played()
        connection = await Connection.over(server.join)
        tasks = [asyncio.create_task(connection.rpc(Twalk(0, i, ("x",)), Rwalk)) for i in range(1, 9)]
        await asyncio.sleep(0)
        connection.connection_lost(ConnectionResetError("reset by peer"))
        for task in tasks:
            with pytest.raises(ConnectionLost, match="connection lost: reset by peer"):
                await task
        with pytest.raises(ConnectionLost):
            connection.start(Tread(1, 0, 1))
        await connection.close()
        assert server.closed

    asyncio.run(run())


def test_a_server_that_talks_nonsense_is_left() -> None:
    async def run() -> None:
        server = Played()
        connection = await Connection.over(server.join)
        task = asyncio.create_task(connection.rpc(Twalk(0, 1, ("x",)), Rwalk))
        await asyncio.sleep(0)
        server.say(b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(FsError, match="protocol error: a frame of 1347703880 bytes"):
            await task
        assert server.closed

    asyncio.run(run())


def test_attaching_in_vain_leaves_no_connection(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(FsError, match="file does not exist"):
            await local(Grounds(tmp_path), aname="nowhere")
        with pytest.raises(ConnectionRefusedError):
            await Client.connect("tcp:127.0.0.1:1")
        with pytest.raises(FileNotFoundError):
            await Client.connect(f"unix:{tmp_path}/none")

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_over_sockets_many_calls_share_one_connection(kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        grounds = Grounds(tmp_path)
        (tmp_path / "big").write_bytes(bytes(20 << 20))
        place = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
        async with (
            listen(grounds, place) as listener,
            await Client.connect(listener.address, aname="host") as client,
        ):
            reads = (client.read_file("big") for _ in range(3))
            stats = (client.stat("big") for _ in range(200))
            for data in await asyncio.gather(*reads):
                assert bytes(20 << 20) == data
            assert {20 << 20} == {attr.size for attr in await asyncio.gather(*stats)}
            await client.write_file("copy", bytes(20 << 20), create=True)
        assert 20 << 20 == (tmp_path / "copy").stat().st_size

    asyncio.run(run())


def test_a_follower_sees_each_line_as_it_comes(tmp_path: Path) -> None:
    async def story(client: Client, grounds: Grounds) -> None:
        following = client.follow("events")
        first = asyncio.ensure_future(anext(following))
        await wait_until(lambda: grounds.events.waiting == 1)
        grounds.events.feed(b"one\n")
        assert b"one\n" == await first
        grounds.events.feed(b"two\n")
        assert b"two\n" == await anext(following)
        await following.aclose()  # type: ignore[attr-defined]
        await wait_until(lambda: grounds.events.waiting == 0)

    play(story, tmp_path)


def test_a_conversation_is_joined_without_sockets(tmp_path: Path) -> None:
    async def run() -> None:
        connection = await Connection.over(joined(Grounds(tmp_path)), msize=4096)
        assert 4096 == connection.session.msize
        async with await Client.attach(connection, uname="alice") as client:
            assert bytes(10_000) == await _first(client, 10_000)

    asyncio.run(run())


async def _first(client: Client, count: int) -> bytes:
    async with await client.open("zeros") as fid:
        data = b""
        while len(data) < count:
            data += await fid.read(len(data), count - len(data))
        return data
