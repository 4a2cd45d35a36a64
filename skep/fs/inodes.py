"""The inodes a kernel holds of a server's tree, each with its fid, found again when the connection is new.

What is done with them is mirror.py's.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from skep.fs import messages as m
from skep.fs.errors import E, FsError
from skep.fs.link import Asked, Live
from skep.fs.messages import WALK_MAX
from skep.fs.node import Attr

R = TypeVar("R", bound=m.Message)
ROOT: Final = 1  # FUSE_ROOT_ID


class Inode:
    """A file or directory the kernel knows, by its number. ``place`` is where it was seen last."""

    __slots__ = (
        "attr",
        "fid",
        "live",
        "lock_owners",
        "lookups",
        "name",
        "number",
        "parent",
        "qid",
        "told_at",
    )

    def __init__(self, number: int, qid: m.Qid, parent: Inode | None, name: str) -> None:
        self.number = number
        self.qid = qid
        self.parent = parent  # None: the root
        self.name = name
        self.lookups = 0  # how often the kernel was told of it and has not forgotten it
        self.live: Live | None = None  # the connection that fid is of; None: never walked
        self.fid = 0
        self.attr: Attr | None = None  # as told last; None: never
        self.told_at = 0.0  # when, by the loop's clock, if nobody has asked again since
        self.lock_owners: set[int] = set()  # who took byte-range locks here

    @property
    def place(self) -> tuple[int, str]:
        """Its directory's number and its name there."""
        return (self.parent.number if self.parent else 0, self.name)

    def names(self) -> tuple[str, ...]:
        """The path elements from the root."""
        return () if self.parent is None else (*self.parent.names(), self.name)


def _same_file(a: m.Qid, b: m.Qid) -> bool:
    return (a.path, a.type) == (b.path, b.type)


class Inodes:
    """All of one mount, by number."""

    def __init__(self, root: m.Qid) -> None:
        self.root = Inode(ROOT, root, None, "")
        self._by_number: dict[int, Inode] = {ROOT: self.root}
        # A file is the same inode under all its names; a directory that is bound at two places is two, for
        # the kernel does not bear a directory with two parents.
        self._files: dict[tuple[int, int], Inode] = {}  # by qid
        self._places: dict[tuple[int, str], Inode] = {}
        self._last = ROOT

    def __getitem__(self, number: int) -> Inode:
        return self._by_number[number]

    def forget(self, number: int, count: int) -> None:
        """The kernel gives back ``count`` of the times it was told of an inode."""
        inode = self._by_number.get(number)
        if inode is None or inode is self.root:
            return
        inode.lookups -= count
        if inode.lookups > 0:
            return
        del self._by_number[number]
        key = (inode.qid.path, inode.qid.type)
        if self._files.get(key) is inode:
            del self._files[key]
        if self._places.get(inode.place) is inode:
            del self._places[inode.place]
        if inode.live is not None:
            inode.live.connection.clunk(inode.fid)

    def adopt(self, live: Live, parent: Inode, name: str, fid: int, qid: m.Qid) -> Inode:
        """The inode for the file that ``fid`` was just walked to, a known one or a new one, which keeps it.
        The kernel is told of it, and will forget it, once more."""
        inode = self._places.get((parent.number, name))
        if inode is None or not _same_file(inode.qid, qid):
            inode = None if qid.type & m.QT.DIR else self._files.get((qid.path, qid.type))
        if inode is None:
            self._last += 1
            inode = self._by_number[self._last] = Inode(self._last, qid, parent, name)
            if not qid.type & m.QT.DIR:
                self._files[qid.path, qid.type] = inode
        if inode.live is live:
            live.connection.clunk(inode.fid)  # the older one: servers that keep paths lose it at a rename
        inode.live, inode.fid = live, fid
        inode.lookups += 1
        self._put(inode, parent, name)
        return inode

    def moved(self, parent: int, name: str, newparent: Inode, newname: str) -> None:
        """A file was renamed: it is the same inode, and its names are found there."""
        inode = self._places.get((parent, name))
        if inode is not None:
            self._put(inode, newparent, newname)

    async def fid(self, asked: Asked, number: int) -> int:
        """The fid of an inode on the connection of ``asked``, walked by its names if that is a new one."""
        inode = self._by_number[number]
        if inode is self.root:
            return asked.live.root
        if inode.live is asked.live:
            return inode.fid
        fid, qid = await self._walk_again(asked, inode.names())
        if not _same_file(qid, inode.qid):
            asked.live.connection.clunk(fid)
            raise FsError(E.MISSING, errno=errno.ESTALE)
        if inode.live is asked.live:
            asked.live.connection.clunk(fid)  # somebody walked it faster
        else:
            inode.live, inode.fid = asked.live, fid
        return inode.fid

    async def _walk_again(self, asked: Asked, names: tuple[str, ...]) -> tuple[int, m.Qid]:
        fid, qid = await walk(asked, asked.live.root, names[:WALK_MAX])
        for i in range(WALK_MAX, len(names), WALK_MAX):
            try:
                below, qid = await walk(asked, fid, names[i : i + WALK_MAX])
            finally:
                asked.live.connection.clunk(fid)
            fid = below
        return fid, qid

    def _put(self, inode: Inode, parent: Inode, name: str) -> None:
        if self._places.get(inode.place) is inode:
            del self._places[inode.place]
        inode.parent, inode.name = parent, name
        self._places[inode.place] = inode


