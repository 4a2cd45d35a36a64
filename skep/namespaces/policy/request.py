"""What the policies are asked: who does what to which object, in which circumstances. Pure.

A request gives its values one by one, so that only those that some policy refers to are ever worked out.
Their names are paths of Cedar: ``("principal", "role")``, ``("context", "args", "topic")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from skep.namespaces.order import actor_type
from skep.trace.clock import rfc3339

PRINCIPAL: Final = "Skep::Principal"
ROLE: Final = "Skep::Role"
ACTION: Final = "Skep::Action"
RESOURCE: Final = "Skep::Resource"

Name = tuple[str, ...]
Value = str | int | bool | tuple[str, ...]


class Attribute(NamedTuple):
    """A value's Cedar type, and what it is where a request written by hand does not say."""

    type: str
    default: Value
    about: str


# Every value but the arguments of the verb and the labels of the object.
ATTRIBUTES: Final[Mapping[Name, Attribute]] = {
    ("principal", "role"): Attribute("String", "", "its manifest: operator, drone-worker"),
    ("principal", "node"): Attribute("String", "", 'the node that speaks; "": none does'),
    ("principal", "actor"): Attribute("String", "", "the principal with its node behind a #"),
    ("principal", "tenant"): Attribute("String", "default/default/default", "org/project/env"),
    ("principal", "type"): Attribute("String", "service", "human, agent, service or device, by its role"),
    ("principal", "trust"): Attribute("String", "green", "its node's level: green, yellow or red"),
    ("resource", "path"): Attribute("String", "", "the file written to"),
    ("resource", "noun"): Attribute("String", "", 'jobs, pools, nodes; "": the hive itself'),
    ("resource", "name"): Attribute("String", "", 'the job, pool, node; "": none yet'),
    ("resource", "owner"): Attribute("String", "", 'the actor who made it; "": nobody or not known'),
    ("resource", "tenant"): Attribute("String", "default/default/default", "whose it is"),
    ("context", "capability"): Attribute("String", "", "the topic of the job"),
    ("context", "pool"): Attribute("String", "", "where the job goes or the lease comes from"),
    ("context", "requires"): Attribute("Set<String>", (), "what a worker must have for it"),
    ("context", "capabilities"): Attribute("Set<String>", (), "the topic, and capability= as is said"),
    ("context", "risk"): Attribute("Set<String>", (), "risk= and the label risk:a+b, as the submitter says"),
    ("context", "pack"): Attribute("String", "", "pack=, else the label pack:…, as the submitter says"),
    ("context", "actor"): Attribute("String", "", "actor-id= as is said, else the submitter"),
    ("context", "actor_type"): Attribute("String", "service", "actor-type= as is said, else principal.type"),
    ("context", "workflow"): Attribute("String", "", "what the job is part of, as the submitter says"),
    ("context", "run"): Attribute("String", "", "of the workflow"),
    ("context", "step"): Attribute("String", "", "of the workflow"),
    ("context", "payload"): Attribute("String", "", "sha256 of verb and arguments, in hex"),
    ("context", "waiting"): Attribute("Long", 0, "jobs that wait in the pool"),
    ("context", "token"): Attribute("Bool", False, "whether a capability token narrows the session"),
    ("context", "time"): Attribute("datetime", 0, "when the line was written"),
}
PRINCIPAL_ID: Final[Name] = ("principal",)
PRINCIPAL_ROLE: Final[Name] = ("principal", "role")
RESOURCE_ID: Final[Name] = ("resource",)
ARGS: Final = ("context", "args")
TAGS: Final = ("resource", "tags")
TIME: Final = ("context", "time")


class Request(Protocol):
    """``principal`` and ``resource`` are ids, ``action`` is noun.verb; ``args`` are the verb's, ``tags`` the
    object's labels."""

    @property
    def principal(self) -> str: ...

    @property
    def action(self) -> str: ...

    @property
    def resource(self) -> str: ...

    @property
    def args(self) -> Mapping[str, Value]: ...

    @property
    def tags(self) -> Mapping[str, str]: ...

    def value(self, name: Name) -> Value | None:
        """The value of the name, PRINCIPAL_ID and RESOURCE_ID among them; None where there is none. Times are
        ns since 1970."""


