"""A session's own name space: what bind, mount, unmount and cd lines make of a tree.

A line is done at attach, in order, and its names mean what they mean at that moment. What is bound is a place
of the tree, not a path: it stays what it is when a later line changes where the path leads, and a bind on a
place shows wherever one comes to that place. Rights are those of the place in the tree, by whatever way one
came; so a bind opens nothing. ``..`` goes back the way one came.

A bind of one place on another replaces it, or with -a or -b makes the two a union: a walk takes the first
element that has the name, a read lists all (of names that are there twice, the first), and what is made is
made in the first element that was bound with -c; where none was, nothing can be. What something is bound on
can be neither removed nor renamed.

Sources: Plan 9 manual, bind(1), bind(2), namespace(6); sys/src/9/port/chan.c, cmount, cunmount.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from skep.fs.chan import Chan, View, Witness, check_name
from skep.fs.errors import E, FsError
from skep.fs.messages import QT, Qid
from skep.fs.node import Attr, Caller, Entry, Handle, How, Node

PARTS_MAX: Final = 64  # of one union: a walk that misses asks them all, and a union bound to itself doubles

Place = tuple[str, ...]
"""Where it is in the tree: which mount, by number, then the names from its root."""


class Line(NamedTuple):
    """One line. ``new`` is None where there is none: an unmount of everything, a cd."""

    verb: str  # bind, mount, unmount, cd
    new: str | None  # of mount: the tree's name
    old: str
    order: str = ""  # "a" after, "b" before what is there; "" in its place
    create: bool = False
    where: str = ""  # for messages, file:number

    def __str__(self) -> str:
        flags = ("-" if self.order or self.create else "") + self.order + ("c" if self.create else "")
        return " ".join(word for word in (self.verb, flags, self.new, self.old) if word)


class Part(NamedTuple):
    """One element of what is bound on a place."""

    chan: Bound
    create: bool  # what is made there may be made here


async def enter(root: Chan, lines: Sequence[Line]) -> Chan:
    """The root of the name space that ``lines`` make of the tree at ``root``: ``root`` itself if there are
    none. Raises FsError when one of them cannot be done: then there is no name space."""
    if not lines:
        return root
    space = Space(root)
    for line in lines:
        await space.do(line)
    return space.cross(space.root)


class Space:
    """What is bound where, in one session."""

    def __init__(self, root: Chan) -> None:
        self.heads: dict[Place, list[Part]] = {}  # never an empty list
        self.above: set[Place] = set()  # the directories that such places are in
        self._attached = root
        self._mounts = 0
        self.root = self.dot = self._mount()

    def _mount(self) -> Bound:
        """The tree's root, as another mount."""
        at, self._mounts = self._attached, self._mounts + 1
        return Bound(self, at.node, at.caller, at.view, witness=at.witness, place=(str(self._mounts),))

    def cross(self, chan: Bound) -> Bound:
        """What is bound where ``chan`` is, reached the way it was; ``chan`` if nothing is."""
        parts = self.heads.get(chan.key)
        if parts is None:
            return chan
        first = parts[0].chan
        crossed = first.clone()
        crossed.name, crossed.way, crossed.parts = chan.name, chan.way, tuple(parts)
        return crossed

    async def do(self, line: Line) -> None:
        try:
            await _VERBS[line.verb](self, line)
        except FsError as error:
            raise FsError(error.kind, f"{line.where}: {line}: {error.detail}", errno=error.errno) from error

    async def _bind(self, line: Line) -> None:
        assert line.new is not None
        await self._put(self.cross(await self._named(line.new)), line)

    async def _remount(self, line: Line) -> None:
        await self._put(self._mount(), line)

    async def _put(self, new: Bound, line: Line) -> None:
        old = await self._named(line.old)
        directory = await _is_directory(old)
        if directory is not await _is_directory(new) or (line.order and not directory):
            raise FsError(
                E.INVALID, "inconsistent: a directory goes on a directory, a file in a file's place"
            )
        first, *rest = new.parts or (Part(new, False),)
        if line.create and rest:
            raise FsError(E.INVALID, "which element of the union would take what is made?")
        made = [Part(first.chan, line.create), *(Part(part.chan, False) for part in rest)]
        there = self.heads.get(old.key, [Part(old, False)])
        union = {"a": [*there, *made], "b": [*made, *there], "": made}[line.order]
        if len(union) > PARTS_MAX:
            raise FsError(E.INVALID, f"a union of {len(union)}, at most {PARTS_MAX} were expected")
        self._set(old.key, union)

    async def _unmount(self, line: Line) -> None:
        old = await self._named(line.old)
        there = self.heads.get(old.key)
        if there is None:
            raise FsError(E.INVALID, "nothing is bound there")
        left: list[Part] = []
        if line.new is not None:
            new = self.cross(await self._named(line.new))
            left = [part for part in there if part.chan.key != new.key]
            if len(left) == len(there):
                raise FsError(E.INVALID, f"{line.new} is not in the union")
        self._set(old.key, left)

    def _set(self, place: Place, union: list[Part]) -> None:
        if union:
            self.heads[place] = union
        else:
            del self.heads[place]
        self.above = {head[:-1] for head in self.heads}

    async def _cd(self, line: Line) -> None:
        self.dot = await self._named(line.old)
        if not await _is_directory(self.cross(self.dot)):
            raise FsError(E.NOTDIR)

    async def _named(self, path: str) -> Bound:
        """The place that ``path`` names now, before what is bound on it itself."""
        here = self.root if path.startswith("/") else self.dot
        for name in filter(None, path.split("/")):
            here, _ = await self.cross(here).step(name)
        return here


