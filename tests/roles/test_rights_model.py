"""Random manifests and random operations over 9P, beside a small model of the rights that shares no code.

The model is written from the docs: the manifest's rules (roles/view.py, its first lines), bind(1), and that
every operation asks for its right at the place in the tree. A failure prints the steps that led there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.export import Export
from skep.fs.local import joined
from skep.fs.messages import (
    LO,
    Dialect,
    Message,
    Tlcreate,
    Tlink,
    Trenameat,
    Tsetattr,
    Tstatfs,
)
from skep.roles.manifest import parse
from tests.roles.spaces import Space

Path_ = tuple[str, ...]
Line = tuple[str, ...]  # allow rights path | deny rights path | bind flags new old | unmount old
FULL: Final = frozenset({"read", "write", "create", "remove"})
TREE: Final = ("f", "a/f", "a/g", "a/d/f", "b/f", "b/d/f", "b/d/h")
MISSING, DENIED, OTHER = "missing", "denied", "other"


# the model


def split(path: str) -> Path_:
    return tuple(filter(None, path.split("/")))


class Refused(Exception):
    """``args[0]``: MISSING, DENIED or OTHER."""


def covers(pattern: Path_, place: Path_) -> bool:
    """Whether a rule's path is the place, or its ** one above."""
    if pattern[-1:] == ("**",):
        return any(covers(pattern[:-1], place[:n]) for n in range(len(place) + 1))
    return len(pattern) == len(place) and all(p in ("*", n) for p, n in zip(pattern, place, strict=True))


def leads(pattern: Path_, place: Path_) -> bool:
    """Whether a rule's path is, or may be, below the place."""
    deep = pattern[-1:] == ("**",)
    return (deep and covers(pattern, place)) or (
        len(pattern) - deep > len(place) - deep and covers(pattern[: len(place)], place)
    )


class Model:
    """The tree (None: a directory; else what the file holds), the rules, and what is bound where."""

    def __init__(self, files: dict[Path_, str | None], lines: list[Line]) -> None:
        self.files = files
        self.rules = [(line[0], frozenset(line[1].split(",")), split(line[2])) for line in lines
                      if line[0] in ("allow", "deny")]  # fmt: skip
        self.unions: dict[Path_, list[tuple[Path_, bool]]] = {}
        for line in lines:
            if line[0] == "bind":
                self.bind(line[1], split(line[2]), split(line[3]))
            elif line[0] == "unmount" and not self.unions.pop(self.resolve(split(line[1]), False)[0], None):
                raise Refused(OTHER)

    def bind(self, flags: str, new: Path_, old: Path_) -> None:
        parts = [(place, False) for place in self.resolve(new)]
        there, *_ = self.resolve(old, False)
        if (self.files[there] is None) is not (self.files[parts[0][0]] is None):
            raise Refused(OTHER)
        if (flags not in ("", "c") and self.files[there] is not None) or ("c" in flags and len(parts) > 1):
            raise Refused(OTHER)
        parts[0] = (parts[0][0], "c" in flags)
        union = self.unions.get(there, [(there, False)])
        self.unions[there] = union + parts if "a" in flags else parts + union if "b" in flags else parts

    def rights(self, place: Path_) -> frozenset[str]:
        """What may be done there. "seen": it exists for the caller."""
        allowed, denied, below, ahead = set[str](), set[str](), set[str](), set[str]()
        for verb, rights, pattern in self.rules:
            rights = FULL if "all" in rights else rights
            if covers(pattern, place):
                (allowed if verb == "allow" else denied).update(rights)
                below.update(rights if verb == "deny" and pattern[-1:] == ("**",) else ())
            if verb == "allow" and leads(pattern, place):
                ahead.update(rights)
        found = frozenset(allowed - denied)
        return found | {"seen"} | ({"list"} if ahead - below else set()) if found or ahead - below else found

    def parts(self, place: Path_) -> list[Path_]:
        return [part for part, _ in self.unions.get(place, [(place, False)])]

    def entry(self, places: list[Path_], name: str) -> Path_:
        """The place of an entry of a union (or of one directory), before what is bound on it."""
        for place in places:
            if (*place, name) in self.files and "seen" in self.rights((*place, name)):
                return (*place, name)
        raise Refused(MISSING)

    def resolve(self, path: Path_, last: bool = True) -> list[Path_]:
        """The places that a path leads to, several when it is a union. ``last``: into what is bound there."""
        way: list[Path_] = [()]
        for name in path:
            if self.files[self.parts(way[-1])[0]] is not None:
                raise Refused(OTHER)
            if name == "..":
                way = way[:-1] or way
            else:
                way.append(self.entry(self.parts(way[-1]), name))
        return self.parts(way[-1]) if last else [way[-1]]

    def need(self, right: str, place: Path_) -> None:
        if right not in self.rights(place):
            raise Refused(DENIED)

    def listing(self, path: Path_) -> set[str]:
        places = self.resolve(path)
        if self.files[places[0]] is not None:
            self.need("read", places[0])
            raise Refused(OTHER)
        readable = [place for place in places if self.rights(place) & {"read", "list"}]
        if not readable:
            raise Refused(DENIED)
        return {f[-1] for f in self.files for place in readable
                if f and f[:-1] == place and "seen" in self.rights(f)}  # fmt: skip

    def making(self, path: Path_, name: str) -> Path_:
        """Where a new entry goes."""
        first, *_ = places = self.resolve(path)
        place = first
        if self.files[first] is not None:
            raise Refused(OTHER)
        if self.resolve(path, False)[0] in self.unions:
            takes = [part for part, create in self.unions[self.resolve(path, False)[0]] if create]
            if not takes:
                raise Refused(DENIED)
            place = takes[0]
            for part in places:
                if (*part, name) in self.files and "seen" in self.rights((*part, name)):
                    if part != place:
                        raise Refused(OTHER)
                    break
        self.need("create", place)
        self.need("seen", (*place, name))
        return (*place, name)


