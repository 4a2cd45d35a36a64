"""The envelope of a request: what is said of a job besides its work, within bounds. Pure.

What it costs, what it does, whom it is for, what it is part of, and the trace that it continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.ctl import pointer
from skep.fs.errors import E
from skep.namespaces.jobs import inputs
from skep.namespaces.jobs.record import Submitted
from skep.namespaces.jobs.verbs import PRIORITY
from skep.namespaces.order import actor_type, refusal
from skep.trace.clock import duration, parse_duration

LABELS_MAX: Final = 64  # of one job; they are shown with it wherever it is.
LABEL_MAX: Final = 256  # bytes of a label's value; its name is at most a file's.
WORDS_MAX: Final = 64  # of requires and risk
ACTOR_MAX: Final = 512  # bytes of an actor's id
RETRIES_MAX: Final = 100  # attempts are kept in the job's record, all of them.
NS_MAX: Final = (1 << 62) - 1  # durations and times are added up, and must stay numbers of 64 bits.

# What a submit says, and the field that it becomes; the words stay as they are.
_WORDS: Final[Mapping[str, str]] = {
    "capability": "capability", "pack": "pack", "actor-id": "actor_id", "actor-type": "actor_type",
    "workflow": "workflow", "run": "run", "step": "step", "traceparent": "traceparent",
    "tracestate": "tracestate", "fallback": "fallback",
}  # fmt: skip
_DURATIONS: Final[Mapping[str, str]] = {
    "timeout": "timeout_ns", "deadline": "deadline_ns", "runtime": "runtime_ns",
    "patience": "patience_ns",
}  # fmt: skip
_NUMBERS: Final[Mapping[str, str]] = {**_DURATIONS, "priority": "priority", "retries": "retries"}
# Where /config says what a submit, its topic's map and its pool do not; the first that says something.
_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "timeout": ("topics/{}/timeout", "jobs/timeout"),
    "deadline": ("jobs/deadline",),
    "runtime": (),
    "patience": (),
    "retries": ("topics/{}/retries", "jobs/retries"),
    "priority": (),
}
_DEFAULTS: Final[Mapping[str, int]] = {"priority": PRIORITY}
# What no job gets more of: who asks for more is refused, who does not ask gets no more than this.
_LIMITS: Final[Mapping[str, str]] = {
    "runtime": "limits/runtime", "retries": "limits/retries", "priority": "jobs/priority-max",
}  # fmt: skip


NONE: Final = -1  # among numbers: there is none


class World(Protocol):
    def setting(self, scope: str, key: str) -> object:
        """What /config has for the key in the scope; None: nothing. Raises Refusal when it cannot be read."""

    def of_settings(self, key: tuple[str, ...], found: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """What ``found`` makes of settings and of nothing else, remembered as ``key`` until one changes."""


def scope_of(tenant: str, workflow: str, step: str) -> str:
    """The scope of /config that a job is in."""
    if not workflow:
        return tenant
    names = (tenant, workflow, step)
    return "/".join(name for name in names if name)


def fields(own: Mapping[str, str], defaults: Mapping[str, str], scope: str, world: World) -> dict[str, Any]:
    """The fields of Submitted that the arguments of a submit come to; raises Refusal.

    ``own`` are those of the line, ``defaults`` what its topic's map and its pool say where it says nothing:
    of them no more is taken than limits let it have."""
    args = {**defaults, **own} if defaults else own
    labels = ctl.labels(args["labels"]) if "labels" in args else {}
    _check(args, labels)
    found: dict[str, Any] = {_WORDS[name]: args[name] for name in args.keys() & _WORDS.keys()}
    topic = args["topic"]
    bounds = world.of_settings(("bounds", scope, topic), lambda: _bounds(scope, topic, world))
    for (name, field), unsaid, most in zip(_NUMBERS.items(), bounds[::2], bounds[1::2], strict=True):
        found[field] = _bounded(name, own, args[name], most) if name in args else unsaid
    found["labels"] = labels
    found["requires"] = _sorted(args, "requires")
    found["risk"] = _sorted(args, "risk")
    if "bytes" in args:
        found["bytes_max"] = int(args["bytes"])
    return found


def _bounds(scope: str, topic: str, world: World) -> tuple[int, ...]:
    """Two of each number: what is configured (0: nothing is), no more than the limit, and the limit."""
    found = []
    for name in _NUMBERS:
        unsaid = _configured(name, scope, world, topic)
        most = world.setting(scope, _LIMITS[name]) if name in _LIMITS else None
        found += [_least(name, unsaid, most), most] if isinstance(most, int) else [unsaid, NONE]
    return tuple(found)


def _bounded(name: str, own: Mapping[str, str], said: str, most: int) -> int:
    """What is said, and no more than the limit."""
    found = parse_duration(said) if name in _DURATIONS else int(said)
    if most == NONE:
        return found
    if name in own and found > most:
        shown = duration(most) if name in _DURATIONS else most
        raise refusal(E.QUOTA, f"{name} have={said} max={shown}")
    return _least(name, found, most)


def _least(name: str, found: int, most: int) -> int:
    # A duration of 0 has no end.
    return min(found or most, most) if name in _DURATIONS else min(found, most)


def _configured(name: str, scope: str, world: World, topic: str) -> int:
    for key in _SETTINGS[name]:
        found = world.setting(scope, key.format(topic))
        if isinstance(found, int):
            return found
    return _DEFAULTS.get(name, 0)


def _sorted(args: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(sorted(ctl.listed(args[name]))) if name in args else ()


def _check(args: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Refuse what is beyond its bounds; the table of verbs has been asked for the rest."""
    if args.keys().isdisjoint(_CHECKED):
        return
    if len(labels) > LABELS_MAX:
        raise _refused("labels", f"expected {LABELS_MAX} or fewer, not {len(labels)}")
    for name, value in labels.items():
        if not ctl.is_name(name) or len(value.encode()) > LABEL_MAX:
            raise _refused("labels", f"{name[:LABEL_MAX]}: expected a name, and {LABEL_MAX} bytes at most")
    for name in ("requires", "risk"):
        if len(ctl.listed(args.get(name, ""))) > WORDS_MAX:
            raise _refused(name, f"expected {WORDS_MAX} words or fewer")
    for name in _DURATIONS:
        if name in args and not 0 < parse_duration(args[name]) <= NS_MAX:
            raise _refused(name, f"{args[name]}: expected more than nothing, and less than a century")
    if int(args.get("retries", 0)) > RETRIES_MAX:
        raise _refused("retries", f"{args['retries']}: expected {RETRIES_MAX} or less")
    if len(args.get("actor-id", "").encode()) > ACTOR_MAX or args.get("actor-id") == "":
        raise _refused("actor-id", f"expected 1 to {ACTOR_MAX} bytes")
    for name, needed in (("tracestate", "traceparent"), ("step", "workflow"), ("run", "workflow")):
        if name in args and needed not in args:
            raise _refused(name, f"expected {needed} with it")


