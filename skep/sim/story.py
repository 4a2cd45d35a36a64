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

    def lines(self) -> str:
        """The story as a file."""
        head = {"seed": self.seed, "workers": self.workers, "clients": self.clients}
        return "".join(msgspec.json.encode(line).decode() + "\n" for line in (head, *self.actions))


def parse(text: str) -> Story:
    """The story of a file. Raises msgspec.DecodeError."""
    head, *actions = text.splitlines()
    story = msgspec.json.decode(head, type=Story)
    return msgspec.structs.replace(
        story, actions=tuple(msgspec.json.decode(line, type=Action) for line in actions if line)
    )


def story_of(seed: str, steps: int) -> Story:
    """The story of a seed, ``steps`` actions long."""
    chance = Random(f"{seed} story")
    story = Story(seed, chance.randint(1, 4), chance.randint(1, 3))
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
        faults = {name for name in FAULTS if chance.random() < 0.5}
        self.verbs = [verb for verb in _VERBS if verb not in FAULTS or verb in faults]
        self.weights = [_VERBS[verb][0] * chance.choice((0.5, 1, 2)) for verb in self.verbs]
        self.made: dict[str, list[Action]] = {"s": [], "l": [], "t": []}

    def action(self) -> Action:
        self.at += self.chance.expovariate(1 / (PAUSE_MS * self.pace))
        verb = self.chance.choices(self.verbs, self.weights)[0]
        action = _VERBS[verb][1](self)
        if action.id:
            self.made[action.id[0]].append(action)
        return action

    # who and what

    def now(self) -> int:
        return int(self.at)

    def client(self) -> str:
        return f"c{self.chance.randint(1, self.story.clients)}"

    def worker(self) -> str:
        return f"w{self.chance.randint(1, self.story.workers)}"

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
        tenant = chance.choice(TENANTS)
        # Some requests come twice, by two ways.
        twice = int("key" in args and chance.random() < 0.2)
        return Action(self.now(), "submit", self.client(), id, tenant, args, twice)

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
        return Action(
            self.now(),
            "ghost",
            self.worker(),
            n=self.chance.randrange(1 << 16),
            of=self.chance.choice(("ack", "nack", "renew", "start", "ack")),
        )

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
        return Action(self.now(), "drain", of=self.chance.choice(("default", "slim")), ms=3000)

    def cordon(self) -> Action:
        return Action(self.now(), "cordon", of=self.worker(), ms=3000)


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
