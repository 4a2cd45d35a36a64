"""What a tenant can find out about another: it looks at everything, follows, guesses names it cannot know,
and sees what it sees in a hive where the other has never done anything.

But for the numbers of the ledger and of files, which all tenants share: of these it sees how far they have
gone. spying.compared() takes that away and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from door import BOTH, Door, rest, say
from hives import BOB, W1, Living, living
from imaging import MANIFEST, archive
from spying import Gate, Spy, compared

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.fs.node import Caller
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.packed import pack
from skep.namespaces.tree import hive_tree
from skep.trace.clock import MINUTE, ManualClock, ulid

ZEBRA = "zebra/web/prod"
ZOE = Caller("spiffe://hive/operator/zoe", "operator", ZEBRA)
NODE = Caller("spiffe://hive/drone-worker/canary-node", "drone-worker", ZEBRA, node="canary-node")
ANNEX = Caller("spiffe://hive/cuda-annex/canary-annex", "cuda-annex", ZEBRA, node="canary-annex")
G1 = Caller("unix:work", "cuda-annex", node="g1")  # the hive's own: it does everybody's work
BEAT = '{{"labels":{{"gpu":"{0}","annex":"{0}"}},"annex":{{"devices":[{1}]}}}}'
DEVICE = '{"id":"cuda:0","memory":7919,"slots":9}'
# The operator is the same person: what one may see is a matter of the tenant one has attached to.
SPIES = {
    "operator": Caller(ZOE.principal, "operator", BOB.tenant),
    "observer": Caller("spiffe://hive/observer/spy", "observer", BOB.tenant),
    "drone-worker": Caller("spiffe://hive/drone-worker/spy", "drone-worker", BOB.tenant, node="spying-node"),
}
ROUNDS = 2
SIZE = 7919  # bytes of what is sealed, a number that nothing else has


class Clock(ManualClock):
    """Whose turn it is decides which ids come: what one does moves no other's."""

    def turn_to(self, who: str) -> None:
        self.ids = random.Random(who)

    def new_id(self) -> str:
        return ulid(self.time_ns, self.ids.getrandbits(80))


@dataclass
class Known:
    """What the foreign tenant did: names it can only know if it is told."""

    jobs: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)

    @property
    def canaries(self) -> list[str]:
        return [
            "canary",
            "zebra",
            str(SIZE),
            *self.jobs,
            *self.keys,
            *self.hashes,
            *self.files,
            *self.letters,
            *self.images,
            *self.leases,
        ]


