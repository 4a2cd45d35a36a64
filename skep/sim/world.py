"""A run: the people of a story, what befalls them, and what the hive's state is in the end.

After the last action everything is made good: disks and links, whoever is dead or stopped, what was drained.
Then every job must end by itself.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from skep.namespaces.hive import HiveState
from skep.namespaces.live import Hive
from skep.sim.annex import Annex, Machine, lend
from skep.sim.client import Caller
from skep.sim.disk import Disk
from skep.sim.drone import POOLS, Drone, Held
from skep.sim.ear import Ear
from skep.sim.hand import labour
from skep.sim.history import History, Said
from skep.sim.loop import Process, SimLoop, Stuck
from skep.sim.net import Network
from skep.sim.queen import ANNEXES, SPARES, WORKERS, Made, reign
from skep.sim.story import HOME, LISTENER, OTHER, Action, Story, document
from skep.trace.clock import MS, SECOND

AFTER_S: Final = 2.0  # from the last action until all is made good
END_S: Final = 150.0  # without a job's end, after the last action: then those that are left have none
LOOK_S: Final = 1.0
QUIET: Final = 3  # looks at which nothing goes on: what fires jobs looks twice a second
SKEW_NS: Final = 45 * SECOND  # a clock is never further off: what waits for it, does so for less than END_S
LOCK_TTL: Final = "24h"  # longer than any story, whatever its clocks do


class Ran(NamedTuple):
    """What a run left: all that checkers may look at."""

    story: Story
    made: Made
    history: History
    ears: list[Ear]
    bodies: list[bytes]  # the ledger
    state: HiveState  # the last queen's,
    seq: int  # after this entry
    wrong: list[str]  # found while it ran: what nobody caught, what did not end
    digest: str  # of every step
    steps: int
    end_ns: int  # made-up time that it took


class _Log(logging.Handler):
    """What the hive logs with a traceback is a mistake of its."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.world.wrong.append(f"traceback: {record.getMessage()}: {record.exc_info[1]!r}")


