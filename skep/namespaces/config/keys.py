"""The keys that a configuration has: a table, the kinds of their values, and what tighter means for each.

A key is its path in the document, ``pools/gpu/lease``; ``*`` in the table stands for one name. A value is an
int (numbers as they are, bytes, durations in ns), a bool, a str or a tuple of words; None: there is no limit,
or none is named. What tighter means is its row's ``tight``:

    less       numbers and durations: the smaller is the tighter, and any is tighter than none
    more       the larger is
    shrink     sets, where fewer words are allowed: those that both have, in the outer one's order
    grow       sets, where more words are asked for: those that either has
    false      bools, where true allows something: false if one of them is
    true       bools, where true asks for something: true if one of them is
    fixed      words: tighter than one is itself alone, the outer one stays
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from skep.fs.ctl import is_name
from skep.trace.clock import HOUR, MINUTE, SECOND, duration, parse_duration

Value = int | bool | str | tuple[str, ...] | None

NUMBER_MAX: Final = (1 << 63) - 1
WORDS_MAX: Final = 256  # of one set


class ValueRefused(Exception):
    """A value is not what its key takes; the text says what was expected."""


class Key(NamedTuple):
    """One row. ``guarded``: what the hive gives a tenant, and the tenant's own documents only tighten.

    ``least``: the smallest number taken."""

    kind: str
    tight: str
    default: Value
    help: str
    guarded: bool = True
    least: int = 0


KEYS: Final[Mapping[str, Key]] = {
    "pools/*/lease": Key("duration", "less", 30 * SECOND, "a lease lasts, unless renewed", least=SECOND),
    "pools/*/waiting": Key("number", "less", None, "jobs that wait before pool_overloaded"),
    "pools/*/requires": Key("set", "grow", (), "what a node must have to get its jobs"),
    "topics/*/pools": Key("set", "shrink", (), "the pools that jobs of the topic may wait in, best first"),
    "topics/*/lease": Key("duration", "less", None, "instead of the pool's", least=SECOND),
    "topics/*/timeout": Key("duration", "less", None, "instead of jobs/timeout", False, SECOND),
    "topics/*/retries": Key("number", "less", None, "instead of jobs/retries", False),
    "topics/*/request": Key("word", "fixed", None, "the schema of its jobs' input, as /schemas has it"),
    "topics/*/result": Key("word", "fixed", None, "the schema of its jobs' result"),
    "jobs/timeout": Key("duration", "less", None, "one attempt may run", False, SECOND),
    "jobs/deadline": Key("duration", "less", None, "from submit to end, attempts and waiting", False, SECOND),
    "jobs/retries": Key("number", "less", 0, "attempts after the first", False),
    "jobs/backoff": Key("duration", "more", SECOND, "before the second attempt; doubled for each", False),
    "jobs/backoff-max": Key("duration", "more", 5 * MINUTE, "and never longer than this", False),
    "jobs/key-window": Key("duration", "more", 24 * HOUR, "an idempotency key is remembered", False, MINUTE),
    "jobs/history": Key("duration", "less", HOUR, "an ended job stays in memory", least=SECOND),
    "jobs/preempt": Key("bool", "false", False, "its jobs may take the place of lesser ones"),
    "jobs/priority-max": Key("number", "less", 9, "the highest priority of a submit"),
    "jobs/schema": Key("bool", "true", False, "a topic that names no schema takes no jobs"),
    "limits/jobs": Key("number", "less", None, "jobs held at a time"),
    "limits/waiting": Key("number", "less", None, "jobs that wait at a time"),
    "limits/submits": Key("number", "less", None, "submissions in a second"),
    "limits/runtime": Key("duration", "less", None, "the runtime of one job, its attempts together"),
    "limits/retries": Key("number", "less", None, "retries of one job, whatever it asks for"),
    "limits/artifact-bytes": Key("number", "less", None, "bytes of artifacts kept at a time"),
    "limits/artifact-size": Key("number", "less", None, "bytes of one artifact"),
    "limits/day-runtime": Key("duration", "less", None, "the runtime of all its jobs in a day, of UTC"),
    "limits/actor-jobs": Key("number", "less", None, "jobs of one actor that are held at a time"),
    "limits/actor-waiting": Key("number", "less", None, "jobs of one actor that wait at a time"),
    "limits/actor-submits": Key("number", "less", None, "submissions of one actor in a second"),
    "limits/actor-day-runtime": Key("duration", "less", None, "the runtime of one actor's jobs in a day"),
    "limits/actor-artifact-bytes": Key(
        "number", "less", None, "bytes that one actor and its jobs have sealed"
    ),
    "artifacts/classes": Key("set", "shrink", ("short", "standard", "audit"), "what seal may ask for"),
    "trace/agreed-within": Key(
        "duration", "less", MINUTE, "of a quorum of witnesses, or the hive is degraded", least=SECOND
    ),
}


def row(key: str) -> Key:
    """The row of a key. Raises KeyError for what is no key."""
    noun, *rest = key.split("/")
    return KEYS[f"{noun}/*/{rest[1]}" if len(rest) == 2 and is_name(rest[0]) else key]


# kinds


def _number(said: Any) -> int:
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= NUMBER_MAX:
        raise ValueRefused("expected a whole number")
    return said


def _duration(said: Any) -> int:
    try:
        found = parse_duration(said) if isinstance(said, str) else -1
    except ValueError:
        found = -1
    if not 0 <= found <= NUMBER_MAX:
        raise ValueRefused("expected a duration, like 30s")
    return found


def _bool(said: Any) -> bool:
    if not isinstance(said, bool):
        raise ValueRefused("expected true or false")
    return said


def _word(said: Any) -> str:
    if not isinstance(said, str) or not is_name(said):
        raise ValueRefused("expected a name")
    return said


def _set(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or len(said) > WORDS_MAX:
        raise ValueRefused(f"expected a list of at most {WORDS_MAX} names")
    words = tuple(_word(each) for each in said)
    if len(set(words)) < len(words):
        raise ValueRefused("expected each name once")
    return words


_KINDS: Final[Mapping[str, Callable[[Any], Value]]] = {
    "number": _number, "duration": _duration, "bool": _bool, "word": _word, "set": _set,
}  # fmt: skip


def value_of(key: Key, said: Any) -> Value:
    """The value that a document says. Raises ValueRefused."""
    found = _KINDS[key.kind](said)
    if isinstance(found, int) and found < key.least:
        raise ValueRefused(f"expected {told(key, key.least)} or more")
    return found


def told(key: Key, value: Value) -> object:
    """The value as a document says it."""
    if key.kind == "duration" and isinstance(value, int):
        return duration(value)
    return list(value) if isinstance(value, tuple) else value


# tighter


def _shrunk(outer: Any, inner: Any) -> Any:
    return tuple(word for word in outer if word in inner)


def _grown(outer: Any, inner: Any) -> Any:
    return (*outer, *(word for word in inner if word not in outer))


_TIGHTER: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "less": min,
    "more": max,
    "shrink": _shrunk,
    "grow": _grown,
    "false": lambda outer, inner: outer and inner,
    "true": lambda outer, inner: outer or inner,
    "fixed": lambda outer, inner: outer,
}


def tighter(key: Key, outer: Value, inner: Value) -> Value:
    """The loosest value that is no looser than either; associative, and None is tightened by any."""
    if outer is None or inner is None:
        return inner if outer is None else outer
    found: Value = _TIGHTER[key.tight](outer, inner)
    return found


def is_within(key: Key, bound: Value, value: Value) -> bool:
    """Whether ``value`` is as tight as ``bound``."""
    if bound is None or value is None:
        return bound is None
    found = tighter(key, bound, value)
    if isinstance(found, tuple) and isinstance(value, tuple):
        return set(found) == set(value)
    return found == value