class Stage:
    """A hive, what the one tenant does there, and the other's spy."""

    def __init__(self, alive: Living, clock: Clock) -> None:
        self.alive = alive
        self.clock = clock
        self.tree = hive_tree(alive.hive)
        self.gate = Gate(alive.hive, self.tree)

    def door(self, caller: Caller) -> Door:
        return Door(self.tree, caller)

    async def work(self, n: int, known: Known) -> None:
        """Everything that leaves a trace: jobs in every state, artifacts, nodes, sessions, refusals."""
        zoe, w1, hive = self.door(ZOE), self.door(W1), self.alive
        name, staged = f"canary-file-{n}", f"canary-staged-{n}"
        await self.gate.hive.join(NODE)
        self.gate.add(f"canary-session-{n}", ZOE)
        for file in (name, staged):
            chan = await zoe.create("/artifacts/stage", file)
            await say(chan, f"canary {n}".ljust(SIZE))
            await chan.clunk()
        await zoe.write("/artifacts/ctl", f"seal name={name} type=canary/type\n")
        key = f"canary-key-{n}"
        lines = (
            f"submit topic=sum key={key} labels=canary:canary input='canary input' priority=9",
            "submit topic=sum priority=8",
        )
        first, second = await hive.write("/jobs/ctl", *lines, who=ZOE)
        third, fourth, last = [
            await hive.submit(f"input=artifact:{name} inputs=canary-in:{name} priority={priority}", who=ZOE)
            for priority in (7, 7, 3)
        ]
        await refused(hive.write("/jobs/ctl", "submit topic=canary-topic", who=ZOE))
        await w1.read("/pools/default/next")
        await w1.write("/nodes/w1/heartbeat", '{"load":0.5,"running":1,"labels":{"canary":"canary"}}')
        at = f"/jobs/{first}"
        await w1.write(f"{at}/ctl", "start fence=1\nprogress percent=50 msg=canary\n")
        await w1.write(f"{at}/log", "canary log\n")
        output = await w1.create("/artifacts/stage", f"canary-out-{n}")
        await say(output, f"canary output {n}".ljust(SIZE))
        await output.clunk()
        await w1.write("/artifacts/ctl", f"seal name=canary-out-{n} job={first}\n")
        await w1.write(f"{at}/ctl", "ack fence=1 result=canary\n")
        await self.door(NODE).read("/pools/default/next")
        await self.door(NODE).write("/nodes/canary-node/heartbeat", '{"labels":{"stripes":"canary"}}')
        await hive.run(second, "start", who=NODE)
        await hive.run(second, "nack error=canary", who=NODE)
        await zoe.write(f"/jobs/{third}/ctl", "cancel reason=canary\n")
        await w1.read("/pools/default/next")
        assert ["succeeded", "failed", "cancelled", "leased", "queued"] == [
            hive.job_state(job) for job in (first, second, third, fourth, last)
        ]
        fast = "submit topic=fast labels=canary:canary requires=gpu:none"
        fallen = (await hive.write("/jobs/ctl", fast, who=ZOE))[0]
        await hive.hive.say(f"/jobs/{fallen}", "fallback reason=no_device", ZEBRA)
        await w1.read("/pools/gpu-cpu/next")
        await w1.write(f"/jobs/{fallen}/ctl", "fallback fence=1 reason=oom error=canary\n")
        assert ("failed", "gpu-cpu") == (hive.job_state(fallen), hive.state.jobs.by_id[fallen].request.pool)
        runs = await self.compute(name, known)
        image = archive({"boot.toml": MANIFEST, "kernel": f"canary kernel {n}".encode()})
        chan = await zoe.create("/artifacts/stage", f"canary-image-{n}.boot")
        assert len(image) == await chan.write(0, memoryview(image))
        await chan.clunk()
        await zoe.write("/boot/ctl", f"put image=canary-image-{n}\n")
        await zoe.write("/boot/ctl", f"run image=canary-image-{n}\n")
        boot = (await zoe.names("/boot/runs"))[-1]
        await zoe.write("/locks/ctl", f"acquire name=canary-lock-{n} mode=x ttl=1h\n")
        await refused(hive.write("/locks/ctl", f"acquire name=canary-lock-{n} mode=s ttl=1h", who=ZOE))
        await zoe.write(
            "/triggers/ctl",
            f"create trigger=canary-trigger-{n} topic=sum cron='* * * * *' input=canary\n"
            f"create trigger=canary-after-{n} topic=sum on=job.ended on-topic=canary\n",
        )
        (fired,) = await hive.write("/triggers/ctl", f"run trigger=canary-trigger-{n}", who=ZOE)
        await zoe.write(f"/jobs/{fired}/ctl", "cancel reason=canary\n")
        await refused(zoe.write("/jobs/ctl", f"canary is no verb {n}\n"))
        chan = await zoe.open("/pools/plan", BOTH)
        await say(chan, f"topic=sum key=canary-plan-{n} requires=stripes")
        await chan.clunk()
        await zoe.write("/log/trace/ctl", f"record session=session-of-canary-session-{n} on\n")
        await zoe.write("/log/trace/ctl", f"record principal=canary-recorded-{n} on\n")
        await hive.hive.tapes.flush()
        await zoe.write(f"/sessions/session-of-canary-session-{n}/ctl", "kick\n")
        digest = sha256(f"canary {n}".ljust(SIZE).encode()).hexdigest()
        for path in (f"/jobs/by-key/{key}", f"/artifacts/by-name/{name}", f"/artifacts/{digest}/data"):
            await zoe.read(path)
        known.jobs += [first, second, third, fourth, last, fired, fallen, boot, *runs]
        known.keys += [key]
        known.hashes += [digest, sha256(image).hexdigest()]
        known.images += [f"canary-image-{n}"]
        known.files += [name, staged]
        known.letters = [*hive.state.undecodable.by_tenant[ZEBRA]]
        # Those of the first round have left memory when the spy comes again.
        assert (n == 0) == (known.jobs[0] in hive.state.jobs.by_id)

    async def compute(self, name: str, known: Known) -> list[str]:
        """On an annex of its own, and on the hive's: leases, runs, what they fall back from."""
        zoe, annex = self.door(ZOE), self.door(ANNEX)
        await self.gate.hive.join(ANNEX)
        await annex.write("/nodes/canary-annex/heartbeat", BEAT.format("canary-annex", DEVICE))
        await zoe.write("/gpu/canary-annex/ctl", "lease memory=7 ttl=1h\n")
        await refused(zoe.write("/gpu/canary-annex/ctl", "lease memory=7920 ttl=1h\n"))
        known.leases = await zoe.names("/gpu/canary-annex/leases")
        runs = []
        for node in (self.door(G1), annex):
            chan = await zoe.open("/gpu/ctl", BOTH)
            await say(chan, f"run kernel=reduce_sum in=a:{name} priority=9\n")
            job = (await rest(chan)).decode().partition(" ")[0]
            await node.read("/pools/gpu/next")
            await node.write(f"/jobs/{job}/ctl", "start fence=1 device=cuda:0 memory=7\n")
            await node.write(f"/jobs/{job}/ctl", "fallback fence=1 reason=oom error=canary\n")
            await zoe.write(f"/jobs/{job}/ctl", "cancel reason=canary\n")
            runs.append(job)
        await self.gate.hive.leave("canary-annex")
        return runs


