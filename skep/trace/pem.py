"""Ed25519 keys in PEM files, as ``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key


class PemError(Exception):
    """The file holds no Ed25519 key that can be used; the text names it and says why."""


def public_key(path: Path) -> Ed25519PublicKey:
    """Raises PemError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PemError(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PemError(f"{path}: expected an Ed25519 public key")
    return key


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key, which must not be encrypted. Raises PemError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise PemError(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PemError(f"{path}: expected an Ed25519 private key")
    return key
