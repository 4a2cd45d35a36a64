"""/nodes: the machines of the hive.

    ctl               W cordon, drain, uncordon, trust, remove, expect, import; R usage
    export.csv        R the nodes as a sheet: principal, role, tenants, duty, trust, labels, capacity, version
    import.csv        W such a sheet, which import takes; R. The hive's own tenant's
    <id>/role         R the role its session has
    <id>/principal    R who it is
    <id>/state        R online, suspect (not heard for 15 s), lost (45 s), left, cordoned, draining;
                      expected: it has not joined yet. Annexes say how often they are heard (gpu)
    <id>/trust        R the level that policies ask for: green, yellow, or red, which gets no leases
    <id>/heartbeat    R when it was last heard and what it said, a JSON line; W by that node: the same
                      without time: load, gpu, memory_free, capacity, running, labels, version, annex
    <id>/load         R the load it last told, fraction of the machine
    <id>/labels       R a line ``key value`` for each of its labels
    <id>/capacity     R how many leases it may hold at a time; 0: it did not say, and there is no limit
    <id>/version      R the version it runs
    <id>/sessions     R the ids of its sessions

Heartbeats are in memory only. What their absence means is in the ledger, and so is what they say of labels,
capacity and version, when that is something else than before: jobs that require labels, and pools that do,
get nodes that have them, and no node gets more leases than its capacity.

A node exists for the tenant that it has joined for, when that is the only one, and for the hive's own, whose
operators command it. The hive's own nodes, and those of several tenants, run jobs of more than one: what they
tell of themselves would tell each tenant of the others. Of these a tenant knows the names, from the attempts
of the jobs they ran for it.

import registers the nodes of a sheet before they join: which principal their names are kept for, in which
role they come, and with which duty, trust and labels. Of nodes that are there it sets duty, trust and labels;
one of another principal is refused. The whole sheet is checked first, a mistake is told with its line and
column; then it is written in parts of an entry each. What was imported already changes nothing.

    echo '{"load":0.25,"capacity":4}' > nodes/w1/heartbeat
    cat nodes/export.csv > saved.csv; cp saved.csv nodes/import.csv
    echo import sha256=$(sha256sum < saved.csv | cut -c1-64) > nodes/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text
from skep.fs.tree import Listing
from skep.namespaces.hive import ANNEX
from skep.namespaces.live import Heartbeat, Hive
from skep.namespaces.nodes.core import IMPORT, NODES_MAX, TABLES, VERBS, Node, visible
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.rows import Rows, fixed
from skep.namespaces.sheet import Form, Line, Staged, entries, export
from skep.trace.clock import rfc3339
from skep.trace.entry import canonical

SHEET: Final = Form(
    "nodes.v1", ("node", "principal", "role", "tenants", "duty", "trust", "labels", "capacity", "version")
)
IMPORTED: Final = "import.csv"
HEARTBEAT_MAX: Final = 8192  # bytes: a hundred and more of them are kept of each node.

_heartbeats = msgspec.json.Decoder(Heartbeat)


def files(hive: Hive) -> Listing:
    """The tree of /nodes."""
    staged = Staged()
    children = fixed({
        "ctl": Ctl(VERBS, lambda caller, commands: run(hive, staged, caller, commands)),
        "export.csv": export(SHEET, lambda caller: _sheet(hive, caller)),
    })  # fmt: skip

    def walk(name: str, caller: Caller) -> Any:
        node = hive.state.nodes.by_id.get(name)
        if name in children:
            return children[name]
        if name == IMPORTED and caller.tenant == HIVE_TENANT:
            return staged.file(caller)
        if node is None or not _sees(node, caller):
            # Recorded alike, whether there is one or not: a record has a number in the ledger.
            raise FsError(E.MISSING, name, hidden=caller.tenant != HIVE_TENANT)
        return Rows(FILES, hive, name, node.rev)

    def names(caller: Caller) -> list[str]:
        own = [IMPORTED] if caller.tenant == HIVE_TENANT else []
        return [
            *children,
            *own,
            *(node.id for node in hive.state.nodes.by_id.values() if _sees(node, caller)),
        ]

    return Listing(names, walk)


async def run(hive: Hive, staged: Staged, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands; an import is the only one of its write."""
    if not any(command.verb == IMPORT.name for command in commands):
        return await hive.command(caller, "/nodes/ctl", [command.text for command in commands])
    if len(commands) > 1:
        raise FsError(E.USAGE, f"import: expected a write of one line, this one has {len(commands)}")
    lines = staged.read(SHEET, caller, commands[0].args["sha256"])
    new = [line for line in lines if line.row["node"] not in hive.state.nodes.by_id]
    if len(hive.state.nodes.by_id) + len(new) > NODES_MAX:
        raise FsError(E.QUOTA, f"nodes have={len(hive.state.nodes.by_id)} max={NODES_MAX}")
    expected = [_expected(hive, line) for line in lines]
    told = ""
    for part in entries(expected):
        told = (await hive.command(caller, "/nodes/ctl", part, cost=1))[-1].partition(" ")[2]
    staged.done(caller)
    return [f"{len(lines)} {told}".rstrip()]