async def refused(doing: Awaitable[object]) -> FsError:
    with pytest.raises(FsError) as caught:
        await doing
    return caught.value


async def settle_in(spy: Spy, stage: Stage, caller: Caller) -> None:
    """The spy's own life: a job and an artifact, so that its listings are not empty."""
    await spy.attach()
    if caller.role != "operator":
        return
    await spy.create("/artifacts/stage/mine", b"my own")
    await spy.write("/artifacts/ctl", "seal name=mine\n")
    await spy.write("/jobs/ctl", "submit topic=sum key=mine input=artifact:mine\n")
    await stage.door(SPIES["drone-worker"]).read("/pools/default/next")


async def guess(spy: Spy, known: Known) -> None:
    """Ask for what one can know only from elsewhere, in every way there is."""
    for job in known.jobs:
        states = ("queued", "leased", "running", "succeeded", "failed", "cancelled")
        below = [f"{job}/state", f"{job}/ctl", f"{job}/log@0", f"{job}/events.jsonl@0", f"{job}/request.json"]
        for name in (job, *below, *(f"by-state/{state}/{job}" for state in states)):
            await spy.look(f"/jobs/{name}")
        await spy.write("/jobs/ctl", f"cancel job={job} reason=mine\n")
        await spy.write("/jobs/ctl", f"submit topic=sum\ncancel job={job} if-rev=1\n")
        await spy.write("/artifacts/ctl", f"seal name=guess job={job}\n")
        await spy.look(f"/dlq/{job}/entry.json")
        for line in (f"retry id={job}", f"discard id={job} reason=mine"):
            await spy.write("/dlq/ctl", f"{line}\n")
        await spy.write(f"/jobs/{job}/ctl", "cancel\n")
        for path in (f"/boot/runs/{job}", f"/boot/runs/{job}/serial.log@0", f"/log/boot/runs/{job}.json"):
            await spy.look(path)
    for image in known.images:
        await spy.look(f"/boot/images/{image}")
        await spy.look(f"/boot/images/{image}/kernel")
        for line in (f"run image={image}", f"put image={image}"):
            await spy.write("/boot/ctl", f"{line}\n")
    for letter in known.letters:
        for name in (letter, f"{letter}/data", f"{letter}/entry.json"):
            await spy.look(f"/dlq/undecodable/{name}")
        for line in (f"retry id={letter}", f"discard id={letter} reason=mine"):
            await spy.write("/dlq/ctl", f"{line}\n")
    for wanted in ("", "priority=0", "requires=stripes", "requires=stripes:canary", "topic=canary-topic"):
        await spy.write("/pools/plan", f"topic=sum {wanted}".replace("topic=sum topic=", "topic="))
    for key in known.keys:
        await spy.write("/pools/plan", f"topic=sum key={key} input=another")
        await spy.look(f"/jobs/by-key/{key}")
        await spy.write("/jobs/ctl", f"submit topic=sum key={key} input=mine\n")
        await spy.write("/jobs/ctl", f"submit topic=sum key={key} input=another\n")
    for digest in known.hashes:
        for name in (digest, f"sha256:{digest}", f"{digest}/data", f"{digest}/meta.json"):
            await spy.look(f"/artifacts/{name}")
        await spy.write("/jobs/ctl", f"submit topic=sum artifact={digest}\n")
        await spy.write("/pools/plan", f"topic=sum artifact={digest}")
        await spy.write("/jobs/ctl", f"submit topic=sum inputs=a:{digest}\n")
        await spy.write("/pools/plan", f"topic=sum inputs=a:{digest}")
    for n, file in enumerate(known.files):
        await spy.look(f"/artifacts/by-name/{file}")
        await spy.look(f"/artifacts/stage/{file}")
        await spy.write("/artifacts/ctl", f"seal name={file}\n")
        await spy.write("/jobs/ctl", f"submit topic=sum input=artifact:{file}\n")
        await spy.write("/jobs/ctl", f"submit topic=sum inputs=a:{file}\n")
        # The same bytes under the same name.
        await spy.create(f"/artifacts/stage/{file}", f"canary {n // 2}".ljust(SIZE).encode())
        await spy.write("/artifacts/ctl", f"seal name={file}\n")
        await spy.look(f"/artifacts/by-name/{file}")
    for node in ("w1", "canary-node"):
        for name in (node, f"{node}/state", f"{node}/heartbeat"):
            await spy.look(f"/nodes/{name}")
        for verb in ("cordon", "remove"):
            await spy.write("/nodes/ctl", f"{verb} node={node}\n")
    for lease in ("none", *known.leases):
        for path in (
            "",
            "/ctl",
            "/health",
            "/fallbacks.jsonl",
            f"/leases/{lease}",
            f"/leases/{lease}/holder",
        ):
            await spy.look(f"/gpu/canary-annex{path}")
        for line in (
            f"renew lease={lease} fence=1",
            f"release lease={lease} fence=1",
            "lease memory=1 ttl=1h",
        ):
            await spy.write("/gpu/canary-annex/ctl", f"{line}\n")
            await spy.write("/gpu/g1/ctl", f"{line}\n")
        for more in (f"lease={lease}", "annex=canary-annex"):
            await spy.write("/gpu/ctl", f"run kernel=reduce_sum in=a:mine {more}\n")
    for session in ("session-of-canary-session-0", "session-of-nobody"):
        await spy.look(f"/sessions/{session}/peer")
        await spy.write("/ctl", f"kick session={session}\n")
        await spy.write(f"/sessions/{session}/ctl", "kick\n")
        for switch in ("on", "off"):
            await spy.write("/log/trace/ctl", f"record session={session} {switch}\n")
        await spy.look(f"/log/trace/sessions/{session}.9pt")
    for n in range(ROUNDS):
        for path in (f"canary-lock-{n}", f"canary-lock-{n}/state", f"canary-lock-{n}/holders"):
            await spy.look(f"/locks/{path}")
        for line in ("release name={} fence=1", "acquire name={} mode=x ttl=1h", "renew name={} fence=1"):
            await spy.write("/locks/ctl", f"{line.format(f'canary-lock-{n}')}\n")
        for path in (f"canary-trigger-{n}", f"canary-trigger-{n}/spec", f"canary-after-{n}/last"):
            await spy.look(f"/triggers/{path}")
        trigger = f"trigger=canary-trigger-{n}"
        for line in (f"pause {trigger}", f"create {trigger} topic=sum on=job.ended", f"run {trigger}"):
            await spy.write("/triggers/ctl", f"{line}\n")
    for file in ("", "/limits", "/usage", "/actors"):
        await spy.look(f"/tenants/{ZEBRA.replace('/', ':')}{file}")
    for line in ("drain", "resume", "shutdown"):
        await spy.write("/ctl", f"{line}\n")
    for line in ("create pool=canary", "map topic=canary-topic pool=default", "drain pool=default"):
        await spy.write("/pools/ctl", f"{line}\n")


