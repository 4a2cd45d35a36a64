"""The shapes of files: what stands behind the names of a synthetic tree.

Text and Reply are taken or given whole, Ctl is a table of verbs, Stream waits, Memory, Append and Blob have
offsets. Directories are tree.py's. Rights and names are checked above (chan.py).
"""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from skep.fs import ctl
from skep.fs.chan import asked
from skep.fs.errors import E, FsError
from skep.fs.messages import QT, Qid
from skep.fs.node import Attr, Caller, Change, Handle, How, Maybe, Node, new_path, qid_type
from skep.native.hot import steady_changed
from skep.native.memory import memory
from skep.trace.clock import SystemClock

TEXT_MAX: Final = 16 << 20  # bytes in one text taken at open: what one reader can make us hold
MEMORY_MAX: Final = 64 << 20  # bytes in one Memory file unless it says otherwise
CTL_MAX: Final = 64 << 10  # bytes in one write to a ctl file: it becomes one ledger entry
_STARTED: Final = SystemClock().now_ns()
_OWNER: Final = (os.getuid(), os.getgid())


class File(Node):
    """A synthetic file: length 0, read to its end. ``mode``: permissions, which also say what it can do."""

    kind = stat.S_IFREG
    qtype = QT.FILE
    steady = True
    """Whether its stat stays the same until ``moved`` is called: then it is remembered."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.number = 0  # 0: not given yet
        self.mtime_ns = _STARTED
        self.version = 0

    @property
    def path(self) -> int:
        """The qid path."""
        if not self.number:
            self.number = new_path()
        return self.number

    def size(self) -> Maybe[int]:
        """The length stat shows, in bytes; synthetic files have 0."""
        return 0

    def moved(self) -> None:
        """Say that the content changed: qid.vers and mtime move."""
        self.version += 1
        self.mtime_ns = SystemClock().now_ns()
        if self.steady:
            steady_changed()

    def attr(self, caller: Caller) -> Maybe[Attr]:
        size = self.size()
        if isinstance(size, int):
            return self._attr(size)
        return self._late_attr(size)

    async def _late_attr(self, size: Maybe[int]) -> Attr:
        return self._attr(await asked(size))

    def _attr(self, size: int) -> Attr:
        qid = Qid(int(self.qtype) | qid_type(self.kind), self.version & 0xFFFFFFFF, self.path)
        uid, gid = _OWNER
        at = self.mtime_ns
        return Attr(
            qid, self.kind | self.mode, size, uid, gid, "hive", "hive", "hive",
            2 if self.kind == stat.S_IFDIR else 1, 0, 4096, (size + 511) // 512, at, at, at, _STARTED,
        )  # fmt: skip

    def open(self, how: How, caller: Caller) -> Maybe[Handle]:
        """Check what the mode says, then ``opened``."""
        if (how.write or how.trunc) and not self.mode & 0o222:
            raise FsError(E.READONLY, "it is not for writing")
        if how.read and not self.mode & 0o444:
            raise FsError(E.READONLY, "it is not for reading")
        if how.execute and not self.mode & 0o111:
            raise FsError(E.DENIED, "it is not for executing")
        return self.opened(how, caller)

    def opened(self, how: How, caller: Caller) -> Maybe[Handle]:
        """A handle; the mode has been checked."""
        raise FsError(E.READONLY)


class Snapshot(Handle):
    """Bytes taken at open: every read of one open sees the same moment."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, count: int) -> bytes:
        return self.data[offset : offset + count]


Content = str | bytes | Callable[..., Any]


class Text(File):
    """A text, taken whole when opened. ``content``: str, bytes, or a function of nothing or of the caller.

    ``write``, a function of the caller and the bytes, makes it writable: one write, one call."""

    def __init__(
        self, content: Content, mode: int = 0o444, write: Callable[[Caller, bytes], Maybe[None]] | None = None
    ) -> None:
        super().__init__(mode | (0o200 if write is not None else 0))
        self.content = content
        self.write = write

    def opened(self, how: How, caller: Caller) -> Maybe[Handle]:
        if how.write and self.write is None:
            raise FsError(E.READONLY, "nothing takes what is written")
        if not how.read:
            return _Value(b"", self, caller)
        value = call(self.content, caller) if callable(self.content) else self.content
        if isinstance(value, (str, bytes)):
            return self._handle(value, how, caller)
        return self._late(value, how, caller)

    async def _late(self, value: Maybe[str | bytes], how: How, caller: Caller) -> Handle:
        return self._handle(await asked(value), how, caller)

    def _handle(self, value: str | bytes, how: How, caller: Caller) -> Handle:
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
        if len(data) > TEXT_MAX:
            raise FsError(E.TOOBIG, f"max={TEXT_MAX}")
        return _Value(data, self, caller) if how.write else Snapshot(data)


