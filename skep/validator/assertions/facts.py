"""A trace as facts: what happened, each by its kind and its fields, for assertions.

Of a ledger's entry: ``write``, then each of its events by its type, ``job.leased``. Of a conversation: its
messages by their names, ``Twrite``. docs/ASSERTIONS.md has their fields.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

import msgspec

from skep.fs import messages as m
from skep.fs.errors import DENIALS, E, FsError, from_oserror, from_reply
from skep.fs.messages import NUMBERS
from skep.fs.ninept import Header
from skep.namespaces.hive import Event
from skep.namespaces.order import HIVE, actor_of, node_of
from skep.trace.entry import VERSION, Entry, entry_decoder
from skep.trace.ledger import LedgerTampered
from skep.validator.conversation.talk import Said

Value = str | int
Names = Mapping[str, Callable[[str], bool]]
Outside = Callable[[str, str, Names], bool]
"""Whether a path lies where a role, whose names stand for these, may change nothing."""

_ERRNOS: Final = {kind.name: kind.value.errno for kind in E}
_DENIALS: Final = {kind.name for kind in DENIALS}
_DENIED_ERRNOS: Final = {kind.value.errno for kind in DENIALS}


EVENT: Final = frozenset({"seq", "time", "trace", "actor", "role", "tenant", "path", "by", "type"})
_WRITE: Final = frozenset({
    "seq", "time", "trace", "token", "actor", "role", "tenant", "node", "path", "line", "verb", "lines",
    "code", "text", "errno", "ok", "denied", "events", "outside",
})  # fmt: skip
MESSAGE: Final = frozenset({
    "seq", "time", "record", "session", "actor", "role", "node", "tenant", "tag", "path", "hidden",
    "errno", "code", "denied", "ok", "answer", "to", "outside",
})  # fmt: skip
_MORE: Final = {"log.denied": frozenset({"errno"}), "Rread": frozenset({"count"})}


def _fields(kind: Any, name: str, common: frozenset[str]) -> frozenset[str]:
    return common | frozenset(kind.__struct_fields__) | _MORE.get(name, frozenset())


_TAGS: Final = {str(kind.__struct_config__.tag): kind for kind in get_args(Event)}
LEDGER_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "write": _WRITE, **{name: _fields(kind, name, EVENT) for name, kind in _TAGS.items()}
}  # fmt: skip
TALK_KINDS: Final[Mapping[str, frozenset[str]]] = {
    kind.__name__: _fields(kind, kind.__name__, MESSAGE) for kind in NUMBERS
}
KINDS: Final = {**LEDGER_KINDS, **TALK_KINDS}
"""The fields of each kind of fact: of lists and of what is within, the first part of their names."""


class Fact(NamedTuple):
    """``where``: as people find it, ``entry 12``. What a field has is text, a number or "" for no."""

    kind: str
    where: str
    time_ns: int
    fields: Mapping[str, Value]


class LedgerFacts:
    """The facts of a ledger's entries, which come in order from the first on."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._decoder: msgspec.json.Decoder[Entry[dict[str, Any]]] = entry_decoder(dict[str, Any])
        self._leased: defaultdict[str, set[str]] = defaultdict(set)  # node -> jobs it was leased
        self._own: defaultdict[str, set[str]] = defaultdict(set)  # actor -> jobs it submitted
        self._names: dict[str, Names] = {}  # by actor

    def of(self, seq: int, body: bytes) -> Iterator[Fact]:
        """Raises LedgerTampered."""
        try:
            entry = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise LedgerTampered(f"entry {seq}: {error}") from error
        if entry.v != VERSION or entry.seq != seq:
            raise LedgerTampered(f"entry {seq}: says it is entry {entry.seq} of version {entry.v}")
        where = f"entry {seq}"
        yield Fact("write", where, entry.time, self._write(entry))
        about: dict[str, Value] = {
            "seq": seq, "time": entry.time, "trace": entry.trace, "actor": entry.actor, "role": entry.role,
            "tenant": entry.tenant, "path": entry.path, "by": entry.actor,
        }  # fmt: skip
        for event in entry.events:
            kind = event.get("type", "?")
            fields = {**about, **_flat(event)}
            if kind == "log.denied":
                fields["actor"] = actor_of(str(event.get("principal", "")), str(event.get("node", "")))
                fields["errno"] = _ERRNOS.get(str(event["code"]), "*" if event["code"] == "*" else 0)
            yield Fact(kind, where, entry.time, fields)
            if kind == "job.leased":
                self._leased[str(event["node"])].add(str(event["job"]))
            elif kind == "job.submitted":
                self._own[str(event["actor"])].add(str(event["job"]))

    def _write(self, entry: Entry[dict[str, Any]]) -> dict[str, Value]:
        code = "" if entry.outcome.code == "ok" else entry.outcome.code
        return {
            "seq": entry.seq, "time": entry.time, "trace": entry.trace, "token": entry.token,
            "actor": entry.actor, "role": entry.role, "tenant": entry.tenant, "node": node_of(entry.actor),
            "path": entry.path, "line": entry.line, "verb": entry.line.partition(" ")[0],
            "lines": entry.line.count("\n") + 1, "code": code, "text": entry.outcome.text,
            "errno": _ERRNOS.get(code, 0), "ok": "" if code else "yes",
            "denied": "yes" if code in _DENIALS else "", "events": len(entry.events),
            "outside": "yes" if self._is_outside(entry) else "",
        }  # fmt: skip

    def _is_outside(self, entry: Entry[dict[str, Any]]) -> bool:
        if entry.role == HIVE:
            return False
        names = self._names.get(entry.actor) or self._names.setdefault(entry.actor, self._named(entry.actor))
        return self._outside(entry.role, entry.path, names)

    def _named(self, actor: str) -> Names:
        node, leased, own = node_of(actor), self._leased[node_of(actor)], self._own[actor]
        return names(node, leased.__contains__, own.__contains__)