async def spied(who: Caller, dialect: Dialect, known: Known | None) -> tuple[list[list[str]], Known]:
    """What the spy has seen in each round, before it guesses and after. ``known``: from an earlier run, for
    a hive where nothing of it ever was; None: it is done now."""
    clock, did = Clock(), Known()
    clock.turn_to("the hive")
    with TemporaryDirectory() as directory:
        async with living(Path(directory), clock=clock) as alive:
            await alive.hive.join(SPIES["drone-worker"])
            content = b'{"jobs":{"history":"30s"}}'
            args = {"scope": "system", "sha256": sha256(content).hexdigest(), "content": pack(content)}
            await alive.write("/config/ctl", ctl.line("publish", args))
            await alive.write("/pools/ctl", "create pool=boot-lab", "map topic=boot.run pool=boot-lab")
            await alive.write(
                "/pools/ctl", "create pool=gpu-cpu", "create pool=gpu requires=gpu fallback=gpu-cpu"
            )
            await alive.write("/pools/ctl", "map topic=fast pool=gpu", "map topic=gpu.run pool=gpu")
            await alive.hive.join(G1)
            await Door(hive_tree(alive.hive), G1).write("/nodes/g1/heartbeat", BEAT.format("g1", DEVICE))
            stage, seen = Stage(alive, clock), list[list[str]]()
            caller = stage.gate.add("spy", who)
            spy = Spy(stage.gate, "spy", dialect)
            follower = Spy(stage.gate, "spy", dialect)
            for n in range(ROUNDS):
                clock.advance(MINUTE)
                if known is None:
                    clock.turn_to(f"zebra {n}")
                    await stage.work(n, did)
                # Whether something comes or is waited for is not to depend on how fast a thread is.
                await alive.hive.history.wait_reached(alive.hive.turn.seq)
                clock.turn_to(f"spy {n}")
                if n == 0:
                    await settle_in(spy, stage, caller)
                    await follower.attach()
                    following = [await follower.open(name) for name in FOLLOWED]
                for name, fid in zip(FOLLOWED, following, strict=True):
                    if fid is not None:
                        await follower.rest(name, fid)
                await spy.crawl()
                seen.append([*follower.seen, *spy.seen])
                if n == 0:
                    follower.seen.clear()
                    spy.seen.clear()
            await guess(spy, known or did)
            await spy.crawl()
            seen.append(spy.seen)
            for raw in (spy.raw, follower.raw):
                raw.leave()
    return seen, did


