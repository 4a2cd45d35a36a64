"""What a verification can find: each kind has a word, and an exit status of its own for scripts."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """How a log was tampered with, as far as it shows; the value is the exit status of ``skep verify``."""

    ALTERED = 10  # bytes of an entry, a hash or a signature are others
    DROPPED = 11  # an entry is missing, later ones are there
    SWAPPED = 12  # two entries stand in each other's place
    INSERTED = 13  # an entry stands where none was
    FORKED = 14  # what is there is whole, and not what was signed
    REWOUND = 15  # its head says fewer entries than an older checkpoint
    TRUNCATED = 16  # the end that its head speaks of is missing
    RESIGNED = 17  # the signature is of a key that nobody vouched for
    DAMAGED = 18  # it cannot be read as what it should be
    UNWITNESSED = 19  # too few of the witnesses that were named have cosigned it


class Finding(Exception):
    """The first place that is not consistent. ``entry``: its number, from 1; 0: it is not about one."""

    def __init__(self, kind: Kind, entry: int, text: str) -> None:
        place = f"entry {entry}: " if entry else ""
        super().__init__(f"integrity: {place}{text} ({kind.name.lower()})")
        self.kind = kind
        self.entry = entry
