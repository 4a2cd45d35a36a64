"""Schemas as a fold: every version that was published, and asking them. No clock, no I/O.

A version is ``<major>.<minor>``. Versions are never changed and never forgotten: what refers to one can rely
on it. The next minor of a major takes all that the one before it took, by the rules of compat.py; what takes
less needs a new major. A schema is JSON Schema 2020-12, with keywords of that only (and ``x-…`` for notes),
and refers to nothing outside itself. Its patterns are matched in time linear in the text.

A reference to a schema is ``thumb@1.2``, that version; ``thumb@1``, the newest of that major; ``thumb``, the
newest of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.namespaces.packed import PackError, unpack
from skep.namespaces.schemas.compat import KEYWORDS, breaks, pointed, resolve, within
from skep.namespaces.versions import published
from skep.trace.rules import Decision, Meta

SCHEMAS_MAX: Final = 1024
VERSIONS_MAX: Final = 64  # of one schema; none is forgotten.
DEPTH_MAX: Final = 32  # schemas within another
REFERENCES_MAX: Final = 256  # $ref of one schema: one after the other they are as deep.
ERRORS_MAX: Final = 16  # told of one document
WHY_MAX: Final = 200  # characters told of an error
COMPILED_MAX: Final = 512  # kept ready
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}(\.(0|[1-9][0-9]{0,8}))?")
_REFERENCE: Final = re.compile(r"#(/[^/]*)*")

PUBLISH: Final = Verb(
    "publish",
    (
        Arg("id", required=True, kind="name", help="without @"),
        Arg("sha256", required=True, kind="sha256", help="of the draft, as sha256sum tells it"),
        Arg("bump", kind="minor|major", help="minor, unless said: it takes all that the last one took"),
    ),
    "publish id=thumb sha256=0f… bump=major",
    "make the schema's draft its next version; the reply is the version",
)
# What people write. The door adds the draft to the line.
VERBS: Final = ctl.verbs(PUBLISH)
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(PUBLISH._replace(args=(*PUBLISH.args, Arg("content", required=True))))
}


class Error(NamedTuple):
    """A place, as a JSON pointer, and what is wrong there. Values are not told: they may be secret."""

    pointer: str
    why: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.why}"


class SchemaError(Exception):
    """A schema or a document is not good, or there is no such schema: ``/width: why``."""


class Published(msgspec.Struct, frozen=True, tag_field="type", tag="schema.published"):
    """``content`` is the schema's text, packed."""

    id: str
    major: int
    minor: int
    sha256: str
    actor: str
    content: str


Event = Published


class Version(msgspec.Struct, frozen=True):
    major: int
    minor: int
    sha256: str
    actor: str
    published_ns: int
    content: str

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Record(msgspec.Struct, frozen=True):
    """A schema: its versions by name, the oldest first."""

    id: str
    rev: int
    versions: dict[str, Version]  # never changed

    @property
    def newest(self) -> Version:
        return next(reversed(self.versions.values()))


@dataclass
class Schemas:
    by_id: dict[str, Record] = field(default_factory=dict)

    def copy(self) -> Schemas:
        return Schemas(self.by_id.copy())

    def version(self, reference: str) -> Version:
        """The version that is referred to. Raises SchemaError."""
        id, at, said = reference.partition("@")
        record = self.by_id.get(id)
        if record is None or (at and not _VERSION.fullmatch(said)):
            raise SchemaError(f"{reference}: there is no such schema")
        fitting = [v for name, v in record.versions.items() if not at or f"{name}.".startswith(f"{said}.")]
        if not fitting:
            raise SchemaError(f"{reference}: there is no such version, {record.newest} is the newest")
        return fitting[-1]

    def errors(self, reference: str, document: object) -> tuple[Error, ...]:
        """What is wrong with the document by the schema, ERRORS_MAX at most. Raises SchemaError.

        ``document``: as a JSON decoder gives it."""
        try:
            validator = _compiled(self.version(reference).content)
        # Published by a release that compiled it.
        except (jsonschema_rs.ValidationError, PackError) as error:
            raise SchemaError(f"{reference}: it cannot be read by this release") from error
        if validator.is_valid(document):
            return ()
        found = islice(validator.iter_errors(document), ERRORS_MAX)
        return tuple(Error(_pointer(error.instance_path), _brief(error.message)) for error in found)

    def name(self, reference: str) -> str:
        """The version that is referred to, ``thumb@1.2``. Raises SchemaError."""
        return f"{reference.partition('@')[0]}@{self.version(reference)}"

    def check_text(self, reference: str, text: str | bytes, at: str) -> str:
        """The version that the JSON text is good by. Raises SchemaError, ``<at>/width: why``."""
        try:
            version = self.name(reference)
            document = msgspec.json.decode(text)
            found = self.errors(version, document)
        except SchemaError as error:
            raise SchemaError(f"{at}: {error}") from error
        except RecursionError as error:
            raise SchemaError(f"{at}: too deep") from error
        # JSON's and UTF-8's.
        except ValueError as error:
            raise SchemaError(f"{at}: expected JSON, as {reference} is: {error}") from error
        if found:
            raise SchemaError(f"{at}{found[0].pointer}: {found[0].why}")
        return version

    def check(self, reference: str, document: object) -> None:
        """Return when the document is valid by the schema. Raises SchemaError, ``/width: why``."""
        found = self.errors(reference, document)
        if found:
            raise SchemaError(str(found[0]))


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{pointed(str(name))}" for name in path)


