"""The signed catalogue: what every kernel takes and gives, and the SHA-256 of what decides what runs.

It is one line of canonical JSON: keys in order, no space, ASCII. Beside it, FILE.sig: one line, base64, an
Ed25519 signature of a title and the text, so that it can stand for nothing else that the key signs."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skep.native.kernels.catalogue import KERNELS, Kernel, described

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TITLE: Final = b"skep kernels\n"
FORMAT: Final = 2
SIZE_MAX: Final = 1 << 20  # bytes of a catalogue: a thousand kernels


class SignatureError(Exception):
    """The catalogue is not one, or not signed by the key; the text names it and what was expected."""


class SourceError(Exception):
    """The kernel's row or source is not the signed one; the text says what is not."""


def canonical() -> bytes:
    """The catalogue of the kernels that are here."""
    catalogue = {"format": FORMAT, "kernels": {name: described(of) for name, of in KERNELS.items()}}
    return json.dumps(catalogue, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def sign(text: bytes, key: Ed25519PrivateKey) -> bytes:
    """What goes into FILE.sig."""
    return base64.b64encode(key.sign(TITLE + text)) + b"\n"


def signed(path: Path, root: Ed25519PublicKey) -> dict[str, Any]:
    """What is signed of each kernel, by name, of a catalogue with its signature beside it. Raises
    SignatureError."""
    from cryptography.exceptions import InvalidSignature

    text, signature = _read(path), _read(path.with_name(f"{path.name}.sig"))
    try:
        root.verify(base64.b64decode(signature.strip(), validate=True), TITLE + text)
    except (binascii.Error, InvalidSignature) as error:
        raise SignatureError(f"{path}.sig: not a signature of {path.name} by the key given") from error
    catalogue = json.loads(text)
    if catalogue.get("format") != FORMAT:
        raise SignatureError(f"{path}: format {catalogue.get('format')!r}, expected {FORMAT}")
    kernels: dict[str, Any] = catalogue["kernels"]
    return kernels


def check_source(kernel: Kernel, row: Mapping[str, Any]) -> None:
    """Raise SourceError unless the kernel is here what it is in a signed catalogue."""
    here = described(kernel)
    if here != row:
        differ = sorted(key for key in here.keys() | row.keys() if here.get(key) != row.get(key))
        files = {name for of in (here, row) for name in of.get("files", {})}
        named = sorted(n for n in files if here["files"].get(n) != row.get("files", {}).get(n))
        raise SourceError(f"{kernel.name}: not as it was signed: {' '.join(named or differ)}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror}") from error
    if len(text) > SIZE_MAX:
        raise SignatureError(f"{path}: expected {SIZE_MAX} bytes at most")
    return text
