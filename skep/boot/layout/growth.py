"""How much larger a file is than another: by section, by symbol, in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from skep.boot.layout.checking import Change, Checked, Report, add
from skep.boot.layout.reading import STT_FILE, STT_SECTION, Elf
from skep.boot.layout.rule import Found, Unknown

SYMBOLS_SHOWN: Final = 20  # those that changed most


class Budget(NamedTuple):
    """At most ``size`` bytes, or, relative, so many more than the base has. ``member``: of an image, "": the
    file itself."""

    member: str
    name: str
    size: int
    relative: bool


class BadBudget(ValueError):
    """It is not [MEMBER:]NAME=[+]BYTES."""


def parse_budget(text: str) -> Budget:
    """Raises BadBudget."""
    what, equals, size = text.rpartition("=")
    member, _, name = what.rpartition(":")
    try:
        number = int(size.removeprefix("+"), 0)
    except ValueError:
        number = -1
    if not equals or not name or number < 0:
        raise BadBudget(
            f"budget {text!r}: expected [MEMBER:]NAME=[+]BYTES, as .text=65536 or rootserver:file=+4096"
        )
    return Budget(member, name, number, size.startswith("+"))


def compare(budgets: Sequence[Budget], now: Checked, was: Checked | None) -> None:
    """Add to the reports what is over its budget."""
    bases = {_inside(each, was): each.sizes for each in was.report.all()} if was is not None else {}
    inside = {_inside(each, now): each for each in now.report.all()}
    for member, report in inside.items():
        mine = [each for each in budgets if each.member == member]
        add(report, "S1", within(mine, report.sizes, bases.get(member, {})))
        # A name that was mistyped is no budget that was kept.
        known = report.sizes.keys() | bases.get(member, {}).keys()
        add(report, "S1", [Unknown(f"there is no {each.name}") for each in mine if each.name not in known])
    for each in budgets:
        if each.member not in inside:
            add(now.report, "S1", [Unknown(f"there is no {each.member} inside")])


def within(budgets: Iterable[Budget], now: Mapping[str, int], was: Mapping[str, int]) -> Iterator[Found]:
    """What is over its budget, of one file. A section that is not there has no bytes."""
    for each in budgets:
        size, limit = now.get(each.name, 0), each.size + (was.get(each.name, 0) if each.relative else 0)
        if size > limit:
            more = f" (the base has {was.get(each.name, 0)})" if each.relative else ""
            yield Found(each.name, f"{size} bytes", f"at most {limit}{more}")


def changes(now: Checked, was: Checked) -> Iterator[Change]:
    """Of the file, and of what is inside by its name: sizes that are others, then the symbols that changed
    most."""
    bases = {_inside(each, was): each for each in was.report.all()}
    for report in now.report.all():
        inside = _inside(report, now)
        base = bases.get(inside)
        yield from _differing(inside, "size", base.sizes if base is not None else {}, report.sizes)
        its = was.elves.get(base.name) if base is not None else None
        symbols = _differing(inside, "symbol", _symbols(its), _symbols(now.elves.get(report.name)))
        yield from sorted(symbols, key=lambda each: (-abs(each.by), each.name))[:SYMBOLS_SHOWN]
    for inside in sorted(bases.keys() - {_inside(each, now) for each in now.report.all()}):
        yield from _differing(inside, "size", bases[inside].sizes, {})


def _inside(report: Report, file: Checked) -> str:
    """A member's name; "": the file itself."""
    return report.name[len(file.report.name) + 1 :]


def _differing(member: str, kind: str, was: Mapping[str, int], now: Mapping[str, int]) -> Iterator[Change]:
    for name in dict.fromkeys([*was, *now]):
        if was.get(name, 0) != now.get(name, 0):
            yield Change(member, kind, name, was.get(name, 0), now.get(name, 0))


def _symbols(elf: Elf | None) -> dict[str, int]:
    """Bytes by name; static ones of one name are added."""
    sizes: dict[str, int] = {}
    for each in elf.symbols or () if elf is not None else ():
        if each.size and each.kind not in (STT_SECTION, STT_FILE):
            sizes[each.name] = sizes.get(each.name, 0) + each.size
    return sizes
