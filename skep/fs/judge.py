"""One handshake judged: the protocol a client comes for, the chain that the peer shows, and what it is told.

What is believed is asked of an Identity, or of a Pinned; here is how OpenSSL comes to ask.
Sources: RFC 8446, 4.4 and 6.2 (alerts); RFC 7301 (ALPN); SSL_CTX_set_verify(3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from cryptography import x509
from OpenSSL import SSL, crypto

from skep.fs.spiffe import quoted
from skep.fs.trust import Chain, Doubt, Reason

log = logging.getLogger("skep.fs")
NINEP: Final = b"9p"  # in ALPN: what is spoken; who offers nothing means it too
ENROL: Final = b"skep-enroll/1"  # in ALPN: 9P, by somebody who comes for a first certificate
DEPTH_MAX: Final = 4  # CAs between a certificate and the bundle
# Not in pyOpenSSL. Source: openssl/ssl.h.
_MODE_ENABLE_PARTIAL_WRITE: Final = 0x1  # one record to a call: of no use where a write never blocks
_MODE_NO_AUTO_CHAIN: Final = 0x8  # send our chain, not what else the trusted CAs would make of it
_MODE_RELEASE_BUFFERS: Final = 0x10  # an idle connection needs 34 KiB less


# What OpenSSL found wrong. Source: openssl/x509_vfy.h.
_REASONS: Final = {
    2: Reason.UNKNOWN_CA,  # the issuer's certificate is not at hand
    9: Reason.NOT_YET_VALID,
    10: Reason.EXPIRED,
    18: Reason.UNKNOWN_CA,  # signed by itself
    19: Reason.UNKNOWN_CA,  # signed by itself, in the chain
    20: Reason.UNKNOWN_CA,  # the issuer's certificate is not known
    21: Reason.UNKNOWN_CA,  # the first certificate cannot be verified
    23: Reason.REVOKED,
}
_TEXTS: Final = {
    7: "a signature is wrong",
    22: "the chain is too long",
    24: "an issuer is no CA",
    26: "it is not meant for this end of a connection",
    66: "its key is too weak",
    67: "its CA's key is too weak",
    68: "its signature is too weak",
}
# What OpenSSL is told when the doubt is ours: the peer's alert follows from it.
_ERRORS: Final = {
    Reason.NOT_YET_VALID: 9,  # bad certificate
    Reason.EXPIRED: 10,  # certificate expired
    Reason.UNKNOWN_CA: 20,  # unknown ca
    Reason.PIN: 20,
    Reason.REVOKED: 23,  # certificate revoked
    Reason.CERTIFICATE: 26,  # unsupported certificate
    Reason.NAME: 28,  # bad certificate
}

# What cryptography raises for a certificate that OpenSSL reads.
_UNREADABLE: Final = (ValueError, TypeError, x509.InvalidVersion)


class Judge:
    """The verdict on one connection's peer, as OpenSSL walks down its chain."""

    def __init__(
        self,
        believed: Callable[[list[x509.Certificate]], Chain | Doubt],
        server: bool,
        enrol: bool = False,
        pardoned: frozenset[int] = frozenset(),
    ) -> None:
        """``believed`` is asked about what OpenSSL has found good, from the leaf up, and may raise ValueError
        for a leaf that names nobody. ``pardoned``: OpenSSL's errors above the leaf that it is to judge."""
        self.server = server  # whether this end is the server
        self.chain: Chain | None = None  # None: not believed, or not known yet
        self.doubt: Doubt | None = None  # None: nothing was found wrong
        self.enrolling = False  # the peer was not asked for a certificate
        self._enrol = enrol
        self._pardoned = pardoned
        self._believed = believed
        self._certificates: list[x509.Certificate] = []  # from the CA down

    def choose(self, offered: Sequence[bytes]) -> bytes:
        """Which of a client's protocols is spoken. Raises SSL.Error for none, which ends the handshake.

        It is asked for each ClientHello, of which there may be two: who came to enrol goes on so."""
        if NINEP in offered and not self.enrolling:
            return NINEP
        if ENROL in offered and self._enrol:
            self.enrolling = True
            return ENROL
        names = b", ".join(offered).decode("ascii", "replace")
        self.doubt = Doubt(Reason.PROTOCOL, quoted(names))
        raise SSL.Error([("SSL routines", "", self.doubt.reason.value)])

    def hear(self, shown: crypto.X509, error: int, depth: int, good: bool) -> bool:
        """OpenSSL's word on one certificate; whether to go on. The leaf, of depth 0, comes last."""
        if error in self._pardoned and depth > 0:
            return True  # it is heard once more, when it is known what it has signed
        try:
            certificate = shown.to_cryptography()
        except _UNREADABLE as e:
            self.doubt = Doubt(Reason.CERTIFICATE, quoted(str(e)))
            return False
        if not good:
            self.doubt = Doubt(_REASONS.get(error, Reason.CERTIFICATE), _told(certificate, error))
            return False
        self._certificates.append(certificate)
        if depth == 0:
            self.doubt = self._doubt()
            self._certificates = []
        return self.doubt is None

    def _doubt(self) -> Doubt | None:
        try:
            found = self._believed(self._certificates[::-1])
        except ValueError as error:
            return Doubt(Reason.NAME, str(error))
        if isinstance(found, Doubt):
            return found
        if not self.server and not found.name.is_queen:
            return Doubt(Reason.NAME, f"{found.name} is no queen")
        self.chain = found
        return None


