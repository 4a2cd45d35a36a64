from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import msgspec
import pytest
from conversing import (
    OPERATOR,
    WORKER,
    Recording,
    Served,
    play,
    record,
    session_of,
    unrecorded,
)
from recorded import ledger

from skep.__main__ import run
from skep.fs import messages as m
from skep.fs.errors import FsError
from skep.fs.messages import NUMBERS, Dialect, Message
from skep.fs.ninept import Record, Writer, read
from skep.fs.spiffe import Spiffe
from skep.fs.transcript import show
from skep.fs.wire import pack, unpack
from skep.namespaces.evidence import KEY_FILE
from skep.namespaces.policy.keys import load_or_create
from skep.namespaces.trust.authority import Authority
from skep.trace.clock import HOUR
from skep.trace.sqlite import SqliteLedger
from skep.validator.conversation.compared import Difference
from skep.validator.conversation.volatile import HIDDEN, NUMBERED
from skep.validator.replay.snapshots import Beside

replace = msgspec.structs.replace


def written(recording: Recording, records: list[Record], header: object = None) -> Recording:
    """The recording with these records, linked as if they had been recorded so."""
    writer = Writer()
    data = writer.header(header or recording.header)  # type: ignore[arg-type]
    for each in records:
        data += writer.record(each.kind, each.time_ns, each.seq, each.body, each.redactions)
    return Recording(data, recording.bodies)


def find(
    recording: Recording, kind: type[Message], having: str = "", nth: int = 0
) -> tuple[int, Message, int]:
    """Number, message and tag of a message whose line has the text."""
    found = []
    for n, each in enumerate(recording.records(), 1):
        if each.body[4] == NUMBERS[kind]:
            message = unpack(memoryview(each.body), Dialect.L)
            tag = int.from_bytes(each.body[5:7], "little")
            if having in show(tag, message, Dialect.L):
                found.append((n, message, tag))
    return found[nth]


def changed(
    recording: Recording, kind: type[Message], having: str, change: Callable[[Message], Message], nth: int = 0
) -> tuple[int, Recording]:
    n, message, tag = find(recording, kind, having, nth)
    records = recording.records()
    records[n - 1] = records[n - 1]._replace(body=pack(tag, change(message), Dialect.L))
    return n, written(recording, records)


@pytest.mark.parametrize("recorded", [OPERATOR, WORKER])
@pytest.mark.slow
def test_a_conversation_is_answered_as_it_was(recorded: Callable[[], Recording]) -> None:
    found = play(recorded())
    assert [] == found.differences
    assert (found.said, 0, []) == (found.compared, found.differ, found.notes)
    assert 25 < found.compared
    assert set(found.volatile) <= {NUMBERED}


def first(recording: Recording) -> Difference:
    found = play(recording, to_end=False)
    assert 1 == found.differ
    return found.differences[0]


@pytest.mark.slow
def test_another_byte_in_an_answer_is_found() -> None:
    def other(message: Message) -> Message:
        assert isinstance(message, m.Rread)
        return m.Rread(bytes(message.data).replace(b"queued", b"failed"))

    n, recording = changed(OPERATOR(), m.Rread, "queued", other)
    found = first(recording)
    assert (n, "Rread", "data", '"failed\\n"', '"queued\\n"') == (
        found.record, found.message, found.field, found.recorded, found.played,
    )  # fmt: skip
    assert found.path.endswith("/state")


@pytest.mark.slow
def test_another_refusal_is_found() -> None:
    n, recording = changed(OPERATOR(), m.Rlerror, "ecode 6", lambda message: m.Rlerror(13))
    assert (n, "ecode", "13", "6") == (lambda d: (d.record, d.field, d.recorded, d.played))(first(recording))


@pytest.mark.slow
def test_an_answer_of_another_kind_is_found() -> None:
    n, recording = changed(OPERATOR(), m.Rwrite, "count 31", lambda message: m.Rlerror(1))
    found = first(recording)
    assert (n, "message", "Rlerror tag 0 ecode 1", "Rwrite tag 0 count 31") == (
        found.record, found.field, found.recorded, found.played,
    )  # fmt: skip


