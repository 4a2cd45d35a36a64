"""A connection that comes back: attached, and attached again when it is lost, or before its papers end.

Who uses a file through it holds the ``Live`` it was walked on, and sees by comparing that it is of another
connection: one that is gone, or one that was left, and serves what is open there until it ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar, cast

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
LOOK_S: Final = 3.0  # between two looks at what the hive trusts: an overlap of two CAs lasts longer


class Standing(Protocol):
    """What one session over TLS is opened with, and its keeping while it lasts."""

    identity: Identity

    async def look(self, client: Client) -> bool:
        """Renew what is due over the session; whether another ought to take its place.

        Raises OSError, FsError, ValueError."""


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
        standing: Callable[[], Standing] | None = None,
        token: bytes = b"",
    ) -> None:
        """``standing`` gives what a session is opened with now: for TLS, and for nothing else. ``token``:
        what each session shows; b"": nothing."""
        self.address = address
        self.aname = aname
        self.uname = uname
        self.msize = msize
        self.orderly = True  # whether the server serves requests on one fid in their order, as it should
        self._say = say
        self._standing = standing
        self._token = token
        self._live: Live | None = None  # None: not connected now
        self._shown: tuple[Client, Standing] | None = None  # of that connection; None: not TLS
        self._moved = asyncio.Event()  # another connection has taken over
        self._left: list[Connection] = []  # to be ended by their server, or with us

    @property
    def live(self) -> Live:
        """The connection of this moment. Raises ConnectionLost when there is none."""
        if self._live is None:
            raise ConnectionLost(f"not connected to {self.address}")
        return self._live

    async def dial(self) -> Live:
        """Connect and attach in 9P2000.L. Raises OSError when nobody answers, FsError when refused."""
        self._live, self._shown = await self._dialled()
        return self._live

    async def _dialled(self) -> tuple[Live, tuple[Client, Standing] | None]:
        standing = None if self._standing is None else self._standing()
        identity = None if standing is None else standing.identity
        async with asyncio.timeout(DIAL_LIMIT_S):
            client = await Client.connect(
                self.address,
                aname=self.aname,
                uname=self.uname,
                msize=self.msize,
                identity=identity,
                token=self._token,
            )
        if client.connection.dialect is not Dialect.L:
            await client.close()
            raise FsError(E.VERSION, f"{self.address} speaks {client.connection.dialect.value}, not 9P2000.L")
        live = Live(client.connection, client.root.fid, client.root.qid)
        return live, None if standing is None else (client, standing)

    async def keep(self) -> None:
        """After ``dial``: dial again whenever the connection is lost, until cancelled; then close it."""
        keeping_up = asyncio.create_task(self._keep_up())
        try:
            while True:
                await self._wait_lost()
                self._live = self._shown = None
                self._say(f"connection to {self.address} lost; trying again")
                await self._redial()
                self._say(f"connected to {self.address} again")
        finally:
            keeping_up.cancel()
            await asyncio.wait([keeping_up])
            for connection in self._left:
                await connection.close()
            if self._live is not None:
                await self._live.connection.close()

    async def _wait_lost(self) -> None:
        """Return when the connection in use is lost, which may be another than now."""
        while True:
            closed = self.live.connection.closed
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait((closed, moved), return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
            if self.live.connection.closed.done():
                return

    async def _keep_up(self) -> None:
        """Have papers renewed in time, and go over to a connection that is opened with them."""
        told = ""
        while self._standing is not None:
            await asyncio.sleep(LOOK_S)
            if self._live is None or self._shown is None:
                continue
            client, standing = self._shown
            try:
                async with asyncio.timeout(DIAL_LIMIT_S):
                    if await standing.look(client):
                        await self._hand_over(self._live)
                told = ""
            except (OSError, FsError, ValueError) as error:
                if told != str(error):
                    self._say(f"{self.address}: renewing: {error or 'no answer'}; trying again")
                told = str(error)

    async def _hand_over(self, live: Live) -> None:
        fresh, shown = await self._dialled()
        if self._live is not live:
            await fresh.connection.close()
            return  # lost meanwhile, and dialled again
        self._live, self._shown = fresh, shown
        self._left = [old for old in self._left if not old.closed.done()] + [live.connection]
        self._moved.set()

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
