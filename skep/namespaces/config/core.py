"""Configuration as a fold: the documents of the scopes, all their versions, which are live. No clock, no I/O.

A scope is a path: ``system``, an organisation ``acme``, a team ``acme/web/prod`` (that is, a tenant), a
workflow of it ``acme/web/prod/thumbs``, a step ``acme/web/prod/thumbs/resize``. What holds in a scope is
merged from those that it is in, outermost first (document.py); below them all are the keys' defaults. System,
organisations and teams are the hive's own tenant's to write, for they say what a tenant gets of the hive;
workflows and steps are their tenant's, and of guarded keys it can only tighten what it got.

A live document that this release cannot read makes every value in its scope and below an error: what it may
have locked is not known, and what is above it may be looser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.config.document import (
    DocumentError,
    Layer,
    Said,
    Setting,
    Source,
    merge,
    merged,
    parse,
)
from skep.namespaces.config.keys import KEYS, is_within, row, told
from skep.namespaces.order import HIVE, HIVE_TENANT, Order, refusal
from skep.namespaces.packed import PackError, unpack_as
from skep.namespaces.versions import published, with_new
from skep.trace.entry import canonical
from skep.trace.rules import Decision, Meta

SYSTEM: Final = "system"
DEFAULT: Final = "default"  # the source of what nobody said
SCOPES_MAX: Final = 64  # of a tenant
HIVE_SCOPES_MAX: Final = 1024  # of the hive's own: organisations and teams
VERSIONS_MAX: Final = 16  # kept of each scope beside the live one; older ones are in the ledger.
CACHE_MAX: Final = 4096  # values and layers remembered: workflows and steps are named by who submits.

_SCOPE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,4}")
_NAMES: Final = (1, 3, 4, 5)  # how many a scope has: organisation, team, workflow, step
TEAM: Final = 3

SCOPE: Final = Arg("scope", help="else system for the hive's own tenant, the tenant's team for others")
PUBLISH: Final = Verb(
    "publish",
    (SCOPE, Arg("sha256", required=True, kind="sha256", help="of the draft, as sha256sum tells it")),
    "publish scope=lab/web/prod sha256=0f…",
    "make the scope's draft live, when it is good; the reply is its version",
)
ROLLBACK: Final = Verb(
    "rollback",
    (SCOPE, Arg("v", required=True, kind="number")),
    "rollback scope=lab/web/prod v=3",
    "make an earlier version live again",
)
IMPORT: Final = Verb(
    "import",
    (Arg("sha256", required=True, kind="sha256", help="of import.csv, as sha256sum tells it"),),
    "import sha256=0f…",
    "publish every document of import.csv, or none",
)
# What people write. The door adds the draft to the line, and makes of an import what it publishes.
VERBS: Final = ctl.verbs(PUBLISH, ROLLBACK, IMPORT)
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(PUBLISH._replace(args=(*PUBLISH.args, Arg("content", required=True))), ROLLBACK)
}


class ConfigError(Exception):
    """There is no value: the scope cannot be read, or there is no such scope."""


class Published(msgspec.Struct, frozen=True, tag_field="type", tag="config.published"):
    """``content`` is the document, packed; ``tenant`` whose scope it is."""

    scope: str
    v: int
    sha256: str
    actor: str
    tenant: str
    content: str


class RolledBack(msgspec.Struct, frozen=True, tag_field="type", tag="config.rolled_back"):
    scope: str
    v: int
    tenant: str


Event = Published | RolledBack


class Version(msgspec.Struct, frozen=True):
    v: int
    sha256: str
    actor: str
    published_ns: int
    content: str


class Record(msgspec.Struct, frozen=True):
    """A scope: its versions by number, the newest last, and which is live."""

    scope: str
    live: int
    rev: int
    versions: dict[int, Version]  # never changed

    @property
    def version(self) -> Version:
        return self.versions[self.live]


# scopes


def is_scope(name: str) -> bool:
    """Whether documents can be published for it."""
    return _SCOPE.fullmatch(name) is not None and name.count("/") + 1 in _NAMES


def owner(scope: str) -> str:
    """The tenant that writes the scope's document."""
    names = scope.split("/")
    return "/".join(names[:TEAM]) if len(names) > TEAM else HIVE_TENANT


def own_scope(tenant: str) -> str:
    """The scope that is meant when a tenant names none."""
    return SYSTEM if tenant == HIVE_TENANT else tenant


