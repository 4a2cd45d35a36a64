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

import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from skep.fs.bound import Bound, Part, Place
from skep.fs.chan import Chan, View
from skep.fs.errors import E, FsError

PARTS_MAX: Final = 64  # of one union: a walk that misses asks them all, and a union bound to itself doubles


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


async def enter(root: Chan, lines: Sequence[Line], whole: View | None = None) -> Chan:
    """The root of the name space that ``lines`` make of the tree at ``root``: ``root`` itself if there are
    none. Raises FsError when one of them cannot be done: then there is no name space.

    ``whole``: the view that the lines are done in, where ``root`` has that narrowed: what it does not show
    is then not bound either, and in its place is nothing. None: that of ``root``."""
    if not lines:
        return root
    space = Space(root, whole or root.view)
    for line in lines:
        await space.do(line)
    if whole is not None and whole is not root.view:
        space.narrow(root.view)
    return space.cross(space.root)


class Space:
    """What is bound where, in one session."""

    def __init__(self, root: Chan, view: View) -> None:
        self.heads: dict[Place, list[Part]] = {}  # of none: there is nothing in its place
        self.above: set[Place] = set()  # the directories that such places are in
        self._attached = root
        self._view = view
        self._mounts = 0
        self.root = self.dot = self._mount()

    def _mount(self) -> Bound:
        """The tree's root, as another mount."""
        at, self._mounts = self._attached, self._mounts + 1
        return Bound(self, at.node, at.caller, self._view, witness=at.witness, place=(str(self._mounts),))

    def narrow(self, view: View) -> None:
        """Have ``view``, from the tree's root on, instead of the one that the lines were done in."""
        for place, parts in self.heads.items():
            seen = [(_narrowed(part.chan, view), part.create) for part in parts]
            self.heads[place] = [Part(chan, create) for chan, create in seen if chan is not None]
        narrowed = _narrowed(self.root, view)
        assert narrowed is not None
        self.root = narrowed

    def cross(self, chan: Bound) -> Bound:
        """What is bound where ``chan`` is, reached the way it was; ``chan`` if nothing is. Raises FsError."""
        parts = self.heads.get(chan.key)
        if parts is None:
            return chan
        if not parts:
            raise FsError(E.MISSING, chan.name, hidden=True)
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


def _narrowed(chan: Bound, root: View) -> Bound | None:
    """The same place, in the view whose root is ``root``; None: there it does not exist."""
    if chan.up is None:
        return Bound(
            chan.space, chan.node, chan.caller, root, name=chan.name, witness=chan.witness, place=chan.key
        )
    assert isinstance(chan.up, Bound)
    up = _narrowed(chan.up, root)
    view = None if up is None else up.view.child(chan.name)
    return None if view is None else Bound(chan.space, chan.node, chan.caller, view, up, chan.name)


async def _is_directory(chan: Chan) -> bool:
    return stat.S_ISDIR((await chan.attr()).mode)