@pytest.mark.slow
def test_a_name_more_in_a_directory_is_found() -> None:
    n, recording = changed(OPERATOR(), m.Rreaddir, "clone", lambda message: m.Rreaddir(b""))
    found = first(recording)
    assert (n, "data.names", '""') == (found.record, found.field, found.recorded)
    assert found.played.startswith('". .. clone')


@pytest.mark.slow
def test_the_same_number_for_two_files_is_found() -> None:
    recording = OPERATOR()
    walks = [find(recording, m.Twalk, f" wname {name}")[0] for name in ("state", "version")]
    records = recording.records()
    state, version = (unpack(memoryview(records[n].body), Dialect.L) for n in walks)
    assert isinstance(state, m.Rwalk)
    assert isinstance(version, m.Rwalk)
    swapped = pack(0, m.Rwalk((version.wqid[0]._replace(path=state.wqid[0].path),)), Dialect.L)
    records[walks[1]] = records[walks[1]]._replace(body=swapped)
    found = play(written(recording, records)).differences[0]
    assert (walks[1] + 1, "wqid[0].path") == (found.record, found.field)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T", "R"])
def test_a_dropped_record_is_found(kind: str) -> None:
    recording = OPERATOR()
    records = recording.records()
    n = find(recording, m.Twrite if kind == "T" else m.Rwrite, nth=0)[0]
    found = play(written(recording, records[: n - 1] + records[n:]))
    assert 0 < found.differ


@pytest.mark.slow
def test_an_answer_that_was_none_then_is_found() -> None:
    """Its tag is not used again: nothing else tells."""
    recording = OPERATOR()
    records = recording.records()
    n = find(recording, m.Twalk, "wname nowhere")[0]
    other = [
        each._replace(body=each.body[:5] + b"\x63\0" + each.body[7:]) if at == n else each
        for at, each in enumerate(records, 1)
        if at != n + 1
    ]
    found = play(written(recording, other)).differences
    assert [(n, "Twalk", "answer", "none", "Rlerror tag 99 ecode 2")] == [
        (each.record, each.message, each.field, each.recorded, each.played) for each in found
    ]


@pytest.mark.slow
def test_a_request_that_was_never_written_is_found() -> None:
    def other(message: Message) -> Message:
        assert isinstance(message, m.Twrite)
        return m.Twrite(message.fid, message.offset, b"submit topic=sum input=z key=k\n")

    n, recording = changed(OPERATOR(), m.Twrite, "key=k", other)
    found = first(recording)
    assert ("entry", "never written") == (found.message, found.recorded)
    assert n <= found.record <= n + 1


@pytest.mark.slow
def test_another_entry_beside_it_is_found() -> None:
    recording = OPERATOR()
    bodies = [body.replace(b'"input":"a"', b'"input":"x"') for body in recording.bodies]
    found = play(Recording(recording.data, tuple(bodies)))
    assert ("entry", "events[0].input", 7) == (lambda d: (d.message, d.field, d.entry))(found.differences[0])
    # What is read of the job is what the ledger says.
    assert any(each.path.endswith("/request.json") for each in found.differences)


@pytest.mark.slow
def test_another_tree_is_found() -> None:
    recording = OPERATOR()
    header = replace(recording.header, tree="00" * 32)
    other = written(recording, recording.records(), header)
    found = first(other)
    assert (0, "header", "tree", "00" * 32) == (found.record, found.message, found.field, found.recorded)
    # What was said is played all the same, up to the first that is answered otherwise.
    played = play(other, to_end=False)
    assert (1, play(recording).compared) == (played.differ, played.compared)


@pytest.mark.slow
def test_every_difference_is_told_when_all_are_asked_for() -> None:
    recording = OPERATOR()
    records = [
        each._replace(body=pack(int.from_bytes(each.body[5:7], "little"), m.Rlerror(5), Dialect.L))
        if each.body[4] == NUMBERS[m.Rread]
        else each
        for each in recording.records()
    ]
    found = play(written(recording, records))
    read = {n for n, each in enumerate(recording.records(), 1) if each.body[4] == NUMBERS[m.Rread]}
    assert read <= {each.record for each in found.differences}


# what a hive may be recorded doing


