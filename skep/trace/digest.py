"""A digest of a state that means the same everywhere: whatever order its tables were filled in, whatever
PYTHONHASHSEED. What is only remembered to be quick (``compare=False``) is no part of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from operator import itemgetter
from typing import Any

from skep.trace.entry import canonical

_Feed = Callable[[bytes], object]


def digest(value: Any, ordered: bool = False) -> str:
    """SHA-256, in hex, of a dataclass, a table or a list of them, down to Structs and plain values.

    ``ordered``: also of the order in which tables were filled."""
    hashed = sha256()
    _feed(hashed.update, value, ordered)
    return hashed.hexdigest()


def parts(state: Any) -> dict[str, str]:
    """The digest of each field of a dataclass: where two states are not the same."""
    return {field.name: digest(getattr(state, field.name)) for field in fields(state) if field.compare}


def _feed(feed: _Feed, value: Any, ordered: bool) -> None:
    """Every part is preceded by its length or its count, so that no two values have the same bytes."""
    if isinstance(value, Mapping):
        feed(b"{%d:" % len(value))
        rows = ((canonical(key), of) for key, of in value.items())
        for key, of in rows if ordered else sorted(rows, key=itemgetter(0)):
            feed(b"%d:" % len(key) + key)
            _feed(feed, of, ordered)
    elif isinstance(value, (set, frozenset)):
        _feed(feed, sorted(map(canonical, value)), ordered)
    elif isinstance(value, (list, tuple, deque)):
        feed(b"[%d:" % len(value))
        for of in value:
            _feed(feed, of, ordered)
    elif is_dataclass(value):
        _feed_fields(feed, value, [field.name for field in fields(value) if field.compare], ordered)
    else:
        try:
            body = value if isinstance(value, bytes) else canonical(value)
        except TypeError:
            # A Struct with a table whose keys are no text: most have none, and are encoded at once.
            _feed_fields(feed, value, value.__struct_fields__, ordered)
        else:
            feed(b"%d:" % len(body) + body)


def _feed_fields(feed: _Feed, value: Any, names: Sequence[str], ordered: bool) -> None:
    feed(b"(%d:" % len(names))
    for name in names:
        feed(b"%d:" % len(name) + name.encode())
        _feed(feed, getattr(value, name), ordered)
