"""What the hive itself has to say about annexes: what they offer now, what time has ended, who waits no more.

Lines to say, each a path, a line and a tenant; whoever lives says them."""

from __future__ import annotations

from collections.abc import Iterator

from skep.fs import ctl
from skep.namespaces.gpu.beat import Beat, lost_ns, suspect_ns
from skep.namespaces.gpu.record import Annex, Annexes, Card
from skep.trace.clock import duration
from skep.trace.entry import canonical

Said = tuple[str, str, str]


def path_of(annex: str) -> str:
    """Where the hive's own lines about it are written."""
    return f"/gpu/{annex}"


def offer(known: Annex | None, beat: Beat) -> str:
    """The line when an annex offers something else than is recorded; "": it does not."""
    cards = tuple(Card(each.id, each.name, each.uuid, each.memory, each.slots) for each in beat.devices)
    new = (cards, beat.driver, beat.every_ns, beat.disabled)
    if known is not None and (known.cards, known.driver, known.every_ns, known.disabled) == new:
        return ""
    args = {"devices": canonical(cards).decode(), "every": duration(beat.every_ns)}
    more = {"driver": beat.driver, "disabled": beat.disabled}
    return ctl.line("offer", args | {name: text for name, text in more.items() if text})


def silence_ns(annexes: Annexes, node: str) -> tuple[int, int] | None:
    """How long the node may be silent until it is suspect, and until it is lost; None: it is no annex."""
    annex = annexes.by_id.get(node)
    if annex is None or not annex.every_ns:
        return None
    return suspect_ns(annex.every_ns), lost_ns(annex.every_ns)


def due(annexes: Annexes, now_ns: int) -> Iterator[Said]:
    """What time has ended."""
    for annex, due_ns in annexes.due.items():
        if due_ns <= now_ns:
            yield path_of(annex), "expire", ""


def of_start(annexes: Annexes) -> list[Said]:
    """What follows from the hive's start: the calls that waited are gone, all of them."""
    return [(path_of(annex.id), "restart", "") for annex in annexes.by_id.values() if annex.waiters]
