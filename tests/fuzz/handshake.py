"""Bytes before there is a session: into the server's half of a TLS handshake.

An even first byte: the rest is what a stranger sends. An odd one: a member of the hive shakes hands, and
what it sends is changed on the way: at each change, in which flight, where (two bytes), by what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from OpenSSL import SSL

from skep.fs.doorway import Doorway, Limits, ServerLayer
from skep.fs.trust import Refusal
from tests.fs.authority import QUEEN, WORKER, Authority, Papers

LENGTH_MAX = 1024
FLIGHTS = 3
BITE = 4
DETAIL_MAX = 512  # characters of why: a line of a log

CA = Authority()
SERVER = Papers(CA.issue(QUEEN), CA).identity
CLIENT = Papers(CA.issue(WORKER), CA).identity
logging.getLogger("skep.fs").propagate = False
logging.getLogger("skep.fs").addHandler(logging.NullHandler())


class Above:
    """What would speak 9P, if it came to that."""

    def __init__(self) -> None:
        self.opened = False
        self.lost = 0
        self.heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert not self.opened
        self.opened = True

    def data_received(self, data: bytes) -> None:
        assert self.opened
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += 1

    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Below(asyncio.Transport):
    """A socket's transport, as far as a layer asks."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711)})
        self.sent = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def write_eof(self) -> None:
        self.closing = True

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def taken(self) -> bytes:
        data, self.sent = self.sent, b""
        return data


_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    if data:
        _loop.run_until_complete(play(data[0], data[1:]))


async def play(how: int, body: bytes) -> None:
    refusals: list[Refusal] = []
    doorway = Doorway(SERVER, refusals.append, Limits(), enrol=bool(how & 2))
    above, below = Above(), Below()
    layer = doorway.layer(above)
    layer.connection_made(below)
    if how & 1:
        converse(layer, below, body)
    else:
        feed(layer, body, 1 if how & 4 else 1 << 14)
        # A stranger has neither a certificate nor an answer to the server's half of the key.
        assert not above.opened
        assert not above.heard
    if above.opened:
        assert str(layer.peer.spiffe) == WORKER
        assert layer.refusal is None or len(refusals) == 1
    layer.connection_lost(None)
    assert above.lost == above.opened
    assert len(refusals) <= 1
    assert above.opened or len(refusals) == 1, "neither let in nor refused"
    for refusal in refusals:
        assert len(refusal.detail) <= DETAIL_MAX
        assert refusal.detail.isprintable(), refusal
    assert not any(
        crowd.members or crowd.networks for crowd in (doorway.half_open, doorway.open, doorway.enrolling)
    )
    assert layer._deadline is None, "a timer is left"
    assert not SERVER.held


def feed(layer: ServerLayer, data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        part = data[at : at + piece]
        layer.get_buffer(-1)[: len(part)] = part
        layer.buffer_updated(len(part))


def converse(layer: ServerLayer, below: Below, changes: bytes) -> None:
    """Shake hands as a member; then say something."""
    client = SSL.Connection(CLIENT.connection(CLIENT.judge(False))._context, None)
    client.set_connect_state()
    done = False
    for flight in range(FLIGHTS):
        if answer := below.taken():
            client.bio_write(answer)
        try:
            client.do_handshake()
            if not done:
                client.send(b"hello")
            done = True
        except SSL.WantReadError:
            pass
        except SSL.Error:
            return
        feed(layer, changed(sent(client), flight, changes), 1 << 14)


def sent(client: SSL.Connection) -> bytes:
    try:
        return client.bio_read(1 << 16)
    except SSL.WantReadError:
        return b""


def changed(data: bytes, flight: int, changes: bytes) -> bytes:
    found = bytearray(data)
    for at in range(0, len(changes) - BITE + 1, BITE):
        which, high, low, by = changes[at : at + BITE]
        if which % FLIGHTS == flight and found:
            found[(high << 8 | low) % len(found)] ^= by
    return bytes(found)


def seeds() -> Iterator[bytes]:
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    client.set_connect_state()
    try:
        client.do_handshake()
    except SSL.WantReadError:
        hello = client.bio_read(1 << 16)
    for how in (0, 2, 4):
        yield bytes([how]) + hello
    yield b"\0Tversion"
    yield b"\0\x16\x03\x01\xff\xff"
    yield b"\0\x15\x03\x01\x00\x02\x02\x28"
    yield b"\1"
    for flight in range(FLIGHTS):
        for where in (0, 3, 5, 11, 43, 100, 300):
            yield bytes([1, flight, where >> 8, where & 255, 1])
