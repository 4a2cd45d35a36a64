"""Tokens at the gate, by the messages: what Tauth gives, what is attached by it, and what is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs.connection import Connection
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.messages import NOFID, NONUNAME, Dialect, Rattach, Rauth, Rclunk, Tattach, Tauth, Tclunk, Twrite
from skep.fs.messages import Message as Any9P
from skep.roles.gate import SESSIONS_MAX
from tests.networked import Enrolled, Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with networked(tmp_path_factory.mktemp("gate")) as found:
        yield found


@pytest.fixture(scope="module")
def ann(hive: Networked) -> Enrolled:
    return hive.enroll("operator", "ann")


def minted(hive: Networked, said: str = "ops=read paths=/jobs,/whoami ttl=1h") -> bytes:
    return hive.ask("write", "/trust/tokens/clone", said).encode()


async def refusal(connection: Connection, request: Any9P) -> FsError:
    with pytest.raises(FsError) as caught:
        await connection.rpc(request, Any9P)
    return caught.value


async def whoami(client: Client) -> dict[str, str]:
    text = (await client.read_file("/whoami")).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())


def test_an_afid_is_given_where_tokens_are_to_be_expected(tmp_path: Path) -> None:
    """Clients that ask for an afid first, and know no tokens, still find their way into a hive without."""

    async def ask(address: str) -> Any9P:
        async with await Client.connect(address, dialect=Dialect.U) as client:
            return await client.connection.rpc(Tauth(7, "", "", NONUNAME), Rauth)

    with networked(tmp_path) as hive:
        with pytest.raises(FsError) as caught:
            asyncio.run(ask(hive.address))
        assert (E.NOTSUP, 2) == (caught.value.kind, caught.value.errno)
        minted(hive)
        assert isinstance(asyncio.run(ask(hive.address)), Rauth)


def test_a_connection_may_have_a_session_with_a_token_and_one_without(hive: Networked, ann: Enrolled) -> None:
    async def story() -> None:
        async with await ann.connect(token=minted(hive)) as narrow:
            wide = await Client.attach(narrow.connection, uname="ann")
            told, plain = await whoami(narrow), await whoami(wide)
            assert told["session"] != plain["session"]
            assert {"token", "until"} == told.keys() - plain.keys()
            assert ["whoami", "jobs"] == [entry.name for entry in await narrow.listdir("/")]
            assert "policy" in [entry.name for entry in await wide.listdir("/")]
            with pytest.raises(FsError) as caught:
                await narrow.write_file("/jobs/ctl", b"submit topic=sha256\n")
            assert (E.DENIED, True) == (caught.value.kind, "rule=write" in caught.value.detail)

    asyncio.run(story())


def test_walking_up_out_of_what_is_granted_leads_nowhere(hive: Networked, ann: Enrolled) -> None:
    async def story() -> None:
        async with await ann.connect(token=minted(hive, "ops=read paths=/jobs/by-key ttl=1h")) as client:
            assert ["by-key"] == [entry.name for entry in await client.listdir("/jobs")]
            for path in ("/jobs/by-key/../ctl", "/jobs/by-key/../../version", "/jobs/../../trust/ctl"):
                with pytest.raises(FsError) as caught:
                    await client.read_file(path)
                assert "file does not exist" == caught.value.text

    asyncio.run(story())


def test_an_afid_is_good_for_nothing_without_a_token(hive: Networked, ann: Enrolled) -> None:
    async def story() -> None:
        async with await ann.connect() as client:
            connection = client.connection
            await connection.rpc(Tauth(50, "ann", "", NONUNAME), Rauth)
            error = await refusal(connection, Tattach(51, 50, "ann", "", NONUNAME))
            assert E.UNSIGNED is error.kind
            await connection.rpc(Tclunk(50), Rclunk)
            assert E.BADF is (await refusal(connection, Tattach(51, 50, "ann", "", NONUNAME))).kind
            assert isinstance(await connection.rpc(Tattach(51, NOFID, "ann", "", NONUNAME), Rattach), Rattach)

    asyncio.run(story())


def test_what_was_refused_is_recorded_and_no_token_is(hive: Networked) -> None:
    guesser = hive.enroll("operator", "guesser")
    token = minted(hive, "ops=read paths=/jobs ttl=1h subject=unix:nobody")

    async def story() -> FsError:
        with pytest.raises(FsError) as caught:
            await guesser.connect(token=token)
        return caught.value

    error = asyncio.run(story())
    assert "rule=token-subject" in error.detail
    trace = error.text.rpartition("trace=")[2]
    log = hive.ask("cat", "/log/net_trace_secure9p.log")
    (row,) = (row for row in map(json.loads, log.splitlines()) if row["trace"] == trace)
    assert ("attach", "token-subject") == (row["op"], row["rule"].partition(" ")[0])
    assert token.decode()[:40] not in log
    for file in hive.directory.rglob("*"):
        if file.is_file():
            assert token[:40] not in file.read_bytes(), file


def test_sessions_of_one_connection_are_bounded(hive: Networked, ann: Enrolled) -> None:
    """Each tenant is a session, and an operator may attach to any tenant."""

    async def story() -> None:
        async with await ann.connect() as client:
            for n in range(1, SESSIONS_MAX):
                await Client.attach(client.connection, uname="ann", aname=f"t{n}/project/env")
            fid = client.connection.session.take_fid()
            error = await refusal(client.connection, Tattach(fid, NOFID, "ann", "more/project/env", NONUNAME))
            assert E.QUOTA is error.kind

    asyncio.run(story())


def test_an_overlong_token_is_not_taken(hive: Networked, ann: Enrolled) -> None:
    async def story() -> None:
        async with await ann.connect() as client:
            await client.connection.rpc(Tauth(50, "ann", "", NONUNAME), Rauth)
            error = await refusal(client.connection, Twrite(50, 0, bytes(12000)))
            assert E.TOOBIG is error.kind

    asyncio.run(story())
