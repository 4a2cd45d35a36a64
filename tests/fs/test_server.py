"""Listeners: who the peer is, where one may listen, and what is left of a client that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.export import Export
from skep.fs.messages import NOFID, NOTAG, Dialect, Message, Rread, Tattach, Tlopen, Tread, Tversion, Twalk
from skep.fs.server import Listener, listen
from skep.fs.shapes import Blob, Text
from skep.fs.wire import HEADER, pack, unpack
from tests.fs.grounds import Grounds

TREE = {"whoami": Text(lambda caller: f"{caller.principal} {caller.uid} {caller.user}\n"), "hello": "hello\n"}
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Awaitable[None]], None]


class Wire:
    """A raw connection over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.dialect = Dialect.L

    @staticmethod
    async def dial(listener: Listener, aname: str = "") -> Wire:
        address = listener.address
        if address.kind == "unix":
            wire = Wire(*await asyncio.open_unix_connection(address.path))
        else:
            wire = Wire(*await asyncio.open_connection(address.host, address.port))
        wire.say(NOTAG, Tversion(1 << 20, "9P2000.L"))
        wire.say(1, Tattach(0, NOFID, "somebody-else", aname))
        assert [NOTAG, 1] == [(await wire.hear())[0] for _ in range(2)]
        return wire

    def say(self, tag: int, message: Message) -> None:
        self.writer.write(pack(tag, message, self.dialect))

    async def hear(self) -> tuple[int, Message]:
        async with asyncio.timeout(10):
            head = await self.reader.readexactly(4)
            frame = head + await self.reader.readexactly(int.from_bytes(head, "little") - 4)
        return HEADER.unpack_from(frame)[2], unpack(memoryview(frame), self.dialect)

    async def ended(self) -> bytes:
        """What is read until the server closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self.writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def descriptors() -> int:
    """How many are open, when what other tests left behind is collected."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# Who


def test_the_principal_of_a_unix_socket_is_the_peers_user_whatever_it_says(tmp_path: Path) -> None:
    async def visit() -> None:
        async with (
            listen(TREE, f"unix:{tmp_path}/s") as listener,
            await Client.connect(listener.address, uname="mallory") as client,
        ):
            user = (await client.read_file("/whoami")).decode().split()
            assert [f"unix:{user[2]}", str(os.getuid())] == user[:2]

    asyncio.run(visit())


def test_the_principal_of_a_port_is_its_address() -> None:
    async def visit() -> None:
        async with (
            listen(TREE, "tcp:127.0.0.1:0") as listener,
            await Client.connect(listener.address, uname="mallory") as client,
        ):
            assert (await client.read_file("/whoami")).startswith(b"tcp:127.0.0.1:")

    asyncio.run(visit())


def test_a_unix_socket_is_its_owners_alone_unless_told_otherwise(tmp_path: Path) -> None:
    async def visit() -> None:
        async with listen(TREE, f"unix:{tmp_path}/a"), listen(TREE, f"unix:{tmp_path}/b", mode=0o660):
            assert 0o600 == (tmp_path / "a").stat().st_mode & 0o777
            assert 0o660 == (tmp_path / "b").stat().st_mode & 0o777

    asyncio.run(visit())


# Where


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:[::]:0"])
def test_a_port_that_others_can_reach_is_refused(address: str) -> None:
    async def visit() -> None:
        async with listen(TREE, address):
            pass

    with pytest.raises(ValueError, match="TCP without TLS listens on loopback only"):
        asyncio.run(visit())


def test_a_socket_left_by_a_dead_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def visit() -> None:
        async with listen(TREE, f"unix:{path}") as listener, await Client.connect(listener.address) as client:
            assert b"hello\n" == await client.read_file("/hello")
        assert not path.exists()

    asyncio.run(visit())


def test_a_living_servers_socket_is_not(tmp_path: Path) -> None:
    async def visit() -> None:
        async with listen(TREE, f"unix:{tmp_path}/s") as listener:
            with pytest.raises(OSError, match="another server listens on"):
                async with listen(TREE, f"unix:{tmp_path}/s"):
                    pass
            async with await Client.connect(listener.address) as client:
                assert b"hello\n" == await client.read_file("/hello")

    asyncio.run(visit())


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")

    async def visit() -> None:
        async with listen(TREE, f"unix:{tmp_path}/s"):
            pass

    with pytest.raises(FileExistsError, match="exists and is no socket"):
        asyncio.run(visit())
    assert "precious" == (tmp_path / "s").read_text()


# How many, and what is left