def _sheet(hive: Hive, caller: Caller) -> Iterator[tuple[str, ...]]:
    nodes = sorted(
        (node for node in hive.state.nodes.by_id.values() if _sees(node, caller)), key=lambda n: n.id
    )
    return (
        (
            node.id, node.principal, node.role, " ".join(node.tenants), node.duty, node.trust,
            canonical(node.labels).decode() if node.labels else "", str(node.capacity or ""), node.version,
        )
        for node in nodes
    )  # fmt: skip


def _expected(hive: Hive, line: Line) -> str:
    """The line of the ledger that registers the sheet's. Raises FsError."""
    args = {name: value for name, value in line.row.items() if value}
    text = ctl.line("expect", args)
    # What is wrong is told as that argument's, which is called like its column.
    ctl.check(Command("expect", args, text, line.number), TABLES["ctl"])
    if "#" in args["node"]:
        raise line.error("node", f"{args['node']}: expected a name without #")
    known = hive.state.nodes.by_id.get(args["node"])
    if known is not None and known.principal != args["principal"]:
        raise line.error("principal", f"the node is {known.principal}'s", E.DENIED)
    return text


def _sees(node: Node, caller: Caller) -> bool:
    return caller.node == node.id or visible(node, caller.tenant)


def _record(render: Callable[[Node], str]) -> Callable[[Hive, str], Text]:
    """A row rendered from the node's record when opened."""
    return lambda hive, id: Text(lambda: f"{render(node_of(hive, id))}\n")


def node_of(hive: Hive, id: str) -> Node:
    """The node's record. Raises FsError(E.MISSING) when it was removed since it was walked to."""
    node = hive.state.nodes.by_id.get(id)
    if node is None:
        raise FsError(E.MISSING)
    return node


def _said(render: Callable[[Heartbeat], str]) -> Callable[[Hive, str], Text]:
    """A row rendered from what the node said last; empty when it has not spoken."""

    def row(hive: Hive, id: str) -> Text:
        def content() -> str:
            heard = hive.heard(id)
            return "" if heard is None else render(heard.said)

        return Text(content)

    return row


def _heartbeat(hive: Hive, id: str) -> Text:
    def content() -> str:
        heard = hive.heard(id)
        if heard is None:
            return ""
        said = {"time": rfc3339(heard.time_ns)} | msgspec.to_builtins(heard.said)
        return msgspec.json.encode(said).decode() + "\n"

    async def write(caller: Caller, data: bytes) -> None:
        if caller.node != id:
            raise FsError(E.DENIED, "rule=own-node")
        if len(data) > HEARTBEAT_MAX:
            raise FsError(E.TOOBIG, f"max={HEARTBEAT_MAX}")
        said = parse_heartbeat(data)
        role = node_of(hive, id).role
        if said.annex is not None and role != ANNEX:
            raise FsError(E.DENIED, f"rule=annex-role {role} has no devices for others")
        if "annex" in said.labels and (role, id) != (ANNEX, said.labels["annex"]):
            raise FsError(
                E.DENIED, f"rule=annex-role label annex: expected of {ANNEX} alone, and its own name"
            )
        await hive.hear(id, said)

    return Text(content, write=write)


def parse_heartbeat(data: bytes) -> Heartbeat:
    """What one write says. Raises FsError(E.SCHEMA)."""
    try:
        said = _heartbeats.decode(data)
    except msgspec.DecodeError as error:
        raise FsError(E.SCHEMA, str(error)) from error
    for text in (said.version, *said.labels, *said.labels.values()):
        if not text.isprintable():
            raise FsError(E.SCHEMA, f"{text!r}: expected a line that can be printed")
    return said


def _sessions(hive: Hive, id: str) -> Text:
    sessions = hive.sessions.by_id.values()
    return Text(lambda: "".join(f"{session.id}\n" for session in sessions if session.caller.node == id))


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "role": _record(lambda node: node.role),
    "principal": _record(lambda node: node.principal),
    "state": _record(lambda node: node.state),
    "trust": _record(lambda node: node.trust),
    "heartbeat": _heartbeat,
    "load": _said(lambda said: f"{said.load}\n"),
    "labels": _record(lambda node: "\n".join(f"{name} {value}" for name, value in node.labels.items())),
    "capacity": _record(lambda node: str(node.capacity)),
    "version": _record(lambda node: node.version),
    "sessions": _sessions,
}
