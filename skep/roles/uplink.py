"""A node's way to its queen: one 9P session, made again when lost, and made anew before its papers end.

Work in hand goes on meanwhile: what must be said to the hive is said when it is back. A session that is to be
left is left in order: the next one is open first, what was begun on the old one is ended there, and reads
that wait for something are given up and asked again on the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Literal, TypeVar

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.flight import Flight
from skep.fs.link import LOOK_S, Standing
from skep.fs.messages import IOHDRSZ, Dialect, Message, Rread, Tread, Twrite

log = logging.getLogger("skep.worker")
T = TypeVar("T")
BACK_OFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # between tries; then the last one for ever
CONNECT_S: Final = 10.0
PARTING_S: Final = 30.0  # a session that was left is cut then, and what still ran on it begun again
# Refusals that pass: our own earlier connection is not gone yet, the hive is busy.
_PASSING: Final = (E.BUSY, E.THROTTLED, E.OVERLOAD, E.IO, E.CANCELLED)
# Alerts after which only a new enrolment helps. Source: RFC 8446, 6.2, in OpenSSL's words.
_FINAL: Final = {"alert certificate revoked": E.REVOKED, "alert certificate expired": E.EXPIRED}


class Session:
    """One attached connection, until another takes over."""

    def __init__(self, client: Client, standing: Standing | None) -> None:
        self.client = client
        self.standing = standing  # what it was opened with; None: not TLS
        self.leaving = asyncio.Event()  # another session is open: what waits, waits there
        self.idle = asyncio.Event()
        self.idle.set()
        self._works = 0  # begun here and not ended

    @property
    def lost(self) -> bool:
        return self.client.connection.closed.done()

    async def wait_lost(self) -> None:
        await asyncio.shield(self.client.connection.closed)

    async def wait_over(self) -> None:
        """Return when it is lost, or is to be left."""
        leaving = asyncio.create_task(self.leaving.wait())
        try:
            await asyncio.wait((self.client.connection.closed, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()

    @contextlib.contextmanager
    def working(self) -> Iterator[Client]:
        self._works += 1
        self.idle.clear()
        try:
            yield self.client
        finally:
            self._works -= 1
            if not self._works:
                self.idle.set()

    async def part(self) -> None:
        """Close it, which is to be left, once nothing is done on it any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PARTING_S):
                await self.idle.wait()
        await self.client.close()

    async def wait_read(self, path: str, unless: asyncio.Event | None) -> bytes | None:
        """What one read gives, however long that takes; None: given up, for we leave or ``unless`` is set.

        What came all the same is not thrown away."""
        connection = self.client.connection
        count = connection.session.msize - IOHDRSZ
        flight = Flight(self.client, path, "r", lambda fid: Tread(fid, 0, count))
        with _told(lambda: connection.flush(flight.last), self.leaving, unless):
            reply = await _unless_flushed(flight.wait())
        return None if reply is None else bytes(reply.data)