class _Value(Snapshot):
    """A text opened for writing too."""

    def __init__(self, data: bytes, text: Text, caller: Caller) -> None:
        super().__init__(data)
        self.text = text
        self.caller = caller

    async def write(self, offset: int, data: memoryview) -> int:
        assert self.text.write is not None
        await asked(self.text.write(self.caller, bytes(data)))
        return len(data)


class Reply(Handle):
    """An open on which a request is written, then its reply read: the next read begins it."""

    def __init__(self, before: bytes) -> None:
        self.data = before  # what is read before anything was written
        self.start: int | None = 0  # the offset that is the data's first byte; None: the next read's

    def read(self, offset: int, count: int) -> bytes:
        if self.start is None or offset < self.start:
            self.start = offset
        return self.data[offset - self.start : offset - self.start + count]

    def reply(self, data: bytes) -> None:
        self.data, self.start = data, None


class Ctl(File):
    """A control file: lines written are commands, answered on the write; a read tells the usage.

    ``verbs`` is the table; ``run`` gets one write's commands, checked against it, and gives a reply line for
    each. It makes all of them take effect or raises: one write is one transaction. ``garbled`` gets what is
    no commands, before its writer is told so."""

    qtype = QT.APPEND

    def __init__(
        self,
        verbs: Mapping[str, ctl.Verb],
        run: Callable[[Caller, list[ctl.Command]], Maybe[Iterable[str]]],
        mode: int = 0o666,
        garbled: Callable[[Caller, bytes, FsError], Maybe[None]] | None = None,
    ) -> None:
        super().__init__(mode)
        self.verbs = verbs
        self.run = run
        self.garbled = garbled

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Commands(self, caller)


class _Commands(Reply):
    def __init__(self, file: Ctl, caller: Caller) -> None:
        super().__init__(b"")
        self.file = file
        self.caller = caller
        self.written = False

    def read(self, offset: int, count: int) -> bytes:
        if not self.written and not self.data:
            # Not at open: most only write.
            self.data = ctl.usage(self.file.verbs).encode()
        return super().read(offset, count)

    async def write(self, offset: int, data: memoryview) -> int:
        if len(data) > CTL_MAX:
            raise FsError(E.TOOBIG, f"max={CTL_MAX}")
        commands = await parsed(self.caller, bytes(data), self.file.garbled)
        rows = [ctl.check(command, self.file.verbs) for command in commands]
        self.tells_secrets = any(row.secret for row in rows)
        lines: Iterable[str] = await asked(self.file.run(self.caller, commands)) if commands else ()
        self.written = True
        self.reply("".join(f"{line}\n" for line in lines).encode())
        return len(data)


async def parsed(
    caller: Caller, data: bytes, garbled: Callable[[Caller, bytes, FsError], Maybe[None]] | None
) -> list[ctl.Command]:
    """The commands of one write. Raises FsError, after ``garbled`` has got what is no commands."""
    try:
        return ctl.parse(data)
    except FsError as error:
        if garbled is not None:
            await asked(garbled(caller, data, error))
        raise


class Transaction(File):
    """A file of questions: what is written is asked, what is read after it is the answer.

    ``secret``: neither is for a recording of the conversation."""

    def __init__(
        self, ask: Callable[[Caller, bytes], Maybe[str | bytes]], mode: int = 0o666, secret: bool = False
    ) -> None:
        super().__init__(mode)
        self.ask = ask
        self.secret = secret

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Question(self, caller)


class _Question(Reply):
    def __init__(self, file: Transaction, caller: Caller) -> None:
        super().__init__(b"")
        self.file = file
        self.caller = caller
        self.takes_secrets = self.tells_secrets = file.secret

    async def write(self, offset: int, data: memoryview) -> int:
        answer: str | bytes = await asked(self.file.ask(self.caller, bytes(data)))
        self.reply(answer.encode() if isinstance(answer, str) else answer)
        return len(data)


class Source(Protocol):
    """What one open of a Stream reads from."""

    async def next(self) -> bytes | None:
        """The next piece, waited for; None: the end. Cancelled, it has taken nothing or still gives it."""

    def close(self, undelivered: bytes | None) -> Maybe[None]:
        """The open has ended; ``undelivered`` was taken by ``next`` and read by nobody."""


class Stream(File):
    """A file whose reads wait for what comes: each open has a Source of its own. Offsets do not matter."""

    def __init__(self, source: Callable[[Caller], Maybe[Source]], mode: int = 0o444) -> None:
        super().__init__(mode)
        self.source = source

    async def opened(self, how: How, caller: Caller) -> Handle:
        return _Following(await asked(self.source(caller)))


