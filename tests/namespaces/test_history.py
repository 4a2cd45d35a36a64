from __future__ import annotations

import asyncio
import copy
import dataclasses
import sqlite3
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, W1, Folded, Living, live, living

from skep.fs import ctl
from skep.fs.chan import PAGE, Chan
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.fs.node import How
from skep.fs.wire import unpack_dirents
from skep.namespaces.checked import vouched_line
from skep.namespaces.jobs.files import FILES
from skep.namespaces.jobs.history import BATCH, FILE, History
from skep.namespaces.jobs.letters import with_request
from skep.namespaces.jobs.past import ENDED_MAX, HISTORY_NS, KEY_NS, LEAVE_MAX, Past
from skep.namespaces.packed import pack
from skep.namespaces.tree import hive_tree
from skep.trace.clock import HOUR, SECOND, ManualClock
from skep.trace.entry import canonical
from skep.trace.rules import Refusal

A = "ab" * 32


@pytest.fixture
def hive() -> Folded:
    return Folded()


def done(hive: Folded, more: str = "", end: str = "ack result=3") -> str:
    """A job that has ended."""
    job = hive.write("/jobs/ctl", f"submit topic=sum {more}")
    hive.write("/pools/default/next", "lease", W1)
    for verb in ("start", end):
        hive.write(f"/jobs/{job}/ctl", f"{verb} fence=1", W1)
    return job


def told(hive: Folded, path: str, line: str) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line)
    return f"{caught.value.code} {caught.value.text}"


# what is remembered


def test_a_job_that_has_ended_leaves_memory_when_its_time_is_over(hive: Folded) -> None:
    job = done(hive)
    hive.clock.time_ns += HISTORY_NS - SECOND
    done(hive)
    assert job in hive.state.jobs.by_id
    hive.clock.time_ns += SECOND
    other = hive.write("/jobs/ctl", "submit topic=sum")
    assert [other] == [id for id in hive.state.jobs.by_id if id >= other]
    assert job not in hive.state.jobs.by_id
    assert job not in hive.state.jobs.by_tenant[ANN.tenant]
    assert "MISSING file does not exist" == told(hive, f"/jobs/{job}/ctl", "cancel")


def test_how_long_is_configured(hive: Folded) -> None:
    text = b"[jobs]\nhistory = '10s'\nkey-window = '2m'\n"
    args = {"scope": "system", "sha256": sha256(text).hexdigest(), "content": pack(text)}
    hive.write("/config/ctl", ctl.line("publish", args))
    job = done(hive, "key=k")
    hive.clock.time_ns += 10 * SECOND
    other = done(hive)
    assert [other] == list(hive.state.jobs.by_id)
    hive.clock.time_ns += 110 * SECOND - 1
    assert job == hive.write("/jobs/ctl", "submit topic=sum key=k")
    hive.clock.time_ns += 1
    assert job != hive.write("/jobs/ctl", "submit topic=sum key=k")


def test_of_too_many_those_leave_that_would_leave_first() -> None:
    ended = Past()
    for n in range(ENDED_MAX + 6):
        ended.end(f"{n:09}", n ^ 1)
    assert ["000000001", "000000000", "000000003", "000000002"] == ended.leaving(-1)
    assert ["000000005", "000000004"] == ended.leaving(-1)
    assert [] == ended.leaving(-1)
    assert ["000000007", "000000006"] == ended.leaving(7)


def test_a_key_is_kept_for_its_window_and_no_longer(hive: Folded) -> None:
    job = done(hive, "key=k input=1")
    hive.clock.time_ns += KEY_NS - 1
    done(hive)
    assert job not in hive.state.jobs.by_id
    assert job == hive.write("/jobs/ctl", "submit topic=sum key=k input=1")
    assert told(hive, "/jobs/ctl", "submit topic=sum key=k input=2").startswith("IDEMPOTENCY")
    hive.clock.time_ns += 1
    again = hive.write("/jobs/ctl", "submit topic=sum key=k input=2")
    assert again != job
    assert again == hive.write("/jobs/ctl", "submit topic=sum key=k input=2")
    assert [again] == [keyed.job for keyed in hive.state.jobs.by_key[ANN.tenant].values()]


def test_a_key_given_anew_is_not_freed_by_its_first_window(hive: Folded) -> None:
    job = done(hive, "key=k", "nack error=e")
    hive.clock.time_ns += HOUR
    again = hive.write("/dlq/ctl", f"retry id={job}")
    hive.clock.time_ns += KEY_NS - SECOND
    assert again == hive.write("/jobs/ctl", "submit topic=sum key=k")


