from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, W2, Living, living, settled

from skep.fs.errors import E, FsError
from skep.fs.messages import LO
from skep.fs.node import Caller, Change, How
from skep.namespaces.sessions.core import Session
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND


class Served(Living):
    """A living hive and the doors of its callers."""

    def __init__(self, alive: Living) -> None:
        super().__init__(alive.hive, alive.clock)
        self.tree = hive_tree(alive.hive)
        self.ann, self.bob, self.eye = self.door(ANN), self.door(BOB), self.door(EYE)
        self.w1, self.w2 = self.door(W1), self.door(W2)

    def door(self, caller: Caller) -> Door:
        return Door(self.tree, caller)

    async def lease(self, door: Door | None = None) -> dict[str, Any]:
        line = await (door or self.w1).read("/pools/default/next")
        return msgspec.json.decode(line, type=dict[str, Any])


def served(story: Callable[[Served], Awaitable[None]], bookmark_s: float = 15.0) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with living(Path(directory), bookmark_s=bookmark_s) as alive:
                await story(Served(alive))

    asyncio.run(run())


async def refused(doing: Awaitable[object]) -> FsError:
    with pytest.raises(FsError) as caught:
        await doing
    return caught.value


def lines(text: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in text.splitlines()]


# the root


def test_the_root_lists_the_nouns_and_no_followers() -> None:
    async def story(hive: Served) -> None:
        assert [
            "ctl", "version", "whoami", "state", "ns", "events",
            "nodes", "sessions", "policy", "config", "schemas", "pools", "jobs", "dlq", "artifacts",
            "log", "trust",
            "locks", "gpu", "tenants", "triggers", "validator", "boot", "health",
        ] == await hive.ann.names("/")  # fmt: skip
        assert "skep 0.1\n9P2000 9P2000.u 9P2000.L\n" == await hive.ann.read("/version")
        assert "principal unix:work\nrole drone-worker\ntenant default/default/default\nnode w1\n" == (
            await hive.w1.read("/whoami")
        )

    served(story)


def test_a_hive_drains_and_resumes_by_its_ctl() -> None:
    async def story(hive: Served) -> None:
        assert ("online\n", "ok\n") == (await hive.ann.read("/state"), await hive.ann.read("/health/ready"))
        await hive.ann.write("/ctl", "drain\n")
        assert ("quiesced\n", "quiesced\n") == (
            await hive.ann.read("/state"), await hive.ann.read("/health/ready")
        )  # fmt: skip
        await hive.ann.write("/ctl", "resume\n")
        assert "online\n" == await hive.ann.read("/state")

    served(story)


def test_every_ctl_tells_its_usage() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        for path in ("/ctl", "/jobs/ctl", f"/jobs/{job}/ctl", "/pools/ctl", "/nodes/ctl", "/artifacts/ctl"):
            assert "example: " in await hive.ann.read(path)
        assert "submit" not in await hive.ann.read(f"/jobs/{job}/ctl")

    served(story)


def test_an_observer_reads_and_is_refused_what_it_writes() -> None:
    async def story(hive: Served) -> None:
        error = await refused(hive.eye.write("/jobs/ctl", "submit topic=sum\n"))
        assert error.text.startswith(
            "permission denied: rule=default-deny role observer may not jobs.submit trace="
        )
        last = lines(await hive.ann.read("/log/trace/live.jsonl"))[-1]
        assert ("DENIED", error.trace) == (last["outcome"]["code"], last["trace"])

    served(story)


# jobs