def _brief(why: str) -> str:
    return why if len(why) <= WHY_MAX else f"{why[:WHY_MAX]}…"


# schemas


@lru_cache(maxsize=COMPILED_MAX)
def _compiled(content: str) -> jsonschema_rs.Draft202012Validator:
    return _compile(msgspec.json.decode(unpack(content)))


def _compile(schema: Any) -> jsonschema_rs.Draft202012Validator:
    """Raises jsonschema_rs.ValidationError."""
    return jsonschema_rs.Draft202012Validator(
        schema, validate_formats=True, offline=True, mask="it", pattern_options=jsonschema_rs.RegexOptions()
    )


def parse(text: bytes) -> Any:
    """The schema of a text, when it is good. Raises SchemaError."""
    try:
        schema = msgspec.json.decode(text)
    except RecursionError as error:
        raise SchemaError("/: too deep") from error
    # msgspec's and UTF-8's.
    except ValueError as error:
        raise SchemaError(f"/: {error}") from error
    _check_dialect(schema)
    try:
        jsonschema_rs.meta.validate(schema)
        references = list(_references(schema, schema, (), 0))
        if len(references) > REFERENCES_MAX:
            raise SchemaError(f"/: {len(references)} $ref, at most {REFERENCES_MAX} were expected")
        _compile(schema)
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(str(Error(_pointer(error.instance_path), _brief(error.message)))) from error
    return schema


def _check_dialect(schema: Any) -> None:
    said = schema.get("$schema", DIALECT) if isinstance(schema, dict) else DIALECT
    if not isinstance(said, str) or said.removesuffix("#") != DIALECT:
        raise SchemaError(f"/$schema: expected {DIALECT}")


def _references(root: Any, schema: Any, path: tuple[str, ...], depth: int) -> Iterator[str]:
    """Each $ref of the schema at ``path``. Raises SchemaError for what a schema has not here."""
    if not isinstance(schema, dict):
        return
    if depth > DEPTH_MAX:
        raise SchemaError(f"{_pointer(path)}: more than {DEPTH_MAX} schemas within another")
    for name in schema:
        if name not in KEYWORDS and not name.startswith("x-"):
            raise SchemaError(f"{_pointer((*path, name))}: unknown keyword")
        if name in ("$id", "$schema") and path:
            raise SchemaError(f"{_pointer((*path, name))}: only the whole schema has one")
    if "$ref" in schema:
        _check_reference(root, schema["$ref"], (*path, "$ref"))
        yield schema["$ref"]
    for below, each in within(schema):
        yield from _references(root, each, (*path, *below), depth + 1)


def _check_reference(root: Any, reference: str, path: tuple[str, ...]) -> None:
    try:
        found = resolve(root, reference) if _REFERENCE.fullmatch(reference) else None
    except (LookupError, ValueError, TypeError):
        found = None
    if not isinstance(found, (dict, bool)):
        raise SchemaError(f"{_pointer(path)}: expected a place in this schema, like #/$defs/size")


# deciding


Decided = Decision[Event, str]


def decide(schemas: Schemas, order: Order) -> Decided:
    """What follows from an order to /schemas, which is to publish; raises Refusal."""
    id, digest = order.args["id"], order.args["sha256"].removeprefix("sha256:")
    content, bump = order.args["content"], order.args.get("bump", "minor")
    record = schemas.by_id.get(id)
    order.check_rev(0 if record is None else record.rev)
    if "@" in id or id in ("ctl", "check"):
        raise refusal(E.USAGE, f"publish: id={id}: expected a name without @, not ctl or check")
    text = published(content, digest)
    if record is not None and record.newest.sha256 == digest:
        return Decision((), f"{id}@{record.newest}")
    try:
        schema = parse(text)
    except SchemaError as error:
        raise refusal(E.SCHEMA, str(error)) from error
    major, minor = _next(schemas, record, bump, schema)
    return Decision((Published(id, major, minor, digest, order.actor, content),), f"{id}@{major}.{minor}")


def _next(schemas: Schemas, record: Record | None, bump: str, schema: Any) -> tuple[int, int]:
    """The version that the schema becomes. Raises Refusal when it is no minor of what is there."""
    if record is None:
        if len(schemas.by_id) >= SCHEMAS_MAX:
            raise refusal(E.QUOTA, f"schemas have={len(schemas.by_id)} max={SCHEMAS_MAX}")
        return 1, 0
    if len(record.versions) >= VERSIONS_MAX:
        raise refusal(E.QUOTA, f"versions have={len(record.versions)} max={VERSIONS_MAX}")
    newest = record.newest
    if bump == "major":
        return newest.major + 1, 0
    found = breaks(msgspec.json.decode(unpack(newest.content)), schema)
    if found:
        told = Error(found[0].pointer, _brief(found[0].why))
        raise refusal(E.CONFLICT, f"{told}, in {record.id}@{newest}: it takes bump=major")
    return newest.major, newest.minor + 1


def apply(schemas: Schemas, event: Event, meta: Meta) -> None:
    """Change ``schemas`` by ``event``."""
    version = Version(event.major, event.minor, event.sha256, event.actor, meta.time_ns, event.content)
    record = schemas.by_id.get(event.id)
    versions = {} if record is None else record.versions
    schemas.by_id[event.id] = Record(event.id, meta.seq, versions | {str(version): version})