def test_a_draft_that_could_be_a_forgotten_job_is_refused(hive: Folded) -> None:
    draft = hive.clock.new_id()
    assert draft == hive.write(f"/jobs/{draft}/ctl", "submit topic=sum")
    hive.write(f"/jobs/{draft}/ctl", "cancel")
    assert told(hive, f"/jobs/{draft}/ctl", "submit topic=sum").startswith("EXISTS")
    hive.clock.time_ns += HISTORY_NS
    hive.write("/jobs/ctl", "submit topic=sum")
    assert told(hive, f"/jobs/{draft}/ctl", "submit topic=sum").startswith(
        f"GONE gone: job={draft}: this draft"
    )
    late = hive.clock.new_id()
    assert late == hive.write(f"/jobs/{late}/ctl", "submit topic=sum")


def test_outputs_are_forgotten_with_their_job_and_those_of_dead_letters_are_used(hive: Folded) -> None:
    jobs, requests = [], []
    for name, end in (("a", "ack"), ("b", "nack error=e")):
        job = hive.write("/jobs/ctl", "submit topic=sum")
        hive.write("/pools/default/next", "lease", W1)
        hive.write(f"/jobs/{job}/ctl", "start fence=1", W1)
        hive._write(
            "unix:work#w1", "drone-worker", ANN.tenant, "/artifacts/ctl",
            f"seal name={name} sha256={sha256(name.encode()).hexdigest()} size=1 job={job}",
        )  # fmt: skip
        hive.write(f"/jobs/{job}/ctl", f"{end} fence=1", W1)
        jobs.append(job)
        requests.append(hive.state.jobs.by_id[job].request)
    hive.clock.time_ns += HISTORY_NS
    done(hive)
    assert [jobs[1]] == list(hive.state.artifacts.outputs)
    used = sha256(b"b").hexdigest()
    assert used in hive.state.artifacts_used(ANN.tenant)
    assert told(hive, "/artifacts/ctl", f"remove sha256={used}").startswith("BUSY")
    (command,) = ctl.parse(f"discard id={jobs[1]} reason=r\n".encode())
    hive.write("/dlq/ctl", vouched_line(command, with_request(requests[1])))
    assert {} == hive.state.artifacts.outputs
    hive.write("/artifacts/ctl", f"remove sha256={used}")


@pytest.mark.parametrize("said", ["", "AAAA", pack(b'{"job":"x"}')])
def test_a_forgotten_letter_is_retried_with_the_request_that_was_made_and_no_other(
    hive: Folded, said: str
) -> None:
    job = done(hive, "key=k input=x labels=a:b retries=0", "nack error=e")
    request = hive.state.jobs.by_id[job].request
    hive.clock.time_ns += HISTORY_NS
    done(hive)
    assert told(hive, "/dlq/ctl", ctl.line("retry", {"id": job, "request": said})).startswith("MISSING")
    forged = canonical(msgspec.structs.replace(request, input="y"))
    assert told(hive, "/dlq/ctl", f"retry id={job} request={pack(forged)}").startswith("MISSING")
    (command,) = ctl.parse(f"retry id={job}\n".encode())
    again = hive.write("/dlq/ctl", vouched_line(command, with_request(request)))
    new = hive.state.jobs.by_id[again].request
    assert (job, "x", {"a": "b"}, "k") == (new.retry_of, new.input, new.labels, new.key)
    assert {} == hive.state.jobs.dead
    assert told(hive, "/dlq/ctl", vouched_line(command, with_request(request))).startswith("MISSING")


def test_a_copy_of_the_state_remembers_the_same_and_moves_alone(hive: Folded) -> None:
    done(hive, "key=a", "nack error=e")
    hive.clock.time_ns += HISTORY_NS
    done(hive, "key=b")
    before, copied = copy.deepcopy(hive.state), hive.state.copy()
    assert before == copied
    hive.clock.time_ns += KEY_NS
    done(hive)
    assert before == copied != hive.state


