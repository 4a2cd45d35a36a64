"""The hive's authority: it holds the private keys, and signs what the ledger says was granted.

A certificate is made from its record, so a lost answer can be made again: all but the CA's signature, which
has chance in it, is the same each time. It says what X509-SVID says it should: one URI, the name; a key for
signatures; for the ends of connections. A node's is good for the end that dials, a queen's for both.

A CA that takes over is signed by itself and, for those who know only the one before it, by that. As long as
both are trusted a queen shows both: whoever knows either, or has a pin of either, believes it.

Sources: RFC 5280; RFC 2986 (requests); X509-SVID (github.com/spiffe/spiffe).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skep.fs import ctl
from skep.fs.errors import E, FsError
from skep.fs.identity import Pem
from skep.fs.spiffe import Spiffe
from skep.namespaces.trust import core, record, verbs
from skep.namespaces.trust.keys import Keys, KeyStoreError, id_of
from skep.namespaces.trust.record import Certificate, Key, Trust
from skep.namespaces.trust.verbs import INVITED_ROLES
from skep.trace.checkpoint import handover_text, origin_of
from skep.trace.clock import SECOND, Clock, SystemClock, duration, rfc3339
from skep.trace.note import Vkey

log = logging.getLogger("skep.trust")
NODE_TTL_NS: Final = core.DAY  # of a node's certificate, unless it is told otherwise
CA_YEARS: Final = 10
CRL_NS: Final = core.DAY  # from one CRL to the one that is due next; a new one is made at half of it
CSR_MAX: Final = 16384  # bytes: a request is some hundred
PLACE: Final = "/trust/keys"  # where the hive writes its own lines

Say = Callable[[str, str], Awaitable[None]]  # writes a line to a path as the hive; raises FsError


class AuthorityError(Exception):
    """This authority cannot sign for this hive; the text says why."""


class Authority:
    """The keys, and what is signed with them. Everything happens on the hive's event loop."""

    def __init__(
        self,
        keys: Keys,
        ttl_ns: int = NODE_TTL_NS,
        roles: Collection[str] = INVITED_ROLES,
        clock: Clock | None = None,
    ) -> None:
        """``ttl_ns``: of a node's certificate. ``roles``: those that have a manifest and may be invited."""
        if not core.TTL_MIN_NS <= ttl_ns <= core.TTL_MAX_NS:
            raise AuthorityError(f"certificates of {duration(ttl_ns)}: expected 10s to 168h")
        self.ttl = duration(ttl_ns)
        self.roles = frozenset(roles) & frozenset(INVITED_ROLES)
        self.changed: list[Callable[[], None]] = []  # called when queen_pem gives something else than before
        self._keys = keys
        self._clock = clock or SystemClock()
        self._trust: Callable[[], Trust] = Trust
        self._say: Say | None = None  # None: it has not begun
        self._queen = Spiffe("", "", "")
        self._tending = asyncio.Lock()
        self._crl = b""  # b"": to be made
        self._crl_until_ns = 0

    @staticmethod
    def open(
        directory: Path,
        kms: str = "",
        ttl_ns: int = NODE_TTL_NS,
        roles: Collection[str] = INVITED_ROLES,
        clock: Clock | None = None,
    ) -> Authority:
        """With the keys in ``directory``/keys. Raises KeyStoreError, AuthorityError."""
        return Authority(Keys.open(directory / "keys", kms), ttl_ns, roles, clock)

    def close(self) -> None:
        self._keys.close()

    # the hive's life

    async def begin(self, queen: Spiffe, trust: Callable[[], Trust], say: Say) -> None:
        """Sign for the hive whose state ``trust`` gives, as the queen of that name; found it if it is new.

        Raises AuthorityError, KeyStoreError, and what ``say`` raises."""
        self._queen, self._trust, self._say = queen, trust, say
        if not trust().hive:
            await say(PLACE, self._founding())
        if trust().hive != queen.hive:
            raise AuthorityError(f"this hive is called {trust().hive}, not {queen.hive}")
        for what in verbs.KINDS:
            for key in trust().keys[what]:
                if key.retired:
                    self._keys.forget(what, key.id)  # a crash may have come first
                else:
                    self._check(key)
        async with self._tending:
            await self._tend()

    def _founding(self) -> str:
        ids = {what: self._keys.make(what) for what in verbs.KINDS}
        certificate, until_ns = self._root(self._queen.hive, self._keys.curved("ca", ids["ca"]))
        more = {"certificate": certificate, "until": rfc3339(until_ns)}
        return ctl.line("found", {"hive": self._queen.hive} | ids | more)

    def _check(self, key: Key) -> None:
        """Raises KeyStoreError when its private half is not here."""
        _ = self._keys.curved("ca", key.id) if key.what == "ca" else self._keys.plain(key.what, key.id)

    async def tend(self) -> None:
        """Do what is due: end overlaps, renew the queen's own certificate. What is refused now, because the
        hive is busy or its disk is full, is tried again the next time. Raises FsError(E.IO)."""
        async with self._tending:
            try:
                await self._tend()
            except (FsError, KeyStoreError) as error:
                if isinstance(error, FsError) and error.kind is E.IO:
                    raise
                log.warning("what is due has to wait: %s", error)

    async def _tend(self) -> None:
        assert self._say is not None, "begin comes first"
        for what, id in list(core.due(self._trust(), self._clock.now_ns())):
            await self._say(PLACE, ctl.line("retire", {"what": what, "key": id}))
        if self._is_due():
            said = {"role": self._queen.role, "node": self._queen.node}
            more = {"key": self._public(self._keys.make("queen")), "ttl": duration(core.QUEEN_TTL_MAX_NS)}
            try:
                await self._say(PLACE, ctl.line("issue", said | more))
            finally:
                self._forget_other_own()

    def moved(self, events: Iterable[object]) -> None:
        """The hive's state has moved by these events."""
        trust, anew = self._trust(), False
        for event in events:
            match event:
                case record.Retired(what, id):
                    self._keys.forget(what, id)
                    anew = anew or what == "ca"
                case record.Rotated():
                    anew = anew or event.key.what == "ca"
                case record.Revoked():
                    anew = anew or bool(event.serials)
                case record.Enrolled():
                    anew = anew or event.role in verbs.QUEENS
        if anew and trust.hive:
            self._crl = b""
            if self._own() is not None:
                for tell in self.changed:
                    tell()

    @property
    def pin(self) -> str:
        """Of the CA that signs, as an invite has it."""
        return self._trust().active("ca").id

    # what is made with the keys

    def rotation(self, what: str) -> dict[str, str]:
        """A new key, as the arguments of the line that makes it the one that signs."""
        id = self._keys.make(what)
        if what != "ca":
            vouched = {"cross": self._handover(id)} if what == "merkle" else {}
            return {"key": id, "before": self._trust().active(what).id} | vouched
        old, new = self._trust().active("ca"), self._keys.curved("ca", id)
        certificate, until_ns = self._root(self._queen.hive, new)
        cross = self._sign(_cross(_parsed(certificate), _parsed(old.certificate)), old)
        more = {"certificate": certificate, "until": rfc3339(until_ns), "cross": _text(cross)}
        return {"key": id, "before": old.id} | more

    def discard(self, what: str, id: str) -> None:
        """Destroy a key of ``rotation`` that was refused."""
        self._keys.forget(what, id)

    def sign(self, record: Certificate) -> bytes:
        """The certificate of a record, in PEM; its CA must be trusted still."""
        ca = next(key for key in self._trust().trusted("ca") if key.id == record.ca)
        name = Spiffe(self._trust().hive, record.role, record.node)
        return self._sign(_leaf(record, name, _parsed(ca.certificate)), ca).public_bytes(Encoding.PEM)

    def bundle(self) -> bytes:
        """The CAs that are trusted, in PEM, the one that signs first."""
        return b"".join(_pem(key.certificate) for key in self._trust().trusted("ca"))

    def crl(self) -> bytes:
        """A CRL of each of them, in PEM."""
        now_ns = self._clock.now_ns()
        if not self._crl or now_ns >= self._crl_until_ns - CRL_NS // 2:
            self._crl_until_ns = now_ns + CRL_NS
            self._crl = b"".join(self._list(key, now_ns) for key in self._trust().trusted("ca"))
        return self._crl

    def queen_pem(self) -> Pem:
        """The queen's own identity. Its chain ends in a CA that is trusted by whoever trusts any."""
        own = self._own()
        assert own is not None, "begin comes first"
        above = b"".join(map(_pem, self._above(own.ca)))
        key = self._keys.curved("queen", _id(own.key))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pem(self.sign(own) + above, private, self.bundle(), self.crl())

    def signing_key(self, what: str) -> Ed25519PrivateKey:
        """The private key that signs tokens, tree heads or policies now."""
        return self._keys.plain(what, self._trust().active(what).id)

    def signing_keys(self, what: str) -> list[Ed25519PrivateKey]:
        """The private keys that are trusted, the one that signs first: in an overlap, both may sign."""
        return [self._keys.plain(what, key.id) for key in self._trust().trusted(what)]

    def token_keys(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The private key that signs tokens, and the public ones that are believed, all 32 raw bytes."""
        public = tuple(bytes.fromhex(key.id) for key in self._trust().trusted("token"))
        return self.signing_key("token").private_bytes_raw(), public

    # parts

    def _handover(self, id: str) -> str:
        """The signature, in hex, by which the key of tree heads vouches for the next."""
        origin = origin_of(self._queen.hive)
        text = handover_text(origin, Vkey(origin, bytes.fromhex(id)))
        return self.signing_key("merkle").sign(text.encode()).hex()

    def _own(self) -> Certificate | None:
        """The queen's newest certificate whose key is here; None: there is none that is good."""
        ids = self._keys.ids("queen")
        own = None
        for found in self._trust().good(self._queen.node, self._clock.now_ns()):
            if found.role == self._queen.role and _id(found.key) in ids:
                own = found
        return own

    def _is_due(self) -> bool:
        """Whether the queen needs another one: two thirds of its life are over, or another CA signs."""
        own = self._own()
        if own is None or own.ca != self.pin:
            return True
        return own.end_ns - self._clock.now_ns() < (own.end_ns - own.begin_ns) // 3

    def _above(self, ca: str) -> list[str]:
        """The certificates between what ``ca`` has signed and the CAs that may be known, these too."""
        active, *others = self._trust().trusted("ca")
        if ca != active.id:
            return [key.certificate for key in others if key.id == ca]
        return [active.cross, others[0].certificate] if others else [active.certificate]

    def _forget_other_own(self) -> None:
        """The keys before this one, or one for which there is no certificate: it was refused."""
        own = self._own()
        for id in self._keys.ids("queen"):
            if own is None or id != _id(own.key):
                self._keys.forget("queen", id)

    def _public(self, id: str) -> str:
        public = self._keys.curved("queen", id).public_key()
        return b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()

    def _root(self, hive: str, key: EllipticCurvePrivateKey) -> tuple[str, int]:
        """A CA's certificate by itself, and its end."""
        begin_ns = (self._clock.now_ns() - core.SKEW_NS) // SECOND * SECOND
        end_ns = begin_ns + CA_YEARS * 365 * core.DAY
        name = _name(f"{hive} CA {id_of(key)[:8]}")
        # One CA may stand between it and a leaf: the one that takes over.
        made = _ca(name, name, key.public_key(), begin_ns, end_ns, 1)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        return _text(made.sign(key, SHA256())), end_ns

    def _sign(self, made: x509.CertificateBuilder, ca: Key) -> x509.Certificate:
        return made.sign(self._keys.curved("ca", ca.id), SHA256())

    def _list(self, ca: Key, now_ns: int) -> bytes:
        """The CA's CRL. Its number is the time, which grows."""
        certificate = _parsed(ca.certificate)
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(certificate.subject)
            .last_update(_time(now_ns - core.SKEW_NS))
            .next_update(_time(now_ns + CRL_NS))
            .add_extension(x509.CRLNumber(now_ns), critical=False)
            .add_extension(_key_identifier(certificate), critical=False)
        )
        for found in self._trust().revoked(ca.id):
            entry = x509.RevokedCertificateBuilder(int(found.serial, 16), _time(found.revoked_ns)).build()
            made = made.add_revoked_certificate(entry)
        return made.sign(self._keys.curved("ca", ca.id), SHA256()).public_bytes(Encoding.PEM)


