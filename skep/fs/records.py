"""The records of one TLS connection: ciphertext in, plaintext out, and back, by pyOpenSSL's own bindings.

pyOpenSSL's methods allocate a buffer for each record they give, and raise an exception when there is no
more: several times the cost of what OpenSSL does. Here its functions are called with buffers that are kept.
Everything else about a connection is asked of pyOpenSSL as ever.
Source: SSL_read(3), SSL_write(3), BIO_s_mem(3).
"""

from __future__ import annotations

from typing import Any, Final, cast

from OpenSSL import SSL

RECORD_SIZE: Final = 16384  # of plaintext, at most; RFC 8446, 5.1
PIECE_SIZE: Final = 65536  # put through at a time: OpenSSL's buffers keep the size they grew to
OVERHEAD: Final = 1024  # more than the headers and tags of PIECE_SIZE
IN_SIZE: Final = 262144  # of ciphertext received at a time
_WANT_READ: Final = 2  # openssl/ssl.h

_bindings: Final[Any] = SSL
_ffi, _lib = _bindings._ffi, _bindings._lib
_bio_read, _bio_write = _lib.BIO_read, _lib.BIO_write
_ssl_read, _ssl_write, _ssl_get_error = _lib.SSL_read, _lib.SSL_write, _lib.SSL_get_error
_clear_error = _lib.ERR_clear_error
_buffer, _from_buffer = _ffi.buffer, _ffi.from_buffer


class Rooms:
    """Buffers that all connections of one event loop share: nothing stays in them between two calls."""

    def __init__(self) -> None:
        self.cipher = _ffi.new("char[]", IN_SIZE)
        # What is decrypted is shorter than what came, but for a record whose beginning came before.
        self.plain = _ffi.new("char[]", IN_SIZE + RECORD_SIZE)
        self.sealed = _ffi.new("char[]", PIECE_SIZE + OVERHEAD)
        self.cipher_view = memoryview(_buffer(self.cipher)).cast("B")
        self.plain_view = memoryview(_buffer(self.plain)).cast("B")


class Records:
    """Those of one connection; nothing of it is called any more once the connection is dropped."""

    __slots__ = ("_connection", "_from", "_into", "_rooms", "_ssl", "error")

    def __init__(self, connection: SSL.Connection, rooms: Rooms) -> None:
        bound: Any = connection
        self._connection = bound
        self._ssl, self._into, self._from = bound._ssl, bound._into_ssl, bound._from_ssl
        self._rooms = rooms
        self.error: SSL.Error | None = None  # what ended the decrypting; None: nothing has

    def put(self, at: int, size: int) -> None:
        """Give OpenSSL ``size`` bytes of the cipher room, at most PIECE_SIZE."""
        taken = _bio_write(self._into, self._rooms.cipher + at, size)
        assert taken == size, "a memory BIO takes all"

    def open(self, size: int) -> int:
        """Decrypt what came, ``size`` bytes in the cipher room; how many stand in the plain room now."""
        if size <= PIECE_SIZE:
            _bio_write(self._into, self._rooms.cipher, size)
            return self.take(0)
        got = 0
        for at in range(0, size, PIECE_SIZE):
            self.put(at, min(PIECE_SIZE, size - at))
            got = self.take(got)
        return got

    def take(self, got: int) -> int:
        """Decrypt into the plain room, from ``got`` on, all that can be; where it ends now."""
        plain, ssl = self._rooms.plain + got, self._ssl
        _clear_error()  # SSL_get_error looks at the thread's errors, whosever they are
        while True:
            n = _ssl_read(ssl, plain, RECORD_SIZE)
            if n <= 0:
                break
            got += n
            plain += n
        if self.error is None and _ssl_get_error(ssl, n) != _WANT_READ:
            self.error = self._error(n)
        return got

    def seal(self, piece: bytes | memoryview) -> bytes:
        """The records of a piece, at most PIECE_SIZE, and what else OpenSSL has to say."""
        size, sealed = len(piece), self._rooms.sealed
        n = _ssl_write(self._ssl, piece if type(piece) is bytes else _from_buffer(piece), size)
        if n != size:
            raise self._error(n) or AssertionError("OpenSSL took a part of what it was given")
        n = _bio_read(self._from, sealed, PIECE_SIZE + OVERHEAD)
        return cast(bytes, _buffer(sealed, n)[:])

    def _error(self, result: int) -> SSL.Error | None:
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            return error
        return None
