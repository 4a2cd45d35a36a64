"""Whether what was valid by one schema is valid by another: the rules of a minor version.

A new minor takes every document that the one before it took. What is told as a break may be harmless, where
to see that would take more than these rules; what is told as none is none.

    type             may become wider; integer is within number; it may go
    enum, const      may gain values, not lose them; may go
    minimum …        bounds may move outwards, or go; multipleOf may become a divisor
    pattern, format  stay, or go; so do oneOf, not, if/then/else, contains and dependentSchemas, as a whole
    required         may lose names, not gain them; so may dependentRequired
    properties       each may loosen. A new one must take what additionalProperties took before: anything,
                     where it says nothing. One that goes must be taken by what additionalProperties is now.
    prefixItems      the same, with items
    allOf            each of the new is looser than one of the old, or than the whole
    anyOf            each of the old is within one of the new
    $ref             what it stands for is compared; so is what refers to itself
    unevaluated…     the schema around it stays as it is

Source: JSON Schema 2020-12, draft-bhutton-json-schema-validation-01.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from skep.trace.entry import canonical

Schema = Any  # a dict or a bool: JSON

STEPS_MAX: Final = 20_000  # places compared: schemas that refer to themselves in many ways are many places.
DEPTH_MAX: Final = 64  # places within another: each is some calls deep.

# Keywords that take nothing away from what is valid.
NOTES: Final = frozenset({
    "$schema", "$id", "$comment", "$defs", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly",
})  # fmt: skip
TYPES: Final = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
# At least this of something: the new may ask for less. At most: for more.
LEAST: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
MOST: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
# Keywords that stay or go together: the first is there, or none of them means anything.
WHOLE: Final = (
    ("pattern",), ("format",), ("contentEncoding",), ("contentMediaType",), ("oneOf",), ("not",),
    ("if", "then", "else"), ("contains", "minContains", "maxContains"), ("dependentSchemas",),
)  # fmt: skip
UNEVALUATED: Final = ("unevaluatedProperties", "unevaluatedItems")
# Where schemas are within a schema: as one, in a list, or by name.
ONE: Final = frozenset({
    "additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else", *UNEVALUATED,
})  # fmt: skip
LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})
KEYWORDS: Final[frozenset[str]] = frozenset({
    "$ref", "type", "enum", "const", "multipleOf", "uniqueItems", "required", "dependentRequired",
    *NOTES, *LEAST, *MOST, *(name for names in WHOLE for name in names), *ONE, *LISTS, *MAPS,
})  # fmt: skip


def within(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """The schemas right within a good one, each with its path."""
    for name, value in schema.items():
        if name in ONE:
            yield (name,), value
        elif name in LISTS:
            yield from (((name, str(i)), each) for i, each in enumerate(value))
        elif name in MAPS:
            yield from (((name, key), each) for key, each in value.items())


def pointed(name: str) -> str:
    """A name as a JSON pointer has it."""
    return name.replace("~", "~0").replace("/", "~1")


def resolve(root: Schema, reference: str) -> Schema:
    """What ``#/$defs/x`` stands for. Raises LookupError, ValueError, TypeError."""
    found = root
    for name in reference.removeprefix("#").split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


class Break(NamedTuple):
    """A place of the new schema, as a JSON pointer, and why it takes less."""

    pointer: str
    why: str


class Frame(NamedTuple):
    """Where the comparison is: the pointer, and what is being compared around it through $ref."""

    pointer: str = ""
    around: frozenset[tuple[bytes, bytes]] = frozenset()
    depth: int = 0

    def at(self, *names: str | int) -> Frame:
        pointer = "/".join((self.pointer, *(pointed(str(name)) for name in names)))
        return Frame(pointer, self.around, self.depth + 1)

    def through(self, pair: tuple[bytes, bytes]) -> Frame:
        return Frame(self.pointer, self.around | {pair}, self.depth + 1)


def breaks(old: Schema, new: Schema) -> list[Break]:
    """Every place where the new schema takes less than the old one; both are good schemas."""
    try:
        return list(_Compared(old, new).places(old, new, Frame()))
    except _TooMuch:
        return [Break("", f"too intricate: more than {STEPS_MAX} places, or {DEPTH_MAX} within another")]


class _TooMuch(Exception):
    """The comparison would take too long, or go too deep."""


