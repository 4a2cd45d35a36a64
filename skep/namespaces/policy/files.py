"""/policy: what may be done, and why.

    ctl                   W publish, rollback, trust-key, distrust-key; R usage
    snapshot              R a line for each live bundle: its name, version, hash, who published it and when
    keys                  R a line for each trusted key: its name, its public half, the one bundle it signs
    bundles/<b>/          mkdir begins a new one
        draft/            create, write, remove files: what publish makes live
        live/             R the files of the live version
        versions/<v>/     R those of an earlier one, and its sig
        sig               R the live version's signature: ed25519, key's name, signature
        tests             R the live version's tests
    decide                W a request as JSON, R the decision as JSON
    explain               the same, with every policy and whether it matched, and why not
    simulate              the same, as if the draft of "bundle" were live; leaves no trace

A request is {"action": "jobs.submit", "resource": {"id": "/jobs"}, "context": {"args": {"topic": "sum"}}}.
What it does not say is as it is now. "principal" is whoever asks; asking for others takes the right to
policy.ask.
Bundles are the hive's, and exist for its own tenant. What a bundle is, bundle.py says.

    skep policy publish mine/ --key ann.pem
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.messages import LO
from skep.fs.node import Caller, Entry, Handle, How, Maybe, Node
from skep.fs.shapes import Ctl, File, Memory, Text, Transaction
from skep.fs.tree import Dir, Listing
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT, Order, actor_of
from skep.namespaces.packed import TEXT_MAX
from skep.namespaces.policy.asked import Asked
from skep.namespaces.policy.bundle import TESTS, Bundle, BundleError, check, check_file, unpack
from skep.namespaces.policy.constraint import broken
from skep.namespaces.policy.core import BUNDLES_MAX, VERBS, Record, Version, hive_schema, lives
from skep.namespaces.policy.engine import Engine, Live, Ruling, approval_ref, told
from skep.namespaces.policy.request import Principal, Request, Stated, args_of, split, written
from skep.trace.clock import rfc3339

P = ParamSpec("P")
R = TypeVar("R")

FILES_MAX: Final = 64  # of one draft; what they hold together is bounded when it is published.


def files(hive: Hive, bundles: Bundles) -> Dir:
    """The tree of /policy."""
    return Dir(
        {
            "ctl": Ctl(VERBS, lambda caller, commands: _command(hive, bundles, caller, commands)),
            "snapshot": Text(lambda caller: _snapshot(hive) if _sees(caller) else ""),
            "keys": Text(lambda caller: _keys(hive) if _sees(caller) else ""),
            "bundles": bundles,
            "decide": Transaction(lambda caller, said: decide(hive, caller, said)),
            "explain": Transaction(lambda caller, said: explain(hive, caller, said)),
            "simulate": Transaction(lambda caller, said: simulate(hive, bundles, caller, said)),
        }
    )


def _sees(caller: Caller) -> bool:
    return caller.tenant == HIVE_TENANT


def _snapshot(hive: Hive) -> str:
    return "".join(
        f"{name} v={record.live} sha256:{record.version.sha256} by={record.version.actor}"
        f" at={rfc3339(record.version.published_ns)}\n"
        for name, record in sorted(hive.state.policy.bundles.items())
    )


def _keys(hive: Hive) -> str:
    keys = sorted(hive.state.policy.keys.values(), key=lambda key: key.name)
    return "".join(f"{key.name} {key.key} {key.bundle or '*'}\n" for key in keys)


async def _command(hive: Hive, bundles: Bundles, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the lines down, each publish with its draft."""
    lines = []
    for command in commands:
        if command.verb == "publish":
            content = _told(bundles.packed, command.args["bundle"])
            lines.append(ctl.line(command.verb, command.args | {"content": content}))
        else:
            lines.append(command.text)
    replies = await hive.command(caller, "/policy/ctl", lines)
    for command in commands:
        if command.verb == "publish":
            bundles.drafts.pop(command.args["bundle"], None)
    return replies


