"""The other end of a played conversation at an address: frames as they are, no client between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.validator.conversation.answers import Answers
from skep.validator.conversation.past import Strange

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity

PATIENCE_S: Final = 5.0  # how long an answer may take


class Dialed(asyncio.Protocol):
    """It lives at its own time: what others write there comes when it comes."""

    def __init__(self) -> None:
        self._transport: Any = None  # None: the connection has not been made
        self._answers = Answers()
        self._gone: str | None = None  # why; None: it is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes | memoryview) -> None:
        self._answers.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = str(error or "the server has hung up")
        self._answers.end()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # the wire

    async def at(self, time_ns: int, seq: int) -> None:
        """It is as late as it is."""

    def expect(self, seq: int) -> None:
        """Its ledger is another."""

    def send(self, frame: bytes) -> None:
        """Raises ConnectionLost."""
        if self._transport is None or self._gone is not None:
            raise ConnectionLost(self._gone or "the server is not there")
        self._transport.write(frame)

    async def answer(self, tag: int) -> bytes | None:
        """Raises ConnectionLost."""
        answer = await self._answers.next(tag, PATIENCE_S)
        if answer is None and self._gone is not None:
            raise ConnectionLost(self._gone)
        return answer

    def unasked(self) -> list[bytes]:
        return self._answers.rest()

    def draft(self, id: str) -> None:
        """Its drafts have names of their own."""

    def strange(self) -> list[Strange]:
        return []


@contextlib.asynccontextmanager
async def dialed(address: Address, identity: Identity | None = None) -> AsyncIterator[Dialed]:
    """The server at ``address``; nothing is said to it yet. Raises OSError when nobody listens there."""
    loop = asyncio.get_running_loop()
    wire = Dialed()
    if address.kind == "unix":
        await loop.create_unix_connection(lambda: wire, address.path)
    elif identity is not None:
        from skep.fs.tls import ClientLayer

        layer = ClientLayer(identity, wire)
        await loop.create_connection(lambda: layer, address.host, address.port)
        await layer.established
    else:
        await loop.create_connection(lambda: wire, address.host, address.port)
    try:
        yield wire
    finally:
        wire.close()
