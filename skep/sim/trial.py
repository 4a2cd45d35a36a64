"""Trying stories: is a promise broken, and which is the shortest story that breaks one.

Shortening leaves actions out, many at first, then fewer, then one at a time, as long as the rest still ends
badly. Source: A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input" (2002).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from skep.sim.check import broken
from skep.sim.loop import Stuck
from skep.sim.queen import Made
from skep.sim.story import Action, Story
from skep.sim.world import run

TRIES_MAX: Final = 400  # stories tried to shorten one
SKEP: Final = Made()  # as it is


class Trial(NamedTuple):
    """How a story went. ``wrong``: the promises broken, a line each; ``digest`` is equal for equal runs."""

    wrong: list[str]
    digest: str
    steps: int  # of all processes
    said: int  # things asked of the hive
    entries: int  # of the ledger
    lasted_ns: int  # of made-up time


def attempt(story: Story, made: Made = SKEP) -> Trial:
    """Play the story and look at what came of it."""
    try:
        ran = run(story, made)
    except Stuck as stuck:
        return Trial([f"stuck: {stuck}"], "", 0, 0, 0, 0)
    return Trial(broken(ran), ran.digest, ran.steps, len(ran.history.said), len(ran.bodies), ran.end_ns)


def shortest(
    story: Story, made: Made = SKEP, told: Callable[[int, int], None] = lambda tries, left: None
) -> Story:
    """A part of a story that ends badly, none of whose actions can be left out alone, or what was found in
    TRIES_MAX tries. ``told`` hears of each try: how many, and how many actions are left."""
    actions = story.actions
    size, tries = max(len(actions) // 2, 1), 0
    while tries < TRIES_MAX:
        shorter, tried = _without(story, actions, size, made, TRIES_MAX - tries)
        tries += tried
        told(tries, len(shorter))
        if len(shorter) == len(actions) and size == 1:
            break
        # At the same size again, as long as that leaves something out.
        size = size if len(shorter) < len(actions) else size // 2
        actions = shorter
        size = max(min(size, len(actions) // 2), 1)
    return msgspec.structs.replace(story, actions=actions)


def _without(
    story: Story, actions: tuple[Action, ...], size: int, made: Made, tries_max: int
) -> tuple[tuple[Action, ...], int]:
    """The actions without each run of ``size`` that can be left out; and how many tries that took."""
    at = tries = 0
    while at < len(actions) and tries < tries_max:
        fewer = (*actions[:at], *actions[at + size :])
        tries += 1
        if attempt(msgspec.structs.replace(story, actions=fewer), made).wrong:
            actions = fewer
        else:
            at += size
    return actions, tries
