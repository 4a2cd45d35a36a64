"""Where a job would go: what /pools/plan answers. Nothing is written down.

The line is decided as a submit would be, and its outcome thrown away; who would be given the job is asked of
what the lease will ask. So the plan is what happens, while nothing else does.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from skep.fs.ctl import LINE_MAX, check, parse_line
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.checked import checked
from skep.namespaces.hive import HiveRules
from skep.namespaces.jobs.placement import Fit, Wanted, chosen, told, verdicts, wanted_of
from skep.namespaces.jobs.queues import rank_ns
from skep.namespaces.jobs.record import Submitted
from skep.namespaces.jobs.usage import bound_ns
from skep.namespaces.jobs.verbs import SUBMIT, TABLES
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT, actor_of
from skep.trace.entry import Line
from skep.trace.rules import Refusal

NODES_MAX: Final = 256  # told of in one plan; of the others how many there are.
AHEAD_MAX: Final = 10_000  # jobs that wait before it are counted up to here: each is looked at.

LIMITED: Final = "its tenant, or its actor, has as many jobs held as its limits let it"


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pool or a node. ``rejected``: why it is not the one."""

    pool: str = ""
    node: str = ""
    chosen: bool = False
    rejected: str = ""


class Plan(msgspec.Struct, frozen=True):
    """``worker``: who gets it at once, "": nobody, or one that the caller does not see; ``at_once`` tells.
    ``ahead``: how many of its tenant's jobs wait before it, AHEAD_MAX at most; ``more``: nodes that are not
    in the list.

    ``job``: the one that its key is used for, else ""; ``refused``: why submit would refuse it."""

    pool: str
    worker: str
    at_once: bool
    ahead: int
    pools: list[Row]
    workers: list[Row]
    more: int = 0
    job: str = ""
    refused: str = ""


class Nodes(NamedTuple):
    chosen: str
    rows: list[Row]
    more: int


async def plan(hive: Hive, caller: Caller, said: bytes) -> bytes:
    """The plan as a JSON line, of a submit as its line or its arguments, or as an object. Raises FsError.

    It counts as a line to a ctl file: it is decided like one."""
    hive.limits.command(caller, 1)
    if len(said) > LINE_MAX:
        raise FsError(E.TOOBIG, f"max={LINE_MAX} bytes, this has {len(said)}")
    line = _line(said)
    try:
        command = parse_line(line)
        if command.verb == SUBMIT.name:
            check(command, TABLES["ctl"])
        (line,) = await checked(hive, caller, [command])
    except FsError as error:
        return _told(Plan("", "", False, 0, [], [], refused=f"{error.kind.name}: {error.text}"))
    return _told(planned(hive, caller, line))


def _told(plan: Plan) -> bytes:
    return msgspec.json.encode(plan) + b"\n"


def _line(said: bytes) -> str:
    try:
        text = said.decode().strip()
    except UnicodeDecodeError as error:
        raise FsError(E.USAGE, f"byte {error.start}: not UTF-8") from error
    if text.startswith("{"):
        try:
            found = msgspec.json.decode(text, type=dict[str, object])
        except msgspec.DecodeError as error:
            raise FsError(E.USAGE, str(error)) from error
        return msgspec.json.encode({"verb": "submit"} | found).decode()
    return text if text.split(" ", 1)[0] == "submit" else f"submit {text}"


def planned(hive: Hive, caller: Caller, line: str) -> Plan:
    """What would become of the line, now. Raises FsError when it is no submit."""
    command = parse_line(line)
    if command.verb != "submit":
        raise FsError(E.USAGE, f"{command.verb}: expected the arguments of a submit")
    state, now_ns = hive.state, hive.clock.now_ns()
    actor = actor_of(caller.principal, caller.node)
    written = Line(
        actor, caller.role, caller.tenant, "/jobs/ctl", (line,), now_ns, hive.clock.new_id(), caller.token
    )
    wanted = wanted_of(caller.tenant, command.args)
    try:
        decided = HiveRules().decide(state, written, 0)
        pools = _pools(hive, wanted)
    except Refusal as error:
        return Plan("", "", False, 0, _pools_if_told(hive, wanted), [], refused=f"{error.code}: {error.text}")
    found = [event for event in decided.events if isinstance(event, Submitted)]
    if not found:
        job = state.jobs.by_id.get(decided.reply)
        return Plan("" if job is None else job.request.pool, "", False, 0, [], [], job=decided.reply)
    event = found[0]
    nodes = _nodes(hive, event, now_ns)
    ageing_ns = state.ageing_ns(event.pool)
    rank = rank_ns(now_ns, event.priority, ageing_ns)
    return Plan(
        event.pool,
        nodes.chosen if state.sees_node(caller.tenant, nodes.chosen) else "",
        bool(nodes.chosen),
        state.jobs.queues.count_before(event.pool, event.tenant, rank, ageing_ns, AHEAD_MAX),
        pools,
        nodes.rows,
        nodes.more,
    )


def _pools(hive: Hive, wanted: Wanted) -> list[Row]:
    found = verdicts(hive.state, wanted)
    best = chosen(found)
    return [Row(pool=each.pool, chosen=each is best, rejected=told(each, best)) for each in found]


def _pools_if_told(hive: Hive, wanted: Wanted) -> list[Row]:
    try:
        return _pools(hive, wanted)
    except Refusal:
        return []


def _nodes(hive: Hive, event: Submitted, now_ns: int) -> Nodes:
    """Who gets the job at once ("": nobody), and why the others do not; the tenant's own, or everybody's."""
    state, leases = hive.state, hive.leases
    ranked = leases.ranked(event.pool)
    readers = dict.fromkeys(node for node, tenant in ranked if tenant in (HIVE_TENANT, event.tenant))
    room = state.room(event.tenant, event.actor, now_ns, bound_ns(event))
    fits: dict[frozenset[str], Fit] = {}

    def why(node: str) -> str:
        offers = state.offers(node)
        fit = fits.setdefault(offers, Fit(state, event.pool, offers, now_ns))
        return (
            leases.why_not(event.pool, node)
            or fit.missing(event.tenant, event.requires)
            or ("" if room else LIMITED)
            or ("" if node in readers else "it does not wait for a job of the pool")
        )

    best = next((node for node in readers if not why(node)), "")
    nodes = dict.fromkeys((*readers, *state.nodes.by_id))
    seen = [node for node in nodes if state.sees_node(event.tenant, node)]
    rows = [
        Row(node=node, chosen=node == best, rejected=_rejected(why(node), node, best))
        for node in seen[:NODES_MAX]
    ]
    return Nodes(best, rows, len(seen) - len(rows))


def _rejected(why: str, node: str, best: str) -> str:
    return why or ("" if node == best else "another has less to do, or has waited longer")
