"""A tree: directories of names and things, and what makes a thing a file.

A thing is a node, a string or bytes, a function that gives them (sync or async, of no argument or of the
Caller), a mapping (a directory), or any object with ``read``. What a thing can do follows from what it has.

    Dir({"hello": "hello, world\\n", "time": lambda: f"{now()}\\n", "ctl": Ctl(VERBS, run)})
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from skep.fs.chan import PAGE, asked, settle
from skep.fs.errors import E, FsError
from skep.fs.messages import QT, Qid
from skep.fs.node import Attr, Caller, Change, Entry, Handle, How, Maybe, Node, qid_type
from skep.fs.shapes import File, Text

_blocks = itertools.count(1)


class Clone(File):
    """Opening it opens what ``new`` makes for the caller."""

    def __init__(self, new: Callable[[Caller], Maybe[Any]], mode: int = 0o666) -> None:
        super().__init__(mode)
        self.new = new

    async def opened(self, how: How, caller: Caller) -> Handle:
        return await settle(as_node(await asked(self.new(caller))).open(how, caller))


class Exclusive(Node):
    """A file that one at a time may have open (DMEXCL): freed by clunk and by disconnect."""

    def __init__(self, thing: Any) -> None:
        self.node = as_node(thing)
        self.holder: str | None = None

    async def attr(self, caller: Caller) -> Attr:
        attr = await settle(self.node.attr(caller))
        qid = attr.qid._replace(type=attr.qid.type | QT.EXCL)
        return msgspec.structs.replace(attr, qid=qid)

    async def open(self, how: How, caller: Caller) -> Handle:
        if self.holder is not None:
            raise FsError(E.BUSY, f"holder={self.holder}")
        self.holder = caller.principal
        try:
            return _Held(await settle(self.node.open(how, caller)), self)
        except BaseException:
            self.holder = None
            raise

    def setattr(self, change: Change, caller: Caller) -> Maybe[None]:
        return self.node.setattr(change, caller)


class _Held(Handle):
    def __init__(self, handle: Handle, file: Exclusive) -> None:
        self.handle = handle
        self.file = file
        self.waits = handle.waits
        self.takes_secrets = handle.takes_secrets
        self.read = handle.read  # type: ignore[method-assign]
        self.write = handle.write  # type: ignore[method-assign]

    @property
    def tells_secrets(self) -> bool:  # type: ignore[override]  # what was written may have made it so
        return self.handle.tells_secrets

    def close(self) -> Maybe[None]:
        self.file.holder = None
        return self.handle.close()


class _Names(Handle):
    """An open directory."""

    def __init__(self, entries: Callable[[], Maybe[Sequence[Entry]]]) -> None:
        self.entries = entries  # type: ignore[method-assign]


class Dir(File):
    """A directory of fixed names."""

    kind = stat.S_IFDIR

    def __init__(self, children: Mapping[str, Any], mode: int = 0o555) -> None:
        super().__init__(mode)
        self.children = {name: as_node(thing) for name, thing in children.items()}

    def walk(self, name: str, caller: Caller) -> Maybe[Node]:
        try:
            return self.children[name]
        except KeyError:
            raise FsError(E.MISSING, name) from None

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Names(lambda: self._entries(caller))

    async def _entries(self, caller: Caller) -> list[Entry]:
        entries = []
        for name, node in self.children.items():
            attr = await settle(node.attr(caller))
            entries.append(Entry(name, attr.qid, attr.mode))
        return entries


class Listing(File):
    """A directory whose names come and go: ``names(caller)`` lists them, ``walk(name, caller)`` gives the
    thing or None. What ``walk`` makes anew each time keeps its numbers as long as its name is there, for its
    tenant: another's file of the same name is another file, and what one looks for is not the other's to see.

    ``listed``: the file type of every entry, when it is always the same; then listing walks to none."""

    kind = stat.S_IFDIR

    def __init__(
        self,
        names: Callable[[Caller], Maybe[Iterable[str]]],
        walk: Callable[[str, Caller], Maybe[Any]],
        mode: int = 0o555,
        listed: int | None = None,
    ) -> None:
        super().__init__(mode)
        self.names = names
        self.find = walk
        self.listed = listed
        # tenant, name -> the first of its block of qid paths
        self.numbers: dict[tuple[str, str], int] = {}

    def walk(self, name: str, caller: Caller) -> Maybe[Node]:
        found = self.find(name, caller)
        if hasattr(found, "__await__"):
            return self._late((caller.tenant, name), found)
        return self._found((caller.tenant, name), found)

    async def _late(self, place: tuple[str, str], found: Any) -> Node:
        return self._found(place, await asked(found))

    def _found(self, place: tuple[str, str], thing: Any) -> Node:
        if thing is None:
            self.numbers.pop(place, None)
            raise FsError(E.MISSING, place[1])
        node = as_node(thing)
        if isinstance(node, File) and not node.number:
            number(node, self._block(place))
        return node

    def _block(self, place: tuple[str, str]) -> int:
        if place not in self.numbers:
            self.numbers[place] = new_block()
        return self.numbers[place]

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Names(lambda: self._entries(caller))

    async def _entries(self, caller: Caller) -> list[Entry]:
        names = await asked(self.names(caller))
        if self.listed is not None:
            kind = qid_type(self.listed)
            tenant = caller.tenant
            return [Entry(name, Qid(kind, 0, self._block((tenant, name))), self.listed) for name in names]
        entries = []
        for name in names:
            try:
                attr = await settle((await settle(self.walk(name, caller))).attr(caller))
            except FsError:  # gone since it was listed
                continue
            entries.append(Entry(name, attr.qid, attr.mode))
        return entries


Page = Callable[[int, int], Maybe[Sequence[Entry]]]


class Pages(Handle):
    """An open directory of very many names: ``page`` gives some, as Handle.page has it."""

    paged = True

    def __init__(self, page: Page) -> None:
        self._page = page

    def page(self, after: int, limit: int) -> Maybe[Sequence[Entry]]:
        return self._page(after, limit)

    async def entries(self) -> list[Entry]:
        """All of them: for a union, which must know them all."""
        found: list[Entry] = []
        while some := await settle(self.page(found[-1].at if found else 0, PAGE)):
            found += some
        return found


class Paged(Listing):
    """A Listing of very many names. ``pages(caller)`` gives what one open of it asks for its pages."""

    def __init__(
        self, pages: Callable[[Caller], Page], walk: Callable[[str, Caller], Maybe[Any]], mode: int = 0o555
    ) -> None:
        super().__init__(lambda caller: (), walk, mode)
        self.pages = pages

    def opened(self, how: How, caller: Caller) -> Handle:
        return Pages(self.pages(caller))


BLOCK: Final = 1 << 10  # qid paths set aside for one entry of a Listing and what is below it


def new_block() -> int:
    """The first of BLOCK qid paths that no other node has or had."""
    return (1 << 63) + next(_blocks) * BLOCK


def number(node: File, first: int) -> int:
    """Give ``node`` and the fixed directories below it the qid paths from ``first`` on; the next free one."""
    node.number = first
    first += 1
    if isinstance(node, Dir):
        for child in node.children.values():
            if isinstance(child, File) and not child.number:
                first = number(child, first)
    return first


def as_node(thing: Any) -> Node:
    """The node that serves ``thing``. Raises TypeError when nothing can be served of it."""
    if isinstance(thing, Node):
        return thing
    if isinstance(thing, Mapping):
        return Dir(thing)
    if isinstance(thing, (str, bytes)) or callable(thing):
        return Text(thing)
    if hasattr(thing, "read"):
        return Text(lambda: _read_all(thing))
    raise TypeError(
        f"{thing!r} is no file: a node, text, function, mapping or object with read() was expected"
    )


def _read_all(thing: Any) -> Any:
    if hasattr(thing, "seek"):
        thing.seek(0)
    return thing.read()
