"""A chan: one caller's place in a tree. The one door: 9P fids, mounts and requests are all chans.

Names are checked here, visibility (what is not in the caller's view does not exist) and rights (what is may
still not be written) are asked here and nowhere else; below are the nodes of node.py, which may trust both.
A chan knows the way it came (``up``), so ".." never leads above the place it was attached.

Sources: Plan 9 manual, walk(5), open(5), read(5), stat(5); The Use of Name Spaces in Plan 9.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import stat
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, cast

import msgspec

from skep.fs.errors import DENIALS, E, FsError
from skep.fs.messages import NAME_MAX, QT, Dialect, LockStatus, LockType, Qid
from skep.fs.node import (
    Attr,
    Caller,
    Change,
    Entry,
    Handle,
    How,
    Lock,
    Maybe,
    Node,
    StatFs,
    T,
)
from skep.fs.wire import Dirent, pack_dirent, pack_stat, stat_of

P = ParamSpec("P")
PAGE: Final = 256  # names of a directory taken at a time where it comes in pages
PLACE_MAX: Final = (1 << 64) - 1  # of a name in a directory that comes in pages
XATTR_MAX: Final = 65536  # bytes in one extended attribute, as on Linux


class Right(enum.IntFlag):
    """What a caller may do at one place of its namespace."""

    READ = 1
    WRITE = 2
    CREATE = 4  # names in a directory: create, mkdir, link, rename to
    REMOVE = 8  # names in a directory: unlink, rename from
    LIST = 16  # names in a directory: those that exist for the caller, where READ is not granted


ALL_RIGHTS: Final = Right.READ | Right.WRITE | Right.CREATE | Right.REMOVE
# The permissions that a file does not show, by the rights that there are to it. A table, as a walk asks it of
# each name, and flags are slow to reckon with.
_DIR: Final = int(QT.DIR)  # an IntFlag's & is a function in Python
_LOST: Final = tuple(
    (0 if rights & Right.READ else 0o444) | (0 if rights & (Right.WRITE | Right.CREATE) else 0o222)
    for rights in range(2 * Right.LIST)
)


class View(Protocol):
    """A caller's namespace seen from one place: which names exist below, and what may be done here."""

    rights: Right

    def child(self, name: str) -> View | None:
        """The view from the entry called ``name``; None: it does not exist for this caller."""


class Everything:
    """The view of one who may do everything below."""

    rights = ALL_RIGHTS

    def child(self, name: str) -> View | None:
        return self


EVERYTHING: Final = Everything()


class Witness(Protocol):
    """Records what is refused. It is told from within the answer's way, so it never waits."""

    def refused(self, op: str, given: str, canonical: str, error: FsError, caller: Caller | None) -> str:
        """``op`` was refused at the path ``given``, which is ``canonical``; the trace id of the record.
        ``caller`` None: nobody has attached yet."""

    def missed(self, op: str, given: str, canonical: str, caller: Caller, hidden: bool) -> None:
        """There is no such name for the caller; ``hidden``: so that is a refusal. Both take equally long."""


async def settle(value: Maybe[T]) -> T:
    """What a node's answer comes to. Its coroutine is begun at once, without a task of its own."""
    if not hasattr(value, "__await__"):
        return value
    if asyncio.isfuture(value):
        return await _outcome(value)
    return await value


async def _outcome(future: asyncio.Future[T]) -> T:
    try:
        return await future
    except asyncio.CancelledError:
        # It ended before the cancellation reached it: what it did is told, or it would be lost.
        if future.done() and not future.cancelled():
            return future.result()
        raise


async def _settle_after(value: Awaitable[T]) -> T:
    """What must be known of something done already: asked for to the end, whoever gives up meanwhile."""
    task = asyncio.ensure_future(value)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    return task.result()


async def asked(value: Maybe[T]) -> T:
    """What an author's function gives. A coroutine gets a task of its own, as asyncio's time-outs and groups
    need one."""
    if inspect.iscoroutine(value):
        return await _outcome(asyncio.ensure_future(value))
    return await settle(value)


