"""Random manifests, tokens and operations over 9P, beside a small model of the rights (rights.py) that shares
no code with the server. A failure prints the steps that led there."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skep.fs.connection import Connection
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
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
from skep.namespaces.tokens.biscuit import Terms
from skep.namespaces.tokens.desk import Bearer
from skep.roles.manifest import parse
from skep.trace.clock import HOUR, MINUTE, ManualClock
from tests.namespaces.token_terms import TENANT, terms
from tests.roles.rights import DENIED, FULL, MISSING, OTHER, Block, Line, Model, Path_, Refused, split
from tests.roles.spaces import Minting, Space

EXPIRED: Final = "expired"
TREE: Final = ("f", "a/f", "a/g", "a/d/f", "ab/f", "b/f", "b/d/f", "b/d/h")
NAMES = st.sampled_from(["a", "ab", "b", "d", "f", "f", "g", "h", "n"])
DIRECTORIES = st.sampled_from(["", "a", "b", "a", "b", "ab", "a/d", "b/d", "a/n"]).map(split)
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

GRANTED = st.frozensets(
    st.sampled_from(["", "a", "a", "a/d", "a/f", "ab", "b", "b/d", "b/d/h", "n"]).map(split),
    min_size=1,
    max_size=3,
)
OPS = st.frozensets(st.sampled_from(sorted(FULL)), min_size=1)
UNTIL = st.integers(1, 6)  # minutes from the attach on
FIRST = st.builds(
    lambda ops, places, minutes: Terms(ops, places, minutes, tenant=TENANT),
    OPS | st.just(FULL),
    GRANTED,
    UNTIL,
)
NEXT = st.builds(
    lambda *said: Terms(*said),
    st.just(None) | OPS,
    GRANTED | st.none(),
    st.none() | UNTIL.map(lambda n: n + 1),
)
BLOCKS = st.tuples(FIRST, st.lists(NEXT.filter(Terms().__ne__), max_size=3))


def written(line: Line) -> str:
    if line[0] == "bind" and line[1]:
        return f"bind -{line[1]} {line[2]} {line[3]}"
    return " ".join(word for word in line if word)


def kind(error: FsError) -> str:
    if error.kind is E.EXPIRED:
        return EXPIRED
    return {2: MISSING, 13: DENIED}.get(error.errno, OTHER)


class Machine(RuleBasedStateMachine):
    """One manifest, one session, many operations; after each the directory is what the model says."""

    client: Client | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.where = Path(tempfile.mkdtemp(prefix="skep-model-"))
        self.clock = ManualClock()
        self.minting = Minting(self.clock)
        self.minutes_left: int | None = None  # None: no token
        for file in TREE:
            (self.where / file).parent.mkdir(parents=True, exist_ok=True)
            (self.where / file).write_text(file)

    def teardown(self) -> None:
        if self.client is not None:
            self.loop.run_until_complete(self.client.close())
        self.loop.close()
        shutil.rmtree(self.where)

    def timed(self, block: Terms) -> Terms:
        """The block, whose minutes begin now."""
        minutes = block.until_ns
        return block if minutes is None else block._replace(until_ns=self.clock.now_ns() + minutes * MINUTE)

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
        self.begin(lines, first, old, None)

    def begin(
        self, lines: list[Line], first: str, old: bool, blocks: tuple[Terms, list[Terms]] | None
    ) -> None:
        lines = [*([("allow", *first.split())] if first else []), *lines]
        manifest = parse("test", "\n".join(["mount hive /", *map(written, lines)]).encode())
        self.gate = gate = Space(Export(self.where).root, manifest, minting=self.minting)
        self.dialect = Dialect.U if old else Dialect.L
        token, said = b"", (blocks[0], *blocks[1]) if blocks else ()
        if blocks is not None:
            first_block, *more = (self.timed(block) for block in said)
            token = self.minting.mint(first_block, more)
            self.minutes_left = min(block.until_ns for block in said if block.until_ns is not None)

        async def connect() -> Client:
            session = await Connection.over(joined(gate), self.dialect)
            return await Client.attach(session, uname="test", token=token)

        self.connect, self.refused = connect, ""
        granted = tuple(Block(block.ops, block.places) for block in said)
        try:
            self.model = Model(self.tree(), lines, granted)
        except Refused as refused:
            self.refused = refused.args[0]
        else:
            self.client = self.loop.run_until_complete(connect())

    @precondition(lambda self: self.client is None)
    @rule()
    def be_refused(self) -> None:
        if self.refused == EXPIRED:
            self.clock.advance(24 * HOUR)  # who shows bad tokens waits, longer each time
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

    @precondition(lambda self: self.client is not None and self.minutes_left is not None)
    @rule(minutes=st.integers(1, 3))
    def wait(self, minutes: int) -> None:
        """A token's session ends when the first of its blocks does, and not before; nor is it shown again."""
        assert self.minutes_left is not None
        self.clock.advance(minutes * MINUTE)
        self.minutes_left = max(self.minutes_left - minutes, 0)
        again = self.done(self.show_again)
        assert again == (EXPIRED if self.minutes_left == 0 else None)
        self.loop.run_until_complete(self.others_token())
        assert self.gate.ended is (self.minutes_left == 0)
        if self.gate.ended:
            self.loop.run_until_complete(self.it.close())
            self.client, self.refused = None, EXPIRED

    async def show_again(self) -> None:
        await (await self.connect()).close()

    async def others_token(self) -> None:
        """Somebody shows a token: the hive then looks which others are over."""
        desk = self.minting.desk
        token = self.minting.mint(terms(until_ns=self.clock.now_ns() + HOUR))
        desk.held.hold(desk.believe(token, Bearer("ann", "ann", TENANT, b"")), lambda: None)()

    def linked(self, place: Path_) -> list[Path_]:
        """The names of the file, by which hard links it has."""
        file = self.where.joinpath(*place)
        return [other for other in self.model.files if self.where.joinpath(*other).samefile(file)]

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
            for linked in self.linked(place):
                self.model.files[linked] = text

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
            model.parts(place)
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


class Bearing(Machine):
    """The same under a token, which its holder has narrowed, or has tried to widen."""

    @initialize(
        lines=st.lists(LINES, max_size=3),
        first=st.sampled_from(["all /**", "all /**", "all /**", "all /a/**"]),
        old=st.sampled_from([True, False, False]),
        blocks=BLOCKS,
    )
    def attach(self, lines: list[Line], first: str, old: bool, blocks: tuple[Terms, list[Terms]]) -> None:
        self.begin(lines, first, old, blocks)


Machine.TestCase.settings = Bearing.TestCase.settings = settings(
    max_examples=int(os.environ.get("SKEP_MODEL_EXAMPLES", "60")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_the_server_answers_as_the_model_of_the_rights = pytest.mark.slow(Machine.TestCase)
test_under_a_token_it_answers_as_the_model_says_too = pytest.mark.slow(Bearing.TestCase)
