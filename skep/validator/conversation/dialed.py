"""The other end of a played conversation at an address: frames as they are, no client between."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.validator.conversation.past import Strange

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity

PATIENCE_S: Final = 5.0  # how long an answer may take


class Dialed(asyncio.Protocol):
    """It lives at its own time: what others write there comes when it comes."""

    def __init__(self) -> None:
        self._transport: Any = None  # None: the connection has not been made
        self._data = b""
        self._answers: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._came = asyncio.Event()
        self._gone: str | None = None  # why; None: it is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes | memoryview) -> None:
        self._data += data
        at = 0
        while len(self._data) - at >= 7:
            size = max(int.from_bytes(self._data[at : at + 4], "little"), 7)
            if len(self._data) - at < size:
                break
            frame = self._data[at : at + size]
            self._answers[int.from_bytes(frame[5:7], "little")].append(frame)
            at += size
        self._data = self._data[at:]
        self._came.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = str(error or "the server has hung up")
        self._came.set()

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not self._answers[tag]:
                    if self._gone is not None:
                        raise ConnectionLost(self._gone)
                    self._came.clear()
                    await self._came.wait()
        return self._answers[tag].popleft() if self._answers[tag] else None

    def unasked(self) -> list[bytes]:
        found = [frame for frames in self._answers.values() for frame in frames]
        self._answers.clear()
        return found

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