# the machine

NAMES = st.sampled_from(["a", "b", "d", "f", "f", "g", "h", "n"])
DIRECTORIES = st.sampled_from(["", "a", "b", "a", "b", "a/d", "b/d", "a/n"]).map(split)
PATHS = st.one_of(
    st.builds(lambda path, name: (*path, name), DIRECTORIES, NAMES),
    DIRECTORIES,
    st.lists(st.one_of(NAMES, st.just("..")), max_size=3).map(tuple),
)
PLACES = st.sampled_from(["/a", "/b", "/a", "/b", "/a/d", "/b/d", "/", "/f", "/a/f", "/b/d/h"])
RIGHTS = st.sampled_from(["read", "write", "read,write", "read,create", "create", "remove", "all", "all"])
PATTERNS = st.one_of(
    st.sampled_from(
        ["/**", "/a/**", "/b/**", "/a", "/b", "/*/f", "/a/f", "/b/f", "/*/d/**", "/b/d/h", "/a/*"]
    ),
    st.lists(st.one_of(NAMES, st.just("*")), max_size=3).map(lambda path: "/" + "/".join(path)),
)
LINES = st.one_of(
    *[st.tuples(st.just("allow"), RIGHTS, PATTERNS)] * 2,
    st.tuples(st.just("deny"), RIGHTS, PATTERNS),
    *[st.tuples(st.just("bind"), st.sampled_from(["", "c", "a", "ac", "b", "bc"]), PLACES, PLACES)] * 2,
    st.tuples(st.just("unmount"), PLACES),
)


def written(line: Line) -> str:
    if line[0] == "bind" and line[1]:
        return f"bind -{line[1]} {line[2]} {line[3]}"
    return " ".join(word for word in line if word)


def kind(error: FsError) -> str:
    return {2: MISSING, 13: DENIED}.get(error.errno, OTHER)