class World:
    """Everybody in a story."""

    def __init__(self, story: Story, made: Made, directory: Path) -> None:
        self.story = story
        self.made = made
        self.directory = directory
        self.loop = SimLoop(story.seed)
        self.network = Network(self.loop)
        self.disk = Disk()
        self.history = History()
        self.wrong: list[str] = []
        self.living: dict[str, Process] = {}
        self.hive: Hive | None = None  # None: no queen serves
        self.past: dict[str, list[Held]] = {}
        self.told: dict[str, asyncio.Event] = {}  # of each worker: to stop
        self.ears = [Ear(tenant) for tenant in (HOME, OTHER)]
        self.callers: dict[str, Caller] = {}
        self.jobs: dict[str, str] = {}  # submit's id -> job
        self.grants: dict[str, tuple[str, str, str]] = {}  # lock's id -> client, name, fence
        self.rents: dict[str, Said] = {}  # rent's id -> the lease that was granted
        self.machines = {name: Machine(name) for name in self._annexes()}
        self.doomed: set[str] = set()  # annexes that do not come back
        self.orders: list[asyncio.Task[None]] = []
        self.asking: list[tuple[Process, asyncio.Task[object]]] = []  # what clients have begun
        self._submits = {action.id: action for action in story.actions if action.do == "submit"}

    # the people

    def live(self, name: str) -> None:
        """Have ``name`` live, unless it does."""
        known = self.living.get(name)
        if known is not None and not known.dead:
            return
        process = self.loop.process(name)
        if known is not None:
            process.skew_ns = known.skew_ns
        self.living[name] = process
        process.on_end.append(lambda: self._died(name))
        match name[0]:
            case "q":
                lends = bool(self.story.annexes)
                process.start(reign(process, self.disk, self.directory, self.made, self._up, lends))
            case "a":
                past, machine = self.past.setdefault(name, []), self.machines[name]
                self.told[name] = asyncio.Event()
                if int(name[1:]) % 2:
                    place = self.directory / name
                    process.start(lend(machine, place, self.history, past, self.told[name]))
                else:
                    process.start(Annex(machine, self.history, past).run())
            case "w":
                past = self.past.setdefault(name, [])
                self.told[name] = asyncio.Event()
                # One after the other: every second one misbehaves.
                if int(name[1:]) % 2:
                    place = self.directory / name
                    process.start(labour(name, place, self.history, past, self.told[name], self._pools()))
                else:
                    process.start(Drone(name, self.history, past, self._pools()).run())
            case "e":
                for ear in self.ears:
                    process.spawn(ear.listen())
            case _:
                self.callers[name] = Caller(name, self.history)

    def _pools(self) -> tuple[str, ...]:
        """That workers read."""
        return (*POOLS, *SPARES) if self.story.annexes else POOLS

    def _annexes(self) -> list[str]:
        return [f"a{n + 1}" for n in range(self.story.annexes)]

    def _up(self, hive: Hive) -> None:
        self.hive = hive

    def _died(self, name: str) -> None:
        if name == "queen":
            self.hive = None
        self.loop.note(f"{name} died")
        # Whoever ends by itself is started again by what supervises it.
        if not self.living[name].blown_up:
            self.later(1000, lambda: self._again(name))

    def _again(self, name: str) -> None:
        """It lives again, unless it is never to."""
        if name not in self.doomed:
            self.live(name)

    def later(self, ms: int, act: Callable[[], None]) -> None:
        self.loop.call_in(ms * MS, act, context=self.loop.fate.context)

    # the story

    async def play(self) -> None:
        for name in self._names():
            self.live(name)
        for action in self.story.actions:
            wait_ns = action.at * MS - self.loop.now_ns
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / SECOND)
            self.loop.note(f"{action.do} {action.who} {action.id} {action.of}")
            _DO[action.do](self, action)
        await asyncio.sleep(AFTER_S)
        await self.mend()
        await self._wait_ended()

    def _names(self) -> list[str]:
        workers = [f"w{n + 1}" for n in range(self.story.workers)]
        return [
            "queen",
            LISTENER,
            *workers,
            *self._annexes(),
            *(f"c{n + 1}" for n in range(self.story.clients)),
        ]

    async def mend(self) -> None:
        """From now on all is well."""
        self.disk.full, self.disk.failing = False, ""
        for place in self.network.places.values():
            place.slow_ns = place.stalled_until_ns = 0
        for name in self._names():
            process = self.living[name]
            process.fuse = 0
            process.go_on()
            if name not in self.doomed:
                self.live(name)
        if self.orders:
            # One that was given to a dead queen is being given again.
            await asyncio.wait(self.orders)
        for pool in sorted({action.of for action in self.story.actions if action.do == "drain"}):
            await self._order("/pools/ctl", f"resume pool={pool}")
        for node in sorted({action.of for action in self.story.actions if action.do == "cordon"}):
            await self._order("/nodes/ctl", f"uncordon node={node}")

    async def _wait_ended(self) -> None:
        """Return when for some time no job has waited for anything, and nobody for an answer."""
        left, since_ns, quiet = -1, self.loop.now_ns, 0
        while self.loop.now_ns - since_ns < round(END_S * SECOND):
            await asyncio.sleep(LOOK_S)
            hive = self.hive
            if hive is None or hive.turn.failed is not None:
                continue
            unended = self._unended(hive)
            quiet = quiet + 1 if self._answered() and not unended else 0
            if quiet >= QUIET:
                return
            if len(unended) != left:
                left, since_ns = len(unended), self.loop.now_ns
        hive = self.hive
        if hive is None:
            raise Stuck("no queen came back")
        self.wrong.append(f"not ended: {' '.join(self._unended(hive)) or 'what clients asked'}")

    @staticmethod
    def _unended(hive: Hive) -> list[str]:
        ended = ("succeeded", "failed", "cancelled")
        return [f"{job.id}={job.state}" for job in hive.state.jobs.by_id.values() if job.state not in ended]

    def ask(self, process: Process, work: Coroutine[Any, Any, object]) -> None:
        self.asking.append((process, process.spawn(work)))

    def _answered(self) -> bool:
        """Whether nobody who lives waits for an answer."""
        self.asking = [(who, task) for who, task in self.asking if not (who.dead or task.done())]
        return not self.asking

    def talk(self, action: Action) -> tuple[Process, Caller] | None:
        """The client of the action; None: it is dead."""
        process = self.living[action.who]
        return None if process.dead else (process, self.callers[action.who])

    # what clients do

    def submit(self, action: Action) -> None:
        found = self.talk(action)
        if found is None:
            return
        process, caller = found
        self.ask(process, self._submit(caller, action, self._within(action.args)))
        if action.n:
            self.ask(process, self._submit_elsewhere(caller.name, action))

    def again(self, action: Action) -> None:
        found, first = self.talk(action), self._submits.get(action.of)
        if found is None or first is None or "key" not in first.args:
            return
        process, caller = found
        args = first.args | {"input": "w=1"} if action.n else self._within(first.args)
        self.ask(process, self._submit(caller, first, args))

    async def _submit_elsewhere(self, name: str, action: Action) -> None:
        """The same again on a connection of its own."""
        caller = Caller(name, self.history)
        await self._submit(caller, action, self._within(action.args))
        await caller.close()

    def _within(self, args: dict[str, str]) -> dict[str, str]:
        """The same; where the job is to run inside a lease, by the id that this has."""
        before, found, id = args.get("input", "").partition(",l=")
        if not found:
            return args
        rent = self.rents.get(id)
        return args | {"input": f"{before},l={rent.reply if rent is not None else 'none'}"}

    async def _submit(self, caller: Caller, action: Action, args: dict[str, str]) -> None:
        said = await caller.write(action.of, "/jobs/ctl", "submit", args, "", "key" in args)
        if said.answer == "ok":
            said.about = said.reply
            if args == self._within(action.args):
                self.jobs[action.id] = said.reply

    def about_job(self, action: Action) -> None:
        found, first = self.talk(action), self._submits.get(action.of)
        job = self.jobs.get(action.of)
        if found is None or first is None or job is None:
            return
        process, caller = found
        tenant = first.of
        if action.do in ("retry", "discard") and self.hive is not None:
            # Few jobs are dead letters: that one's tenant's oldest, if it has any.
            job = next(iter(self.hive.state.jobs.dead.get(tenant, {})), job)
        match action.do:
            case "look":
                self.ask(process, caller.read(tenant, f"/jobs/{job}/state", "look", job))
            case "wait":
                self.ask(process, caller.read(tenant, f"/jobs/{job}/wait", "wait", job))
            case "cancel":
                self.ask(process, caller.write(tenant, "/jobs/ctl", "cancel", {"job": job}, job, False))
            case "retry":
                self.ask(process, caller.write(tenant, "/dlq/ctl", "retry", {"id": job}, job, False))
            case "discard":
                args = {"id": job, "reason": "old"}
                self.ask(process, caller.write(tenant, "/dlq/ctl", "discard", args, job, False))

    def lock(self, action: Action) -> None:
        found = self.talk(action)
        if found is None:
            return
        process, caller = found

        async def acquire() -> None:
            args = action.args | {"ttl": LOCK_TTL}
            said = await caller.write(HOME, "/locks/ctl", "acquire", args, args["name"], False)
            if said.answer == "ok":
                self.grants[action.id] = caller.name, args["name"], said.reply

        self.ask(process, acquire())

    def about_lock(self, action: Action) -> None:
        grant = self.grants.get(action.of)
        if grant is None:
            return
        who, name, fence = grant
        process = self.living[who]
        if process.dead or not fence.isdigit():
            return
        path, verb = ("/locks/ctl", "release") if action.do == "unlock" else ("/locks/check", "check")
        args = {"name": name, "fence": fence}
        caller = self.callers[who]
        if verb == "release":
            self.ask(process, caller.write(HOME, path, verb, args, name, False))
        else:
            self.ask(process, caller.check(HOME, name, fence))

    def trigger(self, action: Action) -> None:
        found = self.talk(action)
        if found is not None:
            process, caller = found
            args = {"trigger": action.id, **action.args}
            self.ask(process, caller.write(action.of, "/triggers/ctl", "create", args, action.id, True))

    def config(self, action: Action) -> None:
        found = self.talk(action)
        if found is not None:
            process, caller = found
            self.ask(process, caller.publish(action.of, document(action.args)))

    def rent(self, action: Action) -> None:
        found = self.talk(action)
        if found is None:
            return
        process, caller = found

        async def lease() -> None:
            path = f"/gpu/{action.of}/ctl"
            said = await caller.write(HOME, path, "lease", action.args, "", False, annex=action.of)
            if said.answer == "ok":
                self.rents[action.id] = said

        self.ask(process, lease())

    def about_rent(self, action: Action) -> None:
        rent = self.rents.get(action.of)
        if rent is None or self.living[rent.who].dead:
            return
        verb = "renew" if action.do == "rerent" else "release"
        args = {"lease": rent.reply, "fence": str(rent.fence)}
        caller, path = self.callers[rent.who], rent.more["path"]
        self.ask(self.living[rent.who], caller.write(HOME, path, verb, args, "", False))

    # what befalls them

    def ghost(self, action: Action) -> None:
        """Mostly it is the holder's own node that says what an older lease's holder would."""
        past = [held for helds in self.past.values() for held in helds]
        if not past:
            return
        who, held = action.who, past[action.n % len(past)]
        if self.hive is not None and action.n % 4:
            jobs = self.hive.state.jobs
            now = {id: jobs.by_id[id] for id in jobs.held}
            late = [old for old in past if old.job in now and old.fence < now[old.job].fence]
            if late:
                held = late[action.n % len(late)]
                who = now[held.job].node
        process = self.living[who]
        if not process.dead:
            hive = ANNEXES if who in self.machines else WORKERS
            process.spawn(Drone(who, self.history, [], hive=hive).haunt(held, action.of))

    def kill(self, action: Action) -> None:
        process = self.living[action.who]

        def blown() -> None:
            process.blown_up = True
            process.end()
            self.later(action.ms, lambda: self._again(action.who))

        process.blown = blown
        process.fuse = action.n

    def stop(self, action: Action) -> None:
        self.told[action.who].set()

    def pause(self, action: Action) -> None:
        process = self.living[action.who]
        process.pause()
        self.later(action.ms, process.go_on)

    def cut(self, action: Action) -> None:
        self.network.place(action.who).cut()

    def stall(self, action: Action) -> None:
        self.network.place(action.who).stalled_until_ns = self.loop.now_ns + action.ms * MS

    def slow(self, action: Action) -> None:
        place = self.network.place(action.who)
        place.slow_ns = action.n * MS

        def fast() -> None:
            place.slow_ns = 0

        self.later(action.ms, fast)

    def full(self, action: Action) -> None:
        self.disk.full = True

        def empty() -> None:
            self.disk.full = False

        self.later(action.ms, empty)

    def fail(self, action: Action) -> None:
        self.disk.failing = action.of

    def jump(self, action: Action) -> None:
        process = self.living[action.who]
        process.skew_ns = max(-SKEW_NS, min(process.skew_ns + action.n * MS, SKEW_NS))

    def order(self, path: str, line: str) -> None:
        """What the operators' tools do, until it is done."""
        self.orders.append(self.loop.fate.spawn(self._order(path, line)))

    async def _order(self, path: str, line: str) -> None:
        caller = Caller("operator", self.history)
        verb, _, rest = line.partition(" ")
        name, _, value = rest.partition("=")
        await caller.write(HOME, path, verb, {name: value} if name else {}, value, True)

    def drain(self, action: Action) -> None:
        self.order("/pools/ctl", f"drain pool={action.of}")
        self.later(action.ms, lambda: self.order("/pools/ctl", f"resume pool={action.of}"))

    def cordon(self, action: Action) -> None:
        self.order("/nodes/ctl", f"cordon node={action.of}")
        self.later(action.ms, lambda: self.order("/nodes/ctl", f"uncordon node={action.of}"))

    def disable(self, action: Action) -> None:
        path = f"/gpu/{action.of}/ctl"
        self.order(path, "disable reason=drill")
        if action.ms:
            self.later(action.ms, lambda: self.order(path, "enable"))

    def alter(self, action: Action) -> None:
        self.machines[action.of].become(action.n)

    def forget(self, action: Action) -> None:
        self.order("/nodes/ctl", f"remove node={action.of}")

    def doom(self, action: Action) -> None:
        self.doomed.add(action.who)
        self.living[action.who].blown_up = True
        self.living[action.who].end()


