"""What earlier systems of this kind got wrong, tried on this one: a hive on a network, and who tries.

docs/SECURITY.md has the whole list, with the test of each; those that are tested beside their code are not
here again.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace

from skep.fs.address import parse
from skep.fs.connection import Connection
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.messages import (
    DONT_TOUCH,
    NOFID,
    NONUNAME,
    SA,
    Dialect,
    Message,
    Rattach,
    Rwalk,
    Tattach,
    Tsetattr,
    Twalk,
    Twstat,
)
from skep.roles.manifest import load
from skep.roles.manifest import parse as parse_manifest
from skep.roles.papers import Papers
from skep.roles.sealed import ManifestError, Source
from tests.daemons import ROOT, run
from tests.networked import Enrolled, Networked, networked

pytestmark = pytest.mark.slow

Work = Callable[[Client], Awaitable[Any]]


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with networked(tmp_path_factory.mktemp("mistakes")) as found:
        yield found


@pytest.fixture(scope="module")
def worker(hive: Networked) -> Enrolled:
    return hive.enroll("drone-worker", "w1")


@pytest.fixture(scope="module")
def boss(hive: Networked) -> Enrolled:
    return hive.enroll("operator", "boss")


def doing(who: Enrolled, work: Work, **more: Any) -> Any:
    """What ``work`` gives on a session of its own."""

    async def main() -> Any:
        async with await who.connect(**more) as client:
            return await work(client)

    return uvloop.run(main())


def refusal(who: Enrolled, work: Work, **more: Any) -> FsError:
    with pytest.raises(FsError) as caught:
        doing(who, work, **more)
    return caught.value


def reading(path: str) -> Work:
    return lambda client: client.read_file(path)


async def write(client: Client, path: str, text: str) -> str:
    async with await client.open(path, "rw") as fid:
        await fid.write_all(text.encode())
        return (await fid.read(0, fid.unit)).decode()


async def change(client: Client, path: str, *, mode: int | None = None, size: int | None = None) -> None:
    """Set one thing as the session's dialect does it."""
    async with await client.walk(path) as fid:
        if client.connection.dialect is Dialect.L:
            valid = SA.SIZE if mode is None else SA.MODE
            times = (0, 0, 0, 0)
            request: Message = Tsetattr(fid.fid, int(valid), mode or 0, 0, 0, size or 0, *times)
        else:
            wanted = {"mode": mode, "length": size}
            stat = replace(DONT_TOUCH, **{name: n for name, n in wanted.items() if n is not None})
            request = Twstat(fid.fid, stat)
        await client.connection.rpc(request, Message)


def writing(path: str, text: str) -> Work:
    return lambda client: write(client, path, text)


# identity from the client's word


@pytest.mark.parametrize("uname", ["root", "queen", "boss", "w2", "w1x", "spiffe://testhive/operator/w1"])
def test_who_one_is_is_the_certificates_word(hive: Networked, worker: Enrolled, uname: str) -> None:
    async def claim() -> None:
        identity = Papers(worker.directory).identity()
        connection = await Connection.open(parse(hive.tls), Dialect.L, identity=identity)
        try:
            await connection.rpc(Tattach(0, NOFID, uname, "", NONUNAME), Rattach)
        finally:
            await connection.close()

    with pytest.raises(FsError) as caught:
        uvloop.run(claim())
    assert E.UNAUTHENTICATED is caught.value.kind or E.READONLY is caught.value.kind, caught.value
    assert (
        "principal spiffe://testhive/drone-worker/w1\nrole drone-worker\n"
        in doing(worker, reading("/whoami")).decode()
    )


# rights


@pytest.mark.parametrize(
    "names", [("jobs", "..", "log"), ("..", "log"), ("pools", "..", "..", "trust", "ctl")]
)
def test_dots_lead_nowhere_that_has_no_right(worker: Enrolled, names: tuple[str, ...]) -> None:
    async def walk(client: Client) -> int:
        connection = client.connection
        with contextlib.suppress(FsError):
            reply = await connection.rpc(Twalk(client.root.fid, 999, names), Rwalk)
            return len(reply.wqid)
        return 0

    assert doing(worker, walk) < len(names)