def test_a_job_from_submit_to_result() -> None:
    async def story(hive: Served) -> None:
        await hive.ann.write("/jobs/ctl", "submit topic=sum key=k1 input='1 2' timeout=5s labels=a:b\n")
        job = (await hive.ann.read("/jobs/by-key/k1")).strip()
        at = f"/jobs/{job}"
        waiting = asyncio.ensure_future(hive.ann.read(f"{at}/wait"))
        lease = await hive.lease()
        assert {
            "job": job, "attempt": 1, "fence": 1, "topic": "sum", "tenant": ANN.tenant, "priority": 5,
            "labels": {"a": "b"}, "deadline": "2023-11-14T22:13:50.000000000Z", "lease": "30s",
            "input": "1 2", "timeout": "5s",
        } == lease  # fmt: skip
        await hive.w1.write(f"{at}/ctl", "start fence=1\n")
        await hive.w1.write(f"{at}/ctl", "progress percent=50 msg='half of it'\n")
        assert "percent 50\nmsg half of it\ntime 2023-11-14T22:13:20.000000000Z\n" == (
            await hive.ann.read(f"{at}/progress")
        )
        await hive.w1.write(f"{at}/log", "adding\n")
        await hive.w1.write(f"{at}/log", "added\n")
        assert not waiting.done()
        await hive.w1.write(f"{at}/ctl", "ack fence=1 result=3\n")
        assert "succeeded\n" == await waiting == await hive.ann.read(f"{at}/state")
        assert ("3\n", "") == (await hive.ann.read(f"{at}/result"), await hive.ann.read(f"{at}/error"))
        assert "adding\nadded\n" == await hive.ann.read(f"{at}/log")
        assert 13 == (await hive.ann.attr(f"{at}/log")).size
        assert "1 node=w1 fence=1 leased=2023-11-14T22:13:20.000000000Z" in await hive.ann.read(
            f"{at}/attempts"
        )
        assert ["job.submitted", "job.leased", "job.started", "job.ended"] == [
            event["type"] for event in lines(await hive.ann.read(f"{at}/events.jsonl"))
        ]
        request = msgspec.json.decode(await hive.ann.read(f"{at}/request.json"))
        assert ("1 2", "k1", "unix:ann") == (request["input"], request["key"], request["submitter"])

    served(story)


def test_a_read_after_a_write_on_a_ctl_gives_the_id() -> None:
    async def story(hive: Served) -> None:
        chan = await hive.ann.open("/jobs/ctl", BOTH)
        await say(chan, "submit topic=sum\n")
        (job,) = hive.state.jobs.by_id
        assert f"{job} rev={hive.hive.turn.seq} trace={job}\n" == (await rest(chan)).decode()

    served(story)


def test_a_clone_has_an_id_before_its_job_is_submitted() -> None:
    async def story(hive: Served) -> None:
        chan = await hive.ann.open("/jobs/clone", BOTH)
        job = (await rest(chan)).decode().strip()
        assert not await hive.ann.exists(f"/jobs/{job}")
        assert E.USAGE is (await refused(say(chan, "cancel\n"))).kind
        await say(chan, "submit topic=sum\n")
        assert [job] == list(hive.state.jobs.by_id)
        await say(chan, "cancel reason=no\n")
        assert "no\n" == await hive.ann.read(f"/jobs/{job}/error")
        assert E.EXISTS is (await refused(say(chan, "submit topic=sum\n"))).kind

    served(story)


def test_jobs_are_listed_by_state() -> None:
    async def story(hive: Served) -> None:
        first, second = await hive.write("/jobs/ctl", "submit topic=sum", "submit topic=sum")
        await hive.lease()
        assert [second] == await hive.ann.names("/jobs/by-state/queued")
        assert [first] == await hive.ann.names("/jobs/by-state/leased")
        assert "leased\n" == await hive.ann.read(f"/jobs/by-state/leased/{first}/state")
        assert [
            "clone",
            "ctl",
            "by-key",
            "by-state",
            "export.csv",
            "import.csv",
            first,
            second,
        ] == await hive.ann.names("/jobs")

    served(story)


def test_foreign_jobs_and_keys_do_not_exist() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit("key=k")
        assert not await hive.bob.exists(f"/jobs/{job}")
        assert not await hive.bob.exists("/jobs/by-key/k")
        assert [] == await hive.bob.names("/jobs/by-key")
        assert [] == await hive.bob.names("/jobs/by-state/queued")
        assert "" == await hive.bob.read("/pools/default/queue")
        assert E.MISSING is (await refused(hive.bob.write("/jobs/ctl", f"cancel job={job}"))).kind
        events = lines(await hive.bob.read("/events"))
        assert not [event for event in events if event.get("job") == job]
        assert "job.submitted" not in await hive.bob.read("/log/trace/live.jsonl")

    served(story)


