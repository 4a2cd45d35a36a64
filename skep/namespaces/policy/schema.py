"""The hive's schema: what every request to the policies has, written out from the tables of verbs.

Each verb is an action named ``noun.verb`` (``hive.drain`` of the hive itself), in the group of its noun, and
its arguments are the record ``context.args``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from skep.fs.ctl import Arg, Verbs, size
from skep.namespaces.policy.request import ATTRIBUTES, Value

Tables = Mapping[str, Mapping[str, Verbs]]

HEAD: Final = """\
// What a policy may ask about. Written by `skep policy schema` from the hive's tables of verbs.
namespace Skep {
  // A role is a manifest's name: principal in Skep::Role::"operator".
  entity Role;
"""


def noun_of(noun: str) -> str:
    """The group of a noun's actions."""
    return noun or "hive"


@lru_cache(maxsize=1024)
def action_of(noun: str, verb: str) -> str:
    """``jobs.submit``; ``hive.drain`` of the hive itself."""
    return f"{noun_of(noun)}.{verb}"


def group_of(action: str) -> str:
    """The group that an action is in."""
    return action.partition(".")[0]


def schema(tables: Tables, hidden: frozenset[str] = frozenset()) -> str:
    """The schema in Cedar's syntax; ``hidden`` are ``/noun/place/verb`` that only the hive itself writes."""
    return "".join(f"{line}\n" for line in _lines(tables, hidden))


def _lines(tables: Tables, hidden: frozenset[str]) -> Iterator[str]:
    yield from HEAD.splitlines()
    yield "  entity Principal in [Role] {"
    yield from _attributes("principal", "    ", ",")
    yield "  };"
    yield '  // Its labels are its tags: resource.hasTag("team") && resource.getTag("team") == "red".'
    yield "  entity Resource {"
    yield from _attributes("resource", "    ", ",")
    yield "  } tags String;"
    yield "  // Every context has args, those of the verb, and:"
    yield from _attributes("context", "  //   ", "")
    context = ", ".join(
        f"{name[1]}: {each.type}" for name, each in ATTRIBUTES.items() if name[0] == "context"
    )
    for noun, places in tables.items():
        found = _verbs(noun, places, hidden)
        if found:
            yield f'\n  action "{noun_of(noun)}";'
        for verb, args in found.items():
            yield f'  action "{action_of(noun, verb)}" in ["{noun_of(noun)}"] appliesTo {{'
            yield "    principal: Principal, resource: Resource,"
            yield f"    context: {{ args: {{ {', '.join(args)} }}," if args else "    context: { args: {},"
            yield f"      {context} }},"
            yield "  };"
    yield "}"


def _attributes(of: str, indent: str, end: str) -> Iterator[str]:
    for name, attribute in ATTRIBUTES.items():
        if name[0] == of:
            yield f"{indent}{name[1]}: {attribute.type}{end} {'//' if end else '-'} {attribute.about}"


def _verbs(noun: str, places: Mapping[str, Verbs], hidden: frozenset[str]) -> dict[str, list[str]]:
    """Each verb's arguments as attributes; a verb that several files have has those of all."""
    rows: dict[str, list[tuple[Arg, ...]]] = {}
    for place, verbs in places.items():
        for verb in verbs.values():
            if verb_path(noun, place, verb.name) not in hidden:
                rows.setdefault(verb.name, []).append(verb.args)
    return {verb: _record(every) for verb, every in rows.items()}


def verb_path(noun: str, place: str, verb: str) -> str:
    """``/jobs/*/ctl/submit``."""
    return f"{'/' if noun else ''}{noun}/{place}/{verb}"


def _record(rows: list[tuple[Arg, ...]]) -> list[str]:
    args = {arg.name: arg for row in rows for arg in row}
    always = {name for name in args if all(any(a.name == name and a.required for a in row) for row in rows)}
    return [
        f'"{name}"{"" if name in always else "?"}: {"Long" if is_long(arg) else "String"}'
        for name, arg in args.items()
    ]


def is_long(arg: Arg) -> bool:
    """Whether the argument is a number to Cedar."""
    return arg.kind in ("number", "size") or all(word.isdigit() for word in arg.kind.split("|"))


def typed_args(args: Mapping[str, str], row: tuple[Arg, ...]) -> dict[str, Value]:
    """The arguments of a checked command as Cedar sees them."""
    longs = {arg.name: size if arg.kind == "size" else int for arg in row if is_long(arg)}
    return {name: longs[name](value) if name in longs else value for name, value in args.items()}
