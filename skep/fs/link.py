"""A connection that comes back: attached, and attached again when it is lost.

Who uses a file through it holds the ``Live`` it was walked on, and sees by comparing that it is of a
connection that is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

from skep.fs.address import Address
from skep.fs.client import MSIZE_DEFAULT, Call
from skep.fs.connection import Connection, ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.messages import Dialect, Message, Qid

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity

R = TypeVar("R", bound=Message)
FIRST_WAIT_S: Final = 0.1  # doubled after each failure
LAST_WAIT_S: Final = 5.0
DIAL_LIMIT_S: Final = 5.0  # for connect, version and attach together


class Live(NamedTuple):
    """One attached connection, good until it is lost."""

    connection: Connection
    root: int  # the fid that was attached
    qid: Qid


class Link:
    """The way to one server's tree, for as long as ``keep`` runs."""

    def __init__(
        self,
        address: Address,
        say: Callable[[str], None],
        aname: str = "",
        uname: str | None = None,
        msize: int = MSIZE_DEFAULT,
        identity: Identity | None = None,
    ) -> None:
        self.address = address
        self.identity = identity  # None: not TLS
        self.aname = aname
        self.uname = uname
        self.msize = msize
        self.orderly = True  # whether the server serves requests on one fid in their order, as it should
        self._say = say
        self._live: Live | None = None  # None: not connected now

    @property
    def live(self) -> Live:
        """The connection of this moment. Raises ConnectionLost when there is none."""
        if self._live is None:
            raise ConnectionLost(f"not connected to {self.address}")
        return self._live

    async def dial(self) -> Live:
        """Connect and attach in 9P2000.L. Raises OSError when nobody answers, FsError when refused."""
        async with asyncio.timeout(DIAL_LIMIT_S):
            client = await Client.connect(
                self.address, aname=self.aname, uname=self.uname, msize=self.msize, identity=self.identity
            )
        if client.connection.dialect is not Dialect.L:
            await client.close()
            raise FsError(E.VERSION, f"{self.address} speaks {client.connection.dialect.value}, not 9P2000.L")
        self._live = Live(client.connection, client.root.fid, client.root.qid)
        return self._live

    async def keep(self) -> None:
        """After ``dial``: dial again whenever the connection is lost, until cancelled; then close it."""
        try:
            while True:
                await asyncio.shield(self.live.connection.closed)
                self._live = None
                self._say(f"connection to {self.address} lost; trying again")
                await self._redial()
                self._say(f"connected to {self.address} again")
        finally:
            if self._live is not None:
                await self._live.connection.close()

    async def _redial(self) -> None:
        # Many mounts lose one server at one time, and must not all come back at once.
        share = 0.5 + os.getpid() % 512 / 1024
        wait_s = FIRST_WAIT_S
        while True:
            try:
                await self.dial()
            except (OSError, FsError):  # TimeoutError is an OSError
                await asyncio.sleep(wait_s * share)
                wait_s = min(2 * wait_s, LAST_WAIT_S)
            else:
                return


class Asked:
    """One operation under way for somebody who may lose patience: all its requests go to the connection
    of its beginning, and an interrupt flushes the one that is waited for."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.live = link.live
        self.interrupted = asyncio.Event()
        self._calls: set[Call] = set()  # those started and not waited for to the end

    def start(self, request: Message) -> Call:
        """Send ``request`` without waiting, when the next one does not depend on its answer."""
        if self.interrupted.is_set():
            raise FsError(E.INTR)
        call = self.live.connection.start(request)
        self._calls.add(call)
        return call

    async def wait(self, call: Call, kind: type[R]) -> R:
        """The answer of class ``kind``. Raises FsError(E.INTR) when interrupted, unless the answer came
        first: what the server has done is not thrown away."""
        try:
            return cast(R, await self.live.connection.wait(call))
        finally:
            self._calls.discard(call)

    async def rpc(self, request: Message, kind: type[R]) -> R:
        """``start`` and ``wait``."""
        return await self.wait(self.start(request), kind)

    def interrupt(self) -> None:
        """Nobody wants to wait any longer."""
        self.interrupted.set()
        for call in self._calls:
            self.live.connection.flush(call)