class _Compared:
    """Two whole schemas: what their references lead into."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self.old = old
        self.new = new
        self.steps = 0

    def places(self, old: Schema, new: Schema, frame: Frame) -> Iterator[Break]:
        """The breaks from ``old`` to ``new``, parts of the two that apply to the same values."""
        self.steps += 1
        if self.steps > STEPS_MAX or frame.depth > DEPTH_MAX:
            raise _TooMuch
        old, new = _plain(old), _plain(new)
        if new == {} or old is False:
            return
        if new is False:
            yield Break(frame.pointer, "nothing is taken any more")
        elif "$ref" in old or "$ref" in new:
            pair = canonical(old), canonical(new)
            # What is being asked already holds unless it breaks elsewhere: documents are finite.
            if pair not in frame.around:
                followed = _followed(self.old, old), _followed(self.new, new)
                yield from self.places(*followed, frame.through(pair))
        else:
            for rule in _RULES:
                yield from rule(self, old, new, frame)

    def fits(self, old: Schema, new: Schema, frame: Frame) -> bool:
        return next(self.places(old, new, frame), None) is None

    def same(self, old: object, new: object) -> bool:
        """Whether the texts are the same, and, if they refer to others, so is all that they may refer to."""
        text = canonical(new)
        if canonical(old) != text:
            return False
        return b'"$ref"' not in text or canonical(self.old) == canonical(self.new)


def _plain(schema: Schema) -> Schema:
    """The schema without what takes nothing away; True is {}."""
    if isinstance(schema, dict):
        return {name: value for name, value in schema.items() if name in KEYWORDS and name not in NOTES}
    return {} if schema else False


def _followed(root: Schema, schema: Schema) -> Schema:
    """What a schema with a $ref says: what stands there; with others beside it, all of that."""
    if "$ref" not in schema:
        return schema
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    if not beside:
        return resolve(root, schema["$ref"])
    return beside | {"allOf": [{"$ref": schema["$ref"]}, *beside.get("allOf", [])]}


# the rules


Found = Iterator[Break]


def _type(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    if gone := sorted(_types(old) - _types(new)):
        yield Break(frame.at("type").pointer, f"{' '.join(gone)} was taken")


def _types(schema: Schema) -> frozenset[str]:
    said = schema.get("type", sorted(TYPES))
    found = frozenset([said] if isinstance(said, str) else said)
    return found | {"integer"} if "number" in found else found


def _enum(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    now, before = _values(new), _values(old)
    if now is None:
        return
    where = frame.at("enum" if "enum" in new else "const").pointer
    if before is None:
        yield Break(where, "other values were taken")
    elif gone := sorted(before - now):
        yield Break(where, f"{b' '.join(gone).decode()} was taken")


def _values(schema: Schema) -> frozenset[bytes] | None:
    """The values that there may be, as text; None: they are not told."""
    said = [[schema["const"]]] if "const" in schema else []
    said += [schema["enum"]] if "enum" in schema else []
    return frozenset.intersection(*(frozenset(map(canonical, each)) for each in said)) if said else None


def _bounds(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    for name in (*LEAST, *MOST):
        if name not in new:
            continue
        if name not in old:
            yield Break(frame.at(name).pointer, "there was no such bound")
        elif new[name] > old[name] if name in LEAST else new[name] < old[name]:
            yield Break(frame.at(name).pointer, f"it was {old[name]}")
    if new.get("uniqueItems") and not old.get("uniqueItems"):
        yield Break(frame.at("uniqueItems").pointer, "items could be the same")


def _multiple(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    if "multipleOf" not in new:
        return
    was, now = old.get("multipleOf"), new["multipleOf"]
    divides = isinstance(was, int) and isinstance(now, int) and was % now == 0
    if was != now and not divides:
        yield Break(frame.at("multipleOf").pointer, "other multiples were taken")


def _whole(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    for names in WHOLE:
        if names[0] in new:
            was, now = ({name: each[name] for name in names if name in each} for each in (old, new))
            if not compared.same(was, now):
                yield Break(frame.at(names[0]).pointer, "it may stay as it is or go, not change")


def _required(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    if added := sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield Break(frame.at("required").pointer, f"{' '.join(added)} could be missing")
    for name, needs in new.get("dependentRequired", {}).items():
        if added := sorted(set(needs) - set(old.get("dependentRequired", {}).get(name, ()))):
            yield Break(frame.at("dependentRequired", name).pointer, f"{' '.join(added)} could be missing")


def _properties(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    before, now = old.get("properties", {}), new.get("properties", {})
    patterns, patterns_now = old.get("patternProperties", {}), new.get("patternProperties", {})
    others, others_now = old.get("additionalProperties", {}), new.get("additionalProperties", {})
    for name, schema in now.items():
        # One that was not named was taken by a pattern that it matches, or as additional.
        for was in [before[name]] if name in before else [*patterns.values(), others]:
            yield from compared.places(was, schema, frame.at("properties", name))
    for pattern, schema in patterns_now.items():
        yield from compared.places(patterns.get(pattern, {}), schema, frame.at("patternProperties", pattern))
    gone = [schema for name, schema in before.items() if name not in now]
    gone += [schema for pattern, schema in patterns.items() if pattern not in patterns_now]
    for was in (*gone, others):
        yield from compared.places(was, others_now, frame.at("additionalProperties"))
    names = frame.at("propertyNames")
    yield from compared.places(old.get("propertyNames", {}), new.get("propertyNames", {}), names)


def _items(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    before, now = old.get("prefixItems", []), new.get("prefixItems", [])
    rest, rest_now = old.get("items", {}), new.get("items", {})
    for i in range(max(len(before), len(now))):
        was = before[i] if i < len(before) else rest
        where = frame.at("prefixItems", i) if i < len(now) else frame.at("items")
        yield from compared.places(was, now[i] if i < len(now) else rest_now, where)
    yield from compared.places(rest, rest_now, frame.at("items"))


def _all_of(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    for i, schema in enumerate(new.get("allOf", ())):
        here = frame.at("allOf", i)
        if not any(compared.fits(each, schema, here) for each in (*old.get("allOf", ()), old)):
            yield from compared.places(old, schema, here)


def _any_of(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    if "anyOf" not in new:
        return
    here = frame.at("anyOf")
    for i, each in enumerate(old.get("anyOf", [old])):
        if not any(compared.fits(each, schema, here) for schema in new["anyOf"]):
            yield Break(here.pointer, f"none takes what {i} of the old took")


def _unevaluated(compared: _Compared, old: Schema, new: Schema, frame: Frame) -> Found:
    for name in UNEVALUATED:
        if _plain(new.get(name, True)) != {} and not compared.same(old, new):
            yield Break(frame.at(name).pointer, "the schema around it must stay as it is")


_RULES: Final[tuple[Callable[[_Compared, Schema, Schema, Frame], Found], ...]] = (
    _type, _enum, _bounds, _multiple, _whole, _required, _properties, _items, _all_of, _any_of, _unevaluated,
)  # fmt: skip
