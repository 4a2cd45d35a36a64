"""/tenants: what each tenant may have of the hive, and what it uses.

    self/            the caller's own tenant
    <tenant>/        the same by name, org:project:env
      limits         R a line for each limit: its name, its value (- for none), the configuration that says it
      usage          R a line for each: its name, have=, max= if it is limited
      actors         R a line for each actor that uses something: the actor, then name=value for each

A tenant is there for itself; for the hive's own are all that have something here. Limits are what /config has
under limits/, for a tenant as a whole and, actor-, for each actor of it, that is, who submitted a job.

    jobs             jobs leased or running. At its limit no more are leased; who else waits is served
    waiting          jobs queued or delayed. What comes back from a lease or a delay always has a place
    submits          in a second: so many may come at once, and then as many in each second
    day-runtime      of attempts that ended on this day of UTC, from their start, at most for their timeout;
                     reserved=: the timeouts of those that are held, which count as if they had run so long.
                     Where it is limited, every job needs a timeout
    artifact-bytes   sealed, each hash once, and staged here; staged=: of them. An actor's are those that it
                     has sealed last, and the outputs of its jobs
    artifact-size, runtime, retries   of one artifact or job

A limit refuses what is new (quota exceeded, throttled) and ends nothing: lowered below what there is, it is
kept when enough has gone. All but what is staged is counted from the ledger, and so the same after a crash.

    cat tenants/self/usage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Text
from skep.fs.tree import Listing
from skep.namespaces.config.core import TEAM, ConfigError
from skep.namespaces.config.keys import KEYS, told
from skep.namespaces.jobs.quotas import ACTOR, TENANT, count_submits
from skep.namespaces.jobs.usage import ALL, Used
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.rows import Rows
from skep.trace.clock import duration

SELF: Final = "self"
LIMITS: Final = tuple(key for key in KEYS if key.startswith("limits/"))


def files(hive: Hive) -> Listing:
    """The tree of /tenants."""

    def names(caller: Caller) -> list[str]:
        return [SELF, *(named(tenant) for tenant in visible(hive, caller))]

    def walk(name: str, caller: Caller) -> Any:
        tenant = caller.tenant if name == SELF else name.replace(":", "/")
        return Rows(FILES, hive, tenant) if tenant in visible(hive, caller) and "/" not in name else None

    return Listing(names, walk)


def named(tenant: str) -> str:
    return tenant.replace("/", ":")


def visible(hive: Hive, caller: Caller) -> list[str]:
    """The tenants that are there for the caller."""
    if caller.tenant != HIVE_TENANT:
        return [caller.tenant]
    state = hive.state
    scopes = (scope.split("/")[:TEAM] for scope in state.config.scopes)
    teams = ("/".join(names) for names in scopes if len(names) == TEAM)
    joined = (tenant for node in state.nodes.by_id.values() for tenant in node.tenants)
    return sorted({HIVE_TENANT, *state.jobs.usage.by_tenant, *state.artifacts.by_hash, *teams, *joined})


def _limits(hive: Hive, tenant: str) -> Text:
    def content() -> str:
        lines = []
        for key in LIMITS:
            try:
                said = hive.state.config.value(tenant, key)
            except ConfigError as error:
                raise FsError(E.CONFLICT, f"config: {error}") from error
            value = "-" if said.value is None else told(KEYS[key], said.value)
            lines.append(f"{_name(key)} {value} {said.source}\n")
        return "".join(lines)

    return Text(content)


def _usage(hive: Hive, tenant: str) -> Text:
    def content() -> str:
        used = hive.state.jobs.usage.of(tenant)
        shown = _shown(hive, tenant, used, TENANT.submits)
        shown["day-runtime"] += f" reserved={duration(used.reserved_ns)}"
        staged = hive.store.room.used(tenant)
        shown["artifact-bytes"] = f"{hive.state.artifacts.sizes.get(tenant, 0) + staged} staged={staged}"
        return "".join(_line(hive, tenant, name, have) for name, have in shown.items())

    return Text(content)


def _line(hive: Hive, tenant: str, name: str, have: str) -> str:
    key = f"limits/{name}"
    most = hive.limit(tenant, key)
    return f"{name} have={have}" + ("" if most is None else f" max={told(KEYS[key], most)}") + "\n"


def _actors(hive: Hive, tenant: str) -> Text:
    def content() -> str:
        rows = hive.state.jobs.usage.by_tenant.get(tenant, {})
        sizes = hive.state.artifacts.actors.get(tenant, {})
        return "".join(_actor(hive, tenant, actor) for actor in sorted((rows.keys() | sizes) - {ALL}))

    return Text(content)


def _actor(hive: Hive, tenant: str, actor: str) -> str:
    shown = _shown(hive, tenant, hive.state.jobs.usage.of(tenant, actor), ACTOR.submits)
    shown["artifact-bytes"] = str(hive.state.artifacts.actors.get(tenant, {}).get(actor, 0))
    return " ".join((actor, *(f"{name}={have}" for name, have in shown.items()))) + "\n"


def _shown(hive: Hive, tenant: str, used: Used, submits: str) -> dict[str, str]:
    now_ns = hive.clock.now_ns()
    return {
        "jobs": str(used.held),
        "waiting": str(used.waiting),
        "submits": str(count_submits(used, hive.limit(tenant, submits), now_ns)),
        "day-runtime": duration(hive.state.jobs.usage.ran_ns(used, now_ns)),
    }


def _name(key: str) -> str:
    return key.removeprefix("limits/")


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "limits": _limits, "usage": _usage, "actors": _actors,
}  # fmt: skip