class Uplink:
    """The session of ``node`` with the hive at ``address``. ``keep`` makes it, and makes it again."""

    def __init__(self, address: Address, node: str, standing: Callable[[], Standing] | None = None) -> None:
        """``standing`` gives what a session is opened with now: for TLS, and for nothing else."""
        self.address = address
        self.node = node
        self._standing = standing
        self._session: Session | None = None  # None: not connected
        self._connected = asyncio.Event()
        self._parting: set[asyncio.Task[None]] = set()
        self._dialling = asyncio.Lock()  # a session that is lost and one to be left are replaced once

    async def keep(self) -> None:
        """Stay connected until cancelled. Raises FsError when the hive refuses this node, and OSError when
        its papers cannot be read."""
        tasks = [asyncio.create_task(self._reconnect())]
        if self._standing is not None:
            tasks.append(asyncio.create_task(self._keep_up()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *self._parting):
                task.cancel()
            await asyncio.wait((*tasks, *self._parting))
            if self._session is not None:
                await self._session.client.close()

    async def _reconnect(self) -> None:
        while True:
            async with self._dialling:
                # One that was to take over may be here already.
                if self._session is None:
                    self._session = await self._dial_until()
                    log.info("connected to %s as %s", self.address, self.node)
                    self._connected.set()
            # Another may have taken its place meanwhile.
            while (session := self._session) is not None:
                await session.wait_over()
                if session.lost:
                    self._forget(session)

    async def _dial_until(self) -> Session:
        """A session, after as many tries as it needs."""
        tries = 0
        while True:
            try:
                return await self._dial()
            except (OSError, FsError) as error:
                if isinstance(error, FsError) and error.kind not in _PASSING:
                    raise
                if tries == 0:
                    log.warning("%s: %s; trying again", self.address, str(error) or "no answer")
            await asyncio.sleep(BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)])
            tries += 1

    async def _dial(self) -> Session:
        standing = None if self._standing is None else self._standing()
        identity = None if standing is None else standing.identity
        try:
            async with asyncio.timeout(CONNECT_S):
                # 9P2000.u: its errors carry their text.
                client = await Client.connect(
                    self.address, uname=self.node, dialect=Dialect.U, identity=identity
                )
        except (FsError, OSError) as error:
            for said, kind in _FINAL.items():
                if said in str(error):
                    raise FsError(kind, f"{self.node}'s certificate: run skep enroll again") from error
            raise
        return Session(client, standing)

    async def _keep_up(self) -> None:
        """Have papers renewed in time, and go over to a session that is opened with them."""
        told = ""
        while True:
            await asyncio.sleep(LOOK_S)
            session = self._session
            if session is None or session.lost or session.standing is None:
                continue
            try:
                async with asyncio.timeout(CONNECT_S):
                    if await session.standing.look(session.client):
                        await self._hand_over(session)
                told = ""
            except (OSError, FsError, ValueError) as error:
                if told != str(error):
                    log.warning("%s: renewing: %s; trying again", self.address, error or "no answer")
                told = str(error)

    async def _hand_over(self, session: Session) -> None:
        async with self._dialling:
            if self._session is not session:
                return  # lost just now, and opened again with what there is
            self._session = await self._dial()
        log.info("connected to %s anew, with the papers of now", self.address)
        self._connected.set()
        session.leaving.set()
        parting = asyncio.create_task(session.part())
        self._parting.add(parting)
        parting.add_done_callback(self._parting.discard)

    def _forget(self, session: Session) -> None:
        """The session is lost."""
        if self._session is session:
            self._session = None
            self._connected.clear()

    # what it is for

    async def do(self, work: Callable[[Client], Awaitable[T]], unless: asyncio.Event | None = None) -> T:
        """What ``work`` gives, begun again from its start each time the connection is lost on the way:
        what it says to the hive must bear being said twice. Raises FsError.

        ``unless`` set, no connection is waited for: FsError(E.CANCELLED)."""
        return await self._do(lambda session: work(session.client), unless)

    async def write(self, path: str, line: str) -> None:
        """Write a line, or several of one transaction, to a ctl file of the hive, which takes them whole."""
        data = f"{line}\n".encode()

        async def work(client: Client) -> None:
            await Flight(client, path, "w", lambda fid: Twrite(fid, 0, data)).wait()

        await self.do(work)

    async def wait_read(self, path: str, unless: asyncio.Event | None = None) -> bytes:
        """What a read of a file gives that waits for something to tell; b"" once ``unless`` is set. Raises
        FsError, and FsError(E.CANCELLED) when ``unless`` is set while there is no connection."""
        while True:
            data = await self._do(lambda session: session.wait_read(path, unless), unless)
            if data is not None:
                return data
            if unless is not None and unless.is_set():
                return b""

    async def _do(self, work: Callable[[Session], Awaitable[T]], unless: asyncio.Event | None) -> T:
        while True:
            session = await self._wait_session(unless)
            try:
                with session.working():
                    return await work(session)
            except ConnectionLost:
                await session.wait_lost()
                self._forget(session)

    async def _wait_session(self, unless: asyncio.Event | None) -> Session:
        while True:
            session = self._session
            if session is not None and not session.lost:
                return session
            if session is not None:
                self._forget(session)
            waits = [asyncio.create_task(event.wait()) for event in (self._connected, unless) if event]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if not self._connected.is_set():
                raise FsError(E.CANCELLED, "the hive is not waited for")


@contextlib.contextmanager
def _told(act: Callable[[], None], *events: asyncio.Event | None) -> Iterator[None]:
    """Within it, ``act`` is called when one of the events is set."""

    def ended(wait: asyncio.Task[Literal[True]]) -> None:
        if not wait.cancelled():
            act()

    waits = [asyncio.create_task(event.wait()) for event in events if event is not None]
    for wait in waits:
        wait.add_done_callback(ended)
    try:
        yield
    finally:
        for wait in waits:
            wait.cancel()


async def _unless_flushed(answer: Awaitable[Message]) -> Rread | None:
    try:
        reply = await answer
    except FsError as error:
        if error.kind in (E.INTR, E.CANCELLED):
            return None
        raise
    assert isinstance(reply, Rread)
    return reply