async def _midway(served: Served) -> str:
    """Recorded while it has files open, one of them long, and follows the events."""
    await unrecorded(served)
    async with await served.operator() as ann, await served.operator() as bob:
        session = await session_of(bob)
        ctl = await bob.open("/jobs/ctl", "rw")
        state = await bob.walk("/state")
        await ann.write_file("/log/trace/ctl", f"record session={session} on\n".encode())
        await ctl.write(0, b"submit topic=sum input=a\n")
        job = (await ctl.read(0, 100)).decode().split(" ")[0]
        async with await bob.open(f"/events@{served.alive.hive.turn.seq}") as events:
            coming = asyncio.ensure_future(events.read(0, 8192))
            await asyncio.sleep(0.02)
            await served.alive.write("/jobs/ctl", f"cancel job={job}")
            assert b"job.ended" in await coming
            late = asyncio.ensure_future(events.read(0, 8192))
            await asyncio.sleep(0.02)
            late.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await late
        await state.close()
        await ctl.close()
    return session


@pytest.mark.slow
def test_what_was_open_before_the_recording_is_open_again() -> None:
    recording = record(_midway)
    assert {"/jobs/ctl", "/state"} <= {path for _, path, _ in recording.header.fids}
    found = play(recording)
    assert ([], []) == (found.differences, found.notes)
    assert find(recording, m.Tflush), "a read was given up"


async def _plain(served: Served) -> str:
    """In 9P2000, whose errors are texts."""
    async with await served.operator(dialect=Dialect.PLAIN) as ann:
        session = await session_of(ann)
        await ann.listdir("/")
        await ann.scan("/pools")
        for line in ("submit topic=nobody\n", "submit topic=sum\n", "garbage topic=sum\n"):
            with contextlib.suppress(FsError):
                await ann.write_file("/jobs/ctl", line.encode())
        with contextlib.suppress(FsError):
            await ann.write_file("/locks/ctl", b"acquire name=a mode=x ttl=30s\n")
    return session


@pytest.mark.slow
def test_a_conversation_in_9p2000_is_answered_as_it_was() -> None:
    found = play(record(_plain))
    assert [] == found.differences


async def _denied(served: Served) -> str:
    """A worker where it has nothing to do."""
    async with await served.worker("w4") as w4:
        session = await session_of(w4)
        for path in ("/jobs", "/policy/ctl", "/nodes/w1/heartbeat", "/ns", "/locks/ctl"):
            with contextlib.suppress(FsError):
                await w4.read_file(path)
        for path in ("/locks/ctl", "/state", "/jobs/ctl"):
            with contextlib.suppress(FsError):
                await w4.write_file(path, b"acquire name=a mode=x ttl=30s\n")
        await w4.write_file("/nodes/w4/heartbeat", b'{"load":0.5,"capacity":2}\n')
    return session


@pytest.mark.slow
def test_what_was_refused_is_refused_again() -> None:
    recording = record(_denied)
    assert [] == play(recording).differences
    assert find(recording, m.Rlerror)


async def _artifacts(served: Served) -> str:
    """Stages, seals and reads an artifact; looks at what a worker printed, in 9P2000.u."""
    async with await served.operator(dialect=Dialect.U) as ann, await served.worker("w5") as w5:
        session = await session_of(ann)
        await ann.write_file("/artifacts/stage/x", bytes(100_000), create=True)
        await ann.write_file("/artifacts/ctl", b"seal name=x\n")
        await ann.scan("/artifacts")
        job = await served.alive.submit("input=a")
        await w5.read_file("/pools/default/next")
        await w5.write_file(f"/jobs/{job}/log", b"printed\n", append=True)
        assert b"printed\n" == await ann.read_file(f"/jobs/{job}/log")
        await ann.scan(f"/jobs/{job}")
        await ann.scan("/pools/default")
        await ann.read_file("/pools/default/load")
    return session


@pytest.mark.slow
def test_what_the_ledger_does_not_know_is_declared() -> None:
    found = play(record(_artifacts))
    assert [] == found.differences
    assert "what a job printed is not in the ledger" in found.volatile


async def _old(served: Served) -> str:
    """Looks at a job that has left memory."""
    job = await served.alive.submit("input=old key=k")
    await served.alive.write("/jobs/ctl", f"cancel job={job}")
    served.alive.clock.advance(96 * HOUR)
    await served.alive.submit("input=new")
    assert job not in served.alive.state.jobs.by_id
    async with await served.operator() as ann:
        session = await session_of(ann)
        assert b"cancelled\n" == await ann.read_file(f"/jobs/{job}/state")
        await ann.listdir(f"/jobs/{job}")
    return session