class _Following(Handle):
    waits = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self.held = b""
        self.ended = False

    async def read(self, offset: int, count: int) -> bytes:
        if not self.held and not self.ended:
            piece = await self._next()
            self.ended = piece is None
            self.held = piece or b""
        data, self.held = self.held[:count], self.held[count:]
        return data

    async def _next(self) -> bytes | None:
        """The source's next piece. A cancellation is passed on; a piece that came all the same is kept."""
        taking = asyncio.ensure_future(self.source.next())
        try:
            await asyncio.wait([taking])
        except asyncio.CancelledError:
            taking.cancel()
            await asyncio.wait([taking])
            if taking.cancelled():
                raise
        return taking.result()

    def close(self) -> Maybe[None]:
        return self.source.close(self.held or None)


class Memory(File):
    """A file of bytes in memory, read and written at offsets."""

    steady = False

    def __init__(self, data: bytes = b"", mode: int = 0o644, size_max: int = MEMORY_MAX) -> None:
        super().__init__(mode)
        self.data = memory()
        self.data.write(0, data)
        self.size_max = size_max

    def size(self) -> int:
        return len(self.data)

    def attr(self, caller: Caller) -> Maybe[Attr]:
        self.version, self.mtime_ns = self.data.version, self.data.mtime_ns
        return super().attr(caller)

    def opened(self, how: How, caller: Caller) -> Handle:
        if how.trunc:
            self.resize(0)
        return MemoryHandle(self, how.append)

    def resize(self, size: int) -> None:
        """Cut or extend with zeros. Raises FsError(E.TOOBIG) above ``size_max``."""
        if size > self.size_max:
            raise FsError(E.TOOBIG, f"max={self.size_max}")
        self.data.resize(size)

    def setattr(self, change: Change, caller: Caller) -> None:
        if change.size is not None:
            self.resize(change.size)


class MemoryHandle(Handle):
    """One open of a Memory file."""

    def __init__(self, file: Memory, append: bool) -> None:
        self.file = file
        self.append = append

    def read(self, offset: int, count: int) -> bytes:
        return self.file.data.read(offset, count)

    def write(self, offset: int, data: memoryview) -> int:
        at = len(self.file.data) if self.append else offset
        if at + len(data) > self.file.size_max:
            raise FsError(E.TOOBIG, f"max={self.file.size_max}")
        if data:
            self.file.data.write(at, data)
        return len(data)


class Append(File):
    """A file that only grows: ``take`` gets each write, whatever its offset; ``read`` reads at offsets."""

    qtype = QT.APPEND
    steady = False

    def __init__(
        self,
        take: Callable[[Caller, bytes], Maybe[None]] | None,
        read: Callable[[int, int], Maybe[bytes]] | None = None,
        size: Callable[[], Maybe[int]] = lambda: 0,
    ) -> None:
        super().__init__((0o444 if read is not None else 0) | (0o222 if take is not None else 0))
        self.take = take
        self.read_at = read
        self._size = size

    def size(self) -> Maybe[int]:
        return self._size()

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Appending(self, caller)


class _Appending(Handle):
    def __init__(self, file: Append, caller: Caller) -> None:
        self.file = file
        self.caller = caller

    async def read(self, offset: int, count: int) -> bytes:
        assert self.file.read_at is not None
        return await asked(self.file.read_at(offset, count))

    async def write(self, offset: int, data: memoryview) -> int:
        assert self.file.take is not None
        await asked(self.file.take(self.caller, bytes(data)))
        self.file.moved()
        return len(data)


class Blob(File):
    """Bytes of known length, read at offsets: ``read_at(offset, count)``, ``size()``."""

    def __init__(
        self,
        read_at: Callable[[int, int], Maybe[bytes]],
        size: Callable[[], Maybe[int]],
        mode: int = 0o444,
        write_at: Callable[[Caller, int, memoryview], Maybe[int]] | None = None,
    ) -> None:
        super().__init__(mode | (0o200 if write_at is not None else 0))
        self.read_at = read_at
        self.write_at = write_at
        self._size = size

    def size(self) -> Maybe[int]:
        return self._size()

    def opened(self, how: How, caller: Caller) -> Handle:
        return _BlobHandle(self, caller)


class _BlobHandle(Handle):
    def __init__(self, blob: Blob, caller: Caller) -> None:
        self.blob = blob
        self.caller = caller

    async def read(self, offset: int, count: int) -> bytes:
        return await asked(self.blob.read_at(offset, count))

    async def write(self, offset: int, data: memoryview) -> int:
        assert self.blob.write_at is not None
        return await asked(self.blob.write_at(self.caller, offset, data))


def call(function: Callable[..., Any], caller: Caller) -> Any:
    """What ``function`` gives, called with the caller if it takes an argument."""
    return function(caller) if _takes_caller(function) else function()


def _takes_caller(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is None:  # a builtin, a partial, an object with __call__
        try:
            return any(
                p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
                for p in inspect.signature(function).parameters.values()
            )
        except (TypeError, ValueError):
            return False
    bound = 1 if inspect.ismethod(function) else 0
    return bool(code.co_argcount - len(function.__defaults__ or ()) > bound)
