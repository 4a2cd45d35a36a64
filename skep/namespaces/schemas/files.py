"""/schemas: what jobs' inputs and results look like.

    ctl               W publish; R usage
    check             W {"schema": "thumb@1", "document": …}, R {"schema": "thumb@1.2", "valid": false,
                      "errors": [{"pointer": "/width", "why": "it is less than the minimum of 1"}]}
    <id>/<v>          R a version, as it was written
    <id>/draft        W the schema that publish makes the next version; R
    <id>/versions     R a line for each version: its number, its hash, who published it and when

Schemas are the hive's, for every tenant to read; drafts exist for its own. mkdir begins a new one. What a
schema may have, and what a minor version may change, core.py and compat.py say.

    echo publish id=thumb sha256=$(sha256sum < schemas/thumb/draft | cut -c1-64) > schemas/ctl
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Maybe, Node
from skep.fs.shapes import Ctl, Memory, Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.drafts import packed
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.packed import TEXT_MAX, unpack
from skep.namespaces.rows import fixed
from skep.namespaces.schemas.core import VERBS, Record, SchemaError
from skep.trace.clock import rfc3339

DRAFTS_MAX: Final = 64


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to check."""

    schema: str
    document: Any


def files(hive: Hive) -> Listing:
    """The tree of /schemas."""
    return Ids(hive)


class Ids(Listing):
    """/schemas. ``drafts`` are in memory: what is not published before the hive ends is lost."""

    def __init__(self, hive: Hive) -> None:
        super().__init__(self._list, self._find, 0o777)
        self.hive = hive
        self.drafts: dict[str, Memory] = {}
        self.made: dict[str, Listing] = {}  # a schema's directory, as long as there is the schema
        self.always = fixed({"ctl": Ctl(VERBS, self._command), "check": Transaction(self._check)})

    def _record(self, id: str) -> Record | None:
        return self.hive.state.schemas.by_id.get(id)

    # the directory

    def _list(self, caller: Caller) -> list[str]:
        drafts = self.drafts.keys() if _writes(caller) else set()
        return [*self.always, *sorted(self.hive.state.schemas.by_id.keys() | drafts)]

    def _find(self, name: str, caller: Caller) -> Any:
        if name in self.always:
            return self.always[name]
        if self._record(name) is None and not (_writes(caller) and name in self.drafts):
            return None
        if name not in self.made:
            self.made[name] = self._schema(name)
        return self.made[name]

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        if not _writes(caller):
            raise FsError(E.DENIED, "rule=hive-tenant schemas are the hive's")
        if name in self._list(caller):
            raise FsError(E.EXISTS, name)
        if not ctl.is_name(name) or name.startswith(".") or "@" in name:
            raise FsError(E.USAGE, f"{name!r}: expected a schema's id, without @")
        self._draft(name)
        return self.walk(name, caller)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        """Take back an mkdir. What was published is never removed."""
        if name not in self._list(caller):
            raise FsError(E.MISSING, name)
        if name in self.always or self._record(name) is not None:
            raise FsError(E.READONLY, "it was published, or always is")
        del self.drafts[name]
        self.made.pop(name, None)

    def _draft(self, id: str) -> Memory:
        """The schema's draft, begun if it is not there."""
        if id not in self.drafts:
            if len(self.drafts) >= DRAFTS_MAX:
                raise FsError(E.QUOTA, f"drafts have={len(self.drafts)} max={DRAFTS_MAX}")
            self.drafts[id] = Memory(size_max=TEXT_MAX)
        return self.drafts[id]

    def _schema(self, id: str) -> Listing:
        """The directory of a schema; its versions' files are the same each time, as they never change."""
        made = {"versions": Text(lambda: self._versions(id))}

        def names(caller: Caller) -> list[str]:
            record = self._record(id)
            return [
                *(["draft"] if _writes(caller) else []),
                *(["versions", *record.versions] if record is not None else []),
            ]

        def walk(name: str, caller: Caller) -> Any:
            record = self._record(id)
            if name == "draft" and _writes(caller):
                return self._draft(id)
            if record is None or (name not in made and name not in record.versions):
                return None
            if name not in made:
                made[name] = Text(unpack(record.versions[name].content))
            return made[name]

        return Listing(names, walk)

    def _versions(self, id: str) -> str:
        record = self._record(id)
        versions = {} if record is None else record.versions
        return "".join(
            f"{v} sha256:{each.sha256} by={each.actor} at={rfc3339(each.published_ns)}\n"
            for v, each in versions.items()
        )

    # what is written and asked

    async def _command(self, caller: Caller, commands: list[Command]) -> list[str]:
        """Write the lines down, each with its draft."""
        ids = [command.args["id"] for command in commands]
        lines = [ctl.line(c.verb, c.args | {"content": self._packed(c.args["id"], caller)}) for c in commands]
        replies = await self.hive.command(caller, "/schemas/ctl", lines)
        for id in ids:
            self.drafts.pop(id, None)
        return replies

    def _packed(self, id: str, caller: Caller) -> str:
        draft = self.drafts.get(id) if _writes(caller) else None
        return packed(draft, id)

    def _check(self, caller: Caller, said: bytes) -> bytes:
        schemas = self.hive.state.schemas
        try:
            question = msgspec.json.decode(said, type=Question)
            version = schemas.version(question.schema)
            errors = schemas.errors(question.schema, question.document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SchemaError) as error:
            raise FsError(E.SCHEMA, str(error)) from error
        told = [{"pointer": error.pointer, "why": error.why} for error in errors]
        schema = f"{question.schema.partition('@')[0]}@{version}"
        answer = {"schema": schema, "valid": not told} | ({"errors": told} if told else {})
        return msgspec.json.encode(answer) + b"\n"


def _writes(caller: Caller) -> bool:
    return caller.tenant == HIVE_TENANT