def test_a_worker_reaches_only_the_jobs_it_was_leased() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        assert not await hive.w1.exists(f"/jobs/{job}")
        await hive.lease()
        assert await hive.w1.exists(f"/jobs/{job}/ctl")
        assert not await hive.w2.exists(f"/jobs/{job}")
        assert (
            "permission denied: rule=lease-holder"
            == (await refused(hive.ann.write(f"/jobs/{job}/log", "forged\n"))).text
        )
        assert E.DENIED is (await refused(hive.ann.write(f"/jobs/{job}/ctl", "start fence=1\n"))).kind

    served(story)


def test_a_late_worker_is_fenced_and_its_log_refused() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        await hive.lease()
        hive.clock.advance(30 * SECOND)
        await hive.hive.tick()
        error = await refused(hive.w1.write(f"/jobs/{job}/ctl", "ack fence=1\n"))
        assert error.text.startswith("fenced: token=1 newest=2 trace=")
        assert E.DENIED is (await refused(hive.w1.write(f"/jobs/{job}/log", "late\n"))).kind
        assert E.DENIED is (await refused(hive.w1.write(f"/jobs/{job}/ctl", "progress percent=99\n"))).kind

    served(story)


def test_progress_and_recorded_words_may_stand_in_one_write() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        await hive.lease()
        chan = await hive.w1.open(f"/jobs/{job}/ctl", BOTH)
        await say(chan, "start fence=1\nprogress percent=1 fence=1\nrenew fence=1\n")
        assert [job] * 3 == [line.split()[0] for line in (await rest(chan)).decode().splitlines()]
        assert E.USAGE is (await refused(say(chan, "progress percent=101\n"))).kind
        assert E.FENCED is (await refused(say(chan, "progress percent=9 fence=7\n"))).kind

    served(story)


def test_a_log_is_followed_until_its_job_has_ended() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        await hive.lease()
        await hive.run(job, "start")
        await hive.w1.write(f"/jobs/{job}/log", "one\n")
        following = await hive.ann.open(f"/jobs/{job}/log@2")
        assert b"e\n" == await following.read(0, 100)
        more = asyncio.ensure_future(following.read(2, 100))
        await settled()
        assert not more.done()
        await hive.w1.write(f"/jobs/{job}/log", "two\n")
        assert b"two\n" == await more
        end = asyncio.ensure_future(following.read(6, 100))
        await settled()
        await hive.run(job, "ack")
        assert b"" == await end

    served(story)


# pools


def test_a_pool_tells_what_waits_and_who_works() -> None:
    async def story(hive: Served) -> None:
        jobs = await hive.write("/jobs/ctl", "submit topic=sum", "submit topic=sum priority=9")
        assert f"{jobs[1]}\n{jobs[0]}\n" == await hive.ann.read("/pools/default/queue")
        await hive.lease()
        reading = [asyncio.ensure_future(hive.lease(hive.w2)) for _ in range(2)]
        await hive.hive.turn.wait_past(hive.hive.turn.seq)
        await settled()
        assert "waiting 0\nheld 2\nreaders 1\n" == await hive.ann.read("/pools/default/load")
        assert "w1 held=1 readers=0\nw2 held=1 readers=1\n" == await hive.ann.read("/pools/default/workers")
        assert "sum\n" == await hive.ann.read("/pools/default/topics")
        assert ["ctl", "plan", "default"] == await hive.ann.names("/pools")
        reading[1].cancel()
        await asyncio.wait(reading)

    served(story)


def test_next_gives_one_lease_and_ends() -> None:
    async def story(hive: Served) -> None:
        await hive.write("/jobs/ctl", "submit topic=sum", "submit topic=sum")
        await hive.w1.read("/pools/default/next")
        assert 1 == len(hive.state.jobs.held)

    served(story)


def test_a_lease_that_was_taken_and_not_read_goes_back() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        chan = await hive.w1.open("/pools/default/next")
        assert b"{" == await chan.read(0, 1)
        assert "leased" == hive.job_state(job)
        await chan.clunk()
        await hive.hive.close()
        assert ("queued", 2) == (hive.job_state(job), hive.state.jobs.by_id[job].fence)

    served(story)


def test_a_flushed_read_of_next_leaves_the_job_queued() -> None:
    async def story(hive: Served) -> None:
        chan = await hive.w1.open("/pools/default/next")
        reading = asyncio.ensure_future(chan.read(0, 8192))
        await settled()
        reading.cancel()
        await asyncio.wait([reading])
        job = await hive.submit()
        assert "queued" == hive.job_state(job)
        # The fid can be read again.
        assert job == msgspec.json.decode(await chan.read(0, 8192))["job"]

    served(story)


