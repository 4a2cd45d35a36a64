"""/gpu as files: what is shown of an annex and to whom, leases that wait, runs that are asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from annexes import GIB
from door import BOTH, Door, rest, say
from hives import ANN, BOB, W1, Living, live, living

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.alerts import Alerted
from skep.namespaces.gpu.asked import Asked, parse
from skep.namespaces.gpu.beat import Beat, Device
from skep.namespaces.gpu.offers import BURST
from skep.namespaces.gpu.record import Offered
from skep.namespaces.hive import HiveRules
from skep.namespaces.live import Heartbeat
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.tree import hive_tree
from skep.trace.clock import SECOND, ManualClock
from skep.trace.entry import entry_decoder

G1 = Caller("spiffe://hive/cuda-annex/g1", "cuda-annex", node="g1")
CARD = Device(
    "cuda:0", "a card", "GPU-1", 8 * GIB, 4, memory_total=9 * GIB, memory_free=6 * GIB,
    utilisation=0.25, temperature=40.0,
)  # fmt: skip
BEAT = Beat(driver="550.1", queue=2, devices=(CARD,))
LABELS = {"annex": "g1", "gpu": "h100"}
entries = entry_decoder(HiveRules.event_type)


class Annexed:
    """A hive with the annex g1, and ways into its tree."""

    def __init__(self, alive: Living) -> None:
        self.alive = alive
        self.tree = hive_tree(alive.hive)

    def door(self, who: Caller = ANN) -> Door:
        return Door(self.tree, who)

    async def beat(self, beat: Beat = BEAT, labels: dict[str, str] = LABELS) -> None:
        said = Heartbeat(labels=labels, capacity=16, annex=beat)
        await self.door(G1).write("/nodes/g1/heartbeat", msgspec.json.encode(said).decode())

    async def say(self, path: str, line: str, who: Caller = ANN) -> str:
        """Write the line; its reply."""
        chan = await self.door(who).open(path, BOTH)
        await say(chan, f"{line}\n")
        return (await rest(chan)).decode().partition(" rev=")[0].strip()

    async def lease(self, more: str = "memory=1GiB ttl=60s", who: Caller = ANN) -> str:
        """The lease's id."""
        return (await self.say("/gpu/g1/ctl", f"lease {more}", who)).split(" ")[0]

    async def refused(self, path: str, line: str, who: Caller = ANN) -> FsError:
        with pytest.raises(FsError) as caught:
            await self.say(path, line, who)
        return caught.value

    async def seal(self, name: str, content: bytes = b"", who: Caller = ANN) -> str:
        """The SHA-256 of an artifact, in hex."""
        chan = await self.door(who).create("/artifacts/stage", name)
        await say(chan, (content or name.encode()).decode())
        await chan.clunk()
        await self.door(who).write("/artifacts/ctl", f"seal name={name}\n")
        return sha256(content or name.encode()).hexdigest()

    async def held(self, job: str) -> None:
        """Have g1 hold the job."""
        while self.alive.state.jobs.by_id[job].state == "queued":
            await self.door(G1).read("/pools/gpu/next")

    def events(self) -> list[Any]:
        ledger = self.alive.hive.turn.ledger
        return [event for _, body in ledger.read(0, 1000) for event in entries.decode(body).events]


def annexed(story: Callable[[Annexed], Awaitable[None]]) -> None:
    """Run a story on a hive that has heard from the annex g1."""

    async def run(alive: Living) -> None:
        await alive.hive.join(G1)
        hive = Annexed(alive)
        await hive.beat()
        await story(hive)

    live(run)


# what is shown