_VERBS: Final = {
    "bind": Space._bind, "mount": Space._remount, "unmount": Space._unmount, "cd": Space._cd,
}  # fmt: skip


async def _is_directory(chan: Chan) -> bool:
    return stat.S_ISDIR((await chan.attr()).mode)


class Bound(Chan):
    """A chan in a name space that has binds: ``up`` is where it lies in the tree, ``way`` where it was come
    from. Its name is the one it was walked by."""

    __slots__ = ("key", "parts", "space", "way")

    plain = False

    def __init__(
        self,
        space: Space,
        node: Node,
        caller: Caller,
        view: View,
        up: Bound | None = None,
        name: str = "/",
        witness: Witness | None = None,
        place: Place = (),
    ) -> None:
        super().__init__(node, caller, view, up, name, witness)
        self.space = space
        self.key: Place = place if up is None else (*up.key, name)
        self.way: Bound | None = up  # None: the root
        self.parts: tuple[Part, ...] = ()  # of what is bound here; none: it is what the tree has

    @property
    def path(self) -> str:
        return "/" + "/".join(self.key[1:])

    @property
    def given(self) -> str:
        names: list[str] = []
        here: Bound = self
        while here.way is not None:
            names.append(here.name)
            here = here.way
        return "/" + "/".join(reversed(names))

    @property
    def above(self) -> Bound:
        return self.way or self

    # walk

    def clone(self) -> Bound:
        assert self.up is None or isinstance(self.up, Bound)
        copy = Bound(self.space, self.node, self.caller, self.view, self.up, self.name, self.witness)
        copy.key, copy.way, copy.parts = self.key, self.way, self.parts
        return copy

    def _below(self, node: Node, view: View, name: str) -> Bound:
        return Bound(self.space, node, self.caller, view, self, name)

    async def child(self, name: str) -> tuple[Chan, Attr]:
        if name == "..":
            return self.above.clone(), await self.above.attr()
        found, attr = await self.step(name)
        here = self.space.cross(found)
        return here, attr if here is found else await here.attr()

    async def step(self, name: str) -> tuple[Bound, Attr]:
        """The entry ``name``, before what is bound on it: of the first element that has it."""
        missing: Exception | None = None
        for part in self.parts or (Part(self, False),):
            try:
                found, attr = await Chan.child(part.chan, name)
            except (FsError, FileNotFoundError) as error:
                if isinstance(error, FsError) and error.kind is not E.MISSING:
                    raise
                missing = missing or error
                continue
            assert isinstance(found, Bound)
            found.way = self
            return found, attr
        assert missing is not None
        raise missing

    async def _holding(self, name: str) -> Bound:
        """The directory of the tree whose own the entry ``name`` is."""
        if not self.parts and self.key not in self.space.above:
            return self
        check_name(name)
        found, _ = await self.step(name)
        if found.key in self.space.heads:
            raise _mount_point(name)
        assert isinstance(found.up, Bound)
        return found.up

    # open, create

    async def open(self, how: How, rclose: bool = False) -> Qid:
        if rclose and self.parts:
            raise _mount_point(self.name)
        if len(self.parts) < 2:
            return await super().open(how, rclose)
        opened: list[Bound] = []
        refused: FsError | None = None
        for part in self.parts:
            chan = part.chan.clone()
            try:
                await chan.open(how)
            except FsError as error:
                if error.kind is not E.DENIED:
                    raise
                refused = refused or error
                continue
            opened.append(chan)
        if not opened:
            assert refused is not None
            raise refused
        self.handle, self.how = _Union(opened), how
        return (await self.attr()).qid

    async def _making(self, name: str) -> Bound:
        """The directory of the tree that a new entry ``name`` goes to."""
        if not self.parts:
            return self
        place = next((part.chan for part in self.parts if part.create), None)
        if place is None:
            raise FsError(E.DENIED, f"rule=union {self.path}")
        check_name(name)
        try:
            found, _ = await self.step(name)
        except (FsError, FileNotFoundError) as error:
            if isinstance(error, FsError) and error.kind is not E.MISSING:
                raise
            return place
        if found.up is not place:
            raise FsError(E.EXISTS)
        return place

    async def create(
        self, name: str, mode: int, how: How, gid: int, rclose: bool = False
    ) -> tuple[Chan, Qid]:
        made, qid = await Chan.create(await self._making(name), name, mode, how, gid, rclose)
        assert isinstance(made, Bound)
        made.way = self.clone()
        return made, qid

    async def mkdir(self, name: str, mode: int, gid: int) -> Qid:
        return await Chan.mkdir(await self._making(name), name, mode, gid)

    async def symlink(self, name: str, target: str, gid: int) -> Qid:
        return await Chan.symlink(await self._making(name), name, target, gid)

    async def mknod(self, name: str, mode: int, rdev: int, gid: int) -> Qid:
        return await Chan.mknod(await self._making(name), name, mode, rdev, gid)

    async def link(self, name: str, other: Chan) -> None:
        await Chan.link(await self._making(name), name, other)

    # directories

    async def entries(self) -> list[Entry]:
        found: dict[str, Entry] = {}
        for chan in self.handle.opened if isinstance(self.handle, _Union) else (self,):
            for entry in await Chan.entries(chan):
                if entry.name not in found:
                    found[entry.name] = await chan._shown(entry)
        return list(found.values())

    async def _shown(self, entry: Entry) -> Entry:
        """An entry here, or what is bound on it."""
        if self.key not in self.space.above:
            return entry
        parts = self.space.heads.get((*self.key, entry.name))
        if parts is None:
            return entry
        attr = await parts[0].chan.attr()
        return Entry(entry.name, attr.qid, attr.mode)

    # stat

    async def attr(self) -> Attr:
        attr = await super().attr()
        if not self.parts or not attr.qid.type & QT.DIR:
            return attr
        takes = next((part.chan for part in self.parts if part.create), None)
        writable = 0 if takes is None else (await Chan.attr(takes)).mode & 0o222
        return msgspec.structs.replace(attr, mode=attr.mode & ~0o222 | writable)

    async def _check_rename(self, name: str) -> None:
        if self.parts:
            raise _mount_point(self.name)
        await super()._check_rename(name)

    # remove, rename

    async def renameat(self, name: str, to: Chan, newname: str, replace: bool = True) -> None:
        assert isinstance(to, Bound)
        here, there = await self._holding(name), await to._making(newname)
        if (*there.key, newname) in self.space.heads:
            raise _mount_point(newname)
        await Chan.renameat(here, name, there, newname, replace)

    async def rename(self, to: Chan, newname: str) -> None:
        assert isinstance(to, Bound)
        await super().rename(await to._making(newname), newname)
        self.way = to.clone()

    def _moved(self, to: Chan, name: str) -> None:
        assert isinstance(to, Bound)
        super()._moved(to, name)
        self.key = (*to.key, name)

    async def _still_there(self) -> None:
        if self.parts:
            raise _mount_point(self.name)
        await super()._still_there()

    async def unlinkat(self, name: str, directory: bool | None) -> None:
        await Chan.unlinkat(await self._holding(name), name, directory)


class _Union(Handle):
    """An open union directory: those of its elements that may be read."""

    def __init__(self, opened: Sequence[Bound]) -> None:
        self.opened = opened

    async def close(self) -> None:
        for chan in self.opened:
            await chan.clunk()


def _mount_point(name: str) -> FsError:
    return FsError(E.READONLY, f"{name} is a mount point", errno=errno.EBUSY)
