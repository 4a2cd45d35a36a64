"""A key store's HSM: the CA's key is made in it and never leaves it, an AES key in it covers the others.

What makes certificates wants a private key that signs: an HsmKey is one, whose sign is the HSM's. Needs
python-pkcs11. Everything here blocks while the HSM works: a software HSM for a millisecond.

Sources: PKCS #11 v3.0; RFC 7512 names what we say in a query, token and pin.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import pkcs11
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePrivateNumbers,
    EllipticCurvePublicKey,
    EllipticCurveSignatureAlgorithm,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_ec_public_key, encode_ecdsa_signature, encode_named_curve_parameters

from skep.namespaces.trust.keys import NONCE_SIZE, KeyStoreError, check_header, id_of, parted

KEK_LABEL: Final = "skep kek"
"""Of the AES key that covers files. Its loss is the loss of all but the CA's key."""


class Hsm:
    """One token of a PKCS #11 module, logged in to."""

    header = b"skep sealed key 1 pkcs11\n"

    def __init__(self, module: Path, label: str, pin: str, new: bool) -> None:
        """``new``: there is no key yet to be covered, so the key that covers may be made."""
        self._where = f"token {label} of {module.name}"
        self._session = _login(module, label, pin, self._where)
        self._kek = self._find(ObjectClass.SECRET_KEY, label=KEK_LABEL)
        if self._kek is None and new:
            self._kek = self._session.generate_key(
                KeyType.AES, 256, label=KEK_LABEL, store=True, template=_STAYS
            )
        if self._kek is None:
            raise KeyStoreError(f"{self._where} has no {KEK_LABEL!r}: the keys in files were covered with it")

    def close(self) -> None:
        self._session.close()

    # as a Cover

    def cover(self, name: str, key: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_SIZE)
        sealed = self._kek.encrypt(
            key, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, name.encode())
        )
        return self.header + nonce + bytes(sealed)

    def uncover(self, name: str, data: bytes) -> bytes:
        nonce, sealed = parted(check_header(self, name, data))
        try:
            return bytes(
                self._kek.decrypt(
                    sealed, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, name.encode())
                )
            )
        except pkcs11.PKCS11Error:
            why = f"it was covered with another key than that in {self._where}, or is damaged"
            raise KeyStoreError(f"{name} does not open: {why}") from None

    # as a Safe

    def make(self, what: str) -> EllipticCurvePrivateKey:
        """A new P-256 key in the HSM."""
        domain = self._session.create_domain_parameters(
            KeyType.EC,
            {Attribute.EC_PARAMS: encode_named_curve_parameters(SECP256R1.name)},
            local=True,
        )
        public, private = domain.generate_keypair(store=True, label=_label(what), private_template=_STAYS)
        key = HsmKey(private, public)
        # It is found by the hash of its public key, which has only just come to be.
        for half in (public, private):
            half[Attribute.ID] = bytes.fromhex(id_of(key))
        return key

    def find(self, what: str, id: str) -> EllipticCurvePrivateKey | None:
        halves = [self._half(kind, what, id) for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)]
        return HsmKey(*halves) if all(half is not None for half in halves) else None

    def forget(self, what: str, id: str) -> None:
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            half = self._half(kind, what, id)
            if half is not None:
                half.destroy()

    def _half(self, kind: ObjectClass, what: str, id: str) -> Any:
        return self._find(kind, label=_label(what), id=bytes.fromhex(id))

    def _find(self, kind: ObjectClass, **named: Any) -> Any:
        try:
            return self._session.get_key(object_class=kind, **named)
        except pkcs11.NoSuchKey:
            return None
        except pkcs11.MultipleObjectsReturned:
            raise KeyStoreError(f"{self._where} has more than one {named['label']!r}") from None


class HsmKey(EllipticCurvePrivateKey):
    """A private key that is not here. It signs, and gives nothing away."""

    def __init__(self, private: Any, public: Any) -> None:
        self._private = private
        found = load_der_public_key(encode_ec_public_key(public))
        assert isinstance(found, EllipticCurvePublicKey)
        self._public = found

    def sign(self, data: Any, signature_algorithm: EllipticCurveSignatureAlgorithm) -> bytes:
        assert isinstance(signature_algorithm, ECDSA)
        assert isinstance(signature_algorithm.algorithm, SHA256), "P-256 goes with SHA-256"
        digest = hashlib.sha256(data).digest()
        try:
            return encode_ecdsa_signature(self._private.sign(digest, mechanism=Mechanism.ECDSA))
        except pkcs11.PKCS11Error as error:
            raise KeyStoreError(f"the HSM does not sign: {type(error).__name__}") from None

    def public_key(self) -> EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> SECP256R1:
        return SECP256R1()

    @property
    def key_size(self) -> int:
        return 256

    def exchange(self, algorithm: ECDH, peer_public_key: EllipticCurvePublicKey) -> NoReturn:
        raise TypeError("this key is for signatures")

    def private_numbers(self) -> EllipticCurvePrivateNumbers:
        raise TypeError("this key stays in the HSM")

    def private_bytes(self, *form: Any) -> NoReturn:
        raise TypeError("this key stays in the HSM")

    def __copy__(self) -> HsmKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HsmKey:
        return self


_STAYS: Final = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}


def _label(what: str) -> str:
    return f"skep {what}"


def _login(module: Path, label: str, pin: str, where: str) -> Any:
    try:
        token = pkcs11.lib(str(module)).get_token(token_label=label)
        return _session(lambda **more: token.open(rw=True, **more), pin)
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
        raise KeyStoreError(f"{where}: the PIN in the pin-file is not its PIN") from None
    except pkcs11.NoSuchToken:
        raise KeyStoreError(f"{where}: there is no such token") from None
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        raise KeyStoreError(f"{where}: {type(error).__name__} {error}".rstrip()) from None


def _session(opened: Callable[..., Any], pin: str) -> Any:
    try:
        return opened(user_pin=pin)
    except pkcs11.UserAlreadyLoggedIn:  # this process is logged in, and so is each of its sessions
        return opened()