def test_an_annex_shows_its_devices_what_is_given_and_how_they_are() -> None:
    async def story(hive: Annexed) -> None:
        door = hive.door()
        assert ["ctl", "sources", "g1"] == await door.names("/gpu")
        await hive.lease("memory=2GiB slots=2 ttl=60s")
        info = json.loads(await door.read("/gpu/g1/info.json"))
        named = {"id": "cuda:0", "kind": "cuda", "name": "a card", "uuid": "GPU-1"}
        card = named | {"memory": 8 * GIB, "slots": 4}
        assert ([card], "550.1", "30s", LABELS) == tuple(
            info[name] for name in ("devices", "driver", "every", "labels")
        )
        assert "online\n" == await door.read("/gpu/g1/health")
        load = "cuda:0 memory=2147483648/8589934592 slots=2/4 leases=1 utilisation=0.25\nwaiting=0 queue=2\n"
        assert load == await door.read("/gpu/g1/load")

    annexed(story)


def test_heartbeats_are_kept_as_records() -> None:
    async def story(hive: Annexed) -> None:
        hive.alive.clock.advance(30 * SECOND)
        warm = msgspec.structs.replace(CARD, id="cuda:1", utilisation=0.75, temperature=60.0)
        cold = msgspec.structs.replace(CARD, id="cuda:2", utilisation=None, temperature=None)
        await hive.beat(msgspec.structs.replace(BEAT, devices=(CARD, warm, cold)))
        first, second = map(json.loads, (await hive.door().read("/gpu/g1/telemetry.jsonl")).splitlines())
        names = ("annex", "state", "driver", "memory_total", "memory_free", "temperature", "queue")
        assert ("g1", "ready", "550.1", 9 * GIB, 6 * GIB, 40.0, 2) == tuple(first[name] for name in names)
        assert (27 * GIB, 0.5, 60.0) == (
            second["memory_total"], second["utilisation"], second["temperature"],
        )  # fmt: skip
        assert (["cuda", "cuda", "cuda"], True) == (
            [device["kind"] for device in second["devices"]], first["time"] < second["time"],
        )  # fmt: skip

    annexed(story)


def test_heartbeats_are_followed_as_they_come() -> None:
    async def story(hive: Annexed) -> None:
        last = json.loads((await hive.door().read("/gpu/g1/telemetry.jsonl")).splitlines()[-1])["seq"]
        # One that was there before the hive began again has a greater number.
        for after in (last, last + 100):
            following = await hive.door().open(f"/gpu/g1/telemetry.jsonl@{after}")
            reading = asyncio.ensure_future(following.read(0, 8192))
            await hive.beat()
            last += 1
            assert last == json.loads(await reading)["seq"]
        reading = asyncio.ensure_future(following.read(0, 8192))
        await hive.say("/nodes/ctl", "remove node=g1")
        assert b"" == await reading

    annexed(story)


def test_a_machine_without_a_gpu_says_cpu_everywhere() -> None:
    async def story(hive: Annexed) -> None:
        await hive.beat(Beat(devices=(Device("cpu:0", memory=GIB, slots=2),)), {"annex": "g1"})
        assert "device=cpu:0" in await hive.say("/gpu/g1/ctl", "lease memory=1 ttl=60s")
        info = json.loads(await hive.door().read("/gpu/g1/info.json"))
        assert ("cpu", "cpu:0") == (info["devices"][0]["kind"], info["devices"][0]["id"])
        assert (await hive.door().read("/gpu/g1/load")).startswith("cpu:0 memory=1/1073741824 ")

    annexed(story)


@pytest.mark.parametrize(
    "annex",
    [
        '{"devices":[{"id":"gpu0"}]}', '{"devices":[{"id":"cpu:0"},{"id":"cpu:0"}]}', '{"every":"1ms"}',
        '{"devices":[{"id":"cuda:0","slots":0}]}', '{"devices":[{"id":"cuda:0","utilisation":25}]}',
        '{"devices":[{"id":"cuda:0","memory":-1}]}', '{"queue":-1}', '{"queue":9007199254740992}',
        '{"every":"8760h"}', '{"state":"x\\nonline"}', '{"driver":"\\u001b[2J"}', '{"disabled":"x\\nonline"}',
        '{"devices":[{"id":"cuda:0","name":"\\u202eb"}]}', '{"devices":[{"id":"cuda:0","temperature":1e9}]}',
        '{"devices":[{"id":"cuda:0","temperature":NaN}]}', '{"devices":[{"id":"cuda:0\\n"}]}',
        json.dumps({"devices": [{"id": f"cuda:{number}"} for number in range(17)]}),
    ],
)  # fmt: skip
def test_a_heartbeat_that_cannot_be_is_refused(annex: str) -> None:
    async def story(hive: Annexed) -> None:
        with pytest.raises(FsError) as caught:
            await hive.door(G1).write("/nodes/g1/heartbeat", f'{{"annex":{annex}}}')
        assert E.SCHEMA is caught.value.kind
        with pytest.raises(FsError, match="rule=annex-role"):
            await hive.door(W1).write("/nodes/w1/heartbeat", '{"annex":{}}')

    annexed(story)


