"""A line as the policies see it. Its values are worked out when a policy refers to them, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from skep.fs import ctl
from skep.fs.ctl import Arg
from skep.namespaces.order import Order, actor_type, node_of
from skep.namespaces.policy.request import ARGS, PRINCIPAL_ID, RESOURCE_ID, Name, Value
from skep.namespaces.policy.schema import action_of, typed_args
from skep.trace.entry import canonical

# Arguments that say how a command is sent, not what it is.
_NOT_PAYLOAD: Final = frozenset({"key", "if-rev"})


class About(NamedTuple):
    """What an order is about. "": there is none, or it is not known."""

    name: str = ""
    owner: str = ""
    tenant: str = ""  # "": the writer's
    capability: str = ""
    pool: Callable[[], str] = str  # found out when it is asked for
    labels: Mapping[str, str] = {}
    said: Callable[[], Mapping[str, str]] = dict  # of a job, the arguments it was submitted with
    role: str = ""  # of a job that there is, its submitter's; "": the writer's


class World(Protocol):
    """What the nouns know of an order's object."""

    def about(self, noun: str, order: Order) -> About:
        """The object; of another tenant's nothing is known."""

    def trust_of(self, node: str) -> str:
        """The node's level: green, yellow or red."""

    def count_waiting(self, pool: str) -> int:
        """How many jobs wait in the pool."""


class Asked:
    """The request that an order to ``noun`` is; ``row`` are its verb's arguments, ``path`` its file."""

    __slots__ = ("_about", "_said", "action", "noun", "order", "path", "row", "world")

    def __init__(self, noun: str, path: str, order: Order, row: tuple[Arg, ...], world: World) -> None:
        self.action = action_of(noun, order.verb)
        self.noun = noun
        self.path = path
        self.order = order
        self.row = row
        self.world = world
        self._about: About | None = None  # None: not asked for yet
        self._said: Mapping[str, str] | None = None  # as above

    @property
    def about(self) -> About:
        if self._about is None:
            self._about = self.world.about(self.noun, self.order)
        return self._about

    @property
    def said(self) -> Mapping[str, str]:
        if self._said is None:
            self._said = self.about.said()
        return self._said

    @property
    def principal(self) -> str:
        return self.order.actor.partition("#")[0]

    @property
    def resource(self) -> str:
        return "/".join(("", *(each for each in (self.noun, self.about.name) if each))) or "/"

    @property
    def args(self) -> Mapping[str, Value]:
        return typed_args(self.order.args, self.row)

    @property
    def tags(self) -> Mapping[str, str]:
        return self.about.labels

    def value(self, name: Name) -> Value | None:
        found = _VALUES.get(name)
        if found is not None:
            return found(self)
        return self.args.get(name[2]) if name[:2] == ARGS else self.tags.get(name[2])


def _payload(asked: Asked) -> str:
    said = {name: value for name, value in asked.order.args.items() if name not in _NOT_PAYLOAD}
    return sha256(canonical({"verb": asked.order.verb, "args": said})).hexdigest()


def _words(*found: str) -> tuple[str, ...]:
    return tuple(sorted({word for word in found if word}))


def _risk(asked: Asked) -> tuple[str, ...]:
    """What the request says, and what its label says."""
    return _words(*_listed(asked, "risk"), *asked.about.labels.get("risk", "").split("+"))


def _listed(asked: Asked, name: str) -> tuple[str, ...]:
    said = asked.said.get(name, "")
    return ctl.listed(said) if ctl.is_list(said) else ()


def _actor(asked: Asked) -> str:
    return asked.said.get("actor-id") or (asked.about.owner if asked.said else "") or asked.order.actor


def _actor_type(asked: Asked) -> str:
    return asked.said.get("actor-type") or actor_type(asked.about.role or asked.order.role)


def _said(name: str) -> Callable[[Asked], Value]:
    return lambda asked: asked.said.get(name, "")


_VALUES: Final[Mapping[Name, Callable[[Asked], Value]]] = {
    PRINCIPAL_ID: lambda asked: asked.principal,
    RESOURCE_ID: lambda asked: asked.resource,
    ("principal", "role"): lambda asked: asked.order.role,
    ("principal", "node"): lambda asked: node_of(asked.order.actor),
    ("principal", "actor"): lambda asked: asked.order.actor,
    ("principal", "tenant"): lambda asked: asked.order.tenant,
    ("principal", "type"): lambda asked: actor_type(asked.order.role),
    ("principal", "trust"): lambda asked: asked.world.trust_of(node_of(asked.order.actor)),
    ("resource", "path"): lambda asked: asked.path,
    ("resource", "noun"): lambda asked: asked.noun,
    ("resource", "name"): lambda asked: asked.about.name,
    ("resource", "owner"): lambda asked: asked.about.owner,
    ("resource", "tenant"): lambda asked: asked.about.tenant or asked.order.tenant,
    ("context", "capability"): lambda asked: asked.about.capability,
    ("context", "pool"): lambda asked: asked.about.pool(),
    ("context", "capabilities"): lambda asked: _words(
        asked.about.capability, asked.said.get("capability", "")
    ),
    ("context", "requires"): lambda asked: _words(*_listed(asked, "requires")),
    ("context", "risk"): _risk,
    ("context", "pack"): lambda asked: asked.said.get("pack") or asked.about.labels.get("pack", ""),
    ("context", "actor"): _actor,
    ("context", "actor_type"): _actor_type,
    ("context", "workflow"): _said("workflow"),
    ("context", "run"): _said("run"),
    ("context", "step"): _said("step"),
    ("context", "payload"): _payload,
    ("context", "waiting"): lambda asked: asked.world.count_waiting(asked.about.pool()),
    ("context", "token"): lambda asked: bool(asked.order.token),
    ("context", "time"): lambda asked: asked.order.time_ns,
}
