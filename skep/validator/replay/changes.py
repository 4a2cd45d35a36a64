"""Rules that are others since a release: what an older ledger's entries may differ in, and why.

The hive publishes the default bundle of its release at its first start with it, so the ledger itself says
since when its entries are decided by which rules: the bundle's schema has words that the release before had
not. A hive whose default bundle is its operator's own is judged by today's rules.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

from skep.namespaces.hive import HiveState, route
from skep.namespaces.order import HIVE
from skep.namespaces.policy.bundle import BundleError, unpack
from skep.trace.entry import Entry


class Change(NamedTuple):
    """``word``: what the schema of the first release with this rule has, and none before; "": what is
    recorded shows it. ``places``: the noun and place of the lines that it concerns; empty: all. ``field``:
    what may differ in them, where ``recorded`` is what stands there."""

    name: str
    page: str  # that says why
    word: str
    places: frozenset[tuple[str, str]]
    field: re.Pattern[str]
    recorded: re.Pattern[str] = re.compile("")


CHANGES: Final = (
    Change(
        "lease-order",
        "docs/decisions/0020-rank-that-ages.md",
        '"ageing"?',
        frozenset({("pools", "*/next")}),
        re.compile(r"events|outcome"),
    ),
    # Ended jobs and used keys leave memory; the event says when.
    Change(
        "history",
        "docs/decisions/0019-index-of-jobs.md",
        '"ageing"?',
        frozenset(),
        re.compile(r"events\[\d+\]\.(keep_ns|key_ns)$"),
        re.compile("absent"),
    ),
    # An entry was a byte longer at the most.
    Change(
        "entry-size",
        "docs/TRACE.md",
        "",
        frozenset(),
        re.compile(r"outcome\.text$"),
        re.compile('"too large: max=65536"'),
    ),
)


def declared(state: HiveState, entry: Entry[Any], field: str, recorded: str) -> str:
    """The name of the change by which ``field`` of the entry, ``recorded`` in JSON, may differ; "": none.
    ``state``: before it."""
    noun, place, _ = route(entry.path)
    for change in CHANGES:
        concerned = not change.places or (noun, place) in change.places
        said = change.field.match(field) and change.recorded.match(recorded)
        if concerned and said and (not change.word or _is_older(state, change.word)):
            return change.name
    return ""


def _is_older(state: HiveState, word: str) -> bool:
    record = state.policy.bundles.get("default")
    if record is None or record.version.actor != HIVE:
        return False
    return word not in _schema(record.version.content)


@lru_cache(maxsize=8)
def _schema(packed: str) -> str:
    try:
        bundle = unpack(packed)
    except BundleError:
        return ""  # of a release that packed otherwise
    return bundle.files[bundle.schema_file]
