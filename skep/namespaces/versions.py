"""Documents that are published again and again: their versions, of which one is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def with_new(kept: Mapping[int, V], live: int, v: int, version: V, most: int) -> dict[int, V]:
    """The versions by number with ``version`` as number ``v``: of those before it the live one, 0: there is
    none, and the newest ``most`` of the others."""
    oldest = sorted(set(kept) - {live})[:-most]
    return {number: each for number, each in kept.items() if number not in oldest} | {v: version}
