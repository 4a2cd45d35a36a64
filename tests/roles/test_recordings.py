"""Recorded conversations: a hive behind its gate, clients by Unix sockets, and the files that it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from biscuit_auth import Biscuit

from skep.fs.dial import Client, login_name
from skep.fs.errors import E, FsError
from skep.fs.messages import Dialect, Message, Rversion, Tattach, Tread, Tversion, Twrite
from skep.fs.ninept import Header, Reading, Record, read
from skep.fs.server import listen
from skep.fs.spiffe import Spiffe
from skep.fs.wire import unpack
from skep.namespaces.log.recordings import Ordered, Orders, Recorded
from skep.namespaces.sessions.core import Sessions
from skep.namespaces.tapes import FILES_MAX, TAPES_MAX, UNSAID_MAX, Tapes
from skep.namespaces.tokens.biscuit import Terms, attenuate, key_id, public_key, verify
from skep.namespaces.tree import hive_tree
from skep.namespaces.trust.authority import Authority
from skep.roles.gate import Doorkeeper
from skep.roles.manifest import load
from skep.trace.clock import ManualClock
from tests.namespaces.door import Door
from tests.namespaces.hives import EYE, Living, living
from tests.namespaces.trusting import Applicant

ME = f"unix:{login_name()}"
CTL = "/log/trace/ctl"
RED = "red/team/env"
QUEEN = Spiffe("hive", "queen-primary", "q1")


class Served:
    """A hive that listens; what is recorded is on disk after ``settle``."""

    def __init__(self, alive: Living, directory: Path) -> None:
        self.alive = alive
        self.hive = alive.hive
        self.address = f"unix:{directory}/hive.sock"
        self.folder = directory / "log" / "trace" / "sessions"
        self.told: list[Recorded] = []

    def connect(self, **how: Any) -> Any:
        return Client.connect(self.address, **how)

    async def settle(self) -> None:
        await self.hive.tapes.flush()

    async def wait_gone(self, session: str) -> None:
        while session in self.hive.sessions.by_id:
            await asyncio.sleep(0)
        await self.settle()

    def recording(self, session: str) -> tuple[Header, list[Record], Reading]:
        header, records = read((self.folder / f"{session}.9pt").read_bytes())
        return header, list(records), records


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    async with living(directory) as alive:
        keeper = Doorkeeper(alive.hive, hive_tree(alive.hive), load("operator"))
        served = Served(alive, directory)
        alive.hive.turn.on_commit.append(
            lambda entries: served.told.extend(
                event for entry in entries for event in entry.events if isinstance(event, Recorded)
            )
        )
        async with listen(keeper, served.address):
            yield served


def story(told: Callable[[Served], Awaitable[None]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with serving(Path(directory)) as served:
                await told(served)

    asyncio.run(asyncio.wait_for(run(), 60))


async def session_of(client: Client) -> str:
    text = (await client.read_file("/whoami")).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())["session"]


def messages(records: list[Record], dialect: Dialect = Dialect.L) -> list[Message]:
    return [unpack(memoryview(record.body), dialect) for record in records if record.kind != "E"]


def test_a_session_is_recorded_from_the_command_to_its_end() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann, await served.connect() as bob:
            session = await session_of(bob)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            assert b"ok\n" == await bob.read_file("/health/live")
        await served.wait_gone(session)
        header, records, reading = served.recording(session)
        assert (session, ME, "operator", "9P2000.L") == (
            header.session, header.principal, header.role, header.dialect,
        )  # fmt: skip
        said = messages(records)
        assert b"ok\n" in [getattr(message, "data", None) for message in said]
        assert "T" == records[0].kind
        assert len([r for r in records if r.kind == "T"]) == len([r for r in records if r.kind == "R"])
        assert reading.end is not None
        assert ("closed", 0) == (reading.end.why, reading.end.lost)
        (ended,) = served.told
        assert (session, "closed", f"{session}.9pt", len(records) - 1, reading.link.hex()) == (
            ended.session, ended.why, ended.file, ended.messages, ended.link,
        )  # fmt: skip
        assert not served.alive.state.log.recordings

    story(told)


def test_a_principal_is_recorded_from_its_first_message() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            await ann.write_file(CTL, f"record principal={ME} on\n".encode())
            assert f"principal={ME}\n".encode() == await ann.read_file("/log/trace/recordings")
            async with await served.connect(dialect=Dialect.PLAIN) as bob:
                session = await session_of(bob)
            await served.wait_gone(session)
            header, records, reading = served.recording(session)
            said = messages(records, Dialect.PLAIN)
            assert [Tversion, Rversion, Tattach] == [type(message) for message in said[:3]]
            assert ("9P2000", ()) == (header.dialect, header.fids)
            assert reading.end is not None
            await ann.write_file(CTL, f"record principal={ME} off\n".encode())
            async with await served.connect() as bob:
                assert bob.connection.session is not None
                later = await session_of(bob)
            await served.wait_gone(later)
            assert [f"{session}.9pt"] == [entry.name for entry in await ann.listdir("/log/trace/sessions")]

    story(told)


def test_what_principals_are_recorded_for_leaves_others_alone() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            await ann.write_file(CTL, b"record principal=unix:somebody on\n")
            async with await served.connect() as bob:
                session = served.hive.sessions.by_id[await session_of(bob)]
                assert session.conversation is not None
                assert session.conversation.session.recorder is None
        await served.settle()
        assert not served.folder.exists()

    story(told)


def test_a_recording_is_read_while_it_grows() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            session = await session_of(ann)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            await served.settle()
            before = await ann.read_file(f"/log/trace/sessions/{session}.9pt")
            line = (await ann.read_file("/log/trace/recordings")).decode()
            assert line.startswith(f"session={session} principal={ME} since=")
            await served.settle()
            after = await ann.read_file(f"/log/trace/sessions/{session}.9pt")
            assert after.startswith(before)
            _, records = read(after)
            assert [*records]
            assert records.cut

    story(told)


def test_a_recording_ends_by_command_and_the_session_goes_on() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            session = await session_of(ann)
            for _ in range(2):
                await ann.write_file(CTL, f"record session={session} on\n".encode())
                await ann.write_file(CTL, f"record session={session} off\n".encode())
                await served.settle()
            names = [f"{session}.2.9pt", f"{session}.9pt"]
            assert names == [entry.name for entry in await ann.listdir("/log/trace/sessions")]
            assert ["off", "off"] == [ended.why for ended in served.told]
            assert b"ok\n" == await ann.read_file("/health/live")
            assert 0o600 == (served.folder / names[0]).stat().st_mode & 0o777
            assert 0o700 == served.folder.stat().st_mode & 0o777

    story(told)


def test_the_inner_loop_answers_as_before_but_everything_is_recorded() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            session = await session_of(ann)
            # What the loop bound by itself, the session must know when it takes over.
            fid = await ann.walk("/health/live")
            conversation = served.hive.sessions.by_id[session].conversation
            assert conversation is not None
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            assert conversation.session.kernel is None
            stats = [await ann.stat("/health/live") for _ in range(3)]
            assert stats[0] == stats[2]
            await served.settle()
            _, records, _ = served.recording(session)
            asked = [message for message in messages(records) if type(message).__name__ == "Tgetattr"]
            assert 3 == len(asked)
            header, _, _ = served.recording(session)
            assert (fid.fid, "/health/live", -1) in header.fids

    story(told)


def test_no_secret_is_in_a_recording() -> None:
    async def told(served: Served) -> None:
        authority = Authority.open(served.folder.parents[2], clock=served.alive.clock)
        await served.hive.establish(authority, QUEEN)
        async with await served.connect() as ann:
            await ann.write_file(CTL, f"record principal={ME} on\n".encode())
        secrets: list[bytes] = []
        sessions = []
        for dialect in Dialect:
            async with await served.connect(dialect=dialect) as bob:
                sessions.append(await session_of(bob))
                token = await ask(bob, "/trust/tokens/clone", b"mint ops=read,write paths=/ ttl=1h\n")
                assert served.hive.tokens is not None
                raw = bytes(served.hive.tokens.public_key)
                whole = Biscuit.from_base64(token.decode().strip(), public_key(raw))
                narrow = attenuate(
                    verify(bytes(whole.to_bytes()), {key_id(raw): public_key(raw)}),
                    Terms(places=None, uses=7),
                ).to_base64()
                invite = await ask(bob, "/trust/ctl", b"invite role=drone-worker node=w7\n")
                text = invite.split()[0].decode()
                said = json.loads(urlsafe_b64decode(text.removeprefix("skep1.") + "=="))
                request = {"invite": said["id"], "secret": said["secret"], "csr": Applicant().csr}
                answer = await ask(bob, "/trust/enroll", json.dumps(request).encode())
                assert b"BEGIN CERTIFICATE" in answer
                secrets += [token.strip(), narrow.encode(), invite.split()[0], said["secret"].encode()]
                async with await served.connect(dialect=dialect, token=narrow.encode()) as eve:
                    sessions.append(await session_of(eve))
        for session in sessions:
            await served.wait_gone(session)
        assert 6 == len(sessions)
        for session in sessions:
            data = (served.folder / f"{session}.9pt").read_bytes()
            _, records, reading = served.recording(session)
            assert reading.end is not None
            assert any(record.redactions for record in records)
            for each in secrets:
                pieces = [each[at : at + 16] for at in range(0, len(each) - 15, 8)]
                assert not [piece for piece in pieces if piece in data], each
            asked = messages(records, Dialect(reading.header.dialect))
            assert [message for message in asked if isinstance(message, (Tread, Twrite))]

    story(told)


async def ask(client: Client, path: str, said: bytes) -> bytes:
    async with await client.open(path, "rw") as fid:
        await fid.write(0, said)
        return await fid.read(0, fid.unit)


def test_a_tenants_recordings_are_its_own() -> None:
    async def told(served: Served) -> None:
        async with (
            await served.connect() as ann,
            await served.connect(aname=RED) as red,
            await served.connect(aname="blue/team/env") as blue,
        ):
            mine, others = await session_of(red), await session_of(blue)
            with pytest.raises(FsError) as caught:
                await red.write_file(CTL, f"record session={others} on\n".encode())
            assert E.MISSING is caught.value.kind
            await red.write_file(CTL, f"record session={mine} on\n".encode())
            await ann.write_file(CTL, f"record session={others} on\n".encode())
            await served.settle()
            assert [f"session={mine}"] == [
                line.split()[0]
                for line in (await red.read_file("/log/trace/recordings")).decode().splitlines()
            ]
            for client, names in ((red, {mine}), (blue, {others}), (ann, {mine, others})):
                found = {entry.name for entry in await client.listdir("/log/trace/sessions")}
                assert {f"{name}.9pt" for name in names} == found
            with pytest.raises(FsError) as caught:
                await red.read_file(f"/log/trace/sessions/{others}.9pt")
            assert E.MISSING is caught.value.kind
            assert (await red.read_file(f"/log/trace/sessions/{mine}.9pt")).startswith(b"skep-9pt/1\n")

    story(told)


def test_a_recording_ends_when_its_client_goes_on_in_another_tenant() -> None:
    async def told(served: Served) -> None:
        async with await served.connect(aname=RED) as red:
            session = await session_of(red)
            await red.write_file(CTL, f"record session={session} on\n".encode())
            other = await Client.attach(red.connection, aname="blue/team/env")
            await session_of(other)
            await served.settle()
            _, records, reading = served.recording(session)
            assert reading.end is not None
            assert ("elsewhere", 1) == (reading.end.why, min(reading.end.lost, 1))
            assert not any(b"blue" in record.body for record in records)
            # Nor is one begun there now.
            await red.write_file(CTL, f"record session={session} on\n".encode())
            await served.settle()
            assert ["elsewhere", "elsewhere"] == [ended.why for ended in served.told]
            assert [f"{session}.9pt"] == [path.name for path in served.folder.iterdir()]

    story(told)


def test_who_is_no_auditor_finds_no_recordings() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann:
            session = await session_of(ann)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            await served.settle()
        door = Door(hive_tree(served.hive), EYE)
        assert [] == await door.names("/log/trace/sessions")
        assert not await door.exists(f"/log/trace/sessions/{session}.9pt")
        for doing in (door.read("/log/trace/recordings"), door.write(CTL, "record principal=unix:x on\n")):
            with pytest.raises(FsError) as caught:
                await doing
            assert E.DENIED is caught.value.kind

    story(told)


def test_a_full_file_ends_the_recording_not_the_session() -> None:
    async def told(served: Served) -> None:
        served.hive.tapes.size_max = 20_000
        async with await served.connect() as ann:
            session = await session_of(ann)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            for _ in range(100):
                assert b"ok\n" == await ann.read_file("/health/live")
            await served.settle()
            assert (served.folder / f"{session}.9pt").stat().st_size <= 20_000
            _, _, reading = served.recording(session)
            assert reading.end is not None
            assert ("full", served.told[0].lost) == (reading.end.why, reading.end.lost)
            assert b"" == await ann.read_file("/log/trace/recordings")

    story(told)


def test_where_no_file_can_be_made_the_ledger_says_so_and_the_session_goes_on() -> None:
    async def told(served: Served) -> None:
        served.folder.parent.mkdir(parents=True)
        served.folder.write_text("in the way")
        async with await served.connect() as ann:
            session = await session_of(ann)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            await served.settle()
            assert b"ok\n" == await ann.read_file("/health/live")
        (ended,) = served.told
        assert ("disk", "", 0) == (ended.why, ended.file, ended.messages)
        assert ended.lost

    story(told)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_recording_with_what_was_lost() -> None:
    async def told(served: Served) -> None:
        served.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "skep-test", served.folder], check=True)
        try:
            async with await served.connect() as ann:
                session = await session_of(ann)
                await ann.write_file(CTL, f"record session={session} on\n".encode())
                await served.settle()
                for _ in range(400):
                    await ann.read_file("/health/live")
                await served.settle()
                _, records, reading = served.recording(session)
                (ended,) = served.told
                assert reading.end is not None
                assert ("space", ended.lost) == (reading.end.why, reading.end.lost)
                assert ended.lost > 400
                assert (len(records) - 1, reading.link.hex()) == (ended.messages, ended.link)
                assert b"ok\n" == await ann.read_file("/health/live")
        finally:
            subprocess.run(["umount", served.folder], check=True)

    story(told)


def test_what_a_full_disk_keeps_from_being_said_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(path: str, line: str, tenant: str) -> None:
        raise FsError(E.NOSPACE, "entry 36")

    async def run() -> None:
        tapes = Tapes(tmp_path, ManualClock(), "0.1", Sessions(), lambda: 0, Orders, full)
        for session in ("s1", "s2"):
            tapes.moved(Ordered("", on=True, session=session))
        for _ in range(5):
            tapes.tick()
            await tapes.flush()
        await tapes.close()

    caplog.set_level("INFO", "skep.recordings")
    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert ["recorded session=s1 why=missing: no space left on device: entry 36"] == said


def test_while_a_disk_is_full_only_so_much_waits_to_be_said(tmp_path: Path) -> None:
    said: list[str] = []
    is_full = True

    async def say(path: str, line: str, tenant: str) -> None:
        if is_full:
            raise FsError(E.NOSPACE, "entry 36")
        said.append(line)

    async def run() -> None:
        nonlocal is_full
        tapes = Tapes(tmp_path, ManualClock(), "0.1", Sessions(), lambda: 0, Orders, say)
        for n in range(UNSAID_MAX + 3):
            tapes.moved(Ordered("", on=True, session=f"s{n}"))
        await tapes.flush()
        is_full = False
        await tapes.close()

    asyncio.run(run())
    assert [f"recorded session=s{n} why=missing" for n in range(UNSAID_MAX)] == said


def test_the_oldest_recordings_make_room() -> None:
    async def told(served: Served) -> None:
        served.folder.mkdir(parents=True)
        for n in range(FILES_MAX + 3):
            (served.folder / f"{n:04}.9pt").write_bytes(b"")
            os.utime(served.folder / f"{n:04}.9pt", (n, n))
        async with await served.connect() as ann:
            session = await session_of(ann)
            await ann.write_file(CTL, f"record session={session} on\n".encode())
            await served.settle()
        left = {path.name for path in served.folder.iterdir()}
        assert {f"{session}.9pt", *(f"{n:04}.9pt" for n in range(4, FILES_MAX + 3))} == left

    story(told)


def test_a_hive_records_only_so_many_at_a_time() -> None:
    async def told(served: Served) -> None:
        async with await served.connect() as ann, contextlib.AsyncExitStack() as stack:
            await ann.write_file(CTL, f"record principal={ME} on\n".encode())
            for _ in range(TAPES_MAX + 1):
                await stack.enter_async_context(await served.connect())
            assert TAPES_MAX == len(served.hive.tapes.tapes)
            await served.settle()
            assert ["many"] == [ended.why for ended in served.told]

    story(told)


def test_a_hive_that_begins_anew_records_nobody() -> None:
    async def told(directory: Path) -> None:
        async with living(directory, str(directory / "ledger.db")) as alive:
            await alive.write(CTL, "record principal=unix:ann on")
            assert alive.state.log.recordings
        async with living(directory, str(directory / "ledger.db")) as alive:
            assert not alive.state.log.recordings

    with TemporaryDirectory() as folder:
        asyncio.run(told(Path(folder)))