def read_request(pem: str) -> str:
    """The public key for which a CSR asks, as base64 DER, its owner proved. Raises ValueError.

    Nothing else in it is looked at: what a certificate says, the invite says."""
    if len(pem) > CSR_MAX:
        raise ValueError(f"a request of {len(pem)} bytes, expected at most {CSR_MAX}")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        public = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(f"no certificate request in PEM: {error}") from None
    strong = isinstance(public, Ed25519PublicKey) or (
        isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1 | SECP384R1)
    )
    if not strong:
        raise ValueError("the key is of another kind: expected P-256, P-384 or Ed25519")
    if not signed:
        raise ValueError("the request is not signed by the key it asks for")
    return b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


# certificates


def _leaf(record: Certificate, name: Spiffe, ca: x509.Certificate) -> x509.CertificateBuilder:
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if name.is_queen:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    public = load_der_public_key(b64decode(record.key))
    assert isinstance(public, EllipticCurvePublicKey | Ed25519PublicKey), "read_request has looked"
    return (
        x509.CertificateBuilder(ca.subject, _name(record.node), public, int(record.serial, 16))
        .not_valid_before(_time(record.begin_ns))
        .not_valid_after(_time(record.end_ns))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(name))]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_key_identifier(ca), critical=False)
    )


def _ca(
    subject: x509.Name,
    issuer: x509.Name,
    public: EllipticCurvePublicKey,
    begin_ns: int,
    end_ns: int,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, public, secrets.randbits(127) | 1)
        .not_valid_before(_time(begin_ns))
        .not_valid_after(_time(end_ns))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signature=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _cross(new: x509.Certificate, old: x509.Certificate) -> x509.CertificateBuilder:
    """``new``, as those see it who know only ``old``."""
    public = new.public_key()
    assert isinstance(public, EllipticCurvePublicKey)
    begin_ns = int(new.not_valid_before_utc.timestamp()) * SECOND
    end_ns = int(old.not_valid_after_utc.timestamp()) * SECOND
    made = _ca(new.subject, old.subject, public, begin_ns, end_ns, 0)
    return made.add_extension(_key_identifier(old), critical=False)


def _usage(signature: bool) -> x509.KeyUsage:
    """For signing handshakes, or certificates and CRLs."""
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signature,
        crl_sign=not signature,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _time(time_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // SECOND)


def _id(key: str) -> str:
    """Of a public key in base64, as the key store has it."""
    return hashlib.sha256(b64decode(key)).hexdigest()


def _text(certificate: x509.Certificate) -> str:
    """As a line holds it."""
    return b64encode(certificate.public_bytes(Encoding.DER)).decode()


def _parsed(text: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(b64decode(text))


def _pem(text: str) -> bytes:
    return _parsed(text).public_bytes(Encoding.PEM)
