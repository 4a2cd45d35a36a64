"""Byte-range locks of files, as Tlock and Tgetlock have them.

The table decides between the clients of one export. Processes of the host are kept out, and respected, by
open file description locks: one descriptor for each locked file carries the union of what the table holds,
as far as the file system and the serving user's rights to open the file allow.

An owner is a session's (client_id, proc_id), and its locks on a file merge, split and replace each other as
POSIX has it. They belong to the handle that took them too and go when that is closed, or when their owner
unlocks through any handle; POSIX would drop them at the owner's first close of any descriptor of the file,
but v9fs says that itself, by unlocking the whole file at each close.

Sources: fcntl(2); diod's protocol.md, Tlock and Tgetlock.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from skep.fs.messages import LockStatus, LockType
from skep.fs.node import Lock

END: Final = 1 << 63  # one past the last byte a file can have
RANGES_MAX: Final = 1024  # of one file: each lock and unlock looks at all of them
_STRENGTH: Final = {LockType.UNLCK: 0, LockType.RDLCK: 1, LockType.WRLCK: 2}
_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock; the lock types are Tlock's numbers

Owner = tuple[str, str, int]  # session, client_id, proc_id
Key = tuple[int, int]  # device, inode number


class Held(NamedTuple):
    """Bytes start to end (exclusive; END: to the end of the file) locked by owner through a handle."""

    start: int
    end: int
    type: LockType
    owner: Owner
    handle: int


def span(lock: Lock) -> tuple[int, int]:
    """The first byte and the one past the last; what runs beyond the largest file runs to its end."""
    end = lock.start + lock.length if lock.length else END
    return lock.start, min(end, END)


def conflict(held: Sequence[Held], start: int, end: int, kind: LockType, owner: Owner) -> Held | None:
    """The first of ``held`` that keeps ``owner`` from locking these bytes."""
    for one in held:
        if one.start < end and start < one.end and one.owner != owner and LockType.WRLCK in (kind, one.type):
            return one
    return None


def replaced(held: Sequence[Held], new: Held) -> list[Held]:
    """``held`` after its owner took (or, UNLCK, gave back) ``new``: cut, merged and in order of start."""
    start, end = new.start, new.end
    kept: list[Held] = []
    for one in held:
        if one.owner != new.owner or one.end < start or end < one.start:
            kept.append(one)
        elif (one.type, one.handle) == (new.type, new.handle):
            # The same lock, overlapping or next to it: one range.
            new = new._replace(start=min(new.start, one.start), end=max(new.end, one.end))
        else:
            kept += [one._replace(end=start)] if one.start < start else []
            kept += [one._replace(start=end)] if end < one.end else []
    if new.type is not LockType.UNLCK:
        kept.append(new)
    return sorted(kept)


class Locks:
    """The locks on all files of one export."""

    def __init__(self) -> None:
        self._held: dict[Key, list[Held]] = {}
        self._host: dict[Key, _HostLocks] = {}

    def lock(self, key: Key, fd: int, owner: Owner, lock: Lock) -> LockStatus:
        """Take or give back a range of the file open as ``fd``, also the handle that it goes with."""
        start, end = span(lock)
        if lock.type not in _STRENGTH or start >= end:
            return LockStatus.ERROR
        held = self._held.get(key, [])
        new = Held(start, end, LockType(lock.type), owner, fd)
        if new.type is not LockType.UNLCK and conflict(held, start, end, new.type, owner):
            return LockStatus.BLOCKED
        after = replaced(held, new)
        if len(after) > max(RANGES_MAX, len(held)):
            return LockStatus.ERROR
        return LockStatus.SUCCESS if self._set(key, fd, held, after, start, end) else LockStatus.BLOCKED

    def getlock(self, key: Key, fd: int, owner: Owner, lock: Lock) -> Lock:
        """The first lock of a client in the way of ``lock``, else one of the host's, else ``lock``, UNLCK.

        ``fd`` is the asking handle."""
        start, end = span(lock)
        kind = LockType(lock.type) if lock.type in _STRENGTH else LockType.UNLCK
        if kind is LockType.UNLCK or start >= end:
            return lock._replace(type=LockType.UNLCK)
        found = conflict(self._held.get(key, ()), start, end, kind, owner)
        if found is None:
            return self._host.get(key, _HostLocks(fd)).find(lock._replace(type=kind))
        length = 0 if found.end == END else found.end - found.start
        return Lock(found.type, found.start, length, found.owner[2], found.owner[1])

    def release(self, key: Key, fd: int) -> None:
        """The handle open as ``fd`` is closing: what was locked through it is free."""
        held = self._held.get(key)
        if held is not None:
            self._set(key, fd, held, [one for one in held if one.handle != fd], 0, END)

    def _set(self, key: Key, fd: int, held: list[Held], after: list[Held], start: int, end: int) -> bool:
        """Let ``after``, which differs from start to end, stand for ``held``: unless the host objects."""
        if key not in self._host and after:
            self._host[key] = _HostLocks(*_reopened(fd))
        host = self._host.get(key)
        if host is not None and not host.change(_within(held, start, end), _within(after, start, end)):
            if not held:
                self._host.pop(key).close()
            return False
        if after:
            self._held[key] = after
            return True
        self._held.pop(key, None)
        if host is not None:
            self._host.pop(key).close()
        return True


class _HostLocks:
    """The open file description that carries a file's locks for the host to see."""

    def __init__(self, fd: int, most: LockType = LockType.UNLCK) -> None:
        self._fd = fd
        self._most = most

    def change(self, held: list[Held], after: list[Held]) -> bool:
        """Go from the union of ``held`` to that of ``after``; False, and nothing changed: it may not be."""
        if self._fd < 0:
            return True
        steps = sorted(_differences(held, after), key=lambda s: _STRENGTH[s[3]] <= _STRENGTH[s[2]])
        for i, (start, end, _, new) in enumerate(steps):
            if not self._apply(start, end, new):
                for back_start, back_end, old, _ in steps[:i]:
                    self._apply(back_start, back_end, old)
                return False
        return True

    def _apply(self, start: int, end: int, kind: LockType) -> bool:
        """Lock these bytes; False when another process holds them. A file that takes no locks has none."""
        if self._fd < 0:
            return True
        kind = min(kind, self._most, key=_STRENGTH.__getitem__)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(kind, start, end))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            self.close()
        return True

    def find(self, lock: Lock) -> Lock:
        """The lock of another process in the way of ``lock``, else ``lock``, UNLCK."""
        free = lock._replace(type=LockType.UNLCK)
        if self._fd < 0:
            return free
        try:
            told = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(LockType(lock.type), *span(lock)))
        except OSError:
            return free
        kind, _, start, length, pid = _FLOCK.unpack(told)
        # An open file description lock has no process: pid -1.
        return free if kind == LockType.UNLCK else Lock(kind, start, length, max(pid, 0), "")

    def close(self) -> None:
        """Let go of the descriptor and with it of all its locks."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _flock(kind: LockType, start: int, end: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start, 0)


def _reopened(fd: int) -> tuple[int, LockType]:
    """A new open file description of ``fd``'s file and the strongest lock it can carry; -1: none."""
    for mode, most in ((os.O_RDWR, LockType.WRLCK), (os.O_RDONLY, LockType.RDLCK)):
        try:
            return os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC), most
        except OSError:
            continue
    return -1, LockType.UNLCK


