"""Who may attach through which socket, and as what: a queen, and clients that say all sorts of things."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skep.fs.address import parse
from skep.fs.connection import Connection
from skep.fs.dial import Client, login_name
from skep.fs.errors import E, FsError
from skep.fs.fid import Fid
from skep.fs.messages import NOFID, NONUNAME, Dialect, Message, Rattach, Tattach, Tauth
from tests.daemons import Hive, daemon

U = Dialect.U


class Doors(Hive):
    """A hive with a TCP port too."""

    tcp = ""


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    directory: Path = tmp_path_factory.mktemp("gate")
    listen = ("--listen", f"unix:{directory}/hive.sock", "--listen", "tcp:127.0.0.1:0")
    with daemon("ready", "serve", "--dir", str(directory), *listen) as queen:
        found = Doors(directory)
        found.tcp = queen.lines[1].split()[1]
        yield found


async def attach(
    address: str, uname: str, aname: str = "", n_uname: int = NONUNAME, dialect: Dialect = U
) -> Client:
    connection = await Connection.open(parse(address), dialect)
    fid = connection.session.take_fid()
    try:
        reply = await connection.rpc(Tattach(fid, NOFID, uname, aname, n_uname), Rattach)
    except BaseException:
        await connection.close()
        raise
    return Client(connection, Fid(connection, fid, reply.qid))


async def whoami(client: Client) -> dict[str, str]:
    text = (await client.read_file("/whoami")).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())


async def refused(address: str, *said: Any, **more: Any) -> FsError:
    with pytest.raises(FsError) as caught:
        await attach(address, *said, **more)
    return caught.value


USER = login_name()


@pytest.mark.parametrize("uname", ["", "nobody", USER])
@pytest.mark.parametrize("n_uname", [NONUNAME, os.getuid()])
@pytest.mark.parametrize("aname", ["", "/", "default/default/default"])
def test_the_queens_user_is_an_operator(hive: Doors, uname: str, n_uname: int, aname: str) -> None:
    found = asyncio.run(whoami_of(hive.address, uname, aname, n_uname))
    assert (f"unix:{USER}", "operator") == (found["principal"], found["role"])
    assert "node" not in found


async def whoami_of(address: str, *said: Any) -> dict[str, str]:
    async with await attach(address, *said) as client:
        return await whoami(client)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (("somebody",), E.UNAUTHENTICATED, f"uname 'somebody': the socket says '{USER}'"),
        (("", "", 12345), E.UNAUTHENTICATED, f"n_uname 12345: the socket says {os.getuid()}"),
        ((USER, "other/tenant"), E.MISSING, ""),
        ((USER, "Other/Tenant/Prod"), E.MISSING, ""),
        ((USER, "../../etc"), E.MISSING, ""),
    ],
)
def test_what_contradicts_the_transport_is_refused(
    hive: Doors, said: tuple[Any, ...], kind: E, text: str
) -> None:
    error = asyncio.run(refused(hive.address, *said))
    assert (kind, text) == (error.kind, error.detail)


def test_the_hives_own_operator_attaches_to_any_tenant_and_nobody_else_does(hive: Doors) -> None:
    found = asyncio.run(whoami_of(hive.address, USER, "other/project/prod"))
    assert ("operator", "other/project/prod") == (found["role"], found["tenant"])
    for address, uname in ((hive.tcp, ""), (hive.workers, "w1")):
        assert E.MISSING is asyncio.run(refused(address, uname, "other/project/prod")).kind


def test_a_connection_is_one_session_in_each_tenant(hive: Doors) -> None:
    async def look() -> list[str]:
        async with await attach(hive.address, USER) as client:
            told = [await whoami(client)]
            for tenant in ("other/project/prod", "other/project/prod", "default/default/default"):
                fid = client.connection.session.take_fid()
                reply = await client.connection.rpc(Tattach(fid, NOFID, USER, tenant, NONUNAME), Rattach)
                told.append(await whoami(Client(client.connection, Fid(client.connection, fid, reply.qid))))
            return [found["session"] for found in told]

    first, other, again, back = asyncio.run(look())
    assert (first, other) == (back, again)
    assert first != other


def test_a_proof_is_neither_asked_for_nor_taken(hive: Doors) -> None:
    async def ask() -> FsError:
        connection = await Connection.open(parse(hive.address), U)
        with pytest.raises(FsError) as caught:
            await connection.rpc(Tauth(7, USER, "", NONUNAME), Message)
        await connection.close()
        return caught.value

    assert E.NOTSUP is asyncio.run(ask()).kind


def test_whoever_comes_by_tcp_is_a_stranger_who_reads(hive: Doors) -> None:
    async def look() -> tuple[dict[str, str], list[E]]:
        found = await whoami_of(hive.tcp, "root", "", 0)
        kinds = []
        async with await attach(hive.tcp, "root") as client:
            attempts = (
                client.write_file("/jobs/ctl", b"submit topic=sha256\n"),
                client.write_file("/ctl", b"drain\n"),
                client.open("/pools/default/next"),
                client.open("/jobs/clone", "rw"),
                client.create("/artifacts/stage/x"),
                client.remove("/version"),
            )
            for attempt in attempts:
                with pytest.raises(FsError) as caught:
                    await attempt
                kinds.append(caught.value.kind)
        return found, kinds

    found, kinds = asyncio.run(look())
    assert ("tcp:anonymous", "observer") == (found["principal"], found["role"])
    assert [E.DENIED, E.DENIED, E.MISSING, E.MISSING, E.MISSING, E.DENIED] == kinds


@pytest.mark.parametrize("name", ["", USER + "_", "W1", "a" * 65, "-x", "../w1", "w1\n"])
def test_a_worker_has_a_nodes_name(hive: Doors, name: str) -> None:
    assert E.UNAUTHENTICATED is asyncio.run(refused(hive.workers, name)).kind


def test_a_worker_sees_itself_and_no_more(hive: Doors) -> None:
    async def look() -> tuple[dict[str, str], list[str], list[str], list[E]]:
        async with await attach(hive.workers, "w1") as client:
            root = [entry.name for entry in await client.listdir("/")]
            nodes = [entry.name for entry in await client.listdir("/nodes")]
            kinds = []
            for path in ("/sessions", "/events", "/log", "/nodes/ctl", "/nodes/w2", "/ctl", "/jobs/ctl"):
                with pytest.raises(FsError) as caught:
                    await client.stat(path)
                kinds.append(caught.value.kind)
            return await whoami(client), root, nodes, kinds

    found, root, nodes, kinds = asyncio.run(look())
    assert ("drone-worker", "w1") == (found["role"], found["node"])
    assert [
        "artifacts", "jobs", "locks", "nodes", "ns", "pools", "state", "trust", "version", "whoami",
    ] == sorted(root)  # fmt: skip
    assert ["w1"] == nodes
    assert [E.MISSING] * 7 == kinds


def test_a_worker_sees_no_job_that_it_was_not_leased(hive: Doors) -> None:
    job = hive.submit("topic=sha256 input=x")

    async def look() -> tuple[list[str], E]:
        async with await attach(hive.workers, "w1") as client:
            with pytest.raises(FsError) as caught:
                await client.stat(f"/jobs/{job}")
            return [entry.name for entry in await client.listdir("/jobs")], caught.value.kind

    assert ([], E.MISSING) == asyncio.run(look())


def test_a_node_is_one_process_at_a_time(hive: Doors) -> None:
    handlers = hive.directory / "idle.toml"
    handlers.write_text('[idle]\nargv = ["true"]\n')
    hive.ask("write", "/pools/ctl", "create pool=idle")
    options = ("--handlers", str(handlers), "--pools", "idle", "--dir", str(hive.directory / "w7"))
    with daemon("ready w7", "worker", "-H", hive.workers, "--node", "w7", *options):
        error = asyncio.run(refused(hive.workers, "w7"))
    assert E.BUSY is error.kind
    assert error.detail.endswith("node=w7")


def test_one_connection_is_one_session_that_ends_with_it(hive: Doors) -> None:
    async def sessions() -> list[str]:
        async with await attach(hive.address, USER) as client:
            return [entry.name for entry in await client.listdir("/sessions")]

    async def look() -> tuple[int, str]:
        client = await attach(hive.address, USER)
        again = client.connection.session.take_fid()
        before = len(await sessions())
        await client.connection.rpc(Tattach(again, NOFID, USER, "", NONUNAME), Rattach)
        more = len(await sessions()) - before
        mine = (await whoami(client))["session"]
        peer = (await client.read_file(f"/sessions/{mine}/peer")).decode().strip()
        await client.close()
        while mine in await sessions():
            await asyncio.sleep(0)
        return more, peer

    assert (0, f"unix:pid={os.getpid()}") == asyncio.run(look())


@pytest.mark.slow
def test_a_kicked_session_ends(hive: Doors) -> None:
    async def kick() -> bool:
        client = await attach(hive.address, USER)
        session = (await whoami(client))["session"]
        async with await attach(hive.address, USER) as other:
            await other.write_file(f"/sessions/{session}/ctl", b"kick\n")
        await client.connection.closed
        return True

    assert asyncio.run(asyncio.wait_for(kick(), 10))