# Arguments that have bounds, or need others.
_CHECKED: Final = frozenset(
    {"labels", "requires", "risk", *_DURATIONS, "retries", "actor-id", "tracestate", "step", "run"}
)


def _refused(name: str, why: str) -> Exception:
    return refusal(E.USAGE, f"submit: {pointer(name)}: {why}")


def arguments(request: Submitted) -> dict[str, str]:
    """What was submitted, as arguments of submit, its defaults and the artifacts it named found out."""
    args = {"topic": request.topic, "priority": str(request.priority), "retries": str(request.retries)}
    if request.key:
        args["key"] = request.key
    if request.labels:
        args["labels"] = msgspec.json.encode(request.labels).decode()
    for name, words in (("requires", request.requires), ("risk", request.risk)):
        if words:
            args[name] = ",".join(words)
    for name, field in _DURATIONS.items():
        if length_ns := getattr(request, field):
            args[name] = duration(length_ns)
    if request.bytes_max is not None:
        args["bytes"] = str(request.bytes_max)
    args |= {name: said for name, field in _WORDS.items() if (said := getattr(request, field))}
    if request.artifact:
        args["artifact"] = request.artifact
    elif request.input is not None:
        args["input"] = request.input
    if request.inputs:
        args["inputs"] = inputs.said(request.inputs)
    return args


def shown(request: Submitted) -> dict[str, object]:
    """The envelope as request.json has it, as far as anything is said."""
    found = shown_to_worker(request)
    found |= {name: duration(ns) for name, field in _DURATIONS.items() if (ns := getattr(request, field))}
    if request.retries:
        found["retries"] = request.retries
    return found


def shown_to_worker(request: Submitted) -> dict[str, object]:
    """What of it a lease has."""
    found: dict[str, object] = {"requires": request.requires, "risk": request.risk}
    found |= {field: getattr(request, field) for field in _WORDS.values()}
    found = {name: value for name, value in found.items() if value}
    if request.bytes_max is not None:
        found["bytes"] = request.bytes_max
    return found


def type_of(request: Submitted) -> str:
    """What kind of actor the job is done for."""
    return request.actor_type or actor_type(request.role)
