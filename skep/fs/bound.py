"""A chan in a name space that has binds: what walks, listings and changes come to there.

What is bound where, space.py knows; what bind, union and ``..`` mean is written there too.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from skep.fs.chan import Chan, View, Witness, check_name
from skep.fs.errors import E, FsError
from skep.fs.messages import QT, Qid
from skep.fs.node import Attr, Caller, Entry, Handle, How, Node

if TYPE_CHECKING:
    from skep.fs.space import Space

Place = tuple[str, ...]
"""Where it is in the tree: which mount, by number, then the names from its root."""


class Part(NamedTuple):
    """One element of what is bound on a place."""

    chan: Bound
    create: bool  # what is made there may be made here


class Bound(Chan):
    """``up`` is where it lies in the tree, ``way`` where it was come from. Its name is the one walked by."""

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
            self.space.cross(found)
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
                if entry.name not in found and (shown := await chan._shown(entry)):
                    found[entry.name] = shown
        return list(found.values())

    @property
    def paged(self) -> bool:
        # What is in several directories of a union must be shown once: that takes all their names.
        return super().paged and not isinstance(self.handle, _Union)

    async def _seen(self, entry: Entry) -> Entry | None:
        seen = await super()._seen(entry)
        shown = None if seen is None else await self._shown(seen)
        return None if shown is None else shown._replace(at=entry.at)

    async def _shown(self, entry: Entry) -> Entry | None:
        """An entry here, or what is bound on it."""
        if self.key not in self.space.above:
            return entry
        parts = self.space.heads.get((*self.key, entry.name))
        if not parts:
            return entry if parts is None else None
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
