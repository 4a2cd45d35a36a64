"""The hive's private keys: a directory of files, each one key for one use, never written twice.

    keys/<what>-<id>.key      what: ca, queen (P-256), token, merkle, policy (Ed25519); id: id_of it

The directory is 0700 and the files 0600, or nothing is read. A file is written beside its place, synced, and
linked there when it is whole: a key that was half written when the power went is no key, and is swept away.
Which of the keys is used for what, the ledger says (core.py), not this directory.

How files are covered on the disk, SKEP_KMS says:

    (not set)                                       as they are, PKCS #8 in PEM: the file's mode protects them
    file:/path/to/kek                               with AES-256-GCM under the 32 random bytes in that file
    pkcs11:/path/module.so?token=LABEL&pin-file=/p  with an AES key that stays in the HSM; the CA's key is
                                                    made in the HSM, signs there, is in no file (hsm.py)

A kek file that is missing is made while there is no key to lose; later that is an error, and so is anything
else that does not fit. Nothing that is there is ever overwritten. Keys are told to nobody: not in messages,
not in a repr.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from skep.trace.whole import sync

CURVED: Final = ("ca", "queen")  # what TLS peers and HSMs both know
PLAIN: Final = ("token", "merkle", "policy")
FILE_MAX: Final = 65536  # bytes of a key file
KEK_SIZE: Final = 32
NONCE_SIZE: Final = 12
_NEW: Final = ".new"  # the end of a name that is being written

Private = EllipticCurvePrivateKey | Ed25519PrivateKey


class KeyStoreError(Exception):
    """The keys cannot be used as they are; the text names the file and says what was expected, no more."""


class Cover(Protocol):
    """How a key's file is kept from those who only have the disk. ``name``: the file's, which is bound in."""

    header: bytes  # what its files begin with

    def cover(self, name: str, key: bytes) -> bytes: ...

    def uncover(self, name: str, data: bytes) -> bytes:
        """The key. Raises KeyStoreError when the data is not what ``cover`` made under this name."""

    def close(self) -> None: ...


class Safe(Protocol):
    """What keeps a kind of keys itself, and signs with them."""

    def make(self, what: str) -> EllipticCurvePrivateKey: ...

    def find(self, what: str, id: str) -> EllipticCurvePrivateKey | None: ...

    def forget(self, what: str, id: str) -> None: ...


class Keys:
    """The keys in a directory; for one process at a time."""

    def __init__(self, directory: Path, cover: Cover, safes: dict[str, Safe]) -> None:
        self.directory = directory
        self._cover = cover
        self._safes = safes  # by kind; what is not there is in files
        self._read_before: dict[str, Private] = {}  # by name; tokens are signed and read all the time

    @staticmethod
    def open(directory: Path, kms: str = "") -> Keys:
        """The store at ``directory``, made when it is missing. Raises KeyStoreError."""
        _own_directory(directory)
        for path in directory.glob(f".*{_NEW}"):
            path.unlink()
        scheme, _, rest = kms.partition(":")
        match scheme:
            case "":
                return Keys(directory, Bare(), {})
            case "file":
                kek = _kek(_absolute(rest), new=not any(directory.glob("*.key")))
                return Keys(directory, Sealed(kek, rest), {})
            case "pkcs11":
                return _in_hsm(directory, rest)
        raise KeyStoreError(
            f"SKEP_KMS={scheme}:…: expected file:/path or pkcs11:/module.so?token=…&pin-file=…"
        )

    def make(self, what: str) -> str:
        """A new key, on disk or in the HSM when this returns; its id."""
        if what in self._safes:
            return id_of(self._safes[what].make(what))
        key: Private = generate_private_key(SECP256R1()) if what in CURVED else Ed25519PrivateKey.generate()
        id = id_of(key)
        name = f"{what}-{id}.key"
        _write(self.directory / name, self._cover.cover(name, _der(key)))
        return id

    def curved(self, what: str, id: str) -> EllipticCurvePrivateKey:
        """A key of a CURVED kind. Raises KeyStoreError."""
        if what in self._safes:
            found = self._safes[what].find(what, id)
            if found is None:
                raise KeyStoreError(f"{what} {id}: there is no such key in the HSM")
            return found
        key = self._read(what, id)
        assert isinstance(key, EllipticCurvePrivateKey), what
        return key

    def plain(self, what: str, id: str) -> Ed25519PrivateKey:
        """A key of a PLAIN kind. Raises KeyStoreError."""
        key = self._read(what, id)
        assert isinstance(key, Ed25519PrivateKey), what
        return key

    def ids(self, what: str) -> list[str]:
        """Those of a kind that is in files."""
        names = (path.name for path in self.directory.glob(f"{what}-*.key"))
        return sorted(name.removeprefix(f"{what}-").removesuffix(".key") for name in names)

    def forget(self, what: str, id: str) -> None:
        """Destroy a key that is needed no more; whether it was there or not."""
        if what in self._safes:
            self._safes[what].forget(what, id)
            return
        self._read_before.pop(f"{what}-{id}.key", None)
        (self.directory / f"{what}-{id}.key").unlink(missing_ok=True)
        sync(self.directory)

    def close(self) -> None:
        self._cover.close()

    def _read(self, what: str, id: str) -> Private:
        name = f"{what}-{id}.key"
        if name not in self._read_before:
            self._read_before[name] = self._opened(name, id)
        return self._read_before[name]

    def _opened(self, name: str, id: str) -> Private:
        path = self.directory / name
        data = self._cover.uncover(name, read_private(path, FILE_MAX))
        try:
            key = load_der_private_key(data, None)
        except (ValueError, TypeError):
            raise KeyStoreError(f"{path} is damaged: expected a private key") from None
        if not isinstance(key, EllipticCurvePrivateKey | Ed25519PrivateKey) or id_of(key) != id:
            raise KeyStoreError(f"{path} holds another key than its name says")
        return key


def id_of(key: Private | EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """64 hex digits: of an Ed25519 key, the public key; else SHA-256 of the SubjectPublicKeyInfo."""
    public = key.public_key() if isinstance(key, EllipticCurvePrivateKey | Ed25519PrivateKey) else key
    if isinstance(public, Ed25519PublicKey):
        return public.public_bytes_raw().hex()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


# covers


class Bare:
    """PEM, for those who trust their disk."""

    header = b"-----BEGIN PRIVATE KEY-----"

    def cover(self, name: str, key: bytes) -> bytes:
        private = load_der_private_key(key, None)
        return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def uncover(self, name: str, data: bytes) -> bytes:
        check_header(self, name, data)
        try:
            return _der(load_pem_private_key(data, None))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            raise KeyStoreError(f"{name} is damaged: expected a private key in PEM") from None

    def close(self) -> None:
        """Nothing is open."""


class Sealed:
    """nonce[12] ciphertext tag[16] behind the header: AES-256-GCM, the file's name with it."""

    header = b"skep sealed key 1 file\n"

    def __init__(self, kek: bytes, where: str) -> None:
        self._cipher = AESGCM(kek)
        self._where = where

    def cover(self, name: str, key: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_SIZE)
        return self.header + nonce + self._cipher.encrypt(nonce, key, name.encode())

    def uncover(self, name: str, data: bytes) -> bytes:
        nonce, sealed = parted(check_header(self, name, data))
        try:
            return self._cipher.decrypt(nonce, sealed, name.encode())
        except (InvalidTag, ValueError):
            why = f"it was sealed with another key than that in {self._where}, or is damaged"
            raise KeyStoreError(f"{name} does not open: {why}") from None

    def close(self) -> None:
        """Nothing is open."""