def test_who_is_no_node_gets_no_lease() -> None:
    async def story(hive: Served) -> None:
        assert (
            "permission denied: rule=nodes-only" == (await refused(hive.ann.open("/pools/default/next"))).text
        )

    served(story)


# nodes and sessions


def test_a_node_says_how_it_is_and_nobody_says_it_for_it() -> None:
    async def story(hive: Served) -> None:
        said = '{"load":0.25,"capacity":4,"labels":{"zone":"a"},"version":"0.1"}\n'
        await hive.w1.write("/nodes/w1/heartbeat", said, How(write=True, trunc=True))
        assert ["0.25\n", "4\n", "zone a\n", "0.1\n", "online\n", "drone-worker\n", "green\n"] == [
            await hive.ann.read(f"/nodes/w1/{name}")
            for name in ("load", "capacity", "labels", "version", "state", "role", "trust")
        ]
        heard = msgspec.json.decode(await hive.ann.read("/nodes/w1/heartbeat"))
        assert ("2023-11-14T22:13:20.000000000Z", 0.25) == (heard["time"], heard["load"])
        for door in (hive.w2, hive.ann):
            assert (
                "permission denied: rule=own-node"
                == (await refused(door.write("/nodes/w1/heartbeat", said))).text
            )
        assert E.SCHEMA is (await refused(hive.w1.write("/nodes/w1/heartbeat", "load=1"))).kind

    served(story)


def test_a_removed_node_does_not_exist() -> None:
    async def story(hive: Served) -> None:
        state = await hive.ann.walk("/nodes/w1/state")
        heartbeat = await hive.w1.open("/nodes/w1/heartbeat", How(write=True))
        await hive.ann.write("/nodes/ctl", "remove node=w1\n")
        assert E.MISSING is (await refused(state.open(How(read=True)))).kind
        assert E.MISSING is (await refused(say(heartbeat, "{}"))).kind
        assert ["ctl", "export.csv", "import.csv", "w2"] == await hive.ann.names("/nodes")
        assert not await hive.ann.exists("/nodes/w1")

    served(story)


def test_a_session_tells_of_itself_and_can_be_kicked() -> None:
    async def story(hive: Served) -> None:
        kicked: list[str] = []
        caller = Caller("unix:ann", "operator", session="s1")
        hive.hive.sessions.add(
            Session(
                "s1",
                caller,
                "unix:pid=7",
                hive.clock.now_ns(),
                lambda: 3,
                "mount hive /\n",
                lambda: kicked.append("s1"),
            )
        )
        assert ["unix:ann\n", "unix:pid=7\n", "3\n", "mount hive /\n"] == [
            await hive.ann.read(f"/sessions/s1/{name}") for name in ("principal", "peer", "fids", "ns")
        ]
        assert "mount hive /\n" == await hive.door(caller).read("/ns")
        assert not await hive.bob.exists("/sessions/s1")
        await hive.ann.write("/sessions/s1/ctl", "kick\n")
        assert ["s1"] == kicked
        peer = await hive.ann.walk("/sessions/s1/peer")
        hive.hive.sessions.remove("s1")
        assert E.MISSING is (await refused(peer.open(How(read=True)))).kind
        assert not await hive.ann.exists("/sessions/s1")

    served(story)


# artifacts


async def stage(door: Door, name: str, text: str) -> None:
    chan = await door.create("/artifacts/stage", name)
    await say(chan, text)
    await chan.clunk()