def found(canaries: list[str], seen: list[list[str]]) -> list[str]:
    """Those that were seen before the spy said them itself. The size is a number: four digits that are part
    of a hash or a signature are none."""
    looked = "\n".join(line for part in seen[:ROUNDS] for line in part)
    alone = re.search(rf"(?<![0-9A-Za-z]){SIZE}(?![0-9A-Za-z])", looked) is not None
    return [canary for canary in canaries if (alone if canary == str(SIZE) else canary in looked)]


FOLLOWED = ("/events@0", "/log/trace/live.jsonl@0", "/pools/default/next")


@pytest.mark.slow
@pytest.mark.parametrize("dialect", [Dialect.L, Dialect.U], ids=lambda dialect: dialect.value)
@pytest.mark.parametrize("role", list(SPIES))
def test_a_foreign_tenant_finds_nothing(role: str, dialect: Dialect) -> None:
    seen, did = asyncio.run(spied(SPIES[role], dialect, None))
    nothing, _ = asyncio.run(spied(SPIES[role], dialect, did))
    assert [] == found(did.canaries, seen)
    for here, there in zip(seen, nothing, strict=True):
        assert compared(there) == compared(here)


@pytest.mark.slow
def test_the_same_spy_finds_everything_in_its_own_tenant() -> None:
    colleague = msgspec.structs.replace(SPIES["observer"], tenant=ZEBRA)
    seen, did = asyncio.run(spied(colleague, Dialect.L, None))
    missed = set(did.canaries) - set(found(did.canaries, seen))
    # What is staged is its writer's alone.
    assert {file for file in did.files if "staged" in file} == missed


@pytest.mark.slow
def test_the_hives_own_tenant_sees_its_machines_and_how_much_is_used_and_nobodys_work() -> None:
    watchman = msgspec.structs.replace(SPIES["observer"], tenant=HIVE_TENANT)
    seen, did = asyncio.run(spied(watchman, Dialect.L, None))
    # That something is held of a machine is told, not by whom.
    assert ["canary", "zebra", str(SIZE), *did.leases] == found(did.canaries, seen)
    allowed = re.compile(
        "/(nodes|tenants|gpu)[ /]|/pools/default/(load|workers) |/(events|log/trace/live.jsonl)(@0)? "
    )
    told = [line for line in seen[0] + seen[1] if "canary" in line or "zebra" in line]
    assert [] == [line for line in told if not allowed.match(line)]
    for line in told:
        for event in re.findall(r"\\\"type\\\":\\\"([a-z.]+)", line):
            assert not event.startswith(("job.", "artifact.", "gpu.")), event