def joined(context: SSL.Context, judge: Judge, protocol: bytes) -> SSL.Connection:
    """A connection between memory buffers; a client offers ``protocol``."""
    connection = SSL.Connection(context, None)
    connection.set_app_data(judge)
    if judge.server:
        connection.set_accept_state()
    else:
        connection.set_alpn_protos([protocol])
        connection.set_connect_state()
    return connection


def bare_context() -> SSL.Context:
    """TLS 1.3, the peer's certificate judged by the connection's Judge, OpenSSL's own choice of ciphers, and
    nothing resumed.

    OpenSSL sends two tickets all the same (openssl issue 8077): they are numbers in a cache that is off."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    context.set_mode(_MODE_NO_AUTO_CHAIN | _MODE_RELEASE_BUFFERS)
    bindings: Any = context
    _lib.SSL_CTX_set_verify(bindings._context, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _VERIFY)
    context.set_verify_depth(DEPTH_MAX)
    context.set_alpn_select_callback(_select)
    return context


def _select(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    judge = connection.get_app_data()
    assert isinstance(judge, Judge)
    chosen = judge.choose(offered)
    if judge.enrolling:
        # The ClientHello is being read, and the request for a certificate is still to be written.
        connection.set_verify(SSL.VERIFY_NONE)
    return chosen


def _verify(good: int, store: Any) -> int:
    """OpenSSL's callback, in place of pyOpenSSL's, which cannot say why a certificate is not believed."""
    ssl = _lib.X509_STORE_CTX_get_ex_data(store, _lib.SSL_get_ex_data_X509_STORE_CTX_idx())
    judge = _bindings.Connection._reverse_mapping[ssl].get_app_data()
    raw = _lib.X509_STORE_CTX_get_current_cert(store)
    _lib.X509_up_ref(raw)
    certificate: crypto.X509 = _bindings.X509._from_raw_x509_ptr(raw)
    error, depth = _lib.X509_STORE_CTX_get_error(store), _lib.X509_STORE_CTX_get_error_depth(store)
    if judge.hear(certificate, error, depth, bool(good)):
        _lib.X509_STORE_CTX_set_error(store, 0)
        return 1
    if good:
        _lib.X509_STORE_CTX_set_error(store, _ERRORS[judge.doubt.reason])
    return 0


def _failed(kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
    """Who could not be judged is refused."""
    log.error("judging a certificate", exc_info=(kind, error, trace))


_bindings: Final[Any] = SSL
_lib: Final[Any] = _bindings._lib
_VERIFY: Final[Any] = _bindings._ffi.callback("int(int, X509_STORE_CTX *)", _verify, error=0, onerror=_failed)


def _told(certificate: x509.Certificate, error: int) -> str:
    """What a certificate that is not believed says of itself."""
    text = _TEXTS.get(error, f"X.509 error {error}") if error not in _REASONS else ""
    try:
        subject = quoted(certificate.subject.rfc4514_string())
    except _UNREADABLE:
        subject = "unreadable"
    return f"{text} serial={certificate.serial_number:x} subject={subject}".strip()
