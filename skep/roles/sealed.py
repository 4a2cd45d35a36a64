"""Where manifests come from, and whose signature they must have.

A manifest is the file ``<role>.ns`` of one directory: the one that SKEP_MANIFESTS names, else the one of this
release. Where SKEP_MANIFEST_ROOT names a file with an Ed25519 public key (PEM), each must have a signature by
that key beside it, ``<role>.ns.sig``: one line, base64. It is of the role and the text both, so that one
role's manifest cannot be put in another's place. One that is missing, or not good, is no manifest; nothing is
looked for elsewhere then. The same key signs a queen's configuration (configuration.py).
"""

from __future__ import annotations

import base64
import binascii
import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DIRECTORY: Final = "SKEP_MANIFESTS"
ENROLLING: Final = "enrolling"  # the manifest of those who have no certificate yet; nobody can be given it
ROOT: Final = "SKEP_MANIFEST_ROOT"
SIGNATURE_SIZE: Final = 64  # bytes, of Ed25519
CONFIGURATION: Final = b"skep configuration\n"  # before what is signed of one: no manifest's text begins so


class ManifestError(Exception):
    """The manifest cannot be used; the text names it, the line, and what was expected."""


class Source(NamedTuple):
    """A directory of manifests. ``root``: the key that must have signed them; None: none need have."""

    directory: Traversable
    root: Ed25519PublicKey | None = None

    @classmethod
    def told(cls) -> Source:
        """What the environment says. Raises ManifestError."""
        directory, root = os.environ.get(DIRECTORY), os.environ.get(ROOT)
        return cls(
            Path(directory) if directory else resources.files("skep.roles"),
            public_key(Path(root)) if root else None,
        )

    def roles(self) -> list[str]:
        """The roles that have a manifest here and that somebody may be given. Raises ManifestError."""
        try:
            files = [file.name for file in self.directory.iterdir()]
        except OSError as error:
            raise ManifestError(f"{self.directory}: {error.strerror}") from error
        found = (name.removesuffix(".ns") for name in files if name.endswith(".ns"))
        return sorted(role for role in found if role != ENROLLING)

    def text(self, role: str) -> bytes:
        """The text of a role's manifest. Raises ManifestError."""
        if not role.replace("-", "").isalnum():
            raise ManifestError(f"role {role!r}: expected one of {' '.join(self.roles())}")
        text = self._read(f"{role}.ns")
        if text is None:
            raise ManifestError(f"role {role!r} has no manifest: expected one of {' '.join(self.roles())}")
        if self.root is not None:
            check(role, text, self._read(f"{role}.ns.sig"), self.root)
        return text

    def _read(self, name: str) -> bytes | None:
        """None: there is no such file."""
        try:
            return self.directory.joinpath(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ManifestError(f"{self.directory}/{name}: {error.strerror}") from error


def check(role: str, text: bytes, signature: bytes | None, root: Ed25519PublicKey) -> None:
    """Raise ManifestError unless ``signature`` (None: there is none) is the root's, of this manifest."""
    _check(f"{role}.ns", _signed(role, text), signature, root)


def check_configuration(path: Path, text: bytes, root: Ed25519PublicKey) -> None:
    """Raise ManifestError unless what stands beside ``path`` is the root's signature of its ``text``."""
    beside = Source(path.parent)._read(f"{path.name}.sig")
    _check(path.name, CONFIGURATION + text, beside, root)


def _check(file: str, signed: bytes, signature: bytes | None, root: Ed25519PublicKey) -> None:
    from cryptography.exceptions import InvalidSignature

    name = f"{file}.sig"
    if signature is None:
        raise ManifestError(f"{name}: missing, and {ROOT} asks for a signature of {file}")
    try:
        raw = base64.b64decode(signature.strip(), validate=True)
    except binascii.Error as error:
        raise ManifestError(f"{name}: expected a signature in base64: {error}") from error
    if len(raw) != SIGNATURE_SIZE:
        raise ManifestError(f"{name}: {len(raw)} bytes are no Ed25519 signature, which has {SIGNATURE_SIZE}")
    try:
        root.verify(raw, signed)
    except InvalidSignature:
        raise ManifestError(f"{name}: not a signature of {file} by the key of {ROOT}") from None


def sign(role: str, text: bytes, key: Ed25519PrivateKey) -> bytes:
    """What goes into ``<role>.ns.sig``."""
    return base64.b64encode(key.sign(_signed(role, text))) + b"\n"


def sign_configuration(text: bytes, key: Ed25519PrivateKey) -> bytes:
    """What goes beside a configuration, NAME.sig."""
    return base64.b64encode(key.sign(CONFIGURATION + text)) + b"\n"


def _signed(role: str, text: bytes) -> bytes:
    return f"skep manifest {role}\n".encode() + text


def public_key(path: Path) -> Ed25519PublicKey:
    """The key in a PEM file. Raises ManifestError."""
    from skep.trace.pem import PemError
    from skep.trace.pem import public_key as read

    try:
        return read(path)
    except PemError as error:
        raise ManifestError(str(error)) from error


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file that is not encrypted. Raises ManifestError."""
    from skep.trace.pem import PemError
    from skep.trace.pem import private_key as read

    try:
        return read(path)
    except PemError as error:
        raise ManifestError(str(error)) from error