_DO: Final[Mapping[str, Callable[[World, Action], None]]] = {
    "submit": World.submit, "again": World.again, "config": World.config, "trigger": World.trigger,
    "lock": World.lock,
    **dict.fromkeys(("cancel", "look", "wait", "retry", "discard"), World.about_job),
    **dict.fromkeys(("unlock", "check"), World.about_lock),
    "ghost": World.ghost, "kill": World.kill, "stop": World.stop, "pause": World.pause, "cut": World.cut,
    "stall": World.stall, "slow": World.slow, "full": World.full, "fail": World.fail, "jump": World.jump,
    "drain": World.drain, "cordon": World.cordon,
    "rent": World.rent, **dict.fromkeys(("rerent", "unrent"), World.about_rent),
    "disable": World.disable, "alter": World.alter, "forget": World.forget, "doom": World.doom,
}  # fmt: skip


def run(story: Story, made: Made) -> Ran:
    """Play the story to its end."""
    log = logging.getLogger("skep")
    gc.collect()
    gc.disable()  # what Python tidies up when, is no part of a seed
    with TemporaryDirectory() as directory:
        world = World(story, made, Path(directory))
        handler, spread = _Log(world), log.propagate
        log.addHandler(handler)
        log.propagate = False
        try:
            world.loop.run(world.play())
        finally:
            log.removeHandler(handler)
            log.propagate = spread
            gc.enable()
        assert world.hive is not None
        loop, hive = world.loop, world.hive
        return Ran(
            story, made, world.history, world.ears, world.disk.bodies, hive.state, hive.turn.seq,
            [*world.wrong, *loop.mistakes], loop.digest.hexdigest(), loop.steps, loop.now_ns,
        )  # fmt: skip