def check_name(name: str) -> None:
    """Refuse what cannot name a new entry: "", ".", "..", a slash, a NUL, more than NAME_MAX bytes."""
    if len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        raise FsError(E.NAMETOOLONG)
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise FsError(E.INVALID, f"not a file name: {name!r}")


def _told(
    op: str, named: bool = False
) -> Callable[
    [Callable[Concatenate[Chan, P], Coroutine[Any, Any, T]]],
    Callable[Concatenate[Chan, P], Coroutine[Any, Any, T]],
]:
    """Has a chan's witness told of the refusals of one method. ``named``: its first argument is the name of
    an entry here, of which it is."""

    def wrap(
        method: Callable[Concatenate[Chan, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[Chan, P], Coroutine[Any, Any, T]]:
        @functools.wraps(method)
        async def told(self: Chan, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await method(self, *args, **kwargs)
            except FsError as error:
                self._tell(op, error, str(args[0]) if named else "")
                raise

        return cast("Callable[Concatenate[Chan, P], Coroutine[Any, Any, T]]", told)

    return wrap


def _fits(out: bytearray, entry: Entry, offset: int, count: int) -> bool:
    """Add the entry, behind which a listing goes on at ``offset``; False: ``out`` is full.

    Raises FsError when ``count`` bytes do not even hold one."""
    packed = pack_dirent(Dirent(entry.qid, offset, stat.S_IFMT(entry.mode) >> 12, entry.name))
    if len(out) + len(packed) <= count:
        out += packed
        return True
    if not out:
        raise FsError(E.INVALID, f"count {count} is too small for one entry")
    return False


def _named(right: Right) -> str:
    return str(right.name).lower()


def _wanted(how: How) -> Right:
    """What an open file needs."""
    read = Right.READ if how.read or how.execute else Right(0)
    return read | (Right.WRITE if how.write or how.trunc else Right(0))


class Chan:
    """One caller at one node. Not open until ``open`` or ``create``; closed once, by ``clunk``."""

    __slots__ = (
        "_base",
        "_entries",
        "_marks",
        "_next",
        "_rest",
        "caller",
        "handle",
        "how",
        "name",
        "node",
        "place",
        "rclose",
        "up",
        "view",
        "witness",
    )

    plain = True
    """Whether ``up`` is the way it came by, so that a name below it means the same for the whole session."""

    def __init__(
        self,
        node: Node,
        caller: Caller,
        view: View,
        up: Chan | None = None,
        name: str = "/",
        witness: Witness | None = None,
    ) -> None:
        self.node = node
        self.caller = caller
        self.view = view
        self.up = up  # None: the place it was attached
        # None: nobody records what is refused
        self.witness: Witness | None = witness if up is None else up.witness
        self.name = name
        self.handle: Handle | None = None
        self.how: How | None = None
        self.rclose = False
        self.place: int | None = None  # its number in the inner loop (hot.py), once asked for
        self._entries: list[Entry] = []  # a directory's names, as they were when last read from 0; or a page
        self._base = 0  # how many names came before the page
        self._marks: list[tuple[int, int]] = []  # of each page so far: its base, and after which place it is
        self._rest = 0  # 9P2000: what the last directory read left of its count
        self._next = (0, 0)  # 9P2000: the offset the next directory read must have, and its index

    @property
    def path(self) -> str:
        """The canonical path from the place of attaching, for records and messages."""
        names: list[str] = []
        here: Chan | None = self
        while here is not None and here.up is not None:
            names.append(here.name)
            here = here.up
        return "/" + "/".join(reversed(names))

    @property
    def given(self) -> str:
        """The path by which it was come to: another than the canonical one in a name space with binds."""
        return self.path

    @property
    def above(self) -> Chan:
        """Where ".." leads."""
        return self.up or self

    def _tell(self, op: str, error: FsError, name: str = "", given: str = "") -> None:
        """Have it recorded that ``op`` was refused here, or at ``name`` below: once, and by the id that the
        error then has. ``given``: the path as it was asked for, where that is another than the canonical."""
        if self.witness is None or error.told:
            return
        missing = error.kind is E.MISSING
        if not missing and error.kind not in DENIALS:
            return
        error.told = True
        canonical = f"{self.path.rstrip('/')}/{name}" if name else self.path
        given = given or (f"{self.given.rstrip('/')}/{name}" if name else self.given)
        if missing:
            self.witness.missed(op, given, canonical, self.caller, error.hidden)
        else:
            error.trace = self.witness.refused(op, given, canonical, error, self.caller)

    def _need(self, right: Right) -> None:
        if not self.view.rights & right:
            raise FsError(E.DENIED, f"rule={_named(right)} {self.path}")

    # walk

    def clone(self) -> Chan:
        """Another chan at the same place, not open."""
        copy = Chan(self.node, self.caller, self.view, self.up, self.name, self.witness)
        copy.place = self.place
        return copy

    async def child(self, name: str) -> tuple[Chan, Attr]:
        """The chan one name further down, or up for ".."."""
        if name == "..":
            return self.above.clone(), await self.above.attr()
        if name in ("", ".") or "/" in name:
            raise FsError(E.MISSING, name)
        if len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
            raise FsError(E.NAMETOOLONG)
        view = self.view.child(name)
        if view is None:
            raise FsError(E.MISSING, name, hidden=True)
        node = await settle(self.node.walk(name, self.caller))
        here = self._below(node, view, name)
        return here, await here.attr()

    def _below(self, node: Node, view: View, name: str) -> Chan:
        """The chan of an entry here."""
        return Chan(node, self.caller, view, self, name)

    async def walk(self, names: tuple[str, ...]) -> tuple[list[Qid], Chan | None]:
        """The qids of the names that could be walked, and the chan there if all could.

        Raises the first name's error; a later one's ends the walk short."""
        here = self.clone()
        qids: list[Qid] = []
        if names and not (await self.attr()).qid.type & _DIR:
            raise FsError(E.NOTDIR)
        for i, name in enumerate(names):
            try:
                if i and not qids[-1].type & _DIR:
                    raise FsError(E.NOTDIR)
                here, attr = await here.child(name)
            except (FsError, OSError) as error:
                if isinstance(error, FsError):
                    here._tell("walk", error, name, "/".join((self.given.rstrip("/"), *names)))
                if i == 0:
                    raise
                return qids, None
            qids.append(attr.qid)
        return qids, here

    # open, create

    @_told("open")
    async def open(self, how: How, rclose: bool = False) -> Qid:
        """Open it. The mode is checked against the view here, by the node for what it can do."""
        attr = await self.attr()
        if stat.S_ISLNK(attr.mode):
            raise FsError(E.LOOP)
        if stat.S_ISDIR(attr.mode) and (how.write or how.trunc or rclose):
            raise FsError(E.ISDIR)
        if (how.read or how.execute) and not (stat.S_ISDIR(attr.mode) and self.view.rights & Right.LIST):
            self._need(Right.READ)
        if how.write or how.trunc:
            self._need(Right.WRITE)
        if rclose and self.up is not None:
            self.up._need(Right.REMOVE)
        self.handle = await settle(self.node.open(how, self.caller))
        self.how = how
        self.rclose = rclose
        return (await self._attr_after(self.node)).qid if how.trunc else attr.qid

    @_told("create", named=True)
    async def create(
        self, name: str, mode: int, how: How, gid: int, rclose: bool = False
    ) -> tuple[Chan, Qid]:
        """A new file here, opened: the chan that stands for it."""
        view = await self._new(name)
        # What is there already may be opened by this, so it is asked what opening asks.
        missing = _wanted(how) & ~view.rights
        if missing:
            raise FsError(E.DENIED, f"rule={_named(missing)} {self.path.rstrip('/')}/{name}")
        if rclose:
            self._need(Right.REMOVE)
        node, handle = await settle(self.node.create(name, mode, how, gid, self.caller))
        made = self.clone()._below(node, view, name)
        made.handle, made.how, made.rclose = handle, how, rclose
        return made, (await self._attr_after(node)).qid

    async def _new(self, name: str) -> View:
        """The view of an entry about to be made here."""
        check_name(name)
        if not (await self.attr()).qid.type & QT.DIR:
            raise FsError(E.NOTDIR)
        self._need(Right.CREATE)
        view = self.view.child(name)
        if view is None:
            raise FsError(E.DENIED, f"rule=namespace {self.path}")
        return view

    @_told("create", named=True)
    async def mkdir(self, name: str, mode: int, gid: int) -> Qid:
        await self._new(name)
        return await self._qid_of(await settle(self.node.mkdir(name, mode, gid, self.caller)))

    @_told("create", named=True)
    async def symlink(self, name: str, target: str, gid: int) -> Qid:
        await self._new(name)
        return await self._qid_of(await settle(self.node.symlink(name, target, gid, self.caller)))

    @_told("create", named=True)
    async def mknod(self, name: str, mode: int, rdev: int, gid: int) -> Qid:
        await self._new(name)
        return await self._qid_of(await settle(self.node.mknod(name, mode, rdev, gid, self.caller)))

    @_told("create", named=True)
    async def link(self, name: str, other: Chan) -> None:
        view = await self._new(name)
        if (await other.attr()).qid.type & QT.DIR:
            raise FsError(E.READONLY, "hard link to a directory")
        self._check_width(other.view, view, name)
        await settle(self.node.link(name, other.node, self.caller))

    def _check_width(self, old: View, new: View, name: str) -> None:
        """Refuse to have a file as ``name`` here, where its caller may do more to it than where it is."""
        if new.rights & ALL_RIGHTS & ~old.rights:
            raise FsError(E.DENIED, f"rule=widening {self.path.rstrip('/')}/{name}")

    async def _qid_of(self, node: Node) -> Qid:
        return (await self._attr_after(node)).qid

    async def _attr_after(self, node: Node) -> Attr:
        attr = node.attr(self.caller)
        return attr if isinstance(attr, Attr) else await _settle_after(attr)

    # read, write

    @property
    def waits(self) -> bool:
        """Whether a read may wait for an event."""
        return self.handle is not None and self.handle.waits

    @property
    def takes_secrets(self) -> bool:
        """Whether what is written may be a secret: of what is not open, nobody knows."""
        return self.handle is None or self.handle.takes_secrets

    @property
    def tells_secrets(self) -> bool:
        """The same of what is read."""
        return self.handle is None or self.handle.tells_secrets

    @_told("read")
    async def read(self, offset: int, count: int) -> bytes:
        """Bytes of an open file. The session has checked that it is open for reading."""
        assert self.handle is not None
        return await settle(self.handle.read(offset, count))

    @_told("write")
    async def write(self, offset: int, data: memoryview) -> int:
        assert self.handle is not None
        return await settle(self.handle.write(offset, data))

    async def fsync(self, datasync: bool) -> None:
        assert self.handle is not None
        await settle(self.handle.fsync(datasync))

    @_told("lock")
    async def lock(self, lock: Lock, wait: bool) -> LockStatus:
        assert self.handle is not None
        if lock.type != LockType.UNLCK:
            # Who may not write must not keep writers out, however the file was opened.
            self._need(Right.WRITE if lock.type == LockType.WRLCK else Right.READ | Right.WRITE)
        return await settle(self.handle.lock(lock, wait))

    @_told("lock")
    async def getlock(self, lock: Lock) -> Lock:
        assert self.handle is not None
        self._need(Right.READ | Right.WRITE)
        return await settle(self.handle.getlock(lock))

    # directories

    async def entries(self) -> list[Entry]:
        """The names in an open directory that exist for the caller."""
        assert self.handle is not None
        every = await settle(self.handle.entries())
        if self.view is EVERYTHING:
            return list(every)
        return [entry for entry in every if self.view.child(entry.name) is not None]

    @property
    def paged(self) -> bool:
        """Whether the names in an open directory come by ``page``."""
        return self.handle is not None and self.handle.paged

    async def page(self, after: int, limit: int) -> list[Entry]:
        """The next names, at most ``limit`` of them, that exist for the caller; none: there are no more."""
        assert self.handle is not None
        while every := await settle(self.handle.page(after, limit)):
            if found := [seen for entry in every if (seen := await self._seen(entry)) is not None]:
                return found
            after = every[-1].at
        return []

    async def _seen(self, entry: Entry) -> Entry | None:
        """The name as the caller sees it; None: it does not exist for it."""
        return entry if self.view is EVERYTHING or self.view.child(entry.name) is not None else None

    @_told("read")
    async def readdir(self, offset: int, count: int) -> bytes:
        """9P2000.L: entries from the cookie ``offset`` on, as many as fit. Cookie n stands after the nth
        name of the listing that offset 0 took; "." and ".." come first."""
        if self.paged:
            return await self._readdir_page(offset, count)
        if offset == 0 or not self._entries:
            self._entries = [
                Entry(".", (await self.attr()).qid, stat.S_IFDIR),
                Entry("..", (await self.above.attr()).qid, stat.S_IFDIR),
                *await self.entries(),
            ]
        out = bytearray()
        for i in range(offset, len(self._entries)):
            if not _fits(out, self._entries[i], i + 1, count):
                break
        return bytes(out)

    async def _readdir_page(self, offset: int, count: int) -> bytes:
        if offset == 0:
            self._turn_back()
        out = bytearray()
        while True:
            if offset < 2:
                name, there = ("..", self.above) if offset else (".", self)
                entry = Entry(name, (await there.attr()).qid, stat.S_IFDIR)
            elif (index := await self._seek(offset - 2)) < len(self._entries):
                entry = self._entries[index]
            else:
                break
            offset += 1
            if not _fits(out, entry, offset, count):
                break
        return bytes(out)

    def _turn_back(self) -> None:
        """The first page is taken anew."""
        self._entries, self._base, self._marks = [], 0, []

    async def _seek(self, n: int) -> int:
        """Have the page taken that has the name after ``n`` others; its index in ``_entries``, or their
        number when there is none. Only where each page began is kept: who goes back into one that names have
        left meanwhile, finds others in their places."""
        if n < self._base:
            at = bisect_right(self._marks, (n, PLACE_MAX)) - 1
            (self._base, after), self._marks = self._marks[at], self._marks[: at + 1]
            self._entries = await self.page(after, PAGE)
        while n >= (end := self._base + len(self._entries)) and self.paged:
            after = self._entries[-1].at if self._entries else self._marks[-1][1] if self._marks else 0
            if not (found := await self.page(after, PAGE)):
                break
            self._marks.append((end, after))
            self._entries, self._base = found, end
        return min(n - self._base, len(self._entries))

    @_told("read")
    async def read_directory(self, offset: int, count: int, dialect: Dialect) -> bytes:
        """9P2000 and 9P2000.u: whole stat entries from ``offset``: 0, or where the last read ended.

        A count too small for one entry is an error, since nothing would be the end. But Linux fills one
        buffer by several reads, each of what is left: where that is too small, it must get nothing."""
        rest, self._rest = self._rest, 0
        if offset == 0:
            self._turn_back()
            self._entries = [] if self.paged else await self.entries()
            self._next = (0, 0)
        expected, n = self._next
        if offset != expected:
            raise FsError(E.INVALID, f"directory offset {offset}: 0 or {expected} was expected")
        out = bytearray()
        while (index := await self._seek(n)) < len(self._entries):
            try:
                here, attr = await self.child(self._entries[index].name)
            except (FsError, OSError):  # gone since it was listed, or hidden
                n += 1
                continue
            packed = pack_stat(stat_of(attr, here.name, dialect), dialect)
            if len(out) + len(packed) > count:
                if not out and count != rest:
                    raise FsError(E.INVALID, f"count {count} is too small for one entry")
                break
            out += packed
            n += 1
        self._next = (offset + len(out), n)
        self._rest = count - len(out)
        return bytes(out)

    # stat

    async def attr(self) -> Attr:
        """What stat tells, its permissions cut to what the caller may do here."""
        told = self.node.attr(self.caller)
        attr: Attr = told if isinstance(told, Attr) else await settle(told)
        lost = attr.mode & _LOST[self.view.rights]
        if lost and stat.S_ISDIR(attr.mode):
            lost &= 0o222
        return msgspec.structs.replace(attr, mode=attr.mode & ~lost) if lost else attr

    @_told("wstat")
    async def setattr(self, change: Change) -> None:
        """All of ``change`` or nothing; a rename in it is done first, as it can be undone."""
        self._need(Right.WRITE)
        attr = await self.attr()
        if stat.S_ISDIR(attr.mode) and change.size:
            raise FsError(E.ISDIR)
        old, rename, rest = self.name, change.rename, msgspec.structs.replace(change, rename=None)
        if rename is None or rename == old:
            await settle(self.node.setattr(rest, self.caller))
            return
        await self._check_rename(rename)
        assert self.up is not None
        await self.up.renameat(old, self.up, rename, replace=False)
        if rest != Change():
            try:
                await settle(self.node.setattr(rest, self.caller))
            except BaseException:
                directory = self.up.node
                # Taking back asks for no rights: the other name may have fewer.
                undo = directory.rename(rename, directory, old, False, self.caller)
                await _settle_after(settle(undo))
                raise
        self._moved(self.up, rename)

    async def _check_rename(self, name: str) -> None:
        check_name(name)
        if self.up is None:
            raise FsError(E.READONLY, "the root has no other name")
        try:
            await self.up.child(name)
        except FsError as error:
            if error.kind is not E.MISSING:
                raise
        except FileNotFoundError:
            pass
        else:
            raise FsError(E.EXISTS)

    @_told("stat")
    async def statfs(self) -> StatFs:
        self._need(Right.READ | Right.LIST)
        return await settle(self.node.statfs(self.caller))

    @_told("read")
    async def readlink(self) -> str:
        self._need(Right.READ)
        return await settle(self.node.readlink(self.caller))

    # remove, rename

    @_told("rename", named=True)
    async def renameat(self, name: str, to: Chan, newname: str, replace: bool = True) -> None:
        """Move the entry ``name`` of this directory to ``newname`` in ``to``."""
        view, attr = await self._taking(name)
        new = await to._new(newname)
        if view is not EVERYTHING:
            if attr is not None and stat.S_ISDIR(attr.mode):
                # What below it is denied here might not be there, and what is hidden would go along.
                raise FsError(E.DENIED, f"rule=widening {self.path.rstrip('/')}/{name}")
            to._check_width(view, new, newname)
        # What stands under the new name is removed by this: who may not remove there may not replace.
        replace = replace and bool(to.view.rights & Right.REMOVE)
        await settle(self.node.rename(name, to.node, newname, replace, self.caller))

    async def _taking(self, name: str) -> tuple[View, Attr | None]:
        """The view and attributes of an entry about to be taken away (None: its caller may do anything)."""
        check_name(name)
        self._need(Right.REMOVE)
        view = self.view.child(name)
        if view is None:
            raise FsError(E.MISSING, hidden=True)
        if view is EVERYTHING and self.view is EVERYTHING:
            return view, None
        # Asked first, so that what is not there answers as what is hidden, whatever the directory says of
        # taking away.
        node = await settle(self.node.walk(name, self.caller))
        return view, await settle(node.attr(self.caller))

    @_told("rename")
    async def rename(self, to: Chan, newname: str) -> None:
        """Move this file."""
        if self.up is None:
            raise FsError(E.READONLY, "the root has no other name")
        await self._still_there()
        await self.up.renameat(self.name, to, newname)
        self._moved(to.clone(), newname)

    def _moved(self, to: Chan, name: str) -> None:
        """It is ``name`` in ``to`` now, and may do what is allowed there."""
        self.up, self.name, self.place = to, name, None
        self.view = to.view.child(name) or self.view

    async def _still_there(self) -> None:
        """Make sure that the name it was walked by still leads here: another file may have it by now."""
        assert self.up is not None
        _, there = await self.up.child(self.name)
        if there.qid.path != (await self.attr()).qid.path:
            raise FsError(E.MISSING, self.name)

    @_told("remove", named=True)
    async def unlinkat(self, name: str, directory: bool | None) -> None:
        """Remove an entry of this directory: a directory, another, or whichever (None)."""
        await self._taking(name)
        await settle(self.node.unlink(name, directory, self.caller))

    @_told("remove")
    async def remove(self) -> None:
        """Remove the file, whatever it is. The fid is gone whether or not that succeeds."""
        try:
            if self.up is None:
                raise FsError(E.READONLY, "the root cannot be removed")
            await self._still_there()
            await self.up.unlinkat(self.name, None)
        finally:
            self.rclose = False
            await self.clunk()

    # extended attributes

    @_told("xattr")
    async def xattr_chan(self, name: str) -> tuple[Chan, int]:
        """A chan that reads an attribute's value, or with "" the list of names, and its length."""
        self._need(Right.READ)
        if name:
            value = await settle(self.node.xattr(name, self.caller))
        else:
            names = await settle(self.node.xattrs(self.caller))
            value = b"".join(n.encode("utf-8", "surrogateescape") + b"\0" for n in names)
        made = self.clone()
        made.handle = _XattrValue(value)
        return made, len(value)

    def xattr_writer(self, name: str, size: int, flags: int) -> Chan:
        """A chan that takes an attribute's value, set when it is clunked."""
        try:
            self._need(Right.WRITE)
        except FsError as error:
            self._tell("xattr", error)
            raise
        if size > XATTR_MAX:
            raise FsError(E.TOOBIG, f"max={XATTR_MAX}")
        made = self.clone()
        made.handle = _NewXattr(self.node, self.caller, name, size, flags)
        return made

    # clunk

    @_told("clunk")
    async def clunk(self) -> None:
        """Close the handle; remove the file if it was opened so. Whatever fails, the chan is closed."""
        handle, self.handle = self.handle, None
        try:
            if handle is not None:
                await settle(handle.close())
        finally:
            if self.rclose and self.up is not None:
                self.rclose = False
                await self._still_there()
                await self.up.unlinkat(self.name, None)


class _XattrValue(Handle):
    """The value of an attribute, as it was when walked to."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def read(self, offset: int, count: int) -> bytes:
        return self.value[offset : offset + count]


class _NewXattr(Handle):
    """An attribute being written: set at close, when all of its bytes have come."""

    def __init__(self, node: Node, caller: Caller, name: str, size: int, flags: int) -> None:
        self.node = node
        self.caller = caller
        self.name = name
        self.size = size
        self.flags = flags
        self.value = bytearray()

    def write(self, offset: int, data: memoryview) -> int:
        if offset != len(self.value) or offset + len(data) > self.size:
            raise FsError(
                E.INVALID,
                f"offset {offset} with {len(data)} bytes: {len(self.value)} of {self.size} are here",
            )
        self.value += data
        return len(data)

    def close(self) -> Maybe[None]:
        if len(self.value) != self.size:
            raise FsError(E.INVALID, f"{len(self.value)} bytes of {self.size} were written")
        return self.node.set_xattr(self.name, bytes(self.value), self.flags, self.caller)
