"""The tree a hive serves: the nouns' trees under one root.

ctl             W drain, resume, kick, reload, shutdown; R usage
version         R the hive's version and the protocols it speaks
whoami          R who the caller is here
state           R online, draining, quiesced; degraded and why when its ledger is closed to it, or too few
                witnesses have cosigned it lately: then it works as ever
ns              R the session's namespace, as mount and bind lines
events          R events up to now, a JSON line each; events@N those after ledger number N, for ever,
                with {"seq":N} when nothing comes
health/live     R ok
health/ready    R ok, or why it takes no work
artifacts boot config dlq gpu jobs locks log nodes policy pools schemas sessions tenants triggers trust
validator

echo drain > ctl
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Iterator

from skep.fs.ctl import Command
from skep.fs.messages import Dialect
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, File, Stream, Text
from skep.fs.tree import Dir, new_block, number
from skep.namespaces.artifacts import files as artifacts
from skep.namespaces.boot import files as boot
from skep.namespaces.config import files as config
from skep.namespaces.dlq import files as dlq
from skep.namespaces.follow import Feed, events
from skep.namespaces.gpu import files as gpu
from skep.namespaces.hive import HIVE_TABLES
from skep.namespaces.jobs import files as jobs
from skep.namespaces.live import Hive
from skep.namespaces.locks import files as locks
from skep.namespaces.log import files as log
from skep.namespaces.nodes import files as nodes
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.policy import files as policy
from skep.namespaces.pools import files as pools
from skep.namespaces.rows import Followed
from skep.namespaces.schemas import files as schemas
from skep.namespaces.sessions import files as sessions
from skep.namespaces.tenants import files as tenants
from skep.namespaces.tokens import files as tokens
from skep.namespaces.triggers import files as triggers
from skep.namespaces.trust import files as trust
from skep.namespaces.validator import files as validator
from skep.trace.clock import rfc3339


def hive_tree(hive: Hive) -> Dir:
    """The whole tree; what of it exists for a caller is its view's business."""

    def events_past(caller: Caller) -> Feed:
        return Feed(hive, 0, hive.turn.seq, events(hive, caller))

    def events_at(seq: int) -> Stream:
        return Stream(lambda caller: Feed(hive, seq, None, events(hive, caller)))

    bundles = policy.Bundles(hive)
    children = {
        "ctl": Ctl(HIVE_TABLES["ctl"], orders(hive)),
        "version": f"skep {hive.version}\n{' '.join(dialect.value for dialect in Dialect)}\n",
        "whoami": Text(lambda caller: whoami(hive, caller)),
        "state": Text(lambda caller: f"{condition(hive, caller)}\n"),
        "ns": Text(lambda caller: ns(hive, caller)),
        "events": Stream(events_past),
        "nodes": nodes.files(hive),
        "sessions": sessions.files(hive),
        "policy": policy.files(hive, bundles),
        "config": config.files(hive),
        "schemas": schemas.files(hive),
        "pools": pools.files(hive),
        "jobs": jobs.files(hive),
        "dlq": dlq.files(hive),
        "artifacts": artifacts.files(hive),
        "log": log.files(hive),
        "trust": {**trust.files(hive), "tokens": tokens.files(hive)},
        "locks": locks.files(hive),
        "gpu": gpu.files(hive),
        "tenants": tenants.files(hive),
        "triggers": triggers.files(hive),
        "validator": validator.files(hive, bundles.packed),
        "boot": boot.files(hive),
        "health": {"live": "ok\n", "ready": Text(lambda caller: ready(hive, caller))},
    }
    root = Followed(children, {"events": events_at})
    number(root, new_block())
    hive.tapes.tree = "".join(sorted(layout(root)))
    return root


def layout(directory: Dir, path: str = "") -> Iterator[str]:
    """A line for each path that is always there, and whether it is a directory, d, or not, f."""
    for name, node in directory.children.items():
        assert isinstance(node, File)
        yield f"{path}/{name} {'d' if node.kind == stat.S_IFDIR else 'f'}\n"
        if isinstance(node, Dir):
            yield from layout(node, f"{path}/{name}")


def orders(hive: Hive) -> Callable[[Caller, list[Command]], Awaitable[list[str]]]:
    """What /ctl runs."""
    write = hive.writes("/ctl")

    def run(caller: Caller, commands: list[Command]) -> Awaitable[list[str]]:
        if any(command.verb == "reload" for command in commands):
            hive.limits.check()
        return write(caller, commands)

    return run


def whoami(hive: Hive, caller: Caller) -> str:
    """``key value`` lines of what the session was found to be. Of a token its last block's id is told, and
    when it ends (``until``); of the certificate its serial number, and when that ends."""
    session = hive.sessions.of(caller)
    until_ns = 0 if session is None else session.until_ns
    shown = hive.state.trust.certificates.get(caller.certificate)
    said = {
        "principal": caller.principal, "role": caller.role, "tenant": caller.tenant,
        "node": caller.node, "session": caller.session,
        "token": caller.token.split(" ")[-1].partition("=")[0],
        "until": rfc3339(until_ns) if until_ns else "",
        "certificate": caller.certificate,
        "certificate-until": rfc3339(shown.end_ns) if shown is not None else "",
    }  # fmt: skip
    return "".join(f"{name} {value}\n" for name, value in said.items() if value)


def ns(hive: Hive, caller: Caller) -> str:
    """The namespace of the caller's session; "" in process, where nobody has attached."""
    session = hive.sessions.of(caller)
    return "" if session is None else session.ns


def condition(hive: Hive, caller: Caller) -> str:
    """The word of /state; why, when it is degraded, is for the hive's own tenant."""
    why = hive.turn.failed or hive.state.log.witnesses.lost
    found = hive.state.condition_of(caller.tenant)
    if not why or (hive.turn.failed is None and found != "online"):
        return found
    return f"degraded: {why}" if caller.tenant == HIVE_TENANT else "degraded"


def ready(hive: Hive, caller: Caller) -> str:
    """``ok`` when jobs are taken and leased, agreed upon or not; else the state."""
    if hive.turn.failed is None and hive.state.condition_of(caller.tenant) == "online":
        return "ok\n"
    return f"{condition(hive, caller)}\n"