OPERATIONS: dict[str, Work] = {
    "walk": lambda client: client.stat("/log"),
    "open": reading("/log/trace/live.jsonl"),
    "create": lambda client: client.create("/nodes/mine"),
    "remove": lambda client: client.remove("/nodes/w1"),
    "remove a file": lambda client: client.remove("/version"),
    "wstat": lambda client: change(client, "/state", mode=0o777),
    "write": writing("/pools/ctl", "create pool=mine\n"),
}


@pytest.mark.parametrize("dialect", [Dialect.U, Dialect.L])
@pytest.mark.parametrize("name", OPERATIONS)
def test_rights_are_asked_for_every_operation(
    hive: Networked, worker: Enrolled, name: str, dialect: Dialect
) -> None:
    error = refusal(worker, OPERATIONS[name], dialect=dialect)
    assert error.kind in (E.MISSING, E.DENIED, E.READONLY), error
    assert "online" == hive.ask("cat", "/state")


def test_a_prefix_is_of_whole_names() -> None:
    view = parse_manifest("test", b"mount hive /\nallow read /srv/**\n").view({})
    assert view.child("srv") is not None
    assert view.child("srvX") is None
    assert view.child("sr") is None


# roles


def test_who_is_unknown_reads_nothing(hive: Networked, tmp_path: Path) -> None:
    stranger = Enrolled(hive, tmp_path / "nobody")
    for path in ("/version", "/state", "/health/live", "/nodes"):
        done = stranger.skep("cat", path)
        assert (0, "") != (done.returncode, done.stdout)
        assert "" == done.stdout


def test_no_manifest_is_no_role_and_never_a_stronger_one(hive: Networked) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        load("nonesuch")
    done = hive.skep("invite", "--role", "nonesuch", "--node", "n1")
    assert 0 != done.returncode
    served = run("serve", "--role", "nonesuch", "--dir", str(hive.directory.parent / "none"))
    assert 0 != served.returncode
    assert not (hive.directory.parent / "none" / "ledger.db").exists()


# signatures, and what is shipped


def test_what_is_shipped_can_be_used(hive: Networked) -> None:
    for role in Source.told().roles():
        assert load(role).role == role
    assert 0 == hive.skep("policy", "test", str(ROOT / "skep/namespaces/policy/default")).returncode


@pytest.mark.parametrize("path", ["/jobs/ctl", "/trust/ctl", "/policy/ctl", "/nodes/ctl", "/ctl"])
def test_an_unknown_verb_is_an_error(boss: Enrolled, path: str) -> None:
    assert E.USAGE is refusal(boss, writing(path, "frobnicate job=1\n")).kind


def test_an_unknown_verb_of_a_manifest_is_an_error() -> None:
    with pytest.raises(ManifestError, match=r"test\.ns:2: .*unknown verb"):
        parse_manifest("test", b"mount hive /\nalow read /jobs\n")


# secrets


def test_no_key_is_in_the_repository() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    block = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{32}")
    for name in files.split(b"\0")[:-1]:
        path = ROOT / os.fsdecode(name)
        assert not path.is_file() or block.search(path.read_bytes()) is None, path


def test_two_hives_have_nothing_in_common(hive: Networked, tmp_path: Path) -> None:
    with networked(tmp_path) as other:
        ours, theirs = (each.ask("cat", "/trust/keys").split() for each in (hive, other))
        hexes = [{word for word in words if re.search(r"[0-9a-f]{40}", word)} for words in (ours, theirs)]
        assert hexes[0]
        assert hexes[0].isdisjoint(hexes[1])
        # And who belongs to one is a stranger to the other.
        guest = Enrolled(other, hive.enroll("operator", "guest").directory)
        assert 0 != guest.skep("cat", "/version").returncode


def test_guessing_invites_is_slowed_down(tmp_path: Path) -> None:
    async def guess(hive: Networked) -> list[FsError]:
        errors = []
        pin = hive.ask("cat", "/trust/spki")
        for _ in range(12):
            async with await Client.connect(hive.tls, pin=pin) as client:
                with pytest.raises(FsError) as caught:
                    await write(client, "/trust/enroll", '{"invite":"guess","secret":"guess","csr":"none"}')
                errors.append(caught.value)
        return errors

    # A hive of its own: others would come from the same address.
    with networked(tmp_path) as hive:
        assert E.THROTTLED in [error.kind for error in uvloop.run(guess(hive))]