def test_a_file_is_staged_sealed_and_read_by_its_hash() -> None:
    async def story(hive: Served) -> None:
        digest = sha256(b"hello").hexdigest()
        await stage(hive.ann, "f", "hello")
        assert ["f"] == await hive.ann.names("/artifacts/stage")
        assert [] == await hive.eye.names("/artifacts/stage")
        assert (5, stat.S_IFREG | 0o644) == (
            (await hive.ann.attr("/artifacts/stage/f")).size, (await hive.ann.attr("/artifacts/stage/f")).mode
        )  # fmt: skip
        chan = await hive.ann.open("/artifacts/ctl", BOTH)
        await say(chan, "seal name=f type=text/plain\n")
        assert f"sha256:{digest}" == (await rest(chan)).decode().split()[0]
        assert [] == await hive.ann.names("/artifacts/stage")
        named = (await hive.ann.read("/artifacts/by-name/f")).strip()
        assert f"sha256:{digest}" == named
        assert "hello" == await hive.ann.read(f"/artifacts/{digest}/data")
        assert "hello" == await hive.ann.read(f"/artifacts/{named}/data")
        data = await hive.ann.open(f"/artifacts/{digest}/data")
        assert (b"ell", 5) == (await data.read(1, 3), (await data.attr()).size)
        await data.clunk()
        meta = msgspec.json.decode(await hive.ann.read(f"/artifacts/{digest}/meta.json"))
        assert (5, "f", "standard", "text/plain") == tuple(
            meta[key] for key in ("size", "name", "class", "type")
        )
        assert not await hive.bob.exists(f"/artifacts/{digest}")
        assert [digest] == [name for name in await hive.eye.names("/artifacts") if len(name) == 64]

    served(story)


def test_bytes_that_are_not_what_was_said_are_not_sealed() -> None:
    async def story(hive: Served) -> None:
        await stage(hive.ann, "f", "hello")
        error = await refused(hive.ann.write("/artifacts/ctl", f"seal name=f sha256={'0' * 64}\n"))
        assert E.TAMPER is error.kind
        assert {} == hive.state.artifacts.by_hash
        assert (
            "usage: line 1: seal: name=g: nothing is staged under that name"
            == (await refused(hive.ann.write("/artifacts/ctl", "seal name=g\n"))).text
        )
        assert E.USAGE is (await refused(hive.ann.write("/artifacts/ctl", "seal name=f size=9\n"))).kind

    served(story)


def test_staged_files_are_truncated_written_anywhere_and_removed() -> None:
    async def story(hive: Served) -> None:
        await stage(hive.ann, "f", "hello")
        number = (await hive.ann.attr("/artifacts/stage/f")).qid.path
        chan = await hive.ann.open("/artifacts/stage/f", BOTH)
        await say(chan, "p!", 3)
        await chan.fsync(False)
        assert b"help!" == await rest(chan)
        await chan.clunk()
        await (await hive.ann.walk("/artifacts/stage/f")).setattr(Change(size=2, mode=0o600, mtime_now=True))
        assert "he" == await hive.ann.read("/artifacts/stage/f")
        await hive.ann.write("/artifacts/stage/f", "new", How(write=True, trunc=True))
        assert "new" == await hive.ann.read("/artifacts/stage/f")
        assert number == (await hive.ann.attr("/artifacts/stage/f")).qid.path
        error = await refused(hive.ann.create("/artifacts/stage", "f"))
        assert E.EXISTS is error.kind
        again = await hive.ann.create("/artifacts/stage", "f", How(read=True, write=True, flags=LO.CREAT))
        assert b"new" == await rest(again)
        await again.clunk()
        await (await hive.ann.walk("/artifacts/stage/f")).remove()
        assert not await hive.ann.exists("/artifacts/stage/f")
        await stage(hive.ann, "f", "")
        assert number != (await hive.ann.attr("/artifacts/stage/f")).qid.path

    served(story)


def test_several_files_are_sealed_in_one_write_or_none() -> None:
    async def story(hive: Served) -> None:
        await stage(hive.ann, "f", "1")
        await stage(hive.ann, "g", "2")
        error = await refused(hive.ann.write("/artifacts/ctl", "seal name=f\nseal name=g job=none\n"))
        assert E.DENIED is error.kind
        assert {} == hive.state.artifacts.by_hash
        await hive.ann.write("/artifacts/ctl", "seal name=f\nseal name=g\n")
        assert ["f", "g"] == await hive.ann.names("/artifacts/by-name")

    served(story)


