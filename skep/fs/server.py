"""Listeners: Unix sockets, whose peer credentials are the principal, TCP on loopback, and TLS, whose
certificates are the principal.

Transports only: what comes in goes to a Conversation. ``serve`` is the ten-line program's way in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from skep.fs.address import Address, check_listen, parse
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Node
from skep.fs.owners import user_name
from skep.fs.tree import as_node
from skep.fs.wire import WireError

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.doorway import Doorway, Limits
    from skep.fs.identity import Identity
    from skep.fs.trust import Refusal

log = logging.getLogger("skep.fs")
BACKLOG: Final = 1024  # connections the kernel holds for us while we are busy
CONNECTIONS_MAX: Final = 16384  # per listener; an idle one costs a few tens of KiB
IN_SIZE: Final = 2 << 20  # bytes received at a time: a frame of the largest msize, or many short ones
OUT_HIGH: Final = 1 << 20  # bytes in a transport's own buffer above which it takes no more
_UCRED: Final = struct.Struct("3i")


class OpenGate:
    """Everyone who gets as far as the socket sees the whole tree. The principal is the Unix peer's user, the
    certificate's name, or the transport; what the client calls itself is not asked. ``aname`` names no other
    tree."""

    def __init__(self, root: Node) -> None:
        self.root = root

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        if aname not in ("", "/"):
            raise FsError(E.MISSING, aname)
        uid, gid = (peer.uid, peer.gid) if peer.uid >= 0 else (os.getuid(), os.getgid())
        user = user_name(uid)
        principal = peer.spiffe or f"{peer.kind}:{user if peer.uid >= 0 else peer.address}"
        caller = Caller(principal, "operator", uid=uid, gid=gid, user=user)
        return Chan(self.root, caller, EVERYTHING)

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        # Not EOPNOTSUPP: diod's clients go on after ENOENT alone.
        raise FsError(E.NOTSUP, "authentication is not required", errno=errno.ENOENT)


class _Connection(asyncio.BufferedProtocol):
    """One accepted connection: a transport joined to a Conversation.

    Bytes are received into one buffer that all connections share: what is not answered from it at once, a
    frame cut short or a call that waits, the session keeps a copy of."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.conversation: Conversation | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if len(self.listener.connections) >= self.listener.connections_max:
            log.warning("connection refused: %d are open, the most allowed", self.listener.connections_max)
            self.transport.abort()
            return
        self.listener.connections.add(self)
        self.transport.set_write_buffer_limits(high=OUT_HIGH)
        self.conversation = Conversation(
            self.listener.gate, _peer(self.transport), self._send, self.listener.msize
        )
        self.conversation.hang_up = self.transport.abort
        if hasattr(self.listener.gate, "greet"):
            self.conversation.gate = self.listener.gate.greet(self.conversation)
        self.conversation.flow = self._flow
        self.conversation.channel_binding = transport.get_extra_info("channel_binding", bytes)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.listener.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self.listener.buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """What a TLS layer has decrypted, or the buffer holds."""
        if self.conversation is None:
            return
        try:
            self.conversation.receive(data)
        except WireError as error:
            log.info("%s: %s", self.conversation.peer.address or self.conversation.peer.kind, error)
            self.transport.abort()

    def _flow(self, wanted: bool) -> None:
        if not self.transport.is_closing():
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def _send(self, frames: Sequence[bytes | memoryview]) -> None:
        if len(frames) == 1:
            self.transport.write(frames[0])
        else:
            self.transport.writelines(frames)

    def pause_writing(self) -> None:
        if self.conversation is not None:
            self.conversation.paused = True

    def resume_writing(self) -> None:
        if self.conversation is not None:
            self.conversation.resume()

    def connection_lost(self, error: Exception | None) -> None:
        self.listener.connections.discard(self)
        if self.conversation is not None:
            self.conversation.lost()
            if hasattr(self.conversation.gate, "left"):
                self.conversation.gate.left()