class Principal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    id: str
    role: str = ""
    node: str = ""
    tenant: str = "default/default/default"
    trust: str = "green"


class Resource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``id``: the object's path, ``/jobs/01JD``. ``path``: the file written to. None: as the hive knows."""

    id: str = "/"
    path: str | None = None
    owner: str | None = None
    tenant: str | None = None
    labels: dict[str, str] | None = None


class Stated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A request as JSON. ``context`` has the names of the context, and ``args`` those of the verb."""

    action: str
    principal: Principal | None = None  # None: whoever asks
    resource: Resource = Resource()
    context: dict[str, Any] = {}
    bundle: str = ""  # simulate: as if this bundle's draft were live


class Written(NamedTuple):
    """A request written by hand. What it does not say is as in ``base``; None: the attributes' defaults."""

    principal: str
    action: str
    resource: str
    said: Mapping[Name, Value]
    args: Mapping[str, Value]
    tags: Mapping[str, str]
    base: Request | None = None

    def value(self, name: Name) -> Value | None:
        if name[:2] == ARGS:
            return self.args.get(name[2])
        if name[:2] == TAGS:
            return self.tags.get(name[2])
        if len(name) == 1:
            return self.principal if name == PRINCIPAL_ID else self.resource
        if name in self.said or self.base is None:
            return self.said.get(name, ATTRIBUTES[name].default)
        return self.base.value(name)


def split(path: str) -> tuple[str, str]:
    """Noun and name of an object's path: ``/jobs/01JD``."""
    noun, _, name = path.strip("/").partition("/")
    return noun, name


def written(stated: Stated, principal: Principal, base: Request | None = None) -> Written:
    """The request that was stated. Raises ValueError at a value of another type than its attribute's."""
    about, resource = dict(stated.context), stated.resource
    noun, name = split(resource.id)
    said: dict[Name, Value] = {
        ("principal", "role"): principal.role,
        ("principal", "node"): principal.node,
        ("principal", "actor"): principal.id + (f"#{principal.node}" if principal.node else ""),
        ("principal", "tenant"): principal.tenant,
        ("principal", "type"): actor_type(principal.role),
        ("principal", "trust"): principal.trust,
        ("resource", "noun"): noun,
        ("resource", "name"): name,
    }
    if resource.path is not None or base is None:
        said["resource", "path"] = resource.path or resource.id
    if resource.owner is not None:
        said["resource", "owner"] = resource.owner
    if resource.tenant is not None:
        said["resource", "tenant"] = resource.tenant
    args = args_of(about.pop("args", {}))
    for key, value in about.items():
        if ("context", key) not in ATTRIBUTES:
            known = " ".join(each[1] for each in ATTRIBUTES if each[0] == "context")
            raise ValueError(f"context.{key}: expected one of args {known}")
        said["context", key] = _typed(("context", key), value)
    labels = (base.tags if base is not None else {}) if resource.labels is None else resource.labels
    return Written(principal.id, stated.action, resource.id, said, args, labels, base)


def args_of(value: Any) -> dict[str, Value]:
    """``context.args``. Raises ValueError."""
    if not isinstance(value, dict) or not all(isinstance(each, str | int) for each in value.values()):
        raise ValueError("context.args: expected an object of strings, numbers and booleans")
    return value


def _typed(name: Name, value: Any) -> Value:
    kind = ATTRIBUTES[name].type
    if kind == "Set<String>" and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(sorted(set(value)))
    if kind == {str: "String", bool: "Bool", int: "Long"}.get(type(value)):
        found: Value = value
        return found
    if kind == "datetime" and type(value) is int and value >= 0:
        return value
    raise ValueError(f"{'.'.join(name)}: expected a {'number of ns' if kind == 'datetime' else kind}")


def cedar_value(name: Name, value: Value) -> Any:
    """The value as Cedar's JSON has it."""
    if name == TIME:
        assert isinstance(value, int)
        return {"__extn": {"fn": "datetime", "arg": f"{rfc3339(value)[:23]}Z"}}
    return value
