"""TLS between a socket and a protocol: bytes below, plaintext above, pyOpenSSL in the middle.

TLS 1.3 only, certificates on both ends. Above is what speaks 9P, and takes a ``Layer`` for its transport;
it is told of a connection once the handshake has ended well. Who is believed is identity.py's and trust.py's,
how many may come is doorway.py's.
Sources: RFC 8446; RFC 9266 (tls-exporter).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol, cast

from OpenSSL import SSL

from skep.fs.conversation import Peer
from skep.fs.identity import Identity
from skep.fs.judge import Judge
from skep.fs.pin import Pinned
from skep.fs.records import PIECE_SIZE, RECORD_SIZE, Records
from skep.fs.trust import Chain, Doubt, Reason, Refusal

log = logging.getLogger("skep.fs")
BINDING_LABEL: Final = b"EXPORTER-Channel-Binding"
BINDING_SIZE: Final = 32
HANDSHAKE_S: Final = 10.0  # from the connection to the last byte of the handshake
LINGER_S: Final = 1.0  # for a refused peer to read why


class Above(Protocol):
    """What speaks 9P on a connection, as far as a transport knows it: a side of asyncio's protocols."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: memoryview) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class TlsError(ConnectionError):
    """The other end is not one to talk to, or it will not talk to us."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.address}: {refusal.reason.value} {refusal.detail}".rstrip())
        self.refusal = refusal


class Layer(asyncio.BufferedProtocol):
    """One TLS connection: a protocol to the socket's transport, a transport to the protocol ``above``."""

    def __init__(self, identity: Identity | Pinned, judge: Judge, above: Above, handshake_s: float) -> None:
        self.address = ""
        self.refusal: Refusal | None = None  # why it was refused, or ended; None: it was not
        self._identity = identity
        self._above = above
        self._judge = judge
        self._handshake_s = handshake_s
        self._below: Any = None
        self._ssl: Any = None  # None: no handshake was begun, or all is over
        self._rooms = identity.rooms
        self._records: Records | None = None  # None as long as no handshake was begun
        self._deadline: asyncio.TimerHandle | None = None
        self._open = False  # the handshake has ended well, and nothing has ended the connection
        self._was_open = False  # above knows of the connection
        self._first: bytes | None = b""  # as long as they are too few to tell whether they are TLS
        self._farewell = False  # we ended it, or close_notify has come

    # What the two ends do otherwise

    def _admit(self) -> Doubt | None:
        """The connection is there; why there shall be no handshake."""
        return None

    def _opened(self) -> Doubt | None:
        """The handshake has ended well; why the connection shall not live."""
        return None

    def _closed(self) -> None:
        """The connection is gone."""

    def _told(self, refusal: Refusal) -> None:
        """The handshake was refused, or a living connection was ended."""

    # The socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = transport
        self.address = _address(transport.get_extra_info("peername"))
        doubt = self._admit()
        if doubt is not None:
            self._refuse(doubt)
            return
        self._ssl = self._identity.connection(self._judge)
        self._records = Records(self._ssl, self._rooms)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._handshake_s, self._refuse, Doubt(Reason.SLOW, ""))
        if not self._judge.server:
            self._shake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rooms.cipher_view

    def buffer_updated(self, nbytes: int) -> None:
        records = self._records
        if self._was_open:
            assert records is not None
            self._deliver(records.open(nbytes))
        elif self._ssl is not None and self._is_tls(nbytes):
            assert records is not None
            got = 0
            for at in range(0, nbytes, PIECE_SIZE):
                records.put(at, min(PIECE_SIZE, nbytes - at))
                if self._was_open or self._shake():
                    got = records.take(got)
                elif self._ssl is None:
                    return
            self._deliver(got)

    def eof_received(self) -> None:
        """An end without close_notify may be somebody's cut: ``connection_lost`` says so."""

    def connection_lost(self, error: Exception | None) -> None:
        if not self._was_open:
            self._refuse(Doubt(Reason.GONE, str(error or "")))
        self._stop_waiting()
        self._closed()
        if not self._was_open:
            return
        self._identity.release(self._end)
        self._ssl = None
        if self.refusal is not None:
            error = TlsError(self.refusal)
        elif error is None and not self._farewell:
            error = ConnectionAbortedError("cut off without close_notify")
        self._open = False
        self._above.connection_lost(error)

    def pause_writing(self) -> None:
        if self._was_open:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._was_open:
            self._above.resume_writing()

    # The transport that above sees

    def write(self, data: bytes | memoryview) -> None:
        if len(data) > RECORD_SIZE:
            self._encrypt((data,))
        elif self._open:
            assert self._records is not None
            self._below.write(self._records.seal(data))

    def writelines(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Many short frames go out in one record."""
        self._encrypt(buffers)

    def close(self) -> None:
        """Send what is left, say goodbye, and end."""
        if self._open:
            self._open = False
            self._farewell = True
            self._ssl.shutdown()
            self._flush()
        self._below.close()

    def abort(self) -> None:
        self._open = False
        self._farewell = True
        self._below.abort()

    def is_closing(self) -> bool:
        return not self._open or bool(self._below.is_closing())

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peer`` and ``channel_binding`` are told here, the rest by the socket's transport."""
        if name == "peer":
            return self.peer
        if name == "channel_binding":
            return self.channel_binding
        return self._below.get_extra_info(name, default)

    @property
    def peer(self) -> Peer:
        """The other end, by its certificate. To be asked once the handshake has ended well."""
        if self._judge.enrolling:
            return Peer("tls", self.address, enrolling=True)
        chain, name = self.chain, self.chain.name
        return Peer(
            "tls",
            self.address,
            spiffe=str(name),
            role=name.role,
            node=name.node,
            serial=chain.serial,
            spki=chain.spki,
        )

    @property
    def chain(self) -> Chain:
        assert self._judge.chain is not None, "the handshake has not ended well"
        return self._judge.chain

    def channel_binding(self) -> bytes:
        """What only the two ends of this connection know, alike on both; empty once it is over."""
        if self._ssl is None:
            return b""
        return cast(bytes, self._ssl.export_keying_material(BINDING_LABEL, BINDING_SIZE, b""))

    # Between them

    def _shake(self) -> bool:
        """Take the handshake further; whether it has ended well, and above knows."""
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as error:
            self._flush()  # the alert
            self._refuse(self._judge.doubt or _doubt(error))
            return False
        self._flush()
        chain = self._judge.chain
        assert (chain is None) is self._judge.enrolling, "OpenSSL went on with a peer that was not believed"
        self._stop_waiting()
        # Once more: it was judged when it came, and a reload since has not found it among the living.
        doubt = (None if chain is None else self._identity.doubt(chain)) or self._opened()
        if doubt is not None:
            self._refuse(doubt)
            return False
        self._open = self._was_open = True
        if chain is not None:
            self._identity.hold(chain, self._end)
        self._above.connection_made(cast(asyncio.BaseTransport, self))
        return True

    def _is_tls(self, size: int) -> bool:
        """Whether what has come up to now may be; if not, the peer is refused."""
        if self._first is None:
            return True
        self._first += bytes(self._rooms.cipher_view[:size][:2])
        if not any(begin.startswith(self._first[:2]) for begin in _BEGIN[self._judge.server]):
            self._refuse(Doubt(Reason.PLAINTEXT, ""))
            return False
        if len(self._first) > 1:
            self._first = None
        return True

    def _deliver(self, got: int) -> None:
        """So much stands in the plain room, and then what ended it, if anything has."""
        assert self._records is not None
        if not self._open:
            return
        error = self._records.error
        # After an error OpenSSL takes nothing more to send, but what came before it was said all the same.
        self._open = error is None or isinstance(error, SSL.ZeroReturnError)
        if got:
            self._above.data_received(self._rooms.plain_view[:got])
        if error is not None:
            self._ended(error)

    def _ended(self, error: SSL.Error) -> None:
        if isinstance(error, SSL.ZeroReturnError):  # close_notify
            self.close()
            return
        self._flush()  # the alert
        doubt = _doubt(error)
        log.info("%s: %s %s", self.address, doubt.reason.value, doubt.detail)
        # That a peer refuses our certificate is heard after the handshake: it has checked it last.
        self._end(doubt)

    def _encrypt(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Short buffers are put together into records; of a long one only its ends are copied."""
        if not self._open:
            return
        assert self._records is not None
        seal = self._records.seal
        short: list[bytes | memoryview] = []
        room = RECORD_SIZE
        for buffer in buffers:
            if len(buffer) < room:
                short.append(buffer)
                room -= len(buffer)
                continue
            view = memoryview(buffer)
            short.append(view[:room])
            self._below.write(seal(b"".join(short)))
            whole = room + (len(view) - room) // RECORD_SIZE * RECORD_SIZE
            for at in range(room, whole, PIECE_SIZE):
                self._below.write(seal(view[at : min(at + PIECE_SIZE, whole)]))
            short, room = [view[whole:]], RECORD_SIZE - (len(view) - whole)
        if room < RECORD_SIZE:
            self._below.write(seal(short[0] if len(short) == 1 else b"".join(short)))

    def _flush(self) -> None:
        """Send what OpenSSL has to say by itself."""
        try:
            while True:
                self._below.write(self._ssl.bio_read(PIECE_SIZE))
        except SSL.WantReadError:
            return

    def _end(self, doubt: Doubt) -> None:
        """End a living connection."""
        if self.refusal is not None:
            return
        self.refusal = Refusal(self.address, doubt.reason, doubt.detail)
        self._told(self.refusal)
        self.abort()

    def _refuse(self, doubt: Doubt) -> None:
        """End the handshake."""
        if self.refusal is not None:
            return
        self._stop_waiting()
        self._ssl = None
        self.refusal = Refusal(self.address, doubt.reason, doubt.detail)
        self._told(self.refusal)
        if doubt.reason in _CUT or self._below.is_closing():
            self._below.abort()
            return
        # Closing with bytes unread resets the connection, and the peer would never see the alert.
        self._below.write_eof()
        self._deadline = asyncio.get_running_loop().call_later(LINGER_S, self._below.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class ClientLayer(Layer):
    """A dialled connection; ``established`` is done when the handshake has ended well, or raises TlsError."""

    def __init__(self, identity: Identity | Pinned, above: Above) -> None:
        super().__init__(identity, identity.judge(False), above, HANDSHAKE_S)
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _opened(self) -> Doubt | None:
        if not self.established.done():
            self.established.set_result(None)
        return None

    def _told(self, refusal: Refusal) -> None:
        if not self.established.done():
            self.established.set_exception(TlsError(refusal))


# Of a record with a handshake in it, in every version of TLS; a server's first may be an alert.
_BEGIN: Final = {True: (b"\x16\x03",), False: (b"\x16\x03", b"\x15\x03")}  # by whether we are the server

# These peers have sent nothing that an alert would answer, or would not read it.
_CUT: Final = frozenset({Reason.PLAINTEXT, Reason.SLOW, Reason.TOO_MANY, Reason.GONE})

# OpenSSL's words for what a peer did.
_SAYINGS: Final = {
    "peer did not return a certificate": Reason.NO_CERTIFICATE,
    "unsupported protocol": Reason.VERSION,
    "version too low": Reason.VERSION,
    "wrong version number": Reason.VERSION,
}


def _doubt(error: SSL.Error) -> Doubt:
    """What went wrong in OpenSSL's words: the last one is the cause of the others."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    saying = queue[0][2] if queue else str(error)
    if " alert " in f" {saying}":
        return Doubt(Reason.REFUSED_US, saying)
    return Doubt(_SAYINGS.get(saying, Reason.BROKEN), saying)


def _address(name: tuple[Any, ...]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
