"""A CA for tests: it signs whatever a test wants, and identities to reload."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skep.fs.identity import Identity, Pem
from skep.trace.clock import Clock

QUEEN = "spiffe://hive/queen-primary/q1"
WORKER = "spiffe://hive/drone-worker/w1"
HOUR = timedelta(hours=1)
BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Issued(NamedTuple):
    certificate: x509.Certificate
    key: EllipticCurvePrivateKey
    above: bytes = b""  # PEM of the CAs between it and the bundle

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM) + self.above

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """``above``: the CA that signed this one; None: it signed itself."""

    def __init__(
        self,
        name: str = "hive CA",
        above: Authority | None = None,
        key: EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.key = key or generate_private_key(SECP256R1())
        self.subject = _name(name)
        signer = above or self
        now = datetime.now(UTC)
        self.certificate = (
            _builder(self.subject, signer.subject, self.key, now - 24 * HOUR, now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, SHA256())
        )
        self.chain = self.pem if above else b""

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        *uris: str,
        begin: timedelta = -HOUR,
        end: timedelta = HOUR,
        ca: bool = False,
        uses: Iterable[x509.ObjectIdentifier] = BOTH_ENDS,
        subject: str = "somebody",
        key: EllipticCurvePrivateKey | None = None,
        serial: int | None = None,
    ) -> Issued:
        """A certificate with these URIs as its names, valid from and to these times from now. ``key`` None:
        for a fresh one; ``serial`` None: a fresh one."""
        key, now = key or generate_private_key(SECP256R1()), datetime.now(UTC)
        builder = (
            _builder(_name(subject), self.subject, key, now + begin, now + end, serial)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=False)
        return Issued(builder.sign(self.key, SHA256()), key, self.chain)

    def crl(self, *revoked: Issued) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.subject, now - HOUR, now + HOUR)
        for issued in revoked:
            entry = x509.RevokedCertificateBuilder(issued.certificate.serial_number, now - HOUR).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)


class Papers:
    """What an identity reads at its next reload."""

    def __init__(self, issued: Issued, *trusted: Authority, clock: Clock | None = None) -> None:
        bundle = b"".join(authority.pem for authority in trusted)
        self.pem = Pem(issued.pem, issued.key_pem, bundle)
        self.identity = Identity(lambda: self.pem, clock)

    def change(self, **fields: bytes) -> None:
        self.pem = self.pem._replace(**fields)
        self.identity.reload()


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    number = x509.random_serial_number() if serial is None else serial
    return x509.CertificateBuilder(issuer, subject, key.public_key(), number, begin, end)
