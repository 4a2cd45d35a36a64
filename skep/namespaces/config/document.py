"""A document of configuration: TOML, or JSON when it begins with ``{``; and how documents are merged.

    lock = ["limits/jobs", "pools/gpu"]     # here and below, nobody may loosen what is said here
    [limits]
    jobs = 100
    [pools.gpu]
    lease = "1m"

``lock`` names keys that the same document has a value for, or tables: then every key that it has in them.
Merging is key by key. Of each a document says a value, a bound (the value again, when it is locked), or
nothing; of two documents the later value is taken, and the tighter bound. So it is associative, a document
that says nothing changes nothing, and what holds, the tighter of value and bound, no later one has loosened.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from skep.fs.ctl import is_name
from skep.namespaces.config.keys import KEYS, Value, ValueRefused, is_within, row, tighter, value_of

LOCK: Final = "lock"


class DocumentError(Exception):
    """The document is not good: ``/pools/gpu/lease: why``, a JSON pointer first."""

    def __init__(self, path: Iterable[str], why: str) -> None:
        pointer = "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in path)
        super().__init__(f"{pointer or '/'}: {why}")


class Source(NamedTuple):
    """Where a value comes from: a scope and its version; 0: nobody said it, it is the key's default."""

    scope: str
    v: int

    def __str__(self) -> str:
        return f"{self.scope}@{self.v}" if self.v else self.scope


class Said(NamedTuple):
    """A value and who said it."""

    value: Value
    source: Source


class Setting(NamedTuple):
    """What is said of one key. None: nothing."""

    said: Said | None = None
    bound: Said | None = None

    def effective(self, key: str) -> Said:
        """The tighter of the two, and whose it is. Something has been said."""
        said = self.said or self.bound
        assert said is not None, key
        if self.bound is None or is_within(row(key), self.bound.value, said.value):
            return said
        return _both(key, self.bound, said)


Layer = Mapping[str, Setting]  # by key


def _both(key: str, outer: Said, inner: Said) -> Said:
    """The tighter of both, in the name of who made it so."""
    found = tighter(row(key), outer.value, inner.value)
    return Said(found, outer.source if found == outer.value else inner.source)


def merged(key: str, outer: Setting, inner: Setting) -> Setting:
    """What two documents say of the key together."""
    if outer.bound is None or inner.bound is None:
        return Setting(inner.said or outer.said, outer.bound or inner.bound)
    return Setting(inner.said or outer.said, _both(key, outer.bound, inner.bound))


def merge(outer: Layer, inner: Layer) -> Layer:
    """What two documents say together, the inner one after the outer."""
    both = dict(outer)
    for key, setting in inner.items():
        both[key] = merged(key, outer[key], setting) if key in outer else setting
    return both


# reading


def parse(text: bytes, source: Source) -> Layer:
    """What the document says, in the name of ``source``. Raises DocumentError."""
    found = _decoded(text)
    locks = found.pop(LOCK, [])
    values = dict(_leaves(found, ()))
    locked = set(_locked(locks, values))
    said = {key: Said(value, source) for key, value in values.items()}
    return {key: Setting(each, each if key in locked else None) for key, each in said.items()}


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        said = text.decode()
        if said.lstrip().startswith("{"):
            found: dict[str, Any] = json.loads(said, object_pairs_hook=_once)
            return found
        return tomllib.loads(said)
    except RecursionError as error:
        raise DocumentError((), "too deep") from error
    # UTF-8's, JSON's and TOML's own.
    except ValueError as error:
        raise DocumentError((), str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise DocumentError((), f"{name!r} is there twice")
    return dict(pairs)


def _leaves(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    """Each key of the table at ``path``, and its value."""
    known = _known(path)
    for name, said in table.items():
        here = (*path, name)
        if not is_name(name) or ("*" not in known and name not in known):
            raise DocumentError(here, f"unknown key, expected {' '.join(known)}")
        shape = "/".join(here) if len(here) < 3 else f"{here[0]}/*/{here[2]}"
        if shape in KEYS:
            try:
                yield "/".join(here), value_of(KEYS[shape], said)
            except ValueRefused as error:
                raise DocumentError(here, str(error)) from error
        elif isinstance(said, dict):
            yield from _leaves(said, here)
        else:
            raise DocumentError(here, "expected a table")


def _known(path: tuple[str, ...]) -> list[str]:
    """The names there may be at ``path``; ``*``: any."""
    found: dict[str, None] = {}
    for key in KEYS:
        names = key.split("/")
        if len(names) > len(path) and all(b in ("*", a) for a, b in zip(path, names, strict=False)):
            found[names[len(path)]] = None
    return list(found)


def _locked(locks: Any, values: Mapping[str, Value]) -> Iterator[str]:
    if not isinstance(locks, list):
        raise DocumentError((LOCK,), "expected a list of keys")
    for i, lock in enumerate(locks):
        keys = [key for key in values if isinstance(lock, str) and f"{key}/".startswith(f"{lock}/")]
        if not keys:
            raise DocumentError((LOCK, str(i)), "expected a key that this document has a value for")
        yield from keys