class Machine(RuleBasedStateMachine):
    """One manifest, one session, many operations; after each the directory is what the model says."""

    client: Client | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.where = Path(tempfile.mkdtemp(prefix="skep-model-"))
        for file in TREE:
            (self.where / file).parent.mkdir(parents=True, exist_ok=True)
            (self.where / file).write_text(file)

    def teardown(self) -> None:
        if self.client is not None:
            self.loop.run_until_complete(self.client.close())
        self.loop.close()
        shutil.rmtree(self.where)

    def tree(self) -> dict[Path_, str | None]:
        found: dict[Path_, str | None] = {(): None}
        for path in self.where.rglob("*"):
            found[path.relative_to(self.where).parts] = None if path.is_dir() else path.read_text()
        return found

    @initialize(
        lines=st.lists(LINES, max_size=5),
        first=st.sampled_from(["all /**", "all /**", "read,create,remove /**", "all /a/**", ""]),
        old=st.sampled_from([True, False, False]),
    )
    def attach(self, lines: list[Line], first: str, old: bool) -> None:
        lines = [*([("allow", *first.split())] if first else []), *lines]
        manifest = parse("test", "\n".join(["mount hive /", *map(written, lines)]).encode())
        gate = Space(Export(self.where).root, manifest)
        self.dialect = Dialect.U if old else Dialect.L

        async def connect() -> Client:
            return await Client.over(joined(gate), dialect=self.dialect)

        self.connect, self.refused = connect, ""
        try:
            self.model = Model(self.tree(), lines)
        except Refused as refused:
            self.refused = refused.args[0]
        else:
            self.client = self.loop.run_until_complete(connect())

    @precondition(lambda self: self.client is None)
    @rule()
    def be_refused(self) -> None:
        assert self.refused == self.done(self.connect)

    def done(self, do: Callable[[], Awaitable[Any]]) -> Any:
        """What an operation comes to: its value, or the class of its refusal."""

        async def run() -> Any:
            return await do()

        try:
            return self.loop.run_until_complete(run())
        except FsError as error:
            return kind(error)

    def said(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Refused as refused:
            return refused.args[0]

    @property
    def it(self) -> Client:
        assert self.client is not None
        return self.client

    attached = precondition(lambda self: self.client is not None)

    @invariant()
    @attached
    def the_tree_is_what_the_model_says(self) -> None:
        assert self.model.files == self.tree()

    @attached
    @rule(path=PATHS)
    def look(self, path: Path_) -> None:
        async def look() -> Any:
            return bool((await self.it.stat("/".join(path))).mode & 0o040000)

        model = self.model
        assert self.said(lambda: model.files[model.resolve(path)[0]] is None) == self.done(look), path

    @attached
    @rule(path=PATHS)
    def list_names(self, path: Path_) -> None:
        async def names() -> Any:
            found = [entry.name for entry in await self.it.listdir("/".join(path))]
            assert len(found) == len(set(found)), found
            return set(found)

        assert self.said(lambda: self.model.listing(path)) == self.done(names), path

    @attached
    @rule(path=PATHS)
    def read(self, path: Path_) -> None:
        def expected() -> Any:
            place = self.model.resolve(path)[0]
            if self.model.files[place] is None:
                return "directory"
            self.model.need("read", place)
            return self.model.files[place]

        async def read() -> Any:
            if (await self.it.stat("/".join(path))).mode & 0o040000:
                return "directory"
            return (await self.it.read_file("/".join(path))).decode()

        assert self.said(expected) == self.done(read), path

    @attached
    @rule(path=PATHS, text=st.sampled_from(["x", "yy"]))
    def write(self, path: Path_, text: str) -> None:
        def expected() -> Any:
            place = self.model.resolve(path)[0]
            if self.model.files[place] is None:
                raise Refused(OTHER)
            self.model.need("write", place)
            self.model.files[place] = text

        assert self.said(expected) == self.done(lambda: self.it.write_file("/".join(path), text.encode())), (
            path
        )

    @attached
    @rule(path=PATHS, name=NAMES, directory=st.booleans())
    def make(self, path: Path_, name: str, directory: bool) -> None:
        def expected() -> Any:
            place = self.model.making(path, name)
            if not directory:
                self.model.need("write", place)
            elif self.dialect is Dialect.U and not self.model.rights(place) & {"read", "list"}:
                raise Refused("open")  # of 9P2000: it is made, and then cannot be opened
            if place in self.model.files:
                raise Refused(OTHER)
            self.model.files[place] = None if directory else ""

        async def make() -> Any:
            if directory:
                return await self.it.mkdir("/".join([*path, name]))
            return await (await self.it.create("/".join([*path, name]))).close()

        told = self.said(expected)
        if told == "open":
            self.done(make)
            self.model.files = self.tree()
            return
        assert told == self.done(make), (path, name)

    @attached
    @rule(path=PATHS, name=NAMES)
    def open_or_make(self, path: Path_, name: str) -> None:
        """9P2000.L: a create without O_EXCL opens what is there; so it asks what opening asks."""

        def expected() -> Any:
            place = self.model.making(path, name)
            for right in ("read", "write"):
                self.model.need(right, place)
            if self.model.files.get(place, "") is None:
                raise Refused(OTHER)
            self.model.files.setdefault(place, "")
            return True

        async def make() -> Any:
            async with await self.it.walk("/".join(path)) as fid:
                await self.it.rpc(Tlcreate(fid.fid, name, LO.RDWR | LO.CREAT, 0o644, 0))
            return True

        if self.dialect is Dialect.L:
            assert self.said(expected) == self.done(make), (path, name)

    @attached
    @rule(path=PATHS.filter(bool))
    def remove(self, path: Path_) -> None:
        def expected() -> Any:
            model = self.model
            place = model.resolve(path, False)[0]
            if place in model.unions or not place:
                raise Refused(OTHER)
            model.need("remove", place[:-1])
            if any(other[:-1] == place for other in model.files if other):
                raise Refused(OTHER)
            del model.files[place]

        assert self.said(expected) == self.done(lambda: self.it.remove("/".join(path))), path

    @attached
    @rule(path=DIRECTORIES, name=NAMES, to=DIRECTORIES, newname=NAMES, link=st.booleans())
    def move_or_link(self, path: Path_, name: str, to: Path_, newname: str, link: bool) -> None:
        """Whether it may be, and that then nobody may do more with a file than before."""
        if self.dialect is not Dialect.L:
            return
        before = dict(self.model.files)

        async def move() -> Any:
            async with await self.it.walk("/".join(path)) as old, await self.it.walk("/".join(to)) as new:
                if link:
                    async with await self.it.walk("/".join([*path, name])) as file:
                        await self.it.rpc(Tlink(new.fid, file.fid, newname))
                else:
                    await self.it.rpc(Trenameat(old.fid, name, new.fid, newname))
            return True

        if self.done(move) is not True:
            assert before == self.tree()
            return
        source = self.model.entry(self.model.resolve(path), name)
        target = self.model.making(to, newname)
        if link:
            source = self.model.resolve((*path, name))[0]
        else:
            self.model.need("remove", source[:-1])
            if target in before and target != source:
                self.model.need("remove", target[:-1])
        for moved in [file for file in before if file[: len(source)] == source]:
            now = (*target, *moved[len(source) :])
            assert self.model.rights(now) & FULL <= self.model.rights(moved) & FULL, (moved, now)
            if not link:
                self.model.files.pop(moved, None)
        for moved in [file for file in before if file[: len(source)] == source]:
            self.model.files[(*target, *moved[len(source) :])] = before[moved]

    @attached
    @rule(path=PATHS)
    def change(self, path: Path_) -> None:
        """Every other way to look at a file or to touch it asks for a right."""
        if self.dialect is not Dialect.L:
            return
        rights = self.said(lambda: self.model.rights(self.model.resolve(path)[0]))

        if isinstance(rights, str):
            return
        for wanted, ask in _CHANGES:

            async def change(ask: Callable[[int], Message] = ask) -> bool:
                async with await self.it.walk("/".join(path)) as fid:
                    await self.it.rpc(ask(fid.fid))
                return True

            assert (True if rights & wanted else DENIED) == self.done(change), (path, wanted)


_CHANGES: Final[tuple[tuple[frozenset[str], Callable[[int], Message]], ...]] = (
    (frozenset({"read", "list"}), Tstatfs),
    (frozenset({"write"}), lambda fid: Tsetattr(fid, 1, 0o755, 0, 0, 0, 0, 0, 0, 0)),
)

Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("SKEP_MODEL_EXAMPLES", "60")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_the_server_answers_as_the_model_of_the_rights = Machine.TestCase
