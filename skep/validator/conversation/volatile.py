"""What of an answer may be another when a conversation is played again, each with its reason. Everything else
must be the same."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple


class Place(NamedTuple):
    """Files whose contents are not told by the ledger. ``*`` stands for a name, ``**`` at the end for what is
    below."""

    pattern: str
    why: str


PLACES: Final = (
    Place("/artifacts/**", "an artifact's bytes are not in the ledger"),
    Place("/jobs/*/log", "what a job printed is not in the ledger"),
    Place("/jobs/*/out", "what a job printed is not in the ledger"),
    Place("/jobs/*/progress", "progress is not in the ledger"),
    Place("/jobs/by-state/*/*/log", "what a job printed is not in the ledger"),
    Place("/jobs/by-state/*/*/out", "what a job printed is not in the ledger"),
    Place("/jobs/by-state/*/*/progress", "progress is not in the ledger"),
    Place("/pools/*/load", "who waits for a job is not in the ledger"),
    Place("/pools/*/workers", "who waits for a job is not in the ledger"),
    Place("/pools/plan", "who waits for a job is not in the ledger"),
    Place("/nodes/*/**", "heartbeats are not in the ledger"),
    Place("/sessions", "who else was attached is not in the ledger"),
    Place("/sessions/**", "who else was attached is not in the ledger"),
    Place("/trust/**", "keys are not in the ledger"),
    Place("/log/trace/**", "it is signed when it is read, by a key that is not in the ledger"),
    Place("/log/validator/**", "reports are not in the ledger"),
    Place("/validator/**", "progress is not in the ledger"),
    Place("/policy/keys", "keys are not in the ledger"),
)


class Field(NamedTuple):
    """A field of messages that says nothing about what happened."""

    messages: tuple[str, ...]
    fields: tuple[str, ...]
    why: str


FIELDS: Final = (
    Field(("Rgetattr",), ("atime_sec", "atime_nsec", "mtime_sec", "mtime_nsec", "ctime_sec", "ctime_nsec",
                          "btime_sec", "btime_nsec"), "times are those of the process that serves"),
    Field(("Rgetattr",), ("uid", "gid"), "files belong to the user who serves"),
    Field(("Rgetattr",), ("data_version", "gen"), "versions count from the start of the process"),
    Field(("Rstat", "Rread"), ("atime", "mtime"), "times are those of the process that serves"),
    Field(("Rstat", "Rread"), ("uid", "gid", "muid", "n_uid", "n_gid", "n_muid"),
          "files belong to the user who serves"),
    Field(("Rstatfs",), ("type", "bsize", "blocks", "bfree", "bavail", "files", "ffree", "fsid"),
          "it is the disk's"),
)  # fmt: skip
VERSIONS: Final = "versions count from the start of the process"
NUMBERED: Final = "numbers of files are given as they are first looked at"
BOOKMARKS: Final = "bookmarks come by the clock"
LIMITED: Final = "how often one may ask is not in the ledger"
TRACES: Final = "the id of a refusal at the door is made there"
HIDDEN: Final = "it is hidden in the recording"
_TRACE: Final = re.compile(r" ?trace=[0-9A-Z]{26}$")


def place_of(path: str) -> Place | None:
    """The row of PLACES for a file; None: what it holds is told by the ledger."""
    return next((place for place in PLACES if _lies(path, place.pattern)), None)


def why_volatile(kind: str, field: str, was: Any, now: Any) -> str:
    """Why a field of a message may differ so; "": it may not."""
    for row in FIELDS:
        if kind in row.messages and field in row.fields:
            return row.why
    if field == "ename" and _TRACE.sub("", str(was)) == _TRACE.sub("", str(now)):
        return TRACES
    return ""


def _lies(path: str, pattern: str) -> bool:
    if pattern.endswith("/**"):
        base = pattern.removesuffix("/**")
        depth = base.count("/")
        head = "/".join(path.split("/")[: depth + 1])
        return path.count("/") > depth and fnmatchcase(head, base)
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)
