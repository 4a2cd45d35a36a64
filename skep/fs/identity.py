"""Who this end is, and whom it believes: a certificate, its key, the CAs and their CRLs, read anew at will.

A connection made before a ``reload`` lives on with what it agreed, as long as its peer's certificate is good;
that is looked at after each reload and, for the time, every SWEEP_S. Bytes are tls.py's.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from skep.fs.records import Rooms
from skep.fs.spiffe import Spiffe, name_of, quoted
from skep.fs.trust import Chain, Doubt, Reason, Trust
from skep.trace.clock import Clock, SystemClock

NINEP: Final = b"9p"  # in ALPN: what is spoken; who offers nothing means it too
ENROL: Final = (
    b"skep-enroll/1"  # in ALPN: 9P by somebody who has no certificate yet, and comes to ask for one
)
SWEEP_S: Final = 0.5  # at most so long a session outlives its certificate
# Not in pyOpenSSL. Source: openssl/ssl.h.
_MODE_ENABLE_PARTIAL_WRITE: Final = 0x1  # one record to a call: of no use where a write never blocks
_MODE_NO_AUTO_CHAIN: Final = 0x8  # send our chain, not what else the trusted CAs would make of it
_MODE_RELEASE_BUFFERS: Final = 0x10  # an idle connection needs 34 KiB less
_DEPTH_MAX: Final = 4  # CAs between a certificate and the bundle

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

End = Callable[[Doubt], None]  # how a connection is told that it is over


class Pem(NamedTuple):
    """What an identity is made of, in PEM."""

    certificate: bytes  # ours, then the CAs between it and the bundle
    key: bytes  # its private key, not encrypted
    bundle: bytes  # the CAs that are believed
    crl: bytes = b""  # their CRLs; empty: nothing is revoked

    def __repr__(self) -> str:
        return "Pem(…)"  # a key in a traceback is a key in a log


class Identity:
    """One end's certificate and trust. For one event loop; everything happens there."""

    def __init__(self, load: Callable[[], Pem], clock: Clock | None = None) -> None:
        """``load`` gives what holds now; it is asked again at each ``reload``, of which this is the first."""
        self.clock = clock or SystemClock()
        self.rooms = Rooms()
        self.held: dict[End, Chain] = {}  # the connections alive
        self._load = load
        self._timer: asyncio.TimerHandle | None = None  # None: nothing is alive
        self.name, self.trust, self._context = self._read()

    @staticmethod
    def files(certificate: Path, key: Path, bundle: Path, crl: Path | None = None) -> Identity:
        """From PEM files. Raises OSError, and ValueError for contents that will not do."""
        return Identity(lambda: _pem(certificate, key, bundle, crl))

    def reload(self) -> None:
        """Read everything again: new handshakes use it, connections whose peer it does not trust end now.

        Raises OSError or ValueError when it cannot be used; then all is as it was."""
        self.name, self.trust, self._context = self._read()
        now_ns = self.clock.now_ns()
        for end, chain in list(self.held.items()):
            doubt = self.trust.doubt(chain, now_ns)
            if doubt is not None:
                end(doubt)

    def judge(self, server: bool, enrol: bool = False) -> Judge:
        """Who is to judge one connection's peer. ``server``: whether this end is it; ``enrol``: whether the
        peer may come without a certificate, for no more than to enrol."""
        return Judge(self._believed, server, enrol)

    def connection(self, judge: Judge) -> SSL.Connection:
        """A connection between memory buffers, whose peer ``judge`` is to judge."""
        return joined(self._context, judge, NINEP)

    def _believed(self, certificates: list[x509.Certificate]) -> Chain | Doubt:
        chain = Chain.of(certificates)
        if chain.name.hive != self.name.hive:
            return Doubt(Reason.NAME, f"{chain.name} is not of hive {self.name.hive}")
        return self.trust.doubt(chain, self.clock.now_ns()) or chain

    def hold(self, chain: Chain, end: End) -> None:
        """Call ``end`` when ``chain`` is believed no more, until released."""
        self.held[end] = chain
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def release(self, end: End) -> None:
        self.held.pop(end, None)
        if not self.held and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        now_ns = self.clock.now_ns()
        for end, chain in [item for item in self.held.items() if now_ns >= item[1].end_ns]:
            doubt = self.trust.doubt(chain, now_ns)
            assert doubt is not None
            end(doubt)

    def _read(self) -> tuple[Spiffe, Trust, SSL.Context]:
        pem = self._load()
        trust = Trust.read(pem.bundle, pem.crl)
        chain = x509.load_pem_x509_certificates(pem.certificate)
        try:
            context = _context(chain, pem.key, trust)
        except (SSL.Error, TypeError) as error:  # TypeError: the key is encrypted
            raise ValueError(f"the key is not that of the certificate, or cannot be used: {error}") from None
        return name_of(chain[0]), trust, context


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

    def hear(self, certificate: x509.Certificate, error: int, depth: int, good: bool) -> bool:
        """OpenSSL's word on one certificate; whether to go on. The leaf, of depth 0, comes last."""
        if error in self._pardoned and depth > 0:
            return True  # it is heard once more, when it is known what it has signed
        if not good:
            self.doubt = Doubt(_REASONS.get(error, Reason.CERTIFICATE), _told(certificate, error))
            return False
        self._certificates.append(certificate)
        if depth == 0:
            self.doubt = self._doubt()
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
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    context.set_verify_depth(_DEPTH_MAX)
    context.set_alpn_select_callback(_select)
    return context


def _context(chain: list[x509.Certificate], key: bytes, trust: Trust) -> SSL.Context:
    """For both ends, with this certificate, and the CAs that are believed."""
    context = bare_context()
    store = context.get_cert_store()
    assert store is not None
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for authority in trust.authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    context.use_certificate(chain[0])
    for between in [*chain[1:], *_rest(chain[-1], trust.authorities)]:
        context.add_extra_chain_cert(between)
    context.use_privatekey(load_pem_private_key(key, None))  # type: ignore[arg-type]
    context.check_privatekey()
    return context


def _rest(last: x509.Certificate, authorities: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The CAs above ``last``, as far as they are known here: who has only a CA's pin knows none of them."""
    rest: list[x509.Certificate] = []
    while last.issuer != last.subject and len(rest) < _DEPTH_MAX:
        above = next((a for a in authorities if _is_issued(last, a)), None)
        if above is None:
            break
        rest.append(last := above)
    return rest


def _is_issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _select(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    judge = connection.get_app_data()
    assert isinstance(judge, Judge)
    chosen = judge.choose(offered)
    if judge.enrolling:
        # The ClientHello is being read, and the request for a certificate is still to be written.
        connection.set_verify(SSL.VERIFY_NONE)
    return chosen


def _verify(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, good: int) -> bool:
    judge = connection.get_app_data()
    assert isinstance(judge, Judge)
    return judge.hear(certificate.to_cryptography(), error, depth, bool(good))


def _told(certificate: x509.Certificate, error: int) -> str:
    """What a certificate that is not believed says of itself."""
    text = _TEXTS.get(error, f"X.509 error {error}") if error not in _REASONS else ""
    subject = quoted(certificate.subject.rfc4514_string())
    return f"{text} serial={certificate.serial_number:x} subject={subject}".strip()


def _pem(certificate: Path, key: Path, bundle: Path, crl: Path | None) -> Pem:
    with key.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise ValueError(f"{key} can be read by others: chmod 600 it")
        secret = file.read()
    return Pem(certificate.read_bytes(), secret, bundle.read_bytes(), crl.read_bytes() if crl else b"")