def weight(value: object) -> int:
    """How many things it holds."""
    if isinstance(value, dict):
        return sum(1 + weight(each) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(1 + weight(each) for each in value)
    return weight(vars(value)) if dataclasses.is_dataclass(value) else 0


@pytest.mark.slow
def test_nothing_in_memory_grows_with_the_jobs_that_were_done(hive: Folded) -> None:
    def work(jobs: int) -> int:
        for n in range(jobs):
            job = done(hive, f"key=k{hive.seq}", "nack error=e final=true" if n % 100 == 0 else "ack")
            hive.clock.time_ns += HOUR // 100
            if n % 100 == 0:
                hive.write("/dlq/ctl", f"discard id={job} reason=r")
        return weight(hive.state)

    assert work(5000) == work(5000) == work(10_000)


# what is read of it

LEFT = (*(name for name in FILES if name not in ("ctl", "log", "out", "progress")), "log", "out")


async def ended(alive: Living, more: str = "", end: str = "ack result=3") -> str:
    """A job that a node has ended, with a line in its log and an output."""
    job = await alive.submit(more)
    await alive.hive.take(W1, "default")
    await alive.run(job, "start")
    await Door(hive_tree(alive.hive), W1).write(f"/jobs/{job}/log", "said\n", How(write=True, append=True))
    seal = f"seal name=out sha256={A} size=1 job={job}"
    await alive.hive._submit("unix:work#w1", "drone-worker", ANN.tenant, "/artifacts/ctl", (seal,))
    await alive.run(job, end)
    return job


async def forgotten(alive: Living) -> None:
    """Whatever has ended has left memory."""
    alive.clock.time_ns += HISTORY_NS
    for _ in range(len(alive.state.jobs.past.ended) // LEAVE_MAX + 1):
        (job,) = await alive.write("/jobs/ctl", "submit topic=sum")
        await alive.write(f"/jobs/{job}/ctl", "cancel")


def test_a_job_that_has_left_memory_reads_as_before() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        jobs = [await ended(alive, "key=a input=x labels=a:b"), await ended(alive, "key=b", "nack error=e")]
        paths = [f"{job}/{name}" for job in jobs for name in LEFT] + ["by-key/a", "by-key/b"]
        before = {path: await door.read(f"/jobs/{path}") for path in paths}
        attrs = {job: await door.attr(f"/jobs/{job}") for job in jobs}
        await forgotten(alive)
        assert not set(jobs) & set(alive.state.jobs.by_id)
        assert before == {path: await door.read(f"/jobs/{path}") for path in paths}
        assert f"out sha256:{A}\n" == before[f"{jobs[0]}/artifacts"]
        assert attrs == {job: await door.attr(f"/jobs/{job}") for job in jobs}
        assert "3\n" == await door.read(f"/jobs/by-state/succeeded/{jobs[0]}/result")
        assert jobs[:1] == await door.names("/jobs/by-state/succeeded")
        assert jobs[1:] == await door.names("/jobs/by-state/failed")
        assert jobs == [name for name in await door.names("/jobs") if name in jobs]
        assert ["a", "b"] == await door.names("/jobs/by-key")
        alive.clock.time_ns += KEY_NS
        assert f"{jobs[0]}\n" == await door.read("/jobs/by-key/a")

    live(story)


def test_a_clock_that_is_put_back_has_drafts_taken_all_the_same() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        alive.clock.advance(10 * 365 * 24 * HISTORY_NS)
        await alive.submit("key=k")
        await alive.write("/jobs/ctl", "cancel job=" + next(iter(alive.state.jobs.by_id)))
        await forgotten(alive)
        alive.clock.advance(-10 * 365 * 24 * HISTORY_NS)
        jobs = []
        for _ in range(3):
            draft = await door.open("/jobs/clone", BOTH)
            jobs.append((await rest(draft)).decode().strip())
            await say(draft, "submit topic=sum\n")
            assert "queued\n" == await door.read(f"/jobs/{jobs[-1]}/state")
            # What is submitted and over moves the next one no further than it must.
            await say(draft, "cancel\n")
            await forgotten(alive)
        assert 3 == len({*jobs})
        assert jobs == sorted(jobs)

    live(story)


def test_others_find_nothing_of_it_and_its_node_finds_it() -> None:
    async def story(alive: Living) -> None:
        bob, node = Door(hive_tree(alive.hive), BOB), Door(hive_tree(alive.hive), W1)
        job = await ended(alive, "key=a", "nack error=e")
        await forgotten(alive)
        for path in (f"/jobs/{job}/state", "/jobs/by-key/a", f"/jobs/by-state/failed/{job}", f"/dlq/{job}"):
            with pytest.raises(FsError, match=r"^file does not exist$"):
                await bob.read(path)
        assert job not in [name for path in ("", "/by-key") for name in await bob.names(f"/jobs{path}")]
        with pytest.raises(FsError, match=r"^file does not exist$"):
            await alive.write(f"/jobs/{job}/ctl", "cancel", who=BOB)
        assert "failed\n" == await node.read(f"/jobs/{job}/state")
        assert job not in await bob.read("/events")
        assert job in await Door(hive_tree(alive.hive), ANN).read("/events")

    live(story)


def test_a_command_to_it_is_answered_as_before() -> None:
    async def story(alive: Living) -> None:
        job = await ended(alive)
        await forgotten(alive)
        with pytest.raises(FsError, match=r"^illegal move: succeeded -> cancelled trace="):
            await alive.write(f"/jobs/{job}/ctl", "cancel")
        with pytest.raises(FsError, match=r"^illegal move: succeeded -> cancelled trace="):
            await alive.write("/jobs/ctl", f"cancel job={job}")
        with pytest.raises(FsError, match=r"^fenced: token=2 newest=1"):
            await alive.run(job, "ack result=3 fence=2")
        await alive.run(job, "ack result=3 fence=1")
        with pytest.raises(FsError, match=r"^illegal move: succeeded -> failed"):
            await alive.run(job, "nack error=e fence=1")

    live(story)


def test_a_forgotten_letter_is_listed_read_retried_and_discarded() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        jobs = [await ended(alive, "input=x", f"nack error=e{n}") for n in range(3)]
        before = [await door.read(f"/dlq/{job}/entry.json") for job in jobs]
        await forgotten(alive)
        assert jobs == [name for name in await door.names("/dlq") if name in jobs]
        assert before == [await door.read(f"/dlq/{job}/entry.json") for job in jobs]
        await door.write("/dlq/ctl", f"retry id={jobs[0]}\n")
        await door.write("/dlq/ctl", f"discard id={jobs[1]} reason=r\n")
        assert jobs[2:] == [name for name in await door.names("/dlq") if name in jobs]
        (request,) = (job.request for job in alive.state.jobs.by_id.values() if job.request.retry_of)
        assert (jobs[0], "x") == (request.retry_of, request.input)

    live(story)


# the index


async def fill(alive: Living, jobs: int) -> list[str]:
    """Jobs that were cancelled and have left memory."""
    made = [(await alive.write("/jobs/ctl", "submit topic=sum"))[0] for _ in range(jobs)]
    for job in made:
        await alive.write(f"/jobs/{job}/ctl", "cancel")
    await forgotten(alive)
    return made


def content(path: Path) -> list[list[tuple[object, ...]]]:
    with sqlite3.connect(path) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("jobs", "entries", "reached")
        ]


@pytest.mark.parametrize("harm", ["none", "missing", "damaged", "torn", "another", "behind"])
def test_whatever_became_of_the_index_it_says_what_the_ledger_does(tmp_path: Path, harm: str) -> None:
    clock = ManualClock()

    async def first() -> list[str]:
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            jobs = await fill(alive, 20)
            await alive.hive.wait_history()
            if harm == "behind":
                alive.hive.history._closing = True  # as if it had been killed
                jobs += await fill(alive, 20)
            return jobs

    async def second(jobs: list[str]) -> None:
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            door = Door(hive_tree(alive.hive), ANN)
            names = set(await door.names("/jobs"))
            assert set(jobs) <= names
            assert ["cancelled\n"] * len(jobs) == [await door.read(f"/jobs/{job}/state") for job in jobs]

    jobs = asyncio.run(first())
    index = tmp_path / FILE
    match harm:
        case "missing":
            index.unlink()
        case "damaged":
            index.write_bytes(b"no database" * 1000)
        case "torn":
            data = bytearray(index.read_bytes())
            data[4096:] = bytes(len(data) - 4096)
            index.write_bytes(data)
        case "another":
            with sqlite3.connect(index) as connection:
                connection.execute("UPDATE reached SET leaf = x'00'")
                connection.execute("DELETE FROM jobs")
    asyncio.run(second(jobs))


def test_what_is_told_and_what_is_read_make_the_same_index(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path / "a", str(tmp_path / "ledger")) as alive:
            await ended(alive, "key=k")
            await ended(alive, "key=k2", "nack error=e")
            await fill(alive, 5)
            alive.hive.history.write()
            await alive.hive.history.wait_reached(alive.hive.turn.seq)
            assert 0o600 == (tmp_path / "a" / FILE).stat().st_mode & 0o777
            read = History(tmp_path / "read.sqlite", alive.hive.turn.ledger.read, alive.hive.turn.seq)
            await read.wait_reached(alive.hive.turn.seq)
            await read.close()
            assert content(tmp_path / "a" / FILE) == content(tmp_path / "read.sqlite")

    (tmp_path / "a").mkdir()
    asyncio.run(story())


# listing


async def submitted(alive: Living, count: int) -> list[str]:
    """Jobs, some in each entry of the ledger."""
    made: list[str] = []
    while len(made) < count:
        made += await alive.write("/jobs/ctl", *["submit topic=sum"] * min(100, count - len(made)))
    return made


async def cookies(chan: Chan, offset: int, count: int) -> list[tuple[int, str]]:
    data = await chan.readdir(offset, count)
    return [(entry.offset, entry.name) for entry in unpack_dirents(memoryview(data))]


@pytest.mark.slow
def test_a_long_directory_is_listed_in_pages_while_jobs_come_and_go() -> None:
    async def story(alive: Living) -> None:
        jobs = await submitted(alive, 3 * PAGE)
        chan = await Door(hive_tree(alive.hive), ANN).open("/jobs/by-state/queued")
        found: list[str] = []
        offset, moved = 0, False
        while some := await cookies(chan, offset, 4096):
            if offset > PAGE and not moved:
                moved = True
                gone = [*jobs[:100], jobs[-1]]
                await alive.write("/jobs/ctl", *[f"cancel job={job}" for job in gone])
                jobs += await submitted(alive, 1)
                await alive.hive.history.wait_reached(alive.hive.turn.seq)
            offset = some[-1][0]
            found += [name for _, name in some]
            assert len(chan._entries) <= PAGE
        assert [".", "..", *jobs[:-2], jobs[-1]] == found
        # Listed anew, they are those there are.
        assert jobs[100:103] == [name for _, name in await cookies(chan, 0, 260)][2:5]

    live(story)


def test_where_the_index_cannot_be_written_what_is_in_memory_is_listed(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path) as alive:
            door = Door(hive_tree(alive.hive), ANN)
            (tmp_path / FILE).mkdir()
            job = await ended(alive, "key=k", "nack error=e")
            jobs = await submitted(alive, PAGE + 20)
            assert jobs == await door.names("/jobs/by-state/queued")
            assert [job] == await door.names("/jobs/by-state/failed")
            assert ["k"] == await door.names("/jobs/by-key")
            assert jobs == [name for name in await door.names("/jobs") if name in jobs]
            await forgotten(alive)
            with pytest.raises(FsError, match="history of jobs"):
                await door.names("/jobs")

    asyncio.run(story())


def test_one_may_go_back_in_a_long_directory() -> None:
    async def story(alive: Living) -> None:
        jobs = await submitted(alive, 2 * PAGE + 10)
        chan = await Door(hive_tree(alive.hive), ANN).open("/jobs")
        names = [".", "..", "clone", "ctl", "by-key", "by-state", "export.csv", "import.csv", *jobs]
        for offset in (0, 2 * PAGE + 3, 5, PAGE + 2, len(names) - 1, 1, PAGE + 3, len(names)):
            some = await cookies(chan, offset, 1000)
            assert names[offset : offset + len(some)] == [name for _, name in some]
            assert [*range(offset + 1, offset + 1 + len(some))] == [cookie for cookie, _ in some]
            assert some or offset == len(names)

    live(story)


def test_a_long_directory_is_read_by_9p2000_too() -> None:
    async def story(alive: Living) -> None:
        jobs = await submitted(alive, PAGE + 50)
        chan = await Door(hive_tree(alive.hive), ANN).open("/jobs/by-state/queued")
        offset, found = 0, b""
        while some := await chan.read_directory(offset, 8192, Dialect.PLAIN):
            offset += len(some)
            found += some
        assert [found.find(job.encode()) for job in jobs] == sorted(found.find(job.encode()) for job in jobs)
        assert all(job.encode() in found for job in jobs)

    live(story)


@pytest.mark.slow
def test_the_index_is_written_in_batches(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path) as alive:
            job = await alive.submit("retries=99")
            for _ in range(BATCH):
                await alive.write("/jobs/ctl", "submit topic=sum", f"cancel job={job}")
                job = next(reversed(alive.state.jobs.by_id))
            await alive.hive.history.wait_reached(BATCH)
            assert BATCH <= alive.hive.history.seq < alive.hive.turn.seq
            await alive.hive.history.wait_reached(alive.hive.turn.seq)
            row = alive.hive.history.find(job)
            assert row is not None
            assert ("queued", alive.hive.turn.seq) == (row.state, row.rev)

    asyncio.run(story())
