"""/gpu: the devices of annexes, who holds how much of them, and work for them.

    ctl                      W run; R usage. The reply is the job's id
    sources/ctl              W allow, forbid; R usage. The reply is the source's hash
    sources/<sha256>         R that this source may run: by whom it is allowed, since when, why; a JSON line
    <annex>/info.json        R its devices with what leases may have of each, its driver, release, state
    <annex>/health           R a line: online, suspect (a heartbeat is missing), lost (two are), left,
                             cordoned, draining; disabled: and why
    <annex>/load             R a line for each device: memory= and slots=, given of how much, leases=,
                             utilisation= of its time; then waiting= for leases, queue= on its machine
    <annex>/telemetry.jsonl  R its last 128 heartbeats, a JSON line each: seq, since the hive began, annex,
                             state, driver, memory_total, memory_free, utilisation, temperature (°C), queue,
                             time, devices; telemetry.jsonl@N those after number N, for ever
    <annex>/fallbacks.jsonl  R the last 1,000 jobs that were to run on it and went on elsewhere, a JSON line
                             each: job, annex, reason, time, from, pool, attempt, text, and as the job goes
                             on state, device, ended
    <annex>/ctl              W lease, renew, release, disable, enable; R usage
    <annex>/leases/<id>/     what somebody holds, or waits for
        state                R granted, waiting
        device, memory, slots, priority
                             R as it was given, or asked for
        until                R when it ends, or has waited enough; empty: with the attempt of its job
        holder, job, fence   R whose it is; empty for other tenants

run asks for a run of a kernel: it is a job of the topic gpu.run, in the pool gpu, and /jobs has all of it.
What is wrong with its kernel, its arguments' names and its numbers is told at once; shapes and dtypes are
looked at by the annex before anything is launched. Its inputs are artifacts, its results outputs of the job.
When no device can do it, it goes on on a CPU, by the pool gpu-cpu, unless fallback=refuse. A source that is
brought instead of a kernel runs if its hash is allowed, on GPUs alone.

lease holds so much of a device until its ttl is over, unless it is renewed; runs with lease= of the same
principal go within it and take nothing more. What a device has is never given twice, to jobs or leases; with
exclusive=true nobody else is on it. What is more than a device has is refused at once. With wait= the write
is answered when there is room; who waits comes in the order of priority, then of time, and nobody that wants
the same device overtakes. Leases end at their time, whoever is alive to hear it; fences only go on.

An annex says how often it is heard, every 30 s if it says nothing else. Suspect or lost, disabled or without
a device it gets no more jobs, and those that wait for it fall back. One whose connection ends before it has
said that it goes is suspect at once. disable gives nothing more and lets end what runs.

An annex is a node, and exists for whom that exists: for the hive's own tenant, or the only one that it works
for. It is served from what is written down and from heartbeats, also when the annex does not answer.

    echo run kernel=saxpy in=x:a.npy,y:b.npy set=alpha:2 > gpu/ctl
    echo lease memory=4GiB ttl=60s wait=10s > gpu/g1/ctl
    cat gpu/g1/health gpu/g1/load
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Stream, Text
from skep.fs.tree import Listing
from skep.namespaces.fallen import fallbacks
from skep.namespaces.gpu.asked import RUN, asked, submit_line
from skep.namespaces.gpu.beat import Beat
from skep.namespaces.gpu.core import WAITING, have, room_of, told
from skep.namespaces.gpu.record import Annex, Grant, Leased, Source, Waiter, used
from skep.namespaces.gpu.record import Asked as AskedFor
from skep.namespaces.gpu.said import path_of
from skep.namespaces.gpu.verbs import TABLES
from skep.namespaces.hive import ANNEX
from skep.namespaces.live import OF_ROLE, Hive
from skep.namespaces.order import HIVE_TENANT, actor_of
from skep.namespaces.outwaited import Said, any_waits, outwaited
from skep.namespaces.rows import Rows, fixed
from skep.native.kernels.arguments import ArgumentError
from skep.trace.clock import duration, rfc3339

SOURCES: Final = "sources/ctl"


def files(hive: Hive) -> Listing:
    """The tree of /gpu."""
    children = fixed(
        {
            "ctl": Ctl({RUN.name: RUN}, lambda caller, commands: run(hive, caller, commands)),
            "sources": _sources(hive),
        }
    )

    def walk(name: str, caller: Caller) -> Any:
        if name in children:
            return children[name]
        if not _sees(hive, caller, name):
            # Recorded alike, whether there is one or not: a record has a number in the ledger.
            raise FsError(E.MISSING, name, hidden=caller.tenant != HIVE_TENANT)
        return Rows(FILES, hive, name, hive.state.gpu.by_id[name].rev, AT)

    def names(caller: Caller) -> list[str]:
        return [*children, *(annex for annex in hive.state.gpu.by_id if _sees(hive, caller, annex))]

    return Listing(names, walk)


def _sees(hive: Hive, caller: Caller, annex: str) -> bool:
    if annex not in hive.state.gpu.by_id:
        return False
    return caller.node == annex or hive.state.sees_node(caller.tenant, annex)


def _annex(hive: Hive, id: str) -> Annex:
    """The annex. Raises FsError(E.MISSING) when it was removed since it was walked to."""
    annex = hive.state.gpu.by_id.get(id)
    if annex is None:
        raise FsError(E.MISSING, id)
    return annex


def _sources(hive: Hive) -> Listing:
    """A ctl of its own: who may write /gpu/ctl, an agent with a token for it, allows nothing by that."""
    children = fixed({"ctl": Ctl(TABLES[SOURCES], hive.writes(f"/gpu/{SOURCES}"))})

    def walk(name: str, caller: Caller) -> Any:
        source = hive.state.gpu.sources.get(name)
        return children.get(name) if source is None else Text(lambda caller: _allowed(name, source, caller))

    return Listing(lambda caller: [*children, *hive.state.gpu.sources], walk)


def _allowed(name: str, source: Source, caller: Caller) -> str:
    shown = {"source": f"sha256:{name}", "since": rfc3339(source.since_ns)}
    if caller.tenant == HIVE_TENANT:
        shown |= {"by": source.actor, "reason": source.reason}
    return _line(shown)


def _line(shown: object) -> str:
    return msgspec.json.encode(shown).decode() + "\n"


# commands


async def run(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Ask /jobs for the runs."""
    lines = [_submitted(hive, caller, command) for command in commands]
    if caller.tenant == HIVE_TENANT:
        # Pools are there for all: that one was made tells no tenant of another's asking.
        await hive.prepare(*OF_ROLE[ANNEX])
    return await hive.command(caller, "/jobs/ctl", lines)