@LOOPS
def test_a_connection_above_the_limit_is_closed_and_the_others_stay(run: Run, tmp_path: Path) -> None:
    async def visit() -> None:
        async with listen(TREE, f"unix:{tmp_path}/s") as listener:
            listener.connections_max = 2
            wires = [await Wire.dial(listener) for _ in range(2)]
            third = Wire(*await asyncio.open_unix_connection(listener.address.path))
            assert b"" == await third.ended()
            await third.close()
            for wire in wires:
                wire.say(2, Twalk(0, 1, ("hello",)))
                assert 2 == (await wire.hear())[0]
            await wires[0].close()
            await until(lambda: len(listener.connections) == 1)
            wires[0] = await Wire.dial(listener)
            for wire in wires:
                await wire.close()

    run(visit())


@LOOPS
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, os.urandom(4096), b"\xff" * 7])
def test_garbage_closes_the_connection_it_came_on(run: Run, garbage: bytes, tmp_path: Path) -> None:
    async def visit() -> None:
        async with listen(TREE, f"unix:{tmp_path}/s") as listener:
            good = await Wire.dial(listener)
            bad = Wire(*await asyncio.open_unix_connection(listener.address.path))
            bad.writer.write(garbage)
            await bad.ended()
            good.say(2, Twalk(0, 1, ("hello",)))
            assert 2 == (await good.hear())[0]
            await bad.close()
            await good.close()

    run(visit())


@pytest.mark.slow
@LOOPS
def test_nothing_is_left_of_two_hundred_clients_that_left_in_the_middle(run: Run, tmp_path: Path) -> None:
    async def visit() -> None:
        grounds = Grounds(tmp_path)
        (tmp_path / "file").write_text("text")
        async with listen(grounds, f"unix:{tmp_path}/s") as listener:

            async def rush(count: int) -> None:
                for number in range(count):
                    wire = await Wire.dial(listener, "host" if number % 2 else "")
                    names = ("file",) if number % 2 else ("events",)
                    wire.say(2, Twalk(0, 1, names))
                    wire.say(3, Tlopen(1, 0))
                    wire.say(4, Tread(1, 0, 100))
                    assert [2, 3] == [(await wire.hear())[0] for _ in range(2)]
                    wire.writer.transport.abort()
                await until(lambda: not listener.connections)
                await until(lambda: len(asyncio.all_tasks()) == 1)

            await rush(4)
            before = descriptors()
            await rush(200)
            assert before == descriptors()
            assert [] == grounds.events.sources

    run(visit())


@LOOPS
def test_after_a_reset_that_ends_a_waiting_read_more_is_heard(run: Run, tmp_path: Path) -> None:
    async def visit() -> None:
        grounds = Grounds(tmp_path)
        async with listen(grounds, f"unix:{tmp_path}/s") as listener:
            wire = await Wire.dial(listener)
            wire.say(2, Twalk(0, 1, ("events",)))
            wire.say(3, Tlopen(1, 0))
            wire.say(4, Tread(1, 0, 100))
            assert [2, 3] == [(await wire.hear())[0] for _ in range(2)]
            wire.say(NOTAG, Tversion(8192, "9P2000.L"))
            assert NOTAG == (await wire.hear())[0]
            wire.say(5, Tattach(0, NOFID, "alice", ""))
            assert 5 == (await wire.hear())[0]
            await wire.close()

    run(visit())


@LOOPS
def test_a_client_that_does_not_read_holds_up_nobody_and_gets_all(run: Run, tmp_path: Path) -> None:
    zeros = {"zeros": Blob(lambda offset, count: bytes(count), lambda: 1 << 40), "hello": "hello\n"}
    count, burst = 1 << 19, 60

    async def visit() -> None:
        async with listen(zeros, f"unix:{tmp_path}/s") as listener:
            wire = await Wire.dial(listener)
            wire.say(2, Twalk(0, 1, ("zeros",)))
            wire.say(3, Tlopen(1, 0))
            assert [2, 3] == [(await wire.hear())[0] for _ in range(2)]
            for tag in range(burst):
                wire.say(100 + tag, Tread(1, 0, count))
            (connection,) = listener.connections
            assert connection.conversation is not None
            conversation = connection.conversation
            await until(lambda: conversation.paused)
            async with await Client.connect(listener.address) as client:
                assert b"hello\n" == await client.read_file("/hello")
            for tag in range(burst):
                heard, answer = await wire.hear()
                assert isinstance(answer, Rread)
                assert (100 + tag, count) == (heard, len(answer.data))
            await wire.close()

    run(visit())


def test_a_listener_that_closes_cuts_its_clients(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()

    async def visit() -> None:
        async with listen(Export(tmp_path / "x").root, f"unix:{tmp_path}/s") as listener:
            client = await Client.connect(listener.address)
        with pytest.raises(FsError) as refused:
            await client.listdir("/")
        assert E.IO is refused.value.kind
        await client.close()

    asyncio.run(visit())