def _peer(transport: asyncio.BaseTransport) -> Peer:
    certified: Peer | None = transport.get_extra_info("peer")
    if certified is not None:
        return certified
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        return Peer("unix", f"pid {pid}", uid, gid, pid)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host, port = transport.get_extra_info("peername")[:2]
    return Peer("tcp", f"{host}:{port}")


class Listener:
    """One address being served. ``address`` is what was bound: a port 0 has become the one picked."""

    def __init__(self, gate: Any, address: Address, msize: int, doorway: Doorway | None = None) -> None:
        """``doorway``: to what only TLS enters; None for the other kinds of address."""
        if (address.kind == "tls") is not (doorway is not None):
            raise ValueError(f"{address}: an identity belongs to tls, and tls needs one")
        self.doorway = doorway
        self.gate = gate
        self.address = address
        self.msize = msize
        self.connections: set[_Connection] = set()
        self.connections_max = CONNECTIONS_MAX
        self.buffer = memoryview(bytearray(IN_SIZE))
        self.server: asyncio.Server | None = None

    async def open(self, mode: int) -> None:
        loop = asyncio.get_running_loop()
        check_listen(self.address)
        if self.address.kind == "unix":
            sock = _bind_unix(self.address.path, mode)
            self.server = await loop.create_unix_server(lambda: _Connection(self), sock=sock, backlog=BACKLOG)
            return
        self.server = await loop.create_server(
            self._accepted, self.address.host, self.address.port, backlog=BACKLOG
        )
        port = self.server.sockets[0].getsockname()[1]
        self.address = Address(self.address.kind, self.address.host, port)

    def _accepted(self) -> asyncio.BaseProtocol:
        connection = _Connection(self)
        return connection if self.doorway is None else self.doorway.layer(connection)

    async def close(self) -> None:
        """Stop listening, cut the connections, remove the socket's name."""
        assert self.server is not None
        self.server.close()
        if self.doorway is not None:
            self.doorway.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self.server.wait_closed()
        if self.address.kind == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.path)


def _bind_unix(path: str, mode: int) -> socket.socket:
    """A bound socket; a name left by a dead server is taken over, a living one's is not."""
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is no socket", path)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, "another server listens on", path)
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    return sock


@contextlib.asynccontextmanager
async def listen(
    tree: Node | Mapping[str, Any] | Any,
    address: str | Address,
    *,
    msize: int = 1 << 20,
    mode: int = 0o600,
    identity: Identity | None = None,
    refused: Callable[[Refusal], None] = lambda refusal: None,
    limits: Limits | None = None,
    enrol: bool = False,
) -> AsyncIterator[Listener]:
    """Serve ``tree`` (what as_node takes, a Gate, or what greets each connection with a Gate of its own, that
    is told when the connection has ``left``) on ``address`` within the ``async with``.

    ``mode``: who may connect to a Unix socket. ``identity``: for TLS, and for nothing else; ``refused`` is
    then told of each handshake refused and each session ended; ``limits`` bound the connections,
    doorway.LIMITS when None. ``enrol``: let peers in that have no certificate; the Gate knows them by
    ``enrolling``.
    Raises ValueError for an address that may not be served."""
    gate = tree if hasattr(tree, "attach") or hasattr(tree, "greet") else OpenGate(as_node(tree))
    if enrol and isinstance(gate, OpenGate):
        raise ValueError("an open gate would let everyone in who comes to enrol")
    doorway = None
    if identity is not None:
        from skep.fs.doorway import LIMITS, Doorway

        doorway = Doorway(identity, refused, limits or LIMITS, enrol)
    listener = Listener(gate, parse(address) if isinstance(address, str) else address, msize, doorway)
    await listener.open(mode)
    try:
        yield listener
    finally:
        await listener.close()


async def _forever(tree: Any, address: str) -> None:
    async with listen(tree, address) as listener:
        print(f"serving {listener.address}", flush=True)
        await asyncio.get_running_loop().create_future()


def serve(tree: Any, address: str) -> None:
    """Serve ``tree`` on ``address`` until interrupted: the whole of a small server's main program."""
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_forever(tree, address))
