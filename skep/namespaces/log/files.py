"""/log: what happened.

    trace/live.jsonl           R the ledger up to now, a JSON line for each entry; live.jsonl@N those after
                               ledger number N, for ever, with {"seq":N} when nothing comes
    trace/checkpoint           R how many entries there are and their tree's root, signed: tlog-checkpoint
    trace/keys                 R a line for each key that signs or signed checkpoints: the key, its state
    trace/handovers            R the notes by which one key vouched for the next
    trace/tile/<L>/<N>         R hashes of the tree, 256 a file; <N>.p/<W> the first W of them: tlog-tiles
    trace/tile/entries/<N>     R the entries themselves, 256 a file. For operators and validators alone
    trace/snapshot             R the signed head of the newest snapshot of the state; empty: there is none
    trace/snapshots/<N>        R the snapshot of the first N entries; SNAPSHOTS.md has the format. The newest
                               two are kept. For operators and validators alone
    trace/proof/inclusion      transaction: W entry=N, R a tlog-proof that entry N is in the checkpoint
    trace/proof/consistency    transaction: W old=N, R that the checkpoint continues that of N entries;
                               with size=M that of M entries does
    trace/agreed               R the last checkpoint that enough witnesses have cosigned, with their lines
    trace/witness/ctl          W add, remove, quorum; watch, unwatch, clear; and from who cannot cosign,
                               disagree; R usage
    trace/witness/status       R the quorum and what is agreed, then a line for each witness: agrees, behind,
                               missing or disagrees; what it cosigned and when, its key, why
    trace/witness/offered@N    R the checkpoint that is to be cosigned by who has cosigned N entries, as an
                               add-checkpoint of tlog-witness; waits until there is one
    trace/witness/add-cosignature  transaction: W an offered checkpoint with cosignatures, R how many it has
    trace/witness/key          R what this hive cosigns other logs with, those that ctl was told to watch
    trace/witness/add-checkpoint  transaction: W the next checkpoint of such a log, as tlog-witness has it,
                               R a cosignature, or the size that it should have continued
    trace/witness/origins/<hash>/checkpoint  R the last that was cosigned of each
    trace/witness/splits/<id>  R two checkpoints of one that cannot both be true
    trace/ctl                  W record session=ID on|off, record principal=NAME on|off; R usage
    trace/recordings           R a line for each recording that is being made or ordered: session, principal,
                               since when, messages and bytes so far. For operators and validators alone
    trace/sessions/<id>.9pt    R a recorded conversation; CONVERSATIONS.md has the format. For the same, of
                               their tenant's sessions; the hive's own read all
    net_trace_secure9p.log     R what was refused, a JSON line for each kind and window of time;
                               net_trace_secure9p.log@N as above. For operators and validators alone
    validator/<id>.json        R the report of a run of the validator. For the hive's own auditors
    boot/starts                R a line for each stage of the last starts of this hive's process: preboot,
                               boot, online, shutdown; when it began, how long it took, the hash of
                               /boot/transcript. For the hive's own auditors
    boot/runs/<id>.json        R the timing of a run of the boot lab. For its tenant
    boot/elf_checks/<sha256>.json  R the layout of a file that was booted, or was checked elsewhere: as
                               `skep boot check --out` writes it, sealed under that name; .json.sig its
                               signature, which says what it is worth. For its tenant
    denials                    R lines of operation, class of error, how often. For the hive's own auditors

A line of the trace has seq, time, trace, actor, role, tenant, path, line, outcome, events. A line of what was
refused has seq, time, trace (what the refused were told, but for what is hidden from them), peer, principal,
role, node, tenant, op (connect, auth, attach, walk, open, read, write, create, remove, wstat …), path as it
was asked for, canonical, code, rule, why, count, first, last; "*" stands for many of a flood. Commands that
were refused are entries of the trace, and in the log as write, without a peer: the entry has the principal.

The tree is of all tenants' entries, and nobody outside the hive's own tenant reads it, from checkpoint to
proof. Ledger number N is index N-1 there. `skep verify` checks what is there; TRACE.md has the formats.

Entries of other tenants are left out, so the numbers have gaps; what is no tenant's, like a connection
refused, is the hive's own. Nobody can write, cut or remove any of this: it is made of the ledger's entries.

    grep '"op":"walk"' log/net_trace_secure9p.log
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from skep.fs.errors import DENIALS, E, FsError
from skep.fs.messages import QT
from skep.fs.node import Caller, Change
from skep.fs.shapes import Stream, Text
from skep.fs.tree import Dir
from skep.namespaces.boot import files as boot
from skep.namespaces.evidence import Evidence
from skep.namespaces.follow import AUDITORS, Feed, Plain, trace
from skep.namespaces.live import Hive
from skep.namespaces.log.core import LOG
from skep.namespaces.log.cosigned import witness_files
from skep.namespaces.log.denials import rule_of
from skep.namespaces.log.quorum import Quorum
from skep.namespaces.log.snapshots import snapshot_files
from skep.namespaces.log.taped import taped_files
from skep.namespaces.log.tree import evidence_files
from skep.namespaces.order import HIVE, HIVE_TENANT, node_of
from skep.namespaces.rows import Followed
from skep.namespaces.validator import files as validator
from skep.trace.clock import rfc3339

Renderer = Callable[[Hive, Caller], Callable[[Plain], bytes]]
DENIED: Final = "log.denied"
_DENIALS: Final = frozenset(kind.name for kind in DENIALS)


class Kept(Stream):
    """A stream of what is written down already. Other streams let themselves be truncated, as ctl files
    must; here that would look as if it had happened."""

    qtype = QT.APPEND

    def setattr(self, change: Change, caller: Caller) -> None:
        raise FsError(E.READONLY, "the ledger is not to be changed")


def files(hive: Hive) -> Dir:
    """The tree of /log."""

    def kept(render: Renderer, after: int | None = None) -> Kept:
        """What ``render`` makes of the entries, to the present; after ``after``: for ever."""
        if after is None:
            return Kept(lambda caller: Feed(hive, 0, hive.turn.seq, render(hive, caller)))
        return Kept(lambda caller: Feed(hive, after, None, render(hive, caller)))

    past: dict[str, Any] = {LOG: kept(refusals), "denials": Text(lambda caller: counts(hive, caller))}
    evidence = Evidence(hive)
    served = (
        {"live.jsonl": kept(trace)}
        | evidence_files(evidence)
        | snapshot_files(hive)
        | witness_files(Quorum(evidence))
        | taped_files(hive)
    )
    past["validator"] = validator.reports(hive)
    past["boot"] = boot.records(hive)
    past["trace"] = Followed(served, {"live.jsonl": lambda seq: kept(trace, seq)})
    return Followed(past, {LOG: lambda seq: kept(refusals, seq)})


def counts(hive: Hive, caller: Caller) -> str:
    """Lines ``op code count``."""
    _check_auditor(caller)
    if caller.tenant != HIVE_TENANT:
        raise FsError(E.DENIED, "rule=hive-tenant these are all tenants' together")
    found = sorted(hive.state.log.counts.items())
    return "".join(f"{op} {code} {count}\n" for (op, code), count in found)


def refusals(hive: Hive, caller: Caller) -> Callable[[Plain], bytes]:
    """Renders what was refused, as far as it is of the caller's tenant."""
    _check_auditor(caller)

    def render(entry: Plain) -> bytes:
        if (entry.tenant or HIVE_TENANT) != caller.tenant:
            return b""
        if entry.outcome.code in _DENIALS and entry.role != HIVE:
            return _line(entry, _of_entry(entry))
        return b"".join(_line(entry, _of_event(event)) for event in entry.events if event["type"] == DENIED)

    return render


