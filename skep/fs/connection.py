"""A client's connection under asyncio: requests sent, answers awaited, flushes when nobody waits any more.

What is asked of files is in dial.py; tags, fids and the bytes are client.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar, cast

from skep.fs.address import Address
from skep.fs.client import MSIZE_DEFAULT, Call, ClientSession
from skep.fs.errors import E, FsError
from skep.fs.messages import Dialect, Message, Tclunk

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity
    from skep.fs.pin import Pinned

R = TypeVar("R", bound=Message)


class ConnectionLost(FsError):
    """The server cannot be reached any more; what was asked may or may not have been done."""

    def __init__(self, why: str) -> None:
        super().__init__(E.IO, why)


class Connection(asyncio.Protocol):
    """Many calls at once over one transport. All methods are called on the event loop's thread.

    Over a socket it is made by ``open``; in process by ``over``, which needs no transport: bytes go to
    ``send`` and come back through ``data_received``.
    """

    def __init__(self, dialect: Dialect, msize: int) -> None:
        self.session = ClientSession(dialect, msize)
        self.channel_binding: Callable[[], bytes] = bytes  # 32 bytes both ends know; empty: not encrypted
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send: Callable[[list[bytes]], None] = lambda buffers: None
        self._close: Callable[[], None] = lambda: None
        self._futures: dict[Call, asyncio.Future[Message]] = {}
        self._writable = asyncio.Event()
        self._writable.set()

    @staticmethod
    async def open(
        address: Address,
        dialect: Dialect = Dialect.L,
        msize: int = MSIZE_DEFAULT,
        identity: Identity | Pinned | None = None,
    ) -> Connection:
        """Connect and agree on the version. ``identity``: for TLS, and for nothing else.

        Raises OSError when nobody listens, TlsError, which is one too, when either end does not believe the
        other, FsError(E.VERSION); ConnectionLost when the server refuses our certificate: it looks last."""
        if (address.kind == "tls") is not (identity is not None):
            raise ValueError(f"{address}: an identity belongs to tls, and tls needs one")
        loop = asyncio.get_running_loop()
        connection = Connection(dialect, msize)
        if address.kind == "unix":
            await loop.create_unix_connection(lambda: connection, address.path)
        elif identity is not None:
            from skep.fs.tls import ClientLayer

            layer = ClientLayer(identity, connection)
            await loop.create_connection(lambda: layer, address.host, address.port)
            try:
                await layer.established
            except asyncio.CancelledError:
                layer.abort()
                raise
        else:
            await loop.create_connection(lambda: connection, address.host, address.port)
        return await connection._agreed()

    @staticmethod
    async def over(
        join: Join,
        dialect: Dialect = Dialect.L,
        msize: int = MSIZE_DEFAULT,
    ) -> Connection:
        """Join a server conversation in this process. ``join`` is given the connection, whose
        ``data_received`` takes the server's bytes and whose ``connection_lost`` its end, and returns how
        to send buffers and how to close. Bytes may come back before a send returns."""
        connection = Connection(dialect, msize)
        connection._send, close = join(connection)

        def closed() -> None:
            close()
            connection.connection_lost(None)

        connection._close = closed
        return await connection._agreed()

    @property
    def dialect(self) -> Dialect:
        """The dialect that was agreed."""
        return self.session.dialect

    def start(self, request: Message) -> Call:
        """Send ``request`` now; ``wait`` gives its answer. Raises what ended the connection."""
        return self._started(self.session.start(request))

    def start_all(self, requests: Iterable[Message]) -> list[Call]:
        """Send them now, in one piece; the answers as above. Raises what ended the connection."""
        try:
            return [self._awaited(self.session.start(request)) for request in requests]
        finally:
            self._put_out()

    def flush(self, call: Call) -> None:
        """Ask the server to give ``call`` up: it ends with its answer if that came first, else INTR."""
        self.session.flush(call)
        self._put_out()

    async def wait(self, call: Call) -> Message:
        """The answer to ``call``; to be asked for once. Raises FsError.

        When cancelled, the call is flushed, and what it did all the same is undone, without waiting for
        either."""
        future = self._futures.get(call)
        if future is None:
            return _answer(call)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self.flush(call)
            else:  # cancelled between the answer and this step
                self._undo(call)
            raise

    def forsake(self, call: Call) -> None:
        """Nobody waits for ``call``: as a ``wait`` that is cancelled. One that has ended is undone."""
        future = self._futures.get(call)
        if future is None:
            self._undo(call)
        else:
            future.cancel()
            self.flush(call)

    async def rpc(self, request: Message, kind: type[R]) -> R:
        """The answer to ``request``, of the class ``kind`` that the protocol gives to it. As ``wait``."""
        if not self._writable.is_set():
            await self._writable.wait()
        return cast(R, await self.wait(self.start(request)))

    def clunk(self, fid: int) -> Call | None:
        """Give ``fid`` back, without waiting. None: the connection is gone, and the fid with it."""
        return self.start(Tclunk(fid)) if self.session.error is None else None

    async def close(self) -> None:
        """Send what is left and end the connection."""
        self._put_out()
        self._close()
        await self.closed

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        self._send, self._close = stream.writelines, stream.close
        self.channel_binding = stream.get_extra_info("channel_binding", bytes)

    def data_received(self, data: bytes | memoryview) -> None:
        for call in self.session.receive(bytes(data)):  # a TLS layer shows a buffer of its own
            self._ended(call)
        if self.session.error is not None:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.done():
            return
        for call in self.session.fail(ConnectionLost(f"connection lost: {exc or 'closed'}")):
            self._ended(call)
        self._writable.set()
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _agreed(self) -> Connection:
        call = self._started(self.session.start_version())
        try:
            await self.wait(call)
        except BaseException:
            self._close()
            raise
        return self

    def _started(self, call: Call) -> Call:
        self._awaited(call)
        self._put_out()
        return call

    def _awaited(self, call: Call) -> Call:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_looked_at)
        self._futures[call] = future
        return call

    def _put_out(self) -> None:
        output = self.session.take_output()
        if output and not self.closed.done():
            self._send(output)

    def _ended(self, call: Call) -> None:
        future = self._futures.pop(call)
        if future.cancelled():
            self._undo(call)
        elif call.error is not None:
            future.set_exception(call.error)
        else:
            future.set_result(_answer(call))

    def _undo(self, call: Call) -> None:
        taken_back = self.session.undo(call)
        if taken_back is not None:
            self._awaited(taken_back)
            # Nobody waits for it: it goes out with what is asked next, in the same piece.
            asyncio.get_running_loop().call_soon(self._put_out)


def _looked_at(future: asyncio.Future[Message]) -> None:
    """A clunk's answer may be a refusal that nobody waits for: asyncio need not report it."""
    if not future.cancelled():
        future.exception()


def _answer(call: Call) -> Message:
    """The reply of an ended call, or its error raised."""
    if call.error is not None:
        raise call.error
    assert call.reply is not None, "the call has not ended"
    return call.reply


Join = Callable[[Connection], tuple[Callable[[list[bytes]], None], Callable[[], None]]]