def names(node: str, leased: Callable[[str], bool], own: Callable[[str], bool]) -> Names:
    """What a manifest's variables stand for. Inputs and annexes are not looked up: any name is one."""
    return {
        "node": lambda name: bool(node) and name == node,
        "leased": lambda name: bool(node) and leased(name),
        "own": own,
        "input": lambda name: True,
        "annex": lambda name: True,
    }


def _flat(value: Mapping[str, Any], at: str = "") -> dict[str, Value]:
    """The fields of an event. What is within has whole names, ``key.id``; of a list, what is in it, and the
    first and the last of it, ``fences.last``."""
    found: dict[str, Value] = {}
    for name, of in value.items():
        if isinstance(of, dict):
            found.update(_flat(of, f"{at}{name}."))
        elif isinstance(of, list):
            found[at + name] = ",".join(map(str, of))
            if of and isinstance(of[0], (str, int)):
                found[f"{at}{name}.first"], found[f"{at}{name}.last"] = of[0], of[-1]
        elif of is not None:
            found[at + name] = ("yes" if of else "") if isinstance(of, bool) else of
    return found


def talk_facts(header: Header, talk: Iterable[Said], outside: Outside) -> Iterator[Fact]:
    """The facts of a conversation. What asks is told before what answers it, and knows its answer."""
    said = list(talk)
    answers = {each.to.n: each for each in said if each.to is not None}
    any_job = names(header.node, lambda name: True, lambda name: True)
    for each in said:
        answer = each if not each.asks else answers.get(each.n)
        errno, code = _error(answer.message if answer is not None else None)
        fields: dict[str, Value] = {
            "seq": each.seq, "time": each.time_ns, "record": each.n, "session": header.session,
            "actor": actor_of(header.principal, header.node), "role": header.role, "node": header.node,
            "tenant": header.tenant, "tag": each.tag, "path": each.path, "hidden": each.hidden,
            "errno": errno, "code": code, "denied": "yes" if errno in _DENIED_ERRNOS else "",
            "ok": "" if errno or answer is None else "yes",
            "answer": answer.kind if answer is not None and each.asks else "",
            "to": each.to.kind if each.to is not None else "",
            "outside": "yes" if each.path and outside(header.role, each.path, any_job) else "",
        }  # fmt: skip
        yield Fact(each.kind, f"record {each.n}", each.time_ns, {**fields, **_plain(each.message, fields)})


def _plain(message: m.Message | None, known: Mapping[str, Value]) -> dict[str, Value]:
    """The message's own fields, as far as they are numbers, names or text."""
    found: dict[str, Value] = {}
    for name in message.__struct_fields__ if message is not None else ():
        value = getattr(message, name)
        if isinstance(value, memoryview):
            found["count"], value = len(value), bytes(value).decode("utf-8", "replace")
        if isinstance(value, tuple) and name == "wname":
            value = "/".join(value)
        if isinstance(value, (str, int)) and name not in known:
            found[name] = value
    return found


def _error(answer: m.Message | None) -> tuple[int, str]:
    """Errno and class of an answer; 0 and "" when it is no error."""
    match answer:
        case m.Rlerror(ecode=ecode):
            return ecode, from_oserror(OSError(ecode, "")).kind.name
        case m.Rerror(ename=ename, errno=errno):
            error: FsError = from_reply(ename, errno or None)
            return error.kind.value.errno, error.kind.name
    return 0, ""