@pytest.mark.slow
def test_what_has_left_memory_is_found_again() -> None:
    assert [] == play(record(_old)).differences


async def _token(served: Served) -> str:
    """Mints a token, comes with it, and writes."""
    authority = Authority.open(served.directory, clock=served.alive.clock)
    await served.alive.hive.establish(authority, Spiffe("hive", "queen-primary", "q1"))
    async with await served.operator() as ann:
        async with await ann.open("/trust/tokens/clone", "rw") as clone:
            await clone.write(0, b"mint ops=read,write paths=/ ttl=1h\n")
            token = await clone.read(0, clone.unit)
        async with await served.operator(token=token.strip()) as eve:
            await eve.read_file("/state")
            async with await eve.open("/jobs/ctl", "rw") as ctl:
                await ctl.write(0, b"submit topic=sum input=t\n")
                await ctl.read(0, 4096)
            await eve.read_file("/trust/ca.pem")
            return (await eve.read_file("/whoami")).decode().partition("session ")[2].split()[0]


async def _mints(served: Served) -> str:
    """Mints two tokens, and asks for one that nobody gets."""
    authority = Authority.open(served.directory, clock=served.alive.clock)
    await served.alive.hive.establish(authority, Spiffe("hive", "queen-primary", "q1"))
    async with await served.operator() as ann:
        for line in (b"mint ops=read paths=/jobs ttl=1h\n", b"mint ops=fly paths=/ ttl=1h\n") * 2:
            async with await ann.open("/trust/tokens/clone", "rw") as clone:
                with contextlib.suppress(FsError):
                    await clone.write(0, line)
                await clone.read(0, clone.unit)
        return await session_of(ann)


@pytest.mark.slow
def test_tokens_are_made_again_and_go_by_the_names_that_they_had() -> None:
    found = play(record(_mints))
    assert (0, []) == (found.differ, found.notes)
    assert 4 == found.volatile[HIDDEN]


@pytest.mark.slow
def test_a_proof_is_hidden_and_neither_asked_for_nor_compared() -> None:
    found = play(record(_token))
    assert ["/whoami"] == sorted({each.path for each in found.differences}), "which tells of the token"
    (note,) = found.notes
    assert note.startswith("the proof is hidden: it is played as unix:")


@pytest.mark.slow
def test_whatever_byte_is_changed_in_what_was_read_it_is_found() -> None:
    chance, recording = Random(5), OPERATOR()
    records = recording.records()
    compared = [NUMBERS[kind] for kind in (m.Rread, m.Rwrite, m.Rlerror)]
    places = [
        (n, at)
        for n, each in enumerate(records)
        if each.body[4] in compared
        for at in range(7, len(each.body))
    ]
    for n, at in chance.sample(places, 20):
        body = bytearray(records[n].body)
        body[at] ^= 1 << chance.randrange(8)
        changed = [*records[:n], records[n]._replace(body=bytes(body)), *records[n + 1 :]]
        found = play(written(recording, changed), to_end=False)
        assert n + 1 == found.differences[0].record, (n, at)


# the command


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("hive")
    ledger(directory / "ledger.db", OPERATOR().bodies)
    sessions = directory / "log" / "trace" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "same.9pt").write_bytes(OPERATOR().data)
    other = changed(OPERATOR(), m.Rlerror, "ecode 6", lambda message: m.Rlerror(13))[1]
    (sessions / "other.9pt").write_bytes(other.data)
    return directory


