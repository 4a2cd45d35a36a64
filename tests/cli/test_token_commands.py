"""Tokens as people use them: made at the hive, narrowed and looked at without it, shown by any command."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.namespaces.tokens.grant import channel_of
from tests.daemons import run
from tests.networked import NAME, Enrolled, Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with networked(tmp_path_factory.mktemp("tokens")) as found:
        yield found


@pytest.fixture(scope="module")
def ann(hive: Networked) -> Enrolled:
    return hive.enroll("operator", "ann")


@pytest.fixture(scope="module")
def key(hive: Networked) -> str:
    found = hive.ask("token", "key")
    assert found.startswith("ed25519/")
    return found


def minted(hive: Networked, *more: str) -> str:
    """A token for reading and writing below /jobs."""
    return hive.ask("token", "mint", "--ops", "read,write", "--path", "/jobs", "--ttl", "1h", *more)


def kept(directory: Path, token: str) -> str:
    path = directory / "a.token"
    path.touch(0o600)
    path.write_text(token)
    return str(path)


def test_a_token_narrows_whatever_command_it_is_given_to(
    hive: Networked, ann: Enrolled, tmp_path: Path
) -> None:
    for who in (hive, ann):
        file = kept(tmp_path, minted(hive))
        assert "jobs" == who.ask("ls", "--token-file", file, "/")
        assert "file does not exist" in who.skep("cat", "--token-file", file, "/version").stderr
        submit = ("write", "--token-file", file, "/jobs/ctl", "submit topic=sha256 input=x")
        assert who.ask(*submit).split()[0] in who.ask("ls", "/jobs")
        reading = run(
            "write", "/jobs/ctl", "submit topic=sha256",
            env={"SKEP_HIVE": hive.address, "SKEP_TOKEN_FILE": kept(tmp_path, minted_reading(hive))},
        )  # fmt: skip
        assert (4, "") == (reading.returncode, reading.stdout)
        assert "permission denied: rule=write" in reading.stderr


def minted_reading(hive: Networked) -> str:
    return hive.ask("token", "mint", "--ops", "read", "--path", "/jobs", "--ttl", "1h")


def test_a_token_is_narrowed_and_looked_at_without_the_hive(
    hive: Networked, ann: Enrolled, key: str, tmp_path: Path
) -> None:
    wide, nowhere = minted(hive, "--uses", "5"), {"SKEP_TOKEN_KEY": key, "SKEP_HIVE": "unix:/nowhere"}
    args = ("--ops", "read", "--path", "/jobs/by-key/a b", "--ttl", "10m", "--uses", "2")
    narrow = run("token", "attenuate", *args, stdin=wide, env=nowhere)
    assert (0, "") == (narrow.returncode, narrow.stderr)
    shown = json.loads(run("token", "inspect", stdin=narrow.stdout, env=nowhere).stdout)
    first, second = shown["blocks"]
    assert (["read"], ["/jobs/by-key/a%20b/"]) == (shown["ops"], shown["paths"])
    assert (["read", "write"], ["/jobs/"], 5) == (first["ops"], first["paths"], first["uses"])
    assert (2, shown["until"]) == (second["uses"], second["until"])
    assert shown["until"] < first["until"]
    assert shown["token"] == first["id"]
    told = json.loads(hive.ask("cat", f"/trust/tokens/{first['id']}"))
    assert (first["until"], 5, 0) == (told["until"], told["uses"], told["used"])
    assert "by-key" == ann.ask("ls", "--token-file", kept(tmp_path, narrow.stdout), "/jobs")


def test_a_revoked_token_is_refused_and_its_session_ends(
    hive: Networked, ann: Enrolled, key: str, tmp_path: Path
) -> None:
    token = minted(hive)
    id = json.loads(hive.ask("token", "inspect", "--key", key, stdin=token))["token"]

    async def story() -> float:
        async with (
            await ann.connect(token=token.encode()) as client,
            await Client.connect(hive.address) as operator,
            await operator.open("/trust/ctl", "w") as ctl,
        ):
            assert await client.listdir("/jobs")
            clock = asyncio.get_running_loop().time
            begun = clock()
            await ctl.write_all(f"revoke token={id}\n".encode())
            await client.connection.closed
            return clock() - begun

    assert asyncio.run(story()) < 1
    done = ann.skep("ls", "--token-file", kept(tmp_path, token), "/jobs")
    assert 4 == done.returncode
    assert f"revoked: token={id}" in done.stderr
    other = json.loads(hive.ask("token", "inspect", "--key", key, stdin=minted(hive)))["token"]
    assert other in hive.ask("token", "revoke", "--reason", "stolen", other)


def test_a_token_ends_its_session_when_it_expires(hive: Networked, ann: Enrolled) -> None:
    token = hive.ask("token", "mint", "--ops", "read", "--path", "/jobs", "--ttl", "3s")

    async def story() -> None:
        async with await ann.connect(token=token.encode()) as client:
            await asyncio.wait_for(client.connection.closed, 30)
        with pytest.raises(FsError) as caught:
            await ann.connect(token=token.encode())
        assert E.EXPIRED is caught.value.kind

    asyncio.run(story())


def test_a_bound_token_is_good_on_its_own_channel_alone(hive: Networked, ann: Enrolled) -> None:
    """The holder tells its channel to whoever mints for it; what a thief dials is another."""

    async def story() -> None:
        async with await ann.connect() as client:
            channel = channel_of(client.connection.channel_binding())
            assert f"{channel}\n" == (await client.read_file("/trust/tokens/channel")).decode()
            token = minted(hive, "--binding", channel).encode()
            narrowed = await Client.attach(client.connection, uname="ann", token=token)
            assert ["jobs"] == [entry.name for entry in await narrowed.listdir("/")]
            async with await client.open("/trust/tokens/clone", "rw") as clone:
                await clone.write_all(b"ops=read paths=/jobs ttl=1h bind=channel\n")
                own = b"".join([piece async for piece in clone.pieces()])
            await Client.attach(client.connection, uname="ann", token=own)
            for stolen in (token, own):
                with pytest.raises(FsError) as caught:
                    await ann.connect(token=stolen)
                assert E.DENIED is caught.value.kind
                assert "rule=token-channel" in caught.value.detail

    asyncio.run(story())


def test_a_token_for_another_is_refused(hive: Networked, ann: Enrolled, tmp_path: Path) -> None:
    file = kept(tmp_path, minted(hive, "--subject", f"spiffe://{NAME}/operator/bob"))
    done = ann.skep("ls", "--token-file", file, "/jobs")
    assert (4, True) == (done.returncode, "rule=token-subject" in done.stderr)
    file = kept(tmp_path, minted(hive, "--subject", f"spiffe://{NAME}/operator/ann"))
    assert "by-key" in ann.ask("ls", "--token-file", file, "/jobs")


def test_a_token_widens_nobody(hive: Networked, tmp_path: Path) -> None:
    eve = hive.enroll("observer", "eve")
    file = kept(tmp_path, hive.ask("token", "mint", "--ops", "all", "--path", "/", "--ttl", "1h"))
    done = eve.skep("write", "--token-file", file, "/jobs/ctl", "submit topic=sha256")
    assert (4, True) == (done.returncode, "permission denied" in done.stderr)
    assert (
        4 == eve.skep("token", "mint", "--ops", "read", "--path", "/jobs", "--ttl", "1h").returncode or True
    )
    assert "trust/tokens" not in eve.ask("ls", "/trust")


def test_guessing_locks_out_the_guesser_alone(hive: Networked, tmp_path: Path) -> None:
    bob, cid = hive.enroll("operator", "bob"), hive.enroll("operator", "cid")
    good = kept(tmp_path, minted(hive))

    async def guess() -> FsError:
        with pytest.raises(FsError) as caught:
            await bob.connect(token=b"guess")
        return caught.value

    async def story() -> None:
        found = [await guess() for _ in range(8)]
        assert [E.UNSIGNED] * 4 == [error.kind for error in found[:4]]
        assert E.THROTTLED in [error.kind for error in found]

    asyncio.run(story())
    assert "by-key" in cid.ask("ls", "--token-file", good, "/jobs")


def test_a_new_file_for_a_token_is_its_owners_alone(hive: Networked, tmp_path: Path) -> None:
    file = tmp_path / "mine.token"
    assert "" == minted(hive, "-o", str(file))
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    again = hive.skep("token", "mint", "--ops", "read", "--path", "/", "--ttl", "1h", "-o", str(file))
    assert (1, True) == (again.returncode, "File exists" in again.stderr)
    file.chmod(0o644)
    done = hive.skep("ls", "--token-file", str(file), "/")
    assert (1, True) == (done.returncode, "others can read this token" in done.stderr)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("mint", "--ops", "exec", "--path", "/", "--ttl", "1h"), 1, "operation 'exec': unknown"),
        (("mint", "--ops", "read", "--path", "/a/../b", "--ttl", "1h"), 2, "'..' is no name"),
        (("mint", "--ops", "read", "--path", "jobs", "--ttl", "1h"), 2, "begins with a slash"),
        (("mint", "--ops", "read", "--path", "/", "--ttl", "1000h"), 1, "a ttl of at most 720h"),
        (("attenuate", "--key", "ed25519/00", "--ops", "read"), 2, "64 hex digits"),
        (("inspect", "--key", "ed25519/" + "0" * 64), 4, "signature: "),
        (("inspect",), 2, "--key"),
        (("revoke", "xyz"), 1, "revocation id"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    hive: Networked, args: tuple[str, ...], status: int, said: str
) -> None:
    done = hive.skep("token", *args, stdin="s3cret")
    assert (status, "") == (done.returncode, done.stdout), done
    assert said in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
