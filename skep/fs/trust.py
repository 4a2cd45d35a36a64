"""Which certificates are believed: the CAs trusted now, what they have revoked, and the time.

OpenSSL has checked signatures and uses when a chain comes here; names are spiffe.py's. The same questions
are asked of a new connection and, again and again, of a living one.
Source: RFC 5280, 5 (CRLs) and 6 (paths).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from skep.fs.spiffe import Spiffe, is_ca, name_of
from skep.trace.clock import SECOND, rfc3339

CAS_MAX: Final = 64  # in a bundle: the old CA, the new one, and those of other hives
_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)

AuthorityKey = tuple[bytes, bytes]  # subject and public key, in DER: what a CA's renewed certificate keeps
SerialKey = tuple[bytes, int]  # issuer in DER, serial number


class Reason(Enum):
    """Why a connection was refused, or ended."""

    PLAINTEXT = "not TLS"
    VERSION = "TLS older than 1.3"
    NO_CERTIFICATE = "no certificate"
    UNKNOWN_CA = "certificate of an unknown CA"
    EXPIRED = "certificate expired"
    NOT_YET_VALID = "certificate not yet valid"
    REVOKED = "certificate revoked"
    NAME = "certificate names nobody here"
    PIN = "certificate of another CA than the pinned one"
    CERTIFICATE = "certificate not good for this"
    PROTOCOL = "no protocol spoken here"
    BROKEN = "handshake broken"
    REFUSED_US = "the other end refused"
    GONE = "gone before the handshake ended"
    SLOW = "too slow"
    TOO_MANY = "too many connections"


class Refusal(NamedTuple):
    """One connection that was refused or ended, to be recorded. Nothing here is secret."""

    address: str  # the peer's, host:port
    reason: Reason
    detail: str = ""  # what was wrong, and whose certificate it was as far as that was proved


class Doubt(NamedTuple):
    """Why a chain is not believed."""

    reason: Reason
    detail: str


class Chain(NamedTuple):
    """What has to be known of a verified chain for as long as its connection lives."""

    name: Spiffe
    anchor: AuthorityKey
    serials: frozenset[SerialKey]  # of all its certificates
    begin_ns: int  # from when all of it is valid
    end_ns: int  # until when
    serial: str  # of the leaf, in hex
    spki: str  # the leaf's, as ``spki`` gives it

    @staticmethod
    def of(certificates: Sequence[x509.Certificate]) -> Chain:
        """From the leaf to the CA. Raises ValueError when the leaf names no node."""
        return Chain(
            name_of(certificates[0]),
            _authority(certificates[-1]),
            frozenset((c.issuer.public_bytes(), c.serial_number) for c in certificates),
            max(_ns(c.not_valid_before_utc) for c in certificates),
            min(_ns(c.not_valid_after_utc) for c in certificates),
            f"{certificates[0].serial_number:x}",
            spki(certificates[0]),
        )


class Trust(NamedTuple):
    """One bundle and its CRLs, as they were read."""

    authorities: tuple[x509.Certificate, ...]
    anchors: frozenset[AuthorityKey]
    revoked: frozenset[SerialKey]

    @staticmethod
    def read(bundle: bytes, crl: bytes) -> Trust:
        """From PEM. Raises ValueError for what is no CA, and for a CRL that none of these CAs has signed.

        A CRL past its next update stays in force: what it revoked is not to come back."""
        authorities = tuple(x509.load_pem_x509_certificates(bundle))
        if len(authorities) > CAS_MAX:
            raise ValueError(f"{len(authorities)} CAs in the bundle, the most is {CAS_MAX}")
        for authority in authorities:
            if not is_ca(authority):
                raise ValueError(f"{authority.subject.rfc4514_string()} in the bundle is no CA")
        revoked: set[SerialKey] = set()
        for pem in _CRL.findall(crl):
            revoked |= _revoked(x509.load_pem_x509_crl(pem), authorities)
        if crl.strip() and not _CRL.search(crl):
            raise ValueError("no CRL in what should hold some")
        return Trust(authorities, frozenset(map(_authority, authorities)), frozenset(revoked))

    def doubt(self, chain: Chain, now_ns: int) -> Doubt | None:
        """Why ``chain`` is not believed at this time; None: it is."""
        if chain.anchor not in self.anchors:
            return Doubt(Reason.UNKNOWN_CA, f"{chain.name}: its CA is trusted no more")
        if not chain.serials.isdisjoint(self.revoked):
            serials = sorted(f"{serial:x}" for _, serial in chain.serials & self.revoked)
            return Doubt(Reason.REVOKED, f"{chain.name} serial={','.join(serials)}")
        if now_ns < chain.begin_ns:
            return Doubt(Reason.NOT_YET_VALID, f"{chain.name} from={rfc3339(chain.begin_ns)}")
        if now_ns >= chain.end_ns:
            return Doubt(Reason.EXPIRED, f"{chain.name} until={rfc3339(chain.end_ns)}")
        return None


def _revoked(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> set[SerialKey]:
    issuer = crl.issuer.public_bytes()
    keys = [a.public_key() for a in authorities if a.subject.public_bytes() == issuer]
    if not any(crl.is_signature_valid(key) for key in keys):  # type: ignore[arg-type]
        raise ValueError(f"the CRL of {crl.issuer.rfc4514_string()} is signed by no CA in the bundle")
    for extension in crl.extensions:
        if extension.critical:  # it is a part of a list, or about others' certificates: not what is read here
            raise ValueError(f"the CRL of {crl.issuer.rfc4514_string()} is partial: {extension.oid}")
    return {(issuer, entry.serial_number) for entry in crl}


def spki(certificate: x509.Certificate) -> str:
    """The SHA-256 of its public key (SubjectPublicKeyInfo, DER), in hexadecimal: what a CA is pinned by."""
    return sha256(_key(certificate)).hexdigest()


def _authority(certificate: x509.Certificate) -> AuthorityKey:
    return certificate.subject.public_bytes(), _key(certificate)


def _key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _ns(time: datetime) -> int:
    return int(time.timestamp()) * SECOND