def check_header(cover: Cover, name: str, data: bytes) -> bytes:
    """What is behind the header."""
    if not data.startswith(cover.header):
        said = cover.header.decode().strip()
        raise KeyStoreError(f"{name} was kept under another SKEP_KMS, or is damaged: expected {said!r} first")
    return data[len(cover.header) :]


def parted(data: bytes) -> tuple[bytes, bytes]:
    """Nonce and ciphertext."""
    return data[:NONCE_SIZE], data[NONCE_SIZE:]


def _kek(path: Path, new: bool) -> bytes:
    """The key in the file. ``new``: no key was sealed with the one that is missing, so it may be made."""
    if new and not path.exists():
        _write(path, secrets.token_bytes(KEK_SIZE))
    kek = read_private(path, KEK_SIZE + 1)
    if len(kek) != KEK_SIZE:
        raise KeyStoreError(f"{path} is no key: expected {KEK_SIZE} random bytes")
    return kek


def _in_hsm(directory: Path, rest: str) -> Keys:
    # Optional: without python-pkcs11 the other drivers work.
    try:
        from skep.namespaces.trust.hsm import Hsm
    except ImportError:
        raise KeyStoreError("SKEP_KMS=pkcs11:…: python-pkcs11 is missing: pip install skep[pkcs11]") from None
    module, _, query = rest.partition("?")
    said = dict(parse_qsl(query))
    if said.keys() != {"token", "pin-file"}:
        # Not which: who writes pin-value= means it to stay a secret.
        raise KeyStoreError("SKEP_KMS=pkcs11:…: expected /module.so?token=LABEL&pin-file=/path, no more")
    pin = read_private(_absolute(said["pin-file"]), FILE_MAX).decode("utf-8", "replace").strip("\r\n")
    new = not any(directory.glob("*.key"))
    hsm = Hsm(_absolute(module), said["token"], pin, new)
    return Keys(directory, hsm, {"ca": hsm})


def _absolute(text: str) -> Path:
    path = Path(text.removeprefix("//"))
    if not path.is_absolute():
        raise KeyStoreError(f"SKEP_KMS: {text}: expected an absolute path")
    return path


# the disk


def _own_directory(path: Path) -> None:
    """``path`` is a directory that only we can look into; made if it was not there."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
        sync(path.parent)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise KeyStoreError(f"{path} is no directory")
    _check_mine(path, found)


def read_private(path: Path, size_max: int) -> bytes:
    """What is in a file that only we can read. Raises KeyStoreError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyStoreError(f"{path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise KeyStoreError(f"{path} is no file")
        _check_mine(path, found)
        return file.read(size_max)


def _check_mine(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise KeyStoreError(f"{path} belongs to uid {found.st_uid}, not to us")
    if found.st_mode & 0o077:
        raise KeyStoreError(f"{path} can be used by others: chmod go= it")


def _write(path: Path, data: bytes) -> None:
    """A new file, all of it or none, on disk when this returns. Raises KeyStoreError when there is one."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_NEW}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.link(new, path)
        new.unlink()
        sync(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise KeyStoreError(f"{path}: {error.strerror}") from None


def _der(key: Private) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
