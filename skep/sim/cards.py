"""What annexes give, folded by hand from a ledger: never more than there is, in the order of who waits.

A third reading, after the hive's own and that of `skep annex prove`, and it asks for more than the latter:
nobody waits for what is free, nobody overtakes, what a job had is free when its attempt is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Told = dict[str, Any]


@dataclass
class Annex:
    """Grants and waiters are events, by lease and as they came. ``off``: who says that it gives nothing."""

    cards: dict[str, Told] = field(default_factory=dict)
    off: set[str] = field(default_factory=set)
    grants: dict[str, Told] = field(default_factory=dict)
    waiters: dict[str, Told] = field(default_factory=dict)
    fence: int = 0

    def large_enough(self, asked: Told) -> list[Told]:
        """The cards that could be given for what is asked."""
        kind = "cuda" if any(id.startswith("cuda") for id in self.cards) else "cpu"
        name = asked.get("device", "")
        found = (card for id, card in self.cards.items() if (id == name if name else id.startswith(kind)))
        return [
            card
            for card in found
            if asked["memory"] <= card.get("memory", 0) and asked["slots"] <= card.get("slots", 1)
        ]

    def first(self) -> Told | None:
        """Who is next; None: nobody waits."""
        return min(self.waiters.values(), key=lambda waiter: -waiter["priority"], default=None)

    def uses(self, card: str) -> list[Told]:
        return [each for each in self.grants.values() if each["device"] == card and not each.get("within")]


def has_room(whole: Told, uses: Iterable[Told], asked: Told) -> bool:
    together = [*uses, asked]
    alone = any(each.get("exclusive") for each in together) and len(together) > 1
    return not alone and all(
        sum(each[what] for each in together) <= whole.get(what, 1) for what in ("memory", "slots")
    )


@dataclass
class Cards:
    """``broken`` hears what was not to be; ``runs``: where each running job does, by node and device."""

    broken: Callable[[str], None]
    by_annex: dict[str, Annex] = field(default_factory=dict)
    runs: dict[str, tuple[str, str]] = field(default_factory=dict)

    def take(self, event: Told, now_ns: int) -> None:
        """An event of an annex, of a lease of one of its devices, or of a node."""
        noun, _, kind = event["type"].partition(".")
        if noun == "node" and kind == "removed":
            # Its fences go on, should another of its name come.
            self.by_annex[event["node"]] = Annex(fence=self.by_annex.get(event["node"], Annex()).fence)
        if noun not in ("annex", "gpu") or "annex" not in event:
            return
        annex = self.by_annex.setdefault(event["annex"], Annex())
        match kind:
            case "offered":
                annex.cards = {card["id"]: card for card in event.get("devices", ())}
                (annex.off.add if event.get("disabled") else annex.off.discard)("annex")
            case "disabled":
                annex.off.add("operator")
            case "enabled":
                annex.off.discard("operator")
            case "asked":
                annex.waiters[event["lease"]] = event
            case "withdrawn":
                self._gone(annex.waiters, event)
            case "leased":
                self._leased(annex, event, now_ns)
            case "renewed":
                grant = annex.grants.get(event["lease"])
                if grant is None or grant["until_ns"] <= now_ns:
                    self.broken(f"{event['lease']} is renewed, and is over")
                else:
                    annex.grants[event["lease"]] = grant | {"until_ns": event["until_ns"]}
            case "ended":
                self._gone(annex.grants, event)

    def _gone(self, known: dict[str, Told], event: Told) -> None:
        if known.pop(event["lease"], None) is None:
            self.broken(f"{event['type']} of {event['lease']}, which is not there")

    def _leased(self, annex: Annex, event: Told, now_ns: int) -> None:
        lease, within = event["lease"], event.get("within")
        if event["fence"] <= annex.fence:
            self.broken(f"fence {event['fence']} of {lease} after {annex.fence}")
        if annex.off:
            self.broken(f"{lease} is given of {event['annex']}, which is disabled")
        if within and annex.grants.get(within, {}).get("until_ns", 0) <= now_ns:
            self.broken(f"{lease} is given within {within}, which is over")
        waiter = annex.waiters.pop(lease, None)
        if not within:
            rank = event["priority"] if waiter is None else waiter["priority"]
            for other in annex.waiters.values():
                ahead = other["priority"] > rank or (waiter is None and other["priority"] == rank)
                cards = [card["id"] for card in annex.large_enough(other)]
                if ahead and other["until_ns"] > now_ns and event["device"] in cards:
                    self.broken(f"{lease} overtakes {other['lease']}")
        annex.fence, annex.grants[lease] = event["fence"], event

    def left(self, job: str) -> None:
        """The job's attempt is over, and what it had is free."""
        node, _ = self.runs.pop(job, ("", ""))
        annex = self.by_annex.get(node)
        if annex is not None:
            annex.grants = {lease: each for lease, each in annex.grants.items() if each.get("job") != job}

    def settle(self, now_ns: int) -> None:
        """An entry is over."""
        granted = {}
        for name, annex in self.by_annex.items():
            for id, card in annex.cards.items():
                self._add_up(f"{name} {id}", card, annex.uses(id))
            for grant in annex.grants.values():
                if not grant.get("job"):
                    within = [each for each in annex.grants.values() if each.get("within") == grant["lease"]]
                    self._add_up(grant["lease"], grant, within)
                else:
                    granted[grant["job"]] = name, grant["device"]
                if grant["device"] not in annex.cards:
                    self.broken(f"{grant['lease']} is of {grant['device']}, which {name} has not")
            waiter = annex.first()
            if waiter is not None and waiter["until_ns"] > now_ns:
                for card in annex.large_enough(waiter):
                    if has_room(card, annex.uses(card["id"]), waiter):
                        self.broken(f"{waiter['lease']} waits, and {name} {card['id']} has room")
        running = {job: on for job, on in self.runs.items() if ":" in on[1]}
        if granted != running:
            self.broken(f"jobs run on {running}, and are given {granted}")

    def _add_up(self, what: str, whole: Told, uses: list[Told]) -> None:
        for of in ("memory", "slots"):
            if sum(each[of] for each in uses) > whole.get(of, 1):
                self.broken(f"{what} gives more {of} than it has: {uses}")
        if len(uses) > 1 and any(each.get("exclusive") for each in uses):
            self.broken(f"{what} is somebody's alone, and others have it: {uses}")
