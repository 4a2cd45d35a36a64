"""Rules about a trace: from text that people read to what is asked (docs/ASSERTIONS.md).

A title ends in a colon; the rules under it are indented. Nothing is checked here but the words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from skep.trace.clock import parse_duration
from skep.validator.assertions.facts import EVENT, KINDS, MESSAGE, Fact, Value

Fields = Mapping[str, Value]
Cond = Callable[[Fields], bool]


class RuleError(Exception):
    """The rules cannot be read; the text begins with the line's number and says what was expected."""


class Set(NamedTuple):
    """Facts of some kinds for which something holds. ``fields``: those that are asked for."""

    kinds: frozenset[str]
    cond: Cond | None
    fields: tuple[str, ...]

    def has(self, fact: Fact) -> bool:
        return fact.kind in self.kinds and (self.cond is None or self.cond(fact.fields))


class Rule(NamedTuple):
    """One rule. ``same``: pairs of fields that must be equal in the first set and the other."""

    title: str
    text: str
    number: int  # its line
    form: str  # of FORMS
    first: Set
    other: Set | None = None
    same: tuple[tuple[str, str], ...] = ()
    field: str = ""  # that rises or never falls
    within_ns: int | None = None  # None: at any time
    before: Set | None = None


def read(text: str) -> list[Rule]:
    """The rules in ``text``. Raises RuleError."""
    rules: list[Rule] = []
    title, title_line = "", 0
    for number, line in _joined(text):
        if line[0].isspace():
            if not title:
                raise RuleError(f"line {number}: a rule without a title: expected a line that ends in ':'")
            words = " ".join(line.split())
            rules.append(_Reader(words, number).rule(title))
            title_line = 0
        elif line.rstrip().endswith(":"):
            if title_line:
                raise RuleError(f"line {title_line}: {title!r} has no rule: expected one under it, indented")
            title, title_line = line.rstrip().removesuffix(":").rstrip(), number
        else:
            raise RuleError(f"line {number}: {line.strip()!r}: expected a title, which ends in ':'")
    if title_line:
        raise RuleError(f"line {title_line}: {title!r} has no rule: expected one under it, indented")
    if not rules:
        raise RuleError("line 1: there is no rule: expected a title, which ends in ':', and rules under it")
    return rules


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something; one that is indented further than the one above goes on with it."""
    begun: tuple[int, str, int] | None = None  # number, text, depth
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        depth = len(line) - len(line.lstrip())
        if begun is not None and begun[2] and depth > begun[2]:
            begun = begun[0], f"{begun[1]} {line.strip()}", begun[2]
            continue
        if begun is not None:
            yield begun[:2]
        begun = number, line, depth
    if begun is not None:
        yield begun[:2]


_TOKEN: Final = re.compile(r'\s*("[^"]*"|[()]|!=|<=|>=|[=<>,]|[^\s()=<>!,"]+)')
_COMPARED: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_RESERVED: Final = frozenset({"where", "and", "or", "not", "in", "under", "like", "has", "follows", "with"})


class _Reader:
    """One rule being read, word by word."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.words: list[str] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self.wrong(f"{text[at:].strip()!r} cannot be read", "words, or text in double quotes")
            self.words.append(found[1])
            at = found.end()
        self.at = 0
        self.fields: list[str] = []

    def wrong(self, what: str, expected: str) -> RuleError:
        return RuleError(f"line {self.number}: {what}: expected {expected}")

    def rule(self, title: str) -> Rule:
        begin = self.next("never, every, or a field")
        if begin == "never":
            rule = Rule(title, self.text, self.number, "never", self.facts())
        elif begin == "every":
            rule = self.every(title)
        else:
            rule = self.moves(title, begin)
        if self.at < len(self.words):
            raise self.wrong(f"{self.words[self.at]!r} after the rule", "its end")
        return rule

    def every(self, title: str) -> Rule:
        first = self.facts()
        form = self.next("has, follows, or is followed by")
        if form == "is":
            self.expect("followed")
            self.expect("by")
            form = "is followed by"
        elif form not in ("has", "follows"):
            raise self.wrong(repr(form), "has, follows, or is followed by")
        other = self.facts()
        self.expect("with")
        self.expect("the")
        self.expect("same")
        same = self.same(first, other)
        within_ns, before = None, None
        if form == "is followed by" and self.take("within"):
            within_ns = self.duration()
        if form == "is followed by" and self.take("before"):
            before = self.facts()
            for field, _ in same:
                self.check(field, before.kinds)
        return Rule(title, self.text, self.number, form, first, other, same, "", within_ns, before)

    def moves(self, title: str, field: str) -> Rule:
        self.expect("of", "never, every, or a field: fence of job.leased rises")
        first = self.facts()
        self.check(field, first.kinds)
        form = self.next("rises, or never falls")
        if form == "never":
            self.expect("falls")
            form = "never falls"
        elif form != "rises":
            raise self.wrong(repr(form), "rises, or never falls")
        same: tuple[tuple[str, str], ...] = ()
        if self.take("for"):
            self.expect("the")
            self.expect("same")
            same = self.same(first, first)
        return Rule(title, self.text, self.number, form, first, None, same, field)

    def same(self, first: Set, other: Set) -> tuple[tuple[str, str], ...]:
        pairs = []
        while True:
            field = self.next("a field")
            pair = field, self.next("a field") if self.take("as") else field
            self.check(pair[0], first.kinds)
            self.check(pair[1], other.kinds)
            pairs.append(pair)
            if not (self.take(",") or self.take("and")):
                return tuple(pairs)

    def facts(self) -> Set:
        kinds: set[str] = set()
        while True:
            kinds |= self.kind()
            if not (self.take("or") or self.take(",")):
                break
        known = frozenset(kinds)
        self.fields = []
        cond = self.either(known) if self.take("where") else None
        return Set(known, cond, tuple(dict.fromkeys(self.fields)))

    def kind(self) -> set[str]:
        word = self.next("a kind of fact: write, job.leased, Twrite")
        found = {kind for kind in KINDS if fnmatchcase(kind, word)}
        if not found:
            near = [kind for kind in KINDS if word.partition(".")[0] == kind.partition(".")[0]]
            expected = " ".join(near) or "write, a type of event as job.leased, or a message as Twrite"
            raise self.wrong(f"{word!r} is no kind of fact", expected)
        return found

    def check(self, field: str, kinds: frozenset[str]) -> None:
        """One of the kinds at least must have the field."""
        if any(field.partition(".")[0] in KINDS[kind] for kind in kinds):
            return
        kind = min(kinds)
        own = sorted(KINDS[kind] - EVENT - MESSAGE) or sorted(KINDS[kind])
        raise self.wrong(
            f"{field!r} is no field of {kind}", f"one of {' '.join(own)}, or {' '.join(sorted(EVENT))}"
        )

    # conditions

    def either(self, kinds: frozenset[str]) -> Cond:
        found = [self.both(kinds)]
        while self.take("or"):
            found.append(self.both(kinds))
        return found[0] if len(found) == 1 else lambda fields: any(each(fields) for each in found)

    def both(self, kinds: frozenset[str]) -> Cond:
        found = [self.one(kinds)]
        while self.take("and"):
            found.append(self.one(kinds))
        return found[0] if len(found) == 1 else lambda fields: all(each(fields) for each in found)

    def one(self, kinds: frozenset[str]) -> Cond:
        if self.take("not"):
            inner = self.one(kinds)
            return lambda fields: not inner(fields)
        if self.take("("):
            inner = self.either(kinds)
            self.expect(")")
            return inner
        field = self.next("a field, not, or (")
        if field in _RESERVED:
            raise self.wrong(repr(field), "a field, not, or (")
        self.check(field, kinds)
        self.fields.append(field)
        if field == "outside" and self.take("its"):
            self.expect("namespace")
        return self.test(field)

    def test(self, field: str) -> Cond:
        if self.at < len(self.words) and self.words[self.at] in _COMPARED:
            compare = _COMPARED[self.next("")]
            value = self.value()
            if isinstance(value, int):
                return lambda fields: (
                    compare(fields.get(field, 0) or 0, value) if _is_number(fields, field) else False
                )
            return lambda fields: compare(str(fields.get(field, "")), value)
        if self.take("in"):
            values = {str(self.value())}
            while self.take(","):
                values.add(str(self.value()))
            return lambda fields: str(fields.get(field, "")) in values
        if self.take("under"):
            place = str(self.value()).rstrip("/")
            return lambda fields: f"{fields.get(field, '')}/".startswith(f"{place}/")
        if self.take("like"):
            pattern = str(self.value())
            return lambda fields: fnmatchcase(str(fields.get(field, "")), pattern)
        return lambda fields: bool(fields.get(field))

    def value(self) -> Value:
        word = self.next("a value")
        if word in ("(", ")", ","):
            raise self.wrong(repr(word), "a value")
        if word.startswith('"'):
            return word[1:-1]
        return int(word) if re.fullmatch(r"-?\d+", word) else word

    def duration(self) -> int:
        word = self.next("a duration, 30s")
        try:
            return parse_duration(word)
        except ValueError as error:
            raise self.wrong(repr(word), "a duration, 30s") from error

    # words

    def next(self, expected: str) -> str:
        if self.at == len(self.words):
            raise self.wrong("the rule ends too soon", expected)
        self.at += 1
        return self.words[self.at - 1]

    def take(self, word: str) -> bool:
        found = self.at < len(self.words) and self.words[self.at] == word
        self.at += found
        return found

    def expect(self, word: str, said: str = "") -> None:
        expected = said or word
        found = self.next(expected)
        if found != word:
            raise self.wrong(repr(found), expected)


def _is_number(fields: Fields, field: str) -> bool:
    return isinstance(fields.get(field, 0), int)
