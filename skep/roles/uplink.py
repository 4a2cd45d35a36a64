"""A node's way to its queen: one 9P session, made again when it is lost.

Work in hand goes on meanwhile: what must be said to the hive is said when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.messages import Dialect

log = logging.getLogger("skep.worker")
T = TypeVar("T")
BACK_OFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # between tries; then the last one for ever
CONNECT_S: Final = 10.0
# Refusals that pass: our own earlier connection is not gone yet, the hive is busy.
_PASSING: Final = (E.BUSY, E.THROTTLED, E.OVERLOAD, E.IO, E.CANCELLED)


class Uplink:
    """The session of ``node`` with the hive at ``address``. ``keep`` makes it, and makes it again."""

    def __init__(self, address: Address, node: str) -> None:
        self.address = address
        self.node = node
        self._client: Client | None = None  # None: not connected
        self._connected = asyncio.Event()

    async def keep(self) -> None:
        """Stay connected until cancelled. Raises FsError when the hive refuses this node."""
        tries = 0
        try:
            while True:
                try:
                    client = await self._dial()
                except (OSError, FsError, TimeoutError) as error:
                    if isinstance(error, FsError) and error.kind not in _PASSING:
                        raise
                    if tries == 0:
                        log.warning("%s: %s; trying again", self.address, str(error) or "no answer")
                    await asyncio.sleep(BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)])
                    tries += 1
                    continue
                log.info("connected to %s as %s", self.address, self.node)
                tries = 0
                self._client = client
                self._connected.set()
                await client.connection.closed
                self._connected.clear()
        finally:
            if self._client is not None:
                await self._client.close()

    async def _dial(self) -> Client:
        async with asyncio.timeout(CONNECT_S):
            # 9P2000.u: its errors carry their text.
            return await Client.connect(self.address, uname=self.node, dialect=Dialect.U)

    async def do(self, work: Callable[[Client], Awaitable[T]], unless: asyncio.Event | None = None) -> T:
        """What ``work`` gives, begun again from its start each time the connection is lost on the way:
        what it says to the hive must bear being said twice. Raises FsError.

        ``unless`` set, no connection is waited for: FsError(E.CANCELLED)."""
        while True:
            await self._wait_connected(unless)
            assert self._client is not None
            client = self._client
            if client.connection.closed.done():
                # keep() has not had its turn yet.
                self._connected.clear()
                continue
            try:
                return await work(client)
            except ConnectionLost:
                await client.connection.closed

    async def _wait_connected(self, unless: asyncio.Event | None) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._connected, unless) if event]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._connected.is_set():
            raise FsError(E.CANCELLED, "the hive is not waited for")

    async def write(self, path: str, line: str) -> None:
        """Write one line to a ctl file of the hive."""

        async def work(client: Client) -> None:
            async with await client.open(path, "w") as fid:
                await fid.write_all(f"{line}\n".encode())

        await self.do(work)
