from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hives import ANN, W1, W2, Folded, Living, live, living, settled

from skep.fs.errors import E, FsError
from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.namespaces.jobs.record import Job
from skep.namespaces.live import LOST_NS, SUSPECT_NS, Heartbeat, Progress
from skep.namespaces.order import actor_of, node_of
from skep.trace.clock import HOUR, SECOND, ManualClock
from skep.trace.entry import OK, Entry, Outcome, entry_decoder
from skep.trace.rules import Meta, Refusal

decoder = entry_decoder(HiveRules.event_type)


async def start_taking(alive: Living, who: object = W1) -> asyncio.Task[Job]:
    task = asyncio.ensure_future(alive.hive.take(who, "default"))  # type: ignore[arg-type]
    await settled()
    return task


def void(value: object) -> None:
    """Nothing, whatever came."""


def test_a_command_is_answered_with_what_was_made_the_revision_and_the_trace() -> None:
    async def story(alive: Living) -> None:
        (reply,) = await alive.hive.command(ANN, "/jobs/ctl", ["submit topic=sum"])
        (job,) = alive.state.jobs.by_id
        assert f"{job} rev={alive.hive.turn.seq} trace={job}" == reply

    live(story)


def test_a_refusal_is_a_file_error_with_its_trace_and_names_the_line() -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError) as caught:
            await alive.write("/jobs/ctl", "submit topic=sum", "submit topic=none")
        assert E.NOROUTE is caught.value.kind
        entry = decoder.decode(alive.hive.turn.read(alive.hive.turn.seq - 1)[0][1])
        assert f"no_pool_mapping: topic=none (line 2) trace={entry.trace}" == caught.value.text
        assert {} == alive.state.jobs.by_id

    live(story)


def test_several_lines_are_one_transaction() -> None:
    async def story(alive: Living) -> None:
        replies = await alive.write("/jobs/ctl", "submit topic=sum key=a", "submit topic=sum key=b")
        assert list(alive.state.jobs.by_id) == replies

    live(story)


def test_a_reader_waits_for_a_job_and_takes_it() -> None:
    async def story(alive: Living) -> None:
        reader = await start_taking(alive)
        assert not reader.done()
        job = await alive.submit()
        taken = await reader
        assert (job, "w1", 1) == (taken.id, taken.node, taken.fence)

    live(story)


def test_readers_are_served_in_the_order_they_came_one_job_each() -> None:
    async def story(alive: Living) -> None:
        readers = [await start_taking(alive, who) for who in (W1, W2, W1)]
        jobs = await alive.write("/jobs/ctl", "submit topic=sum", "submit topic=sum")
        taken = await asyncio.gather(*readers[:2])
        assert [(jobs[0], "w1"), (jobs[1], "w2")] == [(job.id, job.node) for job in taken]
        assert not readers[2].done()
        third = await alive.submit()
        assert third == (await readers[2]).id

    live(story)


def test_a_reader_that_goes_leaves_the_job_to_the_next() -> None:
    async def story(alive: Living) -> None:
        first, second = [await start_taking(alive, who) for who in (W1, W2)]
        first.cancel()
        job = await alive.submit()
        taken = await second
        assert (job, "w2") == (taken.id, taken.node)
        assert first.cancelled()

    live(story)


def test_a_reader_cancelled_when_it_was_told_of_a_job_leaves_it_to_the_next() -> None:
    async def story(alive: Living) -> None:
        first, second = [await start_taking(alive, who) for who in (W1, W2)]
        # The job is durable now, the first reader was told, and has not run since.
        alive.hive.turn.on_commit.append(lambda entries: void(first.cancel()))
        job = await alive.submit()
        alive.hive.turn.on_commit.pop()
        assert (job, "w2") == ((await second).id, (await second).node)
        assert first.cancelled()
        assert 1 == alive.state.jobs.by_id[job].fence

    live(story)


def test_a_reader_cancelled_in_the_step_in_which_a_job_comes_leaves_it_to_the_next() -> None:
    async def story(alive: Living) -> None:
        gone, patient = (asyncio.ensure_future(alive.hive.take(node, "default")) for node in (W1, W2))
        await settled()

        def give_up(entries: object) -> None:
            gone.cancel()

        alive.hive.turn.on_commit.insert(0, give_up)
        job = await alive.submit()
        assert job == (await patient).id
        assert alive.hive.turn.failed is None

    live(story)


