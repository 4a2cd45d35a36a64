"""1,000 jobs for devices, on annexes that die: each job ends once, right or with an explicit error.

Queen, two annexes, a worker that has the twins and the network between them are real: processes, TLS, network
namespaces. The annexes' devices are their CPUs, in a pool that asks for an annex and falls back to the
worker's. While jobs run the annexes are killed, stopped, cut off, starved and disabled, kernels fault and
find no memory, leases end, the queen is killed. Then the ends are counted from outside, by SQLite and the
entries' JSON, the bytes compared with NumPy's, and the ledger is proven by `skep annex prove`.

SKEP_SEED=<number> does the same things again, as far as time lets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvloop
from computed import Work, large, long, npy, works, wrong
from mishaps import Asking, Process, Queen
from people import PLENTY_S, SKEP, Person
from queens import read, say
from wires import Wires, wired

from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JOBS = int(os.environ.get("SKEP_JOBS") or 1000)
OF_EACH = 3  # works of each kernel, that jobs share
OPEN_MAX = 120  # jobs submitted and not ended, at most, before the next mishap
MEMORY = 2 * 1024**3  # of an annex's device: a run is given half a GiB and what it needs
SLOTS = 2
BEYOND_S = 3.3  # how long an annex says nothing: two heartbeats and a second, then it is lost
PATIENCE_S = 5
STARVE_S = 2
RATIO_MIN = 0.95  # of those that a CPU could do instead
FIRST = {"priority": "9", "patience": "30s"}  # of jobs that a mishap is about
LINES_MAX = 64  # of one write
LOOK_S = 0.05
MISHAPS = 11
SHARE = JOBS // (MISHAPS + 2)  # of the jobs, before each mishap
DRAIN_S = 60.0
ANNEXES = ("a1", "a2")
SPARE = "w1"
POOLS = (
    "create pool=drill-cpu lease=2s",
    f"create pool=drill requires=annex fallback=drill-cpu patience={PATIENCE_S}s lease=2s",
    "map topic=gpu.run pool=drill",
)
# Why jobs fall back: the drill is over when each has happened.
REASONS = {"annex_lost", "disabled", "full", "kernel_failed", "lease_expired", "no_device", "oom"}
CHILD = b"skep.native.kernels.child"


class Asked(NamedTuple):
    """A job as it was asked for. ``given``: of the line; ``falls``: a CPU may do it."""

    work: Work
    given: dict[str, str]

    @property
    def falls(self) -> bool:
        return self.given.get("fallback") != "refuse"


@dataclass
class Told:
    """What the clients know, by key; ``ids``: job, as it was answered."""

    asked: dict[str, Asked] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)


# the ledger from outside


class Ledger:
    """The ledger's events as far as they are written, in JSON, read while the queen writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seq = 0
        self.events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # by type

    def follow(self) -> None:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as ledger:
            rows = ledger.execute("SELECT seq, body FROM entries WHERE seq > ? ORDER BY seq", (self.seq,))
            for self.seq, body in rows:
                for event in json.loads(body)["events"]:
                    self.events[event["type"]].append(event)

    def ends(self) -> dict[str, dict[str, Any]]:
        return {event["job"]: event for event in self.events["job.ended"]}


# processes of kernels


