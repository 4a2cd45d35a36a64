"""Documents that are published again and again: their versions, of which one is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from skep.fs.errors import E
from skep.namespaces.order import refusal
from skep.namespaces.packed import Altered, PackError, unpack_as

V = TypeVar("V")


def published(content: str, digest: str) -> bytes:
    """The text of a publish's packed ``content``. Raises Refusal when it is none, or not ``digest``'s."""
    try:
        return unpack_as(content, digest)
    except Altered as error:
        raise refusal(E.TAMPER, str(error)) from error
    except PackError as error:
        raise refusal(E.SCHEMA, f"/: {error}") from error


def with_new(kept: Mapping[int, V], live: int, v: int, version: V, most: int) -> dict[int, V]:
    """The versions by number with ``version`` as number ``v``: of those before it the live one, 0: there is
    none, and the newest ``most`` of the others."""
    oldest = sorted(set(kept) - {live})[:-most]
    return {number: each for number, each in kept.items() if number not in oldest} | {v: version}