def test_a_worker_reads_the_input_and_seals_the_output_of_the_job_it_holds() -> None:
    async def story(hive: Served) -> None:
        await stage(hive.ann, "f", "hello")
        await hive.ann.write("/artifacts/ctl", "seal name=f\n")
        digest = sha256(b"hello").hexdigest()
        job = await hive.submit("input=artifact:f")
        assert not await hive.w1.exists(f"/artifacts/{digest}")
        lease = await hive.lease()
        assert (f"sha256:{digest}", 5) == (lease["artifact"], lease["size"])
        assert "hello" == await hive.w1.read(f"/artifacts/{digest}/data")
        assert not await hive.w2.exists(f"/artifacts/{digest}")
        assert not await hive.w1.exists("/artifacts/by-name/f")
        await stage(hive.w1, "out", "bye")
        await hive.w1.write("/artifacts/ctl", f"seal name=out job={job}\n")
        out = sha256(b"bye").hexdigest()
        assert f"out sha256:{out}\n" == await hive.ann.read(f"/jobs/{job}/artifacts")
        assert "bye" == await hive.ann.read(f"/artifacts/{out}/data")
        await hive.run(job, "start")
        await hive.run(job, "ack")
        assert not await hive.w1.exists(f"/artifacts/{digest}")

    served(story)


# following


def test_events_end_at_the_present_and_followers_go_on() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        past = lines(await hive.ann.read("/events"))
        assert ["job.submitted", job] == [past[-1]["type"], past[-1]["job"]]
        following = await hive.ann.open(f"/events@{past[-1]['seq']}")
        more = asyncio.ensure_future(following.read(0, 8192))
        await settled()
        assert not more.done()
        await hive.ann.write("/jobs/ctl", f"cancel job={job}\n")
        (event,) = lines((await more).decode())
        assert ("job.ended", past[-1]["seq"] + 1) == (event["type"], event["seq"])
        again = await hive.ann.open(f"/events@{past[-1]['seq']}")
        assert [event] == lines((await again.read(0, 8192)).decode())
        for name in ("events@", "events@x", "state@1", f"events@{'9' * 30}"):
            assert not await hive.ann.exists(f"/{name}")

    served(story)


def test_an_idle_follower_is_told_where_it_is() -> None:
    async def story(hive: Served) -> None:
        await hive.submit(who=BOB)
        seq = hive.hive.turn.seq
        following = await hive.ann.open(f"/events@{seq - 1}")
        assert [{"seq": seq}] == lines((await following.read(0, 8192)).decode())
        assert [{"seq": seq}] == lines((await following.read(0, 8192)).decode())

    served(story, bookmark_s=0.01)


def test_the_trace_is_the_ledger_in_order() -> None:
    async def story(hive: Served) -> None:
        await hive.ann.write("/jobs/ctl", "# mine\nsubmit topic=sum\n")
        entries = lines(await hive.ann.read("/log/trace/live.jsonl"))
        assert list(range(1, hive.hive.turn.seq + 1)) == [entry["seq"] for entry in entries]
        last = entries[-1]
        assert [
            "seq",
            "time",
            "trace",
            "actor",
            "role",
            "tenant",
            "path",
            "line",
            "outcome",
            "events",
        ] == list(last)
        assert ("unix:ann", "operator", "/jobs/ctl", "submit topic=sum") == tuple(
            last[key] for key in ("actor", "role", "path", "line")
        )
        following = await hive.ann.open(f"/log/trace/live.jsonl@{last['seq'] - 1}")
        assert [last] == lines((await following.read(0, 8192)).decode())
        names = ["live.jsonl", "checkpoint", "keys", "handovers", "tile", "proof", "snapshot", "snapshots"]
        names += ["agreed", "witness", "ctl", "recordings", "sessions"]
        assert names == await hive.ann.names("/log/trace")

    served(story)


def test_a_job_s_number_stays_and_its_version_moves() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit()
        other = await hive.submit()
        before = [(await hive.ann.attr(path)).qid for path in (f"/jobs/{job}", f"/jobs/{job}/state")]
        await hive.ann.write("/jobs/ctl", f"cancel job={job}\n")
        after = [(await hive.ann.attr(path)).qid for path in (f"/jobs/{job}", f"/jobs/{job}/state")]
        assert [qid.path for qid in before] == [qid.path for qid in after]
        assert [qid.vers for qid in before] != [qid.vers for qid in after]
        numbers = {
            (await hive.ann.attr(f"/jobs/{id}/{name}")).qid.path
            for id in (job, other)
            for name in ("state", "ctl")
        }
        assert 4 == len(numbers)

    served(story)