def _submitted(hive: Hive, caller: Caller, command: Command) -> str:
    """The line of /jobs/ctl that asks for the run. Raises FsError."""
    at = f"line {command.number}: run"
    args = dict(command.args)
    if "lease" in args:
        annex = _annex_of(hive, caller, args["lease"])
        if args.setdefault("annex", annex) != annex:
            raise FsError(E.USAGE, f"{at}: annex={args['annex']}: lease={args['lease']} is of annex={annex}")
    source = _source_hash(hive, caller, args["source"], at) if "source" in args else ""
    try:
        return submit_line(args, asked(args, source))
    except ArgumentError as error:
        raise FsError(E.USAGE, f"{at}: {error}") from error


def _annex_of(hive: Hive, caller: Caller, lease: str) -> str:
    """Where the caller's lease is. Raises FsError(E.EXPIRED)."""
    holder = caller.tenant, actor_of(caller.principal, caller.node)
    for annex in hive.state.gpu.by_id.values():
        grant = annex.grants.get(lease)
        if grant is None or grant.job or grant.is_over(hive.clock.now_ns()):
            continue
        if (grant.given.tenant, grant.given.holder) == holder:
            return annex.id
    raise FsError(E.EXPIRED, f"lease={lease}: it is over, or none of yours")


def _source_hash(hive: Hive, caller: Caller, said: str, at: str) -> str:
    """The SHA-256, in hex, of a source that may run. Raises FsError."""
    hash = said.removeprefix("sha256:") if ctl.is_sha256(said) else ""
    hash = hash or hive.state.artifact_named(caller.tenant, said) or ""
    if not hash:
        raise FsError(E.USAGE, f"{at}: source={said}: no artifact was sealed under that name")
    if hash not in hive.state.gpu.sources:
        raise FsError(E.DENIED, f"rule=source-allowed source={hash}: no operator has allowed it")
    return hash