async def walk(asked: Asked, fid: int, names: tuple[str, ...]) -> tuple[int, m.Qid]:
    """A new fid for what ``names`` (at most WALK_MAX) lead to, and its qid, which of a clone is not told."""
    newfid = asked.live.connection.session.take_fid()
    qids = (await asked.rpc(m.Twalk(fid, newfid, names), m.Rwalk)).wqid
    if len(qids) < len(names):
        raise FsError(E.MISSING)
    return newfid, qids[-1] if qids else m.Qid(0, 0, 0)


async def walk_and(
    asked: Asked, fid: int, names: tuple[str, ...], then: Callable[[int], m.Message], kind: type[R]
) -> tuple[int, R]:
    """As ``walk``, and the answer to the request that ``then`` makes of the new fid, sent with it: one round
    trip. The new fid is gone when that is refused."""
    if not asked.link.orderly:
        newfid, _ = await walk(asked, fid, names)
        return newfid, await _or_clunk(asked, newfid, lambda: asked.rpc(then(newfid), kind))
    newfid = asked.live.connection.session.take_fid()
    walking = asked.start(m.Twalk(fid, newfid, names))
    telling = asked.start(then(newfid))
    qids = (await asked.wait(walking, m.Rwalk)).wqid
    if len(qids) < len(names):
        raise FsError(E.MISSING)
    with contextlib.suppress(FsError):
        reply = await _or_clunk(asked, newfid, lambda: asked.wait(telling, kind), FsError)
        if not isinstance(reply, m.Rgetattr) or not names or reply.qid == qids[-1]:
            return newfid, reply
    # Requests on one fid are to be served in their order, but diod takes up both at once, and answers the
    # second by what the fid is halfway. The walk is done now: ask again.
    reply = await _or_clunk(asked, newfid, lambda: asked.rpc(then(newfid), kind))
    asked.link.orderly = False
    return newfid, reply


async def _or_clunk(
    asked: Asked,
    fid: int,
    ask: Callable[[], Awaitable[R]],
    harmless: type[BaseException] | tuple[()] = (),
) -> R:
    """What ``ask`` gives; ``fid`` is given back when it raises, unless something ``harmless``."""
    try:
        return await ask()
    except harmless:
        raise
    except BaseException:
        asked.live.connection.clunk(fid)
        raise