def test_a_reader_cancelled_after_its_lease_was_decided_has_it_and_can_give_it_back() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit()
        reader = asyncio.ensure_future(alive.hive.take(W1, "default"))
        while "w1" != alive.hive.turn._working.jobs.by_id[job].node:
            await asyncio.sleep(0)
        reader.cancel()
        taken = await reader
        assert (job, "leased") == (taken.id, alive.job_state(job))
        alive.hive.give_back(taken)
        await alive.hive.close()
        assert ("queued", 2) == (alive.job_state(job), alive.state.jobs.by_id[job].fence)

    live(story)


def test_a_cordoned_nodes_reader_is_passed_over_until_it_is_not() -> None:
    async def story(alive: Living) -> None:
        first, second = [await start_taking(alive, who) for who in (W1, W2)]
        await alive.write("/nodes/ctl", "cordon node=w1")
        await alive.submit()
        assert "w2" == (await second).node
        await alive.submit()
        await settled()
        assert not first.done()
        await alive.write("/nodes/ctl", "uncordon node=w1")
        assert "w1" == (await first).node

    live(story)


def test_a_draining_hive_takes_jobs_and_gives_none() -> None:
    async def story(alive: Living) -> None:
        reader = await start_taking(alive)
        await alive.write("/ctl", "drain")
        assert "quiesced" == alive.state.condition
        await alive.submit()
        await settled()
        assert not reader.done()
        await alive.write("/ctl", "resume")
        assert (await reader).held

    live(story)


def test_a_lost_workers_job_goes_back_to_its_queue_when_its_lease_ends() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit()
        await alive.hive.take(W1, "default")
        await alive.run(job, "start")
        alive.clock.advance(29 * SECOND)
        await alive.hive.tick()
        assert "running" == alive.job_state(job)
        alive.clock.advance(SECOND)
        await alive.hive.tick()
        assert "queued" == alive.job_state(job)
        await alive.hive.hear("w2", Heartbeat())
        assert "w2" == (await alive.hive.take(W2, "default")).node
        with pytest.raises(FsError, match="fenced: token=1 newest=3 trace="):
            await alive.run(job, "ack fence=1")

    live(story)


def test_a_silent_node_is_suspected_then_lost_and_its_heartbeat_brings_it_back() -> None:
    async def story(alive: Living) -> None:
        states = []
        for step_ns in (SUSPECT_NS, 1, LOST_NS - SUSPECT_NS):
            alive.clock.advance(step_ns)
            await alive.hive.hear("w2", Heartbeat(load=0.5))
            await alive.hive.tick()
            states.append(alive.state.nodes.by_id["w1"].state)
        assert ["online", "suspect", "lost"] == states
        assert "online" == alive.state.nodes.by_id["w2"].state
        await alive.hive.hear("w1", Heartbeat())
        assert "online" == alive.state.nodes.by_id["w1"].state

    live(story)


def test_a_node_that_left_is_not_missed() -> None:
    async def story(alive: Living) -> None:
        await alive.hive.leave("w1")
        alive.clock.advance(HOUR)
        await alive.hive.tick()
        assert "left" == alive.state.nodes.by_id["w1"].state
        await alive.hive.join(W1)
        assert "online" == alive.state.nodes.by_id["w1"].state

    live(story)


def test_a_nodes_name_belongs_to_who_had_it_first() -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError, match="permission denied: rule=node-owner node=w1 trace="):
            await alive.hive.join(type(W1)("unix:mallory", "drone-worker", node="w1"))

    live(story)


def test_what_cannot_be_a_node_s_name_does_not_join() -> None:
    async def story(alive: Living) -> None:
        for name in ("", "a/b", "..", "a#b", "ctl"):
            with pytest.raises(FsError, match="usage: "):
                await alive.hive.join(type(W1)("unix:work", "drone-worker", node=name))
        assert {"w1", "w2"} == set(alive.state.nodes.by_id)

    live(story)


def test_a_principal_is_never_taken_for_a_node() -> None:
    assert "" == node_of(actor_of("unix:mallory#w1", ""))
    assert "w2" == node_of(actor_of("unix:mallory#w1", "w2"))