@pytest.mark.slow
def test_the_command_tells_what_differs(
    hive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = hive / "log" / "trace" / "sessions"
    assert 0 == run(["replay", "--wire", str(sessions / "same.9pt")])
    assert "answers: the same\n" in capsys.readouterr().out
    assert 1 == run(["replay", "--wire", str(sessions / "other.9pt"), "--fresh"])
    out, err = capsys.readouterr()
    assert ": Rlerror /jobs/ctl: ecode: recorded 13, played 6\n" in out
    assert err.endswith("other.9pt: it is answered otherwise\n")
    alone = tmp_path / "alone.9pt"
    alone.write_bytes(OPERATOR().data[:-10])
    assert 2 == run(["replay", "--wire", str(alone)])
    assert 0 == run(["replay", "--wire", str(alone), "--ledger", str(hive), "--json"])
    found = msgspec.json.decode(capsys.readouterr().out)
    assert (0, ["the recording was cut short"]) == (found["differ"], found["notes"])
    assert 2 == run(["replay", "--wire", str(alone), "unix:/nowhere", "--fresh"])
    assert 2 == run(["replay"])


@pytest.mark.slow
def test_a_recording_that_was_changed_is_not_played(hive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = OPERATOR().data
    at = data.index(b"queued")
    path = hive / "changed.9pt"
    path.write_bytes(data[:at] + b"Q" + data[at + 1 :])
    n = find(OPERATOR(), m.Rread, "queued")[0]
    assert 1 == run(["replay", "--wire", str(path)])
    assert f"record {n}: its link is not that of what comes before it" in capsys.readouterr().err


@pytest.mark.slow
def test_it_begins_from_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = OPERATOR()
    load_or_create(tmp_path / KEY_FILE)
    path = ledger(tmp_path / "ledger.db", recording.bodies[:5])
    assert 0 == run(["snapshot", str(tmp_path)])
    with closing(SqliteLedger(str(path))) as opened:
        opened.begin()
        list(opened.tail())
        opened.append(recording.bodies[5:])
        opened.commit()
    with closing(SqliteLedger(str(path))) as opened:
        begun = Beside(path, opened).before(7)
        assert begun is not None
        assert 5 == begun.seq
    (tmp_path / "ann.9pt").write_bytes(recording.data)
    assert 0 == run(["replay", "--wire", str(tmp_path / "ann.9pt")])
    assert "answers: the same\n" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_played_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = OPERATOR()
    (tmp_path / "ann.9pt").write_bytes(recording.data)
    ledger(tmp_path / "ledger.db", recording.bodies[:8])
    assert 1 == run(["replay", "--wire", str(tmp_path / "ann.9pt")])
    assert "it ends at entry 8, expected 9" in capsys.readouterr().err
    header = replace(recording.header, role="nobody")
    (tmp_path / "nobody.9pt").write_bytes(written(recording, recording.records(), header).data)
    assert 1 == run(["replay", "--wire", str(tmp_path / "nobody.9pt")])
    assert "role 'nobody': " in capsys.readouterr().err


@pytest.mark.slow
def test_a_frame_that_no_connection_would_take_ends_what_is_answered() -> None:
    recording = OPERATOR()
    header = replace(recording.header, msize=64)
    version = [each for each in recording.records() if each.body[4] not in (100, 101)]
    long = next(n for n, each in enumerate(version) if each.kind == "T" and len(each.body) > 64)
    records = version[: long + 2]
    found = play(written(recording, records, header))
    assert (long + 2, "no answer") == (found.differences[-1].record, found.differences[-1].played)


async def _looks(served: Served) -> str:
    async with await served.operator() as ann:
        session = await session_of(ann)
        await ann.read_file("/state")
        await ann.listdir("/pools")
    return session


@pytest.mark.slow
def test_a_conversation_is_played_to_a_hive_at_an_address(tmp_path: Path) -> None:
    """The session's own name is another there."""
    recording = record(_looks)
    assert read(recording.data)[0].dialect == "9P2000.L"

    async def there(served: Served) -> str:
        served.alive.clock.new_id()
        path = tmp_path / "looks.9pt"
        path.write_bytes(recording.data)
        command = ["replay", "--wire", str(path), f"unix:{served.directory}/hive.sock", "--all", "--json"]
        status, out = await asyncio.to_thread(ran, command)
        found = msgspec.json.decode(out)
        assert (1, ["/whoami"]) == (status, sorted({each["path"] for each in found["differences"]}))
        async with await served.operator() as ann:
            return await session_of(ann)

    record(there)


def ran(command: list[str]) -> tuple[int, bytes]:
    from click.testing import CliRunner

    from skep.cli.replaying import replay_command

    done = CliRunner().invoke(replay_command, command[1:])
    return (1 if done.exit_code else 0), done.stdout_bytes
