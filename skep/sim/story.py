"""A story: what clients do and what befalls everybody, as a list of actions that a seed gives.

An action stands for itself: left out, the others still mean something, so a story that ends badly can be
made shorter by leaving actions out. What an action says of jobs it says by the submit that made them.

A story as a file: a JSON line that says who is there, then a line for each action, in order of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

import msgspec

PAUSE_MS: Final = 150.0  # between two actions, on average
HOME: Final = "default/default/default"
OTHER: Final = "acme/shop/prod"
TENANTS: Final = (HOME, HOME, OTHER, "zoo/apes/prod")
LISTENER: Final = "e1"  # who follows the events
TOPICS: Final = ("sum", "sum", "any", "slim")
LOCKS: Final = ("db", "door")
GHOSTS: Final = ("ack", "nack", "renew", "start", "ack")  # what a late holder says
# What may go wrong in a story; each has some of them, so that what one hides another shows.
FAULTS: Final = (
    "kill",
    "pause",
    "cut",
    "stall",
    "slow",
    "full",
    "fail",
    "jump",
    "drain",
    "cordon",
    "config",
    "stop",
)
LOSSES: Final = ("disable", "alter", "forget", "doom")  # what may go wrong with an annex, besides


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """``at`` ms after the beginning. ``id``: what later ones know it by; ``of``: the one it is about."""

    at: int
    do: str
    who: str = ""
    id: str = ""
    of: str = ""
    args: dict[str, str] = {}
    n: int = 0  # a number whose meaning the verb knows: ms, steps, which
    ms: int = 0  # how long it lasts


class Story(msgspec.Struct, frozen=True):
    seed: str
    workers: int
    clients: int
    actions: tuple[Action, ...] = ()
    annexes: int = 0

    def lines(self) -> str:
        """The story as a file."""
        head = {"seed": self.seed, "workers": self.workers, "clients": self.clients}
        if self.annexes:
            head["annexes"] = self.annexes
        return "".join(msgspec.json.encode(line).decode() + "\n" for line in (head, *self.actions))


def parse(text: str) -> Story:
    """The story of a file. Raises msgspec.DecodeError."""
    head, *actions = text.splitlines()
    story = msgspec.json.decode(head, type=Story)
    return msgspec.structs.replace(
        story, actions=tuple(msgspec.json.decode(line, type=Action) for line in actions if line)
    )


def story_of(seed: str, steps: int, lends: bool = False) -> Story:
    """The story of a seed, ``steps`` actions long. ``lends``: of a hive with annexes."""
    chance = Random(f"{seed} story")
    story = Story(seed, chance.randint(1, 4), chance.randint(1, 3))
    if lends:
        story = msgspec.structs.replace(story, annexes=chance.randint(1, 3))
    writer = _Writer(story, chance)
    return msgspec.structs.replace(story, actions=tuple(writer.action() for _ in range(steps)))


def document(args: Mapping[str, str]) -> bytes:
    """The configuration that says ``args``, by key."""
    said: dict[str, dict[str, object]] = {}
    for key, value in args.items():
        noun, _, name = key.partition("/")
        found = int(value) if value.isdigit() else value == "true" if value in ("true", "false") else value
        said.setdefault(noun, {})[name] = found
    return msgspec.json.encode(said, order="sorted")


class _Writer:
    """Thinks of the next action. Some verbs come with other weights in each story, some not at all."""

    def __init__(self, story: Story, chance: Random) -> None:
        self.story = story
        self.chance = chance
        self.at = 0.0
        self.pace = chance.choice((0.03, 0.2, 1.0, 1.0, 3.0))
        faults = {name for name in (*FAULTS, *(LOSSES if story.annexes else ())) if chance.random() < 0.5}
        known = {**_VERBS, **_LENDING} if story.annexes else _VERBS
        self.verbs = [verb for verb in known if verb not in (*FAULTS, *LOSSES) or verb in faults]
        self.weights = [known[verb][0] * chance.choice((0.5, 1, 2)) for verb in self.verbs]
        self.known = known
        self.made: dict[str, list[Action]] = {"s": [], "l": [], "t": [], "r": []}

    def action(self) -> Action:
        self.at += self.chance.expovariate(1 / (PAUSE_MS * self.pace))
        verb = self.chance.choices(self.verbs, self.weights)[0]
        action = self.known[verb][1](self)
        if action.id:
            self.made[action.id[0]].append(action)
        return action

    # who and what

    def now(self) -> int:
        return int(self.at)

    def client(self) -> str:
        return f"c{self.chance.randint(1, self.story.clients)}"

    def worker(self) -> str:
        if self.story.annexes and self.chance.random() < 0.6:
            return self.annex()
        return f"w{self.chance.randint(1, self.story.workers)}"

    def annex(self) -> str:
        return f"a{self.chance.randint(1, self.story.annexes)}"

    def anybody(self) -> str:
        return self.chance.choice((self.client(), self.worker(), "queen", LISTENER))

    def caller(self) -> str:
        """Who dials."""
        return self.chance.choice((self.client(), self.worker(), LISTENER))

    def earlier(self, kind: str) -> str:
        """One that was made before, lately as a rule; "": none was."""
        made = self.made[kind]
        if not made:
            return ""
        return made[-1 - min(int(self.chance.expovariate(0.3)), len(made) - 1)].id

    def new(self, kind: str) -> str:
        return f"{kind}{len(self.made[kind]) + 1}"

    # actions

    def submit(self) -> Action:
        chance = self.chance
        work = {"w": str(chance.choice((0, 50, 300, 1000, 4000, 9000)))}
        if chance.random() < 0.3:
            work["f"] = str(chance.randint(1, 3))  # so many attempts fail
        if chance.random() < 0.1:
            work["h"] = "1"  # the first attempt is silent until its lease is lost
        if chance.random() < 0.05:
            work["o"] = "final"
        if chance.random() < 0.15:
            work["a"] = chance.choice(("1", "5000"))
        args = {"topic": chance.choice(TOPICS), "input": ",".join(f"{k}={v}" for k, v in work.items())}
        id = self.new("s")
        if chance.random() < 0.7:
            args["key"] = id
        for name, often, values in _TERMS:
            if chance.random() < often:
                args[name] = chance.choice(values)
        if self.story.annexes:
            # A worker with a label for its GPU does not say where a job runs: nobody can prove it.
            args.pop("requires", "")
        tenant = chance.choice(TENANTS)
        # Some requests come twice, by two ways.
        twice = int("key" in args and chance.random() < 0.2)
        return Action(self.now(), "submit", self.client(), id, tenant, args, twice)

    def run(self) -> Action:
        """A job for a device."""
        action, chance = self.submit(), self.chance
        wants = {"m": str(chance.choice((1, 8, 20, 40, 60, 200))), "s": str(chance.choice((1, 1, 1, 2)))}
        if chance.random() < 0.1:
            wants["x"] = "1"
        if chance.random() < 0.15:
            wants["e"] = chance.choice(("oom", "kernel_failed"))
        more = {"topic": chance.choice(("gpu.run", "lab.run"))}
        rent = self.of_rent() if chance.random() < 0.3 else None
        for name, often, values in _LENT_TERMS:
            if chance.random() < often:
                more[name] = chance.choice(values)
        if rent is not None:
            wants |= {"m": "1", "s": "1", "l": rent.id}  # what id the lease has is not known yet
            more["requires"] = f"annex:{rent.of}"
            action = msgspec.structs.replace(action, of=HOME)
        said = ",".join(f"{name}={value}" for name, value in wants.items())
        return msgspec.structs.replace(
            action, args=action.args | more | {"input": f"{action.args['input']},{said}"}
        )

    def of_rent(self) -> Action | None:
        """A lease that somebody asked for; None: nobody did."""
        id = self.earlier("r")
        return next((rent for rent in self.made["r"] if rent.id == id), None)

    def rent(self) -> Action:
        """A lease of a device for a while."""
        chance = self.chance
        args = {
            "memory": f"{chance.choice((1, 10, 30, 30, 64, 100))}MiB",
            "ttl": chance.choice(("1s", "5s", "30s")),
        }
        for name, often, values in _RENT_TERMS:
            if chance.random() < often:
                args[name] = chance.choice(values)
        return Action(self.now(), "rent", self.client(), self.new("r"), self.annex(), args)

    def about_rent(self, verb: str) -> Action:
        return Action(self.now(), verb, self.client(), of=self.earlier("r"))

    def disable(self) -> Action:
        """Some are not enabled again."""
        return Action(self.now(), "disable", of=self.annex(), ms=self.chance.choice((0, 500, 3000, 9000)))

    def alter(self) -> Action:
        """The annex has other devices than before."""
        return Action(self.now(), "alter", of=self.annex(), n=self.chance.choice((0, 0, 0, 1, 2, 3, 4, 5, 6)))

    def forget(self) -> Action:
        """An operator removes the annex, which may still be there."""
        return Action(self.now(), "forget", of=self.annex())

    def doom(self) -> Action:
        """The annex ends for ever."""
        return Action(self.now(), "doom", self.annex())

    def about_job(self, verb: str) -> Action:
        return Action(self.now(), verb, self.client(), of=self.earlier("s"))

    def again(self) -> Action:
        """The same key once more, at times with another request."""
        return Action(
            self.now(), "again", self.client(), of=self.earlier("s"), n=int(self.chance.random() < 0.3)
        )

    def lock(self) -> Action:
        args = {"name": self.chance.choice(LOCKS), "mode": self.chance.choice("xxs")}
        if self.chance.random() < 0.4:
            args["wait"] = self.chance.choice(("1s", "5s"))
        return Action(self.now(), "lock", self.client(), self.new("l"), args=args)

    def about_lock(self, verb: str) -> Action:
        return Action(self.now(), verb, self.client(), of=self.earlier("l"))

    def ghost(self) -> Action:
        """A worker says again what it said long ago, or what another did."""
        # Of what an annex acknowledges it is asked whether it ran there.
        words = ("fallback", "nack", "renew", "release") if self.story.annexes else GHOSTS
        worker, n = self.worker(), self.chance.randrange(1 << 16)
        return Action(self.now(), "ghost", worker, n=n, of=self.chance.choice(words))

    def trigger(self) -> Action:
        """Jobs that follow others, or the clock."""
        id, tenant = self.new("t"), self.chance.choice(TENANTS)
        if self.chance.random() < 0.3:
            args = {"cron": "* * * * *", "missed": self.chance.choice(("once", "skip", "all"))}
        else:
            args = {"on": "job.ended", "on-topic": self.chance.choice(("slim", "any"))}
            args["on-state"] = self.chance.choice(("succeeded", "failed"))
        # One may fire itself; two that do would make eight times as many jobs double.
        args |= {"topic": args.get("on-topic", "any") if id == "t1" else "sum", "input": "w=5"}
        return Action(self.now(), "trigger", self.client(), id, tenant, args)

    def config(self) -> Action:
        """A document for a tenant, or for all."""
        scope = self.chance.choice((*TENANTS, "system"))
        said = _SYSTEM if scope == "system" else _LIMITS
        args = {key: self.chance.choice(values) for key, values in said.items() if self.chance.random() < 0.4}
        return Action(self.now(), "config", self.client(), of=scope, args=args)

    def kill(self) -> Action:
        """After so many steps of its own, to be back so many ms later."""
        who = self.chance.choice(("queen", "queen", "queen", self.worker(), self.client()))
        steps = int(self.chance.expovariate(1 / 40)) + 1
        return Action(self.now(), "kill", who, n=steps, ms=self.chance.choice((50, 500, 3000, 20_000)))

    def stop(self) -> Action:
        """A worker gets SIGTERM."""
        return Action(self.now(), "stop", self.worker())

    def pause(self) -> Action:
        return Action(self.now(), "pause", self.anybody(), ms=self.chance.choice((100, 2000, 6000, 20_000)))

    def cut(self) -> Action:
        return Action(self.now(), "cut", self.caller())

    def stall(self) -> Action:
        return Action(self.now(), "stall", self.caller(), ms=self.chance.choice((300, 4000, 15_000)))

    def slow(self) -> Action:
        return Action(self.now(), "slow", self.caller(), n=self.chance.choice((5, 80, 700)), ms=5000)

    def full(self) -> Action:
        return Action(self.now(), "full", ms=self.chance.choice((10, 1000, 8000)))

    def fail(self) -> Action:
        return Action(self.now(), "fail", of=self.chance.choice(("lost", "kept")))

    def jump(self) -> Action:
        by_ms = self.chance.choice((-60_000, -5_000, -500, 500, 5_000, 60_000))
        return Action(self.now(), "jump", self.anybody(), n=by_ms)

    def drain(self) -> Action:
        return Action(self.now(), "drain", of=self.chance.choice(self.pools()), ms=3000)

    def pools(self) -> tuple[str, ...]:
        return ("gpu", "lab", "default") if self.story.annexes else ("default", "slim")

    def cordon(self) -> Action:
        return Action(self.now(), "cordon", of=self.worker(), ms=3000)


# What the job of a device says besides.
_LENT_TERMS: Final = (
    ("fallback", 0.4, ("allow", "refuse", "refuse")),
    ("patience", 0.6, ("1s", "3s", "8s")),
    ("requires", 0.2, ("annex:a1", "gpu", "annex:a2")),
)
_RENT_TERMS: Final = (
    ("slots", 0.5, ("1", "2", "2", "3", "5")),
    ("priority", 0.4, "0123456789"),
    ("exclusive", 0.2, ("true", "false")),
    ("device", 0.2, ("cuda:0", "cuda:1", "cpu:0")),
    ("wait", 0.7, ("1s", "6s", "20s")),
)
# What a submit says besides its topic and input: how often, and which.
_TERMS: Final = (
    ("priority", 0.5, "0123456789"),
    ("retries", 0.6, ("0", "1", "3")),
    ("timeout", 0.3, ("1s", "3s", "20s")),
    ("deadline", 0.2, ("2s", "15s", "60s")),
    ("requires", 0.15, ("gpu", "gpu:1", "zone:eu", "gpu,zone")),
)
# What a tenant's document may say, and the system's.
_LIMITS: Final = {
    "limits/jobs": ("1", "2", "4"),
    "limits/waiting": ("2", "5", "20"),
    "limits/submits": ("1", "2", "5"),
    "limits/actor-jobs": ("1", "3"),
    "limits/actor-waiting": ("3", "9"),
    "limits/actor-submits": ("1", "4"),
    "jobs/preempt": ("true", "false"),
}
_SYSTEM: Final = {"jobs/history": ("1s", "5s"), "jobs/key-window": ("1m", "2m"), "jobs/preempt": ("true",)}

_Make = Callable[[_Writer], Action]


def _job(verb: str) -> _Make:
    return lambda writer: writer.about_job(verb)


def _lock(verb: str) -> _Make:
    return lambda writer: writer.about_lock(verb)


_VERBS: Final[Mapping[str, tuple[float, _Make]]] = {
    "submit": (30, _Writer.submit),
    "again": (5, _Writer.again),
    "cancel": (4, _job("cancel")),
    "look": (8, _job("look")),
    "wait": (4, _job("wait")),
    "retry": (2, _job("retry")),
    "discard": (1, _job("discard")),
    "lock": (4, _Writer.lock),
    "unlock": (4, _lock("unlock")),
    "check": (3, _lock("check")),
    "ghost": (8, _Writer.ghost),
    "trigger": (1, _Writer.trigger),
    "config": (2, _Writer.config),
    "kill": (3, _Writer.kill),
    "stop": (1, _Writer.stop),
    "pause": (3, _Writer.pause),
    "cut": (4, _Writer.cut),
    "stall": (3, _Writer.stall),
    "slow": (2, _Writer.slow),
    "full": (1, _Writer.full),
    "fail": (1, _Writer.fail),
    "jump": (2, _Writer.jump),
    "drain": (1, _Writer.drain),
    "cordon": (1, _Writer.cordon),
}
# Of a story with annexes, besides and instead.
_LENDING: Final[Mapping[str, tuple[float, _Make]]] = {
    "submit": (6, _Writer.submit),
    "run": (30, _Writer.run),
    "rent": (12, _Writer.rent),
    "rerent": (5, lambda writer: writer.about_rent("rerent")),
    "unrent": (5, lambda writer: writer.about_rent("unrent")),
    "disable": (2, _Writer.disable),
    "alter": (3, _Writer.alter),
    "forget": (1, _Writer.forget),
    "doom": (0.5, _Writer.doom),
}
