"""/config: what is set where, and what holds.

    ctl               W publish, rollback; R usage
    keys              R a line for each key: its kind, which way is tighter, its default, what it is
    effective.json    R every value that holds in the caller's own scope, where it comes from, who locked it
    effective         W a scope, R the same for it; W a scope and a key, R that one value
    draft             W the document that publish makes live; R
    live              R the live document
    versions/<v>      R an earlier one
    export.csv        R the live documents of the caller's scopes, as a sheet of scope and document
    import.csv        W such a sheet, which import publishes; R
    <scope>/          draft, live, versions/<v> and effective.json of a scope; mkdir begins one

The scopes: system, organisations (acme), teams, which are tenants (acme/web/prod), their workflows
(acme/web/prod/thumbs) and steps (acme/web/prod/thumbs/resize). As a directory's name a scope has : for its
slashes. draft, live and versions beside ctl are those of system. System, organisations and teams are the
hive's own tenant's, workflows and steps are their tenant's; whoever else's are not there.

A document is TOML, or JSON, with a list of the keys that it locks: below it they are only tightened.

import publishes the documents of a sheet in one transaction, the innermost scopes first: what a document
locks refuses none below it that comes with it, but holds there from then on. Scopes that the sheet does not
have stay as they are. A mistake is told with its line and column, and nothing was published.

    echo limits.jobs = 100 > config/draft
    echo publish sha256=$(sha256sum < config/draft | cut -c1-64) > config/ctl
    cat config/export.csv > saved.csv; cp saved.csv config/import.csv
    echo import sha256=$(sha256sum < saved.csv | cut -c1-64) > config/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Maybe, Node
from skep.fs.shapes import Ctl, Memory, Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.config.core import (
    HIVE_SCOPES_MAX,
    IMPORT,
    SCOPES_MAX,
    SYSTEM,
    VERBS,
    Config,
    ConfigError,
    Record,
    is_scope,
    own_scope,
    owner,
    snapshot,
)
from skep.namespaces.config.document import DocumentError, Source, parse
from skep.namespaces.config.keys import KEYS, row, told
from skep.namespaces.drafts import packed
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.packed import TEXT_MAX, PackError, pack, unpack
from skep.namespaces.rows import fixed
from skep.namespaces.sheet import Form, Line, Staged, export
from skep.trace.turn import Refused

SLASH: Final = ":"  # for the slashes of a scope in a directory's name
SHEET: Final = Form("config.v1", ("scope", "document"))
IMPORTED: Final = "import.csv"
OF_SYSTEM: Final = ("draft", "live", "versions")  # beside ctl; no organisation has such a name


def files(hive: Hive) -> Listing:
    """The tree of /config."""
    return Scopes(hive)


def _keys() -> str:
    rows = ((key, row, msgspec.json.encode(told(row, row.default)).decode()) for key, row in KEYS.items())
    return "".join(f"{key} {row.kind} {row.tight} {default} {row.help}\n" for key, row, default in rows)


class Scopes(Listing):
    """/config. ``drafts`` are in memory: what is not published before the hive ends is lost."""

    def __init__(self, hive: Hive) -> None:
        super().__init__(self._list, self._find, 0o777)
        self.hive = hive
        self.drafts: dict[str, Memory] = {}
        self.made: dict[str, Scope] = {}  # a scope's directory, as long as there is the scope
        self.always = fixed({
            "ctl": Ctl(VERBS, self._command),
            "keys": _keys(),
            "effective.json": Text(lambda caller: self.snapshot(own_scope(caller.tenant))),
            "effective": Transaction(self._ask),
            "export.csv": export(SHEET, self._sheet),
        })  # fmt: skip
        self.system = Scope(self, SYSTEM)
        self.staged = Staged()

    @property
    def config(self) -> Config:
        return self.hive.state.config

    # the directory

    def _list(self, caller: Caller) -> list[str]:
        named = (scope.replace("/", SLASH) for scope in self._owned(caller.tenant) if scope != SYSTEM)
        system = self.system.listing(caller) if caller.tenant == HIVE_TENANT else []
        return [*self.always, IMPORTED, *(name for name in system if name in OF_SYSTEM), *sorted(named)]

    def _owned(self, tenant: str) -> list[str]:
        return [scope for scope in self.config.scopes.keys() | self.drafts.keys() if owner(scope) == tenant]

    def _find(self, name: str, caller: Caller) -> Any:
        if name in self.always:
            return self.always[name]
        if name == IMPORTED:
            return self.staged.file(caller)
        if name in OF_SYSTEM:
            return self.system.thing(name, caller) if caller.tenant == HIVE_TENANT else None
        scope = name.replace(SLASH, "/")
        if scope == SYSTEM or scope not in self._owned(caller.tenant):
            return None
        if scope not in self.made:
            self.made[scope] = Scope(self, scope)
        return self.made[scope]

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        scope = name.replace(SLASH, "/")
        if name in self._list(caller):
            raise FsError(E.EXISTS, name)
        if not is_scope(scope) or scope == SYSTEM or name in (*self.always, IMPORTED, *OF_SYSTEM):
            raise FsError(E.USAGE, f"{name!r}: expected a scope, {SLASH} for its slashes")
        if owner(scope) != caller.tenant:
            raise FsError(E.DENIED, f"rule=scope-owner scope={scope} is not this tenant's")
        self.draft(scope)
        return self.walk(name, caller)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        """Take back an mkdir. What was published is never removed."""
        scope = name.replace(SLASH, "/")
        if name not in self._list(caller):
            raise FsError(E.MISSING, name)
        if name in (*self.always, IMPORTED, *OF_SYSTEM) or scope in self.config.scopes:
            raise FsError(E.READONLY, "it was published, or always is")
        del self.drafts[scope]
        self.made.pop(scope, None)

    def draft(self, scope: str) -> Memory:
        """The scope's draft, begun if it is not there. Who may write it has been asked."""
        if scope not in self.drafts:
            have = sum(owner(each) == owner(scope) for each in self.drafts)
            most = HIVE_SCOPES_MAX if owner(scope) == HIVE_TENANT else SCOPES_MAX
            if have >= most:
                raise FsError(E.QUOTA, f"drafts have={have} max={most}")
            self.drafts[scope] = Memory(size_max=TEXT_MAX)
        return self.drafts[scope]

    # what is written

    async def _command(self, caller: Caller, commands: list[Command]) -> list[str]:
        """Write the lines down, each publish with its draft."""
        if any(command.verb == IMPORT.name for command in commands):
            return await self._import(caller, commands)
        lines, published = [], []
        for command in commands:
            if command.verb == "publish":
                scope = command.args.get("scope") or own_scope(caller.tenant)
                lines.append(ctl.line("publish", command.args | {"content": self._packed(scope, caller)}))
                published.append(scope)
            else:
                lines.append(command.text)
        replies = await self.hive.command(caller, "/config/ctl", lines)
        for scope in published:
            self.drafts.pop(scope, None)
        return replies

    def _packed(self, scope: str, caller: Caller) -> str:
        draft = self.drafts.get(scope) if owner(scope) == caller.tenant else None
        return packed(draft, scope)

    # sheets

    def _sheet(self, caller: Caller) -> Iterator[tuple[str, str]]:
        """The caller's scopes and their live documents, the outermost first."""
        records = [
            self.config.scopes[scope] for scope in self._owned(caller.tenant) if scope in self.config.scopes
        ]
        records.sort(key=lambda record: (record.scope != SYSTEM, record.scope.count("/"), record.scope))
        return ((record.scope, unpack(record.version.content).decode()) for record in records)

    async def _import(self, caller: Caller, commands: list[Command]) -> list[str]:
        """Publish what the sheet has. Raises FsError, when nothing of it was."""
        if len(commands) > 1:
            raise FsError(E.USAGE, f"import: expected a write of one line, this one has {len(commands)}")
        lines = self.staged.read(SHEET, caller, commands[0].args["sha256"])
        publishing = [(line, _publish(line, caller)) for line in lines]
        publishing.sort(key=lambda each: (each[0].row["scope"] == SYSTEM, -each[0].row["scope"].count("/")))
        if not publishing:
            return ["0"]
        try:
            replies = await self.hive.command(caller, "/config/ctl", [each for _, each in publishing])
        except FsError as error:
            if error.kind is E.TOOBIG or not isinstance(error.__cause__, Refused):
                raise
            raise publishing[error.__cause__.k][0].error("document", error.detail, error.kind) from error
        self.staged.done(caller)
        return [f"{len(lines)} {replies[-1].partition(' ')[2]}"]

    # what is asked

    def _ask(self, caller: Caller, said: bytes) -> str:
        """``said``: a scope and perhaps a key, between blanks."""
        words = said.decode(errors="replace").split()
        if len(words) not in (1, 2):
            raise FsError(E.USAGE, "expected a scope, or a scope and a key")
        if not _concerns(words[0], caller.tenant):
            raise FsError(E.MISSING, words[0])
        return self.snapshot(*words)

    def snapshot(self, scope: str, key: str = "") -> str:
        """What holds in the scope, as JSON; ``key``: the only one wanted, "": all."""
        try:
            if not key:
                return msgspec.json.encode(snapshot(self.config, scope)).decode() + "\n"
            value, source = self.config.value(scope, key)
        except ConfigError as error:
            raise FsError(E.SCHEMA, str(error)) from error
        except KeyError as error:
            raise FsError(E.USAGE, f"{key}: there is no such key") from error
        answer = {"scope": scope, "key": key, "value": told(row(key), value), "source": str(source)}
        return msgspec.json.encode(answer).decode() + "\n"