def test_who_waits_for_news_of_a_job_hears_of_every_move() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit()
        waiting = asyncio.ensure_future(alive.hive.wait_news(job))
        await settled()
        await alive.write("/jobs/ctl", f"cancel job={job}")
        await waiting
        waiting = asyncio.ensure_future(alive.hive.wait_news(job))
        await settled()
        alive.hive.report(job, Progress(1, 50))
        await waiting
        assert {} == alive.hive._waiting

    live(story)


def test_a_shutdown_is_told_to_the_role_with_its_grace() -> None:
    async def story(alive: Living) -> None:
        job = await alive.submit()
        await alive.hive.take(W1, "default")
        quiesced = asyncio.ensure_future(alive.hive.wait_quiesced())
        await alive.write("/ctl", "shutdown grace=30s")
        assert "30s" == await alive.hive.shutdown
        assert "draining" == alive.state.condition
        assert not quiesced.done()
        await alive.run(job, "nack error=late")
        await quiesced

    live(story)


def test_a_hive_goes_on_where_its_ledger_ends(tmp_path: Path) -> None:
    async def story() -> None:
        clock = ManualClock()
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            jobs = [await alive.submit(f"key=k{n}") for n in range(3)]
            await alive.hive.take(W1, "default")
            await alive.write("/ctl", "shutdown")
            before = alive.state.copy()
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            assert before.jobs == alive.state.jobs
            assert ("online", before.pools) == (alive.state.condition, alive.state.pools)
            assert jobs[1] == (await alive.hive.take(W1, "default")).id

    asyncio.run(story())


def test_leases_do_not_end_before_holders_could_come_back_to_a_hive_that_was_down(tmp_path: Path) -> None:
    async def story() -> None:
        clock = ManualClock()
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            job = await alive.submit()
            await alive.hive.take(W1, "default")
        clock.advance(HOUR)
        async with living(tmp_path, str(tmp_path / "ledger"), clock) as alive:
            await alive.hive.tick()
            await alive.run(job, "renew")
            clock.advance(20 * SECOND)
            await alive.hive.tick()
            assert "leased" == alive.job_state(job)

    asyncio.run(story())


def test_replay_decides_the_same_again() -> None:
    async def story(alive: Living) -> None:
        await alive.submit("key=a labels=x:y")
        taken = await alive.hive.take(W1, "default")
        await alive.run(taken.id, "start")
        await alive.run(taken.id, "ack result='it''s done'")
        with pytest.raises(FsError):
            await alive.submit("colour=red")
        rules = HiveRules()
        state = rules.fresh()
        for _, body in alive.hive.turn.read(0):
            entry = decoder.decode(body)
            assert (entry.outcome, list(entry.events)) == replayed(rules, state, entry)
        assert alive.state == state

    live(story)


def replayed(rules: HiveRules, state: HiveState, entry: Entry[Event]) -> tuple[Outcome, list[Event]]:
    """What the entry's line comes to on ``state``, which it changes."""
    line = entry.written()
    events: list[Event] = []
    for k in range(len(line.lines)):
        try:
            decided = rules.decide(state, line, k).events
        except Refusal as refusal:
            return Outcome(refusal.code, refusal.text, k), events
        for event in decided:
            rules.apply(state, event, Meta(entry.seq, entry.time, entry.trace))
            events.append(event)
    return OK, events


def test_a_copied_state_shares_nothing_that_moves() -> None:
    hive = Folded()
    job = hive.write("/jobs/ctl", "submit topic=sum key=k")
    copied = hive.state.copy()
    assert copied == hive.state
    hive.write("/pools/default/next", "lease", W1)
    hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/ctl", "drain pool=default")
    hive.write("/nodes/ctl", "remove node=w2")
    hive.write("/artifacts/ctl", f"seal name=f sha256={'ab' * 32} size=3")
    hive.write("/artifacts/ctl", f"seal name=o sha256={'ab' * 32} size=3 job={job}", W1)
    assert "queued" == copied.jobs.by_id[job].state
    assert [job] == copied.jobs.waiting("default")
    assert ({}, {"w1", "w2"}) == (copied.artifacts.by_hash, set(copied.nodes.by_id))
    assert {} == copied.artifacts.outputs