def _told(make: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What ``make`` gives; a bad bundle or request as files tell it."""
    try:
        return make(*args, **kwargs)
    except (BundleError, ValueError) as error:
        raise FsError(E.SCHEMA, str(error)) from error


# bundles


class Folder(File):
    """A draft: a directory of files in memory, with the names that a bundle's files have."""

    kind = stat.S_IFDIR

    def __init__(self) -> None:
        super().__init__(0o777)
        self.files: dict[str, Memory] = {}

    def bundle(self) -> Bundle:
        """Raises BundleError."""
        try:
            texts = {name: file.data.read(0, TEXT_MAX + 1).decode() for name, file in self.files.items()}
        except UnicodeDecodeError as error:
            raise BundleError(f"byte {error.start} is not UTF-8") from error
        return Bundle(texts)

    def walk(self, name: str, caller: Caller) -> Node:
        if name not in self.files:
            raise FsError(E.MISSING, name)
        return self.files[name]

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Names(self)

    def create(self, name: str, mode: int, how: How, gid: int, caller: Caller) -> Maybe[tuple[Node, Handle]]:
        if name in self.files:
            if how.flags & LO.CREAT and not how.flags & LO.EXCL:
                return self.files[name], self.files[name].opened(how, caller)
            raise FsError(E.EXISTS, name)
        try:
            check_file(name)
        except BundleError as error:
            raise FsError(E.USAGE, str(error)) from error
        if len(self.files) >= FILES_MAX:
            raise FsError(E.QUOTA, f"files have={len(self.files)} max={FILES_MAX}")
        self.files[name] = file = Memory(size_max=TEXT_MAX)
        self.moved()
        return file, file.opened(how, caller)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        if directory:
            raise FsError(E.NOTDIR)
        if self.files.pop(name, None) is None:
            raise FsError(E.MISSING, name)
        self.moved()


class _Names(Handle):
    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def entries(self) -> Sequence[Entry]:
        attrs = {name: file._attr(file.size()) for name, file in self.folder.files.items()}
        return [Entry(name, attr.qid, attr.mode) for name, attr in attrs.items()]


class Bundles(Listing):
    """/policy/bundles. ``drafts`` are in memory: what is not published before the hive ends is lost."""

    def __init__(self, hive: Hive) -> None:
        super().__init__(self._list, self._find, 0o777)
        self.hive = hive
        self.drafts: dict[str, Folder] = {}
        self.made: dict[str, Listing] = {}  # a bundle's directory, as long as there is the bundle

    def draft(self, name: str) -> Bundle:
        """Raises BundleError."""
        folder = self.drafts.get(name)
        if folder is None or not folder.files:
            raise BundleError(f"/policy/bundles/{name}/draft is empty")
        return folder.bundle()

    def packed(self, name: str) -> str:
        """Raises BundleError."""
        return self.draft(name).pack()

    def _record(self, name: str) -> Record | None:
        return self.hive.state.policy.bundles.get(name)

    def _list(self, caller: Caller) -> list[str]:
        return sorted(self.hive.state.policy.bundles.keys() | self.drafts.keys()) if _sees(caller) else []

    def _find(self, name: str, caller: Caller) -> Listing | None:
        if name not in self._list(caller):
            self.made.pop(name, None)
            return None
        if name not in self.made:
            self.made[name] = self._bundle(name)
        return self.made[name]

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        if not _sees(caller):
            raise FsError(E.DENIED, "rule=hive-tenant bundles are the hive's")
        if name in self._list(caller):
            raise FsError(E.EXISTS, name)
        if not ctl.is_name(name) or name.startswith("."):
            raise FsError(E.USAGE, f"{name!r}: expected a bundle's name")
        if len(self.drafts) >= BUNDLES_MAX:
            raise FsError(E.QUOTA, f"drafts have={len(self.drafts)} max={BUNDLES_MAX}")
        self.drafts[name] = Folder()
        return self.walk(name, caller)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        """Take back an mkdir. What was published is never removed."""
        if name not in self._list(caller):
            raise FsError(E.MISSING, name)
        if self._record(name) is not None:
            raise FsError(E.READONLY, "it was published")
        if self.drafts[name].files:
            raise FsError(E.NOTEMPTY)
        del self.drafts[name]

    def _bundle(self, name: str) -> Listing:
        versions: dict[int, Dir] = {}
        lives: dict[int, Dir] = {}

        def version(v: str, caller: Caller) -> Dir | None:
            record = self._record(name)
            found = record.versions.get(int(v)) if record is not None and v.isdecimal() else None
            return None if found is None or str(found.v) != v else _version(versions, found)

        def numbers(caller: Caller) -> list[str]:
            record = self._record(name)
            return [] if record is None else [str(v) for v in sorted(record.versions)]

        history = Listing(numbers, version)
        rows: dict[str, Callable[[Record], Any]] = {
            "live": lambda record: _version(lives, record.version),
            "versions": lambda record: history,
            "sig": lambda record: _sig(record.version),
            "tests": lambda record: unpack(record.version.content).files.get(TESTS, "[]\n"),
        }

        def walk(file: str, caller: Caller) -> Any:
            if file == "draft":
                return self.drafts.setdefault(name, Folder())
            record = self._record(name)
            return rows[file](record) if record is not None and file in rows else None

        return Listing(lambda caller: ["draft", *(rows if self._record(name) is not None else ())], walk)


def _version(made: dict[int, Dir], version: Version) -> Dir:
    """The directory of a version: the same each time, as what it holds never changes."""
    if version.v not in made:
        made[version.v] = Dir(unpack(version.content).files | {"sig": _sig(version)})
    return made[version.v]


def _sig(version: Version) -> str:
    return f"ed25519 {version.key} {version.sig}\n"


# asking


def decide(hive: Hive, caller: Caller, said: bytes) -> str:
    """What the policies say of the request."""
    request = _request(hive, caller, _stated(said))
    return _line(_answer(request, hive.state.policy.live.ask(request)))


def explain(hive: Hive, caller: Caller, said: bytes) -> str:
    """The same, and how each policy took part in it."""
    if not _sees(caller):
        raise FsError(E.DENIED, "rule=hive-tenant policies are the hive's")
    request, live = _request(hive, caller, _stated(said)), hive.state.policy.live
    return _line(_answer(request, live.ask(request)) | {"policies": list(live.explain(request))})


def simulate(hive: Hive, bundles: Bundles, caller: Caller, said: bytes) -> str:
    """What they would say with a draft in its bundle's place, and what they say now."""
    stated = _stated(said)
    request, live = _request(hive, caller, stated), hive.state.policy.live
    now = _answer(request, live.ask(request))
    if not stated.bundle:
        return _line(now)
    if not _sees(caller):
        raise FsError(E.DENIED, "rule=hive-tenant bundles are the hive's")
    return _line(_told(_with_draft, hive, bundles, stated.bundle, request) | {"now": now})


def _with_draft(hive: Hive, bundles: Bundles, name: str, request: Request) -> dict[str, object]:
    draft = bundles.draft(name)
    check(draft, hive_schema())
    others = [each for each in lives(hive.state.policy) if each.bundle != name]
    # Made for this question alone: nothing of it is kept.
    return _answer(request, Engine([*others, Live(name, 0, draft.sha256, draft.pack())]).ask(request))


def _stated(said: bytes) -> Stated:
    try:
        return msgspec.json.decode(said, type=Stated)
    except msgspec.DecodeError as error:
        raise FsError(E.SCHEMA, str(error)) from error


def _request(hive: Hive, caller: Caller, stated: Stated) -> Request:
    """The request as the caller may put it: of others only with the right to ask."""
    actor = actor_of(caller.principal, caller.node)
    own = Principal(
        actor.partition("#")[0], caller.role, caller.node, caller.tenant, hive.state.trust_of(caller.node)
    )
    principal = stated.principal or own
    if principal != own:
        _check_may_ask(hive, caller, own)
    noun, verb = stated.action.partition(".")[::2]
    noun = "" if noun == "hive" else noun
    return _told(lambda: written(stated, principal, _base(hive, noun, verb, stated, principal)))


def _base(hive: Hive, noun: str, verb: str, stated: Stated, principal: Principal) -> Asked:
    """The line that the request would be, as far as it says."""
    args = {name: str(value) for name, value in args_of(stated.context.get("args", {})).items()}
    of, name = split(stated.resource.id)
    order = Order(
        verb, args, "", name if of == noun else "", actor_of(principal.id, principal.node), principal.role,
        principal.tenant, hive.clock.now_ns(), "",
    )  # fmt: skip
    return Asked(noun, stated.resource.path or stated.resource.id, order, (), hive.state)


def _check_may_ask(hive: Hive, caller: Caller, own: Principal) -> None:
    asking = written(Stated("policy.ask"), own)
    ruling = hive.state.policy.live.ask(asking)
    if not _sees(caller) or ruling.decision != "ALLOW":
        raise FsError(E.DENIED, f"rule={ruling.rule} role {caller.role} may not ask for others")


def _answer(request: Request, ruling: Ruling) -> dict[str, object]:
    """The decision as JSON tells it, with what follows from it for this request."""
    answer = dict(told(ruling))
    if ruling.decision == "REQUIRE_APPROVAL":
        answer["ref"] = approval_ref(request, ruling)
    if unkept := broken(ruling.constraints, request.args):
        answer["unkept"] = str(unkept)
    return answer


def _line(answer: dict[str, object]) -> str:
    return msgspec.json.encode(answer).decode() + "\n"
