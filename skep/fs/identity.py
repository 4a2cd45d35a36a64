"""Who this end is, and whom it believes: a certificate, its key, the CAs and their CRLs, read anew at will.

A connection made before a ``reload`` lives on with what it agreed, as long as its peer's certificate is good;
that is looked at after each reload and, for the time, every SWEEP_S. The handshake is judge.py's, bytes are
tls.py's.
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

from skep.fs.judge import DEPTH_MAX, NINEP, Judge, bare_context, joined
from skep.fs.records import Rooms
from skep.fs.spiffe import Spiffe, name_of
from skep.fs.trust import Chain, Doubt, Reason, Trust
from skep.trace.clock import Clock, SystemClock

SWEEP_S: Final = 0.5  # at most so long a session outlives its certificate
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
        return self.doubt(chain) or chain

    def doubt(self, chain: Chain) -> Doubt | None:
        """Why ``chain`` is believed no more; None: it is."""
        return self.trust.doubt(chain, self.clock.now_ns())

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
    while last.issuer != last.subject and len(rest) < DEPTH_MAX:
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


def _pem(certificate: Path, key: Path, bundle: Path, crl: Path | None) -> Pem:
    with key.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise ValueError(f"{key} can be read by others: chmod 600 it")
        secret = file.read()
    return Pem(certificate.read_bytes(), secret, bundle.read_bytes(), crl.read_bytes() if crl else b"")