def chain(scope: str) -> tuple[str, ...]:
    """The scopes that it is in, the outermost first, itself last. Raises ConfigError."""
    if scope == SYSTEM:
        return (SYSTEM,)
    names = scope.split("/")
    if len(names) not in _NAMES:
        raise ConfigError(f"scope {scope}: expected system, org, org/project/env or a workflow or step of it")
    return (SYSTEM, *("/".join(names[:n]) for n in _NAMES if n <= len(names)))


# the state


@dataclass
class Config:
    scopes: dict[str, Record] = field(default_factory=dict)
    # Worked out of ``scopes``: what is found is kept until the next change.
    _layers: dict[str, Layer] = field(default_factory=dict, compare=False, repr=False)
    # What ``value`` would find again. Most lines ask for dozens of values, so it may be looked at first.
    known: dict[tuple[str, str], Said] = field(default_factory=dict, compare=False, repr=False)
    _made: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    def copy(self) -> Config:
        return Config(self.scopes.copy())

    def value(self, scope: str, key: str) -> Said:
        """The value of ``key``, ``pools/gpu/lease``, that holds in ``scope``, and its source; a tenant is
        a scope.

        Raises ConfigError when a scope on the way cannot be read, KeyError when there is no such key."""
        found = self.known.get((scope, key))
        if found is None:
            found = _value(self.layer(scope), key)
            _remember(self.known, (scope, key), found)
        return found

    def effective(self, scope: str) -> dict[str, Said]:
        """Every value that holds in ``scope``, by key. Raises ConfigError."""
        layer = self.layer(scope)
        return {key: _value(layer, key) for key in sorted(_PLAIN_KEYS | layer.keys())}

    def layer(self, scope: str) -> Layer:
        """What the scope and those that it is in say together. Raises ConfigError."""
        found = self._layers.get(scope)
        if found is None:
            *outer, last = chain(scope)
            above = self.layer(outer[-1]) if outer else {}
            record = self.scopes.get(last)
            own = {} if record is None else _read(record)
            found = merge(_guarded(above, own, last), own)
            _remember(self._layers, scope, found)
        return found

    def made(self, key: tuple[str, ...], make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """What ``make`` makes of values and of nothing else."""
        found = self._made.get(key)
        if found is None:
            found = make()
            _remember(self._made, key, found)
        return found

    def changed(self) -> None:
        """Forget what was worked out."""
        self._layers.clear()
        self.known.clear()
        self._made.clear()


def _remember(cache: dict[Any, Any], key: object, found: object) -> None:
    if len(cache) >= CACHE_MAX:
        cache.clear()
    cache[key] = found


_PLAIN_KEYS: Final = frozenset(key for key in KEYS if "*" not in key)


def _value(layer: Layer, key: str) -> Said:
    default = Setting(Said(row(key).default, Source(DEFAULT, 0)))
    return merged(key, default, layer[key]).effective(key) if key in layer else default.effective(key)


@lru_cache(maxsize=1024)
def _parsed(scope: str, v: int, digest: str, content: str) -> Layer:
    return parse(unpack_as(content, digest), Source(scope, v))


def _read(record: Record) -> Layer:
    """What the live document says. Raises ConfigError."""
    version = record.version
    try:
        return _parsed(record.scope, version.v, version.sha256, version.content)
    except (PackError, DocumentError) as error:
        raise ConfigError(f"scope {Source(record.scope, version.v)} cannot be read: {error}") from error


def _guarded(above: Layer, own: Layer, scope: str) -> Layer:
    """What is above a scope's own document, with bounds on guarded keys where tenants begin to write."""
    depth = scope.count("/") + 1
    if depth <= TEAM:
        return above
    # Of a step's keys those that nobody has spoken of: the others got their bound at the workflow.
    keys = own.keys() | above.keys() if depth == TEAM + 1 else own.keys() - above.keys()
    bounds = dict(above)
    for key in keys:
        if row(key).guarded:
            found = _value(above, key)
            bounds[key] = Setting(found, found)
    return bounds


# deciding


Decided = Decision[Event, str]


def decide(config: Config, order: Order) -> Decided:
    """What follows from an order to /config; raises Refusal."""
    return _DECIDE[order.verb](config, order)


def _publish(config: Config, order: Order) -> Decided:
    scope, digest = _scope(order), order.args["sha256"].removeprefix("sha256:")
    record = config.scopes.get(scope)
    order.check_rev(0 if record is None else record.rev)
    if record is None:
        _check_room(config, owner(scope))
    v = 1 if record is None else max(record.versions) + 1
    content = order.args["content"]
    published(content, digest)
    if record is not None and record.version.sha256 == digest:
        return Decision((), f"{scope}@{record.live}")
    try:
        _check(config, scope, _parsed(scope, v, digest, content))
    except (ConfigError, DocumentError) as error:
        raise refusal(E.SCHEMA, str(error)) from error
    return Decision((Published(scope, v, digest, order.actor, owner(scope), content),), f"{scope}@{v}")


def _check(config: Config, scope: str, own: Layer) -> None:
    """Return when a document that says ``own`` loosens nothing that is locked above ``scope``.

    Raises DocumentError, or ConfigError when what is above cannot be read."""
    *outer, last = chain(scope)
    above = _guarded(config.layer(outer[-1]) if outer else {}, own, last)
    for key, setting in own.items():
        bound = above[key].bound if key in above else None
        said = setting.effective(key)
        if bound is not None and not is_within(row(key), bound.value, said.value):
            locked, loose = (_shown(key, each) for each in (bound, said))
            raise DocumentError(key.split("/"), f"{loose} is looser than {locked}, locked by {bound.source}")


def _shown(key: str, said: Said) -> str:
    return canonical(told(row(key), said.value)).decode()


def _scope(order: Order) -> str:
    """The scope that the order is about, when it is its writer's to change. Raises Refusal."""
    scope = order.args.get("scope") or own_scope(order.tenant)
    if not is_scope(scope):
        raise refusal(E.USAGE, f"{order.verb}: scope={scope}: expected system, org, org/project/env or below")
    if order.role != HIVE and order.tenant != owner(scope):
        raise refusal(E.DENIED, f"rule=scope-owner {order.verb} scope={scope} is not this tenant's")
    return scope


def _check_room(config: Config, tenant: str) -> None:
    have = sum(owner(scope) == tenant for scope in config.scopes)
    most = HIVE_SCOPES_MAX if tenant == HIVE_TENANT else SCOPES_MAX
    if have >= most:
        raise refusal(E.QUOTA, f"scopes have={have} max={most}")


def _rollback(config: Config, order: Order) -> Decided:
    scope, v = _scope(order), int(order.args["v"])
    record = config.scopes.get(scope)
    if record is None or v not in record.versions:
        raise refusal(E.USAGE, f"rollback: scope={scope} v={v}: there is no such version")
    order.check_rev(record.rev)
    # What has been locked above it since holds: merging sees to that.
    events = () if v == record.live else (RolledBack(scope, v, owner(scope)),)
    return Decision(events, f"{scope}@{v}")


_DECIDE: Final[Mapping[str, Callable[[Config, Order], Decided]]] = {
    "publish": _publish, "rollback": _rollback,
}  # fmt: skip


def apply(config: Config, event: Event, meta: Meta) -> None:
    """Change ``config`` by ``event``."""
    scope = event.scope
    record = config.scopes.get(scope)
    match event:
        case Published():
            version = Version(event.v, event.sha256, event.actor, meta.time_ns, event.content)
            kept, live = ({}, 0) if record is None else (record.versions, record.live)
            versions = with_new(kept, live, event.v, version, VERSIONS_MAX)
            config.scopes[scope] = Record(scope, event.v, meta.seq, versions)
        case RolledBack():
            assert record is not None, scope
            config.scopes[scope] = msgspec.structs.replace(record, live=event.v, rev=meta.seq)
    config.changed()


# telling


def snapshot(config: Config, scope: str) -> dict[str, object]:
    """The effective values as JSON tells them, with a hash over all. Raises ConfigError."""
    layer = config.layer(scope)
    values = {
        key: {"value": told(row(key), said.value), "source": str(said.source)} | _lock(layer, key)
        for key, said in config.effective(scope).items()
    }
    return {"scope": scope, "sha256": sha256(canonical(values)).hexdigest(), "values": values}


def _lock(layer: Layer, key: str) -> dict[str, object]:
    bound = layer[key].bound if key in layer else None
    return {} if bound is None else {"locked": str(bound.source)}
