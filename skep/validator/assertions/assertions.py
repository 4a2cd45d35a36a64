"""Assertions: what becomes of rules about a trace when its facts are known. What they mean is rules.py.

Facts come once, in order; what is remembered of them are keys, so that a long ledger is no burden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from skep.validator.assertions.facts import KINDS, LEDGER_KINDS, TALK_KINDS, Fact, Value
from skep.validator.assertions.rules import Rule

WITNESSES_MAX: Final = 5  # of one rule that are kept; the others are counted


class Witness(msgspec.Struct, frozen=True):
    """A fact by which a rule is broken."""

    where: str
    text: str


class Checked(msgspec.Struct):
    """What became of a rule: how many facts it was asked of, how many break it. ``skipped``: why it was not
    asked at all."""

    title: str
    rule: str
    asked: int = 0
    broken: int = 0
    witnesses: list[Witness] = []
    skipped: str = ""


def check(
    rules: Iterable[Rule], facts: Iterable[Fact], ledger: bool = True, talk: bool = True
) -> list[Checked]:
    """What becomes of each rule when the facts are these. ``ledger``, ``talk``: whether there are a ledger's,
    and a conversation's, among them: a rule that needs the others is not asked."""
    checks = [FORMS[rule.form](rule) for rule in rules]
    asked: dict[str, list[_Check]] = {kind: [] for kind in KINDS}
    for each in checks:
        each.found.skipped = _skipped(each.rule, ledger, talk)
        for kind in _kinds(each.rule) if not each.found.skipped else ():
            asked[kind].append(each)
    timed = [each for each in checks if each.rule.within_ns is not None and not each.found.skipped]
    for fact in facts:
        for each in timed:
            each.pass_time(fact.time_ns)
        for each in asked.get(fact.kind, ()):
            each.take(fact)
    for each in checks:
        each.end()
    return [each.found for each in checks]


def _kinds(rule: Rule) -> frozenset[str]:
    sets = (rule.first, rule.other, rule.before)
    return frozenset().union(*(each.kinds for each in sets if each is not None))


def _skipped(rule: Rule, ledger: bool, talk: bool) -> str:
    for part in (rule.first, rule.other):
        if part is not None and not ledger and part.kinds <= LEDGER_KINDS.keys():
            return "there is no ledger beside the conversation"
        if part is not None and not talk and part.kinds <= TALK_KINDS.keys():
            return "there is no conversation"
    return ""


_Key = tuple[Value, ...]


class _Check:
    """A rule on its way through the facts."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.found = Checked(rule.title, rule.text)

    def take(self, fact: Fact) -> None:
        """A fact of one of the rule's kinds."""

    def pass_time(self, now_ns: int) -> None:
        """It is so late."""

    def end(self) -> None:
        """No fact comes any more."""

    def broken(self, witness: Witness) -> None:
        self.found.broken += 1
        if len(self.found.witnesses) < WITNESSES_MAX:
            self.found.witnesses.append(witness)

    def witness(self, fact: Fact, why: str = "") -> Witness:
        names = dict.fromkeys(
            ("actor", "path", *(a for a, _ in self.rule.same), *self.rule.first.fields, self.rule.field)
        )
        said = [f"{name}={_short(fact.fields[name])}" for name in names if fact.fields.get(name, "") != ""]
        return Witness(fact.where, " ".join([fact.kind, *said]) + (f": {why}" if why else ""))

    def key(self, fact: Fact, side: int = 0) -> _Key:
        return tuple(fact.fields.get(pair[side], "") for pair in self.rule.same)


def _short(value: Value) -> str:
    text = " | ".join(str(value).split("\n"))
    return text if len(text) <= 60 else f"{text[:60]}…"


class _Never(_Check):
    def take(self, fact: Fact) -> None:
        self.found.asked += 1
        if self.rule.first.has(fact):
            self.broken(self.witness(fact))


class _Has(_Check):
    """The other may come before or after. A "*" in it stands for anything."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.seen: set[_Key] = set()
        self.wild: set[_Key] = set()
        self.missing: dict[_Key, list[Witness]] = {}

    def take(self, fact: Fact) -> None:
        assert self.rule.other is not None
        if self.rule.other.has(fact):
            key = self.key(fact, 1)
            (self.wild if "*" in key else self.seen).add(key)
            self.missing.pop(key, None)
        if self.rule.first.has(fact):
            self.found.asked += 1
            key = self.key(fact)
            if key not in self.seen:
                self.missing.setdefault(key, []).append(self.witness(fact))

    def end(self) -> None:
        for key, witnesses in self.missing.items():
            if not any(_matches(key, wild) for wild in self.wild):
                for witness in witnesses:
                    self.broken(witness)


def _matches(key: _Key, wild: _Key) -> bool:
    return all(b in ("*", a) for a, b in zip(key, wild, strict=True))


class _Follows(_Check):
    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.seen: set[_Key] = set()

    def take(self, fact: Fact) -> None:
        assert self.rule.other is not None
        if self.rule.first.has(fact):
            self.found.asked += 1
            if self.key(fact) not in self.seen:
                self.broken(self.witness(fact))
        if self.rule.other.has(fact):
            self.seen.add(self.key(fact, 1))


class _Waits(NamedTuple):
    until_ns: int | None
    witness: Witness


class _Followed(_Check):
    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.waiting: dict[_Key, list[_Waits]] = {}

    def take(self, fact: Fact) -> None:
        rule = self.rule
        assert rule.other is not None
        if rule.other.has(fact):
            self.waiting.pop(self.key(fact, 1), None)
        if rule.before is not None and rule.before.has(fact):
            for waits in self.waiting.pop(self.key(fact), ()):
                self.broken(
                    msgspec.structs.replace(
                        waits.witness, text=f"{waits.witness.text}: {fact.where} came first"
                    )
                )
        if rule.first.has(fact):
            self.found.asked += 1
            until_ns = None if rule.within_ns is None else fact.time_ns + rule.within_ns
            self.waiting.setdefault(self.key(fact), []).append(_Waits(until_ns, self.witness(fact)))

    def pass_time(self, now_ns: int) -> None:
        late = [
            key
            for key, waiting in self.waiting.items()
            if waiting[0].until_ns is not None and waiting[0].until_ns < now_ns
        ]
        for key in late:
            for waits in self.waiting.pop(key):
                self.broken(waits.witness)

    def end(self) -> None:
        # Whether it would have come in time, or before the other, a trace that ends does not tell.
        if self.rule.before is None and self.rule.within_ns is None:
            for waiting in self.waiting.values():
                for waits in waiting:
                    self.broken(waits.witness)


class _Moves(_Check):
    """A number that rises, or never falls."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.last: dict[_Key, tuple[Value, str]] = {}

    def take(self, fact: Fact) -> None:
        if not self.rule.first.has(fact):
            return
        self.found.asked += 1
        key, value = self.key(fact), fact.fields.get(self.rule.field, 0)
        before, where = self.last.get(key, (None, ""))
        self.last[key] = value, fact.where
        if before is None:
            return
        rises = self.rule.form == "rises"
        if _place(value) < _place(before) or (rises and value == before):
            self.broken(self.witness(fact, f"it was {before} in {where}"))


def _place(value: Value) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, value)


FORMS: Final[Mapping[str, type[_Check]]] = {
    "never": _Never,
    "has": _Has,
    "follows": _Follows,
    "is followed by": _Followed,
    "rises": _Moves,
    "never falls": _Moves,
}
"""What each form of rule asks."""
