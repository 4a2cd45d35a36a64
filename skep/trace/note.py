"""Signed notes: a text and the Ed25519 signatures under it, in the form that transparency logs share.

    text, one or more lines
    <empty line>
    — <key name> base64(key id[4] signature[64])

A key goes by its name and its id, and is written <name>+<id in hex>+<base64(kind[1] public[32])>. Of two
kinds of keys what they sign is known here: 0x01 signs the text, 0x04 says since when it knows it
(cosignature.py). Sources: c2sp.org/signed-note, tlog-cosignature; golang.org/x/mod/sumdb/note (keys as
text)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519: Final = b"\x01"
COSIGNER: Final = b"\x04"
TIME_SIZE: Final = 8  # bytes of the time before a cosignature
NOTE_MAX: Final = 64 * 1024  # bytes; a checkpoint with twenty signatures has 3 KiB
SIGNATURES_MAX: Final = 64  # of one note; the text asks for 16 at least
PREFIX: Final = "— "

_NAME: Final = re.compile(r"[^\s+]+")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteError(ValueError):
    """It is no note, or is not signed as it has to be; the text says why."""


class UnknownSigner(NoteError):
    """None of those who are known has signed it."""


class Vkey(NamedTuple):
    """A public key and its name: who may have signed. ``kind``: ED25519 or COSIGNER."""

    name: str
    public: bytes
    kind: bytes = ED25519

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self.kind + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(self.kind + self.public).decode()}"

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether it is ours under ``text``; of a cosigner with its time before it."""
        if self.kind == COSIGNER:
            text = cosigned_text(int.from_bytes(signature[:TIME_SIZE], "big"), text)
            signature = signature[TIME_SIZE:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


def cosigned_text(time_s: int, text: str) -> str:
    """What a cosigner signs under ``text``, in seconds since 1970."""
    return f"cosignature/v1\ntime {time_s}\n{text}"


def parse_vkey(text: str, kind: bytes = ED25519) -> Vkey:
    """A key of one kind: who signs for a log is not who cosigns it. Raises NoteError."""
    name, _, rest = text.partition("+")
    id, _, key = rest.partition("+")
    data = _decoded(key)
    if not _NAME.fullmatch(name) or data[:1] != kind or len(data) != 33:
        raise NoteError(f"key {text!r}: expected <name>+<id>+<base64> of an Ed25519 key of kind {kind.hex()}")
    vkey = Vkey(name, data[1:], kind)
    if str(vkey) != text:
        raise NoteError(f"key {text!r}: its id is {vkey.id.hex()}, not {id}")
    return vkey


class Signing(NamedTuple):
    """A private key: its public half, and what signs with it."""

    public: bytes
    sign: Callable[[bytes], bytes]

    @staticmethod
    def of(key: Ed25519PrivateKey) -> Signing:
        return Signing(key.public_key().public_bytes_raw(), key.sign)


class Note(NamedTuple):
    """``text`` ends in a newline; ``signatures``: key name, key id and signature together, not checked."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]

    def signers(self, known: Iterable[Vkey]) -> list[Vkey]:
        """Those of ``known`` that have signed it. Raises UnknownSigner when none has, NoteError
        when one has signed another text."""
        found = []
        for vkey in known:
            for name, data in self.signatures:
                if (name, data[:4]) == (vkey.name, vkey.id):
                    if not vkey.verifies(data[4:], self.text):
                        raise NoteError(f"the signature of {vkey} is of another text")
                    found.append(vkey)
        if not found:
            by = " ".join(f"{name}+{data[:4].hex()}" for name, data in self.signatures)
            raise UnknownSigner(f"signed by {by}: expected a key that is known")
        return found


def parse_note(data: bytes) -> Note:
    """Raises NoteError."""
    if len(data) > NOTE_MAX:
        raise NoteError(f"a note of {len(data)} bytes, expected at most {NOTE_MAX}")
    try:
        said = data.decode()
    except UnicodeDecodeError as error:
        raise NoteError(f"byte {error.start} is not UTF-8") from None
    if _CONTROL.search(said):
        raise NoteError("there is a control character in the note")
    text, empty, below = said.rpartition("\n\n")
    if not empty or not below.endswith("\n"):
        raise NoteError("expected a text, an empty line and signatures")
    lines = below[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"{len(lines)} signatures, expected at most {SIGNATURES_MAX}")
    return Note(text + "\n", tuple(map(_signature, lines)))


def _signature(line: str) -> tuple[str, bytes]:
    name, _, rest = line.removeprefix(PREFIX).partition(" ")
    data = _decoded(rest)
    if not line.startswith(PREFIX) or not _NAME.fullmatch(name) or len(data) < 5:
        raise NoteError(f"{line!r}: expected a signature, — name base64")
    return name, data


def sign_note(text: str, name: str, keys: Sequence[Signing]) -> bytes:
    """The note of ``text``, signed by each key under the same name."""
    assert text.endswith("\n")
    assert _NAME.fullmatch(name), name
    lines = [signature_line(Vkey(name, key.public), key.sign(text.encode())) for key in keys]
    return f"{text}\n{''.join(lines)}".encode()


def signature_line(key: Vkey, signature: bytes) -> str:
    """As it stands under a note."""
    return f"{PREFIX}{key.name} {b64encode(key.id + signature).decode()}\n"


def _decoded(text: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        return b""
    # One text for one value: what is left over in the last character must be nothing.
    return data if b64encode(data).decode() == text else b""
