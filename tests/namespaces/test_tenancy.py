"""Several tenants in one hive: what the core refuses, whoever let it in; whose jobs a node gets."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from door import BOTH, READ, Door, say
from hives import ANN, BOB, W1, Folded, Living, live, living, settled

from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Peer
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces import occasions
from skep.namespaces.jobs.record import Job
from skep.namespaces.live import Heartbeat
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.sessions.core import Session
from skep.namespaces.tree import hive_tree
from skep.trace.rules import Refusal

EVE = Caller("unix:ann", "operator", tenant="third/project/env")
B1 = Caller("unix:work", "drone-worker", tenant=BOB.tenant, node="b1")
SHA = "ab" * 32


@pytest.fixture
def hive() -> Folded:
    folded = Folded()
    folded.hive("/nodes/b1", f"join principal=unix:work role=drone-worker tenant={BOB.tenant}")
    return folded


def told(hive: Folded, path: str, line: str, who: Caller) -> str:
    """What the writer is told, without the job it named."""
    try:
        return hive.write(path, line, who)
    except Refusal as refusal:
        return f"{refusal.code} {refusal.text}"


# the core has the last word


@pytest.mark.parametrize("who", [EVE, B1], ids=["operator", "node"])
@pytest.mark.parametrize(
    "verb",
    [
        "cancel",
        "cancel if-rev=3",
        "start fence=1",
        "renew fence=1",
        "ack fence=1",
        "nack fence=1 error=x",
        "release fence=1",
    ],
)
def test_a_foreign_job_is_refused_like_one_that_never_was(hive: Folded, verb: str, who: Caller) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum", ANN)
    hive.write("/pools/default/next", "lease", W1)
    said = told(hive, "/jobs/never/ctl", verb, who)
    assert said == told(hive, f"/jobs/{job}/ctl", verb, who)
    # What no policy lets a node do, is refused before anybody asks of what.
    assert said.startswith(
        "DENIED" if who.node and verb.startswith("cancel") else "MISSING file does not exist"
    )


def test_a_foreign_job_s_id_is_not_there_to_be_submitted(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum", ANN)
    assert "EXISTS" == told(hive, f"/jobs/{job}/ctl", "submit topic=sum", ANN).split()[0]
    assert "MISSING file does not exist" == told(hive, f"/jobs/{job}/ctl", "submit topic=sum", EVE)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/ctl", "drain"),
        ("/ctl", "resume"),
        ("/ctl", "shutdown"),
        ("/pools/ctl", "create pool=p"),
        ("/pools/ctl", "map topic=t pool=default"),
        ("/pools/ctl", "unmap topic=none"),
        ("/pools/ctl", "drain pool=none"),
        ("/nodes/ctl", "cordon node=w1"),
        ("/nodes/ctl", "remove node=none"),
    ],
)
def test_what_is_the_hive_s_is_its_own_tenant_s_to_command(hive: Folded, path: str, line: str) -> None:
    said = (
        f"DENIED permission denied: rule=hive-tenant {line.split()[0]} is about the hive, not about a tenant"
    )
    assert said == told(hive, path, line, EVE)


def test_keys_and_artifacts_of_two_tenants_do_not_meet(hive: Folded) -> None:
    first = hive.write("/jobs/ctl", "submit topic=sum key=k input=1", ANN)
    second = hive.write("/jobs/ctl", "submit topic=sum key=k input=2", EVE)
    assert first != second
    hive.write("/artifacts/ctl", f"seal name=f sha256={SHA} size=3 class=audit", ANN)
    unknown = "USAGE usage: submit: artifact={}: no artifact of that hash was sealed"
    assert unknown.format(SHA) == told(hive, "/jobs/ctl", f"submit topic=sum artifact={SHA}", EVE)
    other = "cd" * 32
    assert unknown.format(other) == told(hive, "/jobs/ctl", f"submit topic=sum artifact={other}", EVE)
    hive.write("/artifacts/ctl", f"seal name=g sha256={SHA} size=3", EVE)
    assert [("f", "audit"), ("g", "standard")] == [
        (table[SHA].name, table[SHA].kind) for table in hive.state.artifacts.by_hash.values()
    ]


# nodes


def test_a_node_of_a_tenant_gets_its_jobs_and_the_hive_s_own_gets_everybody_s(hive: Folded) -> None:
    first = hive.write("/jobs/ctl", "submit topic=sum priority=9", ANN)
    second = hive.write("/jobs/ctl", "submit topic=sum", BOB)
    third = hive.write("/jobs/ctl", "submit topic=sum", BOB)
    assert second == hive.write("/pools/default/next", "lease", B1)
    assert [first, third] == [hive.write("/pools/default/next", "lease", W1) for _ in range(2)]
    hive.hive(f"/jobs/{second}", "release fence=1")
    assert [second] == hive.state.jobs.waiting("default", BOB.tenant) == hive.state.jobs.waiting("default")
    assert (
        "NODATA"
        == told(hive, "/pools/default/next", "lease", msgspec.structs.replace(W1, tenant=EVE.tenant))[:6]
    )


def test_a_node_s_name_brings_another_tenant_nothing_of_what_it_had(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum", ANN)
    hive.write("/pools/default/next", "lease", W1)
    hive.hive("/nodes/w1", f"join principal=unix:work role=drone-worker tenant={EVE.tenant}")
    turned = msgspec.structs.replace(W1, tenant=EVE.tenant)
    assert "MISSING file does not exist" == told(hive, f"/jobs/{job}/ctl", "ack fence=1", turned)


def test_a_node_exists_for_the_one_tenant_it_joined_for_and_for_the_hive_s_own(hive: Folded) -> None:
    def seen(node: str) -> list[bool]:
        return [hive.state.sees_node(tenant, node) for tenant in (HIVE_TENANT, BOB.tenant, EVE.tenant)]

    assert ([True, True, False], [True, False, False]) == (seen("b1"), seen("w1"))
    hive.hive("/nodes/b1", f"join principal=unix:work role=drone-worker tenant={EVE.tenant}")
    assert [True, False, False] == seen("b1")
    assert (BOB.tenant, EVE.tenant) == hive.state.nodes.by_id["b1"].tenants
    hive.write("/nodes/ctl", "remove node=b1", ANN)
    assert [True, False, False] == seen("b1")


async def start_taking(alive: Living, who: Caller) -> asyncio.Task[Job]:
    task = asyncio.ensure_future(alive.hive.take(who, "default"))
    await settled()
    return task


@pytest.mark.parametrize("again", ["join", "expect"])
def test_a_node_s_name_brings_another_tenant_nothing_of_what_was_heard_of_it(again: str) -> None:
    async def story(alive: Living) -> None:
        zoe = Caller("spiffe://hive/drone-worker/zoe", "drone-worker", "zebra/web/prod", node="w9")
        bobs = Caller("spiffe://hive/drone-worker/bob", "drone-worker", BOB.tenant, node="w9")
        await alive.hive.join(zoe)
        await alive.hive.hear("w9", Heartbeat(labels={"stripes": "black"}))
        await alive.hive.leave("w9")
        await alive.write("/nodes/ctl", "remove node=w9")
        trigger = "create trigger=t topic=sum on=node.joined input=event"
        await alive.write("/triggers/ctl", trigger, who=BOB)
        if again == "expect":
            more = f"principal={bobs.principal} role=drone-worker tenants={BOB.tenant}"
            await alive.write("/nodes/ctl", f"expect node=w9 {more}")
        await alive.hive.join(bobs)
        told = await Door(hive_tree(alive.hive), BOB).read("/events")
        assert "spiffe://hive/drone-worker/bob" in told
        assert "zoe" not in told
        assert "stripes" not in told
        told = await Door(hive_tree(alive.hive), ANN).read("/events")
        assert "stripes" in told
        found = occasions.read(alive.hive.turn, 0, ["node.joined"])[0]
        mine = [each.entry.events[each.k] for each in found if BOB.tenant in each.tenants]
        assert [] == [event for event in mine if getattr(event, "principal", "") == zoe.principal]

    live(story)


def test_a_reader_is_told_of_its_tenant_s_jobs_alone_and_stands_in_nobody_s_way() -> None:
    async def story(alive: Living) -> None:
        await alive.hive.join(B1)
        bobs, anybodys = await start_taking(alive, B1), await start_taking(alive, W1)
        seq = alive.hive.turn.seq
        first = await alive.submit(who=ANN)
        assert (first, "w1") == ((await anybodys).id, (await anybodys).node)
        assert not bobs.done()
        # Its entry and the lease's: nobody asked in vain.
        assert seq + 2 == alive.hive.turn.seq
        second = await alive.submit(who=BOB)
        assert second == (await bobs).id

    live(story)


def test_readers_of_many_tenants_get_each_job_once() -> None:
    async def story(alive: Living) -> None:
        await alive.hive.join(B1)
        readers = [await start_taking(alive, who) for who in (B1, W1, B1, W1, B1)]
        jobs = await asyncio.gather(*(alive.submit(who=who) for who in (ANN, BOB, ANN, BOB, BOB)))
        taken = await asyncio.gather(*readers)
        assert sorted(jobs) == sorted(job.id for job in taken)
        assert all(job.request.tenant == BOB.tenant for job in taken if job.node == "b1")

    live(story)


# what is told


def test_a_lease_and_an_output_are_in_the_trace_of_the_job_s_tenant() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        ann, bob, w1 = (Door(tree, who) for who in (ANN, BOB, W1))
        job = await alive.submit(who=BOB)
        await w1.read("/pools/default/next")
        chan = await w1.create("/artifacts/stage", "out")
        await say(chan, "result")
        await chan.clunk()
        await w1.write("/artifacts/ctl", f"seal name=out job={job}\n")
        path = "/log/trace/live.jsonl"
        lines = [msgspec.json.decode(line) for line in (await bob.read(path)).splitlines()]
        assert [
            ("unix:bob", "/jobs/ctl"),
            ("unix:work#w1", "/pools/default/next"),
            ("unix:work#w1", "/artifacts/ctl"),
        ] == [(line["actor"], line["path"]) for line in lines]
        assert job not in await ann.read(path)
        assert job in await w1.read(path)

    live(story)


def test_a_drained_hive_is_quiesced_for_a_tenant_when_its_own_jobs_are_done() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        job = await alive.submit(who=BOB)
        await Door(tree, W1).read("/pools/default/next")
        await alive.write("/ctl", "drain")
        states = [await Door(tree, who).read("/state") for who in (ANN, BOB, EVE)]
        assert ["draining\n", "draining\n", "quiesced\n"] == states
        await alive.write("/jobs/ctl", f"cancel job={job}", who=BOB)
        assert "quiesced\n" == await Door(tree, ANN).read("/health/ready")

    live(story)


def test_a_kick_ends_a_session_of_its_writer_s_tenant_or_any_for_the_hive_s_own() -> None:
    async def story(alive: Living) -> None:
        kicked: list[str] = []
        caller = Caller("unix:bob", "operator", tenant=BOB.tenant, session="s1")
        end = lambda: kicked.append("s1")  # noqa: E731
        alive.hive.sessions.add(Session("s1", caller, "peer", 0, lambda: 0, "", end))
        assert ["s1"] == await alive.write("/ctl", "kick session=s1", who=EVE)
        assert [] == kicked
        await alive.write("/ctl", "kick session=s1", who=BOB)
        await alive.write("/ctl", "kick session=s1", who=ANN)
        assert ["s1", "s1"] == kicked
        events = await Door(hive_tree(alive.hive), EVE).read("/events")
        assert 1 == events.count("hive.kicked")

    live(story)


def test_looking_for_a_foreign_name_moves_no_number() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        job = await alive.submit("key=k", who=ANN)
        ann, eve = Door(tree, ANN), Door(tree, EVE)
        paths = (f"/jobs/{job}", "/jobs/by-key/k", f"/jobs/by-state/queued/{job}", "/nodes/w1")
        before = [(await ann.attr(path)).qid for path in paths]
        for path in paths:
            assert not await eve.exists(path)
        assert before == [(await ann.attr(path)).qid for path in paths]

    live(story)


def test_a_foreign_name_leaves_the_record_that_any_other_leaves() -> None:
    """One number of the ledger more or less would tell what another tenant has."""

    async def story(alive: Living) -> None:
        await alive.hive.join(B1)
        job, known, door = (
            await alive.submit(who=ANN),
            b"known to everybody",
            Door(hive_tree(alive.hive), ANN),
        )
        chan = await door.create("/artifacts/stage", "f")
        await say(chan, known.decode())
        await chan.clunk()
        await door.write("/artifacts/ctl", "seal name=f\n")
        pairs = (
            (f"jobs/{job}", f"jobs/{alive.clock.new_id()}"),
            (f"jobs/by-state/queued/{job}", f"jobs/by-state/queued/{alive.clock.new_id()}"),
            (f"artifacts/{sha256(known).hexdigest()}", f"artifacts/{sha256(b'nobody').hexdigest()}"),
            ("nodes/b1", "nodes/none"),
            ("jobs/by-key/k", "jobs/by-key/none"),
        )
        denials = alive.hive.denials
        eve = Chan(door.root.node, EVE, EVERYTHING, witness=denials.witness(Peer("local")))
        for pair in pairs:
            grown = []
            for path in pair:
                seq = alive.hive.turn.seq
                with pytest.raises(FsError) as caught:
                    await walked(eve, path)
                assert (E.MISSING, "file does not exist") == (caught.value.kind, caught.value.text)
                await denials.flush(everything=True)
                grown.append(alive.hive.turn.seq - seq)
            assert grown[0] == grown[1] == (0 if "by-key" in path else 1)

    live(story)


async def walked(root: Chan, path: str) -> None:
    """As a client goes: one name after the other, and the error of the one that is missing."""
    here: Chan | None = root
    for name in path.split("/"):
        assert here is not None
        _, here = await here.walk((name,))


def test_a_node_s_way_to_an_artifact_ends_with_its_lease() -> None:
    async def story(alive: Living) -> None:
        tree = hive_tree(alive.hive)
        ann, w1 = Door(tree, ANN), Door(tree, W1)
        chan = await ann.create("/artifacts/stage", "f")
        await say(chan, "hello")
        await chan.clunk()
        await ann.write("/artifacts/ctl", "seal name=f\n")
        job = await alive.submit("input=artifact:f")
        await w1.read("/pools/default/next")
        at = f"/artifacts/{sha256(b'hello').hexdigest()}"
        kept = [await w1.walk(f"{at}/{name}") for name in ("data", "meta.json")]
        assert "hello" == await w1.read(f"{at}/data")
        await alive.write("/jobs/ctl", f"cancel job={job}")
        for way in kept:
            with pytest.raises(FsError) as caught:
                await way.open(READ)
            assert E.MISSING is caught.value.kind

    live(story)


def test_progress_before_its_job_is_submitted_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with living(tmp_path) as alive:
            chan = Chan(hive_tree(alive.hive), ANN, EVERYTHING)
            _, clone = await chan.walk(("jobs", "clone"))
            assert clone is not None
            await clone.open(BOTH)
            with pytest.raises(FsError) as caught:
                await say(clone, "submit topic=sum\nprogress percent=1\n")
            assert E.DENIED is caught.value.kind

    asyncio.run(run())
