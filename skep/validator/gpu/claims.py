"""What is claimed of GPU work, how often it was looked at, and what contradicts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

SHOWN_MAX: Final = 1000  # of what contradicts a claim; the rest is counted.

CLAIMS: Final[Mapping[str, str]] = {
    "once": "every job ends once, and has one holder at a time",
    "device": "what runs, runs on a device that was given to it, or on a CPU after a fallback",
    "error": "what failed says why",
    "alert": "what failed for want of a device raised an alert, and so did an annex that was lost",
    "fallback": "every fallback says from where to where and why, and was allowed",
    "effect": "what was accepted was done",
    "order": "nothing is told of what is not there",
    "capacity": "no device gives more than its annex offers, and none that is disabled gives anything",
    "exclusive": "what is somebody's alone is nobody else's",
    "time": "nothing is used after its time",
    "fence": "no fence goes back",
    "output": "what a result names was sealed",
}


class Broken(msgspec.Struct, frozen=True, omit_defaults=True):
    """What contradicts a claim, of CLAIMS. ``job``, ``annex``: whom it is about, "": none."""

    claim: str
    entry: int
    text: str
    job: str = ""
    annex: str = ""


class Claim(msgspec.Struct):
    """``asked``: how often it was looked at; ``broken``: how often it does not hold."""

    name: str
    asked: int = 0
    broken: int = 0


class Claims:
    """The claims on their way through a ledger."""

    def __init__(self) -> None:
        self.by_name = {name: Claim(name) for name in CLAIMS}
        self.found: list[Broken] = []
        self.jobs: set[str] = set()  # about which something is broken
        self.entry = 0  # the entry that is being looked at

    def check(self, name: str, wrong: str, job: str = "", annex: str = "") -> bool:
        """Whether it holds; ``wrong`` says why it does not, "": it does."""
        claim = self.by_name[name]
        claim.asked += 1
        if not wrong:
            return True
        claim.broken += 1
        if job:
            self.jobs.add(job)
        if len(self.found) < SHOWN_MAX:
            self.found.append(Broken(name, self.entry, wrong, job, annex))
        return False