@pytest.mark.parametrize(
    ("who", "labels"), [(W1, {"annex": "w1", "gpu": "h100"}), (G1, {"annex": "g2"}), (W1, {"annex": "g1"})]
)
def test_nobody_says_of_itself_that_it_is_an_annex_which_it_is_not(
    who: Caller, labels: dict[str, str]
) -> None:
    async def story(hive: Annexed) -> None:
        with pytest.raises(FsError, match="rule=annex-role"):
            await hive.door(who).write(f"/nodes/{who.node}/heartbeat", json.dumps({"labels": labels}))

    annexed(story)


@pytest.mark.parametrize("labels", [{"a\nb": "c"}, {"a": "b\x1b[2J"}])
def test_labels_are_lines_that_can_be_printed(labels: dict[str, str]) -> None:
    async def story(hive: Annexed) -> None:
        with pytest.raises(FsError, match="expected a line that can be printed"):
            await hive.door(G1).write("/nodes/g1/heartbeat", json.dumps({"labels": labels}))

    annexed(story)


FILES = [path.name for path in resources.files("skep.roles").iterdir()]
ROLES = sorted(name.removesuffix(".ns") for name in FILES if name.endswith(".ns"))
MAY = {
    "operator": {"run", "allow", "forbid", "lease", "renew", "release", "disable", "enable"},
    "queen-primary": {"run", "allow", "forbid", "lease", "renew", "release", "disable", "enable"},
    "interactive-ai-booth": {"run"},
    "glasses-agent": {"run"},
}
DOES = {
    "/gpu/ctl": ("run kernel=reduce_sum in=a:a.npy",),
    "/gpu/sources/ctl": (f"allow source={'0' * 64}", f"forbid source={'0' * 64}"),
    "/gpu/g1/ctl": (
        "lease memory=1 ttl=60s", "renew lease={} fence={}", "release lease={} fence={}", "disable", "enable"
    ),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_who_may_do_what_to_annexes(role: str) -> None:
    async def story(hive: Annexed) -> None:
        await hive.seal("a.npy")
        who, may, refused = Caller(f"spiffe://hive/{role}/n1", role, node="n1"), set(), []
        for path, lines in DOES.items():
            for line in lines:
                grants = hive.alive.state.gpu.by_id["g1"].grants
                held = next(iter(grants.values()), None)
                named = (held.lease, held.given.fence) if held else ("none", 0)
                try:
                    await hive.say(path, line.format(*named), who)
                    may.add(line.partition(" ")[0])
                except FsError as error:
                    refused.append(error.detail)
        assert MAY.get(role, set()) == may
        assert all("rule=default-deny" in detail for detail in refused), refused

    annexed(story)


def test_a_worker_that_says_it_has_a_gpu_is_given_no_run_of_an_annex() -> None:
    async def story(hive: Annexed) -> None:
        await hive.door(W1).write("/nodes/w1/heartbeat", '{"labels":{"gpu":"h100"}}')
        await hive.seal("a.npy")
        job = await hive.say("/gpu/ctl", "run kernel=reduce_sum in=a:a.npy")
        reading = asyncio.ensure_future(hive.door(W1).read("/pools/gpu/next"))
        await hive.held(job)
        assert "g1" == hive.alive.state.jobs.by_id[job].node
        reading.cancel()
        await asyncio.wait([reading])

    annexed(story)


def test_heartbeats_that_say_something_else_each_time_do_not_fill_the_ledger() -> None:
    async def story(hive: Annexed) -> None:
        hive.alive.clock.advance(30 * SECOND)
        offered = len([event for event in hive.events() if isinstance(event, Offered)])
        for size in range(1, 101):
            await hive.beat(msgspec.structs.replace(BEAT, devices=(Device("cuda:0", memory=size),)))
        assert offered + BURST == len([event for event in hive.events() if isinstance(event, Offered)])
        # What it said last is what counts in the end.
        hive.alive.clock.advance(10 * SECOND)
        await hive.alive.hive.tick()
        assert 100 == hive.alive.state.gpu.by_id["g1"].cards[0].memory

    annexed(story)


def test_health_says_who_is_silent_after_its_own_time_and_a_lost_one_is_an_alert() -> None:
    async def story(hive: Annexed) -> None:
        found = []
        for step_ns in (34 * SECOND, 1, 30 * SECOND - 1, 1):
            hive.alive.clock.advance(step_ns)
            await hive.alive.hive.tick()
            found.append((await hive.door().read("/gpu/g1/health")).strip())
        assert ["online", "suspect", "suspect", "lost"] == found
        (alert,) = [event for event in hive.events() if isinstance(event, Alerted)]
        assert ("annex", "g1", HIVE_TENANT, "annex_lost") == (
            alert.about, alert.id, alert.tenant, alert.reason,
        )  # fmt: skip
        # It is all there while the annex is not.
        for name in ("info.json", "load", "telemetry.jsonl", "fallbacks.jsonl"):
            await hive.door().read(f"/gpu/g1/{name}")
        await hive.beat()
        assert "online\n" == await hive.door().read("/gpu/g1/health")

    annexed(story)


def test_health_says_why_an_annex_is_disabled() -> None:
    async def story(hive: Annexed) -> None:
        await hive.say("/gpu/g1/ctl", "disable reason=drill")
        assert "disabled: drill\n" == await hive.door().read("/gpu/g1/health")
        await hive.say("/gpu/g1/ctl", "enable")
        await hive.beat(msgspec.structs.replace(BEAT, disabled="SKEP_NO_CUDA=1"))
        assert "disabled: SKEP_NO_CUDA=1\n" == await hive.door().read("/gpu/g1/health")

    annexed(story)


def test_a_lease_is_shown_as_it_was_given() -> None:
    async def story(hive: Annexed) -> None:
        id = await hive.lease("memory=1GiB slots=2 ttl=60s priority=7")
        at, door = f"/gpu/g1/leases/{id}", hive.door()
        fence = hive.alive.state.gpu.by_id["g1"].grants[id].given.fence
        shown = {name: (await door.read(f"{at}/{name}")).strip() for name in await door.names(at)}
        assert {
            "state": "granted", "device": "cuda:0", "memory": str(GIB), "slots": "2", "priority": "7",
            "until": "2023-11-14T22:14:20.000000000Z", "holder": "unix:ann", "job": "", "fence": str(fence),
        } == shown  # fmt: skip

    annexed(story)


# leases that wait


async def waiting(hive: Annexed, who: Caller = ANN, wait: str = "10s") -> asyncio.Task[str]:
    """A lease of all of the device that waits."""
    count = len(hive.alive.state.gpu.by_id["g1"].waiters)
    task = asyncio.ensure_future(hive.lease(f"memory=8GiB ttl=60s wait={wait}", who))
    while len(hive.alive.state.gpu.by_id["g1"].waiters) == count:
        await hive.alive.hive.turn.wait_past(hive.alive.hive.turn.seq)
    return task


def test_a_write_with_wait_is_answered_when_the_lease_is_granted() -> None:
    async def story(hive: Annexed) -> None:
        first = await hive.lease("memory=8GiB ttl=60s")
        task = await waiting(hive)
        (id,) = hive.alive.state.gpu.by_id["g1"].waiters
        assert "waiting\n" == await hive.door().read(f"/gpu/g1/leases/{id}/state")
        fence = hive.alive.state.gpu.by_id["g1"].grants[first].given.fence
        await hive.say("/gpu/g1/ctl", f"release lease={first} fence={fence}")
        assert id == await task

    annexed(story)


def test_who_has_waited_in_vain_is_told_what_is_given() -> None:
    async def story(hive: Annexed) -> None:
        await hive.lease("memory=8GiB ttl=60s")
        task = await waiting(hive)
        hive.alive.clock.advance(10 * SECOND)
        await hive.alive.hive.tick()
        with pytest.raises(FsError) as caught:
            await task
        assert (E.QUOTA, True) == (caught.value.kind, f"memory have={8 * GIB}" in caught.value.text)

    annexed(story)


def test_who_waits_for_an_annex_that_is_disabled_is_told_so() -> None:
    async def story(hive: Annexed) -> None:
        await hive.lease("memory=8GiB ttl=60s")
        task = await waiting(hive)
        await hive.say("/gpu/g1/ctl", "disable reason=drill")
        with pytest.raises(FsError, match="annex=g1 is disabled: drill"):
            await task

    annexed(story)


def test_who_gives_up_leaves_nothing_behind() -> None:
    async def story(hive: Annexed) -> None:
        await hive.lease("memory=8GiB ttl=60s")
        task = await waiting(hive)
        task.cancel()
        await asyncio.wait([task])
        assert (True, {}) == (task.cancelled(), hive.alive.state.gpu.by_id["g1"].waiters)

    annexed(story)


def test_a_lease_that_may_wait_is_alone_in_its_write() -> None:
    async def story(hive: Annexed) -> None:
        line = "lease memory=1 ttl=60s wait=1s"
        assert E.USAGE is (await hive.refused("/gpu/g1/ctl", f"{line}\n{line}")).kind

    annexed(story)


def test_what_is_given_is_given_still_after_a_restart_and_nobody_waits_any_more(tmp_path: Path) -> None:
    clock, ledger = ManualClock(), str(tmp_path / "ledger")

    async def before() -> str:
        async with living(tmp_path, ledger, clock) as alive:
            await alive.hive.join(G1)
            hive = Annexed(alive)
            await hive.beat()
            id = await hive.lease("memory=8GiB ttl=60s exclusive=true")
            task = await waiting(hive)
            await alive.hive.start()
            with pytest.raises(FsError):
                await task
            await waiting(hive)
            return id

    async def after(id: str) -> None:
        async with living(tmp_path, ledger, clock) as alive:
            hive = Annexed(alive)
            assert ([id], {}) == (
                list(alive.state.gpu.by_id["g1"].grants), alive.state.gpu.by_id["g1"].waiters,
            )  # fmt: skip
            assert E.QUOTA is (await hive.refused("/gpu/g1/ctl", "lease memory=1 ttl=60s")).kind
            clock.advance(60 * SECOND)
            await alive.hive.tick()
            assert {} == alive.state.gpu.by_id["g1"].grants

    asyncio.run(after(asyncio.run(before())))


# runs


def test_a_run_is_a_job_of_the_pool_gpu_with_its_arrays_as_inputs() -> None:
    async def story(hive: Annexed) -> None:
        x, y = await hive.seal("a.npy"), await hive.seal("b.npy")
        line = f"run kernel=saxpy in=x:a.npy,y:{y} set=alpha:2 memory=1GiB slots=2 priority=7 key=k retries=2"
        job = await hive.say("/gpu/ctl", line)
        request = hive.alive.state.jobs.by_id[job].request
        assert ("gpu.run", "gpu", {"x": x, "y": y}, 7, "k", 2) == (
            request.topic, request.pool, request.inputs, request.priority, request.key, request.retries,
        )  # fmt: skip
        asked = Asked(kernel="saxpy", numbers={"alpha": 2}, memory=GIB, slots=2)
        assert asked == parse(request.input or "")
        assert job == await hive.say("/gpu/ctl", line)

    annexed(story)


def test_the_pools_are_made_when_the_first_run_is_asked_for() -> None:
    async def story(alive: Living) -> None:
        hive = Annexed(alive)
        await hive.seal("a.npy")
        job = await hive.say("/gpu/ctl", "run kernel=reduce_sum in=a:a.npy fallback=refuse patience=5s")
        pools = alive.state.pools.by_name
        assert (frozenset({"annex", "gpu"}), "gpu-cpu", "") == (
            pools["gpu"].requires, pools["gpu"].fallback, pools["gpu-cpu"].fallback,
        )  # fmt: skip
        request = alive.state.jobs.by_id[job].request
        assert ("refuse", 5 * SECOND) == (request.fallback, request.patience_ns)

    live(story)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "expected kernel=, or source="),
        ("kernel=sapxy", "expected one of vector_add saxpy"),
        ("kernel=saxpy in=x:a.npy set=alpha:2", "saxpy: y: given nothing, expected an array"),
        ("kernel=saxpy in=x:a.npy,y:a.npy", "saxpy: alpha: given nothing, expected a number"),
        ("kernel=saxpy in=x:a.npy,y:a.npy set=alpha:two", "set: alpha: 'two': expected a number"),
        ("kernel=saxpy in=x:a.npy,y:a.npy set=alpha:nan", "saxpy: alpha: given nan, expected float from"),
        ("kernel=topk in=a:a.npy set=k:1.5", "topk: k: given 1.5, expected int from 0"),
        ("kernel=topk in=a:a.npy set=k:-1", "topk: k: given -1, expected int from 0"),
        (
            "kernel=reduce_sum in=a:a.npy set=n:1",
            "reduce_sum: n: given a number, expected of its kind",
        ),
        ("kernel=reduce_sum in=a:a.npy raw=b:float32", "raw: b: expected one of a"),
        ("kernel=reduce_sum in=a:a.npy raw=a:float33:9", "a: 'float33:9': expected DTYPE"),
        ("kernel=reduce_sum in=a:a.npy slots=0", "slots: 0: expected 1 to"),
        ("kernel=reduce_sum in=a:a.npy memory=much", "memory=much: expected bytes"),
        ("kernel=reduce_sum in=a:a.npy grid=1", "grid=: expected source= with it"),
        ("kernel=reduce_sum in=a:none.npy", "inputs=a:none.npy: no artifact was sealed"),
        ("kernel=reduce_sum in=a:a.npy lease=mine", "lease=mine: it is over, or none of yours"),
    ],
)
def test_a_run_that_cannot_be_is_refused_where_it_is_asked_for(said: str, told: str) -> None:
    async def story(hive: Annexed) -> None:
        await hive.seal("a.npy")
        assert told in (await hive.refused("/gpu/ctl", f"run {said}")).text
        assert {} == hive.alive.state.jobs.by_id

    annexed(story)