async def run_annex(hive: Hive, annex: str, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands; returns when they are done, and a lease that waits has been granted."""
    may_wait = any_waits(commands)
    write = hive.command(caller, f"{path_of(annex)}/ctl", [command.text for command in commands])
    if not may_wait:
        return await write

    def waits(lease: str) -> bool:
        return lease in _annex(hive, annex).waiters

    def withdraw(lease: str) -> Said:
        return path_of(annex), f"withdraw lease={lease}", caller.tenant

    reply, lease = await outwaited(hive, write, waits, withdraw)
    if not reply.startswith(f"{WAITING} "):
        return [reply]
    known = _annex(hive, annex)
    grant = known.grants.get(lease)
    if grant is None:
        room = room_of(commands[0].verb, commands[0].args)
        why = f"annex={annex} is disabled: {known.why_disabled}" if known.why_disabled else have(known, room)
        raise FsError(E.CONFLICT if known.why_disabled else E.QUOTA, why, trace=lease)
    return [f"{told(grant)} rev={known.rev} trace={lease}"]


# one annex


def _text(render: Callable[[Hive, str], str]) -> Callable[[Hive, str], Text]:
    """A row rendered when opened."""
    return lambda hive, id: Text(lambda: render(hive, id))


def _last(hive: Hive, id: str) -> Beat | None:
    """What it said last of its devices; None: nothing since the hive began."""
    heard = hive.heard(id)
    return None if heard is None else heard.said.annex


def _state(hive: Hive, id: str) -> str:
    """The word of its health."""
    state = hive.state.annex_state(id)
    return "disabled" if state == "online" and _annex(hive, id).why_disabled else state


def _health(hive: Hive, id: str) -> str:
    state = _state(hive, id)
    return f"{state}: {_annex(hive, id).why_disabled}\n" if state == "disabled" else f"{state}\n"


def _info(hive: Hive, id: str) -> str:
    annex = _annex(hive, id)
    node = hive.state.nodes.by_id[id]
    return _line(
        {
            "annex": id, "state": _state(hive, id), "disabled": annex.why_disabled, "driver": annex.driver,
            "version": node.version, "every": duration(annex.every_ns), "labels": node.labels,
            "devices": [
                {
                    "id": card.id, "kind": card.kind, "name": card.name, "uuid": card.uuid,
                    "memory": card.memory, "slots": card.slots,
                }
                for card in annex.cards
            ],
        }
    )  # fmt: skip


def _load(hive: Hive, id: str) -> str:
    annex, beat = _annex(hive, id), _last(hive, id)
    busy = {device.id: device.utilisation for device in beat.devices} if beat is not None else {}
    lines = []
    for card in annex.cards:
        given, rate = used(annex.on(card.id)), busy.get(card.id)
        told_rate = "" if rate is None else f" utilisation={rate:g}"
        lines.append(
            f"{card.id} memory={given.memory}/{card.memory} slots={given.slots}/{card.slots} "
            f"leases={given.leases}{told_rate}\n"
        )
    lines.append(f"waiting={len(annex.waiters)} queue={beat.queue if beat is not None else 0}\n")
    return "".join(lines)


def _telemetry(hive: Hive, id: str, after: int = 0) -> str:
    ring = hive.heartbeats.get(id)
    first, heard = (1, []) if ring is None else ring.read(after)
    return "".join(
        _beat(id, seq, each.time_ns, each.said.annex)
        for seq, each in enumerate(heard, first)
        if each.said.annex is not None
    )


class _Beating:
    """The heartbeats after number ``after``, as they come. They are counted anew when the hive begins: after
    more than there were comes the next."""

    def __init__(self, hive: Hive, id: str, after: int) -> None:
        self.hive = hive
        self.id = id
        self.after = min(after, self._last())

    def _last(self) -> int:
        ring = self.hive.heartbeats.get(self.id)
        return 0 if ring is None else ring.last

    async def next(self) -> bytes | None:
        while self.id in self.hive.state.gpu.by_id:
            lines, self.after = _telemetry(self.hive, self.id, self.after), self._last()
            if lines:
                return lines.encode()
            await self.hive.wait_news(self.id)
        return None

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


def _beat(id: str, seq: int, time_ns: int, beat: Beat) -> str:
    """A heartbeat as a record. Of several devices the sums of memory, the mean of what they are used and the
    highest temperature; null: none says."""
    rates = [each.utilisation for each in beat.devices if each.utilisation is not None]
    heats = [each.temperature for each in beat.devices if each.temperature is not None]
    return _line(
        {
            "seq": seq, "annex": id, "state": beat.state, "driver": beat.driver,
            "memory_total": sum(each.memory_total for each in beat.devices),
            "memory_free": sum(each.memory_free for each in beat.devices),
            "utilisation": sum(rates) / len(rates) if rates else None,
            "temperature": max(heats, default=None),
            "queue": beat.queue, "time": rfc3339(time_ns),
            "devices": [{"kind": each.kind} | msgspec.to_builtins(each) for each in beat.devices],
        }
    )  # fmt: skip


# leases


Held = Grant | Waiter


def _of(held: Held) -> Leased | AskedFor:
    return held.given if isinstance(held, Grant) else held.asked


def _until(held: Held) -> str:
    until_ns = held.until_ns if isinstance(held, Grant) else held.asked.until_ns
    return rfc3339(until_ns) if until_ns else ""


LEASE: Final[Mapping[str, Callable[[Held], str]]] = {
    "state": lambda held: "granted" if isinstance(held, Grant) else "waiting",
    "device": lambda held: _of(held).device,
    "memory": lambda held: str(_of(held).memory),
    "slots": lambda held: str(_of(held).slots),
    "priority": lambda held: str(_of(held).priority),
    "until": _until,
}
# Whose it is, is told to its tenant and to the annex.
OWN: Final[Mapping[str, Callable[[Held], str]]] = {
    "holder": lambda held: _of(held).holder,
    "job": lambda held: held.job if isinstance(held, Grant) else "",
    "fence": lambda held: str(held.given.fence) if isinstance(held, Grant) else "",
}


def _leases(hive: Hive, annex: str) -> Listing:
    def held(name: str) -> Held | None:
        known = _annex(hive, annex)
        return known.grants.get(name) or known.waiters.get(name)

    def file(name: str, render: Callable[[Held], str], own: bool) -> Text:
        def content(caller: Caller) -> str:
            found = held(name)
            if found is None:
                raise FsError(E.MISSING, name)
            hidden = own and caller.node != annex and _of(found).tenant != caller.tenant
            text = "" if hidden else render(found)
            return f"{text}\n" if text else ""

        return Text(content)

    def walk(name: str, caller: Caller) -> Any:
        if held(name) is None:
            return None
        return {
            **{each: file(name, render, False) for each, render in LEASE.items()},
            **{each: file(name, render, True) for each, render in OWN.items()},
        }

    return Listing(lambda caller: [*_annex(hive, annex).grants, *_annex(hive, annex).waiters], walk)


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "info.json": _text(_info),
    "health": _text(_health),
    "load": _text(_load),
    "telemetry.jsonl": _text(_telemetry),
    "fallbacks.jsonl": fallbacks,
    "ctl": lambda hive, id: Ctl(
        TABLES["*/ctl"], lambda caller, commands: run_annex(hive, id, caller, commands)
    ),
    "leases": _leases,
}
AT: Final[Mapping[str, Callable[[Hive, str, int], Any]]] = {
    "telemetry.jsonl": lambda hive, id, after: Stream(lambda caller: _Beating(hive, id, after)),
}