# default of allow


def test_where_no_rule_matches_the_answer_is_no(hive: Networked) -> None:
    kiosk = hive.enroll("kiosk-interactive", "kiosk")
    error = refusal(kiosk, writing("/jobs/ctl", "submit topic=sha256 input=x\n"))
    assert E.DENIED is error.kind
    assert "trace=" in error.text


def test_approval_is_no_label(hive: Networked) -> None:
    kiosk = hive.enroll("kiosk-interactive", "kiosk2")
    for label in ("approved:true", "approval:granted", "role:operator"):
        submit = f"submit topic=sha256 input=x labels={label}\n"
        assert refusal(kiosk, writing("/jobs/ctl", submit)).kind in (E.DENIED, E.USAGE)


# what was refused, and what was said, stays


@pytest.mark.parametrize("path", ["/log/net_trace_secure9p.log", "/log/trace/live.jsonl"])
def test_nobody_cuts_or_writes_or_removes_a_timeline(hive: Networked, boss: Enrolled, path: str) -> None:
    before = hive.ask("cat", path)
    tries: list[Work] = [
        lambda client: client.open(path, "w"),
        lambda client: client.open(path, "w", trunc=True),
        lambda client: change(client, path, size=0),
        lambda client: client.remove(path),
    ]
    for dialect in (Dialect.U, Dialect.L):
        for attempt in tries:
            error = refusal(boss, attempt, dialect=dialect)
            assert error.kind in (E.READONLY, E.DENIED), error
    assert hive.ask("cat", path).startswith(before[:200])


def test_files_of_status_are_for_those_who_belong(hive: Networked, worker: Enrolled) -> None:
    assert E.MISSING is refusal(worker, reading("/health/live")).kind


def test_a_device_sees_the_jobs_it_submitted_and_no_others(hive: Networked, boss: Enrolled) -> None:
    """Its namespace is its own, not its tenant's."""
    hive.ask("write", "/pools/ctl", "create pool=gpu-1")
    hive.ask("write", "/pools/ctl", "map topic=face pool=gpu-1")
    booth, other = (hive.enroll("interactive-ai-booth", name) for name in ("booth", "booth2"))
    submit = writing("/jobs/ctl", "submit topic=face input=smile\n")
    mine, foreign, theirs = (doing(who, submit).split()[0] for who in (booth, other, boss))
    listed = {entry.name for entry in doing(booth, lambda client: client.listdir("/jobs"))}
    assert (True, False, False) == (mine in listed, foreign in listed, theirs in listed)
    assert b"queued\n" == doing(booth, reading(f"/jobs/{mine}/state"))
    assert E.MISSING is refusal(booth, reading(f"/jobs/{foreign}/state")).kind
    spite = [
        refusal(booth, writing("/jobs/ctl", f"cancel job={job} reason=spite\n"))
        for job in (foreign, theirs, foreign.replace(foreign[-4:], "0000"))
    ]
    assert 1 == len({(error.kind, error.detail) for error in spite}), spite
    doing(booth, writing("/jobs/ctl", f"cancel job={mine} reason=enough\n"))
    assert b"cancelled\n" == doing(booth, reading(f"/jobs/{mine}/state"))


def test_a_device_seals_the_input_of_its_job(hive: Networked) -> None:
    hive.ask("write", "/pools/ctl", "create pool=gpu-2")
    hive.ask("write", "/pools/ctl", "map topic=gaze pool=gpu-2")
    glasses = hive.enroll("glasses-agent", "glasses")

    async def seal_and_submit(client: Client) -> str:
        async with await client.create("/artifacts/stage/frame") as fid:
            await fid.write_all(b"what it sees")
        sealed = (await write(client, "/artifacts/ctl", "seal name=frame\n")).split()[0]
        return await write(client, "/jobs/ctl", f"submit topic=gaze artifact={sealed}\n")

    job = doing(glasses, seal_and_submit).split()[0]
    assert b"queued\n" == doing(glasses, reading(f"/jobs/{job}/state"))