def test_a_run_within_a_lease_goes_to_its_annex() -> None:
    async def story(hive: Annexed) -> None:
        await hive.seal("a.npy")
        lease = await hive.lease()
        job = await hive.say("/gpu/ctl", f"run kernel=reduce_sum in=a:a.npy lease={lease}")
        request = hive.alive.state.jobs.by_id[job].request
        assert (("annex:g1",), lease) == (request.requires, parse(request.input or "").lease)
        line = f"run kernel=reduce_sum in=a:a.npy lease={lease} annex=g2"
        assert "is of annex=g1" in (await hive.refused("/gpu/ctl", line)).text
        eve = Caller("unix:eve", "operator")
        assert E.EXPIRED is (await hive.refused("/gpu/ctl", line, eve)).kind

    annexed(story)


def test_a_source_runs_when_its_hash_is_allowed() -> None:
    async def story(hive: Annexed) -> None:
        source = await hive.seal("scale.cu", b'extern "C" __global__ void scale() {}')
        x = await hive.seal("x.npy")
        run = "run source=scale.cu in=x:x.npy function=scale grid=1 block=32 args=in:x,out:y:float32:8"
        assert "rule=source-allowed" in (await hive.refused("/gpu/ctl", run)).text
        # Who may have runs done, an agent say, allows none by that.
        assert E.USAGE is (await hive.refused("/gpu/ctl", f"allow source={source}")).kind
        await hive.say("/gpu/sources/ctl", f"allow source={source} reason=read")
        shown = json.loads(await hive.door().read(f"/gpu/sources/{source}"))
        assert (f"sha256:{source}", "unix:ann", "read") == (shown["source"], shown["by"], shown["reason"])
        job = await hive.say("/gpu/ctl", run)
        request = hive.alive.state.jobs.by_id[job].request
        assert ({"source": source, "x": x}, source) == (request.inputs, parse(request.input or "").source)
        assert "refuse" == request.fallback
        for more in (" kernel=saxpy", " set=alpha:1", " in=z:x.npy", " fallback=allow"):
            assert E.USAGE is (await hive.refused("/gpu/ctl", run.replace(" in=x:x.npy", "") + more)).kind
        assert E.USAGE is (await hive.refused("/gpu/ctl", "run source=scale.cu function=scale")).kind
        await hive.say("/gpu/sources/ctl", f"forbid source={source}")
        assert ["ctl"] == await hive.door().names("/gpu/sources")
        assert E.DENIED is (await hive.refused("/gpu/ctl", run)).kind

    annexed(story)