def _check_auditor(caller: Caller) -> None:
    if caller.role not in AUDITORS:
        raise FsError(E.DENIED, f"rule=auditors {caller.role} is none")


def _line(entry: Plain, said: dict[str, Any]) -> bytes:
    head = {"seq": entry.seq, "time": rfc3339(entry.time)}
    return msgspec.json.encode(head | said) + b"\n"


def _of_event(event: dict[str, Any]) -> dict[str, Any]:
    names = ("peer", "principal", "role", "node", "tenant", "op", "path", "canonical", "code", "rule", "why")
    said: dict[str, Any] = {"trace": event["id"]} | {name: event.get(name, "") for name in names}
    return said | {name: event[name] for name in ("count", "first", "last")}


def _of_entry(entry: Plain) -> dict[str, Any]:
    code = entry.outcome.code
    rule, why = rule_of(code, entry.outcome.text.removeprefix(E[code].value.text).removeprefix(": "))
    at = rfc3339(entry.time)
    return {
        "trace": entry.trace, "peer": "", "principal": entry.actor.partition("#")[0], "role": entry.role,
        "node": node_of(entry.actor), "tenant": entry.tenant, "op": "write", "path": entry.path,
        "canonical": entry.path, "code": code, "rule": rule, "why": why, "count": 1, "first": at, "last": at,
    }  # fmt: skip
