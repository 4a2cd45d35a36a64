"""Schemas: what is refused, what a minor version may change, what is told of documents, /schemas."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import jsonschema_rs
import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, Folded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_hive_tree import Served, refused, served

from skep.fs import ctl
from skep.fs.errors import E
from skep.fs.node import Caller
from skep.namespaces.packed import pack
from skep.namespaces.schemas.compat import breaks
from skep.namespaces.schemas.core import DIALECT, Error, SchemaError, parse
from skep.trace.entry import canonical
from skep.trace.rules import Refusal

THUMB = {
    "type": "object",
    "required": ["width"],
    "properties": {"width": {"type": "integer", "minimum": 1}, "kind": {"enum": ["png", "jpeg"]}},
    "additionalProperties": False,
}


def changed(**more: Any) -> dict[str, Any]:
    return THUMB | more


def with_property(name: str, schema: Any) -> dict[str, Any]:
    return changed(properties={**THUMB["properties"], name: schema})  # type: ignore[dict-item]


# compatibility


@pytest.mark.parametrize(
    ("new", "pointer", "why"),
    [
        (changed(required=["width", "kind"]), "/required", "kind could be missing"),
        (with_property("kind", {"enum": ["png"]}), "/properties/kind/enum", '"jpeg" was taken'),
        (with_property("kind", {"const": "png"}), "/properties/kind/const", '"jpeg" was taken'),
        (with_property("width", {"type": "string"}), "/properties/width/type", "integer was taken"),
        (with_property("width", {"type": "integer", "minimum": 2}), "/properties/width/minimum", "it was 1"),
        (
            with_property("width", {"type": "integer", "minimum": 1, "maximum": 9}),
            "/properties/width/maximum",
            "there was no such bound",
        ),
        (
            with_property("width", {"type": "integer", "minimum": 1, "multipleOf": 2}),
            "/properties/width/multipleOf",
            "other multiples were taken",
        ),
        (with_property("kind", False), "/properties/kind", "nothing is taken any more"),
        (changed(type="string"), "/type", "object was taken"),
        (
            changed(properties={"width": THUMB["properties"]["width"]}),  # type: ignore[index]
            "/additionalProperties",
            "nothing is taken any more",
        ),
        (changed(maxProperties=3), "/maxProperties", "there was no such bound"),
        (
            changed(propertyNames={"pattern": "^a"}),
            "/propertyNames/pattern",
            "it may stay as it is or go, not change",
        ),
        (changed(dependentRequired={"kind": ["x"]}), "/dependentRequired/kind", "x could be missing"),
        (changed(allOf=[{"required": ["kind"]}]), "/allOf/0/required", "kind could be missing"),
        (changed(anyOf=[{"required": ["kind"]}]), "/anyOf", "none takes what 0 of the old took"),
        (changed(**{"not": {"required": ["kind"]}}), "/not", "it may stay as it is or go, not change"),
        (
            changed(unevaluatedProperties=False),
            "/unevaluatedProperties",
            "the schema around it must stay as it is",
        ),
        (False, "", "nothing is taken any more"),
    ],
)
def test_what_breaks(new: Any, pointer: str, why: str) -> None:
    parse(canonical(new))
    assert (pointer, why) == breaks(THUMB, new)[0]


@pytest.mark.parametrize(
    "new",
    [
        THUMB,
        True,
        {},
        changed(title="another", description="words"),
        changed(required=[]),
        changed(additionalProperties=True),
        with_property("height", {"type": "integer"}),
        with_property("kind", {"enum": ["png", "jpeg", "webp"]}),
        with_property("kind", {}),
        with_property("width", {"type": "number", "minimum": 0}),
        with_property("width", {"type": ["integer", "null"], "exclusiveMinimum": 0, "minimum": 0})
        | {"x-y": 1},
        changed(allOf=[{"required": ["width"]}]),
        changed(anyOf=[{"required": ["kind"]}, {"required": ["width"]}]),
        changed(patternProperties={"^x": True}),
        {"$ref": "#/$defs/thumb", "$defs": {"thumb": THUMB}},
    ],
)
def test_what_does_not_break(new: Any) -> None:
    parse(canonical(new))
    found = breaks(THUMB, new)
    # A bound of another kind beside the old one is the one break told here that is none.
    if isinstance(new, dict) and "x-y" in new:
        assert ["/properties/width/exclusiveMinimum"] == [each.pointer for each in found]
    else:
        assert [] == found


def test_a_property_is_new_to_an_open_object_only_when_it_takes_anything() -> None:
    old = {"type": "object"}
    (found,) = breaks(old, {"type": "object", "properties": {"a": {"type": "string"}}})
    assert "/properties/a/type" == found.pointer
    assert [] == breaks(old, {"type": "object", "properties": {"a": {"description": "anything"}}})


def test_schemas_that_refer_to_themselves_are_compared() -> None:
    def tree(leaf: Any) -> Any:
        return {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {"type": "object", "properties": {"leaf": leaf, "next": {"$ref": "#/$defs/node"}}}
            },
        }

    assert [] == breaks(tree({"type": "integer"}), tree({"type": "number"}))
    (found,) = breaks(tree({"type": "number"}), tree({"type": "integer"}))
    assert ("/properties/leaf/type", "number was taken") == found


def test_what_is_compared_as_a_whole_includes_what_it_refers_to() -> None:
    def negated(type_: str) -> Any:
        return {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": type_}}}

    assert [] == breaks(negated("string"), negated("string"))
    assert ["/not"] == [each.pointer for each in breaks(negated("string"), negated("integer"))]


def test_a_chain_too_long_to_compare_is_a_break() -> None:
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(200)} | {"d200": {"type": "string"}}
    whole = {"$ref": "#/$defs/d0", "$defs": chain}
    parse(canonical(whole))
    (found,) = breaks(whole, whole)
    assert found.why.startswith("too intricate")


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"])
names = st.sampled_from("ab")
instances = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


def parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    types = st.sampled_from(["null", "boolean", "object", "array", "number", "integer", "string"])
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types | st.lists(types, min_size=1, unique=True),
            "enum": st.lists(scalars, min_size=1, max_size=3, unique_by=repr),
            "const": scalars,
            "minimum": st.integers(-2, 2),
            "exclusiveMaximum": st.integers(-2, 2),
            "multipleOf": st.integers(1, 3),
            "maxLength": st.integers(0, 2),
            "minItems": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "required": st.lists(names, unique=True),
            "properties": st.dictionaries(names, inner, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["a", "^b"]), inner, max_size=1),
            "additionalProperties": inner,
            "propertyNames": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "items": inner,
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "$ref": st.sampled_from(["#/$defs/a", "#/$defs/b"]),
            "unevaluatedProperties": st.booleans(),
        },
    )


schemas = st.recursive(st.booleans() | st.just({}), parts, max_leaves=6)
kinds = st.fixed_dictionaries({"a": schemas, "b": schemas})


@st.composite
def changes(draw: st.DrawFn) -> tuple[Any, Any]:
    """A schema, and it with some keywords taken away, replaced or added somewhere."""
    old = draw(parts(schemas)) | {"$defs": draw(kinds)}
    new = json.loads(json.dumps(old))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(dicts(new))))
        more = draw(parts(schemas))
        for name in list(place):
            if name != "$defs" and draw(st.integers(0, 3)) == 0:
                del place[name]
        if more and draw(st.booleans()):
            name = draw(st.sampled_from(sorted(more)))
            place[name] = more[name]
    return old, new


def dicts(schema: Any) -> Any:
    """The schemas of a schema that are dicts, itself first."""
    if isinstance(schema, dict):
        yield schema
        for name in ("additionalProperties", "propertyNames", "items", "not"):
            yield from dicts(schema.get(name))
        for name in ("prefixItems", "allOf", "anyOf"):
            for each in schema.get(name, ()):
                yield from dicts(each)
        for name in ("properties", "patternProperties", "$defs"):
            for each in schema.get(name, {}).values():
                yield from dicts(each)


def takes(schema: Any) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(changes(), st.lists(instances, min_size=20, max_size=20))
def test_a_minor_version_takes_all_that_the_one_before_took(
    pair: tuple[Any, Any], documents: list[Any]
) -> None:
    old, new = pair
    try:
        parse(canonical(old))
        parse(canonical(new))
    except SchemaError:
        assume(False)
    if not breaks(old, new):
        was, now = takes(old), takes(new)
        for document in documents:
            assert not was.is_valid(document) or now.is_valid(document), (document, old, new)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(parts(schemas))
def test_a_schema_without_references_is_a_minor_of_itself(schema: Any) -> None:
    assume("$ref" not in json.dumps(schema))
    assert [] == breaks(schema, schema)


# what a schema may be


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "intger"}, "/type: "),
        ({"typ": "integer"}, "/typ: unknown keyword"),
        ({"properties": {"a": {"minLenght": 1}}}, "/properties/a/minLenght: unknown keyword"),
        ({"properties": {"a": {"minLength": "x"}}}, "/properties/a/minLength: "),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, f"/$schema: expected {DIALECT}"),
        ({"$ref": "#/$defs/none"}, "/$ref: expected a place in this schema"),
        ({"items": {"$ref": "https://elsewhere/x"}}, "/items/$ref: expected a place in this schema"),
        ({"$ref": "file:///etc/passwd"}, "/$ref: expected a place in this schema"),
        ({"properties": {"a": {"$id": "urn:x"}}}, "/properties/a/$id: only the whole schema has one"),
        ({"pattern": "(?=a)b"}, "/pattern: "),
        ({"$dynamicRef": "#x"}, "/$dynamicRef: unknown keyword"),
        ([], "/: "),
    ],
)
def test_a_schema_that_is_not_good_is_refused_with_a_pointer(schema: Any, why: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse(canonical(schema))
    assert str(caught.value).startswith(why)


def test_a_schema_that_is_too_deep_is_refused() -> None:
    for depth in (40, 100, 4000):
        with pytest.raises(SchemaError):
            parse(b'{"items":' * depth + b"{}" + b"}" * depth)
    with pytest.raises(SchemaError, match="at most 256"):
        parse(canonical({"allOf": [{"$ref": "#/$defs/a"}] * 300, "$defs": {"a": True}}))


# the fold


def publish(hive: Folded, schema: Any, id: str = "thumb", who: Caller = ANN, **more: str) -> str:
    text = canonical(schema)
    args = {"id": id, "sha256": sha256(text).hexdigest(), "content": pack(text)} | more
    return hive.write("/schemas/ctl", ctl.line("publish", args), who)


def refusal(hive: Folded, schema: Any, id: str = "thumb", who: Caller = ANN, **more: str) -> str:
    with pytest.raises(Refusal) as caught:
        publish(hive, schema, id, who, **more)
    return caught.value.text


def test_versions_are_counted_and_a_break_takes_a_new_major() -> None:
    hive = Folded()
    assert "thumb@1.0" == publish(hive, THUMB)
    assert "thumb@1.0" == publish(hive, THUMB)
    assert "thumb@1.1" == publish(hive, with_property("height", {"type": "integer"}))
    assert "conflict: /required: kind could be missing, in thumb@1.1: it takes bump=major" == refusal(
        hive, changed(required=["width", "kind"], additionalProperties=True)
    )
    assert "thumb@2.0" == publish(hive, changed(required=["width", "kind"]), bump="major")
    state = hive.state.schemas
    assert ["1.0", "1.1", "2.0"] == list(state.by_id["thumb"].versions)
    assert ["2.0", "1.1", "1.0"] == [str(state.version(f"thumb{at}")) for at in ("", "@1", "@1.0")]
    for wrong in ("thum", "thumb@3", "thumb@1.2", "thumb@", "thumb@01", "thumb@1.0.0"):
        with pytest.raises(SchemaError, match="there is no such"):
            state.version(wrong)
    assert state == state.copy()


def test_a_document_is_checked_by_the_version_it_is_asked_about() -> None:
    hive = Folded()
    publish(hive, THUMB)
    publish(hive, changed(required=["width", "kind"]), bump="major")
    state = hive.state.schemas
    state.check("thumb@1", {"width": 3})
    with pytest.raises(SchemaError, match='/: "kind" is a required property'):
        state.check("thumb", {"width": 3})
    assert (Error("/width", "it is less than the minimum of 1"),) == state.errors("thumb@1", {"width": 0})
    with pytest.raises(SchemaError, match="there is no such schema"):
        state.check("other", {})


def test_errors_do_not_tell_values() -> None:
    hive = Folded()
    publish(hive, {"properties": {"a": {"enum": ["x"]}, "b": {"pattern": "^x"}, "c": {"type": "integer"}}})
    found = hive.state.schemas.errors("thumb", dict.fromkeys("abc", "hunter2"))
    assert {"/a", "/b", "/c"} == {error.pointer for error in found}
    assert not any("hunter2" in error.why for error in found)


def test_schemas_are_the_hives_to_publish() -> None:
    hive = Folded()
    assert "rule=hive-tenant" in refusal(hive, THUMB, who=BOB)
    for wrong in ("a@1", "ctl", "check"):
        assert "expected a name without @" in refusal(hive, THUMB, wrong)
    assert "integrity: " in refusal(hive, THUMB, sha256="0" * 64)
    assert "schema: /typ: unknown keyword" == refusal(hive, {"typ": 1})
    publish(hive, THUMB)
    assert "conflict: rev" in refusal(hive, True, **{"if-rev": "1"})


# /schemas


async def put(door: Door, id: str, schema: Any, more: str = "") -> str:
    text = json.dumps(schema)
    if not await door.exists(f"/schemas/{id}"):
        await (await door.walk("/schemas")).mkdir(id, 0o755, 0)
    draft = await door.open(f"/schemas/{id}/draft", BOTH)
    await say(draft, text)
    await draft.clunk()
    chan = await door.open("/schemas/ctl", BOTH)
    await say(chan, f"publish id={id} sha256={sha256(text.encode()).hexdigest()} {more}\n")
    return (await rest(chan)).decode().split(" ")[0]


async def check(door: Door, schema: str, document: Any) -> Any:
    chan = await door.open("/schemas/check", BOTH)
    await say(chan, json.dumps({"schema": schema, "document": document}))
    return json.loads(await rest(chan))


def test_a_schema_is_published_read_and_asked() -> None:
    async def story(hive: Served) -> None:
        ann, bob = hive.ann, hive.bob
        assert "thumb@1.0" == await put(ann, "thumb", THUMB)
        assert "thumb@2.0" == await put(ann, "thumb", {"type": "string"}, "bump=major")
        assert ["draft", "versions", "1.0", "2.0"] == await ann.names("/schemas/thumb")
        assert THUMB == json.loads(await bob.read("/schemas/thumb/1.0"))
        assert ["1.0", "2.0"] == [
            line[:3] for line in (await bob.read("/schemas/thumb/versions")).splitlines()
        ]
        assert {"schema": "thumb@1.0", "valid": True} == await check(bob, "thumb@1", {"width": 1})
        assert {
            "schema": "thumb@1.0",
            "valid": False,
            "errors": [{"pointer": "/width", "why": "it is less than the minimum of 1"}],
        } == await check(bob, "thumb@1", {"width": 0})
        assert E.SCHEMA is (await refused(check(bob, "nothing", 1))).kind
        error = await refused(put(ann, "thumb", {"type": "integer"}))
        assert error.kind is E.CONFLICT
        assert error.text.startswith("conflict: /type: string was taken, in thumb@2.0: it takes bump=major")

    served(story)


def test_drafts_are_there_for_the_hives_own_tenant_alone() -> None:
    async def story(hive: Served) -> None:
        ids = await hive.ann.walk("/schemas")
        await ids.mkdir("secret", 0o755, 0)
        assert ["ctl", "check", "secret"] == await hive.ann.names("/schemas")
        assert ["ctl", "check"] == await hive.bob.names("/schemas")
        assert not await hive.bob.exists("/schemas/secret")
        assert E.DENIED is (await refused((await hive.bob.walk("/schemas")).mkdir("x", 0o755, 0))).kind
        assert E.USAGE is (await refused(ids.mkdir("a@1", 0o755, 0))).kind
        await ids.unlinkat("secret", True)
        assert not await hive.ann.exists("/schemas/secret")
        await put(hive.ann, "thumb", THUMB)
        assert not await hive.bob.exists("/schemas/thumb/draft")
        assert E.READONLY is (await refused(ids.unlinkat("thumb", True))).kind

    served(story)