def kernel_processes(home: Path) -> list[int]:
    """Those of the annex of that home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            of_kernels = CHILD in (process / "cmdline").read_bytes()
            if of_kernels and f"HOME={home}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it has ended
    return found


# the drill


class Drill:
    """The hive, and what happens to it; every mishap has its share of the jobs."""

    def __init__(self, queen: Queen, people: dict[str, Person], wires: Wires, told: Told, seed: int) -> None:
        self.queen = queen
        self.people = people
        self.wires = wires
        self.told = told
        self.rng = random.Random(seed)
        self.works = works(seed, OF_EACH)
        rng = np.random.default_rng(seed)
        self.long, self.large, self.wrong = long(rng), large(rng), wrong(rng)
        self.asking = Asking(queen)
        self.ledger = Ledger(queen.directory / "ledger.db")
        self.annexes: list[Process] = []
        self.spare = Process(people[SPARE])
        self.count: Counter[str] = Counter()

    def processes(self) -> list[Process]:
        return [*self.annexes, self.spare]

    async def begin(self) -> None:
        await self.queen.begin()
        await self.asking.asks(lambda client: say(client, "/pools/ctl", *POOLS))
        roles = dict.fromkeys(ANNEXES, "cuda-annex") | {SPARE: "drone-worker"}
        async with asyncio.TaskGroup() as group:
            for name, role in roles.items():
                group.create_task(asyncio.to_thread(self.queen.enroll, self.people[name], role))
            group.create_task(self.asking.asks(self.seal))
        for name in ANNEXES:
            person = self.people[name]
            self.annexes.append(
                Process(
                    person, *SKEP, "serve", "--role", "cuda-annex", "-H", self.queen.address,
                    "--dir", str(person.home / "annex"), "--device", "cpu", "--slots", str(SLOTS),
                    "--memory", str(MEMORY), "--heartbeat", "1s", "--pools", "drill",
                )
            )  # fmt: skip
        self.spare = Process(
            self.people[SPARE], *SKEP, "worker", "-H", self.queen.address, "--kernels",
            "--dir", str(self.people[SPARE].home / "worker"), "--pools", "drill-cpu", "--slots", str(SLOTS),
        )  # fmt: skip
        for process in self.processes():
            process.begin()
        await self.wait_online()

    async def seal(self, client: Client) -> None:
        """The arrays become artifacts."""
        for work in (*self.works, self.long, self.large, self.wrong):
            for array in work.inputs.values():
                await client.write_file("/artifacts/stage/in", npy(array), create=True)
                await say(client, "/artifacts/ctl", f"seal name=in sha256={sha256(npy(array)).hexdigest()}")

    async def submit(self, count: int, work: Work | None = None, **given: str) -> list[str]:
        """Ask for so many, in one write; their keys. ``work`` None: any of the small ones."""
        assert count <= LINES_MAX
        asked = {
            f"k{len(self.told.asked) + n}": Asked(work or self.rng.choice(self.works), given)
            for n in range(count)
        }
        self.told.asked |= asked
        lines = [run_line(key, one) for key, one in asked.items()]
        ids = await self.asking.asks(lambda client: say(client, "/gpu/ctl", *lines))
        self.told.ids |= dict(zip(asked, ids, strict=True))
        return list(asked)

    async def share(self, count: int) -> None:
        """So many of any kind, when most of those before have ended."""
        await self.until("room for more", lambda: len(self.told.ids) - len(self.ledger.ends()) < OPEN_MAX)
        refuse = count // 20
        for begun in range(refuse, count, LINES_MAX):
            await self.submit(min(LINES_MAX, count - begun))
        await self.submit(refuse, fallback="refuse", patience="40s")

    async def until(self, what: str, found: Callable[[], Any], seconds: float = PLENTY_S) -> None:
        """Return when that is so of the ledger."""
        try:
            async with asyncio.timeout(seconds):
                while not found():
                    await asyncio.sleep(LOOK_S)
                    self.ledger.follow()
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}") from None

    async def fall_back(self, reason: str, keys: list[str]) -> None:
        """Return when one of these has fallen back for that reason."""
        jobs = {self.told.ids[key] for key in keys}
        await self.until(
            f"one that fell back: {reason}",
            lambda: any(
                event["reason"] == reason and event["job"] in jobs
                for event in self.ledger.events["job.fellback"]
            ),
        )

    async def wait_online(self) -> None:
        for name in ANNEXES:
            await self.wait_health(name, "online")

    async def wait_health(self, name: str, word: str) -> None:
        async with asyncio.timeout(PLENTY_S):
            while not (await self.health(name)).startswith(word):
                await asyncio.sleep(LOOK_S)

    async def health(self, name: str) -> str:
        """ "": it has never joined."""
        try:
            return await self.read(f"/gpu/{name}/health")
        except FsError as error:
            if error.kind is not E.MISSING:
                raise
            return ""

    async def read(self, path: str) -> str:
        said: str = await self.asking.asks(lambda client: read(client, path))
        return said

    async def tell(self, annex: str, order: str) -> str:
        """The first word of the reply."""
        said: list[str] = await self.asking.asks(lambda client: say(client, f"/gpu/{annex}/ctl", order))
        return said[0]

    async def happen(self) -> None:
        """Every mishap, in any order."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "annex killed": self.kill_one,
            "all annexes killed": self.kill_all,
            "annex stopped": self.stop,
            "annexes starved": self.starve,
            "no memory": self.exhaust,
            "kernel faulted": self.fault,
            "annexes disabled": self.disable,
            "lease ended": self.end_lease,
            "no such device": self.miss,
            "queen killed": self.kill_queen,
        } | ({"cable out": self.cut} if self.wires.prefix else {})
        assert len(kinds) == MISHAPS or not self.wires.prefix
        for kind in self.rng.sample(sorted(kinds), len(kinds)):
            begun = time.monotonic()
            await self.share(SHARE)
            shared = time.monotonic()
            await kinds[kind]()
            self.count[kind] += 1
            print(f"{kind}: waited {shared - begun:.1f} s, took {time.monotonic() - shared:.1f} s")
        await self.share(JOBS - len(self.told.ids))
        await self.until(
            "the end of every job", lambda: len(self.ledger.ends()) == len(self.told.ids), DRAIN_S
        )

    # mishaps

    async def kill(self, annexes: list[Process]) -> None:
        """The end without a word: of the annexes, and of all that they had started."""
        for annex in annexes:
            annex.end()
        homes = [annex.person.home for annex in annexes]
        await self.until("the end of its kernels", lambda: not any(map(kernel_processes, homes)), seconds=5)

    async def kill_one(self) -> None:
        annex = self.rng.choice(self.annexes)
        await self.kill([annex])
        annex.begin()

    async def kill_all(self) -> None:
        await self.kill(self.annexes)
        for annex in self.annexes:
            await self.wait_health(annex.name, "lost")
        await self.fall_back("annex_lost", await self.submit(10))
        for annex in self.annexes:
            annex.begin()

    async def stop(self) -> None:
        await self.rng.choice(self.annexes).stop(BEYOND_S)

    async def cut(self) -> None:
        with self.wires.cut(self.rng.choice(ANNEXES)):
            await asyncio.sleep(BEYOND_S)

    async def starve(self) -> None:
        """All that the annexes have is somebody's, for longer than some jobs are patient."""
        await self.wait_online()
        all_of_it = f"lease memory={MEMORY} slots={SLOTS} ttl={STARVE_S}s wait=20s priority=9"
        await asyncio.gather(*(self.tell(name, all_of_it) for name in ANNEXES))
        await self.submit(3, fallback="refuse", patience="1s")
        await self.fall_back("full", await self.submit(10, patience="1s"))

    async def exhaust(self) -> None:
        """Some want more than there is, some need more than they want."""
        await self.wait_online()
        asked = await self.submit(4, memory=str(2 * MEMORY), **FIRST)
        await self.submit(2, memory=str(2 * MEMORY), fallback="refuse", **FIRST)
        found = await self.submit(4, self.large, memory="1MiB", **FIRST)
        await self.submit(4, self.wrong)
        await self.fall_back("oom", asked)
        await self.fall_back("oom", found)

    async def fault(self) -> None:
        """A kernel's process is killed while it computes, as one that reads where nothing is."""
        await self.wait_online()
        keys = await self.submit(4, self.long, memory="64MiB", **FIRST)
        async with asyncio.timeout(PLENTY_S):
            while not (pid := await self.computing(keys)):
                await asyncio.sleep(LOOK_S)
        os.kill(pid, signal.SIGSEGV)
        await self.fall_back("kernel_failed", keys)

    async def computing(self, keys: list[str]) -> int:
        """The process that one of these jobs runs in, as its annex tells on its machine; 0: none does."""
        for annex in self.annexes:
            home = annex.person.home / "annex"
            async with await Client.connect(f"unix:{home}/annex.sock") as client:
                for key in keys:
                    with suppress(FsError):  # it is not there, or not yet, or has ended
                        path = f"/gpu/{annex.name}/leases/{self.told.ids[key]}/pid"
                        if pid := int(await read(client, path)):
                            assert pid in kernel_processes(annex.person.home)
                            return pid
        return 0

    async def disable(self) -> None:
        for name in ANNEXES:
            await self.tell(name, "disable reason=drill")
        await self.fall_back("disabled", await self.submit(10))
        for name in ANNEXES:
            await self.tell(name, "enable")

    async def end_lease(self) -> None:
        """Jobs run inside a lease that is given back before all of them have."""
        await self.wait_online()
        name = self.rng.choice(ANNEXES)
        lease = await self.tell(name, "lease memory=512MiB slots=1 ttl=20s wait=20s priority=9")
        fence = await self.read(f"/gpu/{name}/leases/{lease}/fence")
        inside = {"lease": lease, "annex": name, "memory": "256MiB", **FIRST}
        keys = await self.submit(10, **inside)
        late = await self.submit(2, self.long, **inside)
        await self.until(
            "the first of a lease", lambda: any(self.told.ids[key] in self.ledger.ends() for key in keys)
        )
        await self.tell(name, f"release lease={lease} fence={fence}")
        await self.fall_back("lease_expired", late)

    async def miss(self) -> None:
        """Some ask for a GPU, which nobody has."""
        await self.wait_online()
        works = {f"card{n}": Asked(self.rng.choice(self.works), {}) for n in range(6)}
        works["card-or-nothing"] = Asked(self.works[0], {"fallback": "refuse", "patience": "1s"})
        self.told.asked |= works
        lines = [submit_line(key, asked) for key, asked in works.items()]
        ids = await self.asking.asks(lambda client: say(client, "/jobs/ctl", *lines))
        self.told.ids |= dict(zip(works, ids, strict=True))
        await self.fall_back("no_device", list(works))

    async def kill_queen(self) -> None:
        self.queen.kill()
        await self.queen.begin()