# fallbacks, and who sees what


def test_what_an_annex_did_not_do_is_shown_as_it_goes_on() -> None:
    async def story(hive: Annexed) -> None:
        await hive.seal("a.npy")
        job = await hive.say("/gpu/ctl", "run kernel=reduce_sum in=a:a.npy")
        await hive.held(job)
        await hive.alive.run(job, "start device=cuda:0 memory=1", G1)
        await hive.alive.run(job, "fallback reason=oom error=full", G1)
        (line,) = map(json.loads, (await hive.door().read("/gpu/g1/fallbacks.jsonl")).splitlines())
        assert (job, "g1", "oom", "gpu", "gpu-cpu", 1, "queued", "") == tuple(
            line[name] for name in ("job", "annex", "reason", "from", "pool", "attempt", "state", "ended")
        )
        await hive.door(W1).read("/pools/gpu-cpu/next")
        await hive.alive.run(job, "start device=cpu")
        await hive.alive.run(job, "ack result=1")
        (line,) = map(json.loads, (await hive.door().read("/gpu/g1/fallbacks.jsonl")).splitlines())
        assert ("succeeded", "cpu: oom", True) == (line["state"], line["device"], line["ended"] != "")

    annexed(story)


def test_an_annex_is_there_for_its_own_tenant_and_for_itself() -> None:
    async def story(hive: Annexed) -> None:
        await hive.lease()
        assert ["ctl", "sources"] == await hive.door(BOB).names("/gpu")
        for path in ("/gpu/g1", "/gpu/g1/health", "/gpu/g1/ctl", "/gpu/none"):
            assert not await hive.door(BOB).exists(path)
        assert "g1" in await hive.door(G1).names("/gpu")

    annexed(story)


def test_whose_a_lease_is_is_told_to_its_tenant_and_to_the_annex() -> None:
    async def story(hive: Annexed) -> None:
        await hive.seal("a.npy", who=BOB)
        job = await hive.say("/gpu/ctl", "run kernel=reduce_sum in=a:a.npy", BOB)
        await hive.held(job)
        await hive.alive.run(job, "start device=cuda:0 memory=1", G1)
        (id,) = await hive.door().names("/gpu/g1/leases")
        for who, shown in ((ANN, ["", ""]), (G1, ["unix:bob\n", f"{job}\n"])):
            door = hive.door(who)
            assert shown == [await door.read(f"/gpu/g1/leases/{id}/{name}") for name in ("holder", "job")]
            assert "1\n" == await door.read(f"/gpu/g1/leases/{id}/memory")
        await hive.alive.run(job, "fallback reason=oom", G1)
        assert ["", True] == [
            await hive.door().read("/gpu/g1/fallbacks.jsonl"),
            job in await hive.door(G1).read("/gpu/g1/fallbacks.jsonl"),
        ]

    annexed(story)