def _publish(line: Line, caller: Caller) -> str:
    """The line of the ledger that publishes the sheet's. Raises FsError."""
    scope, text = line.row["scope"], line.row["document"].encode()
    if not is_scope(scope) or owner(scope) != caller.tenant:
        raise line.error("scope", f"{scope!r}: expected a scope that is this tenant's")
    try:
        parse(text, Source(scope, 0))
        content = pack(text)
    except (DocumentError, PackError) as error:
        raise line.error("document", str(error), E.SCHEMA) from error
    return ctl.line("publish", {"scope": scope, "sha256": sha256(text).hexdigest(), "content": content})


class Scope(Listing):
    """The directory of a scope. What is in it has been found to be the caller's."""

    def __init__(self, scopes: Scopes, scope: str) -> None:
        super().__init__(self.listing, self.thing)
        self.scopes = scopes
        self.scope = scope
        self.versions = Listing(self._numbers, self._version)
        self.published: dict[int, Text] = {}  # the same each time, as they never change

    @property
    def record(self) -> Record | None:
        return self.scopes.config.scopes.get(self.scope)

    def listing(self, caller: Caller) -> list[str]:
        return ["draft", *(ROWS if self.record is not None else ())]

    def thing(self, name: str, caller: Caller) -> Any:
        if name == "draft":
            return self.scopes.draft(self.scope)
        return ROWS[name](self) if self.record is not None and name in ROWS else None

    def live(self) -> bytes:
        assert self.record is not None
        return unpack(self.record.version.content)

    def _numbers(self, caller: Caller) -> list[str]:
        return [] if self.record is None else [str(v) for v in sorted(self.record.versions)]

    def _version(self, name: str, caller: Caller) -> Text | None:
        if self.record is None or name not in self._numbers(caller):
            return None
        v = int(name)
        return self.published.setdefault(v, Text(unpack(self.record.versions[v].content)))


ROWS: Final[Mapping[str, Callable[[Scope], Any]]] = {
    "live": lambda scope: Text(scope.live),
    "versions": lambda scope: scope.versions,
    "effective.json": lambda scope: Text(lambda: scope.scopes.snapshot(scope.scope)),
}


def _concerns(scope: str, tenant: str) -> bool:
    """Whether what holds in the scope is for the tenant to know."""
    if f"{scope}/".startswith(f"{tenant}/"):
        return True
    return tenant == HIVE_TENANT and owner(scope) == HIVE_TENANT