def run_line(key: str, asked: Asked) -> str:
    """As somebody asks for it at /gpu/ctl."""
    work = asked.work
    arrays = ",".join(f"{name}:{sha256(npy(array)).hexdigest()}" for name, array in work.inputs.items())
    numbers = ",".join(f"{name}:{number:g}" for name, number in work.numbers.items())
    given = {"kernel": work.kernel, "in": arrays, "key": key} | ({"set": numbers} if numbers else {})
    return line("run", given | asked.given)


def submit_line(key: str, asked: Asked) -> str:
    """The same on a GPU and nothing else, as a program asks for it at /jobs/ctl."""
    work = asked.work
    arrays = ",".join(f"{name}:{sha256(npy(array)).hexdigest()}" for name, array in work.inputs.items())
    input = json.dumps({"kernel": work.kernel} | ({"numbers": work.numbers} if work.numbers else {}))
    given = {"topic": "gpu.run", "requires": "gpu", "key": key, "inputs": arrays, "input": input}
    return line("submit", given | asked.given)


# the story


@pytest.fixture
def wires() -> Iterator[Wires]:
    with wired("queen", *ANNEXES, SPARE) as found:
        yield found


def test_no_job_for_a_device_is_dropped_silently(
    wires: Wires, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    seed = int(os.environ.get("SKEP_SEED") or random.SystemRandom().getrandbits(32))
    print(f"SKEP_SEED={seed}")
    people = {name: Person(machine, tmp_path / name) for name, machine in wires.machines.items()}
    queen, told = Queen(people["queen"], tmp_path / "hive"), Told()
    drill = Drill(queen, people, wires, told, seed)
    begun = time.monotonic()
    try:
        uvloop.run(story(drill))
        took = time.monotonic() - begun
    finally:
        for process in drill.processes():
            process.end()
        queen.kill()
    figures = {"seconds": round(took, 1)} | check_ends(drill.ledger, told) | dict(drill.count)
    proof = json.loads(people["queen"].does("annex", "prove", "--json", str(queen.directory)))
    assert (JOBS, 0, 0) == (proof["jobs"], proof["open"], proof["silent"])
    print(figures, {name: value for name, value in proof.items() if name != "claims"}, sep="\n")
    record_property("figures", str(figures))
    survivors = [pid for name in (*ANNEXES, SPARE) for pid in kernel_processes(people[name].home)]
    assert [] == survivors


async def story(drill: Drill) -> None:
    await drill.begin()
    await drill.happen()
    await drill.asking.close()


# the count from outside


def check_ends(ledger: Ledger, told: Told) -> dict[str, Any]:
    """Every job ended once: right, or failed with a code, an error and, for want of a device, an alert."""
    assert told.ids == {event["key"]: event["job"] for event in ledger.events["job.submitted"]}
    assert JOBS == len(told.ids)
    assert Counter(told.ids.values()) == Counter(event["job"] for event in ledger.events["job.ended"])
    ends = ledger.ends()
    alerts = {event["id"] for event in ledger.events["alert.raised"] if event["about"] == "job"}
    fell = {event["job"] for event in ledger.events["job.fellback"]}
    right, could = set(), set()
    for key, job in told.ids.items():
        asked, end = told.asked[key], ends[job]
        if end["state"] == "succeeded":
            out = json.loads(end["text"])["out"]
            assert asked.work.hashes() == {name: made["sha256"] for name, made in out.items()}, key
            right.add(job)
        else:
            assert "failed" == end["state"], key
            assert end.get("code"), key
            assert end["text"], key
            # What is wrong with the job itself is not for want of a device.
            assert job in alerts or not asked.work.outs, key
        if asked.work.outs and (job in fell or (asked.falls and end.get("code") in REASONS)):
            could.add(job)
    assert not {told.ids[key] for key, asked in told.asked.items() if not asked.falls} & fell
    reasons = Counter(event["reason"] for event in ledger.events["job.fellback"])
    assert REASONS == set(reasons)
    ratio = len(right & could) / len(could)
    codes = Counter(end["code"] for end in ends.values() if end["state"] != "succeeded")
    print(f"fallback ratio {ratio:.4f}")
    assert ratio >= RATIO_MIN
    return {
        "jobs": len(ends), "right": len(right), "failed": dict(codes), "fell back": dict(reasons),
        "ratio": round(ratio, 4), "lost leases": len(ledger.events["job.returned"]),
    }  # fmt: skip
