"""Jobs go from hive to hive as a sheet: the same bytes again, under their ids, with their ends."""

from __future__ import annotations

import asyncio
import csv
import io
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from door import Door
from hives import ANN, BOB, W1, Living, live, living

from skep.fs import ctl
from skep.fs.errors import E, FsError
from skep.fs.node import How
from skep.namespaces.jobs.past import HISTORY_NS
from skep.namespaces.jobs.sheet import SHEET
from skep.namespaces.tree import hive_tree
from skep.trace.clock import ManualClock, ulid
from skep.trace.entry import ENTRY_MAX, entry_decoder

HEAD = ",".join(SHEET.header)
NOW_NS = ManualClock().now_ns()


def row(**said: str) -> dict[str, str]:
    return {"topic": "sum", "pool": "default", "priority": "5", "retries": "0"} | {
        name.replace("_", "-"): value for name, value in said.items()
    }


def sheet(*rows: dict[str, str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([SHEET.header, *([each.get(c, "") for c in SHEET.columns] for each in rows)])
    return text.getvalue()


def id_of(n: int) -> str:
    return ulid(NOW_NS, n)


async def imported(door: Door, data: str) -> None:
    await door.write("/jobs/import.csv", data, How(write=True, trunc=True))
    await door.write("/jobs/ctl", f"import sha256={sha256(data.encode()).hexdigest()}\n")


async def refused(door: Door, data: str) -> tuple[E, str]:
    with pytest.raises(FsError) as caught:
        await imported(door, data)
    return caught.value.kind, caught.value.detail


def since(alive: Living, seq: int) -> list[Any]:
    decoder = entry_decoder(dict)
    found = []
    while bodies := alive.hive.turn.read(seq, 512):
        assert all(len(body) <= ENTRY_MAX for _, body in bodies)
        found += [decoder.decode(body) for _, body in bodies]
        seq = bodies[-1][0]
    return found


async def ended(alive: Living, more: str, *verbs: str) -> str:
    """A job that was leased and held these."""
    job = await alive.submit(more)
    await alive.write("/pools/default/next", "lease", who=W1)
    for verb in ("start fence=1", *verbs):
        await alive.write(f"/jobs/{job}/ctl", verb, who=W1)
    return job


async def lived(alive: Living) -> str:
    """The sheet of a hive in which everything happened."""
    door = Door(hive_tree(alive.hive), ANN)
    digest = await sealed(door)
    result = ctl.line("ack", {"fence": "1", "result": "=SUM(\"a\";\r\n'b')\x01 ü"})
    first = await ended(alive, 'key=one retries=2 input=\'{"a": 1}\' labels=\'{"z":"1","a":"2"}\'', result)
    await ended(
        alive,
        f"artifact={digest} inputs=a:in,b:{digest} risk=pii,export actor-id=eve",
        "nack fence=1 error=no code=x",
    )
    thrown = await ended(alive, "", "nack fence=1 error=again")
    await alive.write("/dlq/ctl", f"discard id={thrown} reason=x")
    await alive.write("/jobs/ctl", f"cancel job={await alive.submit('workflow=w step=s')} reason=enough")
    await ended(alive, "retries=1 timeout=90s deadline=2h", "nack fence=1 error=later")
    await ended(alive, "key=two priority=9")
    await alive.submit("bytes=5 traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert first in alive.state.jobs.by_id
    return await door.read("/jobs/export.csv")


async def sealed(door: Door) -> str:
    chan = await door.create("/artifacts/stage", "in")
    await chan.write(0, memoryview(b"123"))
    await chan.clunk()
    await door.write("/artifacts/ctl", "seal name=in\n")
    return sha256(b"123").hexdigest()


def test_jobs_come_back_as_the_same_bytes_with_their_ids_and_ends() -> None:
    async def story(source: Living) -> None:
        data = await lived(source)
        lines = list(csv.DictReader(io.StringIO(data, newline="")))
        assert ["succeeded", "failed", "failed", "cancelled", "", "", ""] == [each["end"] for each in lines]

        async def again(alive: Living) -> None:
            door = Door(hive_tree(alive.hive), ANN)
            await sealed(door)
            seq = alive.hive.turn.seq
            await imported(door, data)
            assert data == await door.read("/jobs/export.csv")
            jobs = alive.state.jobs.by_id
            assert [each["jobs.v1"] for each in lines] == list(jobs)
            assert ["succeeded", "failed", "failed", "cancelled", "queued", "queued", "queued"] == [
                job.state for job in jobs.values()
            ]
            assert not any(job.attempts for job in jobs.values())
            assert {"unix:ann"} == {entry.actor for entry in since(alive, seq)}
            assert list(source.state.jobs.dead["default/default/default"]) == list(
                alive.state.jobs.dead["default/default/default"]
            )
            text = source.state.jobs.by_id[lines[0]["jobs.v1"]].text
            assert f"{text}\n" == await door.read(f"/jobs/{lines[0]['jobs.v1']}/result")
            # A request under a key is the job that it was there.
            key = 'key=one retries=2 input=\'{"a": 1}\' labels=\'{"a":"2","z":"1"}\''
            assert lines[0]["jobs.v1"] == await alive.submit(key)
            seq = alive.hive.turn.seq
            await imported(door, data)
            assert not since(alive, seq)
            # What was done here is not undone.
            await ended_next(alive, lines[5]["jobs.v1"])
            await imported(door, data)
            assert "succeeded" == alive.job_state(lines[5]["jobs.v1"])

        await asyncio.to_thread(live, again)

    live(story)


async def ended_next(alive: Living, job: str) -> None:
    await alive.write("/pools/default/next", "lease", who=W1)
    await alive.run(job, "start")
    await alive.run(job, "ack result=5")


DONE = {"end": "succeeded", "result": "3"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(job="x"), "line 3: column job: adopt: job=x: expected the id of a job"),
        (row(job=ulid(2 * NOW_NS, 0)), "line 3: column job: adopt: job="),
        (row(job=id_of(9), topic=""), "line 3: adopt: topic= is missing"),
        (row(job=id_of(9), end="running"), "line 3: adopt: end=running: expected one of succeeded"),
        (row(job=id_of(9), timeout="soon"), "line 3: adopt: timeout=soon: expected"),
        (row(job=id_of(9), pool="no"), "line 3: column topic: topic=sum pool=no"),
        (row(job=id_of(9), topic="no", pool=""), "line 3: column topic: topic=no"),
        (row(job=id_of(9), requires="gpu"), "line 3: column requires: pool=default requires=gpu"),
        (row(job=id_of(9), artifact="ab" * 32), "line 3: column artifact: submit: artifact=abab"),
        (row(job=id_of(9), artifact="ab" * 32, **DONE), "line 3: column artifact: submit: artifact=abab"),
        (row(job=id_of(9), inputs="a:in"), "line 3: column inputs: adopt: inputs=: artifacts are named by"),
        (row(job=id_of(9), inputs=f"a:{'ab' * 32}", **DONE), "line 3: column inputs: submit: inputs=a:abab"),
        (row(job=id_of(9), input="artifact:a"), "line 3: column input: adopt: input=: an artifact is named"),
        (row(job=id_of(9), result="3"), "line 3: column result: adopt: result=: expected end=succeeded"),
        (row(job=id_of(9), dead="true", **DONE), "line 3: column dead: adopt: dead=: expected end=failed"),
        (row(job=id_of(9), submitted="today", **DONE), "line 3: column submitted: adopt: submitted=: time"),
        (row(job=id_of(9), key="there"), "line 3: column key: key=there"),
        (row(job=id_of(9), end="succeeded", result="x" * 16385), "line 3: column job: max=16384"),
        (
            row(job=id_of(9), end="succeeded", result="x" * 16000, input="x" * 16000),
            "line 3: column job: it has 6",
        ),
        (row(job=id_of(1)), "line 3: column job: " + id_of(1) + " is on line 2 too"),
    ],
)
def test_of_a_sheet_of_jobs_everything_is_checked_first(bad: dict[str, str], said: str) -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        job = await alive.submit("key=there")
        _, detail = await refused(door, sheet(row(job=id_of(1), **DONE), bad))
        assert detail.startswith(said), detail
        assert [job] == list(alive.state.jobs.by_id)

    live(story)


def test_a_job_that_is_there_is_not_made_another() -> None:
    async def story(alive: Living) -> None:
        ann, bob = (Door(hive_tree(alive.hive), who) for who in (ANN, BOB))
        await imported(ann, sheet(row(job=id_of(1), input="x", **DONE), row(job=id_of(2))))
        for other, said in [
            (row(job=id_of(1), input="y", **DONE), "line 2: column input: adopt: input=: the job that has"),
            (row(job=id_of(1), input="x", end="succeeded", result="4"), "line 2: column result: adopt:"),
            (row(job=id_of(2), **DONE), "line 2: column end: adopt: end=: the job that has this id is"),
            (
                row(job=id_of(2), inputs=f"a:{'ab' * 32}"),
                "line 2: column inputs: adopt: inputs=",
            ),
        ]:
            kind, detail = await refused(ann, sheet(other))
            assert (E.EXISTS, said) == (kind, detail[: len(said)])
        # To another tenant it is not there, and can not be.
        assert f"{HEAD}\r\n" == await bob.read("/jobs/export.csv")
        kind, _ = await refused(bob, sheet(row(job=id_of(1), input="x", **DONE)))
        assert E.MISSING is kind
        await imported(bob, sheet(row(job=id_of(3), **DONE)))
        assert (BOB.tenant, BOB.principal) == (
            alive.state.jobs.by_id[id_of(3)].request.tenant,
            alive.state.jobs.by_id[id_of(3)].request.actor,
        )
        assert id_of(3) not in await ann.read("/jobs/export.csv")
        worker = Door(hive_tree(alive.hive), W1)
        assert not await worker.exists("/jobs/import.csv")

    live(story)


def test_limits_hold_for_jobs_that_are_submitted_anew() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        config = 'config.v1,document\r\ndefault/default/default,"limits.waiting = 2\n"\r\n'
        await door.write("/config/import.csv", config, How(write=True, trunc=True))
        await door.write("/config/ctl", f"import sha256={sha256(config.encode()).hexdigest()}\n")
        rows = [row(job=id_of(n), **DONE) for n in range(5)]
        waiting = [row(job=id_of(n)) for n in range(5, 8)]
        kind, detail = await refused(door, sheet(*rows, *waiting))
        assert (E.QUOTA, "line 9: column job: waiting have=2 max=2") == (kind, detail)
        assert {} == alive.state.jobs.by_id
        await imported(door, sheet(*rows, *waiting[:2]))
        assert 7 == len(alive.state.jobs.by_id)

    live(story)


def test_what_ended_elsewhere_fires_no_trigger() -> None:
    async def story(alive: Living) -> None:
        door = Door(hive_tree(alive.hive), ANN)
        await alive.write("/triggers/ctl", "create trigger=t on=job.ended topic=sum")
        await imported(door, sheet(row(job=id_of(1), **DONE), row(job=id_of(2))))
        await alive.write("/jobs/ctl", f"cancel job={id_of(2)}")
        async with asyncio.timeout(30):
            while alive.state.triggers.by_tenant[ANN.tenant]["t"].cursor[1] > 1:  # not fired yet
                await alive.hive.turn.wait_past(alive.hive.turn.seq)
        (fire,) = alive.state.triggers.by_tenant[ANN.tenant]["t"].recent
        (entry,) = [decoded for decoded in since(alive, fire.fired.seq - 1) if decoded.seq == fire.fired.seq]
        assert ("cancelled", id_of(2)) == (entry.events[0]["state"], entry.events[0]["job"])

    live(story)


def test_jobs_older_than_those_that_have_left_memory_come_in_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path) as alive:
            door = Door(hive_tree(alive.hive), ANN)
            data = sheet(row(job=id_of(2), **DONE), row(job=id_of(1), **DONE))
            await imported(door, data)
            alive.clock.advance(HISTORY_NS)
            later = await alive.submit()
            await alive.write("/jobs/ctl", f"cancel job={later}")
            alive.clock.advance(HISTORY_NS)
            for _ in range(3):
                await alive.submit("key=k")
                last = await alive.submit()
                await alive.write("/jobs/ctl", f"cancel job={last}")
            assert alive.state.jobs.past.horizon >= later
            seq = alive.hive.turn.seq
            await imported(door, data)
            assert seq == alive.hive.turn.seq
            kind, detail = await refused(door, sheet(row(job=id_of(1), end="cancelled")))
            assert (E.EXISTS, "line 2: column end: ") == (kind, detail[:20])
            await imported(door, sheet(row(job=id_of(3), **DONE), row(job=id_of(0), **DONE)))
            assert seq + 1 == alive.hive.turn.seq
            before = await door.read("/jobs/export.csv")
            assert [id_of(2), id_of(1)] == [line.split(",")[0] for line in before.split("\r\n")[1:3]]

    asyncio.run(story())


@pytest.mark.slow
def test_jobs_that_left_memory_come_back_as_the_same_bytes(tmp_path: Path) -> None:
    def rows(first: int, last: int) -> list[dict[str, str]]:
        said = {"submitted": "2023-11-14T22:13:20Z", "submitter": "unix:x", "body": "ab" * 32} | DONE
        return [row(job=id_of(n), key=f"k{n % 4000}", **said) for n in range(first, last)]

    async def story() -> None:
        async with living(tmp_path) as alive:
            door = Door(hive_tree(alive.hive), ANN)
            await imported(door, sheet(*rows(0, 3000)))
            alive.clock.advance(HISTORY_NS)
            await imported(door, sheet(*rows(2900, 5000)))
            assert id_of(2999) == alive.state.jobs.past.horizon
            data = sheet(*rows(0, 5000))
            assert data == await door.read("/jobs/export.csv")
            seq = alive.hive.turn.seq
            await imported(door, data)
            assert seq == alive.hive.turn.seq

    asyncio.run(story())
