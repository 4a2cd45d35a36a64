"""Ed25519: signing bundles and checking signatures. Public keys are 64 hex digits, signatures 128."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_KEY: Final = re.compile("[0-9a-f]{64}")
_SIGNATURE: Final = re.compile("[0-9a-f]{128}")


class BadKey(Exception):
    """The file holds no Ed25519 key that can be used; the text says why."""


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def is_signature(text: str) -> bool:
    return _SIGNATURE.fullmatch(text) is not None


def verify(key: str, sig: str, said: bytes) -> bool:
    """Whether ``sig`` is the key's signature of ``said``; both are well-formed."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(sig), said)
    except InvalidSignature:
        return False
    return True


class Signer:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = raw.hex()

    def sign(self, said: bytes) -> str:
        return self._key.sign(said).hex()


def load(path: Path) -> Signer:
    """The key in a PEM file (PKCS 8). Raises BadKey, OSError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise BadKey(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{path}: expected an Ed25519 key")
    return Signer(key)


def create(path: Path) -> Signer:
    """A new key, in a file that only its owner can read. Raises FileExistsError when there is a file."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Whole or not there: another process may look for it at this moment.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, path)
    finally:
        new.unlink()
    return Signer(key)


def load_or_create(path: Path) -> Signer:
    """The key of a file, made when there is none."""
    try:
        return load(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return create(path)
    except FileExistsError:
        return load(path)