def _within(held: Sequence[Held], start: int, end: int) -> list[Held]:
    """The parts of ``held`` from start to end."""
    return [
        one._replace(start=max(one.start, start), end=min(one.end, end))
        for one in held
        if one.start < end and start < one.end
    ]


def _union(held: Sequence[Held]) -> dict[int, LockType]:
    """Where the strongest lock held by anyone changes, and to what."""
    turns: dict[int, list[int]] = {}
    for one in held:
        writes = one.type is LockType.WRLCK
        turns.setdefault(one.start, [0, 0])[writes] += 1
        turns.setdefault(one.end, [0, 0])[writes] -= 1
    readers = writers = 0
    strongest = {}
    for at in sorted(turns):
        readers += turns[at][0]
        writers += turns[at][1]
        strongest[at] = LockType.WRLCK if writers else LockType.RDLCK if readers else LockType.UNLCK
    return strongest


def _differences(held: Sequence[Held], after: Sequence[Held]) -> list[tuple[int, int, LockType, LockType]]:
    """Where the union changes: start, end, from and to."""
    old, new = _union(held), _union(after)
    marks = sorted({*old, *new})
    was = now = LockType.UNLCK
    found = []
    for at, following in itertools.pairwise(marks):
        was, now = old.get(at, was), new.get(at, now)
        if was is not now:
            found.append((at, following, was, now))
    return found
